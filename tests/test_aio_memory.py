"""AsyncCleaner on a database in memory, which is lost with the application's connection."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.pool import StaticPool

from cleaner import AsyncCleaner, Cleaner
from cleaner.errors import BlockedError, SettingsError

SCHEMA = (
    "PRAGMA foreign_keys = ON",  # which has no effect in a transaction
    "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)",
    "CREATE TABLE kept (id INTEGER PRIMARY KEY)",
    "CREATE TRIGGER watch AFTER DELETE ON t BEGIN SELECT 1; END",
    "INSERT INTO kept VALUES (1)",
)


async def ask(engine: AsyncEngine, *statements: str) -> list[tuple[Any, ...]]:
    """The rows of the last one."""
    async with engine.connect() as connection:
        rows: list[tuple[Any, ...]] = []
        for statement in statements:
            result = await connection.exec_driver_sql(statement)
            rows = [tuple(row) for row in result] if result.returns_rows else []
        await connection.commit()
    return rows


@asynccontextmanager
async def memory() -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    try:
        await ask(engine, *SCHEMA)
        yield engine
    finally:
        await engine.dispose()


def test_it_cleans_and_captures() -> None:
    async def use() -> None:
        async with memory() as engine, AsyncCleaner(engine) as cleaner:
            await cleaner.capture()
            await ask(engine, "INSERT INTO t DEFAULT VALUES", "DELETE FROM kept")
            assert set((await cleaner.clean()).tables) == {"t", "kept"}
            await cleaner.verify()
            assert await ask(engine, "SELECT id FROM kept") == [(1,)]

    asyncio.run(use())


def test_a_clean_that_is_cancelled_is_finished_and_nothing_is_lost() -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)

    async def many() -> int:
        cancelled = 0
        async with memory() as engine:
            cleaner = AsyncCleaner(engine, exclude=["kept"])
            for _ in range(100):
                await ask(engine, "INSERT INTO t DEFAULT VALUES")
                clean = asyncio.ensure_future(cleaner.clean())
                await asyncio.sleep(chance.uniform(0, 0.008))
                clean.cancel()
                done = await asyncio.gather(clean, return_exceptions=True)
                cancelled += isinstance(done[0], asyncio.CancelledError)
                assert await ask(engine, "SELECT name FROM sqlite_master WHERE type = 'trigger'")
                assert await ask(engine, "PRAGMA foreign_keys") == [(1,)], f"seed {seed}"
                assert await ask(engine, "SELECT count(*) FROM kept") == [(1,)]
            await cleaner.clean()
            assert await ask(engine, "SELECT count(*) FROM t") == [(0,)]
        return cancelled

    assert asyncio.run(many())


def test_what_the_application_has_begun_is_not_waited_for() -> None:
    async def use() -> None:
        async with memory() as engine, engine.connect() as connection:
            await connection.exec_driver_sql("INSERT INTO t DEFAULT VALUES")
            with pytest.raises(BlockedError, match="is in a transaction"):
                await AsyncCleaner(engine).clean()
            await connection.rollback()

    asyncio.run(use())


def test_a_cleaner_that_blocks_is_refused_and_nothing_is_lost() -> None:
    async def use() -> None:
        async with memory() as engine:
            with pytest.raises(SettingsError, match="can't reach") as raised:
                Cleaner(engine)
            assert raised.value.remedy == "AsyncCleaner(engine, Base)"
            assert await ask(engine, "SELECT count(*) FROM kept") == [(1,)]

    asyncio.run(use())
