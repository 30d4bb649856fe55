"""Putting a database back by a clone of its template, and never anybody else's database."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from contextlib import closing, suppress

import psycopg
import pytest
from support.database import Database
from support.throwaway import Throwaway

from cleaner import Cleaner
from cleaner.dialects.postgresql.clone import template_name
from cleaner.errors import BlockedError, CleanerError, ProvisionError, StrategyRefusedError
from cleaner.provision.embedded import EmbeddedPostgres
from cleaner.provision.leases import Pool

KILLS = int(os.environ.get("CLEANER_STRESS_KILLS", "4"))  # on each server
SCHEMA = """CREATE TABLE thing (id serial PRIMARY KEY, name text UNIQUE);
    CREATE VIEW seen AS SELECT name FROM thing; INSERT INTO thing (name) VALUES ('a'), ('b');"""
MESS = """DROP VIEW seen; ALTER TABLE thing DROP name; TRUNCATE thing RESTART IDENTITY;
    CREATE TABLE another (id int); CREATE SCHEMA mine"""
BASELINE = [("a", 1), ("b", 2)]
LOOK = "SELECT s.name, t.id FROM seen s JOIN thing t USING (name) ORDER BY 2"


@pytest.fixture
def subject(database: Database) -> Iterator[Throwaway]:
    """A database with a schema, on the server of this worker."""
    with closing(Throwaway(database)) as throwaway:
        throwaway.inside(SCHEMA)
        yield throwaway


def at_baseline(subject: Throwaway) -> bool:
    return subject.inside(LOOK) == BASELINE and not subject.inside(
        "SELECT 1 FROM pg_class WHERE relname = 'another'"
    )


# -- what is put back -----------------------------------------------------------------------


def test_schema_rows_and_sequences_are_put_back_as_often_as_wanted(subject: Throwaway) -> None:
    with subject.clones() as clones:
        clones.make_template()
        for _ in range(3):
            subject.inside(MESS)
            clones.recreate()
            assert at_baseline(subject)
            assert subject.inside("INSERT INTO thing VALUES (DEFAULT) RETURNING id") == [(3,)]
    assert subject.databases() == {subject.name, template_name(subject.name)}


def test_the_baseline_is_what_the_database_held_when_the_template_was_made_last(
    subject: Throwaway,
) -> None:
    with subject.clones() as clones:
        clones.make_template()
        subject.inside("INSERT INTO thing (name) VALUES ('c')")
        clones.make_template()
        subject.inside("DELETE FROM thing")
        clones.recreate()
    assert subject.inside("SELECT count(*) FROM thing") == [(3,)]
    assert subject.databases() == {subject.name, template_name(subject.name)}


def test_owner_privileges_settings_limit_and_comment_are_those_of_the_baseline(
    subject: Throwaway,
) -> None:
    owner, guest, name = subject.role(), subject.role(), subject.name
    subject.run(
        f"""ALTER DATABASE {name} OWNER TO {owner};
        ALTER DATABASE {name} CONNECTION LIMIT 33;
        ALTER DATABASE {name} SET search_path = "$user", "a, ""b", public;
        ALTER DATABASE {name} SET DateStyle = 'SQL, DMY';
        ALTER DATABASE {name} SET my.own = 'it''s \\';
        ALTER DATABASE {name} SET session_preload_libraries = '';
        ALTER ROLE {guest} IN DATABASE {name} SET search_path = '';
        ALTER ROLE {guest} IN DATABASE {name} SET statement_timeout = '7s';
        COMMENT ON DATABASE {name} IS E'ours: it''s\\nof two lines';
        REVOKE CONNECT ON DATABASE {name} FROM PUBLIC;
        GRANT CONNECT, CREATE ON DATABASE {name} TO {guest} WITH GRANT OPTION;
        REVOKE TEMPORARY ON DATABASE {name} FROM {owner}"""
    )
    before = subject.attributes()
    with subject.clones() as clones:
        clones.make_template()
        subject.run(
            f"""ALTER DATABASE {name} OWNER TO postgres; ALTER DATABASE {name} RESET ALL;
            ALTER DATABASE {name} SET work_mem = '1MB'; COMMENT ON DATABASE {name} IS 'another';
            ALTER DATABASE {name} CONNECTION LIMIT -1; GRANT ALL ON DATABASE {name} TO PUBLIC"""
        )
        clones.recreate()
        assert subject.attributes() == before
        clones.recreate()
    assert subject.attributes() == before


def test_a_database_without_attributes_gets_none(subject: Throwaway) -> None:
    before = subject.attributes()
    with subject.clones() as clones:
        clones.make_template()
        clones.recreate()
    assert subject.attributes() == before


def test_a_database_that_is_gone_is_made_again(subject: Throwaway) -> None:
    with subject.clones() as clones:
        clones.make_template()
        subject.run(f"DROP DATABASE {subject.name}")
        clones.recreate()
    assert at_baseline(subject)


@pytest.mark.parametrize("name", ["{prefix}_test" + "e" * 47, "{prefix} Tést \"%' ü" + "é" * 16])
def test_any_name_of_a_database_has_a_template(database: Database, name: str) -> None:
    with closing(Throwaway(database, name)) as subject:
        subject.inside(SCHEMA)
        with subject.clones() as clones:
            clones.make_template()
            subject.inside(MESS)
            clones.recreate()
            assert at_baseline(subject)
            assert subject.databases() == {subject.name, template_name(subject.name)}
            clones.drop_template()
            assert subject.databases() == {subject.name}


def test_names_of_templates_are_stable_distinct_and_short_enough() -> None:
    names = ["test", "test2", "x" * 63, "x" * 62 + "y", "ü" * 31, "ü" * 30 + "test", "𝄞" * 15]
    derived = [template_name(name) for name in names]
    assert len(set(derived)) == len(names)
    assert all(len(name.encode()) <= 63 for name in derived)
    assert template_name("app_test") == "app_test_cleaner_template_1d812c7b"


def test_the_template_lets_nobody_in_and_says_whose_it_is(subject: Throwaway) -> None:
    with subject.clones() as clones:
        clones.make_template()
        _, _, may_connect, is_template, comment, _, _ = subject.attributes(clones.template)
        assert (may_connect, is_template) == (False, True)
        assert comment.startswith(f"made by cleaner: template of {subject.name}, 20")
        clones.drop_template()
        clones.drop_template()
        assert subject.databases() == {subject.name}
        with pytest.raises(ProvisionError, match="no template of"):
            clones.recreate()
    assert at_baseline(subject)


def test_the_connection_keeps_its_lock_timeout(subject: Throwaway) -> None:
    with subject.connect(dbname="postgres") as connection:
        connection.execute("SET lock_timeout = '1234ms'")

        def execute(statement: str) -> list[tuple[object, ...]]:
            cursor = connection.execute(statement.encode())
            return list(cursor.fetchall()) if cursor.description else []

        with subject.clones() as clones:
            clones._execute = execute
            clones.make_template()
            subject.inside(MESS)
            clones.recreate()
        assert connection.execute("SHOW lock_timeout").fetchone() == ("1234ms",)
        assert not connection.execute(
            "SELECT FROM pg_locks WHERE locktype = 'advisory' AND pid = pg_backend_pid()"
        ).fetchall()


# -- other people's databases ---------------------------------------------------------------


@pytest.mark.parametrize("kind", ["template", "new", "old"])
@pytest.mark.parametrize(
    "theirs",
    ["", "COMMENT ON DATABASE {} IS 'mine, and made by cleaner: no'",
     "COMMENT ON DATABASE {} IS 'mine'; ALTER DATABASE {} ALLOW_CONNECTIONS false"],
)  # fmt: skip
def test_a_strangers_database_is_never_touched(subject: Throwaway, kind: str, theirs: str) -> None:
    name = template_name(subject.name).replace("_template_", f"_{kind}_")
    subject.run(f"CREATE DATABASE {name}")
    if theirs:
        subject.run(theirs.replace("{}", name))
    before = subject.run(f"SELECT oid FROM pg_database WHERE datname = '{name}'")
    attributes = subject.attributes(name)
    with subject.clones() as clones:
        for call in (clones.make_template, clones.recreate, clones.drop_template):
            with pytest.raises(ProvisionError, match=f"{name} is in the way"):
                call()
    assert subject.run(f"SELECT oid FROM pg_database WHERE datname = '{name}'") == before
    assert subject.attributes(name) == attributes
    assert at_baseline(subject)


def test_what_a_killed_process_left_is_dropped(subject: Throwaway) -> None:
    with subject.clones() as clones:
        clones.make_template()
        name = clones.template
        new, old = (name.replace("_template_", f"_{kind}_") for kind in ("new", "old"))
        subject.run(f"CREATE DATABASE {new} ALLOW_CONNECTIONS false IS_TEMPLATE true")
        subject.run(f"CREATE DATABASE {old}")
        subject.run(f"COMMENT ON DATABASE {old} IS 'made by cleaner: replaced'")
        clones.recreate()
    assert subject.databases() == {subject.name, name}


# -- privileges -----------------------------------------------------------------------------


def test_a_role_with_createdb_and_nothing_else_can(subject: Throwaway) -> None:
    role = subject.role("CREATEDB")
    subject.own(role)
    subject.run(f"ALTER DATABASE {subject.name} SET timezone = 'Asia/Tokyo'")
    subject.run(f"GRANT CREATE ON DATABASE {subject.name} TO PUBLIC")
    before = subject.attributes()
    with subject.clones(role) as clones, subject.connect(role) as pooled:
        assert clones.refusal() == ""
        clones.make_template()
        subject.inside(MESS)
        assert clones.recreate() == ()
        assert pooled.closed or not pooled.broken
        clones.recreate()
        assert at_baseline(subject)
        assert subject.attributes() == before
        clones.drop_template()
    assert subject.databases() == {subject.name}


def test_a_member_of_the_owning_role_can(subject: Throwaway) -> None:
    owner, role = subject.role(), subject.role("CREATEDB")
    subject.own(owner)
    subject.run(f"GRANT {owner} TO {role}")
    with subject.clones(role) as clones:
        clones.make_template()
        subject.inside(MESS)
        clones.recreate()
    assert at_baseline(subject)
    assert subject.attributes()[0] == owner


def test_a_template_of_the_superusers_serves_the_plain_owner(subject: Throwaway) -> None:
    role = subject.role("CREATEDB")
    subject.own(role)
    with subject.clones() as clones:
        clones.make_template()
    subject.inside(MESS)
    with subject.clones(role) as clones:
        clones.recreate()
    assert at_baseline(subject)


def test_a_role_without_createdb_is_refused_by_name(subject: Throwaway) -> None:
    role = subject.role()
    subject.own(role)
    with subject.clones(role) as clones:
        assert clones.refusal() == (
            f'role {role} may not create databases: ALTER ROLE "{role}" CREATEDB'
        )
        for call in (clones.make_template, clones.recreate):
            with pytest.raises(StrategyRefusedError, match=f'ALTER ROLE "{role}" CREATEDB'):
                call()


def test_a_role_that_does_not_own_the_database_is_told_who_does(subject: Throwaway) -> None:
    owner, role = subject.role(), subject.role("CREATEDB")
    subject.own(owner)
    with subject.clones(role) as clones:
        assert f'{owner} does: GRANT "{owner}" TO "{role}"' in clones.refusal()
        with pytest.raises(StrategyRefusedError, match="does not own"):
            clones.make_template()
    subject.run(f"GRANT {owner} TO {role}")
    with subject.clones(role) as clones:
        assert clones.refusal() == ""


def test_a_missing_database_and_a_connection_to_itself_are_refused(subject: Throwaway) -> None:
    with subject.clones() as clones:
        subject.run(f"DROP DATABASE {subject.name}")
        assert clones.refusal().startswith(f"there is no database {subject.name}")
        clones.database = "postgres"
        assert "itself" in clones.refusal()


def test_what_this_role_may_not_carry_over_is_named_and_nothing_has_changed(
    subject: Throwaway,
) -> None:
    role = subject.role("CREATEDB")
    subject.own(role)
    with subject.clones(role) as clones:
        clones.make_template()
        subject.inside(MESS)
        for name in (clones.template, subject.name):
            subject.run(f"ALTER DATABASE {name} SET log_statement = 'none'")
        for call in (clones.make_template, clones.recreate):
            with pytest.raises(StrategyRefusedError, match="log_statement"):
                call()
    assert subject.databases() == {subject.name, clones.template}
    assert subject.inside("SELECT count(*) FROM another") == [(0,)]


# -- other sessions -------------------------------------------------------------------------


def test_idle_sessions_are_ended_for_the_template_and_all_for_the_clone(
    subject: Throwaway,
) -> None:
    idle, busy = subject.connect(), subject.connect(autocommit=False, application_name="web")
    with subject.clones() as clones, closing(idle), closing(busy):
        clones.make_template()
        with pytest.raises(psycopg.OperationalError):
            idle.execute("SELECT 1")
        busy.close()
        busy = subject.connect(autocommit=False, application_name="web")
        busy.execute("LOCK thing")
        started = time.monotonic()
        (ended,) = clones.recreate()
        assert time.monotonic() - started < 5
        assert (ended.application, ended.state) == ("web", "idle in transaction")
        with pytest.raises(psycopg.OperationalError):
            busy.execute("SELECT 1")
    assert at_baseline(subject)


def test_a_session_in_a_transaction_keeps_a_template_from_being_made_and_is_named(
    subject: Throwaway,
) -> None:
    with (
        subject.clones(wait=0.2) as clones,
        subject.connect(autocommit=False, application_name="web") as busy,
    ):
        busy.execute("SELECT 1")
        with pytest.raises(BlockedError, match=f"pid {busy.info.backend_pid} .*web") as caught:
            clones.make_template()
        assert [blocker.pid for blocker in caught.value.blockers] == [busy.info.backend_pid]
        busy.rollback()
        clones.make_template()


def test_a_session_that_comes_to_an_end_is_waited_for(subject: Throwaway) -> None:
    with subject.clones(wait=20) as clones, subject.connect() as busy:
        thread = threading.Thread(target=busy.execute, args=("SELECT pg_sleep(0.5)",))
        thread.start()
        time.sleep(0.1)
        clones.make_template()
        thread.join()


def test_a_session_that_this_role_may_not_end_is_named_with_the_grant(subject: Throwaway) -> None:
    owner, other = subject.role("CREATEDB"), subject.role()
    subject.own(owner)
    with subject.clones(owner, wait=0.2) as clones:
        clones.make_template()
        with subject.connect(other) as theirs:
            for call in (clones.make_template, clones.recreate):
                with pytest.raises(BlockedError, match="GRANT pg_signal_backend") as caught:
                    call()
                assert [blocker.user for blocker in caught.value.blockers] == [other]
            assert theirs.execute("SELECT 1").fetchone() == (1,)
            subject.run(f"GRANT pg_signal_backend TO {owner}")
            clones.recreate()
    assert at_baseline(subject)


def test_a_prepared_transaction_is_named(subject: Throwaway) -> None:
    with subject.clones() as clones:
        clones.make_template()
        subject.inside(f"BEGIN; DELETE FROM thing; PREPARE TRANSACTION '{subject.prefix}'")
        for call in (clones.make_template, clones.recreate):
            with pytest.raises(BlockedError, match=f"ROLLBACK PREPARED '{subject.prefix}'"):
                call()
        subject.inside(f"ROLLBACK PREPARED '{subject.prefix}'")
        clones.recreate()
    assert subject.databases() == {subject.name, template_name(subject.name)}


def test_replication_slots_and_subscriptions_are_named() -> None:
    with EmbeddedPostgres(options={"wal_level": "logical"}) as server:
        database = Database(server.create_database("test"), "unused")
        with closing(Throwaway(database)) as subject, subject.clones() as clones:
            clones.make_template()
            subject.inside("SELECT pg_create_logical_replication_slot('cdc', 'test_decoding')")
            with pytest.raises(StrategyRefusedError, match="replication slot cdc"):
                clones.recreate()
            subject.inside("SELECT pg_drop_replication_slot('cdc')")
            subject.inside(
                "CREATE SUBSCRIPTION feed CONNECTION 'dbname=x' PUBLICATION p WITH (connect=false)"
            )
            with pytest.raises(StrategyRefusedError, match="subscription feed"):
                clones.recreate()
            subject.inside("ALTER SUBSCRIPTION feed SET (slot_name = NONE); DROP SUBSCRIPTION feed")
            clones.recreate()
        database.close()


def test_one_call_at_a_time_works_on_a_database_and_names_who_else_does(
    subject: Throwaway,
) -> None:
    with subject.clones(wait=0.2) as clones, subject.clones() as others:
        clones.make_template()
        with others._alone(), pytest.raises(BlockedError, match=r"waited 0.2 s .* pid "):
            clones.recreate()
        clones.recreate()


def test_a_session_and_a_pool_work_on_a_database_one_at_a_time(subject: Throwaway) -> None:
    Pool(subject.url(), 5.0).rows()  # there is a pool on the server from now on
    with (
        Cleaner(subject.url(), strategy="recreate", lock_timeout=0.5) as cleaner,
        subject.clones(dbname="cleaner_control") as of_the_pool,
    ):
        cleaner.capture()
        with of_the_pool._alone(), pytest.raises(BlockedError, match=r"waited 0.5 s .* pid "):
            cleaner.clean()
        cleaner.clean()


def test_calls_at_the_same_time_all_succeed(subject: Throwaway) -> None:
    failures: list[CleanerError] = []

    def work() -> None:
        try:
            with subject.clones(wait=30) as clones:
                for call in (clones.recreate, clones.make_template, clones.recreate):
                    call()
        except CleanerError as error:
            failures.append(error)

    with subject.clones() as clones:
        clones.make_template()
    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert at_baseline(subject)
    assert subject.databases() == {subject.name, template_name(subject.name)}


def test_an_application_that_keeps_connecting_does_not_keep_it_from_being_done(
    subject: Throwaway,
) -> None:
    over = threading.Event()

    def connect() -> None:
        while not over.is_set():
            with suppress(psycopg.OperationalError), subject.connect() as connection:
                connection.execute("SELECT 1")
            time.sleep(0.001)

    with subject.clones() as clones:
        clones.make_template()
        thread = threading.Thread(target=connect)
        thread.start()
        try:
            for _ in range(5):
                clones.recreate()
        finally:
            over.set()
            thread.join()
    assert at_baseline(subject)


# -- kills ----------------------------------------------------------------------------------

VICTIM = textwrap.dedent("""
    import json, sys
    import psycopg
    from cleaner.dialects.postgresql.clone import Clones

    where, name = json.loads(sys.argv[1])
    connection = psycopg.connect(**where, autocommit=True, application_name=name)

    def execute(statement):
        cursor = connection.execute(statement)
        return cursor.fetchall() if cursor.description else []

    clones = Clones(execute, psycopg.Error, name, wait=30)
    print("ready", flush=True)
    while True:
        clones.make_template()
        clones.recreate()
""")


def test_a_kill_at_any_moment_leaves_a_whole_database_and_the_next_call_tidies_up(
    subject: Throwaway,
) -> None:
    where = {**subject.server.conninfo, "dbname": "postgres", "user": "postgres"}
    alive = f"SELECT 1 FROM pg_stat_activity WHERE application_name = '{subject.name}'"
    dice = random.Random(0)
    left = 0
    with subject.clones(wait=30) as clones:
        clones.make_template()
        before = subject.attributes()
        for _ in range(KILLS):
            victim = subprocess.Popen(
                [sys.executable, "-c", VICTIM, json.dumps([where, subject.name])],
                stdout=subprocess.PIPE,
            )
            with victim:
                assert victim.stdout is not None
                assert victim.stdout.readline() == b"ready\n"
                time.sleep(dice.uniform(0, 0.4))
                victim.send_signal(signal.SIGKILL)
            assert victim.returncode == -signal.SIGKILL
            assert {subject.name, clones.template} <= subject.databases()
            assert subject.attributes() == before
            if dice.random() < 0.5:  # else its last statement may still be running
                while subject.run(alive):
                    time.sleep(0.01)
                left += len(subject.databases()) - 2
            if dice.random() < 0.5:
                clones.make_template()
            else:
                clones.recreate()
            assert subject.databases() == {subject.name, clones.template}
            assert subject.attributes() == before
            assert at_baseline(subject)
    print(f"{left} leftovers of {KILLS} kills")
