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


class Turns:
    """Turns at the database of ``url``, by a session advisory lock there, which the server lets go
    of when its holder dies.
    """

    def __init__(self, url: URL, lock_timeout: float, patience: float = _PATIENCE) -> None:
        self._connection = PostgresConnection(url, lambda name: None, lock_timeout)
        self._patience = patience

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, for as long as others take theirs, and have it.

        Raises BlockedError where one of them does not end in half an hour.
        """
        self._wait()
        try:
            yield
        finally:
            unlock = f"SELECT pg_catalog.pg_advisory_unlock({_LOCK})"
            kept = self._connection.execute(unlock)[0][0]
        if not kept:
            raise ProvisionError(
                "The connection that kept others from this database was lost.",
                "the server was restarted, or somebody has ended its sessions",
                "run the tests again; if it happens again, look at the server's log",
            )

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
            raise BlockedError(
                f"Waited {self._patience:g} s for a turn at {connection.engine.url.database}, held "
                f"by {'; '.join(map(str, holders)) or 'a session that has gone since'}.",
                "a test of another process, or of a run that was forgotten, does not end",
                "end it; with a database for each worker (cleaner pool provision) none waits",
                holders,
            ) from error

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
