"""An SQLite database of one process's own: in memory, or a file that is copied from a template."""

from __future__ import annotations

import hashlib
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing, suppress
from itertools import count
from pathlib import Path

from filelock import Timeout
from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.pool import StaticPool

from cleaner.dialects.base import Guard, Prepared
from cleaner.dialects.sqlite.files import file_of
from cleaner.dialects.sqlite.locks import lock_on
from cleaner.errors import ProvisionError, SettingsError

_SERVER = f"sqlite {sqlite3.sqlite_version}"
_DIRECTORY = ".cleaner"
_BESIDE = ("-wal", "-shm", "-journal", ".cleaner_template")  # what may be beside a database file
_PATIENCE = 1800  # seconds after which whoever builds a template counts as stuck
_UNUSED = 7 * 24 * 3600  # seconds after which a template is removed


def own_sqlite(url: URL, worker: str, guard: Guard) -> OwnMemory | OwnFile:
    """What a process has instead of the database of ``url``."""
    file = file_of(url)
    return OwnFile(url, Path(file), worker, guard) if file else OwnMemory(url)


class OwnMemory:
    """One that no other process can see. See :class:`cleaner.dialects.base.OwnDatabase`."""

    server = _SERVER
    name = ""

    def __init__(self, url: URL) -> None:
        if url.get_dialect().is_async:
            raise SettingsError(
                f"The database {url.render_as_string()} is seen by one connection only.",
                "a database in memory belongs to the connection that made it",
                'url = "sqlite+aiosqlite:///app_test.db"',
            )
        # One connection for all threads, since each connection has a database of its own.
        self.source: Engine = create_engine(
            url, poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
        self._directory = Path(tempfile.mkdtemp(prefix="cleaner-"))
        self.template = str(self._directory / "template.db")

    def prepare(self, work: Prepared) -> None:
        work.build(self.source, self.name)
        borrowed = self.source.raw_connection()
        try:
            with closing(sqlite3.connect(self.template)) as template:
                borrowed.driver_connection.backup(template)  # type: ignore[union-attr]
        finally:
            borrowed.close()

    def check(self) -> None:
        """Nobody can take it."""

    def close(self) -> None:
        self.source.dispose()
        shutil.rmtree(self._directory, ignore_errors=True)


class OwnFile:
    """A file that is called like the configured one and the worker, ``.cleaner/app_test_gw0.db``
    beside ``app_test.db``. See :class:`cleaner.dialects.base.OwnDatabase`.

    It is copied from ``.cleaner/app_test_template_*.db``, which is built once. Nothing is in that
    directory but what is made here; who lives is told by locks on files there.
    """

    server = _SERVER

    def __init__(self, url: URL, configured: Path, worker: str, guard: Guard) -> None:
        guard(configured.name)
        if not configured.parent.is_dir():
            raise ProvisionError(
                f"There is no directory {configured.parent}.",
                "the database files of the workers are to be below it",
                f"mkdir -p {configured.parent}",
            )
        self._url, self._configured, self.template = url, configured, ""
        self._directory = configured.parent / _DIRECTORY
        self._directory.mkdir(exist_ok=True)
        (self._directory / ".gitignore").write_text("*\n", encoding="utf-8")
        for attempt in count(1):
            self._path = self._called(worker if attempt == 1 else f"{worker}_{attempt}")
            self._lock = lock_on(self._path, "own")
            with suppress(Timeout):
                self._lock.acquire(timeout=0)
                break
        self.name = self._path.name
        self.source = self._at(self._path)

    def _called(self, suffix: str) -> Path:
        return self._directory / f"{self._configured.stem}_{suffix}{self._configured.suffix}"

    def _at(self, path: Path) -> URL:
        uri, mark, query = (self._url.database or "").partition("?")
        prefix = "file:" if uri.startswith("file:") else ""
        return self._url.set(database=f"{prefix}{path}{mark}{query}")

    def prepare(self, work: Prepared) -> None:
        digest = hashlib.sha256(work.fingerprint(self.server).encode()).hexdigest()[:12]
        template = self._called(f"template_{digest}")
        try:
            with lock_on(template, "build").acquire(timeout=_PATIENCE):
                if not template.exists():
                    self._sweep()
                    self._build(template, self._called(f"build_{digest}"), work)
                os.utime(template)
                _remove(self._path)
                shutil.copyfile(template, self._path)
        except Timeout:
            raise ProvisionError(
                f"Another process has been building {template} for half an hour.",
                "its setup hangs, or waits for something that this process holds",
                "end it, and run the tests again",
            ) from None
        self.template = str(template)

    def _build(self, template: Path, unfinished: Path, work: Prepared) -> None:
        _remove(unfinished)
        try:
            sqlite3.connect(unfinished).close()
            work.build(self._at(unfinished), unfinished.name)
            with closing(sqlite3.connect(unfinished)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            unfinished.touch()
            unfinished.replace(template)
        finally:
            _remove(unfinished)

    def _sweep(self) -> None:
        """Remove what nobody has used for long."""
        for path in self._directory.iterdir():
            with suppress(OSError):
                if path.stat().st_mtime + _UNUSED < time.time():
                    path.unlink()

    def check(self) -> None:
        """The lock is held as long as this process lives."""

    def close(self) -> None:
        _remove(self._path)
        self._lock.release()


def _remove(path: Path) -> None:
    for suffix in ("", *_BESIDE):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
