"""Measure, print the ratios, and say which of the promised bounds hold.

python -m benchmarks                     100 and 1000 tables, captured rows: embedded PostgreSQL
python -m benchmarks --tables 100        one size only
python -m benchmarks --bin-directory D   another server's binaries
python -m benchmarks --json FILE         the figures for a machine
python -m benchmarks suite               whole suites of tests, by the way they are cleaned
python -m benchmarks first-test          the time until the first test of a parallel run
python -m benchmarks sqlite              100 tables in memory and in a file
python -m benchmarks mariadb             10, 100 and 500 tables, on Debian's mariadb-server
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

from cleaner import Cleaner
from cleaner.provision.embedded import EmbeddedPostgres

from . import captured
from .measure import Figure, take_turns
from .schema import DIRTY, ROWS, Bench


def compare(bench: Bench, rounds: int) -> dict[str, Figure]:
    """All contenders against the hand-written minimum, for a test that wrote to three tables."""
    metadata = bench.metadata
    cleaners = {name: Cleaner(bench.url, metadata, strategy=name) for name in ("auto", "delete")}
    quick: dict[str, Callable[[], object]] = {
        "hand-written minimum": lambda: bench.connection.execute(bench.minimum),
        "cleaner: auto": cleaners["auto"].clean,
        "cleaner: delete": cleaners["delete"].clean,
        "ordered DELETE of all, one message": lambda: bench.connection.execute(bench.delete_all),
    }
    figures = take_turns(quick, bench.fill, rounds)
    # TRUNCATE, and every change of session_replication_role, makes all sessions plan anew: these
    # are measured apart, and compared by their times.
    slow: dict[str, Callable[[], object]] = {
        "a DELETE and a round trip per table": bench.recipe,
        "TRUNCATE of all": lambda: bench.connection.execute(bench.truncate_all),
    }
    for name in ("replica", "truncate"):
        cleaners[name] = Cleaner(bench.url, metadata, strategy=name)
        slow[f"cleaner: {name}"] = cleaners[name].clean
    for name, run in slow.items():
        alone = take_turns({name: run}, bench.fill, max(3, rounds // 10), 1)[name]
        figures[name] = alone.against(figures["hand-written minimum"])
    for cleaner in cleaners.values():
        cleaner.close()
    return figures


def touched(server: EmbeddedPostgres, size: int, rounds: int) -> Figure:
    """`auto` where every table was written to before, against where only three were."""
    fresh, used = (
        Bench(server, size, f"test_fresh_{size}"),
        Bench(server, size, f"test_used_{size}"),
    )
    used.touch_all()

    def fill() -> None:
        for bench in (fresh, used):
            bench.fill()

    with Cleaner(fresh.url, fresh.metadata) as first, Cleaner(used.url, used.metadata) as second:
        figure = take_turns(
            {"untouched": first.clean, "all touched before": second.clean},
            fill,
            rounds,
        )["all touched before"]
    fresh.close()
    used.close()
    return figure


def bounds(size: int, figures: dict[str, Figure]) -> list[tuple[str, float, str, float]]:
    """The promises for that size: what, the figure, its comparison, the bound."""
    auto = figures["cleaner: auto"].ratio
    ordered = figures["ordered DELETE of all, one message"].ratio / auto
    truncate = figures["TRUNCATE of all"].milliseconds / figures["cleaner: auto"].milliseconds
    limit = {100: (3, 40, 1.5), 1000: (15, 100, 4)}.get(size)
    if limit is None:
        return []
    return [
        ("auto / minimum", auto, "<=", limit[0]),
        ("TRUNCATE of all / auto", truncate, ">=", limit[1]),
        ("ordered DELETE of all / auto", ordered, ">=", limit[2]),
    ]


def main() -> int:
    """Run as the module's docstring says; 1 where a bound is missed."""
    others = {
        "suite": "suite",
        "first-test": "first_test",
        "sqlite": "sqlite",
        "mariadb": "mariadb",
    }
    if sys.argv[1:] and sys.argv[1] in others:
        chosen = import_module(f".{others[sys.argv[1]]}", __package__)
        return int(chosen.main(sys.argv[2:]))
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__.split("\n")[0]
    )
    parser.add_argument("--tables", type=int, nargs="*", default=[100, 1000])
    parser.add_argument("--rounds", type=int, default=100)
    parser.add_argument("--bin-directory", type=Path)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    kept: dict[str, object] = {}
    checked: list[tuple[str, float, str, float]] = []
    with EmbeddedPostgres(bin_directory=arguments.bin_directory) as server:
        print(f"PostgreSQL {server.version}, {DIRTY} tables of {ROWS} rows dirty\n")
        for size in arguments.tables:
            bench = Bench(server, size, f"test_{size}")
            figures = compare(bench, arguments.rounds if size < 500 else arguments.rounds // 3)
            bench.close()
            print(f"{size} tables")
            for figure in figures.values():
                print(f"  {figure}")
            kept[str(size)] = [asdict(figure) for figure in figures.values()]
            checked += bounds(size, figures)
            if size <= 100:
                figure = touched(server, size, arguments.rounds)
                print(f"  {figure}")
                kept[f"{size} touched"] = asdict(figure)
                checked.append(("touched / untouched", figure.ratio, "<=", 3))
            print()
        print(f"{captured.SEEDS} tables of {captured.ROWS} captured rows")
        for figure in captured.figures(server, arguments.rounds):
            print(f"  {figure}")
            kept[figure.name] = asdict(figure)
            checked.append((figure.name, figure.ratio, "<=", 2))
        print()
    missed = 0
    for what, ratio, comparison, bound in checked:
        holds = ratio <= bound if comparison == "<=" else ratio >= bound
        missed += not holds
        print(f"{'holds ' if holds else 'MISSED'}  {what}: {ratio:.2f} ({comparison} {bound:g})")
    if arguments.json:
        arguments.json.write_text(json.dumps(kept, indent=2), encoding="utf-8")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
