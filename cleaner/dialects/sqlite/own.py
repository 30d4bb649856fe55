"""An SQLite database of one process's own: in memory, or a file that is copied from a template."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

from filelock import Timeout
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.pool import StaticPool

from cleaner.dialects.sqlite.locks import lock_on
from cleaner.errors import ProvisionError

Build = Callable[[URL | Engine, str], None]
_SERVER = f"sqlite {sqlite3.sqlite_version}"
_BESIDE = ("-wal", "-shm", "-journal")  # what SQLite keeps beside a database file
_PATIENCE = 1800  # seconds after which whoever builds a template counts as stuck
_UNUSED = 7 * 24 * 3600  # seconds after which a template is removed


def own_sqlite(url: URL, worker: str) -> OwnMemory | OwnFile:
    """What a process has instead of the database of ``url``."""
    database = url.database or ""
    if database in ("", ":memory:") or "memory" in (url.query.get("mode"), *_words(database)):
        return OwnMemory(url)
    return OwnFile(url, worker)


def _words(database: str) -> list[str]:
    """The values in the query of a name that is a URI."""
    _, _, query = database.partition("?")
    return [pair.partition("=")[2] for pair in query.split("&")]


class OwnMemory:
    """One that no other process can see. See :class:`cleaner.dialects.base.OwnDatabase`."""

    server = _SERVER
    base = name = "memory_test"

    def __init__(self, url: URL) -> None:
        # One connection for all threads, since each connection has a database of its own.
        self.source: Engine = create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False}
        )

    def prepare(self, fingerprint: Callable[[], str], build: Build) -> None:
        build(self.source, self.name)

    def close(self) -> None:
        self.source.dispose()


class OwnFile:
    """A file beside the configured one, called like it and the worker: ``app_test_gw0.db``. See
    :class:`cleaner.dialects.base.OwnDatabase`.

    The template is another one, ``app_test_template_*.db``, which is built once. Who lives is told
    by locks on files in the temporary directory.
    """

    server = _SERVER

    def __init__(self, url: URL, worker: str) -> None:
        uri, _, self._query = (url.database or "").partition("?")
        self._prefix = "file:" if uri.startswith("file:") else ""
        self._url, self._configured = url, Path(uri.removeprefix("file:"))
        if not self._configured.parent.is_dir():
            raise ProvisionError(
                f"There is no directory {self._configured.parent}.",
                "the database files of the workers are beside the configured one",
                f"mkdir -p {self._configured.parent}",
            )
        self.base = self._configured.name
        for attempt in count(1):
            self._path = self._called(worker if attempt == 1 else f"{worker}_{attempt}")
            self._lock = lock_on(self._path, "own")
            with suppress(Timeout):
                self._lock.acquire(timeout=0)
                break
        self.name = self._path.name
        self.source = self._at(self._path)

    def _called(self, suffix: str) -> Path:
        return self._configured.with_name(
            f"{self._configured.stem}_{suffix}{self._configured.suffix}"
        )

    def _at(self, path: Path) -> URL:
        query = f"?{self._query}" if self._query else ""
        return self._url.set(database=f"{self._prefix}{path}{query}")

    def prepare(self, fingerprint: Callable[[], str], build: Build) -> None:
        digest = hashlib.sha256(fingerprint().encode()).hexdigest()[:12]
        template = self._called(f"template_{digest}")
        try:
            with lock_on(template, "build").acquire(timeout=_PATIENCE):
                if not template.exists():
                    self._sweep()
                    self._build(template, build)
        except Timeout:
            raise ProvisionError(
                f"Another process has been building {template} for half an hour.",
                "its setup hangs, or waits for something that this process holds",
                "end it, and run the tests again",
            ) from None
        os.utime(template)
        copy = self._path.with_name(f"{self._path.name}.new")
        shutil.copyfile(template, copy)
        _remove(self._path)
        copy.replace(self._path)

    def _build(self, template: Path, build: Build) -> None:
        unfinished = self._called("build")
        _remove(unfinished)
        try:
            sqlite3.connect(unfinished).close()
            build(self._at(unfinished), unfinished.name)
            with closing(sqlite3.connect(unfinished)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            unfinished.touch()
            unfinished.replace(template)
        finally:
            _remove(unfinished)

    def _sweep(self) -> None:
        """Remove templates that nobody has used for long."""
        for path in self._configured.parent.glob(glob.escape(self._called("template_").stem) + "*"):
            with suppress(OSError):
                if path.stat().st_mtime + _UNUSED < time.time():
                    _remove(path)

    def close(self) -> None:
        _remove(self._path)
        self._lock.release()


def _remove(path: Path) -> None:
    for suffix in ("", *_BESIDE):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
