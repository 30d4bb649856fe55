"""Pools of this process after a database was replaced: live connections, and no other one lost."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import closing
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, pool, text
from support.database import Database
from support.throwaway import Throwaway

from cleaner.pools import forget_connections

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

pytestmark = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


def where_installed(driver: str, *modules: str) -> Any:
    absent = [module for module in modules if find_spec(module) is None]
    return pytest.param(driver, marks=pytest.mark.skipif(bool(absent), reason=f"no {absent}"))


DRIVERS = [where_installed(driver, driver) for driver in ("psycopg", "psycopg2", "pg8000")]
ASYNC_DRIVERS = [
    where_installed("psycopg_async", "psycopg", "greenlet"),
    where_installed("asyncpg", "asyncpg", "greenlet"),
]
POOLS = [pool.QueuePool, pool.NullPool, pool.StaticPool, pool.SingletonThreadPool]
ASYNC_POOLS = [pool.AsyncAdaptedQueuePool, pool.NullPool, pool.StaticPool]


def asynchronous(url: URL, **keywords: Any) -> AsyncEngine:
    from sqlalchemy.ext.asyncio import create_async_engine  # only where there is greenlet

    return create_async_engine(url, **keywords)


@pytest.fixture(scope="module")
def subject(worker_database: Database) -> Iterator[Throwaway]:
    with closing(Throwaway(worker_database)) as throwaway:
        throwaway.inside("CREATE TABLE thing (id int)")
        with throwaway.clones() as clones:
            clones.make_template()
        yield throwaway


def replace(subject: Throwaway) -> None:
    with subject.clones() as clones:
        clones.recreate()
    forget_connections()


def pid(connection: Connection) -> int:
    return int(connection.execute(text("SELECT pg_backend_pid()")).scalar_one())


@pytest.fixture
def pings(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The connections that were pinged."""
    from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg

    seen: list[object] = []
    ping: Any = PGDialect_psycopg.do_ping

    def counted(self: Any, connection: Any) -> Any:
        seen.append(connection)
        return ping(self, connection)

    monkeypatch.setattr(PGDialect_psycopg, "do_ping", counted)
    return seen


# -- the replaced database ------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("poolclass", POOLS)
def test_every_pool_gives_live_connections_afterwards(
    subject: Throwaway, driver: str, poolclass: Any
) -> None:
    engine = create_engine(subject.url(driver), poolclass=poolclass)
    try:
        for _ in range(2):
            with engine.begin() as connection:
                connection.execute(text("INSERT INTO thing VALUES (1)"))
            replace(subject)
            with engine.connect() as connection:
                assert connection.execute(text("SELECT count(*) FROM thing")).scalar() == 0
    finally:
        engine.dispose()


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
@pytest.mark.parametrize("poolclass", ASYNC_POOLS)
def test_every_asynchronous_pool_gives_live_connections_afterwards(
    subject: Throwaway, driver: str, poolclass: Any
) -> None:
    async def main() -> None:
        engine = asynchronous(subject.url(driver), poolclass=poolclass)
        for _ in range(2):
            async with engine.begin() as connection:
                await connection.execute(text("INSERT INTO thing VALUES (1)"))
            await asyncio.to_thread(replace, subject)
            async with engine.connect() as connection:
                count = await connection.execute(text("SELECT count(*) FROM thing"))
                assert count.scalar() == 0
        await engine.dispose()

    asyncio.run(main())


@pytest.mark.parametrize("driver", DRIVERS)
def test_all_connections_of_a_pool_are_replaced_not_only_the_first(
    subject: Throwaway, driver: str
) -> None:
    engine = create_engine(subject.url(driver))
    for _ in range(2):
        connections = [engine.connect() for _ in range(5)]
        assert len({pid(connection) for connection in connections}) == 5
        for connection in connections:
            connection.close()
        replace(subject)
    engine.dispose()


def test_an_engine_that_is_used_by_threads_gives_each_a_live_connection(
    subject: Throwaway,
) -> None:
    engine = create_engine(subject.url(), pool_size=4)
    failures: list[Exception] = []

    def work() -> None:
        try:
            for _ in range(20):
                with engine.connect() as connection:
                    pid(connection)
        except Exception as error:
            failures.append(error)

    for _ in range(3):
        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        replace(subject)
    engine.dispose()
    assert not failures


def test_a_pre_ping_and_the_applications_own_listeners_go_together_with_it(
    subject: Throwaway,
) -> None:
    engine = create_engine(subject.url(), pool_pre_ping=True, pool_recycle=60)
    seen: list[object] = []
    event.listen(engine, "checkout", lambda connection, *_: seen.append(connection))
    with engine.connect() as connection:
        before = pid(connection)
    replace(subject)
    with engine.connect() as connection:
        assert pid(connection) != before
    assert len(seen) == 2
    engine.dispose()


# -- all others -----------------------------------------------------------------------------


@pytest.mark.parametrize("driver", DRIVERS)
def test_a_pool_to_another_database_keeps_its_connections_and_their_state(
    subject: Throwaway, database: Database, driver: str
) -> None:
    other = create_engine(subject.url(driver).set(database=database.name), pool_size=2)
    with other.connect() as one, other.connect() as two:
        for connection in (one, two):
            connection.execute(text("CREATE TEMP TABLE kept AS SELECT 1"))
            connection.commit()
        before = {pid(one), pid(two)}
    replace(subject)
    with other.connect() as one, other.connect() as two:
        assert {pid(one), pid(two)} == before
        for connection in (one, two):
            assert connection.execute(text("SELECT count(*) FROM kept")).scalar() == 1
    other.dispose()


@pytest.mark.parametrize("driver", ASYNC_DRIVERS)
def test_an_asynchronous_pool_to_another_database_keeps_its_connections(
    subject: Throwaway, database: Database, driver: str
) -> None:
    async def main() -> None:
        engine = asynchronous(subject.url(driver).set(database=database.name))
        pids = []
        for _ in range(2):
            async with engine.connect() as connection:
                pids.append((await connection.execute(text("SELECT pg_backend_pid()"))).scalar())
            await asyncio.to_thread(replace, subject)
        await engine.dispose()
        assert pids[0] == pids[1]

    asyncio.run(main())


@pytest.mark.parametrize("driver", DRIVERS)
@pytest.mark.parametrize("broken", [False, True])
def test_a_shared_connection_in_the_middle_of_a_transaction_is_left_there(
    subject: Throwaway, database: Database, driver: str, broken: bool
) -> None:
    url = subject.url(driver).set(database=database.name)
    other = create_engine(url, poolclass=pool.StaticPool, pool_reset_on_return=None)
    with other.connect() as connection:
        before = pid(connection)
        connection.execute(text("CREATE TEMP TABLE kept ON COMMIT DROP AS SELECT 1"))
        if broken:
            with pytest.raises(Exception, match="division"):
                connection.execute(text("SELECT 1/0"))
        replace(subject)
        with other.connect() as another:
            if broken:
                with pytest.raises(Exception, match="transaction"):
                    another.execute(text("SELECT 1"))
                another.rollback()
            else:
                assert another.execute(text("SELECT count(*) FROM kept")).scalar() == 1
            assert pid(another) == before
    other.dispose()


def test_a_database_in_memory_is_not_lost(subject: Throwaway) -> None:
    memory = create_engine("sqlite://", poolclass=pool.StaticPool)
    with memory.begin() as connection:
        connection.execute(text("CREATE TABLE kept (id int)"))
    replace(subject)
    with memory.begin() as connection:
        assert connection.execute(text("SELECT count(*) FROM kept")).scalar() == 0
    memory.dispose()


def test_a_pool_without_an_engine_is_left_alone(subject: Throwaway, database: Database) -> None:
    connect: Any = database.connect
    bare = pool.QueuePool(connect, pool_size=1)
    with closing(bare.connect()) as connection:
        before = connection.dbapi_connection
    replace(subject)
    with closing(bare.connect()) as connection:
        assert connection.dbapi_connection is before
    bare.dispose()


# -- what it costs --------------------------------------------------------------------------


def checkouts(engine: Engine, number: int) -> None:
    for _ in range(number):
        with engine.connect():
            pass


def test_a_connection_is_asked_once_and_those_made_later_never(
    subject: Throwaway, pings: list[object]
) -> None:
    engine = create_engine(subject.url(), poolclass=pool.QueuePool)
    checkouts(engine, 1)
    forget_connections()
    checkouts(engine, 5)
    assert len(pings) == 1
    forget_connections()
    forget_connections()
    checkouts(engine, 5)
    assert len(pings) == 2
    later = create_engine(subject.url(), poolclass=pool.NullPool)
    checkouts(later, 5)
    assert len(pings) == 2
    engine.dispose()


def test_only_one_listener_is_installed(database: Database) -> None:
    for _ in range(3):
        forget_connections()
    connect: Any = database.connect
    dispatch = pool.QueuePool(connect).dispatch
    listeners = [listener.__module__ for listener in dispatch.checkout]
    assert listeners.count("cleaner.pools") == 1
