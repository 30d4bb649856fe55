"""A parallel run on the embedded server, twice, and when its first test begins.

    python -m benchmarks first-test                 400 tests on -n 4, in an empty cache
    python -m benchmarks first-test --tests 40      a try

The tests themselves look for rows of others in all 60 tables, and for sequences that have moved; a
run that finds any ends this with pytest's report. Ratios are to a run of tests that need no
database, with the same imports and as many workers.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from .runs import project, run

_PLUGINS = ("xdist.plugin", "cleaner.pytest_plugin")


@dataclass(frozen=True)
class Seen:
    """What one run's tests have logged."""

    until_first: float
    tests: int
    workers: int
    databases: frozenset[str]
    builds: int

    def __str__(self) -> str:
        return (
            f"{self.tests} tests of {self.workers} workers, {len(self.databases)} databases, "
            f"{self.builds} templates built, first test after {self.until_first:.2f} s"
        )


def _seen(place: Path, tests: int, workers: int, kind: str) -> Seen:
    log, builds = place / "log", place / "builds"
    for file in (log, builds):
        file.write_text("")
    plugins = _PLUGINS if kind == "test_writes" else _PLUGINS[:1]
    started = run(
        place,
        *("-n", str(workers), "suite_project/test_first.py", "-k", kind),
        plugins=plugins,
        SUITE_TESTS=str(tests),
        SUITE_LOG=str(log),
        SUITE_BUILDS=str(builds),
    )
    lines = [line.split() for line in log.read_text().splitlines()]
    return Seen(
        until_first=min(float(moment) for moment, _, _ in lines) - started,
        tests=len(lines),
        workers=len({pid for _, pid, _ in lines}),
        databases=frozenset(name for _, _, name in lines),
        builds=len(builds.read_text().splitlines()),
    )


def main(arguments: list[str]) -> int:
    """Run as the module's docstring says; 1 where a run was not as promised."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks first-test")
    parser.add_argument("--tests", type=int, default=400)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args(arguments)
    ratios: dict[str, list[float]] = {"first run": [], "second run": []}
    kept = True
    for _ in range(given.rounds):
        with project() as place:
            bare = _seen(place, given.tests, given.workers, "test_bare")
            print(f"{'no database':<12} first test after {bare.until_first:.2f} s")
            for name, builds in (("first run", 1), ("second run", 0)):
                seen = _seen(place, given.tests, given.workers, "test_writes")
                ratios[name].append(seen.until_first / bare.until_first)
                print(f"{name:<12} {seen}  {ratios[name][-1]:.2f} x")
                kept &= (seen.tests, seen.builds) == (given.tests, builds)
                kept &= len(seen.databases) == seen.workers == given.workers
    print()
    for name, each in ratios.items():
        print(f"{name:<12} {median(each):.2f} x ({min(each):.2f} to {max(each):.2f})")
    wanted = f"set-up once, then never; {given.workers} databases, no row of another test"
    print(f"{'holds ' if kept else 'MISSED'}  {wanted}")
    return 0 if kept else 1
