"""Captured rows: how they are kept in the database, and what is known of them.

The copies are ordinary tables in a schema of ours, with columns of built-in types only: what a
user defined (an enum, a domain, an extension's type) is kept as text, so that nothing of theirs
can't be dropped because of us. A crash of the server leaves them whole, and a clone of the
database has them too. One row of ``baseline`` lists them.

That row also holds the *horizon*: a transaction id below which every transaction had ended when
all tables were known to be at their baseline. Whatever was written since carries a younger
``xmin``. It holds in this cluster only, so it counts only while the row is the one that was
written here: a dump that is restored elsewhere gives it another ``xmin``.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cleaner.dialects.postgresql.columns import Column
from cleaner.dialects.postgresql.discovery import BASELINE
from cleaner.dialects.postgresql.sql import qualified, quote

STORED = f"""SELECT pg_catalog.json_build_object(
    'tables', b.tables, 'sequences', b.sequences,
    'copies', (SELECT pg_catalog.json_agg(c.relname) FROM pg_catalog.pg_class c
                WHERE c.relnamespace = '{BASELINE}'::regnamespace AND c.relkind = 'r'),
    'horizon', CASE WHEN b.xmin::text = b.author::text THEN b.horizon::text END)::text
  FROM {BASELINE}.baseline b"""


@dataclass(frozen=True)
class Captured:
    """The rows that are a table's baseline: how many, and in which table of ours.

    ``key`` are the columns by which a row is known again; empty where nothing makes them unique.
    ``oids`` are those of the table there is now, and of its partitions.
    """

    rows: int
    copy: str
    columns: tuple[Column, ...]
    key: tuple[Column, ...]
    oids: tuple[int, ...]

    @property
    def same(self) -> str:
        """A condition: ``t`` and ``c`` are versions of one row."""
        return " AND ".join(f"t.{quote(column.name)} = {column.from_copy}" for column in self.key)

    @property
    def differs(self) -> str:
        """A condition: they are not the same to the last bit, whatever their types call equal."""
        return differ(
            (f"t.{quote(column.name)}" for column in self.columns),
            (column.from_copy for column in self.columns),
        )

    def kept(self, names: Iterable[str]) -> str:
        """The query for the captured values of these columns, as ``k0``, ``k1`` and so on."""
        values = {column.name: column.from_copy for column in self.columns}
        listed = (f"{values.get(name, 'NULL')} AS k{i}" for i, name in enumerate(names))
        return f"SELECT {', '.join(listed)} FROM {self.copy} c"

    def same_in(self, names: Iterable[str]) -> str:
        """A condition: ``t`` and ``c`` do not differ in these columns."""
        chosen = [column for column in self.columns if column.name in names]
        if len(chosen) < len([*names]):  # one is generated, from whatever columns
            return f"NOT ({self.differs})"
        some = (f"t.{quote(column.name)}" for column in chosen)
        return f"NOT ({differ(some, (column.from_copy for column in chosen))})"


@dataclass(frozen=True)
class Baseline:
    """What the database is put back to: by (schema, name), rows and sequence positions.

    ``oid`` is that of the table of ours that lists them. ``horizon`` is None where it says nothing
    of the tables there are now. ``lost`` is what can't be put back, since it is gone.
    """

    oid: int
    horizon: str | None
    tables: Mapping[tuple[str, str], Captured]
    sequences: Mapping[tuple[str, str], tuple[int, bool]]
    lost: tuple[str, ...] = ()

    def captured(self, row: Mapping[str, Any]) -> Captured | None:
        """The rows of that relation of :mod:`.discovery`, None if its baseline is empty."""
        return self.tables.get((row["schema"], row["table"]))

    def position(self, row: Mapping[str, Any]) -> tuple[int, bool] | None:
        """The last value of that sequence, and whether it had been called."""
        return self.sequences.get((row["schema"], row["sequence"]))


def differ(some: Iterable[str], others: Iterable[str]) -> str:
    """A condition: the values are not the same to the last bit."""
    return (
        f"ROW({', '.join(some)})::record OPERATOR(pg_catalog.*<>) ROW({', '.join(others)})::record"
    )


def shapes(answer: str | None) -> dict[int, Captured]:
    """The relations' columns and keys, each as a baseline of no rows."""
    found = {}
    for oid, shape in json.loads(answer or "{}").items():
        columns = {
            column["name"]: Column(**column, kept=column["type"] if column["builtin"] else "text")
            for column in shape["columns"] or ()
        }
        key = [columns.get(name) for name in shape["key"] or ()]  # None: it is generated
        found[int(oid)] = Captured(
            rows=0,
            copy="",
            columns=tuple(columns.values()),
            key=tuple(column for column in key if column) if all(key) else (),
            oids=tuple(shape["oids"]),
        )
    return found


@dataclass(frozen=True)
class Stored:
    """The answer to ``STORED``; ``oid`` is that of the table it is from."""

    oid: int
    tables: list[dict[str, Any]]
    sequences: list[dict[str, Any]]
    copies: list[str]
    horizon: str | None

    @classmethod
    def of(cls, oid: int, answer: str) -> Stored:
        """Read it."""
        return cls(oid, **json.loads(answer))

    @property
    def names(self) -> list[tuple[str, str]]:
        """The tables, by schema and name."""
        return [(entry["schema"], entry["table"]) for entry in self.tables]

    @property
    def kept(self) -> list[str]:
        """The copies that are there."""
        there = {*self.copies}
        return [entry["copy"] for entry in self.tables if entry["copy"] in there]

    @property
    def counts(self) -> str:
        """An expression: how many rows each of them has; NULL where another list has taken the
        place of this one.
        """
        counts = (f"(SELECT count(*) FROM {qualified(BASELINE, copy)})" for copy in self.kept)
        return (
            f"CASE pg_catalog.to_regclass('{BASELINE}.baseline')::int8 WHEN {self.oid}"
            f" THEN ARRAY[{', '.join(counts)}]::int8[] END"
        )


def emptied(oid: int) -> Baseline:
    """The baseline where the list of what was captured is empty: nobody knows what it was."""
    lost = f"the list of captured rows ({BASELINE}.baseline, which something has emptied)"
    return Baseline(oid=oid, horizon=None, tables={}, sequences={}, lost=(lost,))


def read(
    stored: Stored,
    counts: Mapping[str, int],
    shape: Mapping[int, Captured],
    keys: Mapping[tuple[str, str], int],
) -> Baseline:
    """The baseline: from what is stored, how many rows the copies have, and the relations there are
    now, by name.
    """
    tables, lost, horizon = {}, [], stored.horizon
    for entry in stored.tables:
        name = entry["schema"], entry["table"]
        if name not in keys:
            lost.append(f"{'.'.join(name)}, {entry['rows']} rows of which were captured")
            continue
        left = counts.get(entry["copy"], 0)
        if left != entry["rows"]:
            lost.append(
                f"the copy of {'.'.join(name)}, which has {left} of its {entry['rows']} rows"
                f" ({BASELINE}.{entry['copy']}, to which something has written)"
            )
        if entry["copy"] not in counts:
            continue
        now = shape[keys[name]]
        kept: dict[str, dict[str, Any]] = entry["columns"]
        there = {c.name: c for c in now.columns if c.name in kept and c.fits(kept[c.name])}
        # One that was dropped and made anew holds other values, and no row was written for it.
        lost += [
            f"column {column} of {'.'.join(name)} as it was captured"
            for column in sorted(kept)
            if column not in there
        ]
        columns = {c.name: replace(c, kept=kept[c.name]["kept"]) for c in there.values()}
        tables[name] = Captured(
            rows=entry["rows"],
            copy=qualified(BASELINE, entry["copy"]),
            columns=tuple(columns.values()),
            key=tuple(columns[c.name] for c in now.key)
            if all(c.name in columns for c in now.key)
            else (),
            oids=now.oids,
        )
        # The rows of another table that has the name now, or a partition: of when they were
        # written nothing follows.
        same = entry.get("oids") in (None, [*now.oids])
        if not (same and all(c.reads_alike(kept[c.name]) for c in there.values())):
            horizon = None
    return Baseline(
        oid=stored.oid,
        horizon=horizon,
        tables=tables,
        sequences={
            (entry["schema"], entry["sequence"]): (entry["last"], entry["called"])
            for entry in stored.sequences
        },
        lost=tuple(lost),
    )
