"""What a server has to offer to a test run, looked at without changing anything there."""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import URL

from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.dialects.strings import literal
from cleaner.errors import ProvisionError

MAINTENANCE = "postgres"


@dataclass(frozen=True)
class Server:
    """Of the role that asks: its name, and whether it ``creates`` databases. Whether the server
    has a ``control`` database, and one that is called like ``url`` says (``base``). How many more
    connections it would grant to the role (``free``).
    """

    version: str
    role: str
    creates: bool
    control: bool
    base: bool
    free: int

    def __str__(self) -> str:
        return f"postgresql {self.version}"


def look(url: URL, control: str, lock_timeout: float) -> Server:
    """The server of ``url``. Raises ProvisionError where it can't be reached."""
    try:
        return _look(url, control, lock_timeout, MAINTENANCE)
    except ProvisionError:
        return _look(url, control, lock_timeout, url.database or "")


def _look(url: URL, control: str, lock_timeout: float, database: str) -> Server:
    connection = PostgresConnection(url.set(database=database), lambda name: None, lock_timeout)
    try:
        version, *rest = connection.execute(
            f"""SELECT pg_catalog.current_setting('server_version'), rolname::text,
       rolcreatedb OR rolsuper,
       EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = {literal(control)}),
       EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = {literal(url.database or "")}),
       pg_catalog.current_setting('max_connections')::int
       - CASE WHEN rolsuper THEN 0
              ELSE pg_catalog.current_setting('superuser_reserved_connections')::int END
       - (SELECT count(*)::int FROM pg_catalog.pg_stat_activity
           WHERE backend_type = 'client backend')
  FROM pg_catalog.pg_roles WHERE rolname = current_user"""
        )[0]
        return Server(version.split()[0], *rest)
    finally:
        connection.close()
