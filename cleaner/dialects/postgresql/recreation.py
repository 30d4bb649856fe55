"""A whole database replaced by a clone of its baseline, as the session runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import URL

from cleaner.dialects.postgresql.activity import Execute
from cleaner.dialects.postgresql.clone import Clones, template_name
from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.dialects.postgresql.control import CONTROL
from cleaner.dialects.postgresql.server import MAINTENANCE
from cleaner.dialects.postgresql.sql import quote
from cleaner.errors import StrategyRefusedError
from cleaner.spi import Target

# Tells servers apart: a URL and an engine's own way of connecting need not lead to the same one.
_WHICH = "SELECT pg_catalog.pg_postmaster_start_time()::text"
# Advisory locks are per database: a pool takes those of its clones in its own.
_POOLED = f"""EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = '{CONTROL}'
   AND datallowconn AND pg_catalog.has_database_privilege(oid, 'CONNECT'))"""


@dataclass(frozen=True)
class Recreation:
    """Takes the place of a :class:`.program.Program`."""

    target: Target
    template: str
    locks: tuple[int, ...] = ()
    exclusive: bool = True

    def __str__(self) -> str:
        name = self.target.database.name
        return (
            f"DROP DATABASE {quote(name)};\n"
            f"CREATE DATABASE {quote(name)} TEMPLATE {quote(self.template or template_name(name))};"
        )


@contextmanager
def elsewhere(
    url: URL, database: str, template: str, lock_timeout: float, execute: Execute
) -> Iterator[Clones]:
    """The clones of ``database``, to which ``execute`` is connected, by way of another one of the
    same server. Raises StrategyRefusedError where ``url`` leads to another server.
    """
    here, pooled = execute(f"{_WHICH}, {_POOLED}")[0]
    others = [CONTROL] * pooled + [MAINTENANCE, "template1"]
    other = url.set(database=next(name for name in others if name != database))
    connection = PostgresConnection(other, lambda name: None, lock_timeout)
    try:
        if connection.execute(_WHICH)[0][0] != here:
            raise StrategyRefusedError(
                f"{database} can't be recreated: {other.render_as_string()} leads to another "
                "server.",
                "the engine connects in a way of its own (creator, events)",
                "Cleaner(url), with the URL of the server",
            )
        yield Clones(
            connection.execute,
            connection.driver_error,
            database,
            template=template,
            wait=lock_timeout,
        )
    finally:
        connection.close()
