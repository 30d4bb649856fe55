"""The function that cleans, as the session calls it. How it is written: ``writer.py``."""

from __future__ import annotations

from dataclasses import dataclass

from cleaner.spi import ForeignKey, Relation, Sequence

ADVISORY_LOCK = int.from_bytes(b"cleaner", "big")
# SQLSTATEs of our own; the message of each ends with positions in braces.
REACHES_OUTSIDE, SURVIVED, NEEDS_TRUNCATE, NEEDS_RELOAD = "CL001", "CL002", "CL003", "CL005"


@dataclass(frozen=True)
class State:
    """What one call of the function tells the next on the same connection.

    ``newest`` and ``stamps`` tell whether the schema has changed, ``horizon`` and ``own`` which
    rows are younger than the last look at the captured ones.
    """

    newest: str = "0"
    stamps: str = "{}"
    horizon: str | None = None
    own: str = "{}"


@dataclass(frozen=True)
class Outcome:
    """What the function did: positions in the plan's tables, sequences and views."""

    state: State
    held: tuple[int, ...]
    truncated: tuple[int, ...]
    restarted: tuple[int, ...]
    refreshed: tuple[int, ...]


@dataclass(frozen=True)
class Program:
    """The SQL of a plan: ``create`` once per connection, then :meth:`call` for each clean.

    ``locks`` are the relations that it may lock, ``resets`` the sequences that it only writes to:
    who has drawn a value from one of those is not in its way.
    """

    name: str
    create: str
    tables: tuple[Relation, ...]
    sequences: tuple[Sequence, ...]
    views: tuple[Relation, ...]
    outside: tuple[ForeignKey, ...]
    locks: tuple[int, ...]
    resets: tuple[int, ...]
    exclusive: bool
    horizon: str | None

    def first(self) -> State:
        """What is known on a new connection."""
        return State(horizon=self.horizon)

    def call(self, wait: int, state: State, reload: bool = False) -> str:
        """One statement; ``wait`` in milliseconds."""
        horizon = "NULL" if state.horizon is None else f"'{state.horizon}'"
        return (
            f"SELECT pg_temp.{self.name}({wait}, {state.newest}, '{state.stamps}', {horizon}, "
            f"'{state.own}', {reload})"
        )

    @property
    def drop(self) -> str:
        """Removes what ``create`` made."""
        return "; ".join(
            f"DROP FUNCTION IF EXISTS pg_temp.{self.name}{suffix}" for suffix in ("", "_truncate")
        )

    def __str__(self) -> str:
        return f"{self.create};\n{self.call(5000, self.first())};"


def read(row: list[str] | None) -> Outcome | None:
    """Read the function's answer; None when the schema is not the one that was planned for."""
    if row is None:
        return None
    newest, stamps, held, *positions, horizon, own = row
    truncated, restarted, refreshed = (
        tuple(int(position) for position in array[1:-1].split(",") if position)
        for array in positions
    )
    return Outcome(
        State(newest, stamps, horizon, own),
        tuple(i for i, holds in enumerate(held[1::2], 1) if holds == "t") if "t" in held else (),
        truncated,
        restarted,
        refreshed,
    )
