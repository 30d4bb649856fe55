"""What an SQLite schema may be made of."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, event
from sqlalchemy.exc import IntegrityError
from support.lite import count, lite, run

from cleaner import Cleaner
from cleaner.dialects.sqlite.sql import quote
from cleaner.errors import CleanerError, ExcludedTableError, UnsafeDatabaseError

STRATEGIES = ["auto", "delete", "truncate", "replica"]


def schema(engine: Engine) -> list[object]:
    return run(engine, "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY 1, 2")


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_every_kind_of_table_is_emptied(engine: Engine, strategy: str) -> None:
    tables = {
        'a."b "" [ü]': "id INTEGER PRIMARY KEY AUTOINCREMENT, 'select' TEXT",
        "no rowid": "k TEXT COLLATE NOCASE, n INT, PRIMARY KEY (n DESC, k)) WITHOUT ROWID --(",
        "strict": "a INT, b ANY) STRICT --(",
        "generated": "a INT, b INT AS (a * 2) STORED, c AS (a + 1)",
        "order": "rowid TEXT, _rowid_ TEXT, oid TEXT",
    }
    for name, columns in tables.items():
        quoted = quote(name)
        run(engine, f"CREATE TABLE {quoted} ({columns}\n)".replace("--(\n)", ""))
    run(
        engine,
        'INSERT INTO "a.""b """" [ü]" ("select") VALUES (1)',
        "INSERT INTO \"no rowid\" VALUES ('a', 1)",
        "INSERT INTO strict VALUES (1, 'x')",
        "INSERT INTO generated (a) VALUES (1)",
        'INSERT INTO "order" VALUES (1, 2, 3)',
        "CREATE VIEW seen AS SELECT * FROM generated",
        "CREATE TABLE alembic_version (version_num VARCHAR(32) NOT NULL)",
        "INSERT INTO alembic_version VALUES ('abc')",
        "CREATE TABLE elsewhere (version_num VARCHAR(32) NOT NULL PRIMARY KEY)",
        "INSERT INTO elsewhere VALUES ('abc')",
    )
    before = schema(engine)
    with Cleaner(engine, strategy=strategy) as cleaner:
        assert set(cleaner.clean().tables) == set(tables)
        cleaner.verify()
    assert schema(engine) == before
    assert count(engine, "alembic_version", "elsewhere") == 2


def test_temporary_tables_are_left_alone_and_hide_nothing(tmp_path: Path) -> None:
    engine = lite("memory", tmp_path)
    run(engine, "CREATE TABLE t (a)", "INSERT INTO t VALUES (1)")
    run(engine, "CREATE TEMP TABLE t (a)", "INSERT INTO temp.t VALUES (1)")
    with Cleaner(engine) as cleaner:
        cleaner.clean()
        cleaner.verify()
    assert (count(engine, "temp.t"), count(engine, "main.t")) == (1, 0)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_trigger_fires_and_each_is_there_afterwards(engine: Engine, strategy: str) -> None:
    run(
        engine,
        "CREATE TABLE t (a)",
        "CREATE TABLE log (a)",
        'CREATE TRIGGER "x ""y" BEFORE DELETE ON t BEGIN SELECT RAISE(IGNORE); END',
        "CREATE TRIGGER main.refill AFTER DELETE ON t BEGIN INSERT INTO log VALUES (old.a); END",
        "CREATE TRIGGER /* no! */ raises BEFORE DELETE ON log BEGIN SELECT RAISE(ABORT, 'no'); END",
        "CREATE TRIGGER updated AFTER UPDATE ON t BEGIN SELECT 1; END",
    )
    before = schema(engine)
    with Cleaner(engine, strategy=strategy) as cleaner:
        for _ in range(2):
            run(engine, "INSERT INTO t VALUES (1)", "INSERT INTO log VALUES (1)")
            assert set(cleaner.clean().tables) == {"t", "log"}
            cleaner.verify()
    assert schema(engine) == before


def test_a_temporary_trigger_of_the_shared_connection_does_not_fire(tmp_path: Path) -> None:
    engine = lite("memory", tmp_path)
    run(
        engine,
        "CREATE TABLE t (a)",
        "CREATE TEMP TRIGGER keeps BEFORE DELETE ON t BEGIN SELECT RAISE(IGNORE); END",
        "INSERT INTO t VALUES (1)",
    )
    with Cleaner(engine) as cleaner:
        cleaner.clean()
        cleaner.verify()
    run(engine, "INSERT INTO t VALUES (1)", "DELETE FROM t")
    assert count(engine, "t") == 1


def test_attached_databases_are_schemas_and_each_is_judged(tmp_path: Path) -> None:
    for name in ("more_test.db", "live.db"):
        sqlite3.connect(tmp_path / name).close()
    engine = lite("delete", tmp_path)

    @event.listens_for(engine, "connect")
    def attach(connection: sqlite3.Connection, record: object) -> None:
        connection.execute(f"ATTACH '{tmp_path / 'more_test.db'}' AS more")
        connection.execute(f"ATTACH '{tmp_path / 'live.db'}' AS live")

    engine.dispose()
    run(
        engine,
        "CREATE TABLE t (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "CREATE TABLE more.t (id INTEGER PRIMARY KEY AUTOINCREMENT)",
        "CREATE TABLE live.customers (id INTEGER PRIMARY KEY)",
        "CREATE TRIGGER more.d BEFORE DELETE ON t BEGIN SELECT RAISE(IGNORE); END",
        "INSERT INTO main.t VALUES (7)",
        "INSERT INTO more.t VALUES (8)",
        "INSERT INTO live.customers VALUES (9)",
    )
    with Cleaner(engine) as cleaner, pytest.raises(UnsafeDatabaseError, match=r"live\.db"):
        cleaner.clean()
    assert count(engine, "main.t", "more.t", "live.customers") == 3
    with Cleaner(engine, schemas=["main", "more"]) as cleaner:
        report = cleaner.clean()
        assert (set(report.tables), set(report.sequences)) == ({"t", "more.t"}, {"t", "more.t"})
        cleaner.verify()
        cleaner.capture()
    assert count(engine, "live.customers") == 1


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("action", ["CASCADE", "RESTRICT", "SET NULL"])
def test_rows_outside_the_target_are_never_touched(
    engine: Engine, strategy: str, action: str
) -> None:
    run(
        engine,
        "CREATE TABLE p (id INTEGER PRIMARY KEY)",
        f"CREATE TABLE c (p INT REFERENCES p ON DELETE {action})",
        "INSERT INTO p VALUES (1), (2)",
        "INSERT INTO c VALUES (1), (NULL)",
    )
    with Cleaner(engine, exclude=["c"], strategy=strategy) as cleaner:
        with pytest.raises(ExcludedTableError):
            cleaner.clean()
        assert (count(engine, "p", "c"), run(engine, "SELECT p FROM c")[0]) == (4, (1,))
        cleaner.using(only=["c"], exclude=[]).clean()
        if strategy != "truncate":
            assert cleaner.clean().tables == ("p",)


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_cycles_that_nothing_can_break_are_emptied(engine: Engine, strategy: str) -> None:
    run(
        engine,
        "CREATE TABLE a (id INT PRIMARY KEY, b INT NOT NULL REFERENCES b ON DELETE RESTRICT"
        " DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TABLE b (id INT PRIMARY KEY, a INT NOT NULL REFERENCES A (id) ON DELETE RESTRICT"
        " DEFERRABLE INITIALLY DEFERRED)",
        "CREATE TABLE self (id INT PRIMARY KEY, up INT NOT NULL REFERENCES self ON DELETE"
        " RESTRICT)",
        "INSERT INTO a VALUES (1, 1)",
        "INSERT INTO b VALUES (1, 1)",
        "INSERT INTO self VALUES (1, 1), (2, 1)",
    )
    with Cleaner(engine, strategy=strategy) as cleaner:
        assert set(cleaner.clean().tables) == {"a", "b", "self"}
        cleaner.verify()


def test_a_model_is_found_whatever_the_case_of_its_name(engine: Engine) -> None:
    run(engine, "CREATE TABLE Users (id INTEGER PRIMARY KEY)")
    run(engine, "INSERT INTO users VALUES (1)")
    models = MetaData()
    Table("USERS", models, Column("id", Integer, primary_key=True))
    with Cleaner(engine, models) as cleaner:
        assert cleaner.plan().warnings == ()
        cleaner.clean()
    assert count(engine, "users") == 0


def test_captured_rows_get_the_default_of_a_column_that_was_added_since(engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a)",
        "CREATE TABLE w (k TEXT PRIMARY KEY, a) WITHOUT ROWID",
        "INSERT INTO t VALUES (1, 2)",
        "INSERT INTO w VALUES ('k', 2)",
    )
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        for table in ("t", "w"):
            run(
                engine,
                f"ALTER TABLE {table} ADD COLUMN needed INT NOT NULL DEFAULT 5",
                f"ALTER TABLE {table} ADD COLUMN given TEXT DEFAULT 'x'",
                f"ALTER TABLE {table} ADD COLUMN free",
                f"DELETE FROM {table}",
            )
        cleaner.clean()
        assert run(engine, "SELECT * FROM t") == [(1, 2, 5, "x", None)]
        assert run(engine, "SELECT * FROM w") == [("k", 2, 5, "x", None)]
        cleaner.verify()
        assert cleaner.clean().tables == ()


def test_captured_rows_go_back_whatever_a_check_says_of_them(engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE t (id INTEGER PRIMARY KEY, a INT CHECK (a > 0))",
        "PRAGMA ignore_check_constraints = ON",
        "INSERT INTO t VALUES (1, -5)",
        "PRAGMA ignore_check_constraints = OFF",
    )
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        run(engine, "DELETE FROM t")
        cleaner.clean()
        assert run(engine, "SELECT * FROM t") == [(1, -5)]
        with pytest.raises(IntegrityError):
            run(engine, "INSERT INTO t VALUES (2, -1)")


def test_captured_rows_that_a_new_constraint_refuses_are_told_as_such(engine: Engine) -> None:
    run(engine, "CREATE TABLE t (id INTEGER PRIMARY KEY, a INT)", "INSERT INTO t VALUES (1, 1)")
    run(engine, "INSERT INTO t VALUES (2, 1)")
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        run(engine, "DELETE FROM t", "CREATE UNIQUE INDEX i ON t (a)")
        with pytest.raises(CleanerError, match=r"UNIQUE constraint failed: t\.a") as raised:
            cleaner.clean()
    assert "capture()" in raised.value.remedy
