"""Connections of SQLAlchemy's to any database, one for each piece of work."""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import URL, Connection, Engine, Executable
from sqlalchemy.exc import (
    InvalidRequestError,
    NoSuchModuleError,
    SQLAlchemyError,
)
from sqlalchemy.pool import NullPool, SingletonThreadPool, StaticPool

from cleaner import waits
from cleaner.dialects.base import Guard
from cleaner.dialects.drivers import engine_maker
from cleaner.dialects.mutex import Mutex
from cleaner.errors import ProvisionError, SettingsError
from cleaner.settings import masked

_ONE_CONNECTION = (StaticPool, SingletonThreadPool)  # for each thread, of the latter
_sessions: weakref.WeakSet[GenericConnection] = weakref.WeakSet()


class GenericConnection:
    """By an engine of our own, whose pool keeps the connection between the cleans.

    An Engine whose pool has but one connection is used itself: a database in memory is seen by
    that connection only. What the application has not committed there, a clean commits. Of an
    asynchronous URL each connection is a new one, since it belongs to an event loop.
    """

    least_wait = 1
    cancellable = True

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        self.round_trips = 0
        self.mutex = Mutex(lock_timeout)
        self.lock_timeout = lock_timeout
        self._guard: Guard | None = guard
        self._shared = isinstance(source, Engine) and isinstance(source.pool, _ONE_CONNECTION)
        self.engine = _engine(source, shared=self._shared)
        _sessions.add(self)

    @property
    def name(self) -> str:
        """What the guard calls the database: there is no SQL that would ask for its name, so it is
        the last part of the URL's path.
        """
        path = self.engine.url.database or ""
        return "memory_test" if path.startswith(":memory:") else os.path.basename(path)  # noqa: PTH119

    def _open(self) -> Connection:
        if self._guard is not None:
            self._guard(self.name)
            self._guard = None
        try:
            return self.engine.connect()
        except (SQLAlchemyError, OSError) as error:
            origin = getattr(error, "orig", None) or error
            raise ProvisionError(
                f"No connection to {masked(self.engine.url)}: {' '.join(str(origin).split())}",
                "the server is down, the database does not exist, or the credentials are others",
                "url: the one that the application itself uses",
            ) from error

    @contextmanager
    def begin(self) -> Iterator[Connection]:
        """A transaction: committed when the body ends, rolled back when it fails."""
        with self._open() as connection, connection.begin():
            yield connection
            self.round_trips += 1

    def execute(self, connection: Connection, statement: Executable) -> Any:
        self.round_trips += 1
        return connection.execute(statement)

    def connect(self) -> URL:
        self._open().close()
        return self.engine.url

    @property
    def driver(self) -> str:
        driver: Any = self.engine.dialect.loaded_dbapi
        return f"{driver.__name__} {getattr(driver, '__version__', '')}".strip()

    def close(self) -> None:
        if not self._shared:
            self.engine.dispose()

    def disown(self) -> None:
        """In a forked child: leave the connections to the parent, and begin anew."""
        self.mutex = Mutex(self.lock_timeout)
        if not self._shared:
            self.engine.dispose(close=False)


def _engine(source: URL | Engine, *, shared: bool) -> Engine:
    awaited = waits.is_awaited()
    if isinstance(source, Engine) and source.dialect.is_async is not awaited:
        raise _misplaced(source.url, awaited=awaited)
    if isinstance(source, Engine) and shared:
        return source
    make = engine_maker(asynchronous=awaited)
    try:
        if isinstance(source, Engine):
            made = make(source.url, pool=source.pool.recreate())
        else:
            made = make(source, poolclass=NullPool) if awaited else make(source)
    except (NoSuchModuleError, ModuleNotFoundError) as error:
        raise SettingsError(
            f"SQLAlchemy can't connect to {source!r}: {error}.",
            "the package that brings the dialect, or its driver, is not installed, or is misspelt",
            'url = "postgresql+psycopg://localhost/app_test"',
        ) from error
    except InvalidRequestError as error:
        raise _misplaced(source if isinstance(source, URL) else source.url, awaited=True) from error
    engine: Engine = made.sync_engine if awaited else made
    if engine.dialect.is_async is not awaited:
        raise _misplaced(engine.url, awaited=awaited)
    if isinstance(engine.pool, _ONE_CONNECTION):
        raise SettingsError(
            f"{masked(engine.url)} is a database that nobody else can see.",
            "it is in memory, and each engine has one of its own",
            "Cleaner(engine, Base), with the Engine of the application",
        )
    return engine


def _misplaced(url: URL, *, awaited: bool) -> SettingsError:
    return SettingsError(
        f"The driver of {masked(url)} is {'not ' if awaited else ''}asynchronous.",
        f"{'an AsyncCleaner' if awaited else 'a Cleaner'} was given what is for the other",
        f"{'Cleaner' if awaited else 'AsyncCleaner'}(url, Base)",
    )


def _after_fork() -> None:
    for session in list(_sessions):
        session.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
