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

from cleaner.dialects.postgresql.discovery import BASELINE
from cleaner.dialects.postgresql.sql import oid_array, qualified, quote

STORED = f"""SELECT pg_catalog.json_build_object(
    'tables', b.tables, 'sequences', b.sequences,
    'horizon', CASE WHEN b.xmin::text = b.author::text THEN b.horizon::text END)::text
  FROM {BASELINE}.baseline b"""

# The key is what tells a row from others, in a way that the server enforces at once.
_COLUMNS = """SELECT pg_catalog.json_object_agg(c.oid::int8, pg_catalog.json_build_object(
    'columns', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
        'name', a.attname, 'number', a.attnum,
        'type', pg_catalog.format_type(a.atttypid, a.atttypmod),
        'builtin', a.atttypid < 16384 AND a.attcollation < 16384,
        'collation', (SELECT pg_catalog.format('%I.%I', n.nspname, l.collname)
                        FROM pg_catalog.pg_collation l
                        JOIN pg_catalog.pg_namespace n ON n.oid = l.collnamespace
                       WHERE l.oid = a.attcollation AND l.oid >= 16384),
        'always', a.attidentity = 'a') ORDER BY a.attnum)
        FROM pg_catalog.pg_attribute a
       WHERE a.attrelid = c.oid AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = ''),
    'key', (SELECT pg_catalog.json_agg(a.attname ORDER BY u.i)
              FROM (SELECT (i.indkey::int2[])[0:i.indnkeyatts - 1] AS numbers
                      FROM pg_catalog.pg_index i
                     WHERE i.indrelid = c.oid AND i.indisunique AND i.indimmediate AND i.indisvalid
                       AND i.indpred IS NULL AND i.indexprs IS NULL
                       AND NOT EXISTS (SELECT FROM pg_catalog.pg_attribute n
                            WHERE n.attrelid = c.oid AND NOT n.attnotnull
                              AND n.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1]))
                       AND NOT EXISTS (SELECT FROM unnest((i.indkey::int2[])[0:i.indnkeyatts - 1],
                                (i.indcollation::oid[])[0:i.indnkeyatts - 1]) u(n, l)
                             JOIN pg_catalog.pg_attribute n ON n.attrelid = c.oid AND n.attnum = u.n
                             JOIN pg_catalog.pg_collation l ON l.oid = n.attcollation
                            WHERE NOT l.collisdeterministic AND l.oid <> u.l)
                     ORDER BY i.indisprimary DESC, i.indnkeyatts, i.indexrelid LIMIT 1) k,
                   unnest(k.numbers) WITH ORDINALITY u(n, i)
              JOIN pg_catalog.pg_attribute a ON a.attrelid = c.oid AND a.attnum = u.n)))::text
  FROM pg_catalog.pg_class c WHERE c.oid = ANY ({oids})"""


@dataclass(frozen=True)
class Column:
    """A column that can be written to; ``kept`` is the type of its copy."""

    name: str
    number: int
    type: str
    builtin: bool
    collation: str | None
    always: bool
    kept: str

    @property
    def entry(self) -> dict[str, Any]:
        """What is kept of it with the rows."""
        kept = self.type if self.builtin else "text"
        return {"number": self.number, "type": self.type, "kept": kept}

    @property
    def to_copy(self) -> str:
        """What the copy holds of ``t``'s value."""
        value = f"t.{quote(self.name)}"
        return value if self.builtin else f'{value}::text COLLATE pg_catalog."C"'

    @property
    def from_copy(self) -> str:
        """The value that the copy ``c`` holds."""
        return self._cast(f"c.{quote(self.name)}")

    @property
    def there_and_back(self) -> str:
        """What would be put back of ``t``'s value."""
        return self._cast(self.to_copy)

    def _cast(self, value: str) -> str:
        if self.kept != self.type:
            value = f"({value})::{self.type}"
        return f"{value} COLLATE {self.collation}" if self.collation else value


@dataclass(frozen=True)
class Captured:
    """The rows that are a table's baseline: how many, and in which table of ours.

    ``key`` are the columns by which a row is known again; empty where nothing makes them unique.
    """

    rows: int
    copy: str
    columns: tuple[Column, ...]
    key: tuple[Column, ...]

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

    ``oid`` is that of the table of ours that lists them; ``lost`` is what can't be put back, since
    it is gone from the schema.
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


def columns_of(oids: Iterable[int]) -> str:
    """The query for the columns and keys of these relations, for :func:`shapes`."""
    return _COLUMNS.replace("{oids}", oid_array(oids))


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
        )
    return found


def names(stored: str) -> list[tuple[str, str]]:
    """The tables, by schema and name, of which the answer to ``STORED`` tells."""
    return [(entry["schema"], entry["table"]) for entry in json.loads(stored)["tables"]]


def read(
    oid: int, stored: str, shape: Mapping[int, Captured], keys: Mapping[tuple[str, str], int]
) -> Baseline:
    """The baseline from the answer to ``STORED`` and the relations there are now, by name."""
    document = json.loads(stored)
    tables, lost = {}, []
    for entry in document["tables"]:
        name = entry["schema"], entry["table"]
        if name not in keys:
            lost.append(f"{'.'.join(name)}, {entry['rows']} rows of which were captured")
            continue
        now = shape[keys[name]]
        kept: dict[str, dict[str, Any]] = entry["columns"]
        there = {column.name: column.entry for column in now.columns}
        # One that was dropped and made anew holds other values, and no row was written for it.
        lost += [
            f"column {column} of {'.'.join(name)} as it was captured"
            for column, was in sorted(kept.items())
            if there.get(column) != was
        ]
        columns = {
            c.name: replace(c, kept=kept[c.name]["kept"]) for c in now.columns if c.name in kept
        }
        tables[name] = Captured(
            rows=entry["rows"],
            copy=qualified(BASELINE, entry["copy"]),
            columns=tuple(columns.values()),
            key=tuple(columns[c.name] for c in now.key)
            if all(c.name in columns for c in now.key)
            else (),
        )
    return Baseline(
        oid=oid,
        horizon=document["horizon"],
        tables=tables,
        sequences={
            (entry["schema"], entry["sequence"]): (entry["last"], entry["called"])
            for entry in document["sequences"]
        },
        lost=tuple(lost),
    )
