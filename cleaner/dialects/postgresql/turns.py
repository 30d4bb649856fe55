"""One at a time at a database that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL

from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.dialects.postgresql.failures import passing
from cleaner.dialects.postgresql.occupants import lock_holders
from cleaner.errors import BlockedError, ProvisionError

_LOCK = int.from_bytes(b"turns", "big")
_PATIENCE = 1800.0  # seconds, in which the test of another process should have ended


class PostgresTurns:
    """By a session advisory lock in the database of ``url``, which the server lets go of when its
    holder dies. See :class:`cleaner.dialects.base.Turns`.
    """

    def __init__(self, url: URL, lock_timeout: float, patience: float = _PATIENCE) -> None:
        self._connection = PostgresConnection(url, lambda name: None, lock_timeout)
        self._patience = patience

    @contextmanager
    def turn(self) -> Iterator[None]:
        self._wait()
        try:
            yield
        finally:
            unlock = f"SELECT pg_catalog.pg_advisory_unlock({_LOCK})"
            kept = self._connection.execute(unlock)[0][0]
        if not kept:
            raise ProvisionError.lost_turn()

    def _wait(self) -> None:
        connection, patience = self._connection, round(self._patience * 1000)
        try:
            connection.execute(
                f"SELECT pg_catalog.pg_advisory_lock({_LOCK}) FROM"
                f" pg_catalog.set_config('lock_timeout', '{patience}', false)"
            )
        except connection.driver_error as error:
            if passing(error) is None:
                raise
            holders = lock_holders(connection.execute, _LOCK)
            database = connection.engine.url.database or ""
            raise BlockedError.for_turn(database, self._patience, holders) from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
