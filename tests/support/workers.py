"""A worker's life, in a process that may be killed anywhere in it.

Reads jobs, a line of JSON each, and forks a process for each; those say a line of JSON for each
stage that they reach. All keys of a job but the first two may be missing:

    name, url               of the job, and of the pool
    worker, fingerprint     what it is called, and which template it wants
    builds                  the file to which the build appends a line
    fail, slow              the error that the build ends with, the file that it waits for
    point, delay            kill it that many seconds after its statement of that number began
    cycles                  how often it writes and cleans
    hold                    wait for the kill, with the lease in its hands
    source                  the database whose copy the template is made of
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

from sqlalchemy import URL, make_url

from cleaner import Cleaner
from cleaner.dialects.held import HeldConnection
from cleaner.provision.leases import Pool
from support.pools import connect

PARTS = 4


def say(stage: str, what: object = None) -> None:
    os.write(1, (json.dumps({"pid": os.getpid(), "stage": stage, "what": what}) + "\n").encode())


def build(url: URL, job: dict[str, Any]) -> None:
    """In several steps, so that there is such a thing as half a template."""
    if "builds" in job:
        with Path(job["builds"]).open("a") as file:
            file.write(f"{job.get('fingerprint')}\n")
    say("building")
    while "slow" in job and not Path(job["slow"]).exists():
        time.sleep(0.005)
    with connect(url) as connection:
        connection.execute("CREATE TABLE item (id serial PRIMARY KEY, name text)")
        for number in range(PARTS):
            connection.execute(f"CREATE TABLE part_{number} ()".encode())
        if "fail" in job:
            raise RuntimeError(job["fail"])
        connection.execute("CREATE TABLE whole ()")


def live(url: URL, job: dict[str, Any]) -> None:
    pool = Pool(url, 20.0)
    say("begun")
    lease = pool.lease(job.get("worker", "gw0"))
    say("leased", lease.database)
    template = pool.template(
        job.get("fingerprint", "one"), lambda url: build(url, job), job.get("source", "")
    )
    say("templated", template)
    with Cleaner(lease.url, lock_timeout=20.0) as cleaner:

        def intact() -> str:
            cleaner.plan()
            return str(cleaner.fingerprint)

        lease.prepare(template, intact)
        with connect(lease.url) as connection:

            def ask(sql: str) -> Any:
                row = connection.execute(sql.encode()).fetchone()
                assert row is not None
                return row[0]

            assert ask("SELECT pg_try_advisory_lock(1)"), f"{lease.database} has another holder"
            tables = "SELECT count(*) FROM pg_class WHERE relname ~ '^part_' OR relname = 'whole'"
            assert ask(tables) == PARTS + 1, f"{lease.database} is of half a template"
            assert ask("SELECT count(*) FROM item") == 0, f"{lease.database} holds rows"
            say("prepared", lease.database)
            for _ in range(job.get("cycles", 1)):
                lease.check()
                assert ask("INSERT INTO item (name) VALUES ('x') RETURNING id") == 1
                assert ask("SELECT count(*) FROM item") == 1, f"{lease.database} has two writers"
                cleaner.clean()
            if job.get("hold"):
                say("holding", lease.database)
                parent = os.getppid()
                while os.getppid() == parent:
                    time.sleep(0.05)
                os._exit(1)  # whoever started us is gone
            ask("SELECT pg_advisory_unlock(1)")
    lease.release()


def die_at(point: int, delay: float) -> None:
    """Be killed while a statement is on its way, or just before."""
    original, calls = HeldConnection.execute, count()

    def execute(self: HeldConnection, sql: str, in_transaction: bool = False) -> Any:
        if next(calls) == point:
            if not delay:
                os.kill(os.getpid(), signal.SIGKILL)
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        return original(self, sql, in_transaction)

    HeldConnection.execute = execute  # type: ignore[method-assign]


def main() -> None:
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # nobody waits for them
    for line in sys.stdin:
        job = json.loads(line)
        if os.fork():
            continue
        say("started", job["name"])
        try:
            if "point" in job:
                die_at(job["point"], job.get("delay", 0.0))
            live(make_url(job["url"]), job)
            say("done")
        except BaseException as error:
            say("failed", f"{type(error).__name__}: {error}")
        os._exit(0)


if __name__ == "__main__":
    main()
