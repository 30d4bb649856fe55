"""One at a time at a database that several processes share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import URL

from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.errors import ProvisionError

_LOCK = int.from_bytes(b"turns", "big")


class Turns:
    """Turns at the database of ``url``, by a session advisory lock there, which the server lets go
    of when its holder dies.
    """

    def __init__(self, url: URL, lock_timeout: float) -> None:
        self._connection = PostgresConnection(url, lambda name: None, lock_timeout)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Wait for the turn, for as long as others take theirs, and have it."""
        self._connection.execute("SET lock_timeout = 0")
        self._connection.execute(f"SELECT pg_catalog.pg_advisory_lock({_LOCK})")
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

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()
