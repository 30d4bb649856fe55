"""What an SQLite database holds, as its own catalog tells it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from cleaner.dialects.sqlite.sql import BASELINE, qualified, quote
from cleaner.spi import Database, ForeignKey, Relation, Sequence

Ask = Callable[[str], list[tuple[Any, ...]]]

_NAME = r"""(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|'(?:[^']|'')*'|[^\s("'`\[]+)"""
_VIRTUAL = re.compile(
    rf"CREATE\s+VIRTUAL\s+TABLE\s+{_NAME}\s+USING\s+({_NAME})\s*(.*)", re.IGNORECASE | re.DOTALL
)
_TRIGGER = re.compile(
    rf"CREATE\s+TRIGGER\s+{_NAME}\s+(?:BEFORE\s+|AFTER\s+)?(DELETE|INSERT|UPDATE)\b", re.IGNORECASE
)
_CONTENT = re.compile(r"[(,]\s*content\s*=\s*('[^']*'|\"[^\"]*\"|[\w.]*)", re.IGNORECASE)
# Of modules that keep what they hold in tables of their own, before SQLite could say which.
_SHADOWS = {
    "fts3": ("content", "segments", "segdir", "docsize", "stat"),
    "fts4": ("content", "segments", "segdir", "docsize", "stat"),
    "fts5": ("data", "idx", "content", "docsize", "config"),
    "rtree": ("node", "rowid", "parent"),
    "rtree_i32": ("node", "rowid", "parent"),
    "geopoly": ("node", "rowid", "parent"),
}
_RTREES = ("rtree", "rtree_i32", "geopoly")
_ROWID = ("rowid", "_rowid_", "oid")


@dataclass(frozen=True)
class Column:
    """A column that can be written to. ``affinity`` is how a copy has to declare it."""

    name: str
    type: str
    affinity: str


@dataclass(frozen=True)
class Trigger:
    """A trigger, as the statements that ``drop`` it and ``create`` it again."""

    name: str
    drop: str
    create: str


@dataclass(frozen=True)
class Facts:
    """A table, as statements. ``look`` is an expression that is true where it holds rows.

    ``key`` are the columns by which a row is known again: its rowid, or a primary key, each with
    its collation. ``triggers`` are those that would fire. ``uncapturable`` says why its rows can't
    be a baseline, and is empty where they can. ``rebuild`` makes an index anew from the table that
    it is of, which is ``content``. ``identity`` are the columns that tell people which row it is.
    """

    sql: str
    look: str
    empty: str
    columns: tuple[Column, ...]
    key: tuple[tuple[str, str], ...]
    triggers: tuple[Trigger, ...] = ()
    module: str = ""
    uncapturable: str = ""
    rebuild: str = ""
    content: str = ""
    identity: tuple[str, ...] = ()

    @property
    def rows_elsewhere(self) -> bool:
        """Whether it is only an index: of rows in another table, or in none."""
        return self.empty != f"DELETE FROM {self.sql}"

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of an INSERT that puts a row back, rowid included."""
        names = [column.name for column in self.columns]
        if self.key[0][0] in _ROWID and self.module not in _RTREES:
            return (self.key[0][0], *names)
        return tuple(names)


@dataclass(frozen=True)
class Found:
    """The database, and its tables as statements."""

    database: Database
    facts: Mapping[int, Facts]
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
        return Found(database, self.facts, self.starts, self.versions)

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
        hidden = self.shadows(schema, virtual, modules)
        tables = [
            name
            for name in sorted(modules)
            if not name.lower().startswith("sqlite_") and name not in hidden
        ]
        columns: dict[str, list[tuple[Any, ...]]] = {}
        triggers = [row for row in rows if row[0] == "trigger"]
        keys: dict[str, int] = {}
        autoincrement = any(name == "sqlite_sequence" for name in modules)
        for name in tables:
            key = keys[name.lower()] = len(self.relations) + 1
            sql = modules[name][1]
            columns[name], broken = self.columns(schema, name)
            shape = columns[name]
            facts = self.table(schema, name, sql, virtual.get(name, ""), shape)
            self.facts[key] = replace(facts, triggers=self.triggers(schema, name, triggers))
            self.relations.append(
                Relation(
                    key=key,
                    schema=schema,
                    table=name,
                    name=name if schema == "main" else f"{schema}.{name}",
                    undeletable=broken or unemptied(facts),
                    untruncatable=broken or unemptied(facts),
                    bookkeeping=[(c[1], str(c[2]).upper()) for c in shape]
                    == [("version_num", "VARCHAR(32)")],
                )
            )
            if autoincrement and "autoincrement" in sql.lower():
                self.sequence(schema, name, key)
        for kind, name, *_ in rows:
            if kind == "view":
                self.relations.append(
                    Relation(
                        key=len(self.relations) + 1,
                        schema=schema,
                        table=name,
                        name=name if schema == "main" else f"{schema}.{name}",
                        kind="view",
                    )
                )
        self.keys(schema, keys, columns)

    def shadows(
        self, schema: str, virtual: Mapping[str, str], known: Iterable[str]
    ) -> frozenset[str]:
        """The tables in which virtual tables keep what they hold."""
        hidden = {
            f"{name}_{suffix}".lower()
            for name, module in virtual.items()
            for suffix in _SHADOWS.get(module, ())
        }
        if tuple(map(int, self.version.split(".")[:2])) >= (3, 37):
            hidden |= {
                str(row[1]).lower()
                for row in self.ask(f"PRAGMA {quote(schema)}.table_list")
                if row[2] == "shadow"
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
            identity=tuple(str(c[1]) for c in sorted(shape, key=lambda c: c[5]) if c[5]),
        )
        return _virtual(facts, schema, name, sql) if module else facts

    def key(
        self, schema: str, name: str, sql: str, shape: list[tuple[Any, ...]]
    ) -> tuple[tuple[str, str], ...]:
        if not is_without_rowid(sql):
            taken = {str(c[1]).lower() for c in shape}
            free = next((alias for alias in _ROWID if alias not in taken), "")
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
        name = table if schema == "main" else f"{schema}.{table}"
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


def _virtual(facts: Facts, schema: str, name: str, sql: str) -> Facts:
    """The facts of a virtual table: what it holds is asked of its module, never of its shadows."""
    content = _CONTENT.search(_arguments(sql))
    if facts.module == "fts5" and content:
        said = f"INSERT INTO {facts.sql} ({quote(name)}) VALUES"
        indexed = content[1].strip("'\"")
        return replace(
            facts,
            # It has no rows that could be deleted one by one; what is beyond 10 is its index.
            look=f"EXISTS (SELECT 1 FROM {qualified(schema, f'{name}_data')} WHERE id > 10)",
            empty=f"{said} ('delete-all')",
            content=indexed,
            rebuild=f"{said} ('rebuild')" if indexed else "",
            uncapturable="" if indexed else "an index without content can't be read",
        )
    if facts.module not in ("fts3", "fts4", "fts5", *_RTREES) or content:
        why = f"what the module {facts.module} holds may be more than its rows"
        return replace(facts, uncapturable=why)
    return facts


def _arguments(sql: str) -> str:
    matched = _VIRTUAL.match(sql)
    return matched[2] if matched else ""


def module_of(sql: str | None) -> str:
    """The module of a virtual table; empty of any other."""
    matched = _VIRTUAL.match(sql or "")
    return matched[1].strip("\"'`[]").lower() if matched else ""


def unemptied(facts: Facts) -> str:
    """Why the table can't be emptied."""
    if facts.module in ("fts3", "fts4") and facts.uncapturable:
        return f"{facts.module} has no way to empty an index whose content is elsewhere"
    return ""


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
