"""A baseline and what dies: the process that restores it, and the server that keeps it."""

from __future__ import annotations

import os
import random
from collections import Counter
from collections.abc import Callable

import psycopg
import pytest
from support.database import STRATEGIES, Database
from support.history import state
from support.kills import Forker
from support.pools import PATIENCE, until

from cleaner.provision.embedded import EmbeddedPostgres

KILLS = int(os.environ.get("CLEANER_STRESS_KILLS", "3"))  # per strategy
SEED = """
CREATE TABLE root (id serial PRIMARY KEY, code int UNIQUE, mark text DEFAULT 'there at the start');
CREATE TABLE leaf (id serial PRIMARY KEY, mark text DEFAULT 'there at the start',
    root_id int NOT NULL REFERENCES root);
CREATE INDEX ON leaf (root_id);
CREATE TABLE loose (id serial PRIMARY KEY, mark text DEFAULT 'there at the start');
INSERT INTO root (code) SELECT n FROM generate_series(1, 2000) n;
INSERT INTO leaf (root_id) SELECT id FROM root
"""
CHANGE = """
UPDATE root SET code = -code; UPDATE root SET code = code + 2001;
DELETE FROM leaf WHERE id % 3 = 0; UPDATE leaf SET mark = 'x' WHERE id % 3 = 1;
INSERT INTO leaf (root_id) SELECT id FROM root; INSERT INTO loose SELECT FROM root
"""


@pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_restore_killed_in_the_middle_leaves_all_or_nothing_and_the_next_one_works(
    database: Database,
    forker: Forker,
    strategy: str,
    record_property: Callable[[str, object], None],
) -> None:
    database.execute(SEED)
    dice, outcomes = random.Random(strategy), Counter[str]()
    with database.cleaner(strategy=strategy, lock_timeout=PATIENCE) as cleaner:
        cleaner.capture()
        baseline = state(database)
        cleaner.clean()
        database.execute(CHANGE)
        usual = cleaner.clean().seconds
        for _ in range(KILLS):
            cleaner.close()
            database.execute(CHANGE)
            changed = state(database)
            forker.kill(strategy, after=dice.uniform(0, usual))
            left = state(database)
            assert left[0] in (changed[0], baseline[0])
            outcomes["restored" if left[0] == baseline[0] else "as it was"] += 1
            cleaner.clean()
            assert state(database) == baseline
    record_property("outcomes", dict(outcomes))


def test_a_baseline_outlives_a_crash_of_the_server() -> None:
    with EmbeddedPostgres() as server:
        database = Database(server.create_database("test"), "postgres")
        database.execute(
            SEED + "; CREATE UNLOGGED TABLE cache (id int PRIMARY KEY);"
            " INSERT INTO cache VALUES (1), (2)"
        )
        with database.cleaner(lock_timeout=PATIENCE) as cleaner:
            cleaner.capture()
            baseline = state(database)
            database.execute(CHANGE + "; CHECKPOINT")
            started = database.scalar("SELECT pg_postmaster_start_time()")
            # One backend that dies by a signal takes all others with it, and the server recovers.
            pid = database.scalar("SELECT pg_backend_pid()")
            with pytest.raises(psycopg.OperationalError):
                database.execute(
                    f"COPY (SELECT) TO PROGRAM 'kill -KILL {pid}'; SELECT pg_sleep({PATIENCE})"
                )

            def back() -> bool:
                try:
                    return bool(database.scalar("SELECT true"))
                except psycopg.OperationalError:
                    return False

            until(back, "the server has recovered")
            assert database.scalar("SELECT pg_postmaster_start_time()") == started
            assert database.count("cache") == 0
            cleaner.clean()
            assert state(database) == baseline
        database.close()
