"""What cleaning costs on MariaDB: `auto` and the usual ways, at several sizes of the schema.

main(["--tables", "10", "100", "500"])
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

from sqlalchemy import create_engine

from cleaner import Cleaner

from .measure import Figure, take_turns
from .schema import DIRTY, ROWS

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from support.mariadb import INSTALL, MariaDB, installed


class MariaBench:
    """A database of ``size`` tables, two of three referring to the one before."""

    def __init__(self, server: MariaDB, size: int) -> None:
        self.size = size
        self.name = f"test_{size}"
        server.connect().cursor().execute(f"CREATE DATABASE {self.name}")
        self.url = server.url(self.name)
        self.cursor = server.connect(self.name).cursor()
        self.writer = server.connect(self.name).cursor()
        for i in range(size):
            parent = f", parent int, FOREIGN KEY (parent) REFERENCES t{i - 1} (id)" if i % 3 else ""
            self.cursor.execute(
                f"CREATE TABLE t{i} (id int AUTO_INCREMENT PRIMARY KEY, name varchar(50),"
                f" email varchar(50) UNIQUE{parent})"
            )
        self.dirty = [size * (i + 1) // (DIRTY + 1) for i in range(DIRTY)]
        self.children_first = [f"t{i}" for i in range(size - 1, -1, -1)]

    def fill(self) -> None:
        """Write a few rows to each of three tables."""
        for i in self.dirty:
            self.writer.execute(
                f"INSERT IGNORE INTO t{i} (name, email)"
                f" SELECT concat('n', seq), concat('e', seq) FROM seq_1_to_{ROWS}"
            )

    def _block(self, statements: list[str]) -> str:
        return f"BEGIN NOT ATOMIC {'; '.join(statements)}; END"

    def minimum(self) -> None:
        """The three tables and their counters, by who knows which they are."""
        self._truncate(f"t{i}" for i in reversed(self.dirty))

    def delete_block(self) -> None:
        """DELETE of all, children first, in one message; the counters go on."""
        deletes = [f"DELETE FROM {table}" for table in self.children_first]
        self.cursor.execute(self._block(["START TRANSACTION", *deletes, "COMMIT"]))

    def delete_each(self) -> None:
        """The same, with a round trip per table."""
        self.cursor.execute("START TRANSACTION")
        for table in self.children_first:
            self.cursor.execute(f"DELETE FROM {table}")
        self.cursor.execute("COMMIT")

    def truncate_all(self) -> None:
        """TRUNCATE of all in one message."""
        self._truncate(self.children_first)

    def _truncate(self, tables: Iterable[str]) -> None:
        truncations = [f"TRUNCATE TABLE {table}" for table in tables]
        off, on = "SET foreign_key_checks = 0", "SET foreign_key_checks = 1"
        self.cursor.execute(self._block([off, *truncations, on]))


def compare(server: MariaDB, size: int, rounds: int) -> dict[str, Figure]:
    """All contenders against the hand-written minimum, for a test that wrote to three tables."""
    bench = MariaBench(server, size)
    engine = create_engine(bench.url)
    with Cleaner(engine) as auto, Cleaner(engine, reset_sequences=False) as rows:
        quick: dict[str, Callable[[], object]] = {
            "hand-written minimum": bench.minimum,
            "cleaner: auto": auto.clean,
            "DELETE of all, one message, no counters": bench.delete_block,
            "DELETE of all, a round trip per table": bench.delete_each,
            "cleaner: auto, no counters": rows.clean,
            "cleaner: auto, nothing written": auto.clean,
        }
        auto.clean()
        figures = take_turns(
            {name: run for name, run in quick.items() if "nothing" not in name},
            bench.fill,
            rounds,
        )
        base = figures["hand-written minimum"]
        few = max(3, rounds // 10)
        slow = {"TRUNCATE of all, one message": bench.truncate_all}
        figures |= {n: f.against(base) for n, f in take_turns(slow, bench.fill, few, 1).items()}
        idle = {"cleaner: auto, nothing written": quick["cleaner: auto, nothing written"]}
        figures |= {n: f.against(base) for n, f in take_turns(idle, auto.clean, rounds, 1).items()}
    engine.dispose()
    return figures


def main(arguments: list[str]) -> int:
    """Measure and print; 1 where there is no server to measure on."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks mariadb")
    parser.add_argument("--tables", type=int, nargs="*", default=[10, 100, 500])
    parser.add_argument("--rounds", type=int, default=30)
    given = parser.parse_args(arguments)
    if not installed():
        print(f"no mariadbd here: {INSTALL}")
        return 1
    server = MariaDB()
    try:
        print(f"MariaDB, {DIRTY} tables of {ROWS} rows dirty\n")
        for size in given.tables:
            print(f"{size} tables")
            for figure in compare(server, size, given.rounds).values():
                print(f"  {figure}")
            print()
    finally:
        server.close()
    return 0
