"""SQLite: tables in memory and in a file, cleaned by strategy, by hand, and by an image."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool

from cleaner import Cleaner

from .measure import Figure, take_turns
from .schema import DIRTY, ROWS

SEEDS, SEEDED = 20, 50  # tables with captured rows, and how many in each


class Bench:
    """A database of ``size`` tables, two of three of which refer to the one before."""

    def __init__(self, size: int, file: str = "") -> None:
        if file:
            self.engine: Engine = create_engine(f"sqlite:///{file}")
        else:
            self.engine = create_engine("sqlite://", poolclass=StaticPool)
        driver: Any = self.engine.raw_connection().driver_connection
        self.connection = driver
        self.connection.isolation_level = None
        self.run("PRAGMA synchronous = OFF")
        for i in range(size):
            parent = f", parent INT REFERENCES t{i - 1}" if i % 3 else ""
            self.run(
                f"CREATE TABLE t{i} (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT,"
                f" email TEXT UNIQUE{parent})"
            )
        self.dirty_tables = [size * (i + 1) // (DIRTY + 1) for i in range(DIRTY)]
        names = ", ".join(f"'t{i}'" for i in self.dirty_tables)
        self.minimum = [
            "BEGIN",
            *(f"DELETE FROM t{i}" for i in self.dirty_tables),
            f"DELETE FROM sqlite_sequence WHERE name IN ({names})",
            "COMMIT",
        ]
        self.delete_all = [
            "BEGIN",
            *(f"DELETE FROM t{i}" for i in reversed(range(size))),
            "DELETE FROM sqlite_sequence",
            "COMMIT",
        ]

    def run(self, *statements: str) -> None:
        """Run them on the application's connection."""
        for statement in statements:
            self.connection.execute(statement)

    def fill(self) -> None:
        """Write a few rows to each of the tables of a typical test."""
        self.run("BEGIN")
        for i in self.dirty_tables:
            rows = [(f"n{k}", f"e{k}") for k in range(ROWS)]
            self.connection.executemany(
                f"INSERT OR IGNORE INTO t{i} (name, email) VALUES (?, ?)", rows
            )
        self.run("COMMIT")

    def seed(self) -> None:
        """Tables with rows that are to be a baseline."""
        for i in range(SEEDS):
            self.run(
                f"CREATE TABLE s{i} (id INTEGER PRIMARY KEY, name TEXT, amount NUMERIC, made TEXT)"
            )
            rows = [(k, f"name {k}", 1.5, "2024-01-01") for k in range(SEEDED)]
            self.connection.executemany(f"INSERT INTO s{i} VALUES (?, ?, ?, ?)", rows)

    def restorers(self) -> dict[str, Callable[[], object]]:
        """By an image of the database as it is now."""
        image = sqlite3.connect(":memory:")
        self.connection.backup(image)

        def back_up() -> None:
            image.backup(self.connection)
            self.look()

        ways: dict[str, Callable[[], object]] = {"image, backup API": back_up}
        if hasattr(self.connection, "deserialize"):
            data = self.connection.serialize()

            def deserialize() -> None:
                self.connection.deserialize(data)
                self.look()

            ways["image, deserialize"] = deserialize
        return ways

    def look(self) -> None:
        """What the next test would pay for: the schema is read anew."""
        self.run("SELECT 1 FROM t0")


def figures(size: int, rounds: int) -> Iterator[tuple[str, dict[str, Figure]]]:
    """Of a test that wrote to three of ``size`` tables: where, and every contender against DELETE
    by hand from just those three.
    """
    yield f"{size} tables in memory", _compared(Bench(size), rounds, images=True)
    seeded = Bench(size)
    seeded.seed()
    yield (
        f"{size} tables in memory, {SEEDS} of {SEEDED} captured rows beside them",
        _compared(seeded, rounds, images=True, capture=True),
    )
    with _file() as file:
        yield f"{size} tables in a file", _compared(Bench(size, file), rounds)


def _compared(
    bench: Bench, rounds: int, images: bool = False, capture: bool = False
) -> dict[str, Figure]:
    names = ("auto", "delete", "replica", "truncate", *(["recreate"] if capture else []))
    cleaners = {name: Cleaner(bench.engine, strategy=name) for name in names}
    if capture:
        cleaners["recreate"].capture()
    by = {f"cleaner: {name}": cleaner.clean for name, cleaner in cleaners.items()}
    contenders: dict[str, Callable[[], object]] = {
        "hand-written minimum": lambda: bench.run(*bench.minimum),
        **{f"cleaner: {name}": cleaners[name].clean for name in ("auto", "delete", "replica")},
    }
    found = take_turns(contenders, bench.fill, rounds)
    minimum = found["hand-written minimum"]
    # These make the others' statements be compiled anew: measured apart, compared by their times.
    slow: dict[str, Callable[[], object]] = {"DELETE of all": lambda: bench.run(*bench.delete_all)}
    slow |= {name: clean for name, clean in by.items() if name not in contenders}
    slow |= bench.restorers() if images else {}
    for name, run in slow.items():
        found[name] = take_turns({name: run}, bench.fill, rounds)[name].against(minimum)
    name = "cleaner: auto, nothing was written"
    found[name] = take_turns({name: by["cleaner: auto"]}, lambda: None, rounds)[name].against(
        minimum
    )
    for cleaner in cleaners.values():
        cleaner.close()
    return found


@contextmanager
def _file() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory:
        yield str(Path(directory) / "bench_test.db")


def main(arguments: list[str]) -> int:
    """Print the figures; ``arguments`` are sizes, by default 100."""
    print(f"SQLite {sqlite3.sqlite_version}, {DIRTY} tables of {ROWS} rows dirty\n")
    for size in map(int, arguments or ["100"]):
        for where, found in figures(size, 100):
            print(where)
            for name, figure in found.items():
                print(f"  {name:<42} {figure.milliseconds:9.3f} ms  {figure.ratio:8.2f} x")
            print()
    return 0
