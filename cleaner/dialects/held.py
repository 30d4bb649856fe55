"""A connection of our own to a database, replaced when it dies, whatever the dialect."""

from __future__ import annotations

import os
import threading
import time
import weakref
from abc import ABC, abstractmethod
from contextlib import suppress
from importlib.util import find_spec
from typing import Any, ClassVar

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cleaner.dialects.base import Guard
from cleaner.errors import CleanerError, ProvisionError, SettingsError
from cleaner.settings import masked

_CONNECT_TIMEOUT = 10  # seconds; the default of most drivers is to wait for ever

_held: weakref.WeakSet[HeldConnection] = weakref.WeakSet()


class HeldConnection(ABC):
    """In autocommit mode, outside of every pool, opened when first needed.

    ``guard`` is called with the database's name before anything else is done on a new one. A
    dialect says which ``drivers`` it knows, each with the argument that bounds connecting in
    seconds, in the order in which one is chosen for a URL that names none; the ``extra`` that
    brings the first of them; and an ``example`` of a URL.
    """

    drivers: ClassVar[dict[str, str]] = {}
    extra: ClassVar[str] = ""
    example: ClassVar[str] = ""

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        self.round_trips = 0
        self.mutex = threading.RLock()
        self.engine = self._own_engine(source)
        self._guard = guard
        self.lock_timeout = lock_timeout
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._reconnecting = False  # a server that was there may be restarting: wait for it
        _held.add(self)

    # -- what a dialect adds ----------------------------------------------------------------

    @abstractmethod
    def _greet(self, cursor: Any) -> str:
        """Set up a new session by the driver's ``cursor``; returns the database's name."""

    def _vanished(self) -> None:  # noqa: B027 -- not every dialect knows anything
        """The connection is gone, and whatever was known of its session with it."""

    # -- connecting -------------------------------------------------------------------------

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
                    raise self._unreachable(error) from error
                time.sleep(0.05)
            except SQLAlchemyError as error:
                raise self._unreachable(error) from error
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
            self._guard(self._greet(cursor))
            cursor.close()
        except BaseException:
            _release(connection)
            raise
        return connection

    def _forget(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._connection = self._finalizer = None
        self._vanished()

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
                    raise self._unreachable(error) from error
            except BaseException:
                # Ctrl-C, a timeout: the statement may still be running over there.
                self._drop()
                raise

    def _unreachable(self, error: Exception) -> CleanerError:
        """The error for a database that can't be connected to."""
        origin = getattr(error, "orig", None) or error
        return ProvisionError(
            f"No connection to {masked(self.engine.url)}: {' '.join(str(origin).split())}",
            "the server is down, the database does not exist, or the credentials are others",
            f'url = "{self.example}", as its own client would reach it',
        )

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

    # -- the engine -------------------------------------------------------------------------

    def _own_engine(self, source: URL | Engine) -> Engine:
        """An engine of our own, so that neither pool waits for the other.

        An Engine's way of connecting (creator, arguments, events) is kept by re-creating its pool.
        """
        if isinstance(source, Engine):
            if source.dialect.is_async:
                raise self._asynchronous(f"The engine's driver {source.dialect.driver}")
            return create_engine(
                source.url, pool=source.pool.recreate(), isolation_level="AUTOCOMMIT"
            ).execution_options(no_parameters=True)
        url = self._with_driver(source)
        driver = url.get_driver_name()
        arguments: dict[str, object] = {}
        if driver in self.drivers and self.drivers[driver] not in url.query:
            arguments[self.drivers[driver]] = _CONNECT_TIMEOUT
        try:
            engine = create_engine(
                url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
            )
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"The driver {driver!r} of {url.render_as_string()} is not installed.",
                "cleaner does not bring drivers but by its extras",
                f"pip install 'database-cleaner[{self.extra}]'",
            ) from error
        if engine.dialect.is_async:
            raise self._asynchronous(f"The driver {driver!r}")
        return engine.execution_options(no_parameters=True)

    def _with_driver(self, url: URL) -> URL:
        """The URL with a driver that is installed, if it names none."""
        if "+" not in url.drivername:
            for driver in self.drivers:
                if find_spec(driver):
                    return url.set(drivername=f"{url.drivername}+{driver}")
        return url

    def _asynchronous(self, what: str) -> SettingsError:
        return SettingsError(
            f"{what} works with asyncio only, which a Cleaner can't wait for.",
            "the application's own engine or URL was given",
            f'Cleaner("{self.example}")',
        )


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
