"""A plan as statements, most of which are run only where a table is not at its baseline."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as SequenceOf
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

from cleaner.dialects.sqlite.baseline import Baseline, Captured
from cleaner.dialects.sqlite.catalog import Found
from cleaner.dialects.sqlite.facts import Facts, Index
from cleaner.dialects.sqlite.sql import qualified, quote
from cleaner.dialects.strings import literal
from cleaner.spi import Empty, ForeignKey, Plan, Relation, Restart, Sequence, Target, Truncate

Item = TypeVar("Item")
_AT_ONCE = 400  # looks in one statement; SQLite allows 2000 columns


@dataclass(frozen=True, eq=False)
class Unit:
    """A table: emptied ``always``, or only if ``look`` says so.

    ``guards`` are queries that find rows outside the target which refer to rows that would go, or
    that something is gone there which captured rows refer to; each with its foreign key.
    """

    relation: Relation
    facts: Facts
    look: str
    statements: tuple[str, ...]
    always: bool
    guards: tuple[tuple[ForeignKey, str], ...]
    captured: Captured | None


@dataclass(frozen=True)
class Counter:
    """What AUTOINCREMENT of a table goes on from, and where it belongs."""

    sequence: Sequence
    book: str
    position: int


def put_back(book: str, counters: Iterable[Counter]) -> Iterator[str]:
    """The statements that put the counters of ``book`` back."""
    named = [(literal(counter.sequence.sequence), counter.position) for counter in counters]
    yield f"DELETE FROM {book} WHERE name IN ({', '.join(name for name, _ in named)})"
    rows = ", ".join(f"({name}, {position})" for name, position in named if position)
    if rows:
        yield f"INSERT INTO {book} (name, seq) VALUES {rows}"


def parts(items: SequenceOf[Item], size: int) -> Iterator[SequenceOf[Item]]:
    """The items, so many at once."""
    return (items[start : start + size] for start in range(0, len(items), size))


def is_empty(index: Relation, target: Target) -> bool:
    """Whether it has no entries at its baseline, since it is of rows of which there are none."""
    return {table.key for table in target.tables if not table.captured}.issuperset(index.reads)


@dataclass(frozen=True, eq=False)
class Program:
    """What :meth:`.session.SqliteSession.run` runs, written for the schema of ``found``.

    ``looks`` are the statements that tell which of their units are not at their baseline.
    ``counters`` are by the table they are in and the name they have there, ``positioned`` those
    that do not begin at the start. ``indexes`` are of rows of the target.
    """

    found: Found
    target: Target
    units: tuple[Unit, ...]
    looks: tuple[tuple[str, tuple[Unit, ...]], ...]
    counters: Mapping[tuple[str, str], Counter]
    books: tuple[str, ...]
    positioned: frozenset[tuple[str, str]]
    indexes: tuple[tuple[Relation, Index], ...]

    @cached_property
    def switches(self) -> bool:
        """Whether there may be triggers to drop and make again."""
        return any(unit.facts.triggers for unit in self.units)

    def __str__(self) -> str:
        return "\n".join(f"{line};" if line[:2] != "--" else line for line in self._lines())

    def _lines(self) -> Iterator[str]:
        yield "BEGIN IMMEDIATE"
        if self.looks:
            yield "-- each of the following only where this says that it is not at its baseline"
            yield from (look for look, _ in self.looks)
        for unit in self.units:
            yield from (guard for _, guard in unit.guards)
            yield from (trigger.drop for trigger in unit.facts.triggers)
            yield from unit.statements
            yield from (trigger.create for trigger in unit.facts.triggers)
        if self.indexes:
            yield "-- each of the following only where it is not of what is there now"
            yield from (index.rebuild for _, index in self.indexes)
        if self.counters:
            yield "-- each of the following only where the position is another"
        for book in self.books:
            yield from put_back(book, [c for c in self.counters.values() if c.book == book])
        yield "COMMIT"


def compile_plan(plan: Plan, target: Target, found: Found, baseline: Baseline | None) -> Program:
    """Write the statements for ``plan``."""
    units: list[Unit] = []
    sequences: dict[int, Sequence] = {}
    writer = _Writer(target, found, baseline)
    for step in plan.steps:
        if isinstance(step, Empty):
            units += [writer.unit(table, False) for group in step.groups for table in group]
        elif isinstance(step, Truncate):
            units += [writer.unit(table, True) for table in step.tables]
            if step.restart_identity:
                owners = {table.key for table in step.tables}
                every = found.database.sequences
                sequences |= {s.key: s for s in every if s.owner in owners}
        elif isinstance(step, Restart):
            sequences |= {sequence.key: sequence for sequence in step.sequences}
    counters = [writer.counter(sequence) for sequence in sequences.values()]
    return Program(
        found,
        target,
        tuple(units),
        tuple(
            ("SELECT\n    " + ",\n    ".join(unit.look for unit in part), tuple(part))
            for part in parts([unit for unit in units if not unit.always], _AT_ONCE)
        ),
        {(counter.book, counter.sequence.sequence): counter for counter in counters},
        tuple(dict.fromkeys(counter.book for counter in counters)),
        frozenset((c.book, c.sequence.sequence) for c in counters if c.position),
        tuple((view, found.indexes[view.key]) for view in target.stale_views),
    )


class _Writer:
    def __init__(self, target: Target, found: Found, baseline: Baseline | None) -> None:
        self.target, self.found, self.baseline = target, found, baseline

    def unit(self, table: Relation, always: bool) -> Unit:
        facts = self.found.facts[table.key]
        place = table.schema, table.table
        captured = self.baseline.tables.get(place) if self.baseline else None
        statements: tuple[str, ...] = (facts.empty,)
        look = facts.look
        if captured:
            look, statements = captured.look, captured.restore
        guards = tuple(
            (key, self.guard(key, captured))
            for key in self.target.outside
            if key.parent == table.key
        )
        if captured:
            guards += tuple((key, self.lacks(key, captured)) for key in self.kept_parents(table))
        return Unit(table, facts, look, statements, always, guards, captured)

    def guard(self, key: ForeignKey, captured: Captured | None) -> str:
        child = self.found.database.relation(key.child)
        same = " AND ".join(
            f"t.{quote(theirs)} = o.{quote(ours)}"
            for ours, theirs in zip(key.columns, key.referred, strict=True)
        )
        goes = "1"
        if captured:
            goes = (
                f"NOT EXISTS (SELECT 1 FROM {captured.copy} AS c"
                f" WHERE {captured.same} AND {captured.alike(key.referred)})"
            )
        return (
            f"SELECT EXISTS (SELECT 1 FROM {qualified(child.schema, child.table)} AS o"
            f" JOIN {self.found.facts[key.parent].sql} AS t ON {same} WHERE {goes})"
        )

    def kept_parents(self, table: Relation) -> list[ForeignKey]:
        inside = {table.key for table in self.target.tables}
        keys = self.found.database.foreign_keys
        return [key for key in keys if key.child == table.key and key.parent not in inside]

    def lacks(self, key: ForeignKey, captured: Captured) -> str:
        pairs = zip(key.columns, key.referred, strict=True)
        same = " AND ".join(f"o.{quote(to)} = {captured.value(ours)}" for ours, to in pairs)
        given = " AND ".join(f"{captured.value(ours)} IS NOT NULL" for ours in key.columns)
        return (
            f"SELECT EXISTS (SELECT 1 FROM {captured.copy} AS c WHERE {given} AND NOT EXISTS"
            f" (SELECT 1 FROM {self.found.facts[key.parent].sql} AS o WHERE {same}))"
        )

    def counter(self, sequence: Sequence) -> Counter:
        place = sequence.schema, sequence.sequence
        position = self.baseline.positions.get(place, 0) if self.baseline else 0
        return Counter(sequence, self.found.starts[sequence.key], position)
