"""What differs from the baseline now, to the last row and bit.

It looks at every row, and so believes nothing that a clean remembers (see ``restoring.py``). All
of it sees one snapshot, in a transaction that is rolled back: forced row-level security is
switched off in it, which the owner of a table may do.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from cleaner.dialects.postgresql import failures
from cleaner.dialects.postgresql.baseline import Captured, differ, shapes
from cleaner.dialects.postgresql.catalog import Catalog
from cleaner.dialects.postgresql.columns import altered, columns_of
from cleaner.dialects.postgresql.sql import qualified, quote
from cleaner.dialects.strings import literal
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
from cleaner.retry import Stale
from cleaner.spi import Relation, Target

Execute = Callable[..., list[tuple[Any, ...]]]
Item = TypeVar("Item")
Counts = tuple[int | None, int, int]  # rows added, changed, gone

_AT_ONCE = 100  # tables or sequences asked of in one statement
_FETCHED = 2000  # characters of a value, in which the difference of two is looked for
_KINDS: tuple[Kind, ...] = ("added", "changed", "gone")
# Text that tells any two values apart, whatever the role's defaults are.
_EXACT = {"extra_float_digits": "3", "datestyle": "ISO", "bytea_output": "hex"}


def differences(
    execute: Execute, catalog: Catalog, target: Target, samples: int, wait: int
) -> Diff:
    """Compare every table and sequence of ``target`` with its baseline, and show ``samples`` rows
    of each kind for each table.

    ``execute`` is that of :class:`cleaner.dialects.held.HeldConnection`, whose errors it lets
    through; ``wait`` bounds each wait for a lock, in milliseconds. Raises Stale where a type has
    been altered since the look.
    """
    execute("BEGIN ISOLATION LEVEL REPEATABLE READ")
    try:
        settings = {"lock_timeout": str(wait), **_EXACT}
        chosen = ", ".join(
            f"pg_catalog.set_config({literal(name)}, {literal(value)}, true)"
            for name, value in settings.items()
        )
        execute(f"SELECT {chosen}", True)
        return _Comparison(execute, catalog, target, samples).run()
    finally:
        execute("ROLLBACK", True)


class _Comparison:
    def __init__(self, execute: Execute, catalog: Catalog, target: Target, samples: int) -> None:
        self._execute = execute
        self.facts, self.positions = catalog.facts, catalog.sequence_positions
        self.target, self.samples = target, samples

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return self._execute(sql, True)

    def run(self) -> Diff:
        captured = (self.facts[table.key].captured for table in self.target.tables)
        types = altered(column for each in captured if each for column in each.columns)
        if types and self.execute(f"SELECT {types}")[0][0]:
            raise Stale
        sequences = tuple(self._moved())  # before the tables: those may be long
        hidden = self._hidden()
        seen = [table for table in self.target.tables if hidden.get(table.key, True)]
        counts: dict[int, Counts] = {
            key: (None, 0, 0) for key, seen in hidden.items() if seen is None
        }
        for part in _parts(seen):
            selects = " UNION ALL ".join(self._count(i, table) for i, table in enumerate(part))
            for i, added, changed, gone in self.execute(selects):
                if added or changed or gone:
                    counts[part[i].key] = added, changed, gone
        tables = [table for table in self.target.tables if table.key in counts]
        rows = self._rows([t for t in tables if t in seen], counts) if self.samples > 0 else {}
        return Diff(
            tuple(
                TableDiff(
                    table.name,
                    *counts[table.key],
                    baseline=table.captured,
                    rows=tuple(rows.get(table.key, ())),
                    why=failures.why(self.facts[table.key], table),
                )
                for table in tables
            ),
            sequences,
            self.target.database.lost,
        )

    # -- what can be seen -----------------------------------------------------------------

    def _hidden(self) -> dict[int, bool | None]:
        """Tables whose rows row-level security hides from this role: True where it is switched
        off now, False where there are none, None where they can't be seen.
        """
        hidden = [table for table in self.target.tables if self.facts[table.key].hidden]
        if not hidden:
            return {}
        sizes = ", ".join(f"{self.facts[table.key].size} > 0" for table in hidden)
        filled = self.execute(f"SELECT ARRAY[{sizes}]")[0][0]
        found: dict[int, bool | None] = {}
        for table, is_filled in zip(hidden, filled, strict=True):
            facts = self.facts[table.key]
            if not (is_filled or facts.captured):
                found[table.key] = False
            elif facts.owned:
                name = qualified(table.schema, table.table)
                self.execute(f"ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY")
                found[table.key] = True
            else:
                found[table.key] = None
        return found

    def _moved(self) -> Iterator[SequenceDiff]:
        for part in _parts(self.target.sequences):
            looks = " UNION ALL ".join(
                f"SELECT {i}, s.last_value, s.is_called FROM {qualified(s.schema, s.sequence)} s"
                f" WHERE (s.last_value, s.is_called) <> {self.positions[s.key]}"
                for i, s in enumerate(part)
            )
            for i, *now in sorted(self.execute(looks)):
                baseline = Position(*self.positions[part[i].key])
                yield SequenceDiff(part[i].name, baseline, Position(*now))

    # -- how many -------------------------------------------------------------------------

    def _count(self, i: int, table: Relation) -> str:
        """A query: ``i``, and the numbers of rows that were added, changed and are gone."""
        facts, captured = self.facts[table.key], self.facts[table.key].captured
        if captured is None:
            return f"SELECT {i}, count(*), 0, 0 FROM {facts.sql}"
        if not captured.key:
            return (
                f"SELECT {i}, coalesce(sum(n) FILTER (WHERE n > 0), 0)::int8, 0,"
                " coalesce(-sum(n) FILTER (WHERE n < 0), 0)::int8"
                f" FROM (SELECT sum(b.n) AS n {_both(facts.sql, captured)}) d"
            )
        return (
            f"SELECT {i}, (SELECT count(*) FROM {facts.sql}) - count(*),"
            f" count(*) FILTER (WHERE {captured.differs}),"
            f" (SELECT count(*) FROM {captured.copy}) - count(*)"
            f" FROM {facts.sql} t JOIN {captured.copy} c ON {captured.same}"
        )

    # -- which ----------------------------------------------------------------------------

    def _rows(
        self, tables: Sequence[Relation], counts: dict[int, Counts]
    ) -> dict[int, list[RowDiff]]:
        empty = [table.key for table in tables if self.facts[table.key].captured is None]
        shape = shapes(self.execute(columns_of(empty))[0][0]) if empty else {}
        found: dict[int, list[RowDiff]] = {}
        for part in _parts(tables):
            shown = [self.facts[table.key].captured or shape[table.key] for table in part]
            selects = " UNION ALL ".join(
                f"({self._sample(i, table, shown[i], kind)} LIMIT {self.samples})"
                for i, table in enumerate(part)
                for kind, number in zip(_KINDS, counts[table.key], strict=True)
                if number
            )
            fetched = ", ".join(f"{_heads(side)}, {_lengths(side)}" for side in ("s.old", "s.new"))
            for i, kind, old, old_lengths, new, new_lengths, flags in self.execute(
                f"SELECT s.i, s.kind, {fetched}, s.flags FROM ({selects}) s"
            ):
                then, now = _Side(shown[i], old, old_lengths), _Side(shown[i], new, new_lengths)
                row = _changed(then, now, flags) if flags else _whole(kind, then, now)
                found.setdefault(part[i].key, []).append(row)
        return found

    def _sample(self, i: int, table: Relation, captured: Captured, kind: Kind) -> str:
        """A query for rows of that kind: their values in the baseline, those now, and which of
        them differ.
        """
        name, head = self.facts[table.key].sql, f"SELECT {i} AS i, '{kind}' AS kind"
        now, then = f"{_now(captured)} AS new", f"{_then(captured)} AS old"
        added, gone = f"{head}, {_NONE} AS old, {now}", f"{head}, {then}, {_NONE} AS new"
        if not captured.copy:
            return f"{added}, {_NO_FLAGS} FROM {name} t"
        if not captured.key:
            old, new, sign = ("b.r", _NONE, "<") if kind == "gone" else (_NONE, "b.r", ">")
            return (
                f"{head}, {old} AS old, {new} AS new, {_NO_FLAGS} {_both(name, captured)}"
                f" HAVING sum(b.n) {sign} 0 ORDER BY b.r"
            )
        if kind == "added":
            order = ", ".join(f"t.{quote(column.name)}" for column in captured.key)
            return (
                f"{added}, {_NO_FLAGS} FROM {name} t WHERE NOT EXISTS"
                f" (SELECT FROM {captured.copy} c WHERE {captured.same}) ORDER BY {order}"
            )
        order = ", ".join(column.from_copy for column in captured.key)
        if kind == "gone":
            return (
                f"{gone}, {_NO_FLAGS} FROM {captured.copy} c WHERE NOT EXISTS"
                f" (SELECT FROM {name} t WHERE {captured.same}) ORDER BY {order}"
            )
        flags = ", ".join(
            differ([f"t.{quote(column.name)}"], [column.from_copy]) for column in captured.columns
        )
        return (
            f"{head}, {then}, {now}, ARRAY[{flags}] AS flags FROM {name} t"
            f" JOIN {captured.copy} c ON {captured.same} WHERE {captured.differs} ORDER BY {order}"
        )


_NONE, _NO_FLAGS = "NULL::text[]", "NULL::bool[] AS flags"


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


def _texts(values: Iterable[str]) -> str:
    """An array of the values as text, written by their types: a cast may leave something out."""
    written = ", ".join(
        f"CASE pg_catalog.num_nulls({value}) WHEN 0 THEN pg_catalog.concat({value}) END"
        ' COLLATE pg_catalog."C"'
        for value in values
    )
    return f"ARRAY[{written}]::text[]"


def _now(captured: Captured) -> str:
    return _texts(f"t.{quote(column.name)}" for column in captured.columns)


def _then(captured: Captured) -> str:
    return _texts(column.from_copy for column in captured.columns)


def _both(name: str, captured: Captured) -> str:
    """Of a table in which nothing tells rows apart: each row ``r`` there is or should be, and as
    ``sum(b.n)`` how many there are too many.
    """
    return (
        f"FROM (SELECT {_now(captured)} AS r, 1 AS n FROM {name} t UNION ALL"
        f" SELECT {_then(captured)}, -1 FROM {captured.copy} c) b GROUP BY b.r"
    )


def _heads(array: str) -> str:
    return _each(array, f"pg_catalog.left(u.v, {_FETCHED})")


def _lengths(array: str) -> str:
    return _each(array, "coalesce(pg_catalog.length(u.v), 0)")


def _each(array: str, expression: str) -> str:
    return f"ARRAY(SELECT {expression} FROM unnest({array}) WITH ORDINALITY u(v, o) ORDER BY u.o)"


@dataclass(frozen=True)
class _Side:
    """A row as it should be, or as it is: how its values begin, and how long they are."""

    shape: Captured
    texts: list[str | None]
    lengths: list[int]

    def value(self, i: int, skipped: int = 0) -> Value:
        binary = self.shape.columns[i].type == "bytea"
        return Value.of(self.texts[i], self.lengths[i], skipped, binary)


def _whole(kind: Kind, then: _Side, now: _Side) -> RowDiff:
    side = then if kind == "gone" else now
    columns = enumerate(side.shape.columns)
    return RowDiff(kind, tuple((column.name, side.value(i)) for i, column in columns))


def _changed(then: _Side, now: _Side, flags: list[bool]) -> RowDiff:
    key, changes = [], []
    for i, column in enumerate(then.shape.columns):
        if column in then.shape.key:
            key.append((column.name, then.value(i)))
        if flags[i]:
            start = start_of_difference(then.texts[i], now.texts[i])
            changes.append((column.name, then.value(i, start), now.value(i, start)))
    return RowDiff("changed", tuple(key), tuple(changes))
