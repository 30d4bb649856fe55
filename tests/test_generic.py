"""Databases that no line of ours names: DuckDB, and PostgreSQL taken for one."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import (
    Engine,
    MetaData,
    StaticPool,
    create_engine,
    make_url,
    text,
)
from sqlalchemy.ext.asyncio import create_async_engine
from support.database import Database

from cleaner import AsyncCleaner, Cleaner, waits
from cleaner.dialects.generic.session import GenericSession
from cleaner.errors import (
    CleanerError,
    ExcludedTableError,
    NotCleanError,
    ProvisionError,
    RetriesExhaustedError,
    SettingsError,
    StrategyRefusedError,
    UnsafeDatabaseError,
)
from cleaner.spi import Strategy
from cleaner.testing import StrategyContract

one_server = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


# -- the contract -----------------------------------------------------------------------------


class TestPostgresTakenForUnknown(StrategyContract):
    """The adapter assumes nothing of a dialect."""

    strategy: ClassVar[Strategy | str] = "auto"

    @pytest.fixture
    def cleaner(self, engine: Engine, tables: MetaData) -> Iterator[Cleaner]:
        with generic(engine, tables) as cleaner:
            yield cleaner


def generic(source: Engine | str, metadata: object = None, **settings: Any) -> Cleaner:
    """A cleaner by SQLAlchemy alone, whatever the database."""
    cleaner = Cleaner(source, metadata, **settings)
    url = cleaner.settings.url
    assert url is not None
    return on(GenericSession(url, cleaner._check_database, 5.0), cleaner)


def on(session: GenericSession, cleaner: Cleaner) -> Cleaner:
    cleaner._session = session
    cleaner._configure()
    return cleaner


# -- DuckDB -----------------------------------------------------------------------------------


@pytest.fixture
def duckdb(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
    place = getattr(request, "param", ":memory:").format(tmp_path)
    engine = create_engine(f"duckdb:///{place}")
    run(
        engine,
        "CREATE TABLE parent (a integer, b integer, PRIMARY KEY (a, b))",
        "CREATE TABLE child (id integer PRIMARY KEY, x integer NOT NULL, y integer NOT NULL,"
        " FOREIGN KEY (x, y) REFERENCES parent (a, b))",
        "CREATE TABLE node (id integer PRIMARY KEY, up integer NOT NULL)",
        "CREATE TABLE tree (id integer PRIMARY KEY, up integer REFERENCES tree (id))",
        "CREATE VIEW seen AS SELECT * FROM parent",
    )
    yield engine
    engine.dispose()


def run(engine: Engine, *statements: str) -> None:
    for statement in statements:
        with engine.begin() as connection:
            connection.execute(text(statement))


def rows(engine: Engine, table: str) -> int:
    with engine.connect() as connection:
        found: int = connection.execute(text(f"SELECT count(*) FROM {table}")).scalar_one()
        return found


def fill(engine: Engine) -> None:
    run(
        engine,
        "INSERT INTO parent VALUES (1, 1), (1, 2)",
        "INSERT INTO child VALUES (1, 1, 2)",
        "INSERT INTO tree VALUES (1, NULL)",
        "INSERT INTO tree VALUES (2, 1)",
        "INSERT INTO tree VALUES (3, 2)",
    )


in_both_places = pytest.mark.parametrize(
    "duckdb", [":memory:", "{}/app_test.db"], indirect=True, ids=["memory", "file"]
)


@in_both_places
def test_a_database_that_checks_foreign_keys_too_early_is_cleaned_all_the_same(
    duckdb: Engine,
) -> None:
    with Cleaner(duckdb) as cleaner:
        for _ in range(2):
            fill(duckdb)
            report = cleaner.clean()
            assert report.tables == ("child", "parent", "tree")
            assert {rows(duckdb, table) for table in report.tables} == {0}
            assert any("a transaction of its own" in warning for warning in report.warnings)
        assert cleaner.clean().tables == ()
        assert "COMMIT;\nDELETE FROM parent;" in str(cleaner.plan())


def test_only_tables_with_rows_are_deleted_from(duckdb: Engine) -> None:
    with Cleaner(duckdb) as cleaner:
        run(duckdb, "INSERT INTO parent VALUES (1, 1)")
        report = cleaner.clean()
        assert report.tables == ("parent",)
        assert not any("a transaction of its own" in warning for warning in report.warnings)


def test_rows_outside_the_target_keep_what_they_refer_to(duckdb: Engine) -> None:
    with Cleaner(duckdb, exclude=["child"]) as cleaner:
        run(duckdb, "INSERT INTO parent VALUES (1, 1)")
        assert cleaner.clean().tables == ("parent",)
        fill(duckdb)
        with pytest.raises(ExcludedTableError, match="child, which is outside"):
            cleaner.clean()
        assert (rows(duckdb, "parent"), rows(duckdb, "tree")) == (2, 3)


def test_what_is_left_is_counted_and_shown(duckdb: Engine) -> None:
    with Cleaner(duckdb) as cleaner:
        cleaner.verify()
        fill(duckdb)
        with pytest.raises(NotCleanError, match="tree: 3 rows"):
            cleaner.verify()
        shown = str(cleaner.diff(samples=1))
        assert "+ id=1, up=NULL" in shown
        assert "and 2 more" in shown


@in_both_places
def test_a_table_that_comes_goes_or_changes_is_noticed(duckdb: Engine) -> None:
    with Cleaner(duckdb) as cleaner:
        cleaner.clean()
        before, print_before = cleaner.describe(), cleaner.fingerprint
        run(duckdb, "CREATE TABLE late (id integer)", "INSERT INTO late VALUES (1)")
        assert cleaner.clean().tables == ("late",)
        run(duckdb, "DROP TABLE node")
        assert cleaner.clean().tables == ()
        assert before ^ cleaner.describe() >= {"table late", "table node"}
        assert cleaner.fingerprint != print_before


def test_another_schema_is_left_alone_and_so_is_what_says_which_migrations_ran(
    duckdb: Engine,
) -> None:
    run(
        duckdb,
        "CREATE SCHEMA other",
        "CREATE TABLE other.tree (id integer)",
        "CREATE TABLE other.late (id integer)",
        "INSERT INTO other.tree VALUES (1)",
        "INSERT INTO other.late VALUES (1)",
        "CREATE TABLE migrated (version_num varchar(32) NOT NULL)",
        "INSERT INTO migrated VALUES ('abc')",
        "INSERT INTO tree VALUES (1, NULL)",
    )
    with Cleaner(duckdb) as cleaner:
        assert cleaner.clean().tables == ("tree",)
        cleaner.verify()
    assert [rows(duckdb, name) for name in ("other.tree", "other.late", "migrated")] == [1, 1, 1]


def test_sequences_that_go_on_are_named(duckdb: Engine) -> None:
    run(duckdb, "CREATE SEQUENCE tickets")
    with Cleaner(duckdb) as cleaner:
        assert any(w.startswith("sequence tickets goes on") for w in cleaner.plan().warnings)
        assert cleaner.using(reset_sequences=False).plan().warnings == cleaner.plan().warnings[:1]


@pytest.mark.parametrize("strategy", ["truncate", "replica", "recreate"])
def test_what_sqlalchemy_has_no_way_for_is_refused(duckdb: Engine, strategy: str) -> None:
    fill(duckdb)
    with Cleaner(duckdb, strategy=strategy) as cleaner:
        with pytest.raises(StrategyRefusedError) as refused:
            cleaner.clean()
        assert "SQLAlchemy" in str(refused.value)
        assert 'strategy = "auto"' in refused.value.remedy
        assert rows(duckdb, "tree") == 3


def test_captured_rows_are_refused(duckdb: Engine) -> None:
    fill(duckdb)
    with Cleaner(duckdb) as cleaner:
        with pytest.raises(StrategyRefusedError, match="Can't capture"):
            cleaner.capture()
        cleaner.release()
        assert cleaner.captured == {}


def test_a_file_that_is_no_test_database_is_left_alone(tmp_path: Path) -> None:
    engine = create_engine(f"duckdb:///{tmp_path / 'live.db'}")
    run(engine, "CREATE TABLE things (id integer)", "INSERT INTO things VALUES (1)")
    with Cleaner(engine) as cleaner, pytest.raises(UnsafeDatabaseError, match=r"live\.db"):
        cleaner.clean()
    assert rows(engine, "things") == 1
    engine.dispose()


def test_a_database_in_memory_that_only_we_would_see_is_refused() -> None:
    with pytest.raises(SettingsError, match="nobody else can see") as raised:
        Cleaner("duckdb:///:memory:")
    assert "Cleaner(engine" in raised.value.remedy


@pytest.mark.parametrize(
    ("awaited", "url"),
    [(False, "sqlite+aiosqlite:///app_test.db"), (True, "sqlite:///app_test.db")],
)
def test_a_driver_for_the_other_cleaner_is_refused(awaited: bool, url: str) -> None:
    with waits.awaited(awaited), pytest.raises(SettingsError, match="asynchronous"):
        GenericSession(make_url(url), lambda name: None, 1.0)


def test_an_async_driver_is_awaited_in_whatever_loop_there_is(tmp_path: Path) -> None:
    file = tmp_path / "app_test.db"
    synchronous = create_engine(f"sqlite:///{file}")
    run(synchronous, "CREATE TABLE things (id integer)")
    with waits.awaited():
        cleaner = AsyncCleaner(f"sqlite+aiosqlite:///{file}")
        url = make_url(f"sqlite+aiosqlite:///{file}")
        on(GenericSession(url, lambda name: None, 5.0), cleaner._cleaner)

    async def clean() -> None:
        assert (await cleaner.clean()).tables == ("things",)
        await cleaner.verify()

    for _ in range(2):
        run(synchronous, "INSERT INTO things VALUES (1)")
        asyncio.run(clean())
    synchronous.dispose()


def test_an_async_engine_is_awaited(tmp_path: Path) -> None:
    async def clean() -> None:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path / 'app_test.db'}")
        async with engine.begin() as connection:
            await connection.execute(text("CREATE TABLE things (id integer)"))
            await connection.execute(text("INSERT INTO things VALUES (1)"))
        async with AsyncCleaner(engine) as cleaner:
            with waits.awaited():
                session = GenericSession(engine.sync_engine, lambda name: None, 5.0)
            on(session, cleaner._cleaner)
            assert (await cleaner.clean()).tables == ("things",)
        await engine.dispose()

    asyncio.run(clean())


def test_a_dialect_that_is_not_installed_is_named() -> None:
    with pytest.raises(SettingsError, match="nosuchdialect"):
        Cleaner(make_url("nosuchdialect://host/app_test"))


def test_a_database_that_can_not_be_opened_is_named(tmp_path: Path) -> None:
    with (
        Cleaner(f"duckdb:///{tmp_path / 'none' / 'app_test.db'}") as cleaner,
        pytest.raises(ProvisionError, match=r"none/app_test\.db"),
    ):
        cleaner.clean()


@pytest.mark.parametrize("duckdb", ["{}/app_test.db"], indirect=True)
def test_a_conflict_with_a_writer_is_tried_again_and_then_named(duckdb: Engine) -> None:
    run(duckdb, "INSERT INTO node VALUES (1, 1)")
    with Cleaner(duckdb, retries=2) as cleaner:
        with duckdb.connect() as writer:
            writer.execute(text("DELETE FROM node"))
            with pytest.raises(RetriesExhaustedError, match="failed 2 times"):
                cleaner.clean()
            assert rows(duckdb, "node") == 1
        assert cleaner.clean().tables == ("node",)


# -- promises, on a database that can be held to them -----------------------------------------


@pytest.fixture
def postgres(database: Database) -> Iterator[Engine]:
    engine = create_engine(database.url)
    yield engine
    engine.dispose()


@one_server
def test_a_cycle_that_can_not_be_null_is_refused_by_name(
    database: Database, postgres: Engine
) -> None:
    database.execute(
        """CREATE TABLE egg (id int PRIMARY KEY, hen int NOT NULL);
        CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL REFERENCES egg DEFERRABLE);
        ALTER TABLE egg ADD FOREIGN KEY (hen) REFERENCES hen DEFERRABLE"""
    )
    with generic(postgres) as cleaner, pytest.raises(StrategyRefusedError, match="egg, hen"):
        cleaner.clean()


@one_server
def test_a_failed_clean_leaves_every_row(database: Database, postgres: Engine) -> None:
    database.execute(
        """CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int PRIMARY KEY, parent int REFERENCES parent);
        CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN RAISE 'never'; END $$;
        CREATE TRIGGER no BEFORE DELETE ON parent FOR EACH ROW EXECUTE FUNCTION no();
        INSERT INTO parent VALUES (1);
        INSERT INTO child VALUES (1, 1)"""
    )
    with generic(postgres) as cleaner, pytest.raises(CleanerError, match="never"):
        cleaner.clean()
    assert database.execute("SELECT count(*) FROM child")[0][0] == 1


@one_server
def test_rows_that_a_rule_keeps_are_named(database: Database, postgres: Engine) -> None:
    database.execute(
        """CREATE TABLE kept (id int); INSERT INTO kept VALUES (1), (2);
        CREATE TABLE other (id int); INSERT INTO other VALUES (1);
        CREATE RULE keep AS ON DELETE TO kept DO INSTEAD NOTHING"""
    )
    with generic(postgres) as cleaner, pytest.raises(NotCleanError) as raised:
        cleaner.clean()
    assert [(s.table, s.rows) for s in raised.value.survivors] == [("kept", 2)]
    assert database.execute("SELECT count(*) FROM other")[0][0] == 1


@one_server
def test_what_a_trigger_fills_again_is_emptied_too(database: Database, postgres: Engine) -> None:
    database.execute(
        """CREATE TABLE audit (id int); CREATE TABLE things (id int);
        CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS
            $$ BEGIN INSERT INTO audit VALUES (1); RETURN NULL; END $$;
        CREATE TRIGGER note AFTER DELETE ON things EXECUTE FUNCTION note();
        INSERT INTO things VALUES (1)"""
    )
    with generic(postgres) as cleaner:
        assert set(cleaner.clean().tables) == {"audit", "things"}
        cleaner.verify()


@one_server
def test_a_connection_that_died_is_replaced(database: Database, postgres: Engine) -> None:
    database.execute("CREATE TABLE things (id int); INSERT INTO things VALUES (1)")
    with generic(postgres) as cleaner:
        cleaner.plan()
        database.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE datname = current_database() AND pid <> pg_backend_pid()"
        )
        assert cleaner.clean().tables == ("things",)


@one_server
def test_foreign_keys_that_changed_meanwhile_are_read_again(
    database: Database, postgres: Engine
) -> None:
    database.execute("CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY)")
    with generic(postgres) as cleaner:
        cleaner.clean()
        database.execute(
            """ALTER TABLE b ADD a int REFERENCES a;
            INSERT INTO a VALUES (1); INSERT INTO b VALUES (1, 1)"""
        )
        report = cleaner.clean()
        assert report.tables == ("b", "a")
        assert not any("a transaction of its own" in warning for warning in report.warnings)


def test_a_database_in_memory_is_cleaned_by_the_connection_that_sees_it() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    run(engine, "CREATE TABLE things (id integer)", "INSERT INTO things VALUES (1)")
    with generic(engine, allow_databases=["*"]) as cleaner:
        assert cleaner.clean().tables == ("things",)
    assert rows(engine, "things") == 0
    engine.dispose()


@pytest.mark.skipif(sys.platform == "win32", reason="no fork")
@one_server
def test_a_forked_child_leaves_the_connection_to_its_parent(
    database: Database, postgres: Engine
) -> None:
    database.execute("CREATE TABLE things (id int); INSERT INTO things VALUES (1)")
    with generic(postgres) as cleaner:
        cleaner.plan()
        child = os.fork()
        if child == 0:
            try:
                emptied = cleaner.clean().tables
                cleaner.close()
                os._exit(0 if emptied == ("things",) else 1)
            except BaseException:
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert cleaner.clean().attempts == 1
