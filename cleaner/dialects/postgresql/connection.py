"""A connection of our own to a PostgreSQL database, replaced when it dies."""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cleaner.dialects.base import Guard
from cleaner.dialects.postgresql import failures
from cleaner.dialects.postgresql.program import State
from cleaner.errors import SettingsError

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
_DRIVERS = {"psycopg": "connect_timeout", "psycopg2": "connect_timeout", "pg8000": "timeout"}
_CONNECT_TIMEOUT = 10  # seconds; libpq's default is to wait for ever


_held: weakref.WeakSet[HeldConnection] = weakref.WeakSet()


class HeldConnection:
    """In autocommit mode, outside of every pool, opened when first needed.

    ``guard`` is called with the database's name before anything else is done on a new one.
    """

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        self.round_trips = 0
        self.mutex = threading.RLock()
        self.engine = _own_engine(source)
        self._guard = guard
        self.lock_timeout = lock_timeout
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._reconnecting = False  # a server that was there may be restarting: wait for it
        # Per program on this connection: the state that its next call is given.
        self.states: dict[str, State] = {}
        _held.add(self)

    def _connect(self) -> Connection:
        if self._connection is not None:
            return self._connection
        deadline = time.monotonic() + (self.lock_timeout if self._reconnecting else 0)
        while True:
            try:
                self._connection = self._open()
                break
            except (OperationalError, InterfaceError, self.driver_error) as error:
                if time.monotonic() >= deadline:
                    raise failures.unreachable(self.engine.url, error) from error
                time.sleep(0.05)
            except SQLAlchemyError as error:
                raise failures.unreachable(self.engine.url, error) from error
        self._reconnecting = False
        self._finalizer = weakref.finalize(self, _release, self._connection)
        return self._connection

    def _open(self) -> Connection:
        connection = self.engine.connect()
        try:
            connection.detach()  # ours until closed: no place in a pool is taken
            # By the driver's cursor: SQLAlchemy would begin a transaction, and if interrupted
            # forget a connection that is detached without closing it.
            cursor = connection.connection.cursor()
            self.round_trips += 1
            cursor.execute(_SETUP)
            self._guard(cursor.fetchall()[0][0])
            cursor.close()
        except BaseException:
            _release(connection)
            raise
        return connection

    def _forget(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._connection = self._finalizer = None
        self.states.clear()

    def close(self) -> None:
        connection = self._connection
        self._forget()
        if connection is not None:
            _release(connection)
        self.engine.dispose()

    def disown(self) -> None:
        """In a forked child: leave the connection to the parent, and begin anew."""
        connection = self._connection
        self.mutex = threading.RLock()  # a thread that is not here may have held it
        self._forget()
        if connection is None:
            return
        # Whatever the child says on the socket, if only that it closes it, the server would take
        # for the parent's word. So the child's end of it leads nowhere from now on.
        driver: Any = connection.connection.dbapi_connection
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, getattr(driver, "_usock", driver).fileno())  # _usock is pg8000's
        os.close(nowhere)
        _release(connection)

    def execute(self, sql: str, in_transaction: bool = False) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own, on a new connection if the held one
        turns out to have died: none of ours leaves anything half done. With ``in_transaction``
        it belongs to one that was begun before, and is not run outside of that.

        SQLAlchemy makes the connection; its statement execution would double the client's share
        of a clean, so the driver's cursor is used. Raises the driver's own errors.
        """
        while True:
            held = self._connection is not None
            connection = self._connect().connection
            self.round_trips += 1
            try:
                cursor = connection.cursor()
                cursor.execute(sql)
                rows = list(cursor.fetchall()) if cursor.description else []
                cursor.close()
                return rows
            except self.driver_error as error:
                if not self.engine.dialect.is_disconnect(error, connection, None):
                    raise
                self._drop()
                if not held or in_transaction:
                    raise failures.unreachable(self.engine.url, error) from error
            except BaseException:
                # Ctrl-C, a timeout: the statement may still be running over there.
                self._drop()
                raise

    @property
    def driver_error(self) -> Any:
        """The root of the driver's errors."""
        error: Any = self.engine.dialect.loaded_dbapi.Error
        return error

    def _drop(self) -> None:
        """Let go of a connection that has died."""
        connection = self._connection
        self._forget()
        self._reconnecting = True
        if connection is not None:
            _release(connection)

    def connect(self) -> URL:
        self._connect()
        return self.engine.url

    @property
    def driver(self) -> str:
        driver: Any = self.engine.dialect.loaded_dbapi
        return f"{driver.__name__} {str(driver.__version__).split()[0]}"


def _release(connection: Connection) -> None:
    """Close it, whatever state it is in: the server may be gone, or still at work for it."""
    with suppress(Exception):  # SQLAlchemy would roll back first, and a detached one it forgets
        connection.connection.dbapi_connection.close()  # type: ignore[union-attr]
    with suppress(SQLAlchemyError):
        connection.invalidate()
        connection.close()


def _after_fork() -> None:
    for held in list(_held):
        held.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _own_engine(source: URL | Engine) -> Engine:
    """An engine of our own, so that neither pool waits for the other.

    An Engine's way of connecting (creator, arguments, events) is kept by re-creating its pool.
    """
    if isinstance(source, Engine):
        if source.dialect.is_async:
            raise SettingsError(
                f"The engine's driver {source.dialect.driver} works with asyncio only.",
                "the application's own engine was passed",
                'Cleaner("postgresql+psycopg://...")',
            )
        return create_engine(
            source.url, pool=source.pool.recreate(), isolation_level="AUTOCOMMIT"
        ).execution_options(no_parameters=True)
    url = failures.with_driver(source)
    driver = url.get_driver_name()
    arguments: dict[str, object] = {}
    if driver in _DRIVERS and _DRIVERS[driver] not in url.query:
        arguments[_DRIVERS[driver]] = _CONNECT_TIMEOUT
    try:
        engine = create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
        )
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The driver {driver!r} of {url.render_as_string()} is not installed.",
            "cleaner does not bring drivers but by its extras",
            "pip install 'database-cleaner[postgresql]'",
        ) from error
    if engine.dialect.is_async:
        raise SettingsError(
            f"The driver {driver!r} works with asyncio only, which a Cleaner can't wait for.",
            "the application's own URL was given",
            f'url = "{url.set(drivername="postgresql+psycopg").render_as_string()}"',
        )
    return engine.execution_options(no_parameters=True)
