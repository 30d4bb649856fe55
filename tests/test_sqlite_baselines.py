"""Captured rows on SQLite: put back to the last bit, with their rowids and by every strategy."""

from __future__ import annotations

import multiprocessing
import random
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError
from support.lite import KINDS, count, lite, run

from cleaner import Cleaner
from cleaner.errors import (
    BlockedError,
    ExcludedTableError,
    SchemaChangedError,
    StrategyRefusedError,
)

TABLES = {
    "role": "id, name, level, boss",
    '"we ird"': "k, n, v",
    "plain": "a, b, c",
    "user": "id, role_id",
    "gen": "a, b, c",
}
SCHEMA = [
    "CREATE TABLE role (id INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT COLLATE NOCASE UNIQUE,"
    " level, boss INT REFERENCES role ON DELETE CASCADE)",
    'CREATE TABLE "we ird" (k TEXT COLLATE NOCASE, n INT, v BLOB, PRIMARY KEY (n, k))'
    " WITHOUT ROWID",
    "CREATE TABLE plain (a, b REAL, c NUMERIC)",
    "CREATE TABLE user (id INTEGER PRIMARY KEY AUTOINCREMENT,"
    " role_id INT NOT NULL REFERENCES role ON DELETE RESTRICT)",
    "CREATE TABLE gen (a INT, b INT AS (a * 2) STORED, c AS (a || b) VIRTUAL)",
    "CREATE TRIGGER ti AFTER INSERT ON role BEGIN INSERT INTO user (role_id) VALUES (new.id); END",
    "CREATE TRIGGER td BEFORE DELETE ON plain BEGIN SELECT RAISE(IGNORE); END",
    "CREATE TRIGGER tu AFTER UPDATE ON plain BEGIN DELETE FROM user; END",
]
SEED = [
    "INSERT INTO role (name, level, boss)"
    " VALUES ('Admin', 9, NULL), ('g', 0.0, 1), ('x', x'00', 2)",
    "DELETE FROM user",
    "INSERT INTO \"we ird\" VALUES ('a', 1, x'01'), ('b', 2, NULL)",
    "INSERT INTO plain (rowid, a, b, c) VALUES (7, 1, 1, '1'), (9, '1', 1.5, 'é'), (20, 1.0, 2, 3)",
    "INSERT INTO gen (a) VALUES (1), (1)",
]
WRITES = [
    "UPDATE role SET name = 'ADMIN' WHERE id = 1",
    "UPDATE role SET level = 9.0 WHERE id = 1",
    "UPDATE role SET name = name || 1, boss = NULL",
    "DELETE FROM role WHERE id = 3",
    "UPDATE role SET id = id + 10 WHERE boss IS NULL",
    "REPLACE INTO role (id, name) VALUES (1, 'replaced')",
    "INSERT INTO role (name) VALUES ('new')",
    "UPDATE \"we ird\" SET k = 'A' WHERE n = 1",
    "UPDATE \"we ird\" SET n = 3 - n, k = 'a'",
    'DELETE FROM "we ird"',
    "INSERT INTO \"we ird\" VALUES ('c', 3, zeroblob(3))",
    "UPDATE plain SET a = 1 WHERE rowid = 20",
    "UPDATE plain SET a = x'31' WHERE rowid = 9",
    "UPDATE plain SET rowid = 8 WHERE rowid = 7",
    "INSERT INTO plain SELECT * FROM plain",
    "INSERT INTO user (role_id) SELECT id FROM role",
    "UPDATE gen SET a = 9 WHERE rowid = 1",
    "INSERT INTO gen (a) VALUES (1)",
    "UPDATE sqlite_sequence SET seq = 99",
    "DELETE FROM sqlite_sequence",
]


@pytest.fixture
def seeded(engine: Engine) -> Engine:
    run(engine, *SCHEMA, *SEED)
    return engine


def attempt(engine: Engine, statement: str) -> None:
    with suppress(IntegrityError):  # where keys are enforced
        run(engine, statement)


def content(engine: Engine) -> dict[str, Any]:
    """All there is, with rowids and storage classes."""
    found: dict[str, Any] = {}
    for table, names in TABLES.items():
        rowid = "" if "ird" in table else "rowid, "
        types = ", ".join(f"typeof({name})" for name in names.split(", "))
        found[table] = run(engine, f"SELECT {rowid}{names}, {types} FROM {table} ORDER BY 1, 2")
    found["positions"] = sorted(run(engine, "SELECT name, seq FROM sqlite_sequence"))
    return found


def ours(engine: Engine) -> int:
    return count(engine, "sqlite_master WHERE name LIKE 'cleaner%'")


@pytest.mark.parametrize("strategy", ["auto", "delete", "truncate", "replica"])
def test_whatever_is_written_is_seen_and_put_back(seeded: Engine, strategy: str) -> None:
    with Cleaner(seeded, strategy=strategy) as cleaner:
        cleaner.capture()
        before = content(seeded)
        assert cleaner.captured == {"role": 3, "we ird": 2, "plain": 3, "gen": 2}
        for write in WRITES:
            attempt(seeded, write)
            assert bool(cleaner.diff()) == (content(seeded) != before), write
            cleaner.clean()
            assert content(seeded) == before, write
            cleaner.verify()


@pytest.mark.parametrize("seed", range(3))
def test_whatever_several_writes_have_done_is_put_back(seeded: Engine, seed: int) -> None:
    random.seed(seed)
    with Cleaner(seeded) as cleaner:
        cleaner.capture()
        before = content(seeded)
        for _ in range(8):
            for write in random.choices(WRITES, k=6):
                attempt(seeded, write)
            changed = content(seeded) != before
            assert bool(cleaner.diff()) == changed
            report = cleaner.clean()
            assert bool(report.tables or report.sequences) == changed
            assert content(seeded) == before


def test_diff_names_rows_by_key_or_rowid(seeded: Engine) -> None:
    with Cleaner(seeded) as cleaner:
        cleaner.capture()
        assert not cleaner.diff()
        run(
            seeded,
            "UPDATE role SET level = 9.0 WHERE id = 1",
            "DELETE FROM \"we ird\" WHERE k = 'a'",
            "INSERT INTO plain (rowid, a, b, c) VALUES (30, NULL, 1.5, 'it''s')",
            "UPDATE gen SET a = 4 WHERE rowid = 2",
        )
        lines = str(cleaner.diff()).splitlines()
    assert "  ~ id=1: level: 9 -> 9.0" in lines
    assert "  - k=a, n=1, v=\\x01" in lines
    assert "  + a=NULL, b=1.5, c='it''s'" in lines
    assert "  ~ rowid=2: a: 1 -> 4" in lines


def _clean(path: str) -> None:
    with Cleaner(f"sqlite:///{path}") as cleaner:
        assert cleaner.clean().tables
        cleaner.verify()


def test_another_process_puts_back_what_this_one_has_captured(tmp_path: Path) -> None:
    engine = lite("delete", tmp_path)
    run(engine, *SCHEMA, *SEED)
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        before = content(engine)
        run(engine, *WRITES)
        engine.dispose()
        other = multiprocessing.get_context("fork").Process(
            target=_clean, args=(engine.url.database,)
        )
        other.start()
        other.join()
        assert other.exitcode == 0
        assert content(engine) == before
        assert not cleaner.diff()


def test_release_leaves_the_rows_and_nothing_of_ours(seeded: Engine) -> None:
    with Cleaner(seeded) as cleaner:
        schema = cleaner.describe()
        cleaner.capture()
        before = content(seeded)
        assert ours(seeded)
        assert cleaner.describe() == schema
        cleaner.release()
        assert not ours(seeded)
        assert content(seeded) == before
        assert cleaner.captured == {}
        cleaner.clean()
        assert count(seeded, *TABLES) == 0


def test_capturing_some_tables_keeps_the_baseline_of_the_others(seeded: Engine) -> None:
    with Cleaner(seeded) as cleaner:
        cleaner.capture()
        run(seeded, "INSERT INTO gen (a) VALUES (5)", "INSERT INTO plain VALUES (5, 5, 5)")
        cleaner.capture(tables=["gen"])
        cleaner.clean()
        assert (count(seeded, "gen"), count(seeded, "plain")) == (3, 3)
        run(seeded, "INSERT INTO role (id, name) VALUES (50, 'r')")
        with pytest.raises(StrategyRefusedError, match="refer to rows of role"):
            cleaner.capture(tables=["user"])
        cleaner.clean()
        assert (count(seeded, "role"), count(seeded, "user")) == (3, 0)


def test_what_was_captured_and_is_gone_is_named(engine: Engine) -> None:
    run(engine, "CREATE TABLE t (a, b INT)", "INSERT INTO t VALUES (1, 2)")
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        run(engine, "ALTER TABLE t DROP COLUMN b")
        with pytest.raises(SchemaChangedError, match="column b of t"):
            cleaner.clean()
        run(engine, "DROP TABLE t")
        with pytest.raises(SchemaChangedError, match="1 rows of which were captured"):
            cleaner.clean()
        assert cleaner.diff().lost
        cleaner.release()
        cleaner.clean()


def test_virtual_tables_are_captured_or_refused_by_name(engine: Engine) -> None:
    run(
        engine,
        "CREATE TABLE docs (id INTEGER PRIMARY KEY, body)",
        "CREATE VIRTUAL TABLE found USING fts5(body, content = docs, content_rowid = id)",
        "CREATE TRIGGER i AFTER INSERT ON docs BEGIN"
        " INSERT INTO found (rowid, body) VALUES (new.id, new.body); END",
        "CREATE VIRTUAL TABLE own USING fts5(body, x UNINDEXED)",
        "CREATE VIRTUAL TABLE old USING fts4(body)",
        "CREATE VIRTUAL TABLE box USING rtree(id, a, b, +note)",
        "INSERT INTO docs VALUES (1, 'needle'), (2, 'hay')",
        "INSERT INTO own VALUES ('one', 'u'), ('two', 2)",
        "INSERT INTO old (docid, body) VALUES (4, 'needle')",
        "INSERT INTO box VALUES (1, 0.1, 0.2, 'note'), (5, 3, 4, NULL)",
    )

    def state() -> list[object]:
        return [
            run(engine, "SELECT * FROM docs"),
            run(engine, "SELECT rowid FROM found WHERE found MATCH 'needle'"),
            run(engine, "SELECT rowid, * FROM own"),
            run(engine, "SELECT docid FROM old WHERE old MATCH 'needle'"),
            run(engine, "SELECT * FROM box"),
        ]

    before = state()
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        for write in (
            "DELETE FROM docs",
            "INSERT INTO docs VALUES (3, 'needle')",
            "INSERT INTO found (found) VALUES ('delete-all')",
            "UPDATE own SET body = 'x' WHERE rowid = 1",
            "DELETE FROM own",
            "INSERT INTO old VALUES ('needle')",
            "DELETE FROM box",
            "UPDATE box SET note = 1 WHERE id = 1",
        ):
            run(engine, write)
            cleaner.clean()
            assert state() == before, write
            cleaner.verify()
        run(engine, "INSERT INTO found (rowid, body) VALUES (9, 'lie')")
        with pytest.raises(StrategyRefusedError, match="not in step with docs"):
            cleaner.capture()
        run(
            engine,
            "CREATE VIRTUAL TABLE bare USING fts5(body, content = '')",
            "INSERT INTO bare (rowid, body) VALUES (1, 'x')",
        )
        with pytest.raises(StrategyRefusedError, match="bare can't become its baseline"):
            cleaner.capture()


def test_recreate_undoes_whatever_a_test_did_to_the_schema(seeded: Engine) -> None:
    with Cleaner(seeded, strategy="recreate", lock_timeout=0.5) as cleaner:
        with pytest.raises(StrategyRefusedError, match="no copy"):
            cleaner.clean()
        cleaner.capture()
        before, schema = content(seeded), cleaner.describe()
        run(
            seeded,
            "DROP TABLE user",
            "CREATE TABLE more (a)",
            "DROP TRIGGER ti",
            "UPDATE role SET level = 3",
            "ALTER TABLE plain ADD COLUMN z",
        )
        cleaner.clean()
        assert (content(seeded), cleaner.describe()) == (before, schema)
        assert run(seeded, "PRAGMA integrity_check") == [("ok",)]
        cleaner.release()
        with pytest.raises(StrategyRefusedError, match="no copy"):
            cleaner.clean()


def test_recreate_waits_no_longer_than_lock_timeout(tmp_path: Path) -> None:
    engine = lite("delete", tmp_path)
    run(engine, "CREATE TABLE t (a)")
    with Cleaner(engine, strategy="recreate", lock_timeout=0.3) as cleaner:
        cleaner.capture()
        with engine.connect() as writer:
            writer.exec_driver_sql("BEGIN IMMEDIATE")
            with pytest.raises(BlockedError):
                cleaner.clean()
        cleaner.clean()
    assert {path.name for path in tmp_path.iterdir()} == {
        "app_test.db",
        "app_test.db.cleaner_template",
    }


@pytest.mark.parametrize("strategy", ["auto", "delete", "truncate", "replica"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_row_whose_excluded_parent_is_gone_is_not_put_back(
    tmp_path: Path, kind: str, strategy: str
) -> None:
    engine = lite(kind, tmp_path)
    run(
        engine,
        "CREATE TABLE parent (id INT PRIMARY KEY)",
        "CREATE TABLE child (id INT, parent INT REFERENCES parent (id) ON DELETE CASCADE)",
        "INSERT INTO parent VALUES (1), (2)",
        "INSERT INTO child VALUES (1, 1), (2, 2), (3, NULL)",
    )
    with Cleaner(engine, strategy=strategy, exclude=["parent"]) as cleaner:
        cleaner.capture()
        run(engine, "DELETE FROM child WHERE parent = 1", "DELETE FROM parent WHERE id = 1")
        with pytest.raises(ExcludedTableError, match="rows of parent that are gone"):
            cleaner.clean()
        assert count(engine, "child") == 2
        run(engine, "INSERT INTO parent VALUES (1)")
        cleaner.clean()
        assert count(engine, "child") == 3
