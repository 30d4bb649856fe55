"""Random PostgreSQL schemas with rows in them, for hypothesis.

What applications have and what breaks cleaners: foreign keys in every graph, with every action,
partition trees, inheritance, odd names, sequences of all sorts, triggers. Simple choices come
first, so that a failure shrinks to few tables with plain names.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

from hypothesis import strategies as st

PLAIN_NAMES = ["a", "b", "c", "d", "e"]
ODD_NAMES = [
    "MixedCase", "mixedcase", "user", "order", "select", "two words", "dot.ted", ".", 'quo"te', '"',
    "apo'strophe", "100%", "%s", "%(name)s", ":colon", "a::b", "$1", "$$", "back\\slash", "{brace}",
    "semi;colon", "--", "/*", "?", "star*", "pg_class", "1st", " ", "tab\t", "new\nline", "ünï",
    "表", "🐘", "x" * 63, "x" * 62 + "y", "é" * 31 + "z", "E'", 'U&"d"', "a,b", "(a)", "[a]",
]  # fmt: skip
SCHEMAS = ["app", "other", "User", "odd %s \"schema\".'x'", "表.🐘 :p $1 \\"]
RESERVED = {"user", "order", "select"}
TYPES = ["integer", "bigint", "varchar(40)", "uuid"]  # none that would bring a TOAST table: slow
IDS = [
    "",
    "always",
    "by default",
    "serial",
    "shared",
]  # where the first key column's values are from
SEQUENCES = ["", " START 1000 INCREMENT 5", " INCREMENT -3", " START 7 CACHE 10",
             " MINVALUE 0 MAXVALUE 90 START 90 INCREMENT -1 CYCLE"]  # fmt: skip
PARTITIONS = ["hash", "list", "range", "deep"]
ACTIONS = ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"]
TIMES = ["", " DEFERRABLE", " DEFERRABLE INITIALLY DEFERRED"]


@dataclass(frozen=True)
class Schema:
    """Statements that create, fill and drop a random schema; each part may be joined by ``;``.

    The rows need no privilege, keep every foreign key at any moment, and leave some tables empty.
    Names are quoted and qualified as the server would (``format('%I.%I')``); percent signs are
    single: send the statements without parameters. `features` says what to expect: ``cycle``,
    ``partitions``, ``inheritance``, ``unlogged``, ``deferred``, ``keyless``, ``view``,
    ``materialized view``, ``audit trigger`` (a delete writes a row elsewhere), ``swallow trigger``
    (a delete does nothing).
    """

    ddl: tuple[str, ...]
    rows: tuple[str, ...]
    drop: tuple[str, ...]
    tables: tuple[str, ...]
    sequences: tuple[str, ...]
    features: frozenset[str]


def schemas(max_tables: int = 6) -> st.SearchStrategy[Schema]:
    """Schemas of up to `max_tables` tables, besides partitions, inheritance children and logs."""
    return _schemas(max_tables)


@st.composite
def _schemas(draw: st.DrawFn, max_tables: int) -> Schema:
    name = st.sampled_from(PLAIN_NAMES) | st.sampled_from(ODD_NAMES)
    table = st.builds(
        _Table,
        schema=st.integers(0, 2),
        label=name,
        types=st.lists(st.sampled_from(TYPES), min_size=1, max_size=2),
        unique=st.booleans(),
        ids=st.sampled_from(IDS),
        options=st.sampled_from(SEQUENCES),
        partitions=st.sampled_from([""] * 10 + PARTITIONS),
        unlogged=st.booleans(),
        keyless=st.booleans(),
        heir=st.sampled_from([False] * 6 + [True]),
        trigger=st.sampled_from([""] * 20 + ["audit", "audit", "swallow"]),
        view=st.sampled_from([""] * 14 + ["view", "materialized view"]),
        rows=st.sampled_from([0, 1, 1, 2, 2, 3]),
    )
    names = draw(st.lists(st.sampled_from(SCHEMAS), min_size=1, max_size=3, unique=True))
    tables = draw(
        st.lists(
            table,
            min_size=1,
            max_size=max_tables,
            unique_by=lambda t: (t.schema % len(names), t.label),
        )
    )
    key = st.builds(
        _Key,
        child=st.integers(0, len(tables) - 1),
        parent=st.integers(0, len(tables) - 1),
        to_unique=st.booleans(),
        own=st.booleans(),
        nullable=st.booleans(),
        action=st.sampled_from(ACTIONS),
        time=st.sampled_from(TIMES),
        full=st.booleans(),
        shift=st.integers(0, 2),
    )
    ring = draw(st.integers(0, len(tables)))  # chance alone makes no long cycles
    keys = draw(st.lists(key, min_size=ring, max_size=ring + 4))
    keys[:ring] = [replace(k, child=at, parent=(at + 1) % ring) for at, k in enumerate(keys[:ring])]
    return _Builder(names, tables, keys).build(loose=draw(st.integers(0, 2)))


@dataclass(frozen=True)
class _Table:
    schema: int
    label: str
    types: list[str]
    unique: bool
    ids: str
    options: str
    partitions: str
    unlogged: bool
    keyless: bool
    heir: bool
    trigger: str
    view: str
    rows: int


@dataclass(frozen=True)
class _Key:
    child: int
    parent: int
    to_unique: bool
    own: bool
    nullable: bool
    action: str
    time: str
    full: bool
    shift: int


class _Builder:
    """Writes the SQL; knows what PostgreSQL refuses, and which rows the keys allow."""

    def __init__(self, names: list[str], tables: list[_Table], keys: list[_Key]) -> None:
        self.schemas = [_identifier(name) for name in names]
        self.specs, self.keys = tables, keys
        self.names = [self.qualified(table.schema, table.label) for table in tables]
        self.referenced = {key.parent for key in keys}
        self.unlogged = {n for n, t in enumerate(tables) if t.unlogged and not t.partitions}
        while wrong := {k.parent for k in keys if k.child not in self.unlogged} & self.unlogged:
            self.unlogged -= wrong  # only an unlogged table may refer to one
        self.counts = [table.rows for table in tables]
        while short := [k for k in keys if self.counts[k.parent] < self.parents_needed(k)]:
            for key in short:
                self.counts[key.parent] = self.parents_needed(key)
        self.ddl = [f"CREATE SCHEMA {schema}" for schema in self.schemas]
        self.inserts: list[str] = []
        self.afterwards: list[str] = []
        self.tables: list[str] = []
        self.sequences: list[str] = []
        self.features: set[str] = set()

    def build(self, loose: int) -> Schema:
        """The schema, with that many sequences which nothing uses."""
        for n in range(loose):
            self.sequence(n, f"loose{n}", SEQUENCES[n + 1])
        for n in range(len(self.specs)):
            self.create(n)
        for n in range(len(self.keys)):
            self.refer(n)
        for n in range(len(self.specs)):
            self.attach(n)
        moves = [f"nextval({_literal(sequence)})" for sequence in self.sequences[::2]]
        rows = [f"SELECT {', '.join(moves)}"] if moves else []
        if self.inserts:
            # One statement: the keys are checked at its end, so that rows may refer in cycles.
            *others, last = self.inserts
            ctes = ", ".join(f"_{n} AS ({insert})" for n, insert in enumerate(others))
            rows.append(f"WITH {ctes} {last}" if ctes else last)
        return Schema(
            ddl=tuple(self.ddl),
            rows=(*rows, *self.afterwards),
            drop=(f"DROP SCHEMA IF EXISTS {', '.join(self.schemas)} CASCADE",),
            tables=tuple(self.tables),
            sequences=tuple(self.sequences),
            features=frozenset(self.features | self.graph_features()),
        )

    def graph_features(self) -> set[str]:
        edges = {(key.child, key.parent) for key in self.keys}
        while ends := {parent for _, parent in edges} - {child for child, _ in edges}:
            edges = {(child, parent) for child, parent in edges if parent not in ends}
        deferred = any(key.time.endswith("DEFERRED") for key in self.keys)
        return {*(["cycle"] if edges else []), *(["deferred"] if deferred else [])}

    # --- names and values
    def qualified(self, schema: int, label: str) -> str:
        return f"{self.schemas[schema % len(self.schemas)]}.{_identifier(label)}"

    def decorated(self, n: int, word: str) -> str:
        """A name as plain or as odd as the table's."""
        return word if self.specs[n].label in PLAIN_NAMES else f"{word} %s\"':x.$1\\"

    def columns(self, n: int) -> list[tuple[str, str]]:
        """The columns of a table's first key, with their types."""
        types = enumerate(self.specs[n].types)
        return [(_identifier(self.decorated(n, f"k{at}")), type_) for at, type_ in types]

    def unique_column(self, n: int) -> list[tuple[str, str]]:
        """The column of a table's second key, if it has one: a partitioned one can't."""
        table = self.specs[n]
        if not table.unique or table.partitions:
            return []
        return [(_identifier(self.decorated(n, "u")), table.types[0])]

    def target(self, key: _Key) -> list[tuple[str, str]]:
        return (key.to_unique and self.unique_column(key.parent)) or self.columns(key.parent)

    def types(self, key: _Key) -> list[str]:
        return [type_ for _, type_ in self.target(key)]

    def is_own(self, key: _Key) -> bool:
        """Whether the child's own key is the foreign key, as in joined-table inheritance."""
        same = self.types(key) == self.specs[key.child].types
        return key.own and same and key.child != key.parent

    def parents_needed(self, key: _Key) -> int:
        if self.is_own(key):
            return self.counts[key.child]
        return 0 if key.nullable else min(1, self.counts[key.child])

    def key_columns(self, n: int) -> list[str]:
        key = self.keys[n]
        if self.is_own(key):
            return [column for column, _ in self.columns(key.child)]
        width = range(len(self.target(key)))
        return [_identifier(self.decorated(key.child, f"f{n}_{at}")) for at in width]

    def key_values(self, key: _Key, row: int) -> list[str]:
        types, parents = self.types(key), self.counts[key.parent]
        if key.nullable and (parents == 0 or (row + key.shift) % 3 == 0):
            # A key that is NULL in part refers to nothing, whatever the rest of it says.
            filled = [] if key.full else types[1:]
            nulls = len(types) - len(filled)
            return ["NULL"] * nulls + [_value(type_, 99) for type_ in filled]
        return [_value(type_, (row + key.shift) % parents + 1) for type_ in types]

    # --- statements
    def sequence(self, schema: int, label: str, options: str) -> str:
        name = self.qualified(schema, label)
        if name not in self.sequences:
            self.ddl.append(f"CREATE SEQUENCE {name}{options}")
            self.sequences.append(name)
        return name

    def table(self, statement: str, name: str, rest: str) -> None:
        self.ddl.append(f"CREATE {statement} {name} {rest}")
        self.tables.append(name)

    def insert(self, name: str, columns: list[tuple[str, str]], rows: list[list[str]]) -> None:
        named = ", ".join(column for column, _ in columns)
        values = ", ".join(f"({', '.join(row)})" for row in rows)
        if rows:
            self.inserts.append(
                f"INSERT INTO {name} ({named}) OVERRIDING SYSTEM VALUE VALUES {values}"
            )

    def ids(self, n: int) -> tuple[str, str]:
        """Where the first column's values come from, and what to run once the table is there."""
        table, label = self.specs[n], self.decorated(n, f"seq{n}")
        if not table.ids or table.types[0] not in ("integer", "bigint"):
            return "", ""
        if table.ids == "shared":
            return f" DEFAULT nextval({_literal(self.sequence(0, 'shared', ' START 50'))})", ""
        if table.ids == "serial":
            name = self.sequence(table.schema, label, table.options)
            owner = f"{self.names[n]}.{self.columns(n)[0][0]}"
            return f" DEFAULT nextval({_literal(name)})", f"ALTER SEQUENCE {name} OWNED BY {owner}"
        self.sequences.append(name := self.qualified(table.schema, label))
        options = f"SEQUENCE NAME {name}{table.options}"
        return f" GENERATED {table.ids.upper()} AS IDENTITY ({options})", ""

    def create(self, n: int) -> None:
        """The table, with its partitions or its heir, and their rows."""
        table, name = self.specs[n], self.names[n]
        keys = {at: key for at, key in enumerate(self.keys) if key.child == n}
        apart = {at: key for at, key in keys.items() if not self.is_own(key)}
        ids, afterwards = self.ids(n)
        columns = self.columns(n) + self.unique_column(n)
        parts = [f"{column} {type_}" for column, type_ in columns]
        parts[0] += ids
        for at, key in apart.items():
            default = " DEFAULT {}" if key.shift else ""
            null = "" if key.nullable else " NOT NULL"
            for column, type_ in zip(self.key_columns(at), self.types(key), strict=True):
                parts.append(f"{column} {type_}{default.format(_value(type_, 1))}{null}")
                columns.append((column, type_))
        if n in self.referenced or not table.keyless:
            parts.append(f"PRIMARY KEY ({', '.join(column for column, _ in self.columns(n))})")
        else:
            self.features.add("keyless")
        parts += [f"UNIQUE ({column})" for column, _ in self.unique_column(n)]
        method = "range" if table.partitions == "deep" else table.partitions
        by = f" PARTITION BY {method} ({columns[0][0]})" if method else ""
        if n in self.unlogged:
            self.features.add("unlogged")
        kind = "UNLOGGED TABLE" if n in self.unlogged else "TABLE"
        self.table(kind, name, f"({', '.join(parts)}){by}")
        self.ddl += [afterwards] if afterwards else []
        self.partition(n)

        rows = []
        unknown = ids and n not in self.referenced and apart == keys  # nobody needs to know its ids
        for at in range(1, self.counts[n] + 1):
            row = [_value(type_, at) for _, type_ in self.columns(n) + self.unique_column(n)]
            row[0] = "DEFAULT" if unknown else row[0]
            rows.append(row + [v for key in apart.values() for v in self.key_values(key, at)])
        self.insert(name, columns, rows)
        if table.heir and not table.partitions:
            heir = self.qualified(table.schema + 1, self.decorated(n, f"heir{n}"))
            self.table("TABLE", heir, f"(extra integer) INHERITS ({name})")
            self.insert(heir, columns, [[_value(type_, 1001) for _, type_ in columns]])
            self.features.add("inheritance")

    def partition(self, n: int) -> None:
        """Partitions for any row; a deep tree's second has those after it below it."""
        table, (column, type_) = self.specs[n], self.columns(n)[-1]
        one, two = (_value(table.types[0], row) for row in (1, 2))
        below = f"FOR VALUES FROM (MINVALUE) TO ({two})"
        above = f"FOR VALUES FROM ({two}) TO (MAXVALUE)"
        bounds = {
            "hash": [f"FOR VALUES WITH (MODULUS 2, REMAINDER {rest})" for rest in (0, 1)],
            "list": [f"FOR VALUES IN ({one})", "DEFAULT"],
            "range": [below, above],
            "deep": ["DEFAULT", f"{below} PARTITION BY LIST ({column})",
                     f"FOR VALUES IN ({_value(type_, 1)})", "DEFAULT"],
        }.get(table.partitions, [])  # fmt: skip
        labels = [self.decorated(n, f"part{n}_{at}") for at in range(len(bounds))]
        names = [self.qualified(table.schema + at, label) for at, label in enumerate(labels)]
        for at, bound in enumerate(bounds):
            over = names[1] if at > 1 else self.names[n]
            self.table("TABLE", names[at], f"PARTITION OF {over} {bound}")
            self.features.add("partitions")

    def refer(self, n: int) -> None:
        key = self.keys[n]
        target = ", ".join(column for column, _ in self.target(key))
        self.ddl.append(
            f"ALTER TABLE {self.names[key.child]} ADD FOREIGN KEY"
            f" ({', '.join(self.key_columns(n))}) REFERENCES {self.names[key.parent]} ({target})"
            f"{' MATCH FULL' if key.full else ''} ON DELETE {key.action}{key.time}"
        )

    def attach(self, n: int) -> None:
        """The table's trigger and view."""
        table, name = self.specs[n], self.names[n]
        place, label = table.schema + 1, self.decorated(n, f"of{n}")
        if table.trigger:
            body, when = "BEGIN RETURN NULL; END", "BEFORE"
            if table.trigger == "audit":
                log = self.qualified(place, self.decorated(n, f"log{n}"))
                self.sequences.append(ids := self.qualified(place, self.decorated(n, f"logseq{n}")))
                identity = f"GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME {ids})"
                self.table("TABLE", log, f"(id bigint {identity}, what varchar(63))")
                self.insert(log, [("what", "")], [["'before'"]] * (table.rows % 2))
                body = f"BEGIN INSERT INTO {log} (what) VALUES (TG_TABLE_NAME); RETURN NULL; END"
                when = "AFTER"
            function = f"{self.qualified(place, label)}()"
            self.ddl += [
                f"CREATE FUNCTION {function} RETURNS trigger LANGUAGE plpgsql AS {_literal(body)}",
                f"CREATE TRIGGER {_identifier(label)} {when} DELETE ON {name}"
                f" FOR EACH ROW EXECUTE FUNCTION {function}",
            ]
            self.features.add(f"{table.trigger} trigger")
        if table.view:
            view = self.qualified(place, self.decorated(n, f"view{n}"))
            self.ddl.append(f"CREATE {table.view} {view} AS SELECT * FROM {name}")
            self.features.add(table.view)
            if table.view == "materialized view":
                self.afterwards.append(f"REFRESH MATERIALIZED VIEW {view}")


def _identifier(name: str) -> str:
    if re.fullmatch("[a-z_][a-z0-9_]*", name) and name not in RESERVED:
        return name
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def _value(type_: str, n: int) -> str:
    """The number as a value of one of TYPES, in SQL."""
    spelled = {"varchar(40)": f"'it''s %s {n}'", "uuid": f"'{n:08}-0000-0000-0000-000000000000'"}
    return spelled.get(type_, str(n))
