"""One run of a program."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from cleaner import waits
from cleaner.dialects.base import Done
from cleaner.dialects.mysql import failures
from cleaner.dialects.mysql.connection import MySQLConnection, number
from cleaner.dialects.mysql.flavour import MySQL
from cleaner.dialects.mysql.program import Job, Program
from cleaner.retry import Conflict, LockWait, Stale
from cleaner.spi import ForeignKey, Sequence

_TURN = 0.005  # seconds between two tries to lock tables without waiting


class Patience:
    """Waits in whole seconds, as the server has them, out of slices of milliseconds.

    The slices of one clean grow. What is too short for a second is not waited at all, and added to
    the next: together they are no longer than all slices are.
    """

    def __init__(self) -> None:
        self._last, self._saved = 0, 0

    def seconds(self, wait: int, flavour: MySQL) -> int:
        """How long the attempt may wait whose slice is ``wait``."""
        saved = self._saved if wait > self._last else 0
        seconds = flavour.seconds(saved + wait)
        self._last, self._saved = wait, max(0, saved + wait - seconds * 1000)
        return seconds

    def is_over(self) -> None:
        """The clean has succeeded."""
        self._last = self._saved = 0


def let_go(connection: MySQLConnection) -> None:
    """Give back all that a run may hold, or the connection with it."""
    try:
        connection.execute("ROLLBACK", True)
        connection.execute("UNLOCK TABLES", True)
        connection.execute("SET SESSION foreign_key_checks = 1", True)
        connection.execute("DO RELEASE_ALL_LOCKS()", True)
    except Exception:
        connection.close()


class Run:
    """One run of ``program``.

    ``newest`` is the newest DDL, also of what the run has done itself; ``fits`` tells whether the
    schema is that of the program if there is newer. With ``fence`` all who are in the middle of
    using a table that is to be emptied are waited for.
    """

    def __init__(
        self,
        connection: MySQLConnection,
        program: Program,
        newest: int,
        fits: Callable[[], bool],
        fence: bool,
    ) -> None:
        self.connection, self.program = connection, program
        self.statements: list[str] = []  # to be sent with the next message
        self.newest, self.fits, self.fence = newest, fits, fence

    def clean(self, seconds: int, wait: int) -> Done:
        """All or nothing, but for what TRUNCATE and ALTER commit by themselves. Waits at most
        ``seconds`` for a lock, and ``wait`` milliseconds for another clean.
        """
        try:
            return self._clean(seconds, wait)
        except self.connection.driver_error as error:
            let_go(self.connection)
            raise failures.translate(error, self.program) from error
        except BaseException:
            let_go(self.connection)
            raise

    def _clean(self, seconds: int, wait: int) -> Done:
        program, connection = self.program, self.connection
        self._seconds, self._deadline = seconds, time.monotonic() + wait / 1000
        look = program.look(seconds, wait / 1000, self.newest)
        locked, idle, newest, sizes, held = connection.send(look)[0]
        if locked != 1:
            raise LockWait("another clean of the database is running")
        if int(newest) != self.newest and not self.fits():
            raise Stale
        self.newest = int(newest)
        if idle == 1:
            return Done((), (), (), ())
        self._decide(_text(held), _text(sizes))
        self._work()
        return self._done()

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
        self.cut: list[int] = []  # tables that are empty then, to be truncated for their counters
        self.moved: list[Sequence] = []
        for table, sequence in program.counters.items():
            now, position = counters.get(table, 1), program.position(table)
            if now != position:
                self.moved.append(sequence)
                if table in gone:
                    continue
                key, facts = -sequence.key, program.catalog.facts[-sequence.key]
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
        program, send = self.program, self.connection.send
        waited = self._wait_for_users()
        self._delete()
        truncated = [job.facts.sql for job in self.truncated]
        cut = [program.catalog.facts[key].sql for key in self.cut]
        if waited and self._children:
            if self.emptied:  # the transaction has let go of the tables
                send([*self.statements, "COMMIT"], True)
                self._lock(self._used)
                self.statements = []
            if left := [key for key in self._children if key.child not in self._gone]:
                self._refuse_referring(left)
            # One to which a row refers that came meanwhile is no empty table any more.
            self.statements += [f"DELETE FROM {name}" for name in cut]
        elif self.emptied:
            self.statements.append("COMMIT")
        self.statements += program.truncations([*truncated, *cut])
        self.statements += [program.put_back(table, at) for table, at in self.altered.items()]
        if waited:
            self.statements += ["START TRANSACTION", "COMMIT"]  # which unlocks the tables
        self.statements += [program.restart(sequence) for sequence in self.restarted]
        send([*self.statements, "DO RELEASE_ALL_LOCKS()"], True)
        self.newest += len(self.altered)

    def _wait_for_users(self) -> bool:
        """Wait for those who use the tables that are to be truncated or altered, while nothing is
        done; False where this user may not, and each statement has to wait for itself.
        """
        facts, relation = self.program.catalog.facts, self.program.catalog.database.relation
        parents = self.program.parents
        self._gone = {job.table.key for job in self.truncated}
        self._children = [
            key for table in (*self._gone, *self.cut) for key in parents.get(table, ())
        ]
        altered = {key for key in facts if relation(key).table in self.altered}
        tables = {*self._gone, *self.cut, *altered, *(key.child for key in self._children)}
        self._used = {facts[key].sql for key in tables if key in facts}
        if self.fence:
            self._used |= {job.facts.sql for job in self.emptied}
        if not self._used:
            return False
        if self._lock(self._used):
            return True
        for key in [key for key in self.cut if key in parents]:  # ALTER does no harm to children
            self.cut.remove(key)
            self.altered[relation(key).table] = 1
        return False

    def _delete(self) -> None:
        """Begin the transaction that empties and restores, and look at what it leaves."""
        program = self.program
        # For what is of no other session, and after the COMMIT.
        self.statements = [f"SET SESSION lock_wait_timeout = {max(1, self._seconds)}"]
        self.statements += program.transaction(self.emptied) if self.emptied else []
        if guards := program.unguarded(self.emptied):
            statements = [*self.statements, program.orphans(guards)]
            found = _text(self.connection.send(statements, True)[0][0])
            for key, flag in zip(guards, found, strict=True):
                if flag == "1" and key in program.outside:
                    raise failures.reaches_outside(program.catalog, key)
                if flag == "1":
                    child = program.catalog.database.relation(key.child).name
                    raise Conflict(f"a row of {child} came while its parents were deleted")
            self.statements = []

    def _refuse_referring(self, keys: list[ForeignKey]) -> None:
        """Raise if a row refers to a table that is to be truncated."""
        truncated = [key for key in keys if key.parent in self._gone]
        if truncated and "1" in _text(
            self.connection.send([self.program.referring(truncated)], True)[0][0]
        ):
            raise Conflict("a row came that refers to a table which is to be truncated")

    def _lock(self, names: set[str]) -> bool:
        """Lock the tables; False if this user may not."""
        while True:
            try:
                self.connection.execute(self.program.lock_tables(names), True)
                return True
            except self.connection.driver_error as error:
                if number(error) in failures.DENIED:
                    return False
                # The server's own purge uses tables, too, for a moment.
                if (
                    self._seconds
                    or time.monotonic() > self._deadline
                    or not failures.is_wait(error)
                ):
                    raise
                waits.pause(_TURN)

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
