"""Roles and environment: owners, those with GRANTs only, role defaults, and restarts."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import psycopg
import pytest
from sqlalchemy import make_url
from support.cases import AS_OWNER, AS_SUPERUSER, AUTO, REPLICA, TRUNCATE, Way, clean, ways
from support.database import STRATEGIES, Database

from cleaner.errors import (
    BlockedError,
    CleanerError,
    ExcludedTableError,
    NotCleanError,
    StrategyRefusedError,
    UnsafeDatabaseError,
)
from cleaner.provision.embedded import EmbeddedPostgres

TABLES = """
    CREATE TABLE parent (id serial PRIMARY KEY, x int);
    CREATE TABLE child (id int GENERATED ALWAYS AS IDENTITY, parent int REFERENCES parent);
    CREATE TABLE part (id int) PARTITION BY LIST (id); CREATE TABLE leaf PARTITION OF part DEFAULT;
    CREATE SEQUENCE lone;"""
ROWS = """INSERT INTO parent (x) VALUES (1); INSERT INTO child (parent) VALUES (1);
    INSERT INTO part VALUES (1); SELECT nextval('lone');"""


def grant(database: Database, privileges: str, on: str = "ALL TABLES IN SCHEMA public") -> None:
    database.execute(f"GRANT {privileges} ON {on} TO {database.role}")


def clean_as_guest(database: Database, strategy: str, **settings: object) -> None:
    with database.cleaner(role=database.role, strategy=strategy, **settings) as cleaner:
        cleaner.clean()
        cleaner.verify()


def assert_clean(database: Database) -> None:
    for table in ("parent", "child", "part"):
        assert (table, database.count(table)) == (table, 0)


@pytest.mark.parametrize(
    ("strategy", "privileges"),
    [("auto", "SELECT, DELETE"), ("auto", "TRUNCATE"), ("delete", "SELECT, DELETE"),
     ("truncate", "TRUNCATE"), ("auto", "ALL")],
)  # fmt: skip
def test_grants_are_enough(database: Database, strategy: str, privileges: str) -> None:
    database.execute(TABLES + ROWS)
    grant(database, privileges)
    grant(database, "SELECT, UPDATE", "ALL SEQUENCES IN SCHEMA public")
    clean_as_guest(database, strategy)
    assert_clean(database)
    assert database.scalar("SELECT nextval('lone')") == 1
    assert database.scalar("INSERT INTO parent (x) VALUES (1) RETURNING id") == 1
    assert database.scalar("INSERT INTO child (parent) VALUES (1) RETURNING id") == 1


@pytest.mark.parametrize("strategy", ["auto", "delete"])
def test_a_sequence_that_this_role_may_not_reset_is_warned_about(
    database: Database, strategy: str
) -> None:
    database.execute(TABLES + ROWS)
    grant(database, "SELECT, DELETE, TRUNCATE")
    with database.cleaner(role=database.role, strategy=strategy) as cleaner:
        warnings = "\n".join(cleaner.clean().warnings)
    assert_clean(database)
    assert "GRANT SELECT, UPDATE ON SEQUENCE" in warnings
    assert "lone" in warnings


@pytest.mark.parametrize(
    ("strategy", "privileges", "remedy"),
    [("auto", "SELECT", "GRANT"), ("delete", "DELETE", "GRANT SELECT, DELETE"),
     ("truncate", "SELECT, DELETE", "GRANT TRUNCATE"), ("replica", "ALL", "GRANT SET|SUPERUSER"),
     ("delete", "TRUNCATE", "auto")],
)  # fmt: skip
def test_a_missing_privilege_is_refused_by_name(
    database: Database, strategy: str, privileges: str, remedy: str
) -> None:
    database.execute(TABLES + ROWS)
    grant(database, privileges)
    with pytest.raises(StrategyRefusedError, match=rf"(?s){remedy}") as caught:
        clean_as_guest(database, strategy)
    if strategy != "replica":
        assert any(table in caught.value.what for table in ("parent", "child", "part"))
    assert database.count("parent") == 1


@pytest.mark.parametrize("strategy", ["auto", "delete", "truncate"])
def test_a_schema_that_this_role_may_not_use_is_refused_by_name(
    database: Database, strategy: str
) -> None:
    database.execute("CREATE SCHEMA closed; CREATE TABLE closed.t AS SELECT 1 AS id")
    grant(database, "ALL", "closed.t")
    with pytest.raises(StrategyRefusedError, match=r"closed.*GRANT USAGE ON SCHEMA"):
        clean_as_guest(database, strategy)
    grant(database, "USAGE", "SCHEMA closed")
    clean_as_guest(database, strategy)
    assert database.count("closed.t") == 0


def test_replica_works_once_it_is_granted(database: Database) -> None:
    if database.scalar("SELECT current_setting('server_version_num')::int") < 150000:
        pytest.skip("GRANT SET came with PostgreSQL 15")
    database.execute(TABLES + ROWS)
    database.execute(f"GRANT SET ON PARAMETER session_replication_role TO {database.role}")
    try:
        clean(database, Way("replica", owner=True))
    finally:
        database.execute(f"REVOKE SET ON PARAMETER session_replication_role FROM {database.role}")


@pytest.mark.parametrize("strategy", ["auto", "delete", "truncate"])
def test_privileges_that_change_between_two_cleans_are_noticed(
    database: Database, strategy: str
) -> None:
    database.execute(TABLES)
    grant(database, "SELECT, DELETE, TRUNCATE")
    with database.cleaner(role=database.role, strategy=strategy) as cleaner:
        cleaner.clean()
        database.execute(ROWS)
        database.execute(f"REVOKE ALL ON child FROM {database.role}")
        with pytest.raises(StrategyRefusedError, match=r"child.*GRANT"):
            cleaner.clean()
        assert database.count("child") == 1
        grant(database, "SELECT, DELETE, TRUNCATE", "child")
        cleaner.clean()
    assert_clean(database)


SWALLOW = """CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN RETURN NULL; END';
    CREATE FUNCTION complain() RETURNS trigger LANGUAGE plpgsql
        AS 'BEGIN RAISE EXCEPTION ''never''; END';
    CREATE TABLE audit (what text);
    CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
        AS 'BEGIN INSERT INTO public.audit VALUES (TG_OP); RETURN NULL; END';"""
OBSTACLES = {
    "row security": "ALTER TABLE parent ENABLE ROW LEVEL SECURITY",
    "rule": "CREATE RULE keep AS ON DELETE TO parent DO INSTEAD NOTHING",
    "swallow": "CREATE TRIGGER x BEFORE DELETE ON parent FOR EACH ROW EXECUTE FUNCTION swallow()",
    "raise": "CREATE TRIGGER x BEFORE DELETE ON parent FOR EACH ROW EXECUTE FUNCTION complain()",
}


@pytest.mark.parametrize("obstacle", OBSTACLES.values(), ids=OBSTACLES)
def test_obstacles_of_another_owner_are_truncated_or_named(
    database: Database, obstacle: str
) -> None:
    database.execute(TABLES + ROWS + SWALLOW + obstacle)
    grant(database, "SELECT, DELETE")
    for strategy in ("auto", "delete"):
        with pytest.raises(CleanerError, match=r"(?s)parent.*Remedy: .*(truncate|auto|GRANT)"):
            clean_as_guest(database, strategy)
        assert database.count("parent") == 1
    grant(database, "TRUNCATE")
    with pytest.raises(CleanerError, match=r"(?s)parent.*(truncate|auto)"):
        clean_as_guest(database, "delete")
    with database.cleaner(role=database.role) as cleaner:
        assert "parent" in cleaner.clean().truncated
    assert_clean(database)


def test_an_audit_trigger_of_another_owner_leaves_nothing_behind(database: Database) -> None:
    database.execute(
        TABLES + ROWS + SWALLOW + "CREATE TRIGGER x AFTER DELETE ON parent EXECUTE FUNCTION note();"
        "CREATE TRIGGER x AFTER DELETE ON audit EXECUTE FUNCTION swallow()"
    )
    grant(database, "SELECT, DELETE")
    for strategy in ("auto", "delete"):
        clean_as_guest(database, strategy)
        assert_clean(database)
        assert database.count("audit") == 0
        database.execute("INSERT INTO parent (x) VALUES (1); INSERT INTO audit VALUES ('x')")


@pytest.mark.parametrize("strategy", ["auto", "delete"])
def test_an_excluded_child_that_this_role_may_not_see_is_never_changed(
    database: Database, strategy: str
) -> None:
    database.execute(
        """CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1);
        CREATE TABLE child (parent int REFERENCES parent ON DELETE CASCADE);
        INSERT INTO child VALUES (1)"""
    )
    grant(database, "SELECT, DELETE, TRUNCATE", "parent")
    with pytest.raises(CleanerError, match=r"(?s)child.*Remedy"):
        clean_as_guest(database, strategy, exclude=["child"])
    assert (database.count("child"), database.count("parent")) == (1, 1)


@pytest.mark.parametrize("strategy", ["auto", "delete"])
def test_what_is_missing_to_see_an_excluded_child_is_named_before_a_clean(
    database: Database, strategy: str
) -> None:
    database.execute(
        """CREATE TABLE parent (id int PRIMARY KEY); INSERT INTO parent VALUES (1), (2);
        CREATE SCHEMA apart; CREATE TABLE apart.child (
            parent int REFERENCES parent ON DELETE CASCADE, note text);
        INSERT INTO apart.child VALUES (1)"""
    )
    grant(database, "SELECT, DELETE", "parent")
    settings: dict[str, Any] = {"role": database.role, "strategy": strategy, "exclude": ["child"]}
    steps = {
        "GRANT USAGE ON SCHEMA": ("USAGE", "SCHEMA apart"),
        'GRANT SELECT ON "apart"."child"': ("SELECT (parent)", "apart.child"),
    }
    for remedy, granted in steps.items():
        with database.cleaner(**settings) as cleaner:
            with pytest.raises(StrategyRefusedError, match=r"parent.*apart\.child") as caught:
                cleaner.plan()
            assert remedy in caught.value.remedy
        grant(database, *granted)
    with pytest.raises(ExcludedTableError, match=r"apart\.child"):
        clean_as_guest(database, strategy, exclude=["child"])
    database.execute("ALTER TABLE apart.child ENABLE ROW LEVEL SECURITY")
    with pytest.raises(StrategyRefusedError, match="BYPASSRLS"):
        clean_as_guest(database, strategy, exclude=["child"])
    database.execute("ALTER TABLE apart.child DISABLE ROW LEVEL SECURITY; DELETE FROM apart.child")
    clean_as_guest(database, strategy, exclude=["child"])
    assert database.count("parent") == 0


@pytest.mark.parametrize("captured", [False, True], ids=["empty", "captured"])
@pytest.mark.parametrize("strategy", ["auto", "delete"])
def test_an_excluded_child_that_hides_its_rows_from_its_owner_is_never_changed(
    database: Database, strategy: str, captured: bool
) -> None:
    database.execute(
        """CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (parent int REFERENCES parent ON DELETE CASCADE);
        ALTER TABLE child ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY"""
    )
    database.give_away()
    settings: dict[str, Any] = {"role": database.role, "strategy": strategy, "exclude": ["child"]}
    forced = "SELECT relforcerowsecurity FROM pg_class WHERE relname = 'child'"
    with database.cleaner(**settings) as cleaner:
        if captured:
            database.execute("INSERT INTO parent VALUES (7)")
            with database.cleaner(exclude=["child"]) as superuser:
                superuser.capture()
        for _ in range(2):
            database.execute("INSERT INTO parent VALUES (1); INSERT INTO child VALUES (1)")
            with pytest.raises(ExcludedTableError, match="child"):
                cleaner.clean()
            assert (database.count("child"), database.scalar(forced)) == (1, True)
            database.execute("DELETE FROM child")
            assert cleaner.clean().tables == ("parent",)
            assert (database.count("parent"), database.scalar(forced)) == (int(captured), True)
        database.execute("INSERT INTO parent VALUES (1)")
        with database.transaction() as reader:
            reader.execute("SELECT FROM child")
            with (
                database.cleaner(**settings, lock_timeout=0.1) as hasty,
                pytest.raises(BlockedError) as caught,
            ):
                hasty.clean()
            assert [b.pid for b in caught.value.blockers] == [reader.info.backend_pid]


@ways(*AS_OWNER[:2])
def test_a_leaf_of_another_owner_is_no_obstacle(database: Database, way: Way) -> None:
    database.execute(TABLES + SWALLOW)
    database.execute(
        "CREATE TRIGGER x BEFORE DELETE ON leaf FOR EACH ROW EXECUTE FUNCTION swallow()"
    )
    database.give_away()
    database.execute("ALTER TABLE leaf OWNER TO postgres; DROP TRIGGER x ON leaf;" + ROWS)
    clean_as_guest(database, way.strategy)
    database.execute(
        ROWS.replace("(1);", "((SELECT min(id) FROM parent));", 2)
        + "CREATE TRIGGER x BEFORE DELETE ON leaf FOR EACH ROW EXECUTE FUNCTION swallow()"
    )
    if way.strategy == "auto":  # truncates
        clean_as_guest(database, way.strategy)
        assert_clean(database)
    else:
        with pytest.raises(NotCleanError, match=r"part\b.*trigger x"):
            clean_as_guest(database, way.strategy)
        assert database.count("part") == 1


def test_temporary_functions_may_be_forbidden_and_are_asked_for(database: Database) -> None:
    database.execute(TABLES)
    database.give_away()
    database.execute(f'REVOKE TEMPORARY ON DATABASE "{database.name}" FROM PUBLIC')
    try:
        with pytest.raises(StrategyRefusedError, match="GRANT TEMPORARY ON DATABASE"):
            clean_as_guest(database, "auto")
    finally:
        database.execute(f'GRANT TEMPORARY ON DATABASE "{database.name}" TO PUBLIC')


def test_a_privilege_that_a_trigger_lacks_is_named(database: Database) -> None:
    database.execute(
        """CREATE TABLE watched (id int); INSERT INTO watched VALUES (1);
        CREATE TABLE secret (what text);
        CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN INSERT INTO public.secret VALUES (TG_OP); RETURN NULL; END';
        CREATE TRIGGER tell AFTER DELETE ON watched EXECUTE FUNCTION tell()"""
    )
    grant(database, "SELECT, DELETE", "watched")
    with pytest.raises(CleanerError, match="lacks a privilege") as caught:
        clean_as_guest(database, "delete", exclude=["secret"])
    assert f'GRANT ALL ON "public"."secret" TO "{database.role}"' in caught.value.remedy
    assert database.count("watched") == 1


@pytest.mark.parametrize("captures", [False, True], ids=["clean", "capture"])
@pytest.mark.parametrize("command", ["ALTER TABLE", "CREATE FUNCTION"])
def test_an_event_trigger_that_forbids_ddl_is_named(
    database: Database, command: str, captures: bool
) -> None:
    database.execute(
        """CREATE TABLE t (id int); CREATE TABLE u (id int); INSERT INTO t VALUES (1);
        CREATE FUNCTION swallow() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER keep BEFORE DELETE ON t FOR EACH ROW EXECUTE FUNCTION swallow();
        CREATE FUNCTION forbid() RETURNS event_trigger LANGUAGE plpgsql
            AS 'BEGIN RAISE EXCEPTION ''no %'', TG_TAG USING ERRCODE = ''42501''; END'"""
    )
    if captures:
        command = "CREATE SCHEMA"
    database.execute(
        f"""CREATE EVENT TRIGGER "No DDL" ON ddl_command_start WHEN TAG IN ('{command}')
            EXECUTE FUNCTION forbid()"""
    )
    with (
        database.cleaner(strategy="delete") as cleaner,
        pytest.raises(CleanerError, match=f"no {command}") as caught,
    ):
        cleaner.capture() if captures else cleaner.clean()
    assert "event trigger such as No DDL forbids" in caught.value.cause
    assert 'ALTER EVENT TRIGGER "No DDL" DISABLE' in caught.value.remedy
    assert database.count("t") == 1


DEFAULTS = {
    "default_transaction_isolation": "serializable",
    "default_transaction_read_only": "on",
    "default_transaction_deferrable": "on",
    "statement_timeout": "400",
    "lock_timeout": "50",
    "idle_in_transaction_session_timeout": "100",
    "row_security": "off",
    "search_path": "nowhere",
    "standard_conforming_strings": "off",
    "client_encoding": "LATIN1",
    "extra_float_digits": "-15",
    "array_nulls": "off",
    "quote_all_identifiers": "on",
    "plpgsql.extra_errors": "all",
    "plpgsql.variable_conflict": "use_column",
    "check_function_bodies": "off",
    "DateStyle": "SQL, DMY",
    "IntervalStyle": "iso_8601",
    "plan_cache_mode": "force_custom_plan",
    "jit_above_cost": "0",
}


@pytest.mark.parametrize("replication_role", ["origin", "local", "replica"])
@ways(AUTO, REPLICA, TRUNCATE, AS_OWNER[0], AS_OWNER[1])
def test_defaults_of_the_role_change_nothing(
    database: Database, replication_role: str, way: Way
) -> None:
    database.execute(TABLES + SWALLOW)
    database.execute(
        """CREATE TABLE "back\\slash ü" (id serial, "it's" text); CREATE SCHEMA nowhere;
        INSERT INTO "back\\slash ü" DEFAULT VALUES;
        CREATE TRIGGER x BEFORE DELETE ON parent FOR EACH ROW EXECUTE FUNCTION swallow();
        CREATE TRIGGER y BEFORE DELETE ON child FOR EACH ROW EXECUTE FUNCTION complain();
        ALTER TABLE child ENABLE REPLICA TRIGGER y"""
    )
    database.execute(ROWS)
    where = f'ROLE {way.role(database)} IN DATABASE "{database.name}"'
    database.execute("LOAD 'plpgsql'")
    for setting, value in (DEFAULTS | {"session_replication_role": replication_role}).items():
        # These tests themselves look on as the superuser.
        if way.owner or setting not in ("client_encoding", "statement_timeout"):
            written = value if "," in value else f"'{value}'"
            database.execute(f"ALTER {where} SET {setting} = {written}")
    try:
        clean(database, way)
    finally:
        database.execute(f"ALTER {where} RESET ALL")


# -- which database, and is it still there ----------------------------------------------------


@ways(*AS_SUPERUSER)
def test_a_database_without_the_word_test_is_never_touched(database: Database, way: Way) -> None:
    name = f"{database.name}_latest".replace("test", "live")
    database.execute(f'CREATE DATABASE "{name}"')
    live = Database(database.url.set(database=name), database.role)
    try:
        live.execute("CREATE TABLE t AS SELECT 1 AS id")
        with live.cleaner(strategy=way.strategy) as cleaner:
            with pytest.raises(UnsafeDatabaseError, match=name) as caught:
                cleaner.clean()
            assert "allow_databases" in caught.value.remedy
        assert live.count("t") == 1
        clean(live, way, allow_databases=[name])
    finally:
        live.close()
        database.execute(f'DROP DATABASE "{name}" WITH (FORCE)')


@pytest.fixture
def own_server() -> Iterator[Database]:
    """A database on a server that this test may restart."""
    with EmbeddedPostgres() as server:
        yield Database(make_url(server.create_database("test_restart")), "nobody")


def restart(database: Database) -> None:
    """Make the postmaster end all sessions and start its processes anew, as after a crash."""
    database.execute("CHECKPOINT")
    bystander = database.connect()
    os.kill(database.scalar("SELECT pg_backend_pid()"), signal.SIGKILL)
    database.close()
    with suppress(psycopg.OperationalError):
        while True:
            bystander.execute("SELECT pg_sleep(0.01)")
    bystander.close()
    for _ in range(400):
        with suppress(psycopg.OperationalError):
            database.connect().close()
            return
        time.sleep(0.025)


def test_a_server_that_restarts_between_two_cleans_is_no_event(own_server: Database) -> None:
    own_server.execute(TABLES + ROWS)
    with own_server.cleaner() as cleaner:
        cleaner.clean()
        own_server.execute(ROWS)
        restart(own_server)
        assert "parent" in cleaner.clean().tables
        assert_clean(own_server)
    own_server.close()


def test_a_hot_standby_is_named_as_such() -> None:
    with EmbeddedPostgres(options={"wal_level": "replica", "fsync": "off"}) as server:
        database = Database(make_url(server.create_database("test_standby")), "nobody")
        database.execute("CREATE TABLE t AS SELECT 1 AS id")
        Path(database.scalar("SHOW data_directory"), "standby.signal").touch()
        restart(database)
        assert database.scalar("SELECT pg_is_in_recovery()")
        for strategy in STRATEGIES:
            with (
                database.cleaner(strategy=strategy) as cleaner,
                pytest.raises(CleanerError, match=r"(?s)is a hot standby.*its primary"),
            ):
                cleaner.clean()
        database.close()


def test_a_database_that_was_made_anew_is_looked_at_anew(database: Database) -> None:
    name = f"{database.name}_again"
    other = Database(database.url.set(database=name), database.role)
    try:
        with other.cleaner() as cleaner:
            for tables in ("one", "two"):
                database.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
                database.execute(f'CREATE DATABASE "{name}"')
                other.execute(f"CREATE TABLE {tables} AS SELECT 1 AS id")
                assert cleaner.clean().tables == (tables,)
                other.close()
    finally:
        database.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
