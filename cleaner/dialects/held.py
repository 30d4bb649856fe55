"""A connection of our own to a database, replaced when it dies, whatever the dialect."""

from __future__ import annotations

import asyncio
import os
import time
import traceback
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError

from cleaner import waits
from cleaner.dialects.base import Guard
from cleaner.dialects.drivers import Drivers
from cleaner.dialects.homes import home_of
from cleaner.dialects.mutex import Mutex
from cleaner.errors import CleanerError, ProvisionError
from cleaner.settings import masked

_held: weakref.WeakSet[HeldConnection] = weakref.WeakSet()


class HeldConnection(Drivers, ABC):
    """In autocommit mode, outside of every pool, opened when first needed.

    ``guard`` is called with the database's name before anything else is done on a new one. A
    connection that is made for an AsyncCleaner belongs to the event loop that it was opened in.
    """

    least_wait = 1

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        self.round_trips = 0
        self.mutex = Mutex(lock_timeout)
        self.engine = self._own_engine(source, awaited=waits.is_awaited())
        self._home = home_of(self.engine.dialect, awaited=waits.is_awaited())
        self._guard = guard
        self.lock_timeout = lock_timeout
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._reconnecting = False  # a server that was there may be restarting: wait for it
        self._newest: list[Any] = []  # what the driver has opened and SQLAlchemy not yet returned
        for moment in ("first_connect", "connect"):
            event.listen(self.engine.pool, moment, _noting(self._newest), insert=True)
        _held.add(self)

    # -- what a dialect adds ----------------------------------------------------------------

    @abstractmethod
    def _greet(self, cursor: Any) -> str:
        """Set up a new session by the driver's ``cursor``; returns the database's name."""

    def _vanished(self) -> None:
        """The connection is gone, and whatever was known of its session with it."""

    @property
    def cancellable(self) -> bool:
        return True

    # -- connecting -------------------------------------------------------------------------

    def _connect(self) -> Connection:
        if self._connection is not None:
            if self._home.is_here():
                return self._connection
            self._drop()  # its event loop is another, which may be closed
        deadline = time.monotonic() + (self.lock_timeout if self._reconnecting else 0)
        while True:
            try:
                self._connection = self._home.run(self._open)
                break
            except self._not_connected as error:
                if time.monotonic() >= deadline:
                    raise self._unreachable(error) from error
                waits.pause(0.05)
            except SQLAlchemyError as error:
                raise self._unreachable(error) from error
        self._reconnecting = False
        self._home.settle(self)
        self._finalizer = weakref.finalize(self, _release, self._connection, self._home.abandon)
        return self._connection

    def _open(self) -> Connection:
        self._newest.clear()
        try:
            connection = self.engine.connect()
        except BaseException as error:
            # SQLAlchemy, when interrupted, forgets what it has not made ready yet, and a driver
            # may leave what it has begun to the garbage collector.
            for made in self._newest:
                self._home.kill(made)
            if not isinstance(error, Exception):
                traceback.clear_frames(error.__traceback__)
            raise
        finally:
            self._newest.clear()
        try:
            connection.detach()  # ours until closed: no place in a pool is taken
            # By the driver's cursor: SQLAlchemy would begin a transaction, and if interrupted
            # forget a connection that is detached without closing it.
            cursor = connection.connection.cursor()
            self.round_trips += 1
            self._guard(self._greet(cursor))
            cursor.close()
        except BaseException:
            _release(connection, self._home.kill)
            raise
        return connection

    def _forget(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._connection = self._finalizer = None
        self._vanished()

    def close(self) -> None:
        """Close the connection. Another is opened when needed."""
        self.leave()
        self._home.stop()
        self.engine.dispose()

    def leave(self) -> None:
        """Close the connection in the place that it belongs to, which will soon be gone."""
        connection = self._connection
        self._forget()
        if connection is not None:
            here = self._home.is_here()
            _release(connection, self._home.close if here else self._home.abandon)

    def disown(self) -> None:
        """In a forked child: leave the connection to the parent, and begin anew."""
        connection = self._connection
        self.mutex = Mutex(self.lock_timeout)  # a thread that is not here may have held it
        self._forget()
        if connection is None:
            return
        # Whatever the child says on the socket, if only that it closes it, the server would take
        # for the parent's word. So the child's end of it leads nowhere from now on.
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, self._home.fileno(connection.connection.dbapi_connection))
        os.close(nowhere)
        self._home.disown(connection)

    def execute(self, sql: str, in_transaction: bool = False) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own, on a new connection if the held one
        turns out to have died: none of ours leaves anything half done. With ``in_transaction``
        it belongs to one that was begun before, and is not run outside of that.

        SQLAlchemy makes the connection; its statement execution would double the client's share
        of a clean, so the driver's cursor is used. Raises the driver's own errors.
        """
        while True:
            held = self._connection is not None
            if in_transaction and not held:
                return []  # a ROLLBACK: the transaction went with its connection
            connection = self._connect().connection
            self.round_trips += 1
            try:
                return self._home.run(partial(self._ask, connection, sql))
            except (*self._driver_errors, OSError) as error:
                if not isinstance(error, OSError) and not self._is_disconnect(error, connection):
                    raise
                self._drop()
                if not held or in_transaction:
                    raise self._unreachable(error) from error
            except BaseException:
                # Ctrl-C, a timeout: the statement may still be running over there.
                self._drop()
                raise

    def _ask(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        cursor = connection.cursor()
        cursor.execute(sql)
        rows = list(cursor.fetchall()) if cursor.description else []
        cursor.close()
        return rows

    def _is_disconnect(self, error: Any, connection: Any) -> bool:
        return bool(self.engine.dialect.is_disconnect(error, connection, None))

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
        """The root of the driver's errors, or several."""
        error: Any = self.engine.dialect.loaded_dbapi.Error
        return error

    @property
    def _not_connected(self) -> tuple[Any, ...]:
        """What is raised where there is no server, or not yet."""
        return OperationalError, InterfaceError, *self._driver_errors, OSError, asyncio.TimeoutError

    @property
    def _driver_errors(self) -> tuple[Any, ...]:
        errors = self.driver_error
        return errors if isinstance(errors, tuple) else (errors,)

    def _drop(self) -> None:
        """Let go of a connection that has died, or whose statement was cut short."""
        connection, here = self._connection, self._home.is_here()
        self._forget()
        self._reconnecting = True
        if connection is not None:
            _release(connection, self._home.kill if here else self._home.abandon)

    def connect(self) -> URL:
        self._connect()
        return self.engine.url

    @property
    def driver(self) -> str:
        driver: Any = self.engine.dialect.loaded_dbapi
        told = (getattr(driver, name, "") for name in ("__version__", "sqlite_version"))
        version = next((str(each).split()[0] for each in told if each), "")
        return f"{driver.__name__} {version}".rstrip()  # mysqlclient tells none


def _release(connection: Connection, close: Callable[[Any], None]) -> None:
    """Close it, whatever state it is in: the server may be gone, or still at work for it."""
    try:
        with suppress(Exception):  # SQLAlchemy would roll back first; a detached one it forgets
            close(connection.connection.dbapi_connection)
    finally:
        with suppress(SQLAlchemyError):
            connection.invalidate()
            connection.close()


def _noting(newest: list[Any]) -> Callable[[Any, Any], None]:
    def note(connection: Any, record: Any) -> None:
        newest.append(connection)

    return note


def _after_fork() -> None:
    for held in list(_held):
        held.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
