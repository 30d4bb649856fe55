"""Captured rows, case by case: what is put back, what is refused, who is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from sqlalchemy import Column, Enum, Integer, MetaData, Table, create_engine
from support import observe
from support.cases import AS_SUPERUSER, AUTO, DELETE, REPLICA, Way, ways
from support.database import Database
from support.history import state

from cleaner import Cleaner
from cleaner.errors import (
    BlockedError,
    ExcludedTableError,
    SchemaChangedError,
    SettingsError,
    StrategyRefusedError,
)

FAMILY = """
CREATE TABLE parent (id int PRIMARY KEY, code text UNIQUE, v text);
CREATE TABLE child (id int PRIMARY KEY, code text REFERENCES parent (code) {});
INSERT INTO parent VALUES (1, 'a'), (2, 'b'), (3, 'c');
INSERT INTO child VALUES (1, 'a'), (2, 'b'), (3, NULL);
"""
ACTIONS = [
    "ON DELETE CASCADE",
    "ON DELETE SET NULL",
    "ON DELETE RESTRICT",
    "ON UPDATE CASCADE",
    "ON DELETE NO ACTION DEFERRABLE INITIALLY DEFERRED",
]
CHANGES = {
    "a key moved to another id": "UPDATE parent SET id = 9 WHERE id = 1",
    "ids swapped": "UPDATE parent SET id = 10 - id; UPDATE parent SET id = 10 - id + 1",
    "unique values swapped": """UPDATE child SET code = NULL; UPDATE parent SET code = NULL;
        UPDATE parent SET code = chr(100 - id); UPDATE child SET code = 'a'""",
    "deleted and made again with its children": """INSERT INTO parent VALUES (7, 'new');
        UPDATE child SET code = 'new' WHERE code = 'a'; DELETE FROM parent WHERE code = 'a';
        INSERT INTO parent VALUES (8, 'a')""",
    "new parents of old rows": """INSERT INTO parent VALUES (7, 'new');
        UPDATE child SET code = 'new'""",
    "keys broken by a replica": """SET session_replication_role = replica; DELETE FROM parent
        WHERE id = 1; UPDATE parent SET code = 'a' WHERE id = 2; RESET session_replication_role""",
    "copied frozen": """BEGIN; CREATE TEMP TABLE kept ON COMMIT DROP AS TABLE child;
        TRUNCATE child; INSERT INTO child SELECT id, 'c' FROM kept; COMMIT""",
}


@contextmanager
def captured(database: Database, way: Way, **settings: object) -> Iterator[Cleaner]:
    database.execute(f'GRANT CREATE ON DATABASE "{database.name}" TO {database.role}')
    if way.owner:
        database.give_away()
    settings = {"lock_timeout": 20, **settings}
    with database.cleaner(
        role=way.role(database), strategy=way.strategy, **settings
    ) as cleaner:  # fmt: skip
        cleaner.capture()
        yield cleaner


@ways(AUTO, DELETE)
def test_a_view_that_was_stale_when_its_table_was_captured_is_fresh_after_a_clean(
    database: Database, way: Way
) -> None:
    database.execute("CREATE TABLE one (v int); CREATE MATERIALIZED VIEW shown AS TABLE one")
    database.execute("INSERT INTO one VALUES (1)")
    with captured(database, way) as cleaner:
        assert cleaner.clean().refreshed == ("shown",)
        assert database.count("shown") == 1
        assert cleaner.clean().refreshed == ()


@pytest.mark.parametrize("keyed", [True, False], ids=["keyed", "keyless"])
@pytest.mark.parametrize("action", ACTIONS)
@ways()
def test_no_action_of_a_foreign_key_takes_from_what_is_put_back(
    database: Database, way: Way, action: str, keyed: bool
) -> None:
    database.execute(FAMILY.format(action))
    if not keyed:
        database.execute("ALTER TABLE child DROP CONSTRAINT child_pkey")
    with captured(database, way) as cleaner:
        baseline = state(database)
        for change in CHANGES.values():
            database.execute(change)
            assert state(database) != baseline
            cleaner.clean()
            assert state(database) == baseline, change


@ways(AUTO, DELETE, REPLICA)
def test_untouched_is_one_round_trip_touched_is_one_and_swapped_two(
    database: Database, way: Way
) -> None:
    database.execute("CREATE TABLE t (id int PRIMARY KEY, u int UNIQUE)")
    database.execute("INSERT INTO t VALUES (1, 1), (2, 2), (3, 3)")
    with captured(database, way) as cleaner:
        cleaner.clean()
        assert cleaner.clean().round_trips == 1
        database.execute("UPDATE t SET u = 9 WHERE id = 1; DELETE FROM t WHERE id = 2")
        report = cleaner.clean()
        assert (report.tables, report.round_trips) == (("t",), 1)
        database.execute("UPDATE t SET u = -u; UPDATE t SET u = 4 + u")
        report = cleaner.clean()
        assert (report.tables, report.round_trips) == (("t",), 2)
        assert database.execute("TABLE t ORDER BY 1") == [(1, 1), (2, 2), (3, 3)]


# -- outside the target -----------------------------------------------------------------------


@pytest.mark.parametrize(
    "publication",
    ["FOR TABLE t", "FOR ALL TABLES", "FOR TABLE t (v)", "FOR TABLE t WHERE (v <> 'x')"],
)
@ways(*AS_SUPERUSER)
def test_rows_whose_updates_are_published_by_nothing_that_identifies_them_are_put_back(
    database: Database, way: Way, publication: str
) -> None:
    key = "PRIMARY KEY" if "v" in publication else "NOT NULL UNIQUE"
    database.execute(
        f"""CREATE TABLE t (id int {key}, v text); INSERT INTO t VALUES (1, 'a'), (2, 'b');
        CREATE TABLE u (id int REFERENCES t (id) ON DELETE CASCADE); INSERT INTO u VALUES (1);
        CREATE PUBLICATION p {publication} WITH (publish = 'insert, update')"""
    )
    with database.cleaner(strategy=way.strategy) as cleaner:
        cleaner.capture()
        before = state(database)
        for _ in range(2):
            database.execute(
                """ALTER TABLE t REPLICA IDENTITY FULL; ALTER PUBLICATION p SET (publish = '');
                UPDATE t SET v = 'x' WHERE id = 1; ALTER TABLE t REPLICA IDENTITY DEFAULT;
                ALTER PUBLICATION p SET (publish = 'insert, update')"""
            )
            assert "t" in cleaner.clean().tables
            assert state(database) == before


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize(
    "change",
    [
        "INSERT INTO parent VALUES (5, 'e'); INSERT INTO child VALUES (5, 'e')",
        "INSERT INTO child VALUES (5, 'c'); UPDATE child SET code = NULL WHERE code = 'a';"
        " UPDATE parent SET code = 'z' WHERE id = 1; UPDATE child SET code = 'z' WHERE id = 1",
    ],
    ids=["a new row", "a new value"],
)
@ways(AUTO, DELETE, REPLICA)
def test_what_an_excluded_row_refers_to_is_not_taken_from_it(
    database: Database, way: Way, action: str, change: str
) -> None:
    database.execute(FAMILY.format(action))
    with captured(database, way, exclude=["child"]) as cleaner:
        database.execute("UPDATE parent SET v = 'x'")
        cleaner.clean()
        database.execute(change)
        before = state(database)
        with pytest.raises(ExcludedTableError, match="child"):
            cleaner.clean()
        assert state(database) == before


@ways(*AS_SUPERUSER)
def test_a_row_whose_excluded_parent_is_gone_is_not_put_back(database: Database, way: Way) -> None:
    database.execute(FAMILY.format("ON DELETE CASCADE"))
    with captured(database, way, exclude=["parent"]) as cleaner:
        database.execute("DELETE FROM parent WHERE id = 1")
        before = state(database)
        with pytest.raises(ExcludedTableError, match=r"of parent that are gone.*child_code_f"):
            cleaner.clean()
        assert state(database) == before


# -- which tables -----------------------------------------------------------------------------


@ways(*AS_SUPERUSER)
def test_only_the_named_tables_keep_rows(database: Database, way: Way) -> None:
    database.execute(FAMILY.format(""))
    database.execute("CREATE TABLE other (id serial); INSERT INTO other DEFAULT VALUES")
    with database.cleaner(strategy=way.strategy) as cleaner:
        with pytest.raises(SettingsError, match=r"parrent.*did you mean 'parent'"):
            cleaner.capture(tables=["parrent"])
        with pytest.raises(SettingsError, match="string"):
            cleaner.capture(tables="parent")
        with pytest.raises(StrategyRefusedError, match="refer to rows of parent"):
            cleaner.capture(tables=["child"])
        assert database.count("child") == 3
        cleaner.capture(tables=["par*"])
        cleaner.clean()
        counts = [database.count(table) for table in ("parent", "child", "other")]
        assert counts == [3, 0, 0]
        database.execute("INSERT INTO child VALUES (1, 'a'); UPDATE parent SET v = 'new'")
        cleaner.capture(tables=["public.child"])
        cleaner.clean()
        assert database.execute("SELECT count(v) FROM parent") == [(0,)]
        assert database.count("child") == 1
        cleaner.release()
        cleaner.clean()
        assert [database.count(table) for table in ("parent", "child")] == [0, 0]
        assert not database.execute("SELECT FROM pg_namespace WHERE nspname = 'cleaner_baseline'")


@ways(AUTO)
def test_our_schema_is_never_taken_for_the_users_tables(database: Database, way: Way) -> None:
    database.execute(FAMILY.format(""))
    with captured(database, way) as cleaner:
        assert set(cleaner.plan().tables) == {"parent", "child"}
        cleaner.capture()
        assert set(cleaner.plan().tables) == {"parent", "child"}


def test_types_and_tables_can_be_dropped_after_a_capture(database: Database) -> None:
    metadata = MetaData()
    Table("t", metadata, Column("id", Integer), Column("m", Enum("a", "b", name="mood")))
    engine = create_engine(database.url)
    metadata.create_all(engine)
    database.execute("INSERT INTO t VALUES (1, 'a')")
    with captured(database, AUTO) as cleaner:
        metadata.drop_all(engine)
        assert not database.execute("SELECT FROM pg_type WHERE typname = 'mood'")
        with pytest.raises(SchemaChangedError, match=r"public\.t"):
            cleaner.clean()
        metadata.create_all(engine)
        cleaner.clean()
        assert database.execute("TABLE t") == [(1, "a")]
    engine.dispose()


# -- roles ------------------------------------------------------------------------------------


def test_a_role_that_may_not_make_a_schema_is_told_the_grant(database: Database) -> None:
    database.execute(FAMILY.format(""))
    database.give_away()
    database.execute(f'REVOKE CREATE ON DATABASE "{database.name}" FROM {database.role}')
    grant = f"GRANT CREATE ON DATABASE {database.name} TO {database.role}".replace('"', "")
    with database.cleaner(role=database.role) as cleaner:
        with pytest.raises(StrategyRefusedError) as caught:
            cleaner.capture()
        assert caught.value.remedy.replace('"', "") == grant


@ways(*AS_SUPERUSER[:3])
def test_a_role_under_which_a_trigger_would_fire_is_refused(database: Database, way: Way) -> None:
    database.execute(
        FAMILY.format("")
        + """CREATE TABLE log (what text); CREATE FUNCTION log() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN INSERT INTO log VALUES (TG_OP); RETURN NULL; END';
        CREATE TRIGGER log AFTER UPDATE OR INSERT ON parent FOR EACH ROW EXECUTE FUNCTION log()"""
        + f"; GRANT ALL ON ALL TABLES IN SCHEMA public TO {database.role}"
    )
    with (
        captured(database, AUTO, exclude=["log"]) as owner,
        database.cleaner(
            role=database.role, strategy=way.strategy, exclude=["log"]
        ) as cleaner,
    ):  # fmt: skip
        database.execute("UPDATE parent SET v = 'x'; TRUNCATE log")
        for work in (cleaner.clean, cleaner.capture):
            with pytest.raises(StrategyRefusedError, match="trigger log would fire"):
                work()
        owner.clean()
        assert database.count("log") == 0
        assert database.execute("SELECT count(v) FROM parent") == [(0,)]


# -- other sessions ---------------------------------------------------------------------------


def test_a_capture_waits_no_longer_than_it_may_and_names_the_writer(database: Database) -> None:
    database.execute(FAMILY.format(""))
    with database.cleaner(lock_timeout=0.2) as cleaner, database.transaction() as writer:
        writer.execute("UPDATE parent SET v = 'x'")
        with pytest.raises(BlockedError) as caught:
            cleaner.capture()
        assert [blocker.pid for blocker in caught.value.blockers] == [writer.info.backend_pid]
        writer.commit()
        cleaner.capture()
        cleaner.clean()
    assert database.execute("SELECT count(v) FROM parent") == [(3,)]


@ways(*AS_SUPERUSER)
def test_an_old_transaction_that_writes_after_the_capture_is_not_missed(
    database: Database, way: Way
) -> None:
    database.execute(FAMILY.format(""))
    with database.transaction() as writer:
        writer.execute("SELECT pg_current_xact_id()")
        with captured(database, way) as cleaner:
            baseline = state(database)
            for _ in range(3):
                database.execute("UPDATE parent SET v = 'x' WHERE id = 2")
                cleaner.clean()
                assert state(database) == baseline
            writer.execute("SAVEPOINT s; UPDATE parent SET v = v WHERE id = 1; RELEASE s")
            writer.execute("UPDATE parent SET v = 'x' WHERE id = 1")
            writer.commit()
            assert state(database) != baseline
            cleaner.clean()
            assert state(database) == baseline


def test_captures_at_once_all_succeed_and_the_last_one_counts(database: Database) -> None:
    database.execute(FAMILY.format(""))
    database.execute("INSERT INTO parent SELECT n, n FROM generate_series(10, 5000) n")
    for _ in range(3):
        cleaners = [database.cleaner(lock_timeout=20) for _ in range(4)]
        baseline = state(database)
        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(cleaner.capture) for cleaner in cleaners]:
                done.result()
        for cleaner in cleaners:
            database.execute("DELETE FROM child; UPDATE parent SET v = 'x' WHERE id = 7")
            cleaner.clean()
            assert state(database) == baseline
        cleaners[0].release()
        for cleaner in cleaners:
            cleaner.close()


@ways(*AS_SUPERUSER)
def test_what_another_process_captures_and_releases_is_noticed(
    database: Database, way: Way
) -> None:
    database.execute(FAMILY.format(""))
    with captured(database, way) as cleaner, database.cleaner() as other:
        cleaner.clean()
        database.execute("UPDATE parent SET v = 'new'; DELETE FROM child WHERE id = 1")
        other.capture()
        baseline = state(database)
        database.execute("UPDATE parent SET v = 'x'")
        cleaner.clean()
        assert state(database) == baseline
        other.release()
        cleaner.clean()
        assert (database.count("parent"), database.count("child")) == (0, 0)


def test_a_clone_of_the_database_carries_the_baseline(database: Database) -> None:
    database.execute(FAMILY.format(""))
    name = f"{database.name}_clone"
    with captured(database, AUTO) as cleaner:
        cleaner.close()
        baseline = state(database)
        database.close()
        admin = Database(database.url.set(database="postgres"), database.role)
        admin.execute(f'CREATE DATABASE "{name}" TEMPLATE "{database.name}"')
        clone = Database(database.url.set(database=name), database.role)
        try:
            clone.execute("UPDATE parent SET v = 'x'; DELETE FROM child")
            with clone.cleaner() as other:
                other.clean()
                assert state(clone) == baseline
        finally:
            clone.close()
            admin.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
            admin.close()
    assert observe.contents(database.session) == baseline[0]
