"""cleaner puts a test database back to its baseline between tests."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cleaner import errors
    from cleaner.aio import AsyncCleaner
    from cleaner.api import Cleaner
    from cleaner.difference import Diff
    from cleaner.settings import Settings
    from cleaner.spi import Plan, Report

__all__ = ["AsyncCleaner", "Cleaner", "Diff", "Plan", "Report", "Settings", "errors"]
__version__ = "0.1.0"

_HOMES = {
    "AsyncCleaner": "aio",
    "Cleaner": "api",
    "Diff": "difference",
    "Plan": "spi",
    "Report": "spi",
    "Settings": "settings",
}


def __getattr__(name: str) -> object:
    # On demand: pytest imports this package for its plug-in in every run, and a run without a
    # database should not wait for SQLAlchemy.
    if name == "errors":
        return import_module("cleaner.errors")
    if name in _HOMES:
        found: object = getattr(import_module(f"cleaner.{_HOMES[name]}"), name)
        globals()[name] = found
        return found
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
