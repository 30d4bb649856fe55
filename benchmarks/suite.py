"""What the way of cleaning does to a suite's wall time: the same tests, runs of pytest in turns.

    python -m benchmarks suite                  1000 tests that write through 3 to 6 of 60 tables
    python -m benchmarks suite --tests 100      a try
    python -m benchmarks suite --rounds 1       how often each has its turn (default 3)
    python -m benchmarks suite --only clones    rows with that word in their name, beside the first

drop_all and create_all take so long that they have a turn only when named by --only.

Each run is a process of its own on a new database of one server, and builds its schema itself. One
row needs `pip install pytest-postgresql`, and is left out without it.
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from cleaner.provision.embedded import EmbeddedPostgres

from .measure import take_turns
from .runs import project, run

_XDIST, _CLEANER = "xdist.plugin", "cleaner.pytest_plugin"
_CLONES = "one process, pytest-postgresql's clones"
_DEAR = "one process, drop_all and create_all"
_TWO = ("-n", "2")

# Name: how it cleans, pytest's arguments, and plug-ins.
_WAYS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "-n 2, leases and `auto`": ("cleaner", _TWO, (_XDIST, _CLEANER)),
    "one process, `auto`": ("cleaner", (), (_CLEANER,)),
    "-n 2, nothing cleaned": ("", _TWO, (_XDIST,)),
    "one process, nothing cleaned": ("", (), ()),
    "one process, a DELETE per table": ("delete", (), ()),
    "one process, TRUNCATE of all": ("truncate", (), ()),
    _CLONES: ("clone", (), ("pytest_postgresql.plugin",)),
    _DEAR: ("rebuild", (), ()),
}


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks suite")
    parser.add_argument("--tests", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", metavar="WORD")
    given = parser.parse_args(arguments)
    first, *others = _WAYS
    if given.only:
        others = [name for name in others if any(word in name for word in given.only)]
    else:
        others.remove(_DEAR)
    if _CLONES in others and find_spec("pytest_postgresql") is None:
        print("pytest-postgresql's row needs: pip install pytest-postgresql", file=sys.stderr)
        others.remove(_CLONES)
    with EmbeddedPostgres() as server, project() as place:
        print(f"PostgreSQL {server.version}, {given.tests} tests, {os.cpu_count()} processors\n")
        numbers = itertools.count()
        contenders: dict[str, Callable[[], object]] = {
            name: partial(_one, server, place, numbers, given.tests, name)
            for name in (first, *others)
        }
        for figure in take_turns(contenders, lambda: None, given.rounds, 0).values():
            print(f"  {figure}")
    return 0


def _one(
    server: EmbeddedPostgres, place: Path, numbers: itertools.count[int], tests: int, name: str
) -> None:
    how, arguments, plugins = _WAYS[name]
    print(f"  {name} ...", file=sys.stderr)
    database = f"app_test_{next(numbers)}"
    url = server.url(database) if how in ("cleaner", "clone") else server.create_database(database)
    text = url.render_as_string(hide_password=False)
    variables = {"SUITE_TESTS": str(tests), "SUITE_URL": text}
    if how:
        variables["SUITE_BY"] = how
    if how == "cleaner":
        variables["CLEANER_URL"] = text
    run(place, *arguments, "suite_project/test_suite.py", plugins=plugins, **variables)
