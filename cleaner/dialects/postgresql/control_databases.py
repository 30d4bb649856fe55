"""The databases of a server, as the control database's connection sees and makes them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from cleaner.dialects.postgresql.clone import Clones, template_name
from cleaner.dialects.postgresql.clone_attributes import OURS, Found, derived, found_query
from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.dialects.postgresql.failures import sqlstate
from cleaner.dialects.postgresql.sql import quote
from cleaner.dialects.strings import literal, literals
from cleaner.errors import ProvisionError

LONGEST = 63  # bytes of a name
# The end of a name that nobody else gives: a database may have no comment yet, or none any more.
_PRIVATE = re.compile(r"_cleaner_(new|old|build)_[0-9a-f]{8}$")


class NoPoolError(ProvisionError):
    """The server has no control database."""


class Databases(PostgresConnection):
    """Makes databases and drops those that are ours. Raises the driver's errors."""

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All that is executed in it, or nothing."""
        self.execute("BEGIN")
        try:
            yield
            self.execute("COMMIT", True)
        except BaseException:
            self.execute("ROLLBACK", True)
            raise

    def now(self) -> datetime:
        """The server's clock."""
        moment: datetime = self.execute("SELECT clock_timestamp()")[0][0]
        return moment

    def role(self) -> tuple[str, bool]:
        """The role's name, and whether it may create databases."""
        name, creates = self.execute(
            "SELECT rolname::text, rolcreatedb OR rolsuper FROM pg_catalog.pg_roles"
            " WHERE rolname = current_user"
        )[0]
        return name, creates

    def has_role(self, name: str) -> bool:
        """Whether there is a role of that name."""
        found = f"SELECT FROM pg_catalog.pg_roles WHERE rolname = {literal(name)}"
        return bool(self.execute(f"SELECT EXISTS ({found})")[0][0])

    def exists(self, name: str) -> bool:
        """Whether there is a database of that name."""
        found = f"SELECT FROM pg_catalog.pg_database WHERE datname = {literal(name)}"
        return bool(self.execute(f"SELECT EXISTS ({found})")[0][0])

    def sizes(self, names: Iterable[str]) -> dict[str, int | None]:
        """The size in bytes of those that there are, None where this role may not know it."""
        rows = self.execute(
            f"""SELECT datname::text, CASE WHEN pg_catalog.has_database_privilege(oid, 'CONNECT')
       THEN pg_catalog.pg_database_size(oid) END
  FROM pg_catalog.pg_database WHERE datname IN ({literals(names) or "''"})"""
        )
        return dict(rows)

    def occupied(self, name: str) -> bool:
        """Whether anybody is connected to it."""
        found = (
            f"SELECT FROM pg_catalog.pg_stat_activity WHERE datname = {literal(name)}"
            " AND usesysid IS NOT NULL"
        )
        return bool(self.execute(f"SELECT EXISTS ({found})")[0][0])

    def create(self, name: str, source: str) -> None:
        """Make a database, empty or a copy of ``source``."""
        if source:
            self.clones(source, name).make_template()
            for change in ("IS_TEMPLATE false", "ALLOW_CONNECTIONS true"):
                self.execute(f"ALTER DATABASE {quote(name)} {change}")
        else:
            self.execute(f"CREATE DATABASE {quote(name)}")
        self.mark(name, "being built")

    def make_for(self, role: str, name: str) -> None:
        """Make a database that belongs to ``role``. Raises ProvisionError."""
        new = derived(name, "new")
        self.drop(name)
        self.execute(f"CREATE DATABASE {quote(new)} ALLOW_CONNECTIONS false")
        self.mark(new, f"provided for {role}")
        try:
            self.execute(
                f"ALTER DATABASE {quote(new)} RENAME TO {quote(name)};"
                f" ALTER DATABASE {quote(name)} ALLOW_CONNECTIONS true;"
                f" ALTER DATABASE {quote(name)} OWNER TO {quote(role)}"
            )
        except self.driver_error as error:
            self.drop(name)
            if sqlstate(error) != "42501":
                raise
            user = self.execute("SELECT current_user::text")[0][0]
            raise ProvisionError(
                f"Role {user} may not give a database to {role}.",
                "it is neither a superuser nor a member of that role",
                f"GRANT {quote(role)} TO {quote(user)}",
            ) from error
        if self.execute("SHOW server_version_num")[0][0] < "150000":
            # Else it belongs to the superuser, and the role could not empty its database.
            inside = self.inside(name)
            try:
                inside.execute(f"ALTER SCHEMA public OWNER TO {quote(role)}")
            finally:
                inside.close()

    def inside(self, name: str) -> PostgresConnection:
        """A connection to that database, the caller's to close."""
        url = self.engine.url.set(database=name)
        return PostgresConnection(url, lambda name: None, self.lock_timeout)

    def mark(self, name: str, what: str) -> None:
        """Have its comment say that it is ours, and ``what`` it is."""
        shown = " ".join(what.split())
        self.execute(f"COMMENT ON DATABASE {quote(name)} IS {literal(OURS + shown)}")

    def drop(self, name: str) -> bool:
        """Drop a database of ours, whoever is connected, with its baseline's template and what
        was left of making either.

        False if there is one of that name whose comment does not say that it is ours, which is
        left as it is.
        """
        self.clones(name, "").end_work()
        both = name, template_name(name)
        names = (*both, *(derived(each, kind) for each in both for kind in ("new", "old")))
        for row in self.execute(found_query(names)):
            found = Found(*row)
            unfinished = found.comment is None and _PRIVATE.search(found.name)
            if not (found.ours or unfinished):
                continue
            if found.is_template:
                self.execute(f"ALTER DATABASE {quote(found.name)} IS_TEMPLATE false")
            self._drop_with_sessions(found.name)
        return not self.exists(name)

    def _drop_with_sessions(self, name: str) -> None:
        drop = f"DROP DATABASE IF EXISTS {quote(name)}"
        try:
            self.execute(f"{drop} WITH (FORCE)")
        except self.driver_error as error:
            if sqlstate(error) != "42501":
                raise
            # FORCE wants the right to end autovacuum's workers, too, which a plain role has not,
            # and without it the server ends them for whoever drops.
            self.execute(
                f"""SELECT pg_catalog.pg_terminate_backend(a.pid, 5000)
  FROM pg_catalog.pg_stat_activity a JOIN pg_catalog.pg_database d ON d.oid = a.datid
 WHERE d.datname = {literal(name)} AND a.usesysid IS NOT NULL
   AND pg_catalog.pg_has_role(d.datdba, 'USAGE')"""
            )
            self.execute(drop)

    def clones(self, database: str, template: str) -> Clones:
        """To make ``database`` anew from ``template``, or the other way round."""
        return Clones(
            self.execute, self.driver_error, database, template=template, wait=self.lock_timeout
        )

    def psql(self, name: str) -> str:
        """A line for the shell that connects to that database like we are connected."""
        driver: Any = self._connect().connection.dbapi_connection
        info, url = getattr(driver, "info", None), self.engine.url
        user = getattr(info, "user", None) or url.username
        host = getattr(info, "host", None) or url.host
        port = getattr(info, "port", None) or url.port
        words = ["psql"]
        for option, value in (("-h", host), ("-p", port), ("-U", user)):
            words += [option, str(value)] if value else []
        return shlex.join([*words, "-d", name])

    @staticmethod
    def roles(everyone: bool) -> str:
        """The condition for rows of this role; with ``everyone`` of those whose privileges it has
        as well.
        """
        if not everyone:
            return "role = current_user"
        return """(role = current_user OR pg_catalog.current_setting('is_superuser')::bool
       OR EXISTS (SELECT FROM pg_catalog.pg_roles r
                   WHERE r.rolname = role AND pg_catalog.pg_has_role(r.oid, 'USAGE')))"""


def named(base: str, suffix: str) -> str:
    """A name that begins like ``base``, cut to what a name may have, and ends like that."""
    return base.encode()[: LONGEST - len(suffix.encode())].decode(errors="ignore") + suffix
