"""What the control database knows of the databases that workers take turns with."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import count

from cleaner.dialects.postgresql.control_databases import named
from cleaner.dialects.postgresql.control_kept import KeptCopies
from cleaner.dialects.postgresql.failures import sqlstate
from cleaner.dialects.postgresql.sql import quote
from cleaner.dialects.strings import literal
from cleaner.errors import PoolRefusedError

PROVIDER = "cleaner pool provision"  # the worker of a database that is being provided
_LEASES = int.from_bytes(b"leas", "big")  # the first half of an advisory lock's key

LEASES = """CREATE TABLE IF NOT EXISTS cleaner.lease (
    id serial PRIMARY KEY, base text NOT NULL, role text NOT NULL, label text NOT NULL,
    generation int NOT NULL DEFAULT 1, database text NOT NULL UNIQUE, template text,
    schema text, provisioned boolean NOT NULL DEFAULT false, doomed text[] NOT NULL DEFAULT '{}',
    worker text, host text, pid int, since timestamptz, used timestamptz NOT NULL DEFAULT now(),
    UNIQUE (base, role, label))"""


@dataclass(frozen=True)
class Row:
    """A lease: ``database`` exists if ``template`` says what it was cloned from, or built like, and
    ``schema`` is its fingerprint. A ``provisioned`` one was made by an administrator, and stays.
    ``doomed`` are databases that went before it and may still be there; ``worker`` is None while
    nobody has it.
    """

    id: int
    base: str
    role: str
    label: str
    generation: int
    database: str
    template: str | None
    schema: str | None
    provisioned: bool
    doomed: list[str]
    worker: str | None
    host: str | None
    pid: int | None
    since: datetime | None
    used: datetime


_ROW = ", ".join(field.name for field in fields(Row))


class Leases(KeptCopies):
    """The rows of ``cleaner.lease``, and the lock on each, which its holder has.

    Locks go with the connection; ``opened`` counts how often there was a new one.
    """

    opened = 0

    def row(self, lease: int) -> Row | None:
        """The lease as it is now."""
        rows = self._rows(f"id = {lease}")
        return rows[0] if rows else None

    def rows(self, base: str | None = None, everyone: bool = False) -> list[Row]:
        """All leases, or those of the databases called like ``base``; with ``everyone`` also those
        of the roles whose privileges this one has.
        """
        condition = "true" if base is None else f"base = {literal(base)}"
        return self._rows(f"{condition} AND {self.roles(everyone)}")

    def _rows(self, condition: str) -> list[Row]:
        rows = self.execute(
            f"SELECT {_ROW} FROM cleaner.lease WHERE {condition} ORDER BY base, label, id"
        )
        return [Row(*row) for row in rows]

    def held(self) -> set[int]:
        """The leases whose holders live, without a lock being tried."""
        rows = self.execute(
            f"""SELECT objid::int8 FROM pg_catalog.pg_locks
 WHERE locktype = 'advisory' AND classid = {_LEASES} AND objsubid = 2 AND granted
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"""
        )
        return {lease for (lease,) in rows}

    def check(self, base: str) -> tuple[str, bool]:
        """The role's name, and whether it may create databases. Raises PoolRefusedError where it
        may not, and none were provisioned for it.
        """
        user, creates, provisioned = self.execute(
            f"""SELECT current_user::text, rolcreatedb OR rolsuper,
       EXISTS (SELECT FROM cleaner.lease
                WHERE base = {literal(base)} AND role = current_user AND provisioned)
  FROM pg_catalog.pg_roles WHERE rolname = current_user"""
        )[0]
        if not (creates or provisioned):
            raise refused(user)
        return user, creates

    def take(self, base: str, worker: str) -> Row:
        """A lease that nobody who lives has, or a new one. The lock on it is ours from now on.

        Raises PoolRefusedError where there is none, and the role may not create databases.
        """
        user, creates = self.check(base)
        for attempt in count(1):
            opened = self.opened
            free = self.execute(
                f"""SELECT id FROM (SELECT id FROM cleaner.lease
     WHERE base = {literal(base)} AND role = current_user AND (provisioned OR {creates})
     ORDER BY worker IS NOT NULL, label <> {literal(worker)}, label OFFSET 0) candidate
 WHERE pg_catalog.pg_try_advisory_lock({_LEASES}, id) LIMIT 1"""
            )
            if not free and not creates:
                raise refused(user)
            label = worker if attempt == 1 else f"{worker}_{attempt}"
            lease = free[0][0] if free else self._add(base, label)
            row = self.row(lease) if lease else None
            if row is None:  # swept, or somebody has a database of that name
                if lease:
                    self.unlock(lease)
                continue
            died = row.worker is not None and bool(free)
            again = f"{_next_generation(row)}, " if died else ""
            self.execute(
                f"""UPDATE cleaner.lease SET {again}worker = {literal(worker)},
       host = {literal(socket.gethostname())}, pid = {os.getpid()}, since = now(), used = now()
 WHERE id = {row.id}"""
            )
            if died and row.provisioned:
                self._end_sessions(row.database)
            taken = self.row(row.id)
            if taken is not None and self.opened == opened:
                return taken
            # The connection was lost meanwhile, and with it the lock.
        raise AssertionError

    def _end_sessions(self, database: str) -> None:
        self.execute(
            "SELECT pg_catalog.pg_terminate_backend(pid, 5000) FROM pg_catalog.pg_stat_activity"
            f" WHERE datname = {literal(database)} AND usename = current_user"
        )

    def _add(self, base: str, label: str, role: str = "") -> int | None:
        """A new lease, whose lock is ours: of this role, or one that is being provided for
        ``role``. None if there is one of that name, or a database.
        """
        if self.exists(name := _database(base, label, 1)):
            return None
        whose = f"{literal(role)}, {literal(PROVIDER)}" if role else "current_user, NULL"
        values = ", ".join(map(literal, (base, label, name, socket.gethostname())))
        try:
            with self.transaction():
                lease: int = self.execute(
                    f"""INSERT INTO cleaner.lease
       (base, label, database, host, role, worker, pid, since)
 VALUES ({values}, {whose}, {os.getpid()}, now()) RETURNING id""",
                    True,
                )[0][0]
                # Before anybody can see it.
                self.execute(f"SELECT pg_catalog.pg_advisory_lock({_LEASES}, {lease})", True)
                return lease
        except self.driver_error as error:
            if sqlstate(error) != "23505":
                raise
            return None

    def lock(self, lease: int) -> bool:
        """Take the lock on a lease, if nobody has it."""
        sql = f"SELECT pg_catalog.pg_try_advisory_lock({_LEASES}, {lease})"
        return bool(self.execute(sql)[0][0])

    def unlock(self, lease: int) -> None:
        """Let go of it."""
        self.execute(f"SELECT pg_catalog.pg_advisory_unlock({_LEASES}, {lease})")

    def give_back(self, row: Row) -> None:
        """Let the next one have it, database and all."""
        self.execute(
            f"UPDATE cleaner.lease SET worker = NULL, used = now() WHERE id = {row.id}"
            f" AND generation = {row.generation}"
        )
        self.unlock(row.id)

    def note(self, row: Row, template: str | None, schema: str | None = None) -> None:
        """Write down what the lease's database is cloned from, and the fingerprint of its schema;
        None: that it may not exist.
        """
        values = ["NULL" if value is None else literal(value) for value in (template, schema)]
        self.execute(
            f"UPDATE cleaner.lease SET template = {values[0]}, schema = {values[1]}"
            f" WHERE id = {row.id} AND generation = {row.generation}"
        )

    def bury(self, row: Row) -> None:
        """Drop the databases that went before the lease's own, and whatever was to become them. One
        that can't be dropped, since somebody is connected whom this role may not end, is left to
        the next who tries.
        """
        for name in row.doomed:
            try:
                self.drop(name)
            except self.driver_error:
                continue
            self.execute(
                f"UPDATE cleaner.lease SET doomed = array_remove(doomed, {literal(name)})"
                f" WHERE id = {row.id}"
            )

    def forget(self, row: Row) -> bool:
        """Drop the lease's databases, and the lease, whose lock is ours. False if the database of
        its name is not ours, and stays.

        The lease of a dead worker stays until it was unused for long, for its generation: whoever
        had it may still think so, and no other database is to have that name.
        """
        dead = row.worker not in (None, PROVIDER) and not row.provisioned
        if dead:
            self.execute(
                f"UPDATE cleaner.lease SET {_next_generation(row)}, worker = NULL, used = now()"
                f" WHERE id = {row.id}"
            )
        self.bury(row)
        gone = self.drop(row.database)
        if dead:
            self.execute(
                "UPDATE cleaner.lease SET doomed = array_remove(doomed,"
                f" {literal(row.database)}) WHERE id = {row.id}"
            )
        else:
            self.execute(
                f"DELETE FROM cleaner.lease WHERE id = {row.id}"
                " AND (doomed = '{}' OR provisioned)"
            )
        return gone


def refused(user: str) -> PoolRefusedError:
    """The error for a role that can have no lease."""
    return PoolRefusedError(
        f"Role {user} may not create databases, and nobody has provided any for it.",
        "each worker needs a database of its own",
        f"ALTER ROLE {quote(user)} CREATEDB, or as an administrator: cleaner pool provision",
    )


def _next_generation(row: Row) -> str:
    """The assignments after its holder has died: what that one has, if it still thinks so, is to be
    another database, or at least another lease.
    """
    if row.provisioned:
        return "generation = generation + 1, template = NULL"
    name = _database(row.base, row.label, row.generation + 1)
    return (
        f"generation = generation + 1, database = {literal(name)}, template = NULL,"
        f" schema = NULL, doomed = array_append(doomed, {literal(row.database)})"
    )


def _database(base: str, label: str, generation: int) -> str:
    """The name of a lease's database: another one for each generation."""
    return named(base, f"_{label}" + (f"_g{generation}" if generation > 1 else ""))
