"""A connection to an SQLite database: our own to a file, the application's to one in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from sqlite3 import Error
from typing import Any, ClassVar

from filelock import Timeout
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from cleaner import waits
from cleaner.dialects.base import Guard
from cleaner.dialects.held import HeldConnection
from cleaner.dialects.mutex import Mutex
from cleaner.dialects.sqlite.failures import always_begun, begun, is_locked, unseen
from cleaner.dialects.sqlite.files import file_of, inode_of, main_file
from cleaner.dialects.sqlite.locks import holders, turn_at
from cleaner.dialects.sqlite.sql import quote
from cleaner.errors import BlockedError, Blocker, CleanerError, ProvisionError, SettingsError
from cleaner.retry import LockWait
from cleaner.settings import masked

_POLL = 0.002  # seconds between two tries for what SQLite does not wait for itself
_SHARED = (StaticPool, SingletonThreadPool)  # they hand out one connection again and again
_left_to_parents: list[Connection] = []  # to close one in a child would free the parent's locks
# Checked out of the pool of that engine, which would roll back what is not ours.
_busy: list[tuple[Engine, Any]] = []


class SqliteConnection(HeldConnection):
    """See :class:`cleaner.dialects.held.HeldConnection`.

    A database in memory belongs to a connection, so it is cleaned by way of the application's:
    that is checked out for each piece of work, refused while it is in a transaction, and given
    back as it was.
    """

    drivers: ClassVar[dict[str, str]] = {"pysqlite": "timeout"}
    async_drivers: ClassVar[dict[str, str]] = {"aiosqlite": "timeout"}
    extra = "dev"
    example = "sqlite:///app_test.db"
    async_example = "sqlite+aiosqlite:///app_test.db"

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        super().__init__(source, lambda name: guard(name) if name else None, lock_timeout)
        event.listen(self.engine, "do_connect", _for_any_thread)
        self._source = source if isinstance(source, Engine) else None
        self._borrows: bool | None = None
        self._lent: Any = None  # the application's connection, while we work with it
        self._inode: tuple[int, int] | None = None
        self._deadline = 0.0
        self._busy_timeout = -1
        self.private: frozenset[str] = frozenset()  # attached, and seen by our connection only
        self.path = ""  # of the file that was opened; empty for a database in memory
        if self._shares_memory and self.engine.dialect.is_async and not waits.is_awaited():
            raise SettingsError(
                f"A Cleaner can't reach the database in memory of {masked(self.engine.url)}.",
                "its only connection belongs to the event loop of the application",
                "AsyncCleaner(engine, Base)",
            )

    @property
    def _shares_memory(self) -> bool:
        """Whether the application's engine has but one connection, to a database in memory."""
        pooled = self._source is not None and isinstance(self._source.pool, _SHARED)
        return pooled and not file_of(self.engine.url)

    @property
    def cancellable(self) -> bool:
        return not self._shares_memory

    # -- connecting -----------------------------------------------------------------------

    def _twin(self, url: URL) -> URL:
        return url.set(drivername="sqlite+pysqlite") if "aiosqlite" in url.drivername else url

    def _open(self) -> Connection:
        self._check_file()
        return super()._open()

    def _check_file(self) -> None:
        """Raise ProvisionError where SQLite would make an empty file."""
        file = file_of(self.engine.url)
        if file and not Path(file).exists():
            raise ProvisionError(
                f"There is no file {file}.",
                "the schema has not been created yet, or the path is relative to another directory",
                "Base.metadata.create_all(engine) before the first clean()",
            )

    def _greet(self, cursor: Any) -> str:
        self._busy_timeout = round(self.lock_timeout * 1000)
        # By an engine with autocommit=False the driver has begun one, and begins another only when
        # it has itself committed.
        with suppress(self.driver_error):  # that none is active
            cursor.execute("ROLLBACK")
        # What is lost when the machine loses its power is a test database, and rows that are
        # deleted would otherwise cost more waiting for the disk than all the rest.
        for pragma in (
            f"busy_timeout = {self._busy_timeout}",
            "foreign_keys = OFF",
            "synchronous = OFF",
        ):
            cursor.execute(f"PRAGMA {pragma}")
        self._text_as_text(getattr(cursor, "connection", None))  # not an asynchronous one
        cursor.execute("PRAGMA database_list")
        attached = cursor.fetchall()
        self.path = main_file(attached)
        self._inode = inode_of(self.path)
        in_memory = [name for _, name, file in attached if not file and name != "temp"]
        self.private = frozenset(name for name in in_memory if not self._is_shared(cursor, name))
        if "main" in self.private:
            raise unseen(masked(self.engine.url), several=self._source is not None)
        return Path(self.path).name

    def _is_shared(self, cursor: Any, schema: str) -> bool:
        """Whether another connection sees the same database in memory."""
        write = f"PRAGMA {quote(schema)}.user_version = 0"
        other = self.engine.raw_connection()
        other.detach()  # so that close() closes it, whatever its pool does
        try:
            cursor.execute("BEGIN")
            cursor.execute(write)
            second = other.cursor()
            second.execute("PRAGMA busy_timeout = 0")
            second.execute(write)
        except self.driver_error as error:
            if is_locked(error):
                return True
            raise
        finally:
            cursor.execute("ROLLBACK")
            other.close()
        return False

    def disown(self) -> None:
        if self._connection is not None:
            _left_to_parents.append(self._connection)
        self.mutex = Mutex(self.lock_timeout)
        self._lent = None
        self._forget()

    def _unreachable(self, error: Exception) -> CleanerError:
        origin = getattr(error, "orig", None) or error
        if is_locked(origin):
            file = file_of(self.engine.url)
            return BlockedError.waiting(
                f"Connecting to {masked(self.engine.url)}", self.lock_timeout, holders(file)
            )
        return ProvisionError(
            f"{masked(self.engine.url)} can't be opened: {origin}",
            "it is no SQLite database, or this user may not read it",
            f'url = "{self.example}"',
        )

    # -- the application's connection -----------------------------------------------------

    @property
    def borrows(self) -> bool:
        """Whether we work with the application's connection."""
        if self._borrows is None:
            self._borrows = False
            if self._source is not None and isinstance(self._source.pool, _SHARED):
                self._check_file()
                with self._checked_out() as lent:
                    self._borrows = not main_file(self._asked(lent, "PRAGMA database_list"))
        return self._borrows

    @contextmanager
    def _checked_out(self) -> Iterator[Any]:
        assert self._source is not None
        for engine, each in [*_busy]:
            if engine is self._source and not (begun := _has_begun(each)):
                _busy.remove((engine, each))
                each.close() if begun is not None else each.invalidate()
        lent = self._source.raw_connection()
        try:
            yield lent
        finally:
            # The pool rolls back what is given back to it: here, what is the application's.
            if _has_begun(lent):
                _busy.append((self._source, lent))
            else:
                lent.close()

    @contextmanager
    def _borrowed(self) -> Iterator[None]:
        with self._checked_out() as lent:
            if _in_transaction(lent):
                by_itself = getattr(driver_of(lent), "autocommit", None) is False
                raise always_begun() if by_itself else begun()
            text, enforced = (
                self._text_as_text(driver_of(lent)),
                self._asked(lent, "PRAGMA foreign_keys")[0][0],
            )
            self._lent = lent
            try:
                if enforced:
                    self._asked(lent, "PRAGMA foreign_keys = OFF")
                yield
            finally:
                self._lent = None
                if _in_transaction(lent):
                    self._asked(lent, "ROLLBACK")
                if enforced:
                    self._asked(lent, "PRAGMA foreign_keys = ON")
                if text is not None:
                    driver_of(lent).text_factory = text

    def _text_as_text(self, driver: Any) -> Any:
        """Let the driver give text as ``str``; returns what to set back, None if nothing."""
        known = getattr(driver, "text_factory", str)
        if known is str:
            return None
        driver.text_factory = str
        return known

    def _asked(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        return self._home.run(lambda: self._ask(connection, sql))

    def _ask(self, connection: Any, sql: str) -> list[tuple[Any, ...]]:
        cursor = connection.cursor()
        if getattr(cursor, "row_factory", None) is not None:
            cursor.row_factory = None
        cursor.execute(sql)
        rows = list(cursor.fetchall()) if cursor.description else []
        cursor.close()
        return rows

    # -- working --------------------------------------------------------------------------

    @contextmanager
    def working(self) -> Iterator[None]:
        """The connection is there, in no transaction and with foreign keys off, and afterwards
        it is as it was. What the body leaves open is rolled back.
        """
        if self.borrows:
            with self._borrowed():
                yield
            return
        if self._connection is not None and self._inode != inode_of(self.path):
            self.leave()  # the file was replaced by another
        connection = self._connect()
        try:
            yield
        finally:
            if self._connection is connection and _in_transaction(connection.connection):
                self.execute("ROLLBACK", True)

    @contextmanager
    def transaction(self, wait: int, writes: bool = True) -> Iterator[None]:
        """A transaction that is committed if the body does not raise. If it ``writes`` there is
        but one at a time. Raises LockWait after ``wait`` milliseconds.
        """
        with self.working():
            self._deadline = time.monotonic() + wait / 1000
            with self._turn(wait / 2000) if writes and self.path else _no_turn() as waited:
                left = max(1, round(1000 * (self._deadline - time.monotonic()))) if waited else wait
                if not self.borrows and left != self._busy_timeout:
                    self.execute(f"PRAGMA busy_timeout = {left}")
                    self._busy_timeout = left
                self.ask("BEGIN IMMEDIATE" if writes else "BEGIN")
                try:
                    yield
                    self.ask("COMMIT")
                except BaseException:
                    if self._held is not None and _in_transaction(self._held):
                        self.execute("ROLLBACK", True)
                    raise

    def ask(self, sql: str) -> list[tuple[Any, ...]]:
        """Run a statement of a :meth:`transaction`."""
        while True:
            try:
                return self.execute(sql, not sql.startswith("BEGIN"))
            except self.driver_error as error:
                if not is_locked(error):
                    raise
                if time.monotonic() >= self._deadline:
                    raise LockWait(str(error)) from error
                waits.pause(_POLL)

    def execute(self, sql: str, in_transaction: bool = False) -> list[tuple[Any, ...]]:
        if self._lent is None:
            return super().execute(sql, in_transaction)
        self.round_trips += 1
        return self._asked(self._lent, sql)

    @contextmanager
    def _turn(self, patience: float) -> Iterator[bool]:
        """Wait for the turn that long; then SQLite's own lock decides. Tells whether it was not
        there at once.
        """
        lock, waited = turn_at(self.path), False
        until = time.monotonic() + patience
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                waited = True
                if time.monotonic() >= until:
                    break
                waits.pause(_POLL)
        try:
            yield waited
        finally:
            lock.release()

    def holders(self) -> tuple[Blocker, ...]:
        """Who may hold locks on the database."""
        return holders(self.path)

    def connect(self) -> URL:
        with self.working():
            return self.engine.url

    @property
    def connection_id(self) -> int:
        """Tells the connection that we work with from others."""
        return id(driver_of(self._held) if self._held is not None else None)

    @property
    def _held(self) -> Any:
        """The connection that we work with, as a pool would give it; None if there is none."""
        if self._lent is None and self._connection is not None:
            return self._connection.connection
        return self._lent


def _for_any_thread(dialect: Any, record: Any, arguments: Any, keywords: dict[str, Any]) -> None:
    keywords["check_same_thread"] = False  # the mutex keeps them apart


@contextmanager
def _no_turn() -> Iterator[bool]:
    yield False


def _in_transaction(connection: Any) -> bool:
    return bool(driver_of(connection).in_transaction)


def _has_begun(connection: Any) -> bool | None:
    """The same; None of one that was closed meanwhile."""
    try:
        return _in_transaction(connection)
    except (ValueError, Error):  # of aiosqlite, of the driver
        return None


def driver_of(connection: Any) -> Any:
    """The driver's own connection in one of a pool."""
    adapted = connection.dbapi_connection  # an asynchronous one, made to look synchronous
    return getattr(adapted, "driver_connection", adapted)
