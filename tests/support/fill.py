"""Rows for every table of any PostgreSQL schema, from the catalogs alone.

Nothing is known of types or schemas: of many spellings, each type shows which it accepts; no CHECK
is understood, but its literals are candidates, and the server finds a combination that passes.

    python -m tests.support.fill URL [ROWS]
"""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import date, timedelta
from functools import cache
from typing import Any
from uuid import UUID

import psycopg
from hypothesis import Phase, find, settings
from hypothesis.errors import HypothesisException
from hypothesis.strategies import from_regex
from psycopg.rows import namedtuple_row
from psycopg.sql import quote

from .observe import counts

Connection = psycopg.Connection[Any]
Row = dict[str, "str | None"]  # by quoted column name, values as the server spells them

_ATTEMPTS, _ATTEMPTS_BELOW, _DEEPEST = 40, 6, 5  # a row, the parent it calls for, and theirs
_CANDIDATES = 100  # for one column under a CHECK


class CannotFillError(Exception):
    """No acceptable row was found for a table: the server's last objection."""


def fill(conn: Connection, rows: int = 3) -> dict[str, int]:
    """Add `rows` rows to every table, and advance every sequence; what each table then holds.

    A plain table, an inheritance child and each leaf of a partition tree (through its root) holds
    a row at least, or it is an error: fewer than `rows` are added where constraints allow no more.
    Rows already there stay. Every foreign key holds, which joins prove, for triggers sleep
    meanwhile. Left alone: tables of extensions, partitioned ones that have no partition. Wants a
    superuser.
    """
    with conn.transaction():
        conn.execute("SET LOCAL session_replication_role = replica")
        filler = _Filler(conn)
        filler.fill(rows)
        filler.advance_sequences()
        filler.check_keys()
        conn.execute("SET LOCAL session_replication_role = DEFAULT")
    held = counts(conn)
    return {table.name: held[table.name] for table in filler.tables.values()}


# --- the schema ---------------------------------------------------------------------------------
@dataclass
class _Column:
    name: str
    type: str
    nullable: bool
    automatic: bool  # the default takes it from a sequence
    labels: list[str]
    hints: str  # the text of every CHECK on it


@dataclass
class _Key:
    name: str
    columns: list[str]
    parent: int
    parent_columns: list[str]
    match_full: bool
    validated: bool


@dataclass
class _Table:
    oid: int
    name: str
    kind: str
    root: int
    bound: str | None
    columns: dict[str, _Column] = field(default_factory=dict)
    keys: list[_Key] = field(default_factory=list)
    checks: list[tuple[set[str], list[str]]] = field(default_factory=list)

    @property
    def relation(self) -> str:
        return self.name if self.kind == "p" else f"ONLY {self.name}"

    def add_check(self, columns: set[str], expression: str) -> None:
        """Keep the checks that share a column together: only as a group have they a solution."""
        expressions = [expression]
        for other in [other for other in self.checks if other[0] & columns]:
            self.checks.remove(other)
            columns, expressions = columns | other[0], expressions + other[1]
        self.checks.append((columns, expressions))
        for name in columns & self.columns.keys():
            self.columns[name].hints += expression


_OURS = """nspname !~ '^pg_' AND nspname NOT IN ('information_schema', 'cleaner_baseline')
AND NOT EXISTS (SELECT
FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = c.oid AND deptype = 'e')"""
_TABLES = f"""
SELECT c.oid, format('%I.%I', nspname, relname) AS name, relkind AS kind,
       CASE WHEN relispartition THEN pg_partition_root(c.oid)::oid ELSE c.oid END AS root,
       pg_get_partition_constraintdef(c.oid) AS bound
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'p') AND {_OURS} ORDER BY nspname, relname"""
# Each column's type leads through its domains and arrays to what they are made of.
_COLUMNS = """
WITH RECURSIVE made AS (
    SELECT attrelid, attnum, atttypid AS type FROM pg_attribute
    WHERE attrelid = ANY ({tables}) AND attnum > 0
    UNION SELECT attrelid, attnum, CASE typtype WHEN 'd' THEN typbasetype ELSE typelem END
    FROM made JOIN pg_type t ON t.oid = type WHERE typtype = 'd' OR typcategory = 'A'
), details AS (
    SELECT attrelid, attnum, string_agg(pg_get_constraintdef(k.oid), ' ') AS hints,
           array_agg(enumlabel::text ORDER BY enumsortorder) FILTER (WHERE e.oid > 0) AS labels
    FROM made LEFT JOIN pg_enum e ON enumtypid = type LEFT JOIN pg_constraint k ON contypid = type
    GROUP BY 1, 2)
SELECT attrelid, quote_ident(attname) AS name, format_type(atttypid, atttypmod) AS type,
       NOT (attnotnull OR typnotnull) AS nullable, coalesce(labels, '{{}}') AS labels,
       coalesce(hints, '') AS hints, attidentity <> ''
           OR coalesce(pg_get_expr(adbin, adrelid) ~ 'nextval\\(', false) AS automatic
FROM pg_attribute a JOIN details USING (attrelid, attnum) JOIN pg_type t ON t.oid = atttypid
LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
WHERE NOT attisdropped AND attgenerated = '' ORDER BY attrelid, attnum"""
_NAMES = """ARRAY(SELECT quote_ident(attname) FROM unnest({}) WITH ORDINALITY u(number, at)
JOIN pg_attribute ON attrelid = {} AND attnum = number ORDER BY at)"""
_CHECKS = f"""
SELECT conrelid, {_NAMES.format("conkey", "conrelid")} AS columns,
       pg_get_expr(conbin, conrelid) AS expression
FROM pg_constraint WHERE contype = 'c' AND conrelid = ANY ({{tables}}) ORDER BY oid"""
# A key to a partitioned table casts a shadow on each partition: its parent refers elsewhere.
_KEYS = f"""
SELECT k.conrelid, k.conname AS name, {_NAMES.format("k.conkey", "k.conrelid")} AS columns,
       k.confrelid AS parent, {_NAMES.format("k.confkey", "k.confrelid")} AS parent_columns,
       k.confmatchtype = 'f' AS match_full, k.convalidated AS validated
FROM pg_constraint k LEFT JOIN pg_constraint above ON above.oid = k.conparentid
WHERE k.contype = 'f' AND k.conrelid = ANY ({{tables}})
  AND coalesce(above.confrelid, k.confrelid) = k.confrelid
ORDER BY cardinality(k.conkey) DESC, k.oid"""
_SEQUENCES = f"""
SELECT format('SELECT nextval(%s)', c.oid) AS query
FROM pg_class c JOIN pg_namespace n ON n.oid = relnamespace WHERE relkind = 'S' AND {_OURS}"""


class _Filler:
    """The database's tables, and rows for them."""

    def __init__(self, conn: Connection) -> None:
        self.conn = conn
        self.tables = {row.oid: _Table(**row._asdict()) for row in self.query(_TABLES)}
        self.serial: dict[int, int] = {}  # by root: counts on from the rows there
        self.spelling: dict[str, int] = {}  # by type: the first that it accepted
        self.accepted: dict[tuple[str, str], str | None] = {}
        oids = f"'{{{','.join(map(str, self.tables))}}}'::oid[]"
        for row in self.query(_COLUMNS.format(tables=oids)):
            self.tables[row.attrelid].columns[row.name] = _Column(**_rest(row, "attrelid"))
        for row in self.query(_CHECKS.format(tables=oids)):
            self.tables[row.conrelid].add_check(set(row.columns), row.expression)
        for row in self.query(_KEYS.format(tables=oids)):
            table = self.tables[row.conrelid]
            if row.parent in self.tables and table.columns.keys() >= set(row.columns):
                table.keys.append(_Key(**_rest(row, "conrelid")))
        for table in self.tables.values():
            if table.bound:
                words = {name for name in table.columns if _mentions(table.bound, name)}
                table.add_check(words, table.bound)

    def query(self, query: str) -> list[Any]:
        return self.conn.cursor(row_factory=namedtuple_row).execute(query.encode()).fetchall()

    # --- which rows
    def fill(self, rows: int) -> None:
        refused: dict[str, CannotFillError] = {}
        order = list(self.in_order())
        for table in order * rows:
            try:
                if table.name not in refused:
                    self.insert(table, {})
            except CannotFillError as error:
                refused[table.name] = error
        for name, refusal in refused.items():
            if not self.query(f"SELECT FROM ONLY {name} LIMIT 1"):
                raise refusal

    def in_order(self) -> Iterator[_Table]:
        """Parents first where there is such an order, else by the fewest mandatory parents."""
        waiting = [table for table in self.tables.values() if table.kind == "r"]

        def missing(table: _Table, absent: set[int]) -> tuple[int, int]:
            keys = [key for key in table.keys if self.tables[key.parent].root in absent]
            strict = [k for k in keys if not any(table.columns[c].nullable for c in k.columns)]
            return len(strict), len(keys)

        while waiting:
            absent = {table.root for table in waiting}
            waiting.remove(first := min(waiting, key=lambda t: missing(t, absent - {t.root})))
            yield first

    def insert(self, table: _Table, given: Row, depth: int = 0) -> None:
        """One more row, with the values given, and the parents it calls for."""
        into = self.tables[table.root]
        leaves = [t for t in self.tables.values() if t.kind == "r" and t.root == table.root]
        objection: Exception | None = None
        for attempt in range(_ATTEMPTS_BELOW if depth else _ATTEMPTS):
            leaf = table if table.kind == "r" or not leaves else leaves[attempt % len(leaves)]
            try:
                with self.conn.transaction():
                    row, wanted = self.compose(leaf, given, attempt)
                    self.write(into, row)
                    for parent, values in wanted:
                        if depth == _DEEPEST:
                            raise CannotFillError("it has parents upon parents")
                        self.insert(self.tables[parent], values, depth + 1)
                return
            except psycopg.OperationalError:
                raise
            except (psycopg.Error, CannotFillError) as error:
                objection = error
        raise CannotFillError(f"{table.name}: {objection}") from objection

    def write(self, into: _Table, row: Row) -> None:
        values = f"({', '.join(row)}) OVERRIDING SYSTEM VALUE VALUES ({_list(row.values())})"
        insert = f"INSERT INTO {into.name} {values if row else 'DEFAULT VALUES'}"
        if self.conn.execute(insert.encode()).rowcount != 1:
            raise CannotFillError("a trigger or a rule took the row away")

    def compose(self, table: _Table, given: Row, attempt: int) -> tuple[Row, list[tuple[int, Row]]]:
        """A row that should do, and the rows that its foreign keys still call for.

        Attempts take turns: the keys choose and the checks follow, or the other way round; a row
        may be its own parent, or not; late ones leave keys NULL and spell out serial columns.
        """
        if table.root not in self.serial:
            name = self.tables[table.root].name
            self.serial[table.root] = self.query(f"SELECT count(*) FROM {name}")[0].count
        self.serial[table.root] += 1
        number = self.serial[table.root]
        draw = random.Random(f"{table.name} {number} {attempt}")
        row, wanted = dict(given), list[tuple[int, Row]]()
        if attempt % 2:
            self.satisfy_checks(table, row, number, draw if attempt > 1 else None)
        for key in table.keys:
            if attempt > 8 and draw.random() < 0.4:
                self.unset(table, key, row)
            more = self.refer(table, key, row, number, draw, own=attempt % 4 < 2)
            wanted += [one for one in more if one not in wanted]
        if not attempt % 2:
            self.satisfy_checks(table, row, number, draw if attempt > 1 else None)
        for name, column in table.columns.items():
            if name not in row and (attempt > 12 or not column.automatic):
                row[name] = self.value(column, number)
        return row, wanted

    # --- foreign keys
    def refer(
        self, table: _Table, key: _Key, row: Row, number: int, draw: random.Random, own: bool
    ) -> list[tuple[int, Row]]:
        """Refer to a row there is, or else to nothing, or to itself, or to one that is wanted."""
        parent = self.tables[key.parent]
        pairs = dict(zip(key.columns, key.parent_columns, strict=True))
        known = {theirs: row[ours] for ours, theirs in pairs.items() if ours in row}
        if None in known.values():
            if key.match_full:
                row.update(dict.fromkeys(key.columns))
            return []
        test = [f"{theirs} = {_list([value])}" for theirs, value in known.items()]
        test += [f"{theirs} IS NOT NULL" for theirs in key.parent_columns]
        found = self.query(
            f"SELECT ARRAY[{', '.join(f'{c}::text' for c in key.parent_columns)}] AS key"
            f" FROM {parent.relation} WHERE {' AND '.join(test)} LIMIT 100"
        )
        if found:
            row.update(zip(key.columns, draw.choice(found).key, strict=True))
            return []
        if self.unset(table, key, row):
            return []
        values = {
            theirs: known[theirs] if theirs in known else self.value(column, number)
            for theirs, column in ((c, parent.columns[c]) for c in key.parent_columns)
        }
        row.update((ours, values[theirs]) for ours, theirs in pairs.items())
        if (
            own
            and parent.root == table.root
            and all(row.setdefault(name, value) == value for name, value in values.items())
        ):
            return []
        return [(key.parent, values)]

    def unset(self, table: _Table, key: _Key, row: Row) -> bool:
        """Refer to nothing, if the key's columns that are still free may be NULL."""
        free = [c for c in key.columns if c not in row and table.columns[c].nullable]
        if not free or (key.match_full and len(free) < len(key.columns)):
            return False
        row.update(dict.fromkeys(free))
        return True

    def check_keys(self) -> None:
        """Every foreign key holds for every row, by a join of our own: it slept during the fill."""
        for table in self.tables.values():
            for key in table.keys:
                joined = zip(key.columns, key.parent_columns, strict=True)
                match = " AND ".join(f"p.{theirs} = c.{ours}" for ours, theirs in joined)
                nulls = f"num_nulls({', '.join(f'c.{name}' for name in key.columns)})"
                applies = f"{nulls} < {len(key.columns) if key.match_full else 1}"
                orphans = self.query(
                    f"SELECT count(*) FROM {table.relation} c WHERE {applies} AND NOT EXISTS"
                    f" (SELECT FROM {self.tables[key.parent].relation} p WHERE {match})"
                )[0].count
                if orphans and key.validated:
                    raise CannotFillError(f"{table.name}: {orphans} rows violate {key.name}")

    # --- values
    def value(self, column: _Column, number: int) -> str | None:
        """The number as the column's type spells it; NULL if the type accepts nothing we know."""
        spellings = _spellings(number, column.labels)
        first = self.spelling.get(column.type, 0)
        for at in [*range(first, len(spellings)), *range(first)]:
            accepted = self.accept(column, spellings[at])
            if accepted is not None:
                self.spelling.setdefault(column.type, at)
                return accepted
        for hint in _hints(column.hints):
            accepted = self.accept(column, hint)
            if accepted is not None:
                return accepted
        return None

    def accept(self, column: _Column, text: str) -> str | None:
        """The value as the column would give it back, or None if it wouldn't take it."""
        if (column.type, text) not in self.accepted:
            try:
                with self.conn.transaction():
                    done = self.query(f"SELECT CAST({_list([text])} AS {column.type})::text AS v")
                self.accepted[column.type, text] = done[0].v
            except psycopg.Error:
                self.accepted[column.type, text] = None
        return self.accepted[column.type, text]

    def satisfy_checks(
        self, table: _Table, row: Row, number: int, shuffle: random.Random | None
    ) -> None:
        """Values that pass each group of checks: the server tries the candidates' combinations."""
        for names, expressions in table.checks:
            if not names or not names <= table.columns.keys():
                continue  # on a generated column, say: up to the INSERT
            sources: list[str] = []
            for name in sorted(names):
                column = table.columns[name]
                tried = [row[name]] if name in row else self.candidates(column, number, shuffle)
                values = ", ".join(f"({_list([value])})" for value in tried)
                sources.append(
                    f"(SELECT v::{column.type} AS {name} FROM (VALUES {values}) _(v))"
                    f" _{len(sources)}"
                )
            found = self.query(
                f"SELECT ARRAY[{', '.join(f'{name}::text' for name in sorted(names))}] AS solution"
                f" FROM {' CROSS JOIN '.join(sources)}"
                f" WHERE {' AND '.join(f'({e}) IS NOT FALSE' for e in expressions)} LIMIT 1"
            )
            if not found:
                raise CannotFillError(f"nothing passes {' AND '.join(expressions)[:200]}")
            row.update(zip(sorted(names), found[0].solution, strict=True))

    def candidates(
        self, column: _Column, number: int, shuffle: random.Random | None
    ) -> list[str | None]:
        generic = [self.value(column, number + step) for step in range(12)]
        other = _hints(column.hints) + _spellings(1, column.labels)
        tried = generic[:3] + [self.accept(column, text) for text in other] + generic
        values = list(dict.fromkeys(value for value in tried if value is not None))
        if shuffle:
            shuffle.shuffle(values)
        return [*values[:_CANDIDATES], *([None] if column.nullable else [])]

    def advance_sequences(self) -> None:
        for row in self.query(_SEQUENCES):
            try:
                with self.conn.transaction():
                    self.query(row.query)
            except psycopg.errors.SequenceGeneratorLimitExceeded:
                pass  # it has been moved all it can


# --- spelling -----------------------------------------------------------------------------------
def _rest(row: Any, without: str) -> dict[str, Any]:
    return {name: value for name, value in row._asdict().items() if name != without}


def _list(values: Any) -> str:
    return ", ".join("NULL" if value is None else quote(value) for value in values)


def _mentions(expression: str, name: str) -> bool:
    return re.search(rf"(?<!\w){re.escape(name)}(?!\w)", expression) is not None


def _spellings(n: int, labels: list[str]) -> list[str]:
    """What some type might take for the number `n`: plain, in an array, in a range."""
    day, later = (str(date(2020, 1, 1) + timedelta(days=n + d)) for d in (0, 1))
    mac = ":".join(f"{n:012x}"[at : at + 2] for at in range(0, 12, 2))
    ranges = [f"[{n},{n + 1})", f"[{day},{later})"]
    points = [f"({n},0)", f"({n},0),(0,1)", f"[({n},0),(0,1)]", f"<({n},0),1>", f"{{1,-1,{n}}}"]
    plain = [labels[n % len(labels)]] if labels else []
    plain += [str(n), str(n % 10), str(n % 2), f"0.{n}", day, f"{n % 24:02}:{n % 60:02}"]
    plain += [str(UUID(int=n)), f'{{"n": {n}}}', f"[{n}]", f"10.0.{n // 256 % 256}.{n % 256}", mac]
    plain += [f"{n:b}", *ranges, *points, f"0/{n:x}", f"(0,{n})", f"{n}:{n}:", f"k=>{n}"]
    plain += [f"<n>{n}</n>", "pg_class", f"u{n}@example.org", f"https://example.org/{n}"]
    arrays = [json.dumps([value]).replace("[", "{", 1)[:-1] + "}" for value in plain]
    multiranges = [f"{{{value}}}" for value in ranges]
    composites = [f"({',' * arity})" for arity in range(1, 12)]
    return plain + multiranges + arrays + composites


@cache
def _hints(expression: str) -> list[str]:
    """What the literals of a CHECK suggest: themselves, neighbours, lengths, patterns, JSON."""
    literal = r"'((?:[^']|'')*)'"
    texts = [text.replace("''", "'") for text in re.findall(literal, expression)]
    bare = re.sub(literal, " ", expression)
    numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", " ".join([bare, *texts]))
    hints = texts + numbers
    hints += [spelled for text in texts for spelled in (re.sub("[%_]", "x", text), f"x{text}x")]
    hints += [re.sub(r"\d+", lambda m: str(int(m[0]) + 1), text) for text in texts]
    patterns = rf"(?<![~!])~\*? (?:similar_to_escape\()?{literal}"
    hints += [_sample(pattern) for pattern in re.findall(patterns, expression)]
    for number in map(float, numbers):
        hints += [f"{number + step:g}" for step in (-1, 1, 0.5)]
        hints += [c * int(n) for n in (number, number + 1) if 0 < n <= 1000 for c in "xX1"]
    hints += [f"{year}-01-01" for year in numbers if re.fullmatch("(19|20)..", year)]
    keys = dict.fromkeys(re.findall(rf"(?:->>?|\?) {literal}", expression))
    hints += [json.dumps({key: text}) for text in dict.fromkeys(texts) for key in keys]
    return list(dict.fromkeys(hints))


def _sample(pattern: str) -> str:
    """The simplest string that the regular expression matches; itself, where that's beyond us."""
    for posix, python in {
        "alpha": "a-zA-Z",
        "digit": "0-9",
        "lower": "a-z",
        "upper": "A-Z",
    }.items():
        pattern = pattern.replace(f"[:{posix}:]", python)
    at_once = settings(max_examples=1, phases=[Phase.generate], derandomize=True, database=None)
    try:
        return find(from_regex(pattern), lambda _: True, settings=at_once)
    except (re.error, HypothesisException):
        return pattern


def _main(url: str, rows: str = "3") -> None:
    with psycopg.connect(re.sub(r"^(\w+)\+\w+://", r"\1://", url)) as conn:
        held = fill(conn, int(rows))
    width = max(map(len, held), default=0)
    for name, count in held.items():
        print(f"{name:<{width}} {count:>6}")
    print(f"{len(held)} tables, {min(held.values(), default=0)} rows at least")


if __name__ == "__main__":
    _main(*sys.argv[1:])
