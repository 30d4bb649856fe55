"""Cleaning under fire: writers, and other cleaners."""

from __future__ import annotations

import os
import random
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import psycopg
import pytest
from support.database import STRATEGIES, Database
from support.pools import PATIENCE, until

from cleaner import Cleaner, Report
from cleaner.errors import RetriesExhaustedError

pytestmark = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)

STRESS_SECONDS = float(os.environ.get("CLEANER_STRESS_SECONDS", "3"))


def waiting_cleaners(database: Database, locktype: str) -> int:
    """How many cleaners wait for a lock of that type."""
    return int(
        database.scalar(
            "SELECT count(*) FROM pg_locks l JOIN pg_stat_activity a USING (pid) WHERE NOT granted"
            f" AND datname = current_database() AND application_name = 'cleaner'"
            f" AND locktype = '{locktype}'"
        )
    )


# -- writers against cleaners ---------------------------------------------------------------

SCHEMA = """
CREATE SEQUENCE ticket START 1000 INCREMENT 5;
CREATE TABLE parent (id serial PRIMARY KEY, number int DEFAULT nextval('ticket'), tag text);
CREATE TABLE child (id int GENERATED ALWAYS AS IDENTITY PRIMARY KEY, tag text,
    parent_id int NOT NULL REFERENCES parent);
CREATE TABLE note (id serial PRIMARY KEY, number int DEFAULT nextval('ticket'), tag text,
    child_id int REFERENCES child ON DELETE CASCADE, up_id int REFERENCES note);
CREATE TABLE hen (id serial PRIMARY KEY, tag text);
CREATE TABLE egg (id serial PRIMARY KEY, tag text, hen_id int NOT NULL REFERENCES hen);
ALTER TABLE hen ADD egg_id int REFERENCES egg DEFERRABLE INITIALLY DEFERRED;
"""
TABLES = ("parent", "child", "note", "hen", "egg")
KEYS = [
    ("child", "parent_id", "parent"),
    ("note", "child_id", "child"),
    ("note", "up_id", "note"),
    ("egg", "hen_id", "hen"),
    ("hen", "egg_id", "egg"),
]
LOOK = (
    "SELECT array(" + " UNION ALL ".join(f"SELECT tag FROM {table}" for table in TABLES) + "), "
    + ", ".join(
        f"(SELECT count(*) FROM {child} c LEFT JOIN {parent} p ON p.id = c.{column}"
        f" WHERE c.{column} IS NOT NULL AND p.id IS NULL)"
        for child, column, parent in KEYS
    )
)  # fmt: skip
EXPECTED = (
    psycopg.errors.DeadlockDetected,
    psycopg.errors.ForeignKeyViolation,  # the parent was cleaned
    psycopg.errors.UniqueViolation,  # the sequence was put back while rows were being written
)


@dataclass
class Fight:
    """What writers and cleaners know of each other."""

    database: Database
    over: threading.Event = field(default_factory=threading.Event)
    written: dict[str, float] = field(default_factory=dict)  # tag: when its INSERT had returned
    cleaned: float = 0.0  # when the last of the finished cleans had begun
    mutex: threading.Lock = field(default_factory=threading.Lock)
    tally: Counter[str] = field(default_factory=Counter)

    def count(self, what: str) -> None:
        with self.mutex:
            self.tally[what] += 1

    def write(self, number: int) -> None:
        dice = random.Random(number)
        with self.database.connect(autocommit=False) as connection:
            for turn in range(sys.maxsize):
                if self.over.is_set():
                    return
                try:
                    self.transaction(connection, dice, f"{number}.{turn}")
                    if dice.random() < 0.1:
                        self.over.wait(dice.uniform(0.05, 0.2))  # idle in transaction
                    connection.commit() if dice.random() < 0.9 else connection.rollback()
                    self.count("transactions")
                except EXPECTED as error:
                    connection.rollback()
                    self.count(type(error).__name__)

    def transaction(
        self, connection: psycopg.Connection[Any], dice: random.Random, name: str
    ) -> None:
        rows = 0

        def insert(table: str, columns: str = "tag", rest: str = "") -> int:
            nonlocal rows
            tag, rows = f"{name}.{rows}", rows + 1
            query = f"INSERT INTO {table} ({columns}) SELECT '{tag}'{rest} RETURNING id"
            cursor = connection.execute(query.encode())
            self.written[tag] = time.perf_counter()
            row = cursor.fetchone()
            return int(row[0]) if row else 0

        match dice.randrange(5):
            case 0:  # parents first
                parent = insert("parent")
                child = insert("child", "tag, parent_id", f", {parent}")
                insert("note", "tag, child_id", f", {child}")
            case 1:  # children first, of a parent that somebody else may have committed
                note = insert("note")
                insert("note", "tag, up_id", f", {note}")
                insert("child", "tag, parent_id", ", id FROM parent LIMIT 1")
                insert("parent")
            case 2:  # around the cycle
                hen = insert("hen")
                egg = insert("egg", "tag, hen_id", f", {hen}")
                connection.execute("UPDATE hen SET egg_id = %s WHERE id = %s", [egg, hen])
            case 3:
                insert("egg", "tag, hen_id", ", id FROM hen LIMIT 1")
                insert("child", "tag, parent_id", ", id FROM parent ORDER BY id DESC LIMIT 1")
                insert("hen", "tag, egg_id", ", id FROM egg LIMIT 1")
            case 4:
                connection.execute("UPDATE child SET parent_id = (SELECT max(id) FROM parent)")
                insert("note", "tag, child_id", ", id FROM child LIMIT 1")
                connection.execute("DELETE FROM note WHERE id IN (SELECT id FROM note LIMIT 1)")

    def clean(self, strategy: str) -> None:
        dice = random.Random(strategy)
        with (
            self.database.cleaner(strategy=strategy, lock_timeout=20) as cleaner,
            self.database.connect() as eyes,
        ):
            while True:
                begun = time.perf_counter()
                report = cleaner.clean()
                with self.mutex:
                    self.cleaned = max(self.cleaned, begun)
                    self.tally["cleans"] += 1
                    self.tally["retried cleans"] += report.attempts > 1
                    self.tally[f"longest {strategy}, ms"] = max(
                        self.tally[f"longest {strategy}, ms"], round(report.seconds * 1000)
                    )
                    cleaned = self.cleaned
                self.look(eyes, cleaned)
                if self.over.wait(dice.uniform(0, 0.02)):
                    return

    def snapshot(self, eyes: psycopg.Connection[Any]) -> tuple[Any, ...]:
        while True:
            try:
                row = eyes.execute(LOOK.encode()).fetchone()
            except psycopg.errors.DeadlockDetected:  # of a reader of all tables and a TRUNCATE
                self.count("deadlocks of looks")
            else:
                assert row is not None
                return tuple(row)

    def look(self, eyes: psycopg.Connection[Any], cleaned: float) -> None:
        """No row survives a finished clean that began after the row's INSERT had returned."""
        tags, *orphans = self.snapshot(eyes)
        assert [tag for tag in tags if self.written[tag] < cleaned] == []
        assert dict(zip(KEYS, orphans, strict=True)) == dict.fromkeys(KEYS, 0)
        self.count("looks that met rows" if tags else "looks that met none")


def test_four_writers_and_a_cleaner_of_each_strategy_never_break_a_promise(
    database: Database, record_property: Callable[[str, object], None]
) -> None:
    database.execute(SCHEMA)
    fight = Fight(database)
    with ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(fight.write, number) for number in range(4)]
        tasks += [pool.submit(fight.clean, strategy) for strategy in STRATEGIES]
        deadline = time.monotonic() + STRESS_SECONDS
        while time.monotonic() < deadline and not any(task.done() for task in tasks):
            fight.over.wait(0.05)
        fight.over.set()
        for task in tasks:
            task.result()
    record_property("tally", dict(fight.tally))  # of a type that pytest-xdist can send
    assert fight.tally["cleans"] >= 4
    assert fight.tally["transactions"] > 0
    with database.connect() as eyes:
        fight.look(eyes, fight.cleaned)
    with database.cleaner() as cleaner:
        cleaner.clean()
        cleaner.verify()
    assert {table: database.count(table) for table in TABLES} == dict.fromkeys(TABLES, 0)
    assert database.execute("SELECT last_value, is_called FROM ticket") == [(1000, False)]
    assert database.advisory_locks() == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("table", ["hit", "missed"])
def test_a_row_that_a_writer_has_yet_to_commit_is_waited_for(
    database: Database, strategy: str, table: str
) -> None:
    database.execute("CREATE TABLE hit (id serial); CREATE TABLE missed (id serial)")
    database.execute("INSERT INTO hit DEFAULT VALUES")
    with (
        database.cleaner(strategy=strategy, lock_timeout=PATIENCE) as cleaner,
        ThreadPoolExecutor(1) as pool,
        database.transaction() as writer,
    ):
        writer.execute(f"INSERT INTO {table} DEFAULT VALUES".encode())
        cleaning = pool.submit(cleaner.clean)
        until(lambda: waiting_cleaners(database, "relation"), "the clean meets the writer")
        writer.commit()
        assert table in cleaning.result(PATIENCE).tables
        cleaner.verify()


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_no_orphan_is_left_where_a_child_is_written_during_the_clean(
    database: Database, strategy: str
) -> None:
    """The child's table was empty when the clean looked, and is not when the parent goes."""
    database.execute(
        """CREATE TABLE parent (id int PRIMARY KEY);
        CREATE TABLE child (id int PRIMARY KEY, parent_id int NOT NULL REFERENCES parent);
        CREATE TABLE other (id int PRIMARY KEY);
        INSERT INTO parent VALUES (1); INSERT INTO other VALUES (1)"""
    )
    with (
        database.cleaner(strategy=strategy, lock_timeout=PATIENCE) as cleaner,
        ThreadPoolExecutor(1) as pool,
        database.transaction() as reader,
        database.transaction() as writer,
    ):
        # Keeps the clean from `other`, which comes before `parent`, and so between its two steps.
        reader.execute("LOCK TABLE other IN SHARE UPDATE EXCLUSIVE MODE")
        cleaning = pool.submit(cleaner.clean)
        until(lambda: waiting_cleaners(database, "relation"), "the clean is under way")
        if strategy != "truncate":  # which has locked the child already
            writer.execute("INSERT INTO child VALUES (1, 1)")
        reader.rollback()
        if strategy != "truncate":
            until(lambda: waiting_cleaners(database, "transactionid"), "it meets the new child")
        writer.commit()
        cleaning.result(PATIENCE)
    orphans = "SELECT count(*) FROM child WHERE parent_id NOT IN (SELECT id FROM parent)"
    assert database.scalar(orphans) == 0
    assert database.count("parent") == 0


def blocked_by_deadlock(database: Database, **settings: Any) -> Report:
    """Clean, where the clean and a writer want each other's locks, and the clean is the victim:
    if it does not let the writer pass before the server looks for deadlocks.
    """
    database.execute(
        "DROP TABLE IF EXISTS b, a;"
        "CREATE TABLE a (id serial PRIMARY KEY); CREATE TABLE b (id serial, a_id int REFERENCES a)"
    )
    url = database.url.update_query_dict({"options": "-c deadlock_timeout=10ms"})
    with (
        Cleaner(url, lock_timeout=PATIENCE, **settings) as cleaner,
        ThreadPoolExecutor(1) as pool,
        database.transaction() as first,
        database.transaction() as second,
    ):
        cleaner.plan()
        first.execute("INSERT INTO a DEFAULT VALUES")
        second.execute("SET deadlock_timeout = '1h'")
        second.execute("INSERT INTO b DEFAULT VALUES")
        cleaning = pool.submit(cleaner.clean)
        until(lambda: waiting_cleaners(database, "relation"), "the clean waits for the first")
        first.commit()
        until(
            lambda: database.scalar(
                "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'b'::regclass"
            ),
            "it has the lock on a, the parent, and waits for the second writer's on b",
        )
        second.execute("INSERT INTO a DEFAULT VALUES")  # waits for the clean, which waits for us
        second.commit()
        report = cleaning.result(PATIENCE)
        cleaner.verify()
        return report


def test_a_clean_that_a_deadlock_chose_as_victim_tries_again(database: Database) -> None:
    reports = (blocked_by_deadlock(database) for _ in range(50))
    report = next((report for report in reports if report.attempts > 1), None)
    assert report, "the writer was let pass each time"
    assert set(report.tables) == {"a", "b"}


def test_a_deadlock_on_the_last_attempt_is_raised_with_its_reason(database: Database) -> None:
    reports = (blocked_by_deadlock(database, retries=1) for _ in range(50))
    with pytest.raises(RetriesExhaustedError, match="failed 1 times: deadlock detected"):
        list(reports)
    assert database.advisory_locks() == 0


# -- one at a time --------------------------------------------------------------------------


def test_cleaners_of_one_database_take_turns_and_those_of_another_do_not_wait(
    database: Database,
) -> None:
    other = Database(database.url.set(database=f"{database.name}_other"), "postgres")
    database.execute(f'CREATE DATABASE "{other.name}"')
    schema = "CREATE TABLE a (id serial); INSERT INTO a DEFAULT VALUES"
    patient: dict[str, Any] = {"lock_timeout": PATIENCE, "retries": 1}
    try:
        database.execute(schema)
        other.execute(schema)
        with (
            database.cleaner(**patient) as first,
            database.cleaner(strategy="delete", **patient) as second,
            other.cleaner(**patient) as elsewhere,
            ThreadPoolExecutor(2) as pool,
            database.transaction() as holder,
        ):
            holder.execute("INSERT INTO a DEFAULT VALUES")
            one = pool.submit(first.clean)
            until(lambda: waiting_cleaners(database, "relation"), "the first clean is under way")
            two = pool.submit(second.clean)
            until(lambda: waiting_cleaners(database, "advisory"), "the second waits for its turn")
            assert elsewhere.clean().tables == ("a",)
            assert not one.done()
            assert not two.done()
            holder.commit()
            assert one.result(PATIENCE).tables == ("a",)
            assert two.result(PATIENCE).tables == ()
    finally:
        other.close()
        database.execute(f'DROP DATABASE "{other.name}" WITH (FORCE)')


def test_threads_may_share_a_cleaner(database: Database) -> None:
    database.execute("CREATE TABLE a (id serial, owner int)")
    with database.cleaner() as cleaner:
        cleaner.clean()

        def work(thread: int) -> list[Report]:
            reports = []
            with database.connect() as connection:
                for _ in range(20):
                    connection.execute("INSERT INTO a (owner) VALUES (%s)", [thread])
                    reports.append(cleaner.clean())
                    left = connection.execute("SELECT FROM a WHERE owner = %s", [thread])
                    assert left.fetchall() == []
            return reports

        with ThreadPoolExecutor(8) as pool:
            reports = [report for part in pool.map(work, range(8)) for report in part]
        assert {report.round_trips / report.attempts for report in reports} == {1}
        assert any(report.tables for report in reports)
        cleaner.verify()
