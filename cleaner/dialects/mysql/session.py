"""What is asked of a MariaDB or MySQL database: what it holds, to clean it, what is left."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sqlalchemy import URL, Engine

from cleaner.dialects.base import Done, Guard, Health
from cleaner.dialects.looked import Looked
from cleaner.dialects.mysql import activity, capture, failures
from cleaner.dialects.mysql.catalog import Catalog, parse
from cleaner.dialects.mysql.cleaning import Run
from cleaner.dialects.mysql.connection import MySQLConnection
from cleaner.dialects.mysql.description import describe
from cleaner.dialects.mysql.differences import differences
from cleaner.dialects.mysql.discovery import discover, mark, unique_keys
from cleaner.dialects.mysql.program import Program, compile_plan
from cleaner.dialects.mysql.sql import account
from cleaner.difference import Diff
from cleaner.errors import Blocker, StrategyRefusedError
from cleaner.retry import Conflict, Stale
from cleaner.spi import Database, Plan, Relation, Target


class MySQLSession(Looked[Catalog], MySQLConnection):
    """See :class:`cleaner.dialects.base.Session`."""

    least_wait = 1000

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        # The newest DDL with which the schema was known to be that of a fingerprint.
        self._newest_ddl: dict[str, int] = {}
        self._marked = ("", "")  # the last fingerprint that was found, and its mark
        self._met_conflict = False  # since the last try that came to its end
        self._begun = Done()  # what tries have done since the last that came to its end
        super().__init__(source, guard, lock_timeout)

    def _vanished(self) -> None:
        super()._vanished()
        self._newest_ddl.clear()  # the server counts anew when it starts

    # -- looking --------------------------------------------------------------------------

    def look(self) -> Database:
        self._connect()
        found = discover(self.execute, self.flavour, self.driver_error)
        captured = [name for kind, name, *_ in found.book if kind == "t"]
        unique = unique_keys(self.execute, captured)
        self._catalog = parse(found, self, unique)
        self._newest_ddl = {found.fingerprint: found.newest}
        return self._catalog.database

    def diff(self, target: Target, samples: int, wait: int) -> Diff:
        try:
            return differences(self, self.catalog, target, samples, wait)
        except self.driver_error as error:
            raise failures.unreadable(error, self.catalog) from error

    # -- cleaning -------------------------------------------------------------------------

    def compile(self, plan: Plan, target: Target) -> Program:
        return compile_plan(plan, target, self.catalog, self.flavour)

    def run(self, program: Program, wait: int) -> Done:
        self._connect()
        fingerprint = program.catalog.database.fingerprint

        def fits() -> bool:
            asked = self.execute, self.flavour, self.driver_error
            known = (fingerprint, mark(*asked, program.catalog.has_baseline))
            if known[1] and known == self._marked:
                return True
            if discover(*asked).fingerprint != fingerprint:
                return False
            self._marked = known
            return True

        newest = self._newest_ddl.get(fingerprint, -1)
        run = Run(self, program, newest, fits, alone=self._met_conflict)
        try:
            run.clean(wait)
        except Conflict:
            self._met_conflict = True
            raise
        finally:
            self._begun = run.done.after(self._begun)
        done, self._begun = self._begun, Done()
        self._met_conflict = False
        self._newest_ddl = {fingerprint: run.newest}
        return done

    # -- baselines ------------------------------------------------------------------------

    def capture(self, target: Target, tables: Iterable[Relation], wait: int) -> None:
        self._translated(lambda: capture.capture(self, self.catalog, target, tables, wait))

    def release(self, wait: int) -> None:
        self._translated(lambda: capture.release(self, self.catalog, wait))

    def _translated(self, work: Callable[[], None]) -> None:
        try:
            work()
        except self.driver_error as error:
            raise failures.refused(error, self.catalog) from error
        except Stale as stale:
            raise stale.error or stale from stale
        finally:
            self._catalog = None

    # -- the whole database ---------------------------------------------------------------

    def make_template(self) -> None:
        raise StrategyRefusedError(
            f"There can be no template of {self.catalog.database.name}: {self.flavour.name} has "
            "no way to clone a database.",
            "the strategy is for databases that can be made from a template",
            'strategy = "auto"',
        )

    def has_template(self) -> bool:
        return False

    def drop_template(self) -> None:
        pass

    def describe(self) -> frozenset[str]:
        return frozenset(describe(self.execute))

    # -- other sessions -------------------------------------------------------------------

    def health(self) -> Health:
        idle, seen = activity.idle_in_transaction(self.execute, self.driver_error)
        grants = " ".join(str(row[0]) for row in self.execute("SHOW GRANTS"))
        user = self.catalog.database.user
        return Health(
            superuser="ALL PRIVILEGES ON *.*" in grants or " SUPER" in grants,
            owner="ALL PRIVILEGES" in grants,
            no_fast_path="",
            idle=idle,
            unseen=""
            if seen
            else f"user {user} can't see who has a transaction open: "
            f"GRANT PROCESS ON *.* TO {account(user)}",
        )

    def blockers(self, program: Any) -> tuple[Blocker, ...]:
        return activity.blockers(self.execute, self.catalog.database.name, self.driver_error)

    def terminate(self, blockers: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
        return activity.terminate(self.execute, blockers, self.driver_error)
