"""What differs from the baseline now, to the last row and bit.

It looks at every row, in one snapshot, and believes nothing that a clean remembers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeVar

from cleaner.dialects.mysql.baseline import Captured, Column, both
from cleaner.dialects.mysql.catalog import Catalog, Facts
from cleaner.dialects.mysql.connection import MySQLConnection
from cleaner.dialects.mysql.discovery import unique_keys
from cleaner.dialects.mysql.program import REPEATABLE
from cleaner.dialects.mysql.sql import quote
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

Item = TypeVar("Item")
Counts = tuple[int, int, int]  # rows added, changed, gone

_AT_ONCE = 50  # tables asked of in one statement
_FETCHED = 2000  # characters of a value, in which the difference of two is looked for


def differences(
    connection: MySQLConnection, catalog: Catalog, target: Target, samples: int, wait: int
) -> Diff:
    """Compare every table and sequence of ``target`` with its baseline, and show ``samples`` rows
    of each kind for each table. Lets the driver's errors through.
    """
    seconds = max(1, connection.flavour.seconds(wait))
    connection.execute(f"SET SESSION lock_wait_timeout = {seconds}")
    connection.execute(REPEATABLE, True)
    connection.execute("START TRANSACTION WITH CONSISTENT SNAPSHOT", True)
    try:
        return _Comparison(connection, catalog, target, samples).run()
    finally:
        connection.execute("ROLLBACK", True)


class _Comparison:
    def __init__(
        self, connection: MySQLConnection, catalog: Catalog, target: Target, samples: int
    ) -> None:
        self.connection, self.catalog = connection, catalog
        self.target, self.samples = target, samples

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return self.connection.execute(sql, True)

    def run(self) -> Diff:
        sequences = tuple(self._moved())
        counts: dict[int, Counts] = {}
        for part in _parts(self.target.tables):
            selects = " UNION ALL ".join(self._count(i, table) for i, table in enumerate(part))
            for i, *found in self.execute(selects):
                added, changed, gone = map(int, found)
                if added or changed or gone:
                    counts[part[int(i)].key] = added, changed, gone
        tables = [table for table in self.target.tables if table.key in counts]
        shapes = self._shapes(tables)
        return Diff(
            tuple(
                TableDiff(
                    table.name,
                    *counts[table.key],
                    baseline=table.captured,
                    rows=tuple(self._rows(table, shapes[table.key], counts[table.key]))
                    if self.samples > 0
                    else (),
                    why=table.undeletable,
                )
                for table in tables
            ),
            sequences,
            self.target.database.lost,
        )

    def _facts(self, table: Relation) -> Facts:
        return self.catalog.facts[table.key]

    def _moved(self) -> Iterator[SequenceDiff]:
        counters = dict(
            self.execute(
                "SELECT TABLE_NAME, AUTO_INCREMENT FROM information_schema.TABLES"
                " WHERE TABLE_SCHEMA = DATABASE() AND AUTO_INCREMENT IS NOT NULL"
            )
        )
        for sequence in self.target.sequences:
            start = 1
            if sequence.key < 0:
                now = int(counters.get(self.catalog.database.relation(-sequence.key).table) or 1)
            else:
                state = "next_not_cached_value, start_value, cycle_count"
                row = self.execute(f"SELECT {state} FROM {quote(sequence.sequence)}")[0]
                now, start = int(row[0]), int(row[1])
                if row[2] and now == start:
                    now += 1
            baseline = self.catalog.positions.get(sequence.key, start)
            if now != baseline:
                places = (Position(at, False) if at == start else Position(at - 1, True)
                          for at in (baseline, now))  # fmt: skip
                yield SequenceDiff(sequence.name, *places)

    # -- how many -------------------------------------------------------------------------

    def _count(self, i: int, table: Relation) -> str:
        """A query: ``i``, and the numbers of rows that were added, changed and are gone."""
        facts = self._facts(table)
        captured = facts.captured
        if captured is None:
            every = " FOR SYSTEM_TIME ALL" if facts.versioned else ""
            return f"SELECT {i}, COUNT(*), 0, 0 FROM {facts.sql}{every}"
        if not captured.key:
            return (
                f"SELECT {i}, COALESCE(SUM(GREATEST(d.n, 0)), 0), 0,"
                f" COALESCE(SUM(GREATEST(-d.n, 0)), 0) FROM (SELECT SUM(b.n) AS n"
                f" FROM ({both(facts.sql, captured)}) b GROUP BY b.r) d"
            )
        return (
            f"SELECT {i}, (SELECT COUNT(*) FROM {facts.sql}) - COUNT(*),"
            f" COALESCE(SUM(NOT ({captured.same})), 0),"
            f" (SELECT COUNT(*) FROM {captured.copy}) - COUNT(*)"
            f" FROM {facts.sql} t JOIN {captured.copy} c ON {captured.matches}"
        )

    # -- which ----------------------------------------------------------------------------

    def _shapes(self, tables: Sequence[Relation]) -> dict[int, Captured]:
        """Columns and keys of the tables, those of no captured rows too."""
        empty = [table.table for table in tables if not self._facts(table).captured]
        unique = unique_keys(self.execute, empty)
        found = {}
        for table in tables:
            facts = self._facts(table)
            names = unique.get(table.table, ())
            key = tuple(column for column in facts.columns if column.name in names)
            found[table.key] = facts.captured or Captured(0, "", facts.columns, key)
        return found

    def _rows(self, table: Relation, shape: Captured, counts: Counts) -> Iterator[RowDiff]:
        name = self._facts(table).sql
        added, changed, gone = counts
        if not shape.key and shape.copy:
            yield from self._keyless(name, shape)
            return
        now, then = (_values(shape.columns, row) for row in ("t", "c"))
        if added:
            every = " FOR SYSTEM_TIME ALL" if self._facts(table).versioned else ""
            where = ""
            if shape.copy:
                where = f" WHERE NOT EXISTS (SELECT 1 FROM {shape.copy} c WHERE {shape.matches})"
            query = f"SELECT {now} FROM {name}{every} t{where}{_order(shape, 't')}"
            yield from self._whole("added", shape, query)
        if changed:
            flags = ", ".join(f"NOT ({column.same('t', 'c')})" for column in shape.columns)
            for row in self.execute(
                f"SELECT {then}, {now}, {flags} FROM {name} t JOIN {shape.copy} c ON"
                f" {shape.matches} WHERE NOT ({shape.same}){_order(shape, 'c')}"
                f" LIMIT {self.samples}"
            ):
                yield _changed(shape, row)
        if gone:
            query = (
                f"SELECT {then} FROM {shape.copy} c WHERE NOT EXISTS"
                f" (SELECT 1 FROM {name} t WHERE {shape.matches}){_order(shape, 'c')}"
            )
            yield from self._whole("gone", shape, query)

    def _whole(self, kind: Kind, shape: Captured, query: str) -> Iterator[RowDiff]:
        for row in self.execute(f"{query} LIMIT {self.samples}"):
            values = zip(shape.columns, row[::2], row[1::2], strict=True)
            yield RowDiff(kind, tuple((c.name, _value(c, head, n)) for c, head, n in values))

    def _keyless(self, name: str, shape: Captured) -> Iterator[RowDiff]:
        kinds: tuple[tuple[Kind, str], ...] = (("added", ">"), ("gone", "<"))
        for kind, sign in kinds:
            for (row,) in self.execute(
                f"SELECT b.r FROM ({both(name, shape)}) b GROUP BY b.r"
                f" HAVING SUM(b.n) {sign} 0 ORDER BY b.r LIMIT {self.samples}"
            ):
                texts = _text(row).split(",")
                values = []
                for column, text in zip(shape.columns, texts, strict=True):
                    read = None if text == "N" else bytes.fromhex(text).decode(errors="replace")
                    values.append((column.name, _value(column, read, len(read or ""))))
                yield RowDiff(kind, tuple(values))


def _parts(items: Sequence[Item]) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), _AT_ONCE):
        yield items[start : start + _AT_ONCE]


def _values(columns: Sequence[Column], row: str) -> str:
    """How each value begins, and how long it is."""
    return ", ".join(
        f"LEFT({c.text(row)}, {_FETCHED}), COALESCE(CHAR_LENGTH({c.text(row)}), 0)" for c in columns
    )


def _order(shape: Captured, row: str) -> str:
    if not shape.key:
        return ""
    return " ORDER BY " + ", ".join(f"{row}.{quote(column.name)}" for column in shape.key)


def _text(value: Any) -> str:
    return value.decode(errors="replace") if isinstance(value, (bytes, bytearray)) else str(value)


def _value(column: Column, head: Any, length: Any, skipped: int = 0) -> Value:
    text = None if head is None else _text(head)
    return Value.of(text, int(length), skipped, column.is_binary)


def _changed(shape: Captured, row: Sequence[Any]) -> RowDiff:
    many = len(shape.columns)
    then, now, flags = row[: 2 * many], row[2 * many : 4 * many], row[4 * many :]
    key, changes = [], []
    for i, column in enumerate(shape.columns):
        old, new = then[2 * i : 2 * i + 2], now[2 * i : 2 * i + 2]
        if column in shape.key:
            key.append((column.name, _value(column, *old)))
        if flags[i]:
            texts = (None if head is None else _text(head) for head in (old[0], new[0]))
            start = start_of_difference(*texts)
            before, after = (_value(column, side[0], side[1], start) for side in (old, new))
            changes.append((column.name, before, after))
    return RowDiff("changed", tuple(key), tuple(changes))
