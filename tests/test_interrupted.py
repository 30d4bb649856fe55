"""Cleans that do not come to their end: killed clients, ended backends, interrupts, forks."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from types import FrameType

import pytest
from support.database import STRATEGIES, Database
from support.kills import Forker, cleaner_backends
from support.pools import PATIENCE, until

from cleaner import Cleaner
from cleaner.errors import CleanerError

pytestmark = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)

KILLS = int(os.environ.get("CLEANER_STRESS_KILLS", "3"))  # per strategy
LARGE = ("leaf", "root", "apart")


def large(database: Database) -> None:
    database.execute(
        """CREATE TABLE root (id serial PRIMARY KEY, mark text DEFAULT 'there at the start');
        CREATE TABLE leaf (id serial PRIMARY KEY, mark text DEFAULT 'there at the start',
            root_id int NOT NULL REFERENCES root);
        CREATE INDEX ON leaf (root_id);
        CREATE TABLE apart (id serial PRIMARY KEY, mark text DEFAULT 'there at the start')"""
    )


def fill(database: Database, rows: int) -> None:
    database.execute(
        f"""INSERT INTO root SELECT FROM generate_series(1, {rows});
        INSERT INTO leaf (root_id) SELECT id FROM root;
        INSERT INTO apart SELECT FROM generate_series(1, {rows})"""
    )


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_cleaner_killed_in_the_middle_leaves_all_or_nothing_and_no_lock(
    database: Database,
    forker: Forker,
    strategy: str,
    record_property: Callable[[str, object], None],
) -> None:
    large(database)
    dice, outcomes = random.Random(strategy), Counter[str]()
    with database.cleaner(strategy=strategy, lock_timeout=PATIENCE) as cleaner:
        fill(database, 5000)
        cleaner.clean()
        fill(database, 5000)
        usual = cleaner.clean().seconds
        cleaner.close()
        for _ in range(KILLS):
            fill(database, 5000)
            forker.kill(strategy, after=dice.uniform(0, usual))
            assert database.advisory_locks() == 0
            left = {table: database.count(table) for table in LARGE}
            assert left in (dict.fromkeys(LARGE, 5000), dict.fromkeys(LARGE, 0))
            outcomes["all left" if left["root"] else "none left"] += 1
            fill(database, 1) if not left["root"] else None
            cleaner.clean()
            cleaner.verify()
            cleaner.close()
    record_property("outcomes", dict(outcomes))


def test_a_forked_child_has_a_connection_of_its_own_and_leaves_the_parents_alone(
    database: Database,
) -> None:
    database.execute("CREATE TABLE a (id serial); INSERT INTO a DEFAULT VALUES")
    script = """
    import os, sys
    from cleaner import Cleaner
    cleaner = Cleaner(sys.argv[1])
    cleaner.clean()
    for behave in (cleaner.clean, cleaner.close, cleaner.plan, lambda: None):
        for end in (os._exit, sys.exit):
            if child := os.fork():
                assert os.waitpid(child, 0)[1] == 0
                # One round trip: neither was the connection replaced, nor its functions made anew.
                assert cleaner.clean().round_trips == 1, (behave, end)
            else:
                behave()
                end(0)
    """
    url = database.url.render_as_string(hide_password=False)
    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", textwrap.dedent(script), url],
        check=False,
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert (child.returncode, child.stderr) == (0, "")


class Alarm(BaseException):
    """What a runner's time limit raises in the middle of whatever runs."""


@contextmanager
def alarm(after: float, error: type[BaseException]) -> Iterator[None]:
    """Raise ``error`` after that many seconds, unless the body has ended by then."""

    def ring(signum: int, frame: FrameType | None) -> None:
        raise error

    previous = signal.signal(signal.SIGALRM, ring)
    try:
        try:
            signal.setitimer(signal.ITIMER_REAL, after)
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    finally:
        signal.signal(signal.SIGALRM, previous)


# An exception that strikes in a destructor can't be raised there.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("error", [Alarm, KeyboardInterrupt])
@pytest.mark.parametrize("strategy", ["auto", "truncate"])
def test_an_interrupted_clean_leaves_no_lock_and_the_next_one_works(
    database: Database, strategy: str, error: type[BaseException]
) -> None:
    large(database)
    dice, interrupted = random.Random(strategy), 0
    with database.cleaner(strategy=strategy, lock_timeout=PATIENCE) as cleaner:
        fill(database, 1000)
        cleaner.clean()
        fill(database, 1000)
        usual = cleaner.clean().seconds
        for turn in range(15):
            fill(database, 1000)
            if turn % 3 == 0:
                cleaner.close()  # and connecting is interrupted, sometimes
            try:
                with alarm(max(0.0001, dice.uniform(0, usual)), error):
                    cleaner.clean()
            except error:
                interrupted += 1
            cleaner.clean()
            cleaner.verify()
    assert interrupted
    until(lambda: not cleaner_backends(database), "the server has noticed")
    assert database.advisory_locks() == 0


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_a_clean_whose_backend_is_ended_succeeds_or_raises_a_cleaner_error(
    database: Database, strategy: str, record_property: Callable[[str, object], None]
) -> None:
    large(database)
    dice, over, outcomes = random.Random(strategy), threading.Event(), Counter[str]()

    def shoot() -> None:
        with database.connect() as gun:
            while not over.wait(dice.uniform(0, 0.2)):
                shot = gun.execute(
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
                    " AND application_name IN ('cleaner', 'unnamed')"
                ).fetchone()
                outcomes["shots"] += shot[0] if shot else 0

    url = database.url.update_query_dict({"application_name": "unnamed"})  # until it is named
    with ExitStack() as stack:
        cleaner = stack.enter_context(Cleaner(url, strategy=strategy, lock_timeout=PATIENCE))
        shooter = stack.enter_context(ThreadPoolExecutor(1)).submit(shoot)
        stack.callback(over.set)
        for _ in range(25):
            fill(database, 500)
            try:
                cleaner.clean()
            except CleanerError as error:
                outcomes[type(error).__name__] += 1
            else:
                outcomes["cleaned"] += 1
                assert {database.count(table) for table in LARGE} == {0}
        over.set()
        shooter.result()
        cleaner.clean()
        cleaner.verify()
    record_property("outcomes", dict(outcomes))
    assert outcomes["shots"]
    assert database.advisory_locks() == 0
