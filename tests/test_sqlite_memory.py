"""Databases in memory: each belongs to a connection, and that is the application's."""

from __future__ import annotations

import gc
import sqlite3
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import create_engine, event, text
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session
from sqlalchemy.pool import NullPool, QueuePool, SingletonThreadPool, StaticPool
from support.lite import count, lite, run

from cleaner import Cleaner
from cleaner.errors import BlockedError, CleanerError, SettingsError

# Since then the driver can begin a transaction whenever there is none.
AUTOCOMMIT = pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12's autocommit")
SHARED = "file:{}?mode=memory&cache=shared"


def test_a_url_that_nobody_else_can_see_is_refused_with_the_engine_to_give() -> None:
    with pytest.raises(SettingsError, match="nobody else can see") as raised:
        Cleaner("sqlite://").clean()
    assert "StaticPool" in raised.value.remedy


@pytest.mark.parametrize("pool", [NullPool, QueuePool])
def test_a_pool_of_several_databases_is_refused(pool: type[NullPool] | type[QueuePool]) -> None:
    with pytest.raises(SettingsError, match="opens several of them"):
        Cleaner(create_engine("sqlite://", poolclass=pool)).clean()


def test_what_the_application_has_begun_is_neither_committed_nor_rolled_back(
    tmp_path: Path,
) -> None:
    engine = lite("memory", tmp_path)
    run(engine, "CREATE TABLE t (a)")
    cleaner = Cleaner(engine)
    with Session(engine) as session:
        session.execute(text("INSERT INTO t VALUES (1)"))
        for work in (cleaner.clean, cleaner.verify, cleaner.capture):
            with pytest.raises(BlockedError, match="is in a transaction"):
                work()
        del cleaner, work
        gc.collect()
        assert session.execute(text("SELECT count(*) FROM t")).scalar() == 1
        session.rollback()
    assert count(engine, "t") == 0
    run(engine, "INSERT INTO t VALUES (2)")
    assert Cleaner(engine).clean().tables == ("t",)


def test_what_was_begun_and_went_with_its_engine_is_in_nobodys_way(tmp_path: Path) -> None:
    engine, other = lite("memory", tmp_path), lite("memory", tmp_path)
    for each in (engine, other):
        run(each, "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)")
    connection = engine.connect()
    connection.exec_driver_sql("INSERT INTO t VALUES (2)")
    with pytest.raises(BlockedError):
        Cleaner(engine).clean()
    engine.dispose()
    with pytest.raises(ProgrammingError):
        connection.close()
    for each in (other, engine):
        run(each, "CREATE TABLE IF NOT EXISTS t (a)", "INSERT INTO t VALUES (1)")
        assert Cleaner(each).clean().tables == ("t",)


@pytest.mark.parametrize("kind", ["memory", "memory, keys enforced"])
def test_the_applications_connection_is_left_as_it_was(kind: str, tmp_path: Path) -> None:
    engine = lite(kind, tmp_path)
    run(engine, "CREATE TABLE t (a UNIQUE)", "INSERT INTO t VALUES ('ü')")
    with engine.connect() as connection:
        driver = connection.connection.driver_connection
    assert isinstance(driver, sqlite3.Connection)
    driver.row_factory, driver.text_factory = sqlite3.Row, bytes

    def state() -> list[object]:
        pragmas = ("foreign_keys", "busy_timeout", "synchronous", "journal_mode")
        values = [tuple(driver.execute(f"PRAGMA {pragma}").fetchone()) for pragma in pragmas]
        return [*values, driver.row_factory, driver.text_factory, driver.in_transaction]

    before = state()
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        run(engine, "INSERT INTO t VALUES ('more')")
        cleaner.clean()
        assert state() == before
        run(engine, "DROP TABLE t")
        with pytest.raises(Exception, match="is gone: "):
            cleaner.clean()
    assert state() == before
    assert driver.execute("SELECT 1").fetchone()[0] == 1


def test_of_a_database_for_each_thread_that_of_the_caller_is_cleaned_and_named() -> None:
    engine = create_engine("sqlite://", poolclass=SingletonThreadPool)
    run(engine, "CREATE TABLE mine (a)", "INSERT INTO mine VALUES (1)")
    cleaner = Cleaner(engine, lock_timeout=0.2)
    found: list[object] = []

    def other() -> None:
        run(engine, "CREATE TABLE theirs (a)", "INSERT INTO theirs VALUES (1)")
        found.append(cleaner.clean().tables)
        found.append(str(cleaner._session.look().name))

    thread = threading.Thread(target=other, name="worker 7")
    thread.start()
    thread.join()
    assert found == [("theirs",), "the database in memory of thread 'worker 7'"]
    assert count(engine, "mine") == 1
    assert cleaner.clean().tables == ("mine",)


def test_a_database_that_a_pool_has_replaced_is_seen(tmp_path: Path) -> None:
    engine = lite("memory", tmp_path)
    run(engine, "CREATE TABLE t (a)")
    cleaner = Cleaner(engine)
    cleaner.clean()
    engine.dispose()
    run(engine, "CREATE TABLE t (a)", "CREATE TABLE u (a)", "INSERT INTO u VALUES (1)")
    assert cleaner.clean().tables == ("u",)


class TestSharedCache:
    @pytest.fixture
    def other(self, request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
        name = SHARED.format(request.node.name)
        connection = sqlite3.connect(name, uri=True, isolation_level=None)
        connection.execute("CREATE TABLE t (a)")
        connection.execute("INSERT INTO t VALUES (1)")
        yield connection
        connection.close()

    @pytest.fixture
    def url(self, request: pytest.FixtureRequest) -> str:
        return f"sqlite:///{SHARED.format(request.node.name)}&uri=true"

    def test_a_url_is_enough(self, other: sqlite3.Connection, url: str) -> None:
        with Cleaner(url) as cleaner:
            threads = [threading.Thread(target=cleaner.clean) for _ in range(2)]
            for thread in threads:
                thread.start()
                thread.join()
            assert other.execute("SELECT count(*) FROM t").fetchone() == (0,)
            other.execute("INSERT INTO t VALUES (1)")
            assert cleaner.clean().tables == ("t",)

    def test_an_engine_of_any_pool_serves(
        self, other: sqlite3.Connection, request: pytest.FixtureRequest
    ) -> None:
        name = SHARED.format(request.node.name)
        for pool in (QueuePool, StaticPool):
            engine = create_engine(
                "sqlite://", creator=lambda: sqlite3.connect(name, uri=True), poolclass=pool
            )
            other.execute("INSERT INTO t VALUES (1)")
            with Cleaner(engine) as cleaner:
                assert cleaner.clean().tables == ("t",)
            engine.dispose()

    def test_recreate_undoes_what_a_test_did_to_the_schema(
        self, other: sqlite3.Connection, url: str
    ) -> None:
        for source in (url, create_engine(url, poolclass=QueuePool)):
            with Cleaner(source, strategy="recreate", lock_timeout=1) as cleaner:
                cleaner.capture()
                other.execute("CREATE TABLE more (a)")
                other.execute("DELETE FROM t")
                cleaner.clean()
                cleaner.release()
            assert other.execute("SELECT name FROM sqlite_master").fetchall() == [("t",)]
            assert other.execute("SELECT count(*) FROM t").fetchone() == (1,)

    def test_a_writer_is_waited_for_and_no_longer_than_lock_timeout(
        self, other: sqlite3.Connection, url: str
    ) -> None:
        with Cleaner(url, lock_timeout=0.3) as cleaner:
            cleaner.plan()
            other.execute("BEGIN IMMEDIATE")
            other.execute("INSERT INTO t VALUES (2)")
            with pytest.raises(BlockedError, match="another connection of this process"):
                cleaner.clean()
            other.execute("COMMIT")
            assert cleaner.clean().tables == ("t",)


def test_a_connection_that_only_one_thread_may_use_is_named() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    run(engine, "CREATE TABLE t (a)")
    cleaner = Cleaner(engine)
    cleaner.clean()
    errors: list[BaseException] = []

    def other() -> None:
        try:
            cleaner.clean()
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert "check_same_thread" in str(errors[0])


@AUTOCOMMIT
def test_a_connection_that_is_always_in_a_transaction_is_refused_by_the_name_of_the_mode() -> None:
    arguments = {"check_same_thread": False, "autocommit": False}
    engine = create_engine("sqlite://", poolclass=StaticPool, connect_args=arguments)
    run(engine, "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)")
    with engine.connect() as connection:
        connection.exec_driver_sql("INSERT INTO t VALUES (2)")
        with pytest.raises(SettingsError, match="autocommit=False"):
            Cleaner(engine).clean()
        assert connection.exec_driver_sql("SELECT count(*) FROM t").scalar() == 2


def test_events_of_the_application_prepare_our_connection(tmp_path: Path) -> None:
    path = tmp_path / "app_test.db"

    engine = create_engine(f"sqlite:///{path}")

    @event.listens_for(engine, "connect")
    def prepare(connection: sqlite3.Connection, record: object) -> None:
        connection.create_collation("backwards", lambda a, b: (a < b) - (a > b))

    run(engine, "CREATE TABLE t (k TEXT COLLATE backwards PRIMARY KEY)")
    run(engine, "INSERT INTO t VALUES ('a'), ('b')")
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        run(engine, "DELETE FROM t")
        with pytest.raises(CleanerError, match="no such collation") as raised:
            Cleaner(f"sqlite:///{path}").clean()
        assert "Engine" in raised.value.remedy
        assert cleaner.clean().tables == ("t",)
    assert count(engine, "t") == 2
