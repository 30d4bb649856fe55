"""One run of a program."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from typing import Any

from cleaner import waits
from cleaner.dialects.base import Done
from cleaner.dialects.mysql import failures
from cleaner.dialects.mysql.connection import MySQLConnection, number
from cleaner.dialects.mysql.program import Job, Program
from cleaner.retry import Conflict, LockWait, Stale
from cleaner.spi import Sequence

_TURN = 0.02  # seconds between two tries where the server can't wait for a part of a second


def clean(
    connection: MySQLConnection, program: Program, newest: int, fits: Callable[[], bool], wait: int
) -> tuple[Done, int]:
    """Run ``program``, waiting at most ``wait`` milliseconds for a lock; returns what was done, and
    the newest DDL. ``fits`` tells whether the schema is the one of the program, if ``newest`` does not.
    """
    deadline = time.monotonic() + wait / 1000
    left = float(wait)
    while True:
        try:
            return _Run(connection, program, newest, fits).clean(left)
        except LockWait:
            left = (deadline - time.monotonic()) * 1000
            if not connection.flavour.polls or left < _TURN * 1000:
                raise
            waits.pause(_TURN * random.uniform(0.5, 1.5))


def let_go(connection: MySQLConnection) -> None:
    """Give back all that a run may hold, or the connection with it."""
    try:
        connection.execute("ROLLBACK", True)
        connection.execute("UNLOCK TABLES", True)
        connection.execute("SET SESSION foreign_key_checks = 1", True)
        connection.execute("DO RELEASE_ALL_LOCKS()", True)
    except Exception:
        connection.close()


class _Run:
    def __init__(
        self,
        connection: MySQLConnection,
        program: Program,
        newest: int,
        fits: Callable[[], bool],
    ) -> None:
        self.connection, self.program = connection, program
        self.newest, self.fits = newest, fits

    def clean(self, wait: float) -> tuple[Done, int]:
        try:
            return self._clean(wait)
        except self.connection.driver_error as error:
            let_go(self.connection)
            raise failures.translate(error, self.program) from error
        except BaseException:
            let_go(self.connection)
            raise

    def _clean(self, wait: float) -> tuple[Done, int]:
        program, connection = self.program, self.connection
        seconds = connection.flavour.seconds(wait)
        look = program.look(seconds, wait / 1000, self.newest)
        locked, idle, newest, sizes, held = connection.send(look)[0]
        if locked != 1:
            raise LockWait("another clean of the database is running")
        if int(newest) != self.newest and not self.fits():
            raise Stale
        self.newest = int(newest)
        if idle == 1:
            return Done((), (), (), ()), self.newest
        self._decide(_text(held), _text(sizes))
        self._work()
        return self._done(), self.newest

    # -- what is to be done ---------------------------------------------------------------

    def _decide(self, held: str, sizes: str) -> None:
        program = self.program
        found = dict(zip(program.looked_at, held, strict=False))
        counters, big = _sizes(sizes)
        self.emptied: list[Job] = []
        self.truncated: list[Job] = []
        for job in program.jobs:
            if job.truncate or not job.facts.transactional:
                if job.truncate or found[job] == "1":
                    self.truncated.append(job)
            elif found[job] == "1":
                chosen = job.may_truncate and job.table.table in big
                (self.truncated if chosen else self.emptied).append(job)
        gone = {job.table.table for job in self.truncated}
        self.altered: dict[str, int] = {}  # by table, the AUTO_INCREMENT to set
        self.cut: list[str] = []  # tables that are empty, to be truncated for their counters
        self.moved: list[Sequence] = []
        for table, sequence in program.counters.items():
            now, position = counters.get(table, 1), program.position(table)
            if now != position:
                self.moved.append(sequence)
                facts, key = program.catalog.facts[-sequence.key], -sequence.key
                if table in gone:
                    continue
                if position == 1 and not (
                    facts.versioned or facts.captured or key in program.parents
                ):
                    self.cut.append(table)
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
        program, send = self.program, self.connection.send
        relation = program.catalog.database.relation
        cut = [program.catalog.facts[-program.counters[table].key].sql for table in self.cut]
        truncated = [job.facts.sql for job in self.truncated]
        children = [
            key for job in self.truncated for key in program.parents.get(job.table.key, ())
        ]
        facts = program.catalog.facts
        used = {
            *cut,
            *truncated,
            *(facts[-program.counters[table].key].sql for table in self.altered
              if table in program.counters),
            *(facts[key.child].sql for key in children if key.child in facts),
        }  # fmt: skip
        waited = bool(used) and self._lock(used)
        guards = program.unguarded(self.emptied)
        statements: list[str] = []
        if self.emptied:
            statements += program.transaction(self.emptied)
            if guards:
                found = _text(send([*statements, program.orphans(guards)], True)[0][0])
                for key, flag in zip(guards, found, strict=True):
                    if flag == "1" and key in program.outside:
                        raise failures.reaches_outside(program.catalog, key)
                    if flag == "1":
                        child = relation(key.child).name
                        raise Conflict(f"a row of {child} came while its parents were deleted")
                statements = []
            statements.append("COMMIT")
        if truncated and waited:  # the transaction, if there was one, has let go of the tables
            if statements:
                send(statements, True)
                self._lock(used)
            statements = [*program.truncations(truncated)]
            left = [key for key in children if key.child not in self._truncated_keys]
            if left:
                found = _text(send([program.referring(left)], True)[0][0])
                if "1" in found:
                    raise Conflict("a row came that refers to a table which is to be truncated")
            truncated = []
        statements += program.truncations([*truncated, *cut])
        statements += [program.put_back(table, at) for table, at in self.altered.items()]
        if waited and "START TRANSACTION" not in statements:
            statements += ["START TRANSACTION", "COMMIT"]  # which unlocks the tables
        statements += [program.restart(sequence) for sequence in self.restarted]
        send([*statements, "DO RELEASE_ALL_LOCKS()"], True)
        self.newest += len(self.altered)

    @property
    def _truncated_keys(self) -> set[int]:
        return {job.table.key for job in self.truncated}

    def _lock(self, names: set[str]) -> bool:
        try:
            self.connection.execute(self.program.lock_tables(names), True)
        except self.connection.driver_error as error:
            if number(error) not in failures.DENIED:
                raise
            return False  # without the privilege, each statement waits for itself
        return True

    # -- what was done --------------------------------------------------------------------

    def _done(self) -> Done:
        touched = {job.table.key for job in (*self.emptied, *self.truncated)}
        moved = {sequence.key for sequence in (*self.moved, *self.restarted)}
        return Done(
            tables=tuple(t.name for t in self.program.tables if t.key in touched),
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
