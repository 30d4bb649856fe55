"""A whole database replaced by a clone of its baseline, as the session runs it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sqlalchemy import URL

from cleaner.dialects.postgresql.activity import Execute
from cleaner.dialects.postgresql.clone import Clones, template_name
from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.dialects.postgresql.sql import quote
from cleaner.errors import StrategyRefusedError
from cleaner.spi import Target

# Tells servers apart: a URL and an engine's own way of connecting need not lead to the same one.
_WHICH = "SELECT pg_catalog.pg_postmaster_start_time()::text"


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
    other = url.set(database="postgres" if database != "postgres" else "template1")
    connection = PostgresConnection(other, lambda name: None, lock_timeout)
    try:
        if connection.execute(_WHICH) != execute(_WHICH):
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
