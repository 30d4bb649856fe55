"""A database of a test's own that may be replaced, beside the worker's."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from psycopg import sql
from sqlalchemy import URL

from cleaner.dialects.postgresql.clone import Clones
from support.database import Database

ATTRIBUTES = """SELECT pg_get_userbyid(d.datdba), d.datconnlimit, d.datallowconn, d.datistemplate,
    shobj_description(d.oid, 'pg_database'),
    ARRAY(SELECT a::text FROM unnest(d.datacl) a ORDER BY a::text),
    ARRAY(SELECT s.setrole::regrole || ' ' || c FROM pg_db_role_setting s, unnest(s.setconfig) c
           WHERE s.setdatabase = d.oid ORDER BY 1)
  FROM pg_database d WHERE d.datname = %s"""


class Throwaway:
    """A database that a test may have dropped, renamed and made anew.

    ``prefix`` begins the names of the databases and roles that the test makes.
    """

    def __init__(self, server: Database, name: str = "{prefix}_test") -> None:
        self.prefix = f"c{uuid.uuid4().hex[:10]}"
        self.name = name.format(prefix=self.prefix)
        self.server = server
        self.admin = self.connect(dbname="postgres")
        self.roles: list[str] = []
        self.run(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(self.name)))

    def connect(self, user: str = "postgres", dbname: str = "", **more: Any) -> Any:
        """A connection, the caller's to close."""
        where = {**self.server.conninfo, "dbname": dbname or self.name}
        return psycopg.connect(**where, user=user, **{"autocommit": True, **more})

    def run(self, statement: str | sql.Composed) -> list[tuple[Any, ...]]:
        """Run it as superuser in the maintenance database."""
        text = statement.encode() if isinstance(statement, str) else statement
        cursor = self.admin.execute(text)
        return cursor.fetchall() if cursor.description else []

    def inside(self, statements: str, user: str = "postgres") -> list[tuple[Any, ...]]:
        """Run them in the database, on a connection of their own."""
        with self.connect(user) as connection:
            cursor = connection.execute(statements.encode())
            while cursor.nextset():
                pass
            return list(cursor.fetchall()) if cursor.description else []

    def role(self, options: str = "") -> str:
        """A new role."""
        name = f"{self.prefix}_role{len(self.roles)}"
        self.run(f"CREATE ROLE {name} LOGIN {options}")
        self.roles.append(name)
        return name

    def own(self, role: str) -> None:
        self.run(f'ALTER DATABASE "{self.name}" OWNER TO {role}')

    @contextmanager
    def clones(
        self, user: str = "postgres", wait: float = 5.0, dbname: str = "postgres"
    ) -> Iterator[Clones]:
        """The machinery, on a connection of that role's to that other database."""
        with self.connect(user, dbname) as connection:

            def execute(statement: str) -> list[tuple[Any, ...]]:
                cursor = connection.execute(statement.encode())
                return list(cursor.fetchall()) if cursor.description else []

            yield Clones(execute, psycopg.Error, self.name, wait=wait)

    def attributes(self, name: str = "") -> tuple[Any, ...]:
        """What belongs to the database and is not inside of it."""
        rows = self.admin.execute(ATTRIBUTES, (name or self.name,)).fetchall()
        assert len(rows) == 1, name or self.name
        return tuple(rows[0])

    def databases(self) -> set[str]:
        """All of this test's."""
        rows = self.run(f"SELECT datname FROM pg_database WHERE datname LIKE '{self.prefix}%'")
        return {name for (name,) in rows}

    def url(self, driver: str = "psycopg") -> URL:
        """The superuser's URL, by TCP, which every driver speaks."""
        return URL.create(
            f"postgresql+{driver}",
            "postgres",
            host="127.0.0.1",
            port=self.server.url.port,
            database=self.name,
        )

    def close(self) -> None:
        for gid, database in self.run("SELECT gid, database FROM pg_prepared_xacts"):
            if database.startswith(self.prefix):
                with self.connect(dbname=database) as connection:
                    connection.execute(f"ROLLBACK PREPARED '{gid}'")
        for name in self.databases():
            quoted = sql.Identifier(name)
            self.run(sql.SQL("ALTER DATABASE {} IS_TEMPLATE false").format(quoted))
            self.run(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(quoted))
        for role in self.roles:
            self.run(f"DROP ROLE {role}")
        self.admin.close()
