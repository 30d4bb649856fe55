"""Random histories of random and of well-known schemas: a clean finds or makes the baseline.

``CLEANER_EXAMPLES=5000 pytest tests/test_random_baselines.py`` tries more of them.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from support.database import STRATEGIES, Database
from support.history import History, State, Step, sessions, state, steps
from support.random_schema import Schema, schemas

from cleaner import Cleaner
from cleaner.errors import BlockedError, StrategyRefusedError

EXAMPLES = int(os.environ.get("CLEANER_EXAMPLES", "20"))
MANY: dict[str, Any] = {
    "deadline": None,
    "phases": [Phase.generate],
    "suppress_health_check": list(HealthCheck),
    "database": None,
}
WAYS = [(strategy, plain) for strategy in STRATEGIES for plain in (False, True)]
WAYS.remove(("replica", True))
choices = st.tuples(st.sampled_from(WAYS), st.booleans(), st.booleans())

# Every sort of key between tables, with every sort of key of their own, and of action.
WORLD = """
CREATE TYPE mood AS ENUM ('sad', 'ok');
CREATE TABLE role (id serial PRIMARY KEY, code text UNIQUE, level numeric, mood mood);
CREATE TABLE member (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name text NOT NULL UNIQUE,
    role text REFERENCES role (code) ON UPDATE CASCADE ON DELETE SET NULL,
    boss int REFERENCES member ON DELETE CASCADE, big text);
CREATE TABLE leaf (a int, b int, role text REFERENCES role (code) ON DELETE CASCADE,
    twice int GENERATED ALWAYS AS (a * 2) STORED, PRIMARY KEY (a, b),
    up_a int, up_b int, FOREIGN KEY (up_a, up_b) REFERENCES leaf);
CREATE TABLE note (role text REFERENCES role (code) ON DELETE SET NULL ON UPDATE CASCADE,
    said json, weight float8);
CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL, place int UNIQUE DEFERRABLE);
CREATE TABLE egg (id int PRIMARY KEY, hen int NOT NULL REFERENCES hen ON DELETE RESTRICT);
ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg DEFERRABLE INITIALLY DEFERRED;
CREATE TABLE event (day int, id serial, text text, PRIMARY KEY (day, id)) PARTITION BY LIST (day);
CREATE TABLE event_1 PARTITION OF event FOR VALUES IN (1);
CREATE TABLE event_2 PARTITION OF event DEFAULT;
CREATE TABLE empty (id serial PRIMARY KEY, member int REFERENCES member ON DELETE CASCADE);
CREATE TABLE bare ();
CREATE TABLE slot (id int PRIMARY KEY, taken int4range, EXCLUDE USING gist (taken WITH &&));
CREATE SEQUENCE number START 1000 INCREMENT 5;
CREATE SEQUENCE cached CACHE 10;
CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN RAISE EXCEPTION ''a member stays''; END';
CREATE TRIGGER guard BEFORE UPDATE ON egg FOR EACH ROW EXECUTE FUNCTION guard();
"""
SEED = """
INSERT INTO role (code, level, mood)
    VALUES ('a', 1.0, 'sad'), ('b', 1.00, 'ok'), ('c', 'NaN', NULL);
INSERT INTO member (name, role, boss, big) VALUES ('x', 'a', NULL, repeat('big', 3000)),
    ('y', 'b', 1, NULL), ('z', 'a', 3, '');
INSERT INTO leaf VALUES (1, 1, 'a', DEFAULT, 2, 2), (2, 2, 'b', DEFAULT, 1, 1);
INSERT INTO note VALUES ('a', '{"a": 1}', '-0'), ('a', '{"a": 1}', '-0'), ('b', NULL, 'NaN');
BEGIN; INSERT INTO hen VALUES (1, 1, 1), (2, 2, 2); INSERT INTO egg VALUES (1, 2), (2, 1); COMMIT;
INSERT INTO event (day, text) VALUES (1, 'one'), (2, 'two'), (3, 'three');
INSERT INTO bare DEFAULT VALUES; INSERT INTO bare DEFAULT VALUES;
INSERT INTO slot VALUES (1, '[1,5)'), (2, '[5,9)');
SELECT nextval('number'), nextval('number'), nextval('cached');
"""
RAW = [
    "UPDATE role SET id = id + 10",
    "UPDATE role SET id = 7 - id",
    "UPDATE role SET level = level * 1.00",
    "UPDATE role SET code = 'z' WHERE code = 'a'; UPDATE role SET code = 'a' WHERE code = 'b';"
    " UPDATE role SET code = 'b' WHERE code = 'z'",
    "WITH d AS (DELETE FROM role WHERE code = 'c' RETURNING *) INSERT INTO role SELECT * FROM d",
    "DELETE FROM role WHERE code = 'b'; INSERT INTO role (code) VALUES ('b')",
    "INSERT INTO role (code) VALUES ('new'); UPDATE member SET role = 'new'",
    "INSERT INTO member (name, role, boss) VALUES ('w', 'c', 1) ON CONFLICT DO NOTHING",
    "INSERT INTO empty (member) SELECT id FROM member",
    "UPDATE member SET big = repeat('gib', 3000)",
    "UPDATE member SET id = DEFAULT WHERE name = 'z'",
    "UPDATE leaf SET a = b + 5, b = a",
    "UPDATE note SET weight = 0 WHERE weight = 0",
    "UPDATE note SET said = '{\"a\":  1}'",
    "UPDATE hen SET place = 3 - place",
    "SET CONSTRAINTS ALL DEFERRED; DELETE FROM egg; UPDATE hen SET egg = 5;"
    " INSERT INTO egg VALUES (5, 1)",
    "UPDATE event SET day = 4 - day",
    "UPDATE event SET day = 9 WHERE day = 1",
    "UPDATE slot SET taken = '[90,99)' WHERE id = 1; UPDATE slot SET taken = '[1,5)' WHERE id = 2;"
    " UPDATE slot SET taken = '[5,9)' WHERE id = 1",
    "SELECT setval('number', 5000), nextval('cached')",
    "MERGE INTO role USING (VALUES ('a'), ('q')) v(code) ON role.code = v.code"
    " WHEN MATCHED THEN UPDATE SET level = 9 WHEN NOT MATCHED THEN INSERT (code) VALUES (v.code)",
]


@pytest.fixture
def cleaners(database: Database) -> Iterator[dict[tuple[str, bool], Cleaner]]:
    """Each strategy as superuser and as owner, each like a process's own, for all examples."""
    database.execute(f'GRANT CREATE ON DATABASE "{database.name}" TO {database.role}')
    with ExitStack() as stack:
        yield {
            (strategy, plain): stack.enter_context(
                database.cleaner(
                    strategy=strategy, role=database.role if plain else "postgres", lock_timeout=20
                )
            )
            for strategy, plain in WAYS
        }
    database.execute(f'REVOKE CREATE ON DATABASE "{database.name}" FROM {database.role}')


@pytest.fixture
def writers(database: Database) -> Iterator[list[psycopg.Connection[Any]]]:
    opened = sessions(database)
    yield opened
    for session in opened:
        session.close()


Cleaners = dict[tuple[str, bool], Cleaner]
Writers = list[psycopg.Connection[Any]]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_clean_finds_or_makes_the_baseline_whatever_was_done_to_it(
    strategy: str, database: Database, cleaners: Cleaners, writers: Writers
) -> None:
    database.execute(WORLD)
    database.give_away()
    capturer = cleaners["auto", False]
    known: list[State] = []

    @settings(max_examples=EXAMPLES, **MANY)
    @given(steps("capture", max_size=10), choices)
    def check(history: list[Step], choice: tuple[tuple[str, bool], bool, bool]) -> None:
        other, plain, commit = choice
        if len(known) % 16 == 0:
            capturer.release()
            capturer.clean()
            database.execute(SEED)
            capturer.capture()
            known.append(state(database))
        mine = cleaners[strategy, plain and strategy != "replica"]
        world = History(database, capturer, [mine, cleaners[other]], writers, RAW)
        assert world.baseline == known[-1]
        world.run(history)
        world.end(commit)
        known.append(world.baseline)

    check()
    capturer.release()
    cleaners[strategy, False].clean()
    assert {rows.partition(" ")[0] for rows in state(database)[0].values()} == {"0"}


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_clean_finds_or_makes_the_baseline_of_any_schema(
    strategy: str, database: Database, cleaners: Cleaners, writers: Writers
) -> None:
    @settings(max_examples=max(1, EXAMPLES // 4), **MANY)
    @given(schemas(), steps(max_size=5), steps("capture", max_size=10), choices)
    def check(
        schema: Schema,
        before: list[Step],
        history: list[Step],
        choice: tuple[tuple[str, bool], bool, bool],
    ) -> None:
        other, plain, commit = choice
        capturer = cleaners["auto", False]
        mine = cleaners[strategy, plain and strategy != "replica"]
        try:
            database.execute(f"SET ROLE {database.role}")
            database.execute(";".join(schema.ddl))
            if schema.rows:
                database.execute(";".join(schema.rows))
            database.execute("RESET ROLE")
            world = History(database, capturer, [mine, cleaners[other]], writers, [*schema.rows])
            # Some of whom go on after the baseline was captured, with an old transaction id.
            world.run([step for step in before if step.what not in ("clean", "capture")])
            try:
                capturer.using(lock_timeout=0.02).capture()
            except BlockedError:
                for writer in writers:
                    writer.rollback()
                capturer.capture()
            world.captured()
            world.run(history)
            world.end(commit)
        except StrategyRefusedError as refusal:
            # The one thing that can't be deleted from, whatever one tries.
            if "GENERATED ALWAYS" not in refusal.what:
                raise
        finally:
            for writer in writers:
                writer.rollback()
            database.execute("RESET ROLE")
            database.execute(";".join(schema.drop))
            capturer.release()

    check()
