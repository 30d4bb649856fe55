"""AsyncCleaner and event loops: one per test, one per session, several at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable

import pytest
from sqlalchemy import URL
from sqlalchemy.ext.asyncio import create_async_engine
from support.database import Database
from support.drivers import ASYNC, url_for

from cleaner import AsyncCleaner, Cleaner
from cleaner.errors import BlockedError, SettingsError


@pytest.fixture(params=ASYNC)
def url(request: pytest.FixtureRequest, database: Database) -> URL:
    database.execute("CREATE TABLE a (id serial PRIMARY KEY)")
    return url_for(request.param, database.url)


def sessions(database: Database) -> int:
    """How many sessions of cleaner's there are, once those that are closed had time to end."""
    return int(
        database.scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name = 'cleaner'"
        )
    )


def gone(database: Database) -> bool:
    for _ in range(100):
        if not sessions(database):
            return True
        database.execute("SELECT pg_sleep(0.05)")
    return False


async def once(work: Callable[[], Awaitable[object]]) -> None:
    await work()


def test_it_cleans_verifies_compares_and_captures(url: URL, database: Database) -> None:
    async def use() -> None:
        async with AsyncCleaner(url) as cleaner:
            database.execute("INSERT INTO a DEFAULT VALUES")
            assert (await cleaner.plan()).tables == ("a",)
            assert [table.table for table in (await cleaner.diff()).tables] == ["a"]
            assert (await cleaner.clean()).tables == ("a",)
            await cleaner.verify()
            async with cleaner.cleaning():
                database.execute("INSERT INTO a DEFAULT VALUES")
            assert database.count("a") == 0
            database.execute("INSERT INTO a DEFAULT VALUES")
            await cleaner.capture()
            assert await cleaner.captured() == {"a": 1}
            database.execute("DELETE FROM a")
            await cleaner.clean()
            assert database.count("a") == 1
            await cleaner.release()
            assert (await cleaner.using(strategy="truncate").clean()).strategy == "truncate"
            assert (await cleaner.connect()).database == database.name
            assert any("a" in line for line in await cleaner.describe())

    asyncio.run(use())


def test_the_connection_is_closed_with_its_loop_and_opened_in_the_next(
    url: URL, database: Database
) -> None:
    cleaner = AsyncCleaner(url)
    for _ in range(3):
        database.execute("INSERT INTO a DEFAULT VALUES")
        asyncio.run(once(cleaner.clean))
        assert database.count("a") == 0
        assert gone(database)


def test_a_loop_that_was_closed_without_a_word_does_no_harm(url: URL, database: Database) -> None:
    cleaner = AsyncCleaner(url)
    for _ in range(3):
        loop = asyncio.new_event_loop()
        database.execute("INSERT INTO a DEFAULT VALUES")
        loop.run_until_complete(cleaner.clean())
        assert database.count("a") == 0
        loop.close()  # nothing is shut down
    asyncio.run(once(cleaner.close))
    assert gone(database)


def test_two_loops_in_two_threads_may_share_it(url: URL, database: Database) -> None:
    cleaner = AsyncCleaner(url)
    errors: list[BaseException] = []

    async def many() -> None:
        for _ in range(5):
            await cleaner.clean()

    def work() -> None:
        try:
            asyncio.run(many())
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert gone(database)


def test_a_loop_goes_on_and_may_cancel_while_another_thread_has_its_turn(
    url: URL, database: Database
) -> None:
    cleaner = AsyncCleaner(url, lock_timeout=60.0)
    began = threading.Event()

    async def first() -> None:
        clean = asyncio.ensure_future(cleaner.clean())
        await asyncio.sleep(0.2)
        began.set()
        await clean
        await cleaner.close()

    async def second() -> None:
        with pytest.raises(asyncio.TimeoutError):
            await asyncio.wait_for(cleaner.clean(), 0.2)

    with database.transaction() as other:
        other.execute("INSERT INTO a DEFAULT VALUES")
        thread = threading.Thread(target=asyncio.run, args=(first(),))
        thread.start()
        assert began.wait(60)
        rescue = threading.Timer(20, other.rollback)
        rescue.start()
        asyncio.run(second())
        assert rescue.is_alive()
        rescue.cancel()
        other.rollback()
        thread.join()


def test_a_loop_that_was_stopped_in_the_middle_of_a_call_is_not_waited_for_without_end(
    url: URL, database: Database
) -> None:
    cleaner = AsyncCleaner(url, lock_timeout=0.5)
    stopped, go_on = threading.Event(), threading.Event()
    waits = (
        "SELECT count(*) FROM pg_locks WHERE NOT granted AND database ="
        " (SELECT oid FROM pg_database WHERE datname = current_database())"
    )

    def stop_in_the_middle() -> None:
        loop = asyncio.new_event_loop()
        clean = loop.create_task(cleaner.using(lock_timeout=600.0, retries=1).clean())
        while not database.scalar(waits):
            loop.run_until_complete(asyncio.sleep(0.01))
        stopped.set()
        go_on.wait(60)
        clean.cancel()
        loop.run_until_complete(asyncio.gather(clean, return_exceptions=True))
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()

    with database.transaction() as other:
        other.execute("INSERT INTO a DEFAULT VALUES")
        thread = threading.Thread(target=stop_in_the_middle)
        thread.start()
        assert stopped.wait(60)
        with pytest.raises(BlockedError, match="Another event loop"):
            asyncio.run(asyncio.wait_for(cleaner.clean(), 30))
    go_on.set()
    thread.join()
    asyncio.run(once(cleaner.clean))


def test_tasks_take_turns_also_those_of_cleaners_that_share_the_connection(
    url: URL, database: Database
) -> None:
    async def use() -> None:
        async with AsyncCleaner(url) as cleaner:
            siblings = [cleaner, cleaner.using(strategy="truncate"), cleaner.using(only=["a"])]
            await asyncio.gather(*(each.clean() for each in siblings * 4))
            await asyncio.gather(cleaner.diff(), cleaner.clean(), cleaner.capture())
            await cleaner.release()
            assert sessions(database) == 1

    asyncio.run(use())


def test_the_loop_goes_on_while_a_clean_waits(url: URL, database: Database) -> None:
    async def use() -> None:
        async with AsyncCleaner(url, lock_timeout=1.0) as cleaner:
            await cleaner.clean()
            turns = 0

            async def tick() -> None:
                nonlocal turns
                while True:
                    await asyncio.sleep(0.01)
                    turns += 1

            ticking = asyncio.create_task(tick())
            with database.transaction() as other:
                other.execute("INSERT INTO a DEFAULT VALUES")
                with pytest.raises(BlockedError) as raised:
                    await cleaner.clean()
            ticking.cancel()
            assert raised.value.blockers[0].state == "idle in transaction"
            assert turns > 10

    asyncio.run(use())


def test_an_engine_s_own_way_of_connecting_is_kept(url: URL, database: Database) -> None:
    async def use() -> None:
        name = "dbname" if url.get_driver_name() == "psycopg" else "database"
        engine = create_async_engine(
            url.set(database="nowhere"), connect_args={name: database.name}
        )
        async with AsyncCleaner(engine) as cleaner:
            database.execute("INSERT INTO a DEFAULT VALUES")
            await cleaner.clean()
        await engine.dispose()

    asyncio.run(use())
    assert database.count("a") == 0


def test_a_cleaner_works_by_a_url_for_asyncio(url: URL, database: Database) -> None:
    with Cleaner(url) as cleaner:
        database.execute("INSERT INTO a DEFAULT VALUES")
        cleaner.clean()
        assert database.count("a") == 0
        assert cleaner.connect().get_driver_name() == "psycopg"


def test_a_cleaner_works_by_a_driver_for_asyncio_where_no_other_reaches_the_database(
    url: URL, database: Database
) -> None:
    engine = create_async_engine(url)
    with Cleaner(engine) as cleaner:
        for _ in range(2):
            database.execute("INSERT INTO a DEFAULT VALUES")
            cleaner.clean()
            assert database.count("a") == 0
            cleaner.verify()
            assert sessions(database) == 1
            cleaner.close()
            assert gone(database)


def test_inside_of_a_running_loop_too(url: URL, database: Database) -> None:
    async def use() -> None:
        with Cleaner(create_async_engine(url)) as cleaner:
            database.execute("INSERT INTO a DEFAULT VALUES")
            cleaner.clean()

    asyncio.run(use())
    assert database.count("a") == 0


def test_a_url_without_a_driver_gets_one_for_asyncio(database: Database) -> None:
    url = url_for("psycopg", database.url).set(drivername="postgresql")
    cleaner = AsyncCleaner(url)
    assert cleaner.settings.url == url

    async def connected() -> str:
        async with cleaner:
            return (await cleaner.connect()).get_driver_name()

    assert asyncio.run(connected()) == "asyncpg"


@pytest.mark.parametrize("driver", ["psycopg2", "pg8000"])
def test_a_driver_that_does_not_work_with_asyncio_is_refused_by_name(
    database: Database, driver: str
) -> None:
    with pytest.raises(SettingsError) as raised:
        AsyncCleaner(url_for(driver, database.url))
    assert driver in str(raised.value)
    assert "asyncpg" in raised.value.remedy
