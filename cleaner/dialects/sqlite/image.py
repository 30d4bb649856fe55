"""A copy of the whole database, page by page: a file beside it, or another one in memory.

``deserialize()`` would put one back much faster, but what the application has prepared by then may
crash the process when it is run again: a SELECT from ``json_each``, for instance.
"""

from __future__ import annotations

import os
import sqlite3
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cleaner.errors import StrategyRefusedError
from cleaner.retry import LockWait
from cleaner.spi import Target

_PAGES = 1000  # copied between two looks at the clock
_NAP = 0.005  # seconds that SQLite waits before it tries a lock again


@dataclass(frozen=True, eq=False)
class Recreation:
    """Takes the place of a :class:`.program.Program`."""

    target: Target
    template: str

    def __str__(self) -> str:
        return f"-- every page of {self.target.database.name} replaced by that of {self.template}"


class Image:
    """The copy of a database, which is the file ``path`` or, if that is empty, what ``driver()``
    is connected to.
    """

    def __init__(self, path: str, driver: Callable[[], Any]) -> None:
        self._path, self._driver = path, driver
        self._memory: sqlite3.Connection | None = None

    @property
    def name(self) -> str:
        """What it is called."""
        return f"{self._path}.cleaner_template" if self._path else "a copy in memory"

    def exists(self) -> bool:
        """Whether there is one."""
        return Path(self.name).exists() if self._path else self._memory is not None

    def make(self, wait: int) -> None:
        """Copy the database."""
        if not self._path:
            memory = sqlite3.connect(":memory:", check_same_thread=False)
            weakref.finalize(self, memory.close)
            _copy(self._live(), memory, wait)
            self.drop()
            self._memory = memory
            return
        unfinished = f"{self.name}.{os.getpid()}"
        Path(unfinished).unlink(missing_ok=True)
        try:
            with self._opened(self._path) as live, self._opened(unfinished) as image:
                image.execute("PRAGMA synchronous = OFF")
                _copy(live, image, wait)
            Path(unfinished).replace(self.name)
        finally:
            Path(unfinished).unlink(missing_ok=True)

    def restore(self, template: str, wait: int) -> None:
        """Replace the database by the copy, or by the file ``template``."""
        name = template or self.name
        if not (Path(name).exists() if template else self.exists()):
            raise StrategyRefusedError(
                f"There is no copy of the database to recreate it from: {name}.",
                "capture() was not called, or in another process, or release() was since",
                "cleaner.capture() while the database is at its baseline",
            )
        if self._path or template:
            with self._opened(name) as image:
                if not self._path:
                    _copy(image, self._live(), wait)
                    return
                with self._opened(self._path) as live:
                    live.execute("PRAGMA synchronous = OFF")
                    _copy(image, live, wait)
        else:
            assert self._memory is not None
            _copy(self._memory, self._live(), wait)

    def drop(self) -> None:
        """Remove it."""
        if self._path:
            Path(self.name).unlink(missing_ok=True)
        if self._memory is not None:
            self._memory.close()
        self._memory = None

    def _live(self) -> sqlite3.Connection:
        driver = self._driver()
        if not isinstance(driver, sqlite3.Connection):
            raise StrategyRefusedError(
                "A database in memory can't be recreated by way of an asynchronous driver.",
                f"{type(driver).__module__} runs its connection in a thread of its own",
                'strategy = "auto"',
            )
        return driver

    @contextmanager
    def _opened(self, path: str) -> Iterator[sqlite3.Connection]:
        with closing(sqlite3.connect(path, timeout=0, isolation_level=None)) as connection:
            yield connection


def _copy(source: sqlite3.Connection, into: sqlite3.Connection, wait: int) -> None:
    """All pages, in one transaction. Raises LockWait: the driver itself would try for ever."""
    deadline = time.monotonic() + wait / 1000

    def look(status: int, remaining: int, total: int) -> None:
        if status in (5, 6) and time.monotonic() >= deadline:  # SQLITE_BUSY, SQLITE_LOCKED
            raise LockWait("another connection is at work on the file")

    source.backup(into, pages=_PAGES, progress=look, sleep=_NAP)
