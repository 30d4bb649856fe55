"""A database for one test at a time, on a real server."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import URL

from cleaner import Cleaner

STRATEGIES = ("auto", "delete", "truncate", "replica")


class Database:
    """A database that belongs to this test, and ways to look at it behind the cleaner's back."""

    def __init__(self, url: URL, role: str) -> None:
        self.url = url
        self.role = role
        self._connection: psycopg.Connection[Any] | None = None

    @property
    def name(self) -> str:
        assert self.url.database is not None
        return self.url.database

    @property
    def conninfo(self) -> dict[str, Any]:
        host = self.url.query.get("host") or self.url.host
        return {"host": host, "port": self.url.port, "dbname": self.name}

    def connect(self, user: str = "postgres", **keywords: Any) -> psycopg.Connection[Any]:
        """A new connection, the caller's to close; ``autocommit`` unless said otherwise."""
        return psycopg.connect(**self.conninfo, user=user, **{"autocommit": True, **keywords})

    @contextmanager
    def transaction(self, user: str = "postgres") -> Iterator[psycopg.Connection[Any]]:
        """A connection with an open transaction, rolled back and closed in the end."""
        connection = self.connect(user, autocommit=False)
        try:
            yield connection
        finally:
            if not connection.closed:
                connection.rollback()
            connection.close()

    @property
    def session(self) -> psycopg.Connection[Any]:
        """The superuser's session in which `execute` runs."""
        if self._connection is None or self._connection.closed:
            # Longer than any test waits: one that is in its own way fails, and doesn't hang.
            self._connection = self.connect(options="-c lock_timeout=60s")
        return self._connection

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run statements as superuser, committed; returns the last one's rows."""
        cursor = self.session.execute(sql.encode())
        while cursor.nextset():
            pass
        return cursor.fetchall() if cursor.description else []

    def scalar(self, sql: str) -> Any:
        """The first column of the first row."""
        return self.execute(sql)[0][0]

    def count(self, table: str) -> int:
        """How many rows a table holds."""
        return int(self.scalar(f"SELECT count(*) FROM {table}"))

    def advisory_locks(self) -> int:
        """How many are held in this database."""
        return int(
            self.scalar(
                "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND database ="
                " (SELECT oid FROM pg_database WHERE datname = current_database())"
            )
        )

    def cleaner(
        self, metadata: object = None, *, role: str = "postgres", **settings: Any
    ) -> Cleaner:
        """A cleaner of this database, as superuser unless a ``role`` is given."""
        return Cleaner(self.url.set(username=role), metadata, **settings)

    def give_away(self) -> None:
        """Make the plain role the owner of every schema and table."""
        self.execute(
            f"""DO $$ DECLARE o record; BEGIN
FOR o IN SELECT format('SCHEMA %I', nspname) AS what FROM pg_namespace
          WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
  UNION ALL SELECT format('%s %s', CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW'
              WHEN 'm' THEN 'MATERIALIZED VIEW' WHEN 'f' THEN 'FOREIGN TABLE' ELSE 'TABLE' END,
              c.oid::regclass)
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
   WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
     AND c.relkind IN ('r', 'p', 'v', 'm', 'f', 'S') AND NOT EXISTS (
         SELECT FROM pg_depend d WHERE d.objid = c.oid AND d.deptype IN ('a', 'i', 'e')
            AND c.relkind = 'S')
LOOP EXECUTE format('ALTER %s OWNER TO {self.role}', o.what); END LOOP; END $$"""
        )

    def wipe(self) -> None:
        """Remove whatever a test has left, whoever holds it."""
        self.execute(
            """SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity
                WHERE datname = current_database() AND pid <> pg_backend_pid()"""
        )
        for (gid,) in self.execute(
            "SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"
        ):
            self.execute(f"ROLLBACK PREPARED '{gid}'")
        self.execute(
            """DO $$ DECLARE what text; BEGIN
FOR what IN SELECT format('PUBLICATION %I', pubname) FROM pg_publication
  UNION ALL SELECT format('EVENT TRIGGER %I', evtname) FROM pg_event_trigger
  UNION ALL SELECT format('EXTENSION %I', extname) FROM pg_extension WHERE extname <> 'plpgsql'
  UNION ALL SELECT format('SCHEMA %I', nspname) FROM pg_namespace
             WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
LOOP EXECUTE format('DROP %s CASCADE', what); END LOOP; END $$;
CREATE SCHEMA public; GRANT ALL ON SCHEMA public TO PUBLIC;"""
        )
        self.execute(f'ALTER DATABASE "{self.name}" RESET ALL')

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
