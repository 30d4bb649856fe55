"""What an SQLite database holds, as its own catalog tells it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from cleaner.dialects.sqlite.facts import ROWID, Ask, Column, Facts, Index, Trigger
from cleaner.dialects.sqlite.sql import BASELINE, NAME, qualified, quote
from cleaner.dialects.sqlite.virtual import (
    as_virtual,
    index_of,
    is_readable_only,
    module_of,
    not_shadows,
    shadows,
    unemptied,
)
from cleaner.spi import Database, ForeignKey, Kind, Relation, Sequence

_TRIGGER = re.compile(
    rf"CREATE\s+TRIGGER\s+{NAME}\s+(?:BEFORE\s+|AFTER\s+)?(DELETE|INSERT|UPDATE)\b", re.IGNORECASE
)


@dataclass(frozen=True)
class Found:
    """The database, and its tables and indexes as statements."""

    database: Database
    facts: Mapping[int, Facts]
    indexes: Mapping[int, Index]
    starts: Mapping[int, str]  # by key of a sequence: the schema's sqlite_sequence
    versions: tuple[Any, ...]


def versions(ask: Ask, connection: int) -> tuple[Any, ...]:
    """What differs as soon as something in the schema does, or the connection is another."""
    schemas = tuple(row[1:] for row in ask("PRAGMA database_list"))
    numbers = (ask(f"PRAGMA {quote(name)}.schema_version")[0][0] for name, _ in schemas)
    return connection, schemas, tuple(numbers)


def discover(ask: Ask, name: str, connection: int) -> Found:
    """Look at everything."""
    return _Discovery(ask, name, connection).found()


class _Discovery:
    def __init__(self, ask: Ask, name: str, connection: int) -> None:
        self.ask, self.name = ask, name
        self.versions = versions(ask, connection)
        self.schemas = [schema for schema, _ in self.versions[1] if schema != "temp"]
        self.version = str(ask("SELECT sqlite_version()")[0][0])
        self.lines: list[tuple[Any, ...]] = []  # what the fingerprint is of
        self.relations: list[Relation] = []
        self.foreign_keys: list[ForeignKey] = []
        self.sequences: list[Sequence] = []
        self.facts: dict[int, Facts] = {}
        self.indexes: dict[int, Index] = {}
        self.starts: dict[int, str] = {}
        self.temporary = self.temporary_triggers()

    def found(self) -> Found:
        for schema in self.schemas:
            self.schema(schema)
        lines = sorted(map(repr, self.lines))
        database = Database(
            name=self.name,
            server=f"sqlite {self.version}",
            user="",
            search_path=tuple(self.schemas),
            fingerprint=hashlib.sha256("\n".join(lines).encode()).hexdigest(),
            ignores_case=True,
            relations=tuple(self.relations),
            foreign_keys=tuple(self.foreign_keys),
            sequences=tuple(self.sequences),
        )
        return Found(database, self.facts, self.indexes, self.starts, self.versions)

    def temporary_triggers(self) -> list[tuple[str, str, str]]:
        select = "SELECT tbl_name, name, sql FROM temp.sqlite_master WHERE type = 'trigger'"
        return [(str(table).lower(), name, sql) for table, name, sql in self.ask(select)]

    def schema(self, schema: str) -> None:
        rows = self.ask(
            f"SELECT type, name, tbl_name, rootpage, sql FROM {quote(schema)}.sqlite_master"
            f" WHERE name NOT LIKE '{BASELINE.replace('_', '!_')}%' ESCAPE '!'"
        )
        self.lines += [(schema, *row[:3], row[4]) for row in rows]
        modules = {name: (module_of(sql), sql) for kind, name, _, _, sql in rows if kind == "table"}
        virtual = {name: module for name, (module, _) in modules.items() if module}
        hidden = self.shadows(schema, virtual, {name: sql for name, (_, sql) in modules.items()})
        tables = [
            name
            for name in sorted(modules)
            if not name.lower().startswith("sqlite_") and name not in hidden
        ]
        columns: dict[str, list[tuple[Any, ...]]] = {}
        triggers = [row for row in rows if row[0] == "trigger"]
        keys: dict[str, int] = {}
        autoincrement = any(name == "sqlite_sequence" for name in modules)
        views = [row[1] for row in rows if row[0] == "view"]
        indexes: dict[str, Index] = {}
        for name in tables:
            module, sql = modules[name]
            shape, broken = self.columns(schema, name)
            if module and not broken:
                if index := index_of(schema, name, module, sql):
                    indexes[name] = index
                    continue
                if is_readable_only(self.ask, schema, name):
                    views.append(name)
                    continue
            columns[name] = shape
            key = keys[name.lower()] = len(self.relations) + 1
            facts = self.table(schema, name, sql, module, shape)
            self.facts[key] = replace(facts, triggers=self.triggers(schema, name, triggers))
            self.relations.append(
                Relation(
                    key=key,
                    schema=schema,
                    table=name,
                    name=shown(schema, name),
                    undeletable=broken or unemptied(facts),
                    untruncatable=broken or unemptied(facts),
                    bookkeeping=[(c[1], str(c[2]).upper()) for c in shape]
                    == [("version_num", "VARCHAR(32)")],
                )
            )
            if autoincrement and "autoincrement" in sql.lower():
                self.sequence(schema, name, key)
        for name in views:
            self.view(schema, name, "view")
        for name, index in indexes.items():
            there = (*keys, *(view.lower() for view in views))
            reads = tuple(keys.values()) if index.content.lower() in there else ()
            if index.content.lower() in keys:  # nobody tells what a view is made from
                reads = (keys[index.content.lower()],)
            self.indexes[len(self.relations) + 1] = index
            self.view(schema, name, "materialized view", reads)
        self.keys(schema, keys, columns)

    def view(self, schema: str, name: str, kind: Kind, reads: tuple[int, ...] = ()) -> None:
        key = len(self.relations) + 1
        self.relations.append(
            Relation(key, schema, name, shown(schema, name), kind=kind, reads=reads)
        )

    def shadows(
        self, schema: str, virtual: Mapping[str, str], known: Mapping[str, str]
    ) -> frozenset[str]:
        """The tables in which virtual tables keep what they hold."""
        hidden = {
            shadow.lower() for name, module in virtual.items() for shadow in shadows(name, module)
        }
        if tuple(map(int, self.version.split(".")[:2])) >= (3, 37):
            hidden |= {
                str(row[1]).lower()
                for row in self.ask(f"PRAGMA {quote(schema)}.table_list")
                if row[2] == "shadow"
            }
        hidden -= {
            other.lower()
            for name, module in virtual.items()
            for other in not_shadows(name, module, known[name])
        }
        return frozenset(name for name in known if name.lower() in hidden)

    def columns(self, schema: str, name: str) -> tuple[list[tuple[Any, ...]], str]:
        """Its columns; and why it can't be cleaned, if it can't be opened."""
        try:
            return self.ask(f"PRAGMA {quote(schema)}.table_xinfo({quote(name)})"), ""
        except Exception as error:
            if "no such module" not in str(error):
                raise
            return [], (
                f"{error} in this connection; give the application's Engine, whose events load it"
            )

    def table(
        self, schema: str, name: str, sql: str, module: str, shape: list[tuple[Any, ...]]
    ) -> Facts:
        columns = tuple(
            Column(str(c[1]), str(c[2] or ""), affinity(str(c[2] or ""), is_strict(sql)))
            for c in shape
            if c[6] == 0  # neither generated nor hidden
        )
        full = qualified(schema, name)
        facts = Facts(
            sql=full,
            look=f"EXISTS (SELECT 1 FROM {full})",
            empty=f"DELETE FROM {full}",
            columns=columns,
            key=self.key(schema, name, sql, shape),
            module=module,
            checked="CHECK" in sql.upper(),
            identity=tuple(str(c[1]) for c in sorted(shape, key=lambda c: c[5]) if c[5]),
        )
        return as_virtual(facts, schema, name, sql) if module else facts

    def key(
        self, schema: str, name: str, sql: str, shape: list[tuple[Any, ...]]
    ) -> tuple[tuple[str, str], ...]:
        if not is_without_rowid(sql):
            taken = {str(c[1]).lower() for c in shape}
            free = next((alias for alias in ROWID if alias not in taken), "")
            return ((free, "BINARY"),) if free else ()
        for index in self.ask(f"PRAGMA {quote(schema)}.index_list({quote(name)})"):
            if index[3] == "pk":
                rows = self.ask(f"PRAGMA {quote(schema)}.index_xinfo({quote(index[1])})")
                return tuple((str(row[2]), str(row[4])) for row in rows if row[5])
        return ()

    def triggers(
        self, schema: str, name: str, triggers: list[tuple[Any, ...]]
    ) -> tuple[Trigger, ...]:
        """Those that fire when rows are deleted or inserted."""
        found = []
        for _, trigger, table, _, sql in triggers:
            if table.lower() == name.lower() and fires(sql):
                create = f"CREATE TRIGGER {quote(schema)}.{sql[len('CREATE TRIGGER ') :].lstrip()}"
                found.append(Trigger(trigger, f"DROP TRIGGER {qualified(schema, trigger)}", create))
        for table, trigger, sql in self.temporary:
            if table == name.lower() and fires(sql):
                create = f"CREATE TEMP TRIGGER {sql[len('CREATE TRIGGER ') :].lstrip()}"
                found.append(Trigger(trigger, f"DROP TRIGGER {qualified('temp', trigger)}", create))
        return tuple(found)

    def sequence(self, schema: str, table: str, key: int) -> None:
        number = len(self.sequences) + 1
        name = shown(schema, table)
        self.sequences.append(Sequence(number, schema, table, name, owner=key, users=(key,)))
        self.starts[number] = qualified(schema, "sqlite_sequence")

    def keys(
        self, schema: str, keys: dict[str, int], columns: dict[str, list[tuple[Any, ...]]]
    ) -> None:
        """The foreign keys; one to a table that is not there means nothing yet."""
        found: dict[tuple[str, int], list[tuple[Any, ...]]] = {}
        for name in columns:  # not by the function of that name: it outlives its schema's image
            for row in sorted(self.ask(f"PRAGMA {quote(schema)}.foreign_key_list({quote(name)})")):
                found.setdefault((name, row[0]), []).append(row)
        primary = {
            name.lower(): [str(c[1]) for c in sorted(shape, key=lambda c: c[5]) if c[5]]
            for name, shape in columns.items()
        }
        for (child, _), parts in found.items():
            parent = str(parts[0][2]).lower()
            if child.lower() not in keys or parent not in keys:
                continue
            ours = tuple(str(part[3]) for part in parts)
            theirs = tuple(str(part[4]) for part in parts if part[4] is not None)
            theirs = theirs or tuple(primary.get(parent, ()))
            if len(ours) == len(theirs):
                name = f"{child}({', '.join(ours)})"
                action: Any = str(parts[0][6]).lower()
                ends = keys[child.lower()], keys[parent]
                self.foreign_keys.append(ForeignKey(name, *ends, ours, theirs, action))


def shown(schema: str, name: str) -> str:
    """The name as people know it."""
    return name if schema == "main" else f"{schema}.{name}"


def fires(trigger: str) -> bool:
    """Whether the trigger may fire when rows are deleted and inserted."""
    matched = _TRIGGER.match(trigger)
    return matched is None or matched[1].upper() != "UPDATE"


def _options(sql: str) -> str:
    """What stands behind the last parenthesis of CREATE TABLE, where the options are."""
    return re.sub(r"/\*.*?\*/|--[^\n]*", " ", sql).rpartition(")")[2].upper()


def is_without_rowid(sql: str) -> bool:
    """Whether the table has no rowid."""
    return re.search(r"\bWITHOUT\s+ROWID\b", _options(sql)) is not None


def is_strict(sql: str) -> bool:
    """Whether the table is STRICT."""
    return re.search(r"\bSTRICT\b", _options(sql)) is not None


def affinity(declared: str, strict: bool) -> str:
    """The type that treats values as ``declared`` does; empty: it leaves them as they are."""
    name = declared.upper()
    if "INT" in name:
        return "INTEGER"
    if any(word in name for word in ("CHAR", "CLOB", "TEXT")):
        return "TEXT"
    if not name or "BLOB" in name or (strict and name == "ANY"):
        return ""
    return "REAL" if any(word in name for word in ("REAL", "FLOA", "DOUB")) else "NUMERIC"
