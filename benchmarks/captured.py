"""What captured rows cost: 20 tables of 1000 rows, beside the tables of the other benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from cleaner import Cleaner
from cleaner.provision.embedded import EmbeddedPostgres

from .measure import Figure, take_turns
from .schema import Bench

SEEDS, ROWS = 20, 1000

# What a test may do to one of them.
TOUCHES = {
    "one row changed": "UPDATE s7 SET name = 'changed' WHERE id = 500",
    "all rows changed": "UPDATE s7 SET name = name || '!'",
    "ten rows added": "INSERT INTO s7 SELECT g, 'new ' || g FROM generate_series(2001, 2010) g"
    " ON CONFLICT DO NOTHING",
    "all rows deleted": "DELETE FROM s7",
}


def _seeded(server: EmbeddedPostgres, size: int, name: str) -> Bench:
    bench = Bench(server, size, f"test_{name}_{size}")
    for i in range(SEEDS):
        bench.connection.execute(
            f"CREATE TABLE s{i} (id int PRIMARY KEY, name text, "
            f"amount numeric DEFAULT 1.5, made timestamptz DEFAULT now());"
            f"INSERT INTO s{i} SELECT g, 'name ' || g FROM generate_series(1, {ROWS}) g;"
            f"CREATE TABLE copy_of_s{i} AS SELECT * FROM s{i};"
            f"ANALYZE s{i}, copy_of_s{i}".encode()
        )
    return bench


def figures(server: EmbeddedPostgres, rounds: int) -> Iterator[Figure]:
    """Each against what it is held to: twice the cost of the first."""
    yield untouched(server, 100, rounds)
    yield from touched(server, rounds)


def untouched(server: EmbeddedPostgres, size: int, rounds: int) -> Figure:
    """A clean of three dirty tables where there are captured rows, against one where not."""
    plain, seeded = Bench(server, size, f"test_plain_{size}"), _seeded(server, size, "seeded")

    def fill() -> None:
        for bench in (plain, seeded):
            bench.fill()

    with (
        Cleaner(plain.url) as first,
        Cleaner(seeded.url, exclude=["copy_of_*"]) as second,
    ):
        second.capture(tables=["s*"])
        figure = take_turns({"none": first.clean, "captured": second.clean}, fill, rounds)[
            "captured"
        ]
    plain.close()
    seeded.close()
    return replace(figure, name="untouched, against none captured")


def touched(server: EmbeddedPostgres, rounds: int) -> Iterator[Figure]:
    """A clean after a test that wrote to one captured table, against restoring it by hand."""
    by_cleaner, by_hand = _seeded(server, 3, "cleaner"), _seeded(server, 3, "hand")
    restore = b"DELETE FROM s7; INSERT INTO s7 SELECT * FROM copy_of_s7"

    def touching(statement: bytes) -> Callable[[], None]:
        def touch() -> None:
            for bench in (by_cleaner, by_hand):
                bench.writer.execute(statement)

        return touch

    with Cleaner(by_cleaner.url, exclude=["copy_of_*"]) as cleaner:
        cleaner.capture()
        contenders: dict[str, Callable[[], object]] = {
            "DELETE and INSERT SELECT": lambda: by_hand.connection.execute(restore),
            "cleaner: auto": cleaner.clean,
        }
        for name, statement in TOUCHES.items():
            figure = take_turns(contenders, touching(statement.encode()), rounds)["cleaner: auto"]
            yield replace(figure, name=f"{name}, against by hand")
    by_cleaner.close()
    by_hand.close()
