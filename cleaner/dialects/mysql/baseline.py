"""Captured rows: how they are kept in the database, and what is known of them.

The copies are ordinary tables of the same database, ``cleaner_baseline__1`` and so on, each made
LIKE the table that it is of. One table lists them, ``cleaner_baseline__``; what is not in there
counts for nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cleaner.dialects.mysql.discovery import BASELINE
from cleaner.dialects.mysql.sql import quote

_TEXT = re.compile(r"(var)?char|(tiny|medium|long)?text|enum|set|json", re.IGNORECASE)
_BINARY = re.compile(r"(var)?binary|(tiny|medium|long)?blob", re.IGNORECASE)
_BITS = re.compile(r"bit\b", re.IGNORECASE)
_REAL = re.compile(r"float|double", re.IGNORECASE)
_SPATIAL = re.compile(r"geom|point|linestring|polygon|multi", re.IGNORECASE)


def is_ours(table: str) -> bool:
    """Whether it is one of the tables in which captured rows are kept."""
    return table.startswith(BASELINE)


@dataclass(frozen=True)
class Column:
    """A column that can be written to."""

    name: str
    type: str
    collation: str | None = None

    @property
    def is_binary(self) -> bool:
        """Whether it is shown in hexadecimal."""
        return bool(_BINARY.match(self.type) or _SPATIAL.match(self.type))

    def same(self, one: str, other: str) -> str:
        """A condition: the values of ``one`` and ``other`` are the same to the last bit."""
        a, b = f"{one}.{quote(self.name)}", f"{other}.{quote(self.name)}"
        if _REAL.match(self.type):  # zero has a sign
            return f"{a} <=> {b} AND LEFT({a}, 1) <=> LEFT({b}, 1)"
        if _TEXT.match(self.type) or self.is_binary:
            return f"CAST({a} AS BINARY) <=> CAST({b} AS BINARY)"
        return f"{a} <=> {b}"

    def text(self, row: str) -> str:
        """An expression: the value as text, by which it is told from every other."""
        value = f"{row}.{quote(self.name)}"
        if self.is_binary:
            return f"CONCAT('0x', HEX({value}))"
        if _BITS.match(self.type):
            return f"CONCAT('b', BIN({value}))"
        return f"CONVERT({value}, CHAR)"

    def exact(self, row: str) -> str:
        """The same as bytes, NULL and nothing told apart."""
        return f"COALESCE(HEX({self.text(row)}), 'N')"


@dataclass(frozen=True)
class Captured:
    """The rows that are a table's baseline: how many, and in which table of ours.

    ``key`` are the columns by which a row is known again; empty where nothing makes them unique.
    """

    rows: int
    copy: str
    columns: tuple[Column, ...]
    key: tuple[Column, ...] = ()

    @property
    def matches(self) -> str:
        """A condition: ``t`` and ``c`` are versions of one row."""
        return " AND ".join(f"t.{quote(c.name)} = c.{quote(c.name)}" for c in self.key)

    @property
    def same(self) -> str:
        """A condition: ``t`` and ``c`` are the same to the last bit."""
        return " AND ".join(column.same("t", "c") for column in self.columns)

    def changed(self, table: str) -> str:
        """An expression: whether the rows of ``table`` are not those that were captured. Waits for
        who has written to one and has not committed.
        """
        count = f"(SELECT COUNT(*) FROM {table} LOCK IN SHARE MODE) <> {self.rows}"
        if not self.key:
            return (
                f"({count} OR EXISTS (SELECT 1 FROM ({both(table, self)}) b"
                " GROUP BY b.r HAVING SUM(b.n) <> 0))"
            )
        first = f"t.{quote(self.key[0].name)}"
        return (
            f"({count} OR EXISTS (SELECT 1 FROM {self.copy} c LEFT JOIN {table} t ON"
            f" {self.matches} WHERE {first} IS NULL OR NOT ({self.same}) LOCK IN SHARE MODE))"
        )

    def restore(self, table: str) -> list[str]:
        """The statements that put the rows back, foreign keys being off."""
        names = ", ".join(quote(column.name) for column in self.columns)
        return [
            f"DELETE FROM {table}",
            f"INSERT INTO {table} ({names}) SELECT {names} FROM {self.copy}",
        ]


def both(table: str, captured: Captured) -> str:
    """A query: each row ``r`` that is there or should be, as one text; ``n`` is 1 for those that
    are there and -1 for those that should be.
    """

    def row(alias: str) -> str:
        return f"CONCAT_WS(',', {', '.join(c.exact(alias) for c in captured.columns)})"

    return (
        f"SELECT {row('t')} AS r, 1 AS n FROM {table} t"
        f" UNION ALL SELECT {row('c')}, -1 FROM {captured.copy} c"
    )


def listed(columns: Iterable[Column]) -> str:
    """The names of the columns."""
    return ", ".join(quote(column.name) for column in columns)
