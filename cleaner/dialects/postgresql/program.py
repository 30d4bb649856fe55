"""The function that cleans, as the session calls it. How it is written: ``writer.py``."""

from __future__ import annotations

from dataclasses import dataclass

from cleaner.spi import ForeignKey, Relation, Sequence

ADVISORY_LOCK = int.from_bytes(b"cleaner", "big")
# SQLSTATEs of our own; the message of each ends with positions in braces.
REACHES_OUTSIDE, SURVIVED, NEEDS_TRUNCATE = "CL001", "CL002", "CL003"


@dataclass(frozen=True)
class Outcome:
    """What the function did: positions in the plan's tables, sequences and views."""

    newest: str
    stamps: str
    held: tuple[int, ...]
    truncated: tuple[int, ...]
    restarted: tuple[int, ...]
    refreshed: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The SQL of a plan: ``create`` once per connection, then :meth:`call` for each clean."""

    name: str
    create: str
    tables: tuple[Relation, ...]
    sequences: tuple[Sequence, ...]
    views: tuple[Relation, ...]
    outside: tuple[ForeignKey, ...]
    locks: tuple[int, ...]
    exclusive: bool

    def call(self, wait: int, newest: str, stamps: str) -> str:
        """One statement; ``wait`` in milliseconds, the others from the last outcome."""
        return f"SELECT pg_temp.{self.name}({wait}, {newest}, '{stamps}')"

    @property
    def drop(self) -> str:
        """Removes what ``create`` made."""
        return "; ".join(
            f"DROP FUNCTION IF EXISTS pg_temp.{self.name}{suffix}" for suffix in ("", "_truncate")
        )

    def __str__(self) -> str:
        return f"{self.create};\n{self.call(5000, '0', '{}')};"


def read(row: list[str] | None) -> Outcome | None:
    """Read the function's answer; None when the schema is not the one that was planned for."""
    if row is None:
        return None
    newest, stamps, held, *positions = row
    truncated, restarted, refreshed = (
        tuple(int(position) for position in array[1:-1].split(",") if position)
        for array in positions
    )
    return Outcome(
        newest,
        stamps,
        tuple(i for i, holds in enumerate(held[1::2], 1) if holds == "t") if "t" in held else (),
        truncated,
        restarted,
        refreshed,
    )
