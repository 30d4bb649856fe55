"""What is asked of ``information_schema``, and only when something has changed.

Each answer is small rows of text; :mod:`.catalog` reads them. None of them looks at another
database's tables unless a foreign key somewhere on the server crosses databases.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from zlib import crc32

from cleaner.dialects.mysql.flavour import MySQL
from cleaner.dialects.strings import literals

Rows = list[tuple[Any, ...]]
Execute = Callable[[str], Rows]
BASELINE = "cleaner_baseline__"  # the table that lists what was captured; copies have a number

_TABLES = """SELECT TABLE_NAME, TABLE_TYPE, ENGINE FROM information_schema.TABLES
 WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME"""
# The server counts a CREATE TABLE as it begins, and it may take a while.
NAMES = "CONCAT(COUNT(*), ':', COALESCE(SUM(CRC32(TABLE_NAME)), 0))"
_COLUMNS = """SELECT TABLE_NAME, COLUMN_NAME, COLUMN_TYPE, COLLATION_NAME, EXTRA, COLUMN_DEFAULT,
       COLUMN_KEY, IS_NULLABLE, GENERATION_EXPRESSION FROM information_schema.COLUMNS
 WHERE TABLE_SCHEMA = DATABASE() ORDER BY TABLE_NAME, ORDINAL_POSITION"""
_KEYS = """SELECT CONSTRAINT_SCHEMA, CONSTRAINT_NAME, TABLE_SCHEMA, TABLE_NAME, COLUMN_NAME,
       REFERENCED_TABLE_SCHEMA, REFERENCED_TABLE_NAME, REFERENCED_COLUMN_NAME
  FROM information_schema.KEY_COLUMN_USAGE
 WHERE {where} AND REFERENCED_TABLE_NAME IS NOT NULL
 ORDER BY TABLE_SCHEMA, TABLE_NAME, CONSTRAINT_NAME, ORDINAL_POSITION"""
_RULES = """SELECT CONSTRAINT_SCHEMA, CONSTRAINT_NAME, TABLE_NAME, DELETE_RULE
  FROM information_schema.REFERENTIAL_CONSTRAINTS WHERE CONSTRAINT_SCHEMA IN ({schemas})
 ORDER BY CONSTRAINT_SCHEMA, TABLE_NAME, CONSTRAINT_NAME"""
_TRIGGERS = """SELECT EVENT_OBJECT_TABLE, EVENT_MANIPULATION, TRIGGER_NAME
  FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = DATABASE()
 ORDER BY EVENT_OBJECT_TABLE, TRIGGER_NAME"""
_ENGINES = "SELECT ENGINE, TRANSACTIONS FROM information_schema.ENGINES"
_CROSSING = """SELECT 1 FROM {foreign_keys}
 WHERE SUBSTRING_INDEX(FOR_NAME, '/', 1) <> SUBSTRING_INDEX(REF_NAME, '/', 1) LIMIT 1"""
# The server knows when it made or altered a table or trigger to the second, so for longer than that
# one change could hide behind another.
_MARK = """SELECT CONCAT_WS(' ',
    (SELECT MD5(GROUP_CONCAT(TABLE_NAME, ' ', TABLE_TYPE, ' ', COALESCE(CREATE_TIME, '')
        ORDER BY TABLE_NAME)) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()),
    (SELECT MD5(GROUP_CONCAT(EVENT_OBJECT_TABLE, ' ', TRIGGER_NAME, ' ', COALESCE(CREATED, '')
        ORDER BY TRIGGER_NAME))
       FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = DATABASE()), ''),
    (SELECT COUNT(*) FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()
        AND CREATE_TIME >= NOW() - INTERVAL 2 SECOND)
    + (SELECT COUNT(*) FROM information_schema.TRIGGERS WHERE EVENT_OBJECT_SCHEMA = DATABASE()
        AND CREATED >= NOW() - INTERVAL 2 SECOND)"""
_BOOK = f"SELECT kind, name, copy, number FROM {BASELINE} ORDER BY kind, name"
_UNIQUE = """SELECT TABLE_NAME, INDEX_NAME, COLUMN_NAME, NULLABLE, SUB_PART
  FROM information_schema.STATISTICS
 WHERE TABLE_SCHEMA = DATABASE() AND NON_UNIQUE = 0 AND TABLE_NAME IN ({tables})
 ORDER BY TABLE_NAME, INDEX_NAME <> 'PRIMARY', INDEX_NAME, SEQ_IN_INDEX"""


@dataclass(frozen=True)
class Found:
    """What the database consists of, as the server says it.

    ``newest`` was read first: while it stays what it is, so does the rest.
    """

    name: str
    newest: int
    tables: Rows
    columns: Rows
    keys: Rows
    rules: Rows
    triggers: Rows
    engines: Rows
    book: Rows

    @property
    def names(self) -> str:
        """The number of all tables, and a sum of their names: see :data:`NAMES`."""
        return f"{len(self.tables)}:{sum(crc32(row[0].encode()) for row in self.tables)}"

    @property
    def fingerprint(self) -> str:
        """Changes whenever anything in here does but ``newest``."""
        parts = (self.tables, self.columns, self.keys, self.rules, self.triggers, self.book)
        return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()


def discover(execute: Execute, flavour: MySQL, driver_error: Any) -> Found:
    """Ask for all of it."""
    newest, name = execute(f"SELECT {flavour.newest}, DATABASE()")[0]
    tables = execute(_TABLES)
    keys = execute(_KEYS.format(where="TABLE_SCHEMA = DATABASE()"))
    if _crossing(execute, flavour, driver_error):
        elsewhere = "TABLE_SCHEMA <> DATABASE() AND REFERENCED_TABLE_SCHEMA = DATABASE()"
        keys += execute(_KEYS.format(where=elsewhere))
    schemas = {name, *(row[0] for row in keys)}
    book = []
    if any(row[0] == BASELINE for row in tables):
        book = execute(_BOOK)
    return Found(
        name=name,
        newest=int(newest),
        tables=tables,
        columns=execute(_COLUMNS),
        keys=keys,
        rules=execute(_RULES.format(schemas=literals(sorted(schemas)))),
        triggers=execute(_TRIGGERS),
        engines=execute(_ENGINES),
        book=book,
    )


def mark(execute: Execute, flavour: MySQL, driver_error: Any, has_baseline: bool) -> str:
    """What is the same as long as the schema is, and what was captured, and takes a part of the
    time; empty where it could be the same for another schema, too.
    """
    found, young = execute(_MARK)[0]
    if young or _crossing(execute, flavour, driver_error):
        return ""
    return f"{found} {execute(_BOOK) if has_baseline else ''}"


def _crossing(execute: Execute, flavour: MySQL, driver_error: Any) -> bool:
    """Whether there may be foreign keys from one database to another."""
    try:
        return bool(execute(_CROSSING.format(foreign_keys=flavour.foreign_keys)))
    except driver_error:  # this user may not ask; what it may see is cheap to look through
        return True


def unique_keys(execute: Execute, tables: Iterable[str]) -> dict[str, tuple[str, ...]]:
    """For those of the tables that have one: the columns of a key that tells any two rows apart."""
    indexes: dict[tuple[str, str], list[str]] = {}
    unfit = set()
    names = sorted(tables)
    for table, index, column, nullable, part in (
        execute(_UNIQUE.format(tables=literals(names))) if names else ()
    ):
        indexes.setdefault((table, index), []).append(column)
        if nullable == "YES" or part is not None or column is None:
            unfit.add((table, index))
    found: dict[str, tuple[str, ...]] = {}
    for (table, index), columns in indexes.items():
        if (table, index) not in unfit:
            found.setdefault(table, tuple(columns))
    return found
