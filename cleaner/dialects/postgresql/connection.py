"""A connection of our own to a PostgreSQL database."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from sqlalchemy import URL, Engine
from sqlalchemy.util import await_only

from cleaner.dialects.base import Guard
from cleaner.dialects.drivers import Twin
from cleaner.dialects.held import HeldConnection
from cleaner.dialects.postgresql.failures import sqlstate
from cleaner.dialects.postgresql.program import State

# A machine that has vanished from the network says no goodbye: the other side notices after 11
# seconds, also if an answer is still on its way there, in which case nothing is probed.
_KEEPALIVES = {"keepalives_idle": "5", "keepalives_interval": "2", "keepalives_count": "3"}
_VANISHED = "11000"
# Of this session only. Whatever the role's defaults are: each statement sees what was committed
# before it, nothing but lock_timeout cuts it short, and a row-level policy raises instead of
# hiding rows. Compiling an expression over a thousand tables would cost more than running it.
_SESSION = {
    "application_name": "cleaner",
    "client_connection_check_interval": "100",  # a statement does not outlive its client
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
    **{f"tcp_{name}": value for name, value in _KEEPALIVES.items()},
    "tcp_user_timeout": _VANISHED,
    "transaction_timeout": "0",
}
_SETUP = (
    "SELECT pg_catalog.current_database(), count(pg_catalog.set_config(v.name, v.value, false))"
    " FROM (VALUES {}) v(name, value) JOIN pg_catalog.pg_settings s ON s.name = v.name"
    # Other systems may not be able to, and refuse it.
    " WHERE v.name <> 'client_connection_check_interval' OR pg_catalog.version() ~ 'linux'"
)
_SENT_AWAY = {
    "57P01",  # admin_shutdown
    "57P02",  # crash_shutdown
    "57P05",  # idle_session_timeout
}
# Arguments of asyncpg, and of SQLAlchemy's dialect for it, in the words of libpq.
_ASYNCPG = {
    "host": "host",
    "port": "port",
    "passfile": "passfile",
    "service": "service",
    "ssl": "sslmode",
    "prepared_statement_cache_size": "",
    "statement_cache_size": "",
    "prepared_statement_name_func": "",
}


class PostgresConnection(HeldConnection):
    """See :class:`cleaner.dialects.held.HeldConnection`."""

    drivers: ClassVar[dict[str, str]] = {
        "psycopg": "connect_timeout",
        "psycopg2": "connect_timeout",
        "pg8000": "timeout",
    }
    async_drivers: ClassVar[dict[str, str]] = {
        "asyncpg": "timeout",
        "psycopg": "connect_timeout",
        "psycopg_async": "connect_timeout",
    }
    twins: ClassVar[dict[str, Twin]] = {
        "asyncpg": Twin(("psycopg", "psycopg2"), _ASYNCPG),
        "psycopg_async": Twin(("psycopg",), None),
    }
    arguments: ClassVar[dict[str, Mapping[str, object]]] = {
        driver: {**_KEEPALIVES, "tcp_user_timeout": _VANISHED}
        for driver in ("psycopg", "psycopg2", "psycopg_async")
    }
    extra = "postgresql"
    example = "postgresql+psycopg://user:password@host/app_test"
    async_example = "postgresql+asyncpg://user:password@host/app_test"

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        # Per program on this connection: the state that its next call is given.
        self.states: dict[str, State] = {}
        super().__init__(source, guard, lock_timeout)

    @property
    def session_settings(self) -> dict[str, str]:
        """What is set for the session as it begins."""
        return _SESSION

    def _greet(self, cursor: Any) -> str:
        settings = (f"('{name}', '{value}')" for name, value in self.session_settings.items())
        cursor.execute(_SETUP.format(", ".join(settings)))
        name: str = cursor.fetchall()[0][0]
        return name

    def _ask(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        try:
            return super()._ask(connection, sql)
        except self.driver_error as error:
            if not (self._prepares and sqlstate(error) == "42601"):
                raise
        # More than one statement can't be prepared. Of those nobody wants the rows.
        await_only(connection.dbapi_connection.driver_connection.execute(sql))
        return []

    @property
    def _prepares(self) -> bool:
        """Whether the driver prepares whatever it runs."""
        return self.engine.dialect.driver == "asyncpg"

    @property
    def driver_error(self) -> Any:
        if not self._prepares:
            return super().driver_error
        # SQLAlchemy translates what cursors raise, and nothing else.
        driver: Any = self.engine.dialect.loaded_dbapi
        return driver.Error, driver.asyncpg.PostgresError, driver.asyncpg.InterfaceError

    def _is_disconnect(self, error: Any, connection: Any) -> bool:
        # What the server says to all whom it sends away: some drivers hear it before the end.
        return sqlstate(error) in _SENT_AWAY or super()._is_disconnect(error, connection)

    def _vanished(self) -> None:
        self.states.clear()
