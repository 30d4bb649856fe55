"""Databases that are attached: files, which the guard judges, and databases in memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, create_engine, event
from sqlalchemy.pool import NullPool
from support.lite import count, lite, run

from cleaner import Cleaner
from cleaner.errors import StrategyRefusedError, UnsafeDatabaseError

CONNECTED = ["delete", "memory"]


def attached(directory: Path, what: str, kind: str = "delete") -> Engine:
    """A database with a table ``t``, and as ``aux`` another with a table ``u`` that holds 1."""
    engine = lite(kind, directory)
    engine.dispose()

    @event.listens_for(engine, "connect")
    def attach(connection: Any, record: object) -> None:
        connection.execute(f"ATTACH '{what}' AS aux")
        connection.execute("CREATE TABLE IF NOT EXISTS aux.u (id INTEGER PRIMARY KEY)")

    run(engine, "CREATE TABLE t (id INTEGER PRIMARY KEY)", "INSERT INTO aux.u VALUES (1)")
    return engine


def names(engine: Engine) -> list[Any]:
    return run(engine, "SELECT name FROM aux.sqlite_master ORDER BY 1")


@pytest.mark.parametrize("strategy", ["auto", "recreate"])
@pytest.mark.parametrize("kind", CONNECTED)
def test_nothing_is_written_to_a_file_that_is_not_for_tests(
    tmp_path: Path, kind: str, strategy: str
) -> None:
    engine = attached(tmp_path, str(tmp_path / "live.db"), kind)
    with Cleaner(engine, strategy=strategy) as cleaner:
        for tables in (None, ["t"]):
            with pytest.raises(UnsafeDatabaseError, match=r"'live\.db'"):
                cleaner.capture(tables)
            assert names(engine) == [("u",)]
        with pytest.raises((UnsafeDatabaseError, StrategyRefusedError)):
            cleaner.clean()
    assert count(engine, "aux.u") == 1
    with Cleaner(engine, strategy=strategy, schemas=["main"]) as cleaner:
        cleaner.capture()
        cleaner.clean()
        cleaner.release()
    assert (names(engine), count(engine, "aux.u")) == ([("u",)], 1)


def test_what_was_captured_there_once_is_not_released_unasked(tmp_path: Path) -> None:
    engine = attached(tmp_path, str(tmp_path / "live.db"))
    with Cleaner(engine, allow_databases=["app_test.db", "live.db"]) as cleaner:
        cleaner.capture()
        before = names(engine)
        assert len(before) == 2
        with Cleaner(engine) as other, pytest.raises(UnsafeDatabaseError):
            other.release()
        assert names(engine) == before
        cleaner.release()
    assert names(engine) == [("u",)]


@pytest.mark.parametrize("kind", CONNECTED)
def test_recreate_is_refused_where_its_copy_would_lack_tables_of_the_target(
    tmp_path: Path, kind: str
) -> None:
    engine = attached(tmp_path, str(tmp_path / "aux_test.db"), kind)
    with Cleaner(engine, strategy="recreate") as cleaner:
        for work in (cleaner.capture, cleaner.clean):
            with pytest.raises(StrategyRefusedError, match="target are in aux") as raised:
                work()
            assert 'exclude = ["aux.*"]' in raised.value.remedy
    with Cleaner(engine, strategy="recreate", exclude=["aux.*"]) as cleaner:
        cleaner.capture()
        run(engine, "INSERT INTO t VALUES (1)", "INSERT INTO aux.u VALUES (2)")
        cleaner.clean()
    assert (count(engine, "t"), count(engine, "aux.u")) == (0, 2)


def test_a_database_in_memory_that_only_its_connection_sees_is_not_claimed_to_be_clean(
    tmp_path: Path,
) -> None:
    engine = attached(tmp_path, ":memory:")
    with Cleaner(engine) as cleaner:
        for work in (cleaner.clean, cleaner.verify, cleaner.plan, cleaner.capture):
            with pytest.raises(StrategyRefusedError, match="tables of aux"):
                work()
    with Cleaner(engine, exclude=["aux.*"]) as cleaner:
        run(engine, "INSERT INTO t VALUES (1)")
        assert cleaner.clean().tables == ("t",)
        (warning,) = cleaner.plan().warnings
    assert "aux" in warning


def test_a_database_in_memory_that_all_connections_share_is_cleaned(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    uri = f"file:{request.node.name}?mode=memory&cache=shared"
    engine = create_engine(
        f"sqlite:///file:{tmp_path / 'app_test.db'}?uri=true", poolclass=NullPool
    )

    @event.listens_for(engine, "connect")
    def attach(connection: Any, record: object) -> None:
        connection.execute(f"ATTACH '{uri}' AS aux")

    with engine.connect() as kept:
        kept.exec_driver_sql("CREATE TABLE main.t (a)")
        kept.exec_driver_sql("CREATE TABLE aux.u (a)")
        kept.exec_driver_sql("INSERT INTO aux.u VALUES (1)")
        kept.commit()
        with Cleaner(engine) as cleaner:
            assert cleaner.plan().warnings == ()
            assert cleaner.clean().tables == ("aux.u",)
        assert kept.exec_driver_sql("SELECT count(*) FROM aux.u").scalar() == 0


def test_a_private_database_in_memory_is_not_taken_for_shared_because_a_file_is(
    tmp_path: Path,
) -> None:
    engine = create_engine("sqlite://", poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def attach(connection: Any, record: object) -> None:
        connection.execute(f"ATTACH '{tmp_path / 'aux_test.db'}' AS aux")

    with pytest.raises(Exception, match="nobody else can see"):
        Cleaner(engine).clean()
