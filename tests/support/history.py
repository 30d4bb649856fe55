"""Random histories of a database that several sessions write to, for hypothesis.

What moves rows without a change of their number or size, what is not committed when somebody
looks, what was begun long before it writes: each step is one thing that a session does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import psycopg
from hypothesis import strategies as st

from cleaner import Cleaner
from cleaner.errors import BlockedError
from support import observe
from support.churn import Table, tables
from support.database import Database

WRITERS = 3
State = tuple[dict[str, str], dict[str, tuple[int, bool, int]]]


@dataclass(frozen=True)
class Step:
    """``what`` the ``session`` does; the numbers choose a table and more, whatever there is."""

    what: str
    session: int
    table: int
    number: int
    replica: bool


WRITES = [
    "touch", "touch all", "change", "change all", "delete", "delete all", "add",
    "replace", "copy", "copy frozen", "truncate", "sequence", "raw",
]  # fmt: skip
BOUNDS = ["commit", "commit", "rollback", "savepoint", "rollback to", "release"]
OTHERS = ["xid", "xid", "vacuum", "vacuum full", "freeze", "cluster", "analyze", "clean", "clean"]


def steps(*more: str, max_size: int = 12) -> st.SearchStrategy[list[Step]]:
    """Histories of so many steps; ``more`` are steps beside writes, their bounds, and cleans."""
    step = st.builds(
        Step,
        what=st.sampled_from(WRITES) | st.sampled_from([*BOUNDS, *OTHERS, *more]),
        session=st.integers(0, WRITERS - 1),
        table=st.integers(0, 11),
        number=st.integers(0, 3),
        replica=st.sampled_from([False, False, False, True]),
    )
    return st.lists(step, min_size=1, max_size=max_size)


def state(database: Database) -> State:
    """What the database holds, read by a session of its own."""
    return observe.contents(database.session), {
        name: position
        for name, position in observe.sequences(database.session).items()
        if not name.startswith("cleaner_baseline.")
    }


class History:
    """Runs steps: writers' sessions, and the cleaners between them.

    ``raw`` are statements of the schema's own. ``baseline`` is what the database held when it was
    captured.
    """

    def __init__(
        self,
        database: Database,
        capturer: Cleaner,
        cleaners: list[Cleaner],
        writers: list[psycopg.Connection[Any]],
        raw: list[str],
    ) -> None:
        self.database, self.capturer, self.cleaners, self.raw = database, capturer, cleaners, raw
        self.writers = writers
        self.tables: list[Table] = tables(database.session)
        self.sequences = sorted(observe.sequences(database.session))
        self.sequences = [s for s in self.sequences if not s.startswith("cleaner_baseline.")]
        self.baseline = state(database)
        self.told: list[str] = []  # what happened, to be read when a promise was broken

    def run(self, history: list[Step]) -> None:
        """Each step; one that the server refuses ends its session's transaction."""
        for step in history:
            self.told.append(f"{step.session}: {step.what}")
            if step.what == "clean":
                self.clean(self.cleaners[step.number % len(self.cleaners)])
            elif step.what == "capture":
                self.capture()
            elif self.tables:
                self.act(step)

    def act(self, step: Step) -> None:
        writer = self.writers[step.session]
        try:
            if step.what in ("vacuum", "vacuum full", "freeze", "cluster", "analyze"):
                self.maintain(step)
            elif step.what in BOUNDS:
                self.bound(writer, step.what)
            elif step.what == "xid":
                writer.execute("SELECT pg_current_xact_id()")
            else:
                role = "replica" if step.replica else "origin"
                writer.execute(f"SET LOCAL session_replication_role = {role}".encode())
                self.write(writer, step, self.tables[step.table % len(self.tables)])
        except psycopg.Error as error:
            self.told[-1] += f" ({type(error).__name__})"
            writer.rollback()

    def bound(self, writer: psycopg.Connection[Any], what: str) -> None:
        if what == "commit":
            writer.commit()
        elif what == "rollback":
            writer.rollback()
        else:
            words = {
                "savepoint": "SAVEPOINT s",
                "rollback to": "ROLLBACK TO s",
                "release": "RELEASE s",
            }
            writer.execute(words[what].encode())

    def maintain(self, step: Step) -> None:
        name = self.tables[step.table % len(self.tables)].name
        options = {"vacuum": "", "vacuum full": "(FULL)", "freeze": "(FREEZE)"}
        with self.database.connect(options="-c lock_timeout=5") as session:
            if step.what == "cluster":
                index = self.database.execute(
                    f"SELECT min(indexrelid::regclass::text) FROM pg_index"
                    f" WHERE indrelid = $${name}$$::regclass AND indisvalid"
                )[0][0]
                if index:
                    session.execute(f"CLUSTER {name} USING {index.rpartition('.')[2]}".encode())
            elif step.what == "analyze":
                session.execute(f"ANALYZE {name}".encode())
            else:
                session.execute(f"VACUUM {options[step.what]} {name}".encode())

    def write(self, writer: psycopg.Connection[Any], step: Step, table: Table) -> None:
        number, name = step.number, table.name

        def run(statement: str) -> None:
            self.told[-1] += f" {statement}"
            writer.execute(statement.encode())

        where = f" WHERE {table.one(skip=number)}" if not step.what.endswith("all") else ""
        column = table.columns[number % len(table.columns)]
        match step.what.partition(" ")[0]:
            case "touch":
                run(f"UPDATE ONLY {name} SET {column} = {column}{where}")
            case "change":
                run(f"UPDATE ONLY {name} SET {table.changes[number % len(table.changes)]}{where}")
            case "delete":
                run(f"DELETE FROM ONLY {name}{where}")
            case "add":
                run(f"INSERT INTO {name} DEFAULT VALUES")
            case "truncate":
                run(f"TRUNCATE {name}{' RESTART IDENTITY' if number % 2 else ''} CASCADE")
            case "sequence":
                if self.sequences:
                    sequence = self.sequences[step.table % len(self.sequences)]
                    run(f"SELECT nextval($${sequence}$$)")
            case "raw":
                if self.raw:
                    run(self.raw[(step.table * 4 + number) % len(self.raw)])
            case "replace" | "copy":
                self.copy(writer, step, table)

    def copy(self, writer: psycopg.Connection[Any], step: Step, table: Table) -> None:
        """Take rows out and put them in again, all or but one."""
        columns = ", ".join(table.columns)
        with writer.cursor().copy(f"COPY {table.name} ({columns}) TO STDOUT".encode()) as out:
            lines = b"".join(bytes(block) for block in out).splitlines(keepends=True)
        frozen = step.what == "copy frozen"
        writer.execute(f"{'TRUNCATE' if frozen else 'DELETE FROM ONLY'} {table.name}".encode())
        into = f"COPY {table.name} ({columns}) FROM STDIN{' (FREEZE)' if frozen else ''}"
        with writer.cursor().copy(into.encode()) as copy:
            for line in lines[step.number == 3 :]:
                copy.write(line)

    # -- promises -------------------------------------------------------------------------

    def seen(self) -> State | None:
        """What the database holds; None while a writer keeps readers from a part of it."""
        try:
            with self.database.session.transaction():
                self.database.session.execute("SET LOCAL lock_timeout = 5")
                return state(self.database)
        except psycopg.errors.LockNotAvailable:
            return None

    def clean(self, cleaner: Cleaner) -> None:
        """All or nothing, whoever is writing: at the baseline, or as it was and somebody named."""
        before, blockers = self.seen(), None
        try:
            cleaner.using(lock_timeout=0.02).clean()
        except BlockedError as error:
            blockers = {blocker.pid for blocker in error.blockers}
            self.told[-1] += " (blocked)"
        if blockers is None:
            assert self.seen() == self.baseline, self.told
        else:
            assert blockers <= {writer.info.backend_pid for writer in self.writers}, self.told
            assert self.seen() == before, self.told

    def capture(self) -> None:
        try:
            self.capturer.using(lock_timeout=0.02).capture()
        except BlockedError:
            self.told[-1] += " (blocked)"
        else:
            self.captured()

    def captured(self) -> None:
        """The baseline is what the database holds now, and what materialized views make of it."""
        try:
            self.baseline = self.refreshed("5ms")
        except psycopg.errors.LockNotAvailable:
            self.told.append("writers ended")
            for writer in self.writers:
                writer.rollback()
            self.baseline = self.refreshed("60s")

    def refreshed(self, wait: str) -> State:
        session = self.database.session
        with session.transaction(force_rollback=True):  # they stay as they are until a clean
            session.execute(f"SET LOCAL lock_timeout = '{wait}'".encode())
            views = session.execute(
                "SELECT oid::regclass::text FROM pg_class"
                " WHERE relkind = 'm' AND relispopulated ORDER BY oid"
            ).fetchall()
            for (view,) in views:
                session.execute(f"REFRESH MATERIALIZED VIEW {view}".encode())
            return state(self.database)

    def end(self, commit: bool) -> None:
        """End every transaction; then each cleaner finds the baseline, or makes it so."""
        for writer in self.writers:
            try:
                writer.commit() if commit else writer.rollback()
            except psycopg.Error:  # of a deferred constraint
                writer.rollback()
        for cleaner in self.cleaners:
            report = cleaner.clean()
            assert state(self.database) == self.baseline, (self.told, report)


def sessions(database: Database) -> list[psycopg.Connection[Any]]:
    """The writers' sessions, which never wait long for each other."""
    return [database.connect(autocommit=False, options="-c lock_timeout=5") for _ in range(WRITERS)]
