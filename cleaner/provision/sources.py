"""What a file says for itself: the digest of its content, and what it imports."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

Need = tuple[int, str]  # the level and the dotted name of an import

_STATEMENT = re.compile(  # an import that begins a line, with its brackets and what follows there
    rb"\n[ \t\f\xef\xbb\xbf]*(?:lazy[ \t]+)?"
    rb"((?:from\b(?:\\\n|[^\n])*?\bimport|import)\b[ \t\f]*(?:\([^)]*\))?[^\n]*)"
)
_BEHIND = re.compile(rb"[;:][ \t\f]*(?:import|from|lazy)\b")  # one that follows something else
_CALLS = (b"import_module", b"__import__")
_QUOTES = (b'"""', b"'''")
_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)


def read(path: str) -> tuple[str, tuple[Need, ...]]:
    """The digest of a file, whatever its line endings are, and what it imports if it is Python."""
    file = Path(path)
    source = file.read_bytes()
    if b"\0" not in source:
        source = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    needs = dict.fromkeys(_imports(source) if file.suffix == ".py" else ())
    return f"{hashlib.sha256(source).hexdigest()}{file.suffix}", tuple(needs)


def _imports(source: bytes) -> Iterator[Need]:
    for node in _nodes(source):
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            yield from ((node.level, prefix + alias.name) for alias in node.names)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [getattr(each, "value", None) for each in given]
            if called in ("import_module", "__import__") and texts and isinstance(texts[0], str):
                name = texts[0].lstrip(".")
                level = len(texts[0]) - len(name)
                if level and len(texts) > 1 and isinstance(texts[1], str):
                    level, name = 0, f"{texts[1]}.{name}"
                yield level, name


def _nodes(source: bytes) -> list[ast.stmt] | list[ast.AST]:
    """The import statements alone where they are plain to see: parsing all takes many times longer.

    Otherwise everything that the source consists of.
    """
    statements = _plain(source)
    with suppress(*_BROKEN):
        if statements is not None:
            return ast.parse(b"\n".join(statements)).body
    with suppress(*_BROKEN):
        return list(ast.walk(ast.parse(source)))
    return []


def _plain(source: bytes) -> list[bytes] | None:
    """The import statements; None where it may have others, or one may be part of a text."""
    if any(call in source for call in _CALLS) or _BEHIND.search(source):
        return None
    lines = b"\n" + source
    texts = [text for quote in _QUOTES for text in lines.split(quote)[1::2]]
    return None if any(map(_STATEMENT.search, texts)) else _STATEMENT.findall(lines)
