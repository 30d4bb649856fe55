"""A pool of databases of a test's own, and processes that work with it until they are killed."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL

from cleaner.provision.leases import Pool
from support.database import Database

PATIENCE = 60.0
TESTS = Path(__file__).parents[1]


def until(met: Callable[[], object], what: str) -> None:
    """Return as soon as ``met`` is; fail where it never is."""
    deadline = time.monotonic() + PATIENCE
    while not met():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.005)


def connect(url: URL, **keywords: Any) -> psycopg.Connection[Any]:
    """A connection there, the caller's to close; ``autocommit``."""
    return psycopg.connect(
        host=str(url.query.get("host") or url.host),
        port=url.port,
        user=url.username,
        dbname=url.database,
        **{"autocommit": True, **keywords},
    )


class Own:
    """What a test has of a server: the databases whose names begin with ``base``, and roles."""

    def __init__(self, server: URL, base: str = "") -> None:
        self.base = base or f"test_{uuid.uuid4().hex[:8]}"
        self.prefix = self.base[:13]
        self.url = server.set(database=self.base)
        self.admin = connect(server.set(database="postgres"))
        self._roles: list[str] = []

    def pool(self, role: str = "", wait: float = 20.0) -> Pool:
        return Pool(self.url.set(username=role) if role else self.url, wait)

    def text(self, role: str = "") -> str:
        """The URL as it is written in settings."""
        url = self.url.set(username=role) if role else self.url
        return url.render_as_string(hide_password=False)

    def run(self, sql: str) -> list[tuple[Any, ...]]:
        """As superuser, in the maintenance database."""
        cursor = self.admin.execute(sql.encode())
        return cursor.fetchall() if cursor.description else []

    def inside(self, database: str, sql: str) -> list[tuple[Any, ...]]:
        """As superuser, in that database."""
        with connect(self.url.set(database=database, username="postgres")) as connection:
            cursor = connection.execute(sql.encode())
            while cursor.nextset():
                pass
            return cursor.fetchall() if cursor.description else []

    def control(self, sql: str) -> list[tuple[Any, ...]]:
        """As superuser, in the control database, if there is one yet."""
        found = "SELECT 1 FROM pg_database WHERE datname = 'cleaner_control'"
        return self.inside("cleaner_control", sql) if self.run(found) else []

    def databases(self) -> set[str]:
        """All that begin like ours, private ones too."""
        return {
            name
            for (name,) in self.run(
                f"SELECT datname FROM pg_database WHERE starts_with(datname, '{self.prefix}')"
            )
        }

    def templates(self) -> set[str]:
        return {name for name in self.databases() if "_cleaner_template_" in name}

    def role(self, options: str = "") -> str:
        name = f"{self.prefix}_role{len(self._roles)}"
        self.run(f"CREATE ROLE {name} LOGIN {options}")
        self._roles.append(name)
        return name

    def provision(self, role: str, *labels: str) -> list[str]:
        """What an administrator does for a role that may not create databases."""
        self.pool().rows()  # there is a control database from now on
        names = [f"{self.base}_{label}" for label in labels]
        for label, name in zip(labels, names, strict=True):
            self.run(f"CREATE DATABASE {name} OWNER {role}")
            self.control(
                "INSERT INTO cleaner.lease (base, role, label, database, provisioned)"
                f" VALUES ('{self.base}', '{role}', '{label}', '{name}', true)"
            )
        return names

    def quiet(self, living: int = 0) -> None:
        """Wait until the server knows that all but so many holders are dead."""
        working = f"""SELECT 1 FROM pg_stat_activity WHERE pid <> pg_backend_pid()
    AND state <> 'idle' AND query LIKE '%{self.prefix}%'"""
        until(lambda: not self.run(working), "no session is at work")
        rows = self.pool().rows
        until(lambda: sum(living for _, living in rows()) <= living, "the dead hold no lease")

    def sweep(self, role: str = "") -> list[str]:
        return self.pool(role).sweep(timedelta(0), timedelta(0))

    def given_back(self) -> int:
        """The number of leases, if each of them was given back."""
        rows = self.pool().rows()
        assert [(row.worker, living) for row, living in rows] == [(None, False)] * len(rows)
        return len(rows)

    def close(self) -> None:
        self.run(
            "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
            f" WHERE starts_with(datname, '{self.prefix}')"
        )
        for name in self.databases():
            self.run(f'ALTER DATABASE "{name}" IS_TEMPLATE false')
            self.run(f'DROP DATABASE "{name}" WITH (FORCE)')
        for table in ("lease", "template", "kept"):
            self.control(f"DELETE FROM cleaner.{table} WHERE starts_with(base, '{self.prefix}')")
        for role in self._roles:
            self.run(f"DROP ROLE {role}")
        self.admin.close()


class Workers:
    """Processes that work with the pool of ``url``; see :mod:`support.workers`."""

    def __init__(self) -> None:
        self.url = ""
        # They are forked from one that has imported all: a process of its own, without threads.
        self._forker = subprocess.Popen(
            [sys.executable, "-m", "support.workers"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=TESTS,
        )
        self._said: queue.Queue[dict[str, Any]] = queue.Queue()
        self._kept: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._forker.stdout is not None
        for line in self._forker.stdout:
            self._said.put(json.loads(line))

    def start(self, **job: Any) -> int:
        """Start one; returns its process id."""
        assert self._forker.stdin is not None
        name = uuid.uuid4().hex
        self._forker.stdin.write(json.dumps({"name": name, "url": self.url, **job}) + "\n")
        return int(self._next(lambda said: said["what"] == name)["pid"])

    def told(self, pid: int, stage: str) -> Any:
        """What it has to say of that stage, once it is there."""
        ends = ("done", "failed") if stage != "failed" else ("failed",)
        said = self._next(lambda said: said["pid"] == pid and said["stage"] in (stage, *ends))
        assert said["stage"] == stage, said
        return said["what"]

    def end(self, pid: int) -> dict[str, Any] | None:
        """The last word of one that ends by itself, None if it was killed."""
        last: list[dict[str, Any]] = []

        def ended() -> bool:
            gone = not alive(pid)
            self._drain()
            last[:] = [
                said
                for said in self._kept
                if said["pid"] == pid and said["stage"] in ("done", "failed")
            ]
            return gone or bool(last)

        until(ended, f"process {pid} ends")
        return last[0] if last else None

    def kill(self, pid: int) -> None:
        os.kill(pid, signal.SIGKILL)
        until(lambda: not alive(pid), f"process {pid} is gone")

    def _drain(self) -> None:
        while not self._said.empty():
            self._kept.append(self._said.get())

    def _next(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        found: list[dict[str, Any]] = []

        def there() -> bool:
            self._drain()
            found[:] = [said for said in self._kept if wanted(said)][:1]
            return bool(found)

        until(there, "a process says what it was to say")
        self._kept.remove(found[0])
        return found[0]

    def __enter__(self) -> Workers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: object, trace: TracebackType | None
    ) -> None:
        self._forker.kill()  # its children end with it
        self._forker.wait()
        self._reader.join(PATIENCE)
        for stream in (self._forker.stdin, self._forker.stdout):
            assert stream is not None
            stream.close()


def alive(pid: int) -> bool:
    """Whether there is such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def server_of(database: Database) -> URL:
    """The superuser's URL of the server that a test's database is on."""
    return database.url.set(database="postgres")


@pytest.fixture
def own(worker_database: Database) -> Iterator[Own]:
    """A pool's place on this test's server, which has a control database."""
    with closing(Own(server_of(worker_database))) as own:
        own.pool().rows()
        yield own
