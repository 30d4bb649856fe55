"""What the control database knows of the databases that were kept of failed tests."""

from __future__ import annotations

import os
import socket
from contextlib import suppress
from dataclasses import dataclass, fields
from datetime import datetime
from itertools import count

from cleaner.dialects.postgresql.control_databases import named
from cleaner.dialects.postgresql.control_templates import Templates
from cleaner.dialects.strings import literal
from cleaner.errors import CleanerError

KEPT = """CREATE TABLE IF NOT EXISTS cleaner.kept (
    name text PRIMARY KEY, base text NOT NULL, role text NOT NULL, run text NOT NULL,
    test text NOT NULL, worker text NOT NULL, host text NOT NULL, pid int NOT NULL,
    made timestamptz NOT NULL DEFAULT now())"""


@dataclass(frozen=True)
class Kept:
    """A copy of what ``test`` had left when it failed, or the intent to make one."""

    name: str
    base: str
    role: str
    run: str
    test: str
    worker: str
    host: str
    pid: int
    made: datetime


_KEPT = ", ".join(field.name for field in fields(Kept))


class KeptCopies(Templates):
    """The rows of ``cleaner.kept``; whoever makes or drops one has the lock of its name."""

    def kept(self, base: str | None = None, everyone: bool = False) -> list[Kept]:
        """All of this role, or those of ``base``; with ``everyone`` also those of the roles whose
        privileges it has.
        """
        condition = "true" if base is None else f"base = {literal(base)}"
        rows = self.execute(
            f"SELECT {_KEPT} FROM cleaner.kept WHERE {condition} AND {self.roles(everyone)}"
            " ORDER BY base, made, name"
        )
        return [Kept(*row) for row in rows]

    def keep(
        self, source: str, base: str, *, run: str, test: str, worker: str, most: int
    ) -> str | None:
        """The name of a copy of ``source``; None if there are ``most`` of that ``run`` already.

        Sessions on ``source`` that do nothing are ended, in a transaction or not. Raises
        CleanerError, which names those that are at work and do not end.
        """
        name = self._reserve(base, run, test, worker, most)
        if name is None:
            return None
        try:
            self.execute(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
                f" WHERE datname = {literal(source)} AND usename = current_user"
                " AND state LIKE 'idle in transaction%'"
            )
            self.create(name, source)
            self.mark(name, f"kept of {test}")
        except BaseException:
            with suppress(CleanerError, self.driver_error):
                self.forget_kept(name)
            raise
        finally:
            with suppress(CleanerError, self.driver_error):
                self.unlock_template(name)
        return name

    def _reserve(self, base: str, run: str, test: str, worker: str, most: int) -> str | None:
        with self.transaction():
            self.execute("LOCK TABLE cleaner.kept IN SHARE ROW EXCLUSIVE MODE", True)
            of_run = f"SELECT count(*) FROM cleaner.kept WHERE run = {literal(run)}"
            if self.execute(of_run, True)[0][0] >= most:
                return None
            taken = {name for (name,) in self.execute("SELECT name FROM cleaner.kept", True)}
            name = next(
                name
                for number in count(1)
                if (name := named(base, f"_kept_{number}")) not in taken and not self.exists(name)
            )
            whose = (name, base, run, test, worker, socket.gethostname())
            self.execute(
                "INSERT INTO cleaner.kept (name, base, run, test, worker, host, pid, role)"
                f" VALUES ({', '.join(map(literal, whose))}, {os.getpid()}, current_user)",
                True,
            )
            self.lock_template(name)  # before anybody can see it
        return name

    def forget_kept(self, name: str) -> bool:
        """Drop it, and the row that tells of it, whose lock is ours. False if there is a database
        of that name which is not ours, and stays.
        """
        gone = self.drop(name)
        self.execute(f"DELETE FROM cleaner.kept WHERE name = {literal(name)}")
        return gone
