"""Strings in SQL, in sessions of ours: none of them takes a backslash for more than itself."""

from __future__ import annotations

from collections.abc import Iterable


def literal(text: str) -> str:
    """``text`` as an SQL string."""
    return "'" + text.replace("'", "''") + "'"


def literals(texts: Iterable[str]) -> str:
    """Several, for the parentheses of an IN."""
    return ", ".join(map(literal, texts))
