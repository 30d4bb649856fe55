"""Databases in files, which many connections and processes share."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.pool import StaticPool
from support.lite import count, lite, run

from cleaner import Cleaner
from cleaner.dialects.sqlite.locks import lock_on, turn_at
from cleaner.errors import BlockedError, CleanerError, ProvisionError, UnsafeDatabaseError

# Since then the driver can begin a transaction whenever there is none.
AUTOCOMMIT = pytest.mark.skipif(sys.version_info < (3, 12), reason="Python 3.12's autocommit")
MODES = ["delete", "wal"]


@pytest.fixture(params=MODES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    """A table ``t``."""
    engine = lite(request.param, tmp_path)
    run(engine, "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT, a)")
    yield engine
    engine.dispose()


@pytest.fixture
def other(engine: Engine) -> Iterator[sqlite3.Connection]:
    """Somebody else's connection."""
    connection = sqlite3.connect(str(engine.url.database), isolation_level=None, timeout=0)
    yield connection
    connection.close()


def test_a_file_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    path = tmp_path / "app_test.db"
    urls = [f"sqlite:///{path}", f"sqlite:///file:{path}?uri=true"]
    engines = [create_engine(urls[0]), create_engine(urls[0], poolclass=StaticPool)]
    sources: list[str | Engine] = [*urls, *engines]
    for source in sources:
        with pytest.raises(ProvisionError, match="There is no file"):
            Cleaner(source).clean()
    assert list(tmp_path.iterdir()) == []


def test_the_guard_judges_the_files_name(tmp_path: Path) -> None:
    directory = tmp_path / "test"
    directory.mkdir()
    sqlite3.connect(directory / "app.db").execute("CREATE TABLE t (a)")
    (tmp_path / "link_test.db").symlink_to(directory / "app.db")
    for path in (directory / "app.db", tmp_path / "link_test.db"):
        with pytest.raises(UnsafeDatabaseError, match=r"'app\.db'"):
            Cleaner(f"sqlite:///{path}").clean()
    Cleaner(f"sqlite:///{directory / 'app.db'}", allow_databases=["app.db"]).clean()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / "test.db").write_text("no database" * 1000, encoding="utf-8")
    with pytest.raises(CleanerError, match="not a database"):
        Cleaner(f"sqlite:///{tmp_path / 'test.db'}").clean()


def test_a_file_that_can_only_be_read_is_an_error_where_there_is_something_to_clean(
    engine: Engine,
) -> None:
    url = f"sqlite:///file:{engine.url.database}?mode=ro&uri=true"
    with Cleaner(url) as cleaner:
        cleaner.clean()
        run(engine, "INSERT INTO t (a) VALUES (1)")
        with pytest.raises(CleanerError, match="readonly") as raised:
            cleaner.clean()
        assert "chmod" in raised.value.remedy
        assert count(engine, "t") == 1


def test_an_uncommitted_row_is_waited_for_and_its_process_named(
    engine: Engine, other: sqlite3.Connection
) -> None:
    with Cleaner(engine.url, lock_timeout=0.3) as cleaner:
        cleaner.clean()
        other.execute("BEGIN IMMEDIATE")
        other.execute("INSERT INTO t (a) VALUES (1)")
        with pytest.raises(BlockedError) as raised:
            cleaner.clean()
        assert raised.value.blockers
        if Path("/proc/locks").exists():
            assert raised.value.blockers[0].pid == os.getpid()
            assert "this very process" in str(raised.value)
        other.execute("COMMIT")
        assert cleaner.clean().tables == ("t",)


def test_a_lock_that_keeps_even_readers_out_ends_in_an_error(
    engine: Engine, other: sqlite3.Connection
) -> None:
    engine.dispose()
    other.execute("PRAGMA locking_mode = EXCLUSIVE")
    other.execute("BEGIN EXCLUSIVE")
    other.execute("INSERT INTO t (a) VALUES (1)")
    with Cleaner(engine.url, lock_timeout=0.2) as cleaner:
        for work in (cleaner.clean, cleaner.plan, cleaner.verify, cleaner.capture):
            with pytest.raises(BlockedError):
                work()
    other.execute("ROLLBACK")


def test_a_reader_who_does_not_finish_leaves_no_half_clean(
    engine: Engine, other: sqlite3.Connection
) -> None:
    run(
        engine,
        "INSERT INTO t (a) VALUES (1), (2)",
        "CREATE TABLE u (a)",
        "INSERT INTO u VALUES (1)",
    )
    reading = other.execute("SELECT * FROM t")
    reading.fetchone()
    with Cleaner(engine.url, lock_timeout=0.3) as cleaner:
        try:
            cleaner.clean()
        except BlockedError:
            assert run(engine, "PRAGMA journal_mode") == [("delete",)]
            assert count(engine, "t", "u") == 3
        reading.close()
        cleaner.clean()
        assert count(engine, "t", "u") == 0


def test_a_clean_that_has_nothing_to_do_looks_at_no_table(
    engine: Engine, other: sqlite3.Connection
) -> None:
    with Cleaner(engine.url) as cleaner:
        cleaner.clean()
        few = cleaner.clean().round_trips
        for write in (
            "INSERT INTO t (a) VALUES (1)",
            "INSERT INTO sqlite_sequence VALUES ('t', 7)",
            "INSERT INTO t (id, a) VALUES (3, 3)",
        ):
            other.execute(write)
            assert cleaner.clean().round_trips > few, write
            cleaner.verify()
            assert cleaner.clean().round_trips == few
        other.execute("BEGIN")
        other.execute("INSERT INTO t (a) VALUES (1)")
        other.execute("ROLLBACK")
        assert cleaner.clean().tables == ()
        other.execute("CREATE TABLE u (a)")
        other.execute("INSERT INTO u VALUES (1)")
        assert cleaner.clean().tables == ("u",)


def test_a_file_that_was_replaced_is_cleaned_in_its_place(engine: Engine) -> None:
    path = Path(str(engine.url.database))
    with Cleaner(engine.url) as cleaner:
        cleaner.clean()
        engine.dispose()
        for each in path.parent.iterdir():
            each.unlink()
        again = lite("delete", path.parent)
        run(again, "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)")
        assert cleaner.clean().tables == ("t",)
        assert count(again, "t") == 0
        again.dispose()


def test_a_forked_child_and_its_parent_both_go_on(engine: Engine) -> None:
    with Cleaner(engine.url) as cleaner:
        cleaner.clean()
        run(engine, "INSERT INTO t (a) VALUES (1)")
        engine.dispose()
        child = os.fork()
        if not child:
            cleaned = False
            try:
                cleaned = cleaner.clean().tables == ("t",)
            finally:
                os._exit(0 if cleaned else 1)
        assert os.waitpid(child, 0)[1] == 0
        assert cleaner.clean().tables == ()
        run(engine, "INSERT INTO t (a) VALUES (1)")
        assert cleaner.clean().tables == ("t",)


def _work(path: str, times: int) -> None:
    engine = create_engine(f"sqlite:///{path}")
    with Cleaner(engine) as cleaner:
        for _ in range(times):
            with engine.begin() as connection:
                connection.exec_driver_sql("PRAGMA synchronous = OFF")
                connection.exec_driver_sql("INSERT INTO t (a) VALUES (1)")
            cleaner.clean()


def test_eight_processes_clean_one_file_without_an_error(engine: Engine) -> None:
    path = str(engine.url.database)
    engine.dispose()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=_work, args=(path, 25)) for _ in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0] * 8
    with Cleaner(engine.url) as cleaner:
        cleaner.clean()
        cleaner.verify()


def test_the_mode_of_the_file_and_its_journal_stay(engine: Engine) -> None:
    path = Path(str(engine.url.database))
    mode = run(engine, "PRAGMA journal_mode")
    path.chmod(0o640)
    run(engine, "INSERT INTO t (a) VALUES (1)")
    with Cleaner(engine.url) as cleaner:
        cleaner.clean()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert run(engine, "PRAGMA journal_mode") == mode


@AUTOCOMMIT
def test_a_driver_that_begins_transactions_by_itself_serves(engine: Engine) -> None:
    engine = create_engine(engine.url, connect_args={"autocommit": False})
    with Cleaner(engine, lock_timeout=0.5) as cleaner:
        cleaner.capture()
        for _ in range(2):
            run(engine, "INSERT INTO t (a) VALUES (1)")
            assert cleaner.clean().tables == ("t",)
            cleaner.verify()
    with Cleaner(engine, strategy="recreate", lock_timeout=0.5) as cleaner:
        cleaner.capture()
        run(engine, "INSERT INTO t (a) VALUES (1)")
        cleaner.clean()
    assert count(engine, "t") == 0
    engine.dispose()


def test_however_many_files_were_cleaned_the_locks_of_their_turns_are_few(tmp_path: Path) -> None:
    locks = {turn_at(str(tmp_path / f"{n}_test.db")).lock_file for n in range(20_000)}
    assert len(locks) == 1024
    assert (
        not {lock_on(tmp_path / "x", "own").lock_file, lock_on(tmp_path, "build").lock_file} & locks
    )


def test_a_turn_that_does_not_come_keeps_nobody_from_a_file_that_is_free(engine: Engine) -> None:
    path = str(engine.url.database)
    with Cleaner(engine.url, lock_timeout=1) as cleaner, turn_at(path):
        run(engine, "INSERT INTO t (a) VALUES (1)")
        assert cleaner.clean().tables == ("t",)
        run(engine, "INSERT INTO t (a) VALUES (1)")
        assert cleaner.clean().tables == ("t",)
