"""Names and strings as SQLite spells them."""

from __future__ import annotations

from sqlalchemy.dialects.sqlite.base import SQLiteDialect

_PREPARER = SQLiteDialect(paramstyle="named").identifier_preparer

# An expression that matches a name in a statement, however it is quoted.
NAME = r"""(?:"(?:[^"]|"")*"|`(?:[^`]|``)*`|\[[^\]]*\]|'(?:[^']|'')*'|[^\s("'`\[]+)"""
BASELINE = "cleaner_baseline"  # the table that lists what was captured, and how the copies begin


def quote(name: str) -> str:
    """The identifier in quotes, whatever is in it."""
    return _PREPARER.quote_identifier(name)


def qualified(schema: str, name: str) -> str:
    """The quoted name, which no temporary table can hide."""
    return f"{quote(schema)}.{quote(name)}"
