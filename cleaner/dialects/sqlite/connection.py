"""A connection to an SQLite database: our own to a file, the application's to one in memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from sqlite3 import Error
from typing import Any, ClassVar
from urllib.parse import parse_qs, unquote, urlsplit

from filelock import Timeout
from sqlalchemy import URL, Connection, Engine, event
from sqlalchemy.pool import SingletonThreadPool, StaticPool

from cleaner import waits
from cleaner.dialects.base import Guard
from cleaner.dialects.held import HeldConnection
from cleaner.dialects.mutex import Mutex
from cleaner.dialects.sqlite.failures import is_locked
from cleaner.dialects.sqlite.locks import holders, turn_at
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
        self.path = _main_file(cursor.fetchall())
        self._inode = _inode(self.path)
        if not self.path:
            self._check_shared(cursor)
        return Path(self.path).name

    def _check_shared(self, cursor: Any) -> None:
        """Raise SettingsError unless another connection sees the same database in memory."""
        other = self.engine.raw_connection()
        other.detach()  # so that close() closes it, whatever its pool does
        try:
            cursor.execute("BEGIN IMMEDIATE")
            second = other.cursor()
            second.execute("PRAGMA busy_timeout = 0")
            second.execute("BEGIN IMMEDIATE")
            second.execute("ROLLBACK")
        except self.driver_error as error:
            if is_locked(error):
                return
            raise
        finally:
            cursor.execute("ROLLBACK")
            other.close()
        raise SettingsError(
            f"{masked(self.engine.url)} is a database in memory that nobody else can see.",
            "each connection to it has a database of its own"
            + ("" if self._source is None else ", and the engine's pool opens several of them"),
            'engine = create_engine("sqlite://", poolclass=StaticPool, '
            'connect_args={"check_same_thread": False}); Cleaner(engine, Base)',
        )

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
                    self._borrows = not _main_file(self._asked(lent, "PRAGMA database_list"))
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
                raise BlockedError(
                    "The application's connection to its database in memory is in a transaction.",
                    "a session or connection of the test was not committed or closed; all of them "
                    "share this one connection, and clean() would commit what they have begun",
                    "commit, roll back or close it before clean()",
                )
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
        if self._connection is not None and self._inode != _inode(self.path):
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
            with self._turn() if writes and self.path else _no_turn():
                if not self.borrows and wait != self._busy_timeout:
                    self.execute(f"PRAGMA busy_timeout = {wait}")
                    self._busy_timeout = wait
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
    def _turn(self) -> Iterator[None]:
        lock = turn_at(self.path)
        while True:
            try:
                lock.acquire(timeout=0)
                break
            except Timeout:
                if time.monotonic() >= self._deadline:
                    raise LockWait("another clean of the same file") from None
                waits.pause(_POLL)
        try:
            yield
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
def _no_turn() -> Iterator[None]:
    yield


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


def _main_file(databases: list[tuple[Any, ...]]) -> str:
    return str(databases[0][2] or "")


def _inode(path: str) -> tuple[int, int] | None:
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def file_of(url: URL) -> str:
    """The file that the URL names; empty for a database in memory."""
    (name, *_), options = url.get_dialect()().create_connect_args(url)
    if not (options.get("uri") and name.startswith("file:")):
        return "" if name == ":memory:" else str(name)
    parts = urlsplit(name)
    query = parse_qs(parts.query)
    in_memory = query.get("mode") == ["memory"] or "vfs" in query or parts.path == ":memory:"
    return "" if in_memory else unquote(parts.path)
