"""The file of a database, by its URL or as a connection tells it."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from sqlalchemy import URL


def main_file(databases: list[tuple[Any, ...]]) -> str:
    """That of what ``PRAGMA database_list`` lists; empty for a database in memory."""
    return str(databases[0][2] or "")


def inode_of(path: str) -> tuple[int, int] | None:
    """What tells that file from another at the same path; None if there is none."""
    try:
        found = Path(path).stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


def file_of(url: URL) -> str:
    """The file that the URL names; empty for a database in memory."""
    (name, *_), options = url.get_dialect()().create_connect_args(url)
    if not (options.get("uri") and name.startswith("file:")):
        return "" if name == ":memory:" else str(name)
    parts = urlsplit(name)
    query = parse_qs(parts.query)
    in_memory = query.get("mode") == ["memory"] or "vfs" in query or parts.path == ":memory:"
    return "" if in_memory else unquote(parts.path)
