"""Captured rows: how they are kept in the database, and what is known of them.

The copies are tables ``cleaner_baseline_1`` and so on beside those that they are of, with columns
that leave every value as it is; the table ``cleaner_baseline`` of the main database lists them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cleaner.dialects.sqlite.catalog import shown
from cleaner.dialects.sqlite.facts import Ask, Facts
from cleaner.dialects.sqlite.sql import BASELINE, qualified, quote
from cleaner.dialects.strings import literal

BOOK = qualified("main", BASELINE)


@dataclass(frozen=True)
class Captured:
    """The rows that are a table's baseline: how many, and in which table ``copy`` of ours.

    ``columns`` are the names that the copy's ``c0``, ``c1`` and so on stand for; the key is ``k0``
    and so on there.
    """

    facts: Facts
    rows: int
    copy: str
    columns: tuple[str, ...]

    @property
    def same(self) -> str:
        """A condition: ``t`` and ``c`` are versions of one row."""
        return " AND ".join(
            f"c.k{i} = t.{quote(name)}" for i, (name, _) in enumerate(self.facts.key)
        )

    def alike(self, names: tuple[str, ...]) -> str:
        """A condition: ``t`` and ``c`` are the same to the last bit in these columns."""
        known = {column.name.lower(): column for column in self.facts.columns}
        pairs = [
            (f"t.{quote(name)}", self.value(name), known[name.lower()])
            for name in names
            if name.lower() in known
        ]
        if not pairs:
            return "1"
        equal = (
            f"({', '.join(f'{ours} COLLATE BINARY' for ours, _, _ in pairs)})"
            f" IS ({', '.join(theirs for _, theirs, _ in pairs)})"
        )
        # Only a column that takes values as they are has numbers of several types that are equal.
        types = [f"typeof({a}) = typeof({b})" for a, b, column in pairs if not column.affinity]
        return " AND ".join([equal, *types])

    def value(self, name: str) -> str:
        """The captured value of a column."""
        return self._kept(name) or "NULL"

    def _kept(self, name: str) -> str:
        """The same; empty for a column that was not there yet."""
        lowered = [column.lower() for column in self.columns]
        if name.lower() in lowered:
            return f"c.c{lowered.index(name.lower())}"
        keys = [key.lower() for key, _ in self.facts.key]
        return f"c.k{keys.index(name.lower())}" if name.lower() in keys else ""

    @property
    def exact(self) -> str:
        """A condition: ``t`` is a row of the baseline, to the last bit."""
        return (
            f"EXISTS (SELECT 1 FROM {self.copy} AS c"
            f" WHERE {self.same} AND {self.alike(self.columns)})"
        )

    @property
    def look(self) -> str:
        """An expression: the table is not at its baseline."""
        name = self.facts.sql
        return (
            f"((SELECT count(*) FROM {name}) <> {self.rows}"
            f" OR EXISTS (SELECT 1 FROM {name} AS t WHERE NOT {self.exact}))"
        )

    @property
    def restore(self) -> tuple[str, str]:
        """The statements that put it back. Whatever is wrong goes before anything comes, so rows
        that have swapped their values are not in each other's way.
        """
        name = self.facts.sql
        written = [column for column in self.facts.written if self._kept(column)]
        names = ", ".join(quote(column) for column in written)
        values = ", ".join(self.value(column) for column in written)
        insert = f"INSERT INTO {name} ({names}) SELECT {values} FROM {self.copy} AS c"
        if self.facts.module:  # not every one can be read while it is written to
            return self.facts.empty, insert
        return (
            f"DELETE FROM {name} AS t WHERE NOT {self.exact}",
            f"{insert} WHERE NOT EXISTS (SELECT 1 FROM {name} AS t WHERE {self.same})",
        )


@dataclass(frozen=True)
class Baseline:
    """What the database is put back to: by (schema, name), rows and positions of sequences.

    ``entries`` is how all this is kept; ``lost`` is what is gone from the schema.
    """

    entries: Mapping[str, Any]
    tables: Mapping[tuple[str, str], Captured]
    positions: Mapping[tuple[str, str], int]
    lost: tuple[str, ...]


EMPTY: Mapping[str, Any] = {"tables": [], "positions": []}


def create_copy(facts: Facts, copy: str) -> str:
    """The statement for a table that keeps what ``facts`` is about."""
    columns = [f"c{i} {column.affinity}".rstrip() for i, column in enumerate(facts.columns)]
    if facts.key[0][0] not in [column.name for column in facts.columns]:
        return f"CREATE TABLE {copy} (k0 INTEGER PRIMARY KEY, {', '.join(columns)})"
    known = {column.name: column for column in facts.columns}
    keys = [
        f"k{i} {known[name].affinity if name in known else ''} COLLATE {quote(collation)}"
        for i, (name, collation) in enumerate(facts.key)
    ]
    names = ", ".join(f"k{i}" for i in range(len(keys)))
    listed = ", ".join([*keys, *columns])
    return f"CREATE TABLE {copy} ({listed}, PRIMARY KEY ({names})) WITHOUT ROWID"


def fill_copy(facts: Facts, copy: str) -> str:
    """The statement that copies the rows."""
    names = [*(name for name, _ in facts.key), *(column.name for column in facts.columns)]
    values = ", ".join(f"t.{quote(name)}" for name in names)
    return f"INSERT INTO {copy} SELECT {values} FROM {facts.sql} AS t"


def entry(schema: str, table: str, facts: Facts, copy: str, rows: int) -> dict[str, Any]:
    """What is kept in the list of a table that was captured."""
    columns = {column.name: column.affinity for column in facts.columns}
    return {"schema": schema, "table": table, "copy": copy, "rows": rows, "columns": columns}


def write(ask: Ask, entries: Mapping[str, Any] | None) -> None:
    """Replace the list; None removes it."""
    ask(f"DROP TABLE IF EXISTS {BOOK}")
    if entries is not None:
        ask(f"CREATE TABLE {BOOK} (document TEXT)")
        ask(f"INSERT INTO {BOOK} VALUES ({literal(json.dumps(entries))})")


def read(ask: Ask, known: Mapping[tuple[str, str], Facts]) -> Baseline | None:
    """The baseline that is kept in the database; ``known`` are the tables there are now."""
    there = f"SELECT 1 FROM main.sqlite_master WHERE type = 'table' AND name = {literal(BASELINE)}"
    if not ask(there):
        return None
    entries = json.loads(ask(f"SELECT document FROM {BOOK}")[0][0])
    tables, lost = {}, []
    for kept in entries["tables"]:
        name = kept["schema"], kept["table"]
        if name not in known:
            lost.append(f"{shown(*name)}, {kept['rows']} rows of which were captured")
            continue
        now = {column.name: column.affinity for column in known[name].columns}
        lost += [
            f"column {column} of {shown(*name)} as it was captured"
            for column, was in kept["columns"].items()
            if now.get(column) != was
        ]
        columns = tuple(kept["columns"])
        copy = qualified(kept["schema"], kept["copy"])
        tables[name] = Captured(known[name], kept["rows"], copy, columns)
    return Baseline(
        entries,
        tables,
        {(schema, name): position for schema, name, position in entries["positions"]},
        tuple(lost),
    )
