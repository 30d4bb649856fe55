"""Rows of every table of any PostgreSQL schema changed, deleted and added.

As a test would, with triggers and foreign keys at work, where they let it; else as a replica
does, which breaks keys. Wants a superuser.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass
from typing import Any

import psycopg
from psycopg.rows import tuple_row

from support.fill import CannotFillError, fill

Connection = psycopg.Connection[Any]


@dataclass(frozen=True)
class Table:
    """A table that has rows of its own; ``changes`` are assignments, ``column = other value``."""

    name: str
    columns: tuple[str, ...]
    changes: tuple[str, ...]

    def one(self, order: str = "", skip: int = 0) -> str:
        """A condition: it is that row, in the order in which they lie."""
        row = f"SELECT ctid FROM ONLY {self.name} ORDER BY ctid {order} OFFSET {skip} LIMIT 1"
        return f"ctid = ({row})"


_TABLES = """
SELECT format('%I.%I', nspname, relname), array_agg(quote_ident(attname) ORDER BY attnum),
       array_agg(quote_ident(attname) || CASE
           WHEN typname = 'uuid' THEN ' = gen_random_uuid()'
           WHEN typcategory = 'S'
               THEN format(' = left(%I || ''~'', greatest(atttypmod - 4, 1))', attname)
           WHEN typcategory = 'N' THEN format(' = %I + 1000', attname)
           WHEN typcategory = 'B' THEN format(' = NOT %I', attname)
           ELSE ' = NULL' END ORDER BY attnum)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
JOIN pg_attribute ON attrelid = c.oid AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
JOIN pg_type t ON t.oid = atttypid
WHERE relkind = 'r' AND nspname !~ '^pg_' AND nspname NOT IN ('information_schema',
      'cleaner_baseline') AND NOT EXISTS (SELECT FROM pg_depend WHERE objid = c.oid
      AND classid = 'pg_class'::regclass AND deptype = 'e')
GROUP BY nspname, relname ORDER BY nspname, relname"""


def tables(conn: Connection) -> list[Table]:
    """All tables that have rows and columns of their own, partitions and heirs among them."""
    rows = conn.cursor(row_factory=tuple_row).execute(_TABLES.encode()).fetchall()
    return [Table(name, tuple(columns), tuple(changes)) for name, columns, changes in rows]


def churn(conn: Connection, seed: int, *, add: bool = True) -> Counter[str]:
    """Change, delete and add rows; how many tables let themselves be changed in which way.

    The connection is one in autocommit mode.
    """
    dice, done = random.Random(seed), Counter[str]()
    if add:
        try:
            fill(conn, 1)
        except CannotFillError:  # for want of values that are still free
            done["not filled"] += 1
    found = tables(conn)
    dice.shuffle(found)
    with conn.transaction():
        conn.execute("SET CONSTRAINTS ALL IMMEDIATE")
        for table in found:
            update = f"UPDATE ONLY {table.name} SET "
            changes = dice.sample(table.changes, len(table.changes))
            changed = [_tried(conn, f"{update}{change} WHERE {table.one()}") for change in changes]
            for column in table.columns[:1]:  # a version that holds what the other did
                _tried(conn, f"{update}{column} = {column}")
            deleted = _tried(conn, f"DELETE FROM ONLY {table.name} WHERE {table.one('DESC')}")
            done.update({"tables": 1, "changed": any(changed), "deleted": deleted})
    return done


def _tried(conn: Connection, statement: str) -> bool:
    for role in ("origin", "replica"):
        try:
            with conn.transaction():
                conn.execute(f"SET LOCAL session_replication_role = {role}".encode())
                if conn.execute(statement.encode()).rowcount:
                    return True
        except psycopg.Error:
            continue
        finally:
            conn.execute("SET LOCAL session_replication_role = origin")
    return False
