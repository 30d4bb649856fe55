"""Cancelling a clean, wherever it is, leaves nothing behind."""

from __future__ import annotations

import asyncio
import gc
import random
import sqlite3
import sys
from contextlib import closing
from pathlib import Path

import anyio
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table, create_engine
from support.database import Database
from support.drivers import ASYNC, url_for

from cleaner import AsyncCleaner

if sys.version_info < (3, 11):
    pytest.skip("asyncio.timeout is new in Python 3.11", allow_module_level=True)


@pytest.fixture
def metadata(database: Database) -> MetaData:
    metadata = MetaData()
    for name in "abc":
        Table(name, metadata, Column("id", Integer, primary_key=True), Column("text", String))
    engine = create_engine(database.url)
    metadata.create_all(engine)
    engine.dispose()
    return metadata


def fill(database: Database) -> None:
    # Of a clean that was cut short at its very end the sequences may be at START, and the rows
    # still there: setval can't be undone.
    for table in "ab":
        database.execute(
            f"INSERT INTO {table} (id) SELECT greatest("
            f"nextval('{table}_id_seq'), (SELECT coalesce(max(id), 0) + 1 FROM {table}))"
        )


def sessions(database: Database) -> list[tuple[object, ...]]:
    return database.execute(
        "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database()"
        " AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )


async def only_ours(database: Database) -> list[tuple[object, ...]]:
    """The sessions of others, once those that are closed had time to end."""
    for _ in range(100):
        if len(sessions(database)) <= 1:
            break
        await asyncio.sleep(0.05)
    return sessions(database)


def _asyncpgs_own(complaint: dict[str, object]) -> bool:
    """What asyncpg leaves to the log when it is cancelled while it opens a socket."""
    return str(complaint.get("exception")) == "unexpected connection_lost() call"


@pytest.mark.parametrize("driver", ASYNC)
def test_a_clean_that_is_cancelled_anywhere_leaves_no_lock_and_no_connection(
    database: Database, metadata: MetaData, driver: str
) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    cancelled = 0

    async def many() -> None:
        nonlocal cancelled
        loop = asyncio.get_running_loop()
        complaints: list[dict[str, object]] = []
        loop.set_exception_handler(lambda _, context: complaints.append(context))
        cleaner = AsyncCleaner(url_for(driver, database.url), metadata)
        await cleaner.clean()
        usual = 0.003
        for turn in range(60):
            fill(database)
            if turn % 6 == 0:
                await cleaner.close()  # so that connecting is cancelled too
            begun = loop.time()
            try:
                async with asyncio.timeout(chance.uniform(0, usual * 1.2)):
                    await cleaner.clean()
                usual = 0.9 * usual + 0.1 * (loop.time() - begun)
            except TimeoutError:
                cancelled += 1
                usual *= 1.05
            if turn % 10 == 9:
                assert (await cleaner.clean()).attempts == 1
                await cleaner.verify()
        await cleaner.clean()
        assert len(await only_ours(database)) == 1, f"seed {seed}"
        assert database.advisory_locks() == 0
        await cleaner.close()
        assert [each for each in complaints if not _asyncpgs_own(each)] == []

    asyncio.run(many())
    assert cancelled


@pytest.mark.parametrize("driver", ASYNC)
def test_a_clean_that_is_cancelled_while_it_waits_for_a_lock_stops_waiting(
    database: Database, metadata: MetaData, driver: str
) -> None:
    async def cut_short() -> None:
        async with AsyncCleaner(
            url_for(driver, database.url), metadata, lock_timeout=600.0, retries=1
        ) as cleaner:
            await cleaner.clean()
            with database.transaction() as other:
                other.execute("INSERT INTO a DEFAULT VALUES")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await cleaner.clean()
                for _ in range(100):
                    if len(sessions(database)) <= 1:
                        break
                    await asyncio.sleep(0.05)
                assert len(sessions(database)) == 1  # `other`
            assert (await cleaner.clean()).attempts == 1

    asyncio.run(cut_short())


@pytest.mark.parametrize("driver", ASYNC)
def test_cancelling_a_capture_leaves_the_baseline_as_it_was(
    database: Database, metadata: MetaData, driver: str
) -> None:
    async def cut_short() -> None:
        async with AsyncCleaner(url_for(driver, database.url), metadata) as cleaner:
            fill(database)
            with database.transaction() as other:
                other.execute("INSERT INTO c DEFAULT VALUES")
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.2):
                        await cleaner.capture()
            assert await cleaner.captured() == {}
            await cleaner.capture()
            assert await cleaner.captured() == {"a": 1, "b": 1}
            await cleaner.release()

    asyncio.run(cut_short())


def test_a_clean_of_a_file_that_a_cancel_scope_ends_leaves_no_lock(tmp_path: Path) -> None:
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    file = tmp_path / "app_test.db"
    gc.disable()  # which would do for us what is to be done at once

    async def many() -> int:
        cancelled = 0
        async with AsyncCleaner(f"sqlite+aiosqlite:///{file}") as cleaner:
            await cleaner.clean()
            for _ in range(60):
                with closing(sqlite3.connect(file, timeout=0)) as other:
                    other.execute("INSERT INTO t DEFAULT VALUES")
                    other.commit()
                with anyio.move_on_after(chance.uniform(0, 0.04)) as scope:
                    await cleaner.clean()
                cancelled += scope.cancelled_caught
            with closing(sqlite3.connect(file, timeout=0)) as other:
                other.execute("INSERT INTO t DEFAULT VALUES")
        return cancelled

    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)")
    try:
        assert anyio.run(many), f"seed {seed}"
    finally:
        gc.enable()
