"""Cleans that are killed in the middle: in processes of their own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import IO, Any

import pytest

from support.database import Database
from support.pools import until

# Forks a child for each line, a strategy; it says when it is about to clean, its pid comes first.
FORKER = """
import os, sys
import psycopg
from cleaner import Cleaner
for strategy in sys.stdin:
    if child := os.fork():
        print(child, flush=True)
        os.waitpid(child, 0)
        print("gone", flush=True)
        continue
    cleaner = Cleaner(sys.argv[1], strategy=strategy.strip(), lock_timeout=20)
    cleaner.plan()
    os.write(1, b"cleaning\\n")
    cleaner.clean()
    os.write(1, b"cleaned\\n")
    sys.stdin.read()
"""


class Forker:
    """Starts cleans of one database, to kill them."""

    def __init__(self, database: Database, orders: IO[str], said: IO[str]) -> None:
        self._database, self._orders, self._said = database, orders, said

    def kill(self, strategy: str, after: float) -> None:
        """So many seconds after a clean has begun; returns when the server has noticed."""
        print(strategy, file=self._orders, flush=True)
        child = int(self._said.readline())
        assert self._said.readline() == "cleaning\n"
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
        if self._said.readline() == "cleaned\n":
            assert self._said.readline() == "gone\n"
        until(lambda: not cleaner_backends(self._database), "the server has noticed")


def cleaner_backends(database: Database) -> list[tuple[Any, ...]]:
    pids: list[tuple[Any, ...]] = database.execute(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database()"
        " AND application_name = 'cleaner'"
    )
    return pids


@pytest.fixture
def forker(database: Database) -> Iterator[Forker]:
    """A process that makes cleaners to be killed."""
    url = database.url.render_as_string(hide_password=False)
    with subprocess.Popen(
        [sys.executable, "-c", FORKER, url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Forker(database, process.stdin, process.stdout)
        process.kill()
