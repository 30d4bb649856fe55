"""SQLite databases for a test: in memory, in a file, in a file with a write-ahead log."""

from __future__ import annotations

import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import StaticPool

KINDS = ["memory", "memory, keys enforced", "delete, keys enforced", "wal"]


def lite(kind: str, directory: Path, name: str = "app_test.db") -> Engine:
    """An empty database, by its journal mode and whether its application enforces keys."""
    mode = kind.partition(",")[0]
    if mode == "memory":
        engine = create_engine(
            "sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False}
        )
    else:
        engine = create_engine(f"sqlite:///{directory / name}")

    @event.listens_for(engine, "connect")
    def prepare(connection: Any, record: Any) -> None:
        connection.execute("PRAGMA synchronous = OFF")
        connection.execute(f"PRAGMA foreign_keys = {kind.endswith('enforced')}")
        connection.execute(f"PRAGMA journal_mode = {mode}")

    with engine.connect():
        pass
    weakref.finalize(engine, engine.pool.dispose)  # else Python 3.13 warns
    return engine


@pytest.fixture(params=KINDS)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """An empty database of each kind."""
    engine = lite(request.param, tmp_path)
    yield engine
    engine.dispose()


def run(engine: Engine, *statements: str) -> list[Any]:
    """The rows of the last of them."""
    rows: list[Any] = []
    with engine.begin() as connection:
        for statement in statements:
            result = connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in result] if result.returns_rows else []
    return rows


def count(engine: Engine, *tables: str) -> int:
    """How many rows they hold together."""
    return sum(run(engine, f"SELECT count(*) FROM {table}")[0][0] for table in tables)
