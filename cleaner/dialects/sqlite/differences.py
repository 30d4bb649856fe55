"""What differs from the baseline now, to the last row and bit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from cleaner.dialects.sqlite.baseline import Baseline, Captured
from cleaner.dialects.sqlite.catalog import Found
from cleaner.dialects.sqlite.cleaning import positions
from cleaner.dialects.sqlite.facts import Ask, Facts
from cleaner.dialects.sqlite.program import is_empty, parts
from cleaner.dialects.sqlite.sql import quote
from cleaner.difference import (
    Diff,
    Kind,
    Position,
    RowDiff,
    SequenceDiff,
    TableDiff,
    Value,
    start_of_difference,
)
from cleaner.spi import Relation, Target

_AT_ONCE = 100  # tables in one statement
_FETCHED = 2000  # characters of a value, in which the difference of two is looked for
_Seen = tuple[str, int, bool]  # a value's text, its length, whether it is a blob


def differences(
    ask: Ask, found: Found, baseline: Baseline | None, target: Target, samples: int
) -> Diff:
    """Compare every table and sequence of ``target`` with its baseline, in the transaction that
    was begun, and show ``samples`` rows of each kind for each table.
    """
    return _Comparison(ask, found, baseline, target, samples).run()


class _Comparison:
    def __init__(
        self, ask: Ask, found: Found, baseline: Baseline | None, target: Target, samples: int
    ) -> None:
        self.ask, self.found, self.baseline = ask, found, baseline
        self.target, self.samples = target, samples

    def run(self) -> Diff:
        tables: list[TableDiff] = []
        for compared in parts(self.target.tables, _AT_ONCE):
            counts = ", ".join(self._count(table) for table in compared)
            answers = self.ask(f"SELECT {counts}")[0]
            for i, table in enumerate(compared):
                added, changed, gone = answers[3 * i : 3 * i + 3]
                if added or changed or gone:
                    numbers = added, changed, gone
                    tables.append(
                        TableDiff(
                            table.name,
                            None if self._facts(table).rows_elsewhere else added,
                            changed,
                            gone,
                            baseline=table.captured,
                            rows=tuple(self._rows(table, numbers)) if self.samples > 0 else (),
                        )
                    )
        tables += (TableDiff(view.name, None, 0, 0) for view in self._filled_indexes())
        return Diff(tuple(tables), tuple(self._moved()), self.target.database.lost)

    def _facts(self, table: Relation) -> Facts:
        return self.found.facts[table.key]

    def _captured(self, table: Relation) -> Captured | None:
        return self.baseline.tables.get((table.schema, table.table)) if self.baseline else None

    def _filled_indexes(self) -> Iterator[Relation]:
        """Those of rows of which the baseline has none."""
        for view in self.target.stale_views:
            look = self.found.indexes[view.key].look
            if is_empty(view, self.target) and self.ask(f"SELECT {look}")[0][0]:
                yield view

    def _count(self, table: Relation) -> str:
        """The numbers of rows that were added, changed and are gone."""
        facts, captured = self._facts(table), self._captured(table)
        if facts.rows_elsewhere:
            return f"{facts.look}, 0, 0"
        if captured is None:
            return f"(SELECT count(*) FROM {facts.sql}), 0, 0"
        return ", ".join(
            f"(SELECT count(*) {self._differing(captured, kind)})"
            for kind in ("added", "changed", "gone")
        )

    def _differing(self, captured: Captured, kind: str) -> str:
        name, copy, same = captured.facts.sql, captured.copy, captured.same
        if kind == "gone":
            there = f"SELECT 1 FROM {name} AS t WHERE {same}"
            return f"FROM {copy} AS c WHERE NOT EXISTS ({there})"
        if kind == "added":
            there = f"SELECT 1 FROM {copy} AS c WHERE {same}"
            return f"FROM {name} AS t WHERE NOT EXISTS ({there})"
        alike = captured.alike(captured.columns)
        return f"FROM {name} AS t JOIN {copy} AS c ON {same} WHERE NOT ({alike})"

    # -- which ----------------------------------------------------------------------------

    def _rows(self, table: Relation, numbers: Iterable[int]) -> Iterator[RowDiff]:
        facts, captured = self._facts(table), self._captured(table)
        names = [column.name for column in facts.columns]
        kinds: Sequence[Kind] = ("added", "changed", "gone")
        for kind, number in zip(kinds, numbers, strict=True):
            if not number or facts.rows_elsewhere:
                continue
            now = [f"t.{quote(name)}" for name in names]
            then = [captured.value(name) for name in names] if captured else []
            known = facts.identity or tuple(name for name, _ in facts.key)
            both = [*(f"t.{quote(name)}" for name in known), *then, *now]
            sides = {"gone": then, "added": now, "changed": both}[kind]
            source = self._differing(captured, kind) if captured else f"FROM {facts.sql} AS t"
            first = (
                "c.k0" if kind == "gone" else f"t.{quote(facts.key[0][0])}" if facts.key else "1"
            )
            seen = ", ".join(map(_seen, sides))
            flags = ""
            if captured and kind == "changed":
                flags = "".join(f", NOT ({captured.alike((name,))})" for name in names)
            for row in self.ask(
                f"SELECT {seen}{flags} {source} ORDER BY {first} LIMIT {self.samples}"
            ):
                values = [tuple(row[3 * i : 3 * i + 3]) for i in range(len(sides))]
                if kind == "changed":
                    yield _changed(known, names, values, row[3 * len(sides) :])
                else:
                    whole = (
                        (name, _value(*value)) for name, value in zip(names, values, strict=True)
                    )
                    yield RowDiff(kind, tuple(whole))

    def _moved(self) -> Iterator[SequenceDiff]:
        starts = self.found.starts
        now = positions(self.ask, (starts[s.key] for s in self.target.sequences))
        kept = self.baseline.positions if self.baseline else {}
        for sequence in self.target.sequences:
            here = now.get((starts[sequence.key], sequence.sequence), 0)
            there = kept.get((sequence.schema, sequence.sequence), 0)
            if here != there:
                yield SequenceDiff(sequence.name, _position(there), _position(here))


def _changed(
    known: Sequence[str], names: list[str], values: list[_Seen], flags: Sequence[int]
) -> RowDiff:
    """``values`` are those by which people know the row, those it had, and those it has."""
    row = [(name, _value(*value)) for name, value in zip(known, values, strict=False)]
    then, now = values[len(known) : len(known) + len(names)], values[-len(names) :]
    changes = []
    for name, flag, old, new in zip(names, flags, then, now, strict=True):
        if flag:
            start = start_of_difference(old[0], new[0])
            changes.append((name, _value(*old, start), _value(*new, start)))
    return RowDiff("changed", tuple(row), tuple(changes))


def _position(number: int) -> Position:
    return Position(number, True) if number else Position(1, False)


def _seen(value: str) -> str:
    """A value's text or how that begins, its length, and whether it is a blob."""
    blob = f"typeof({value}) = 'blob'"
    return (
        f"CASE WHEN {blob} THEN '\\x' || lower(hex(substr({value}, 1, {_FETCHED})))"
        f" ELSE substr(CAST({value} AS TEXT), 1, {_FETCHED}) END,"
        f" CASE WHEN {blob} THEN 2 + 2 * length({value})"
        f" ELSE coalesce(length(CAST({value} AS TEXT)), 0) END, {blob}"
    )


def _value(text: str, length: int, binary: bool, skipped: int = 0) -> Value:
    return Value.of(text, length, skipped, bool(binary))
