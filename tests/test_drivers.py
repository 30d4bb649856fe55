"""Every driver of PostgreSQL keeps what the strategies promise."""

from __future__ import annotations

from contextlib import closing
from typing import Any

import pytest
from sqlalchemy import create_engine, event
from support.database import Database
from support.drivers import KINDS, SYNC, cleaner_for, url_for

from cleaner import Cleaner
from cleaner.errors import BlockedError, CleanerError


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def by(kind: str, database: Database, role: str = "postgres", **settings: Any) -> Cleaner:
    """A cleaner of the database, by that kind of driver."""
    return cleaner_for(kind, database.url.set(username=role), **settings)


VALUES = """
CREATE TYPE mood AS ENUM ('sad', 'it''s 100%');
CREATE TABLE everything (
    id serial PRIMARY KEY, u uuid, j json, b jsonb, raw bytea, "char" "char", words text[], o oid,
    r regclass, n numeric, f float8, at timestamptz, span interval, net inet, m mood, r4 int4range,
    bits bit varying, x xid, "100% :name $1" text);
INSERT INTO everything (u, j, b, raw, "char", words, o, r, n, f, at, span, net, m, r4, bits, x,
                        "100% :name $1")
VALUES ('11111111-2222-3333-4444-555555555555', '{"a": 1}', '[1, null]', '\\x00ff', 'c',
    '{a,NULL,"b c"}', 42, 'pg_class', 1.50, 0.1, '2020-02-02 02:02:02+02', '1 mon 2 days', '::1/64',
    'it''s 100%', '[1,5)', '101', '7', '50% :x $1 ?');
"""


def test_captured_values_of_every_type_come_back(kind: str, database: Database) -> None:
    database.execute(VALUES)
    before = database.execute("SELECT e::text FROM everything e")
    with by(kind, database) as cleaner:
        cleaner.capture()
        assert cleaner.captured == {"everything": 1}
        database.execute("""UPDATE everything SET j = '{"a": 2}', words = '{}', raw = NULL""")
        database.execute("INSERT INTO everything DEFAULT VALUES")
        assert "words" in str(cleaner.diff())
        cleaner.clean()
        assert database.execute("SELECT e::text FROM everything e") == before
        cleaner.verify()
        cleaner.release()


def test_an_open_transaction_is_named_and_ended(kind: str, database: Database) -> None:
    database.execute("CREATE TABLE a (id serial PRIMARY KEY)")
    with by(kind, database, lock_timeout=0.3) as cleaner:
        cleaner.clean()
        other = database.connect(autocommit=False)
        with closing(other):
            other.execute("INSERT INTO a DEFAULT VALUES")
            with pytest.raises(BlockedError) as raised:
                cleaner.clean()
            assert [each.pid for each in raised.value.blockers] == [other.info.backend_pid]
            report = cleaner.using(on_blocked="terminate", lock_timeout=5.0).clean()
        assert len(report.terminated) == 1


def test_what_the_server_says_is_told_in_its_own_words(kind: str, database: Database) -> None:
    database.execute(
        """CREATE TABLE a (id int);
CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN RAISE 'never %', 1 USING DETAIL = 'ever', HINT = 'at all'; END$$;
CREATE TRIGGER no BEFORE TRUNCATE ON a EXECUTE FUNCTION no();"""
    )
    database.give_away()
    database.execute(f"ALTER TABLE a OWNER TO postgres; GRANT ALL ON a TO {database.role}")
    with (
        by(kind, database, role=database.role, strategy="truncate") as cleaner,
        pytest.raises(CleanerError) as raised,
    ):
        cleaner.clean()
    told = str(raised.value)
    assert "never 1 [P0001]" in told
    assert "DETAIL:" in told
    assert "ever" in told
    assert "at all" in told


def test_a_schema_that_changes_between_two_cleans_is_noticed(kind: str, database: Database) -> None:
    database.execute("CREATE TABLE a (id serial PRIMARY KEY)")
    with by(kind, database) as cleaner:
        for change in (
            "ALTER TABLE a ADD t text",
            "ALTER TABLE a ALTER t TYPE int USING 1",
            "DROP TABLE a; CREATE TABLE a (id bigserial PRIMARY KEY)",
            "CREATE TABLE b (id int REFERENCES a)",
        ):
            cleaner.clean()
            database.execute(change)
            database.execute("INSERT INTO a (id) VALUES (1)")
            cleaner.clean()
            assert database.count("a") == 0
            cleaner.verify()


def test_a_session_that_was_ended_or_emptied_is_replaced(kind: str, database: Database) -> None:
    database.execute("CREATE TABLE a (id serial PRIMARY KEY)")
    with by(kind, database) as cleaner:
        for _ in range(3):
            cleaner.clean()
            database.execute(
                "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity"
                " WHERE datname = current_database() AND application_name = 'cleaner'"
            )
            database.execute("INSERT INTO a DEFAULT VALUES")
            cleaner.clean()
            assert database.count("a") == 0


def test_a_whole_database_is_recreated(kind: str, database: Database) -> None:
    database.execute("CREATE TABLE a (id serial PRIMARY KEY); INSERT INTO a VALUES (7)")
    database.close()
    with by(kind, database, strategy="recreate") as cleaner:
        cleaner.capture()
        database.execute("DROP TABLE a; CREATE TABLE b (id int)")
        database.close()
        cleaner.clean()
        assert database.execute("SELECT id FROM a") == [(7,)]
        database.close()
        cleaner.release()


@pytest.mark.parametrize("driver", SYNC)
def test_what_an_event_of_the_application_sets_stays_set(driver: str, database: Database) -> None:
    database.execute("CREATE SCHEMA s; CREATE TABLE s.t (id int); INSERT INTO s.t VALUES (1)")
    engine = create_engine(url_for(driver, database.url))

    @event.listens_for(engine, "connect")
    def set_path(connection: Any, record: Any) -> None:
        connection.cursor().execute("SET search_path = s")  # and begins a transaction by that

    with Cleaner(engine) as cleaner:
        assert cleaner.clean().tables == ("t",)
    assert database.count("s.t") == 0
