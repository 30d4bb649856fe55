"""What a database holds, as :mod:`.discovery` found it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cleaner.dialects.mysql.baseline import Captured, Column, is_ours
from cleaner.dialects.mysql.connection import MySQLConnection
from cleaner.dialects.mysql.discovery import Found
from cleaner.dialects.mysql.sql import exists, qualified, quote
from cleaner.spi import Action, Database, ForeignKey, Relation, Sequence

# Whose rows live elsewhere: nobody's to delete.
_REMOTE = {"FEDERATED", "CONNECT", "SPIDER", "S3", "OQGRAPH", "SPHINX", "MRG_MYISAM"}
# Whose DELETE is not undone by a ROLLBACK, but which can be emptied.
_PLAIN = {"MYISAM", "ARIA", "MEMORY", "CSV", "ARCHIVE", "BLACKHOLE"}
_NEXTVAL = re.compile(r"nextval\((?:`((?:[^`]|``)+)`\.)?`((?:[^`]|``)+)`\)", re.IGNORECASE)
_ACTIONS: dict[str, Action] = {
    "NO ACTION": "no action",
    "RESTRICT": "restrict",
    "CASCADE": "cascade",
    "SET NULL": "set null",
    "SET DEFAULT": "set default",
}


@dataclass(frozen=True)
class Facts:
    """What the SQL for one table has to know beyond :class:`cleaner.spi.Relation`.

    ``transactional`` says that a ROLLBACK undoes what was done to it, ``versioned`` that it keeps
    the rows that were deleted, ``triggers`` which it has by event. ``captured`` are the rows of its
    baseline, None where that is none.
    """

    sql: str
    columns: tuple[Column, ...]
    transactional: bool = True
    versioned: bool = False
    auto_increment: bool = False
    generated: bool = False
    triggers: tuple[tuple[str, str], ...] = ()
    captured: Captured | None = None

    @property
    def looks(self) -> str:
        """An expression: whether it is not at its baseline."""
        if self.captured:
            return self.captured.changed(self.sql)
        return exists(f"{self.sql} FOR SYSTEM_TIME ALL" if self.versioned else self.sql)

    @property
    def unrestorable(self) -> str:
        """Why rows can't be put back into it, with the remedy; empty if they can."""
        if self.versioned:
            return "it is system-versioned, and the history of its rows can't be written"
        if not self.transactional:
            return "its engine knows no transactions: ALTER TABLE ... ENGINE = InnoDB"
        if self.triggers:
            name = self.triggers[0][1]
            return f"trigger {name} would fire on what is put back: DROP TRIGGER {quote(name)}"
        return ""


@dataclass(frozen=True)
class Catalog:
    """A database as :class:`cleaner.spi.Database` says it, and what only its server knows.

    ``positions`` are the captured next values of sequences, by their keys. ``newest`` and ``names``
    tell whether there may be anything new.
    """

    database: Database
    facts: Mapping[int, Facts]
    positions: Mapping[int, int]
    newest: int
    names: str
    has_baseline: bool


def parse(found: Found, session: MySQLConnection, unique: Mapping[str, tuple[str, ...]]) -> Catalog:
    """Read what was found; ``unique`` are the keys of the captured tables."""
    return _Parser(found, unique).catalog(session)


class _Parser:
    def __init__(self, found: Found, unique: Mapping[str, tuple[str, ...]]) -> None:
        self.found, self.unique = found, unique
        self.engines = {str(engine).upper(): yes == "YES" for engine, yes in found.engines}
        self.columns: dict[str, list[tuple[Any, ...]]] = {}
        for table, *column in found.columns:
            self.columns.setdefault(table, []).append(tuple(column))
        self.triggers: dict[str, list[tuple[str, str]]] = {}
        for table, event, name in found.triggers:
            self.triggers.setdefault(table, []).append((event, name))
        self.copies = {name: (copy, rows) for kind, name, copy, rows in found.book if kind == "t"}
        self.captured_positions = {name: at for kind, name, _, at in found.book if kind == "s"}
        self.lost: list[str] = []

    def catalog(self, session: MySQLConnection) -> Catalog:
        relations, facts, sequences = [], {}, []
        own = [row for row in self.found.tables if not is_ours(row[0])]
        keys = {(self.found.name, row[0]): number for number, row in enumerate(own, 1)}
        for table, kind, named in own:
            key = keys[self.found.name, table]
            if kind == "SEQUENCE":
                sequences.append(self.sequence(key, table, keys))
                continue
            engine = str(named or "").upper()
            relation = self.relation(key, table, kind, engine)
            relations.append(relation)
            if relation.kind != "table":
                continue
            facts[key] = self.facts(table, kind, engine)
            for column, *_, extra, _, _, _, _ in self.columns.get(table, ()):
                if "auto_increment" in extra.lower():
                    name = f"{table}.{column}"
                    sequences.append(Sequence(-key, self.found.name, name, name, owner=key))
        foreign_keys = tuple(self.foreign_keys(keys, relations))
        there = {row[0] for row in own}
        self.lost += [
            f"{table}, {rows} rows of which were captured"
            for table, (_, rows) in self.copies.items()
            if table not in there
        ]
        return Catalog(
            database=Database(
                name=self.found.name,
                server=session.server,
                user=session.user,
                ignores_case=session.ignores_case,
                search_path=(self.found.name,),
                fingerprint=self.found.fingerprint,
                no_recreate=f"{session.flavour.name} has no way to copy a database",
                lost=tuple(self.lost),
                relations=tuple(relations),
                foreign_keys=foreign_keys,
                sequences=tuple(sequences),
            ),
            facts=facts,
            positions={
                sequence.key: self.captured_positions[sequence.name]
                for sequence in sequences
                if sequence.name in self.captured_positions
            },
            newest=self.found.newest,
            names=self.found.names,
            has_baseline=any(is_ours(row[0]) for row in self.found.tables),
        )

    # -- tables ---------------------------------------------------------------------------

    def relation(self, key: int, table: str, kind: str, engine: str) -> Relation:
        common: dict[str, Any] = {"key": key, "schema": self.found.name, "table": table}
        if "VIEW" in kind:
            return Relation(**common, name=table, kind="view")
        if engine in _REMOTE:
            return Relation(**common, name=table, kind="foreign table")
        undeletable, untruncatable = "", ""
        deletes = [name for event, name in self.triggers.get(table, ()) if event == "DELETE"]
        if deletes:
            undeletable = f"trigger {deletes[0]} would fire, and can't be switched off"
        if kind == "SYSTEM VERSIONED":
            untruncatable = "it is system-versioned, and such tables can't be truncated"
        if engine not in _PLAIN and not self.engines.get(engine):
            undeletable = untruncatable = f"its engine {engine or '(none)'} is not known to cleaner"
        columns = self.columns.get(table, ())
        return Relation(
            **common,
            name=table,
            undeletable=undeletable,
            untruncatable=untruncatable,
            bookkeeping=[column[0] for column in columns] == ["version_num"],
            captured=self.copies[table][1] if table in self.copies else 0,
        )

    def facts(self, table: str, kind: str, engine: str) -> Facts:
        columns = self.writable(table)
        extras = " ".join(str(column[3]).lower() for column in self.columns.get(table, ()))
        return Facts(
            sql=quote(table),
            columns=columns,
            transactional=engine not in _PLAIN,
            versioned=kind == "SYSTEM VERSIONED",
            auto_increment="auto_increment" in extras,
            generated=len(columns) < len(self.columns.get(table, ())),
            triggers=tuple(self.triggers.get(table, ())),
            captured=self.captured(table, columns) if table in self.copies else None,
        )

    def writable(self, table: str) -> tuple[Column, ...]:
        return tuple(
            Column(name, kind, collation)
            for name, kind, collation, extra, *_ in self.columns.get(table, ())
            if "GENERATED" not in str(extra).upper().replace("DEFAULT_GENERATED", "")
        )

    def captured(self, table: str, columns: tuple[Column, ...]) -> Captured:
        copy, rows = self.copies[table]
        kept = {column.name: column for column in self.writable(copy)}
        there = {column.name: column for column in columns}
        self.lost += [
            f"column {name} of {table} as it was captured"
            for name, column in kept.items()
            if there.get(name) != column
        ]
        shared = tuple(column for column in columns if column.name in kept)
        key = self.unique.get(table, ())
        names = {column.name for column in shared}
        return Captured(
            rows=rows,
            copy=quote(copy),
            columns=shared,
            key=tuple(there[name] for name in key) if names.issuperset(key) else (),
        )

    # -- foreign keys and sequences -------------------------------------------------------

    def foreign_keys(
        self, keys: dict[tuple[str, str], int], relations: list[Relation]
    ) -> list[ForeignKey]:
        """The foreign keys; tables of other databases that refer to ours become relations."""
        rules = {(schema, table, name): rule for schema, name, table, rule in self.found.rules}
        parts: dict[tuple[str, ...], list[tuple[str, str]]] = {}
        for _, name, schema, table, column, to_schema, to_table, referred in self.found.keys:
            ends = (name, schema, table, to_schema, to_table)
            parts.setdefault(ends, []).append((column, referred))
        found = []
        for (name, schema, table, to_schema, to_table), columns in parts.items():
            if (to_schema, to_table) not in keys or is_ours(table):
                continue
            if (schema, table) not in keys:
                keys[schema, table] = len(keys) + 1
                full = f"{schema}.{table}"
                another = f"it is in the database {schema}"
                relations.append(
                    Relation(keys[schema, table], schema, table, full, foreign_owned=another)
                )
            found.append(
                ForeignKey(
                    name,
                    keys[schema, table],
                    keys[to_schema, to_table],
                    tuple(column for column, _ in columns),
                    tuple(referred for _, referred in columns),
                    _ACTIONS.get(rules.get((schema, table, name), ""), "restrict"),
                )
            )
        return found

    def sequence(self, key: int, name: str, keys: dict[tuple[str, str], int]) -> Sequence:
        users = []
        for table, columns in self.columns.items():
            for _, _, _, _, default, *_ in columns:
                for schema, sequence in _NEXTVAL.findall(str(default or "")):
                    here = not schema or schema.replace("``", "`") == self.found.name
                    if here and sequence.replace("``", "`") == name:
                        users.append(keys.get((self.found.name, table), 0))
        used_by = tuple(sorted({user for user in users if user}))
        return Sequence(key, self.found.name, name, name, users=used_by)


def relation_sql(catalog: Catalog, key: int) -> str:
    """The name of a table, wherever it is, as SQL."""
    relation = catalog.database.relation(key)
    if relation.schema == catalog.database.name:
        return quote(relation.table)
    return qualified(relation.schema, relation.table)
