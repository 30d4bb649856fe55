"""What the schema consists of, to tell what was changed between two looks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from cleaner.dialects.mysql.baseline import is_ours
from cleaner.dialects.mysql.sql import quote

Rows = list[tuple[Any, ...]]

_KINDS = {"BASE TABLE": "table", "VIEW": "view", "SEQUENCE": "sequence"}
_ROUTINES = """SELECT ROUTINE_TYPE, ROUTINE_NAME, MD5(ROUTINE_DEFINITION)
  FROM information_schema.ROUTINES WHERE ROUTINE_SCHEMA = DATABASE()"""
_TRIGGERS = """SELECT TRIGGER_NAME, ACTION_TIMING, EVENT_MANIPULATION, EVENT_OBJECT_TABLE,
       ACTION_STATEMENT FROM information_schema.TRIGGERS WHERE TRIGGER_SCHEMA = DATABASE()"""


def describe(execute: Callable[[str], Rows]) -> Iterator[str]:
    """A line for each table, column, key, trigger and routine."""
    tables = execute(
        "SELECT TABLE_NAME, TABLE_TYPE FROM information_schema.TABLES"
        " WHERE TABLE_SCHEMA = DATABASE()"
    )
    for name, kind in tables:
        if is_ours(name):
            continue
        what = _KINDS.get(kind, str(kind).lower())
        yield f"{what} {quote(name)}"
        if kind in ("SEQUENCE", "SYSTEM VIEW"):
            continue
        text = execute(f"SHOW CREATE TABLE {quote(name)}")[0][1]
        if "VIEW" in kind:
            yield f"view {quote(name)}: {text}"
            continue
        for line in str(text).splitlines()[1:]:
            inside = line.startswith("  ")
            yield f"{'in' if inside else 'options of'} {quote(name)}: {_lasting(line)}"
    for name, timing, event, table, action in execute(_TRIGGERS):
        yield f"trigger {quote(name)} {timing} {event} ON {quote(table)}: {action}"
    for kind, name, digest in execute(_ROUTINES):
        yield f"{str(kind).lower()} {quote(name)} {digest}"


def _lasting(line: str) -> str:
    """The line without the place where a counter happens to be."""
    words = (word for word in line.strip(" ,").split(" ") if not word.startswith("AUTO_INCREMENT="))
    return " ".join(words)
