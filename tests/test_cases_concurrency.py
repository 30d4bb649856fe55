"""Other sessions: found, waited for, named or ended, and never overlooked."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine
from support.cases import AS_SUPERUSER, AUTO, DELETE, REPLICA, TRUNCATE, Watched, Way, clean, ways
from support.database import Database

from cleaner import Cleaner
from cleaner.errors import BlockedError, ExcludedTableError, RetriesExhaustedError
from cleaner.provision.embedded import EmbeddedPostgres

TABLES = """
    CREATE TABLE a (id serial PRIMARY KEY, x int); CREATE TABLE b (a int REFERENCES a);
    CREATE TABLE p (id int) PARTITION BY LIST (id); CREATE TABLE p1 PARTITION OF p DEFAULT;"""
ROWS = "INSERT INTO a (x) VALUES (1), (2); INSERT INTO b VALUES (1); INSERT INTO p VALUES (1);"
WRITERS = {
    "insert": "INSERT INTO a (x) VALUES (3)",
    "update": "UPDATE a SET x = 4",
    "delete": "DELETE FROM b",
    "copy": "COPY a (x) FROM PROGRAM 'echo 7'",
    "savepoint": "SAVEPOINT s; INSERT INTO a (x) VALUES (3); RELEASE s",
    "partition": "INSERT INTO p1 VALUES (2)",
    "lock": "LOCK TABLE a IN ACCESS EXCLUSIVE MODE",
    "alter": "ALTER TABLE b ADD c int",
}


def blocked(database: Database, way: Way, pid: int | None, **settings: Any) -> BlockedError:
    """What a cleaner says that nothing but this session keeps from its work."""
    with (
        database.cleaner(strategy=way.strategy, lock_timeout=0.12, **settings) as cleaner,
        pytest.raises(BlockedError) as caught,
    ):
        cleaner.clean()
    assert ("terminate" if pid else "ROLLBACK PREPARED") in caught.value.remedy
    assert [blocker.pid for blocker in caught.value.blockers] == [pid]
    return caught.value


@ways(AUTO)
def test_an_uncommitted_writer_is_found(database: Database, way: Way) -> None:
    for rows in ("", ROWS):
        database.execute(TABLES + rows)
        for write in WRITERS.values():
            if not rows and ("UPDATE" in write or "DELETE" in write):
                continue  # there is nothing to write to
            with database.transaction() as writer:
                writer.execute(write.encode())
                (blocker,) = blocked(database, way, writer.info.backend_pid).blockers
            assert (blocker.state, blocker.user) == ("idle in transaction", "postgres")
            assert blocker.query == write
            assert blocker.age is not None
            assert blocker.age >= 0
        clean(database, way)
        database.wipe()


@ways(*AS_SUPERUSER)
def test_an_uncommitted_writer_is_found_by_every_strategy(database: Database, way: Way) -> None:
    database.execute(TABLES)
    with database.transaction() as writer:
        writer.execute("INSERT INTO a (x) VALUES (3)")
        blocked(database, way, writer.info.backend_pid)
        writer.rollback()
        clean(database, way)


@ways(*AS_SUPERUSER)
def test_none_of_more_attempts_than_milliseconds_waits_for_ever(
    database: Database, way: Way
) -> None:
    database.execute(TABLES)
    with (
        database.transaction() as writer,
        database.cleaner(strategy=way.strategy, lock_timeout=0.002, retries=5) as cleaner,
    ):
        writer.execute("INSERT INTO a (x) VALUES (3)")
        rescue = threading.Timer(20, writer.rollback)
        rescue.start()
        with pytest.raises(BlockedError):
            cleaner.clean()
        rescue.cancel()


LOOKS: dict[str, Callable[[Cleaner], object]] = {
    "clean": Cleaner.clean,
    "plan": Cleaner.plan,
    "diff": Cleaner.diff,
    "describe": Cleaner.describe,
    "capture": Cleaner.capture,
    "release": Cleaner.release,
    "captured": lambda cleaner: cleaner.captured,
    "fingerprint": lambda cleaner: cleaner.fingerprint,
}


@pytest.mark.parametrize("look", LOOKS)
def test_who_keeps_from_looking_at_the_schema_is_named(database: Database, look: str) -> None:
    database.execute(TABLES + ROWS + "CREATE VIEW v AS SELECT x FROM a")
    with database.cleaner() as cleaner:
        cleaner.capture()
    locked = "a" if look == "describe" else "cleaner_baseline.baseline"
    with database.transaction() as holder:
        holder.execute(f"LOCK TABLE {locked}".encode())
        rescue = threading.Timer(20, holder.rollback)
        rescue.start()
        with (
            database.cleaner(lock_timeout=0.2) as cleaner,
            pytest.raises(BlockedError, match="Looking at") as caught,
        ):
            LOOKS[look](cleaner)
        rescue.cancel()
        assert [blocker.pid for blocker in caught.value.blockers] == [holder.info.backend_pid]


def test_who_keeps_from_looking_at_the_schema_is_ended_where_settings_say_so(
    database: Database,
) -> None:
    database.execute(TABLES + ROWS)
    with database.cleaner(lock_timeout=0.5, on_blocked="terminate") as cleaner:
        cleaner.capture()
        database.execute("DELETE FROM b")
        with suppress(psycopg.OperationalError), database.transaction() as holder:
            holder.execute("LOCK TABLE cleaner_baseline.baseline")
            report = cleaner.using().clean()
            assert [str(holder.info.backend_pid) in who for who in report.terminated] == [True]
        assert database.count("b") == 1


@ways(*AS_SUPERUSER)
def test_rows_of_a_prepared_transaction_are_found(database: Database, way: Way) -> None:
    database.execute(TABLES)
    gid = f"cleaner {database.name}"
    with database.transaction() as writer:
        writer.execute("INSERT INTO a (x) VALUES (3)")
        writer.execute(f"PREPARE TRANSACTION '{gid}'".encode())
        writer.autocommit = True
    assert gid in str(blocked(database, way, None, on_blocked="terminate"))
    database.execute(f"ROLLBACK PREPARED '{gid}'")
    clean(database, way)


@ways(*AS_SUPERUSER)
def test_an_idle_reader_blocks_truncate_alone(database: Database, way: Way) -> None:
    database.execute(TABLES + ROWS)
    with database.transaction() as reader:
        reader.execute("SELECT count(*) FROM a, b, p")
        if way is TRUNCATE:
            blocked(database, way, reader.info.backend_pid)
        else:
            clean(database, way)


@pytest.mark.parametrize("lock", ["UPDATE", "KEY SHARE"])
@ways(*AS_SUPERUSER)
def test_who_has_locked_rows_is_waited_for_and_named(
    database: Database, lock: str, way: Way
) -> None:
    database.execute(TABLES + ROWS)
    with database.transaction() as holder:
        holder.execute(f"SELECT FROM a FOR {lock}".encode())
        blocked(database, way, holder.info.backend_pid)
        assert database.count("b") == 1
    clean(database, way)


@ways(*AS_SUPERUSER)
@pytest.mark.parametrize("retries", [1, 5])
def test_sessions_left_idle_in_transaction_are_ended_where_settings_say_so(
    database: Database, way: Way, retries: int
) -> None:
    database.execute(TABLES + ROWS)
    with database.transaction() as writer, database.transaction() as other:
        writer.execute("INSERT INTO a (x) VALUES (3)")
        other.execute("UPDATE p SET id = 2")
        other.execute("LOCK TABLE b IN SHARE MODE")
        with database.cleaner(
            strategy=way.strategy, lock_timeout=1.0, on_blocked="terminate", retries=retries
        ) as cleaner:
            terminated = cleaner.clean().terminated
            cleaner.verify()
        pids = {writer.info.backend_pid, other.info.backend_pid}
        assert all(any(f"pid {pid} " in line for line in terminated) for pid in pids)
        for session in (writer, other):
            with pytest.raises(psycopg.OperationalError):
                session.execute("SELECT 1")


@ways(AUTO)
def test_a_role_that_may_not_end_a_session_names_it(database: Database, way: Way) -> None:
    database.execute(TABLES + ROWS)
    database.give_away()
    with database.transaction() as writer:
        writer.execute("INSERT INTO a (x) VALUES (3)")
        with (
            database.cleaner(
                role=database.role,
                strategy=way.strategy,
                lock_timeout=0.3,
                on_blocked="terminate",
            ) as cleaner,
            pytest.raises(BlockedError, match=str(writer.info.backend_pid)),
        ):
            cleaner.clean()


@ways(*AS_SUPERUSER)
def test_the_callers_own_open_transaction_is_no_deadlock(database: Database, way: Way) -> None:
    database.execute(TABLES)
    engine = create_engine(database.url, pool_size=1, max_overflow=0)
    with engine.connect() as caller:
        caller.exec_driver_sql(ROWS)
        pid = caller.exec_driver_sql("SELECT pg_backend_pid()").scalar_one()
        with database.cleaner(strategy=way.strategy, lock_timeout=0.3) as cleaner:
            with pytest.raises(BlockedError, match=f"pid {pid}") as caught:
                cleaner.clean()
            assert "commit" in caught.value.remedy
            caller.commit()
            assert set(cleaner.clean().tables) >= {"a", "b", "p"}
    engine.dispose()


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "NO ACTION"])
@ways(AUTO, DELETE, REPLICA)
def test_an_excluded_child_that_is_just_being_written_is_never_changed(
    database: Database, action: str, way: Way
) -> None:
    database.execute(
        f"""CREATE TABLE a (id int PRIMARY KEY); INSERT INTO a VALUES (1);
        CREATE TABLE child (a int REFERENCES a ON DELETE {action})"""
    )
    raised: list[BaseException] = []

    def run() -> None:
        with database.cleaner(strategy=way.strategy, exclude=["child"]) as cleaner:
            try:
                cleaner.clean()
            except ExcludedTableError as error:
                raised.append(error)

    with database.transaction() as writer:
        writer.execute("INSERT INTO child VALUES (1)")
        thread = threading.Thread(target=run)
        thread.start()
        waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
        while thread.is_alive() and not database.scalar(waiting):
            pass
        writer.commit()
        thread.join()
    assert database.execute("SELECT a FROM child") == [(1,)]
    assert database.count("a") == 1
    assert len(raised) == 1


@ways(*AS_SUPERUSER)
def test_a_connection_that_was_ended_is_replaced(database: Database, way: Way) -> None:
    database.execute(TABLES + ROWS)
    with Watched(database, way) as watched:
        watched.clean()
        for _ in range(2):
            database.execute(
                ROWS.replace("VALUES (1);", "SELECT min(id) FROM a;", 1)
                + "SELECT pg_terminate_backend(pid, 1000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'cleaner'"
            )
            watched.cleaner.clean()
            watched.assert_clean({})


@pytest.mark.parametrize("cache", [1, 5])
@ways(*AS_SUPERUSER)
def test_who_has_locked_a_sequence_is_named_and_can_be_ended(
    database: Database, way: Way, cache: int
) -> None:
    database.execute(TABLES + f"ALTER SEQUENCE a_id_seq CACHE {cache};" + ROWS)
    with database.transaction() as holder:
        holder.execute("ALTER SEQUENCE a_id_seq RESTART 7")
        blocked(database, way, holder.info.backend_pid)
        with database.cleaner(strategy=way.strategy, on_blocked="terminate") as cleaner:
            report = cleaner.clean()
            assert f"pid {holder.info.backend_pid} " in report.terminated[0]
            assert "a_id_seq" in report.sequences or way is TRUNCATE
        with pytest.raises(psycopg.OperationalError):
            holder.execute("SELECT 1")
    assert database.scalar("SELECT nextval('a_id_seq')") == 1


@ways(*AS_SUPERUSER)
def test_who_has_drawn_a_value_blocks_only_those_who_restart_the_sequence(
    database: Database, way: Way
) -> None:
    database.execute(TABLES + ROWS)
    with database.transaction() as drawer, database.transaction() as holder:
        drawer.execute("SELECT nextval('a_id_seq')")
        if way is TRUNCATE:
            blocked(database, way, drawer.info.backend_pid)
            return
        holder.execute("LOCK TABLE a")
        blocked(database, way, holder.info.backend_pid)
        holder.rollback()
        clean(database, way)
    assert database.scalar("SELECT nextval('a_id_seq')") == 1


@ways(AUTO, TRUNCATE)
def test_an_idle_reader_of_a_materialized_view_is_named(database: Database, way: Way) -> None:
    database.execute(TABLES + ROWS + "CREATE MATERIALIZED VIEW m AS TABLE a")
    with database.transaction() as reader:
        reader.execute("SELECT count(*) FROM m")
        blocked(database, way, reader.info.backend_pid)
    assert database.count("a") == 2


@ways(AUTO, TRUNCATE)
def test_different_databases_are_cleaned_at_once(database: Database, way: Way) -> None:
    name = f"{database.name}_second"
    database.execute(f'CREATE DATABASE "{name}"')
    second = Database(database.url.set(database=name), database.role)
    try:
        for place in (database, second):
            place.execute(TABLES + ROWS)
        with database.transaction() as holder:
            holder.execute("LOCK TABLE a")
            with database.cleaner(strategy=way.strategy, lock_timeout=0.3) as cleaner:

                def wait() -> None:
                    with pytest.raises(BlockedError):
                        cleaner.clean()

                waiting = threading.Thread(target=wait)
                waiting.start()
                clean(second, way)
                waiting.join()
    finally:
        second.close()
        database.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


def test_a_lock_table_that_is_too_small_is_named() -> None:
    room = {"max_locks_per_transaction": "10", "max_connections": "10"}
    with EmbeddedPostgres(options=room) as server:
        database = Database(server.create_database("test_locks"), "nobody")
        for start in range(0, 3000, 200):
            names = (f"t{i}" for i in range(start, start + 200))
            database.execute(";".join(f"CREATE TABLE {name} (id int)" for name in names))
        with (
            database.cleaner(retries=2) as cleaner,
            pytest.raises(RetriesExhaustedError, match="failed 2 times") as caught,
        ):
            cleaner.clean()
        database.close()
    assert "max_locks_per_transaction is too low" in caught.value.cause
    assert "ALTER SYSTEM SET max_locks_per_transaction" in caught.value.remedy
