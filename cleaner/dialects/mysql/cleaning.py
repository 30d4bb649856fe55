"""One run of a program."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from cleaner import waits
from cleaner.dialects.base import Done
from cleaner.dialects.excluded import lacks, reaches_outside
from cleaner.dialects.mysql import failures
from cleaner.dialects.mysql.connection import MySQLConnection, number
from cleaner.dialects.mysql.program import ALONE, RELEASE, UNLOCK, Guards, Job, Program
from cleaner.retry import Conflict, LockWait, Stale
from cleaner.spi import ForeignKey

_TURN = 0.005  # seconds between two tries to lock tables without waiting


def let_go(connection: MySQLConnection) -> None:
    """Give back all that a run may hold, or the connection with it."""
    connection.prepared = ""
    try:
        connection.send(["ROLLBACK", *UNLOCK, "SET SESSION foreign_key_checks = 1", RELEASE], True)
    except Exception:
        connection.close()


class Run:
    """One run of ``program``.

    ``newest`` is the newest DDL, also of what the run has done itself; ``fits`` tells whether the
    schema is that of the program if there is newer. With ``alone`` nobody else may use a table
    that is to be emptied until it is done: no other session can be in the way then. ``done`` is
    what has been done, also where the run fails in the middle of what it can't undo.
    """

    def __init__(
        self,
        connection: MySQLConnection,
        program: Program,
        newest: int,
        fits: Callable[[], bool],
        alone: bool,
    ) -> None:
        self.connection, self.program = connection, program
        self.newest, self.fits, self.alone = newest, fits, alone
        self.done = Done()

    def clean(self, wait: int) -> None:
        """All or nothing, but for what TRUNCATE and ALTER commit by themselves. Waits ``wait``
        milliseconds for others in all, give or take a second: the server counts no less.
        """
        try:
            self._clean(wait)
        except self.connection.driver_error as error:
            let_go(self.connection)
            raise failures.translate(error, self.program) from error
        except BaseException:
            let_go(self.connection)
            raise

    def _clean(self, wait: int) -> None:
        program, connection = self.program, self.connection
        self._began, self._wait = time.monotonic(), wait
        if self.alone:
            looking = [*program.apart]
        else:
            looking = program.prepared[connection.prepared == program.at_once :]
            connection.prepared = program.at_once
        look = program.look(wait, self.newest, looking)
        locked, idle, newest, tables, held = connection.send(look)[0]
        if locked != 1:
            raise LockWait("another clean of the database is running")
        names, _, sizes = _text(tables).partition(" ")
        changed = int(newest) != self.newest or names != program.catalog.names
        if changed and not self.fits():
            raise Stale
        self.newest = int(newest)
        if idle == 1:
            return
        self._decide(_text(held), sizes)
        self._work()

    # -- what is to be done ---------------------------------------------------------------

    def _decide(self, held: str, sizes: str) -> None:
        program = self.program
        digits = zip(program.looked_at, held, strict=False)
        self.found = {job.table.key for job, digit in digits if digit == "1"}
        self.found |= {job.table.key for job in program.jobs if job.truncate}
        counters, big = _sizes(sizes)
        moved = {
            table: sequence
            for table, sequence in program.counters.items()
            if counters.get(table, 1) != program.position(table)
        }
        self.moved = [*moved.values()]
        chosen = self.found
        if self.alone:  # and where a row may have come since that was looked up
            chosen = program.reached(chosen.union(-sequence.key for sequence in self.moved))
        self.emptied: list[Job] = []
        self.truncated: list[Job] = []
        for job in (job for job in program.jobs if job.table.key in chosen):
            cannot = job.truncate or not job.facts.transactional
            rather = job.may_truncate and job.table.table in big
            (self.truncated if cannot or rather else self.emptied).append(job)
        self._gone = {job.table.key for job in self.truncated}
        # A parent is deleted from before its child is truncated, if the child has to be.
        parents = {key.parent for key in program.keys if key.child in self._gone}
        self.emptied = [
            replace(job, unchecked=job.unchecked or job.table.key in parents)
            for job in self.emptied
        ]
        self.altered: dict[str, int] = {}  # by table, the AUTO_INCREMENT to set
        self.cut: list[int] = []  # tables that are empty then, to be truncated for their counters
        for table, sequence in moved.items():
            key, position = -sequence.key, program.position(table)
            if key in self._gone:
                continue
            facts = program.catalog.facts[key]
            if position == 1 and not (facts.versioned or facts.captured):
                self.cut.append(key)
            else:
                self.altered[table] = position
        for job in self.truncated:  # TRUNCATE puts back what is to go on, too
            table = job.table.table
            goes_on = job.facts.auto_increment and table not in program.counters
            position = counters.get(table, 1) if goes_on else program.position(table)
            if position > 1:
                self.altered[table] = position
        flags = held[len(program.looked_at) :]
        self.restarted = [
            s for s, flag in zip(program.real_sequences, flags, strict=True) if flag == "1"
        ]

    # -- doing it -------------------------------------------------------------------------

    def _work(self) -> None:
        program, gone = self.program, self._gone
        referring = program.referring
        emptied = {job.table.key for job in self.emptied}
        # Whose children must not come back while nothing sees to the foreign keys.
        unreferred = [key for table in gone for key in referring.get(table, ())]
        unreferred = [key for key in unreferred if key.child not in gone | emptied]
        guards = tuple(key for key in program.unguarded(self.emptied) if key.child not in gone)
        late: list[int] = []  # which are to be empty because they were
        alone = self._lock_tables(guards)
        left = self._left()  # for what is of no other session, and after the COMMIT
        statements = [
            f"SET SESSION innodb_lock_wait_timeout = {left}, lock_wait_timeout = {max(1, left)}"
        ]
        if alone:
            statements.append(ALONE)
            late = [key for key in self.cut if key in referring and key not in emptied]
        else:
            statements += program.begun(self.emptied) if self.emptied else ()
            unreferred = []
        statements += program.emptied(self.emptied)
        if guards or unreferred or late:
            query = program.check(guards, tuple(unreferred), late)
            found = _text(self.connection.send([*statements, query], True)[0][0])
            self._refuse([*guards, *unreferred], found)
            if "1" in found:
                raise Conflict("a row came into a table that was empty")
            statements = []
        statements.append("COMMIT")
        cut = [program.catalog.facts[key].sql for key in self.cut]
        statements += program.truncations([*(job.facts.sql for job in self.truncated), *cut])
        statements += [program.put_back(table, at) for table, at in self.altered.items()]
        statements += UNLOCK if alone else ()
        statements += [program.restart(sequence) for sequence in self.restarted]
        self.done = self._done()
        self.connection.send([*statements, RELEASE], True)
        self.newest += len(self.altered)

    def _lock_tables(self, guards: Guards) -> bool:
        """Have the tables for ourselves, if anything is to be done that can't be undone; False
        where there is no need, or this user may not, and each statement has to wait for itself.
        """
        program, referring = self.program, self.program.referring
        facts, relation = program.catalog.facts, program.catalog.database.relation
        others = {*self.cut, *(key for key in facts if relation(key).table in self.altered)}
        jobs = [*self.truncated, *self.emptied]
        if not (others or self.truncated or (jobs and self.alone)):
            return False
        # Who inserts into a child locks a row of its parent, and that is no use of the table.
        emptied = {*self.cut, *(job.table.key for job in jobs)}
        others |= {key.child for table in emptied for key in referring.get(table, ())}
        if self._lock(program.lock_tables(jobs, others, guards)):
            return True
        for key in [key for key in self.cut if key in referring]:  # ALTER does no harm to children
            self.cut.remove(key)
            self.altered[relation(key).table] = 1
        return False

    def _refuse(self, keys: Iterable[ForeignKey], found: str) -> None:
        """Raise if a row refers to one that is not there, or soon won't be."""
        program = self.program
        tables = {table.key for table in program.tables}
        for key, flag in zip(keys, found, strict=False):
            if flag == "1" and key in program.outside:
                raise reaches_outside(program.catalog.database, key)
            if flag == "1" and key.parent not in tables:
                raise lacks(program.catalog.database, key)
            if flag == "1":
                child = program.catalog.database.relation(key.child).name
                raise Conflict(f"a row of {child} came while its parents were deleted")

    def _lock(self, statement: str) -> bool:
        """Lock tables; False if this user may not."""
        while True:
            left = self._left()
            try:
                if left < self.connection.flavour.seconds(self._wait):
                    self.connection.execute(f"SET SESSION lock_wait_timeout = {left}", True)
                self.connection.execute(statement, True)
                return True
            except self.connection.driver_error as error:
                if number(error) in failures.DENIED:
                    return False
                # The server's own purge uses tables, too, for a moment; and who has nothing but
                # this to wait for can be the one that gives way in a deadlock, and ask again.
                waited = left and failures.is_wait(error)
                over = waited or time.monotonic() > self._began + self._wait / 1000
                if over or failures.passing(error) is None:
                    raise
                waits.pause(_TURN)

    def _left(self) -> int:
        """Seconds that this run may still wait, as the server counts them."""
        seconds = self.connection.flavour.seconds
        return max(seconds(self._wait) - round(time.monotonic() - self._began), seconds(0))

    # -- what is done ---------------------------------------------------------------------

    def _done(self) -> Done:
        moved = {sequence.key for sequence in (*self.moved, *self.restarted)}
        return Done(
            tables=tuple(t.name for t in self.program.tables if t.key in self.found),
            truncated=tuple(job.table.name for job in self.truncated),
            sequences=tuple(s.name for s in self.program.sequences if s.key in moved),
            refreshed=(),
        )


def _text(value: Any) -> str:
    """What a driver may give as bytes."""
    if isinstance(value, (bytes, bytearray)):
        return value.decode()
    return str(value or "")


def _sizes(listed: str) -> tuple[dict[str, int], set[str]]:
    """The counters that are not at 1, and the tables with much in them, by name."""
    counters, big = {}, set()
    for entry in listed.split():
        name, counter, much = entry.split(":")
        table = bytes.fromhex(name).decode()
        if int(counter) > 1:
            counters[table] = int(counter)
        if much == "1":
            big.add(table)
    return counters, big
