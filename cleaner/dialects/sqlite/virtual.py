"""Virtual tables: what they hold is asked of their module, never of the tables it keeps it in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

from cleaner.dialects.sqlite.facts import RTREES, Ask, Facts, Index
from cleaner.dialects.sqlite.sql import NAME, qualified, quote

_VIRTUAL = re.compile(
    rf"CREATE\s+VIRTUAL\s+TABLE\s+{NAME}\s+USING\s+({NAME})\s*(.*)", re.IGNORECASE | re.DOTALL
)
_OPTION = r"[(,]\s*{}\s*=\s*('[^']*'|\"[^\"]*\"|[\w.]*)"
# Of modules that keep what they hold in tables of their own, before SQLite could say which.
_SHADOWS = {
    "fts3": ("content", "segments", "segdir", "docsize", "stat"),
    "fts4": ("content", "segments", "segdir", "docsize", "stat"),
    "fts5": ("data", "idx", "content", "docsize", "config"),
    **dict.fromkeys(RTREES, ("node", "rowid", "parent")),
}


def module_of(sql: str | None) -> str:
    """The module of a virtual table; empty of any other."""
    matched = _VIRTUAL.match(sql or "")
    return matched[1].strip("\"'`[]").lower() if matched else ""


def option(sql: str, name: str) -> str | None:
    """What ``CREATE VIRTUAL TABLE`` sets that option to; None where it does not."""
    matched = _VIRTUAL.match(sql)
    given = matched and re.search(_OPTION.format(name), matched[2], re.IGNORECASE)
    return given[1].strip("'\"") if given else None


def shadows(name: str, module: str) -> Iterator[str]:
    """The names of the tables that may be its module's."""
    return (f"{name}_{suffix}" for suffix in _SHADOWS.get(module, ()))


def not_shadows(name: str, module: str, sql: str) -> Iterator[str]:
    """Those of the names that its module has no use for, so such a table is somebody else's."""
    if _has_no_rows(module, sql) and not option(sql, "contentless_unindexed"):
        yield f"{name}_content"
    without = {"fts5": ("columnsize", "0"), "fts4": ("matchinfo", "fts3")}
    setting, off = without.get(module, ("", ""))
    if module == "fts3" or (setting and option(sql, setting) == off):
        yield f"{name}_docsize"


def _has_no_rows(module: str, sql: str) -> bool:
    """Whether it is only an index: of rows in another table, or in none."""
    return module in ("fts4", "fts5") and option(sql, "content") is not None


def is_readable_only(ask: Ask, schema: str, name: str) -> bool:
    """Whether its module shows what is elsewhere, and takes no DELETE."""
    try:
        ask(f"EXPLAIN DELETE FROM {qualified(schema, name)}")
    except Exception as error:
        if "may not be modified" in str(error):
            return True
        raise
    return False


def index_of(schema: str, name: str, module: str, sql: str) -> Index | None:
    """The index of another table's rows that it is, if it is one."""
    content = option(sql, "content") if _has_no_rows(module, sql) else ""
    if not content:
        return None
    said = f"INSERT INTO {qualified(schema, name)} ({quote(name)}"
    held, check = _entries(schema, name), f"{said}, rank) VALUES ('integrity-check', 1)"
    if module == "fts4":
        held = f"SELECT 1 FROM {qualified(schema, f'{name}_segdir')}"
        check = f"{said}) VALUES ('integrity-check')"
    return Index(content, f"EXISTS ({held})", check, f"{said}) VALUES ('rebuild')")


def _entries(schema: str, name: str) -> str:
    """The query that finds entries of an FTS5 index: what is up to 10 there is none."""
    return f"SELECT 1 FROM {qualified(schema, f'{name}_data')} WHERE id > 10"


def as_virtual(facts: Facts, schema: str, name: str, sql: str) -> Facts:
    """The facts of a virtual table."""
    has_no_rows = _has_no_rows(facts.module, sql)
    if facts.module == "fts5" and has_no_rows:
        return replace(
            facts,
            look=f"EXISTS ({_entries(schema, name)})",  # there are no rows to delete one by one
            empty=f"INSERT INTO {facts.sql} ({quote(name)}) VALUES ('delete-all')",
            uncapturable="an index without content can't be read",
        )
    if facts.module not in ("fts3", "fts4", "fts5", *RTREES) or has_no_rows:
        why = f"what the module {facts.module} holds may be more than its rows"
        return replace(facts, uncapturable=why)
    return facts


def unemptied(facts: Facts) -> str:
    """Why the table can't be emptied."""
    if facts.module in ("fts3", "fts4") and facts.uncapturable:
        return f"{facts.module} has no way to empty an index without content"
    return ""
