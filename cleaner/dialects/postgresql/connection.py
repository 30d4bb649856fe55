"""A connection of our own to a PostgreSQL database."""

from __future__ import annotations

from typing import Any, ClassVar

from sqlalchemy import URL, Engine

from cleaner.dialects.base import Guard
from cleaner.dialects.held import HeldConnection
from cleaner.dialects.postgresql.program import State

# Of this session only. Whatever the role's defaults are: each statement sees what was committed
# before it, nothing but lock_timeout cuts it short, and a row-level policy raises instead of
# hiding rows. Compiling an expression over a thousand tables would cost more than running it.
_SESSION = {
    "application_name": "cleaner",
    "client_min_messages": "warning",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
    "standard_conforming_strings": "on",
    "max_parallel_workers_per_gather": "0",
    "row_security": "off",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}
_SETUP = (
    "SELECT pg_catalog.current_database(), count(pg_catalog.set_config(v.name, v.value, false))"
    " FROM (VALUES "
    + ", ".join(f"('{name}', '{value}')" for name, value in _SESSION.items())
    + ") v(name, value) JOIN pg_catalog.pg_settings s ON s.name = v.name"
)


class PostgresConnection(HeldConnection):
    """See :class:`cleaner.dialects.held.HeldConnection`."""

    drivers: ClassVar[dict[str, str]] = {
        "psycopg": "connect_timeout",
        "psycopg2": "connect_timeout",
        "pg8000": "timeout",
    }
    extra = "postgresql"
    example = "postgresql+psycopg://user:password@host/app_test"

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        # Per program on this connection: the state that its next call is given.
        self.states: dict[str, State] = {}
        super().__init__(source, guard, lock_timeout)

    def _greet(self, cursor: Any) -> str:
        cursor.execute(_SETUP)
        name: str = cursor.fetchall()[0][0]
        return name

    def _vanished(self) -> None:
        self.states.clear()
