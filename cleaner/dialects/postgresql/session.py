"""What is asked of a PostgreSQL database: what it holds, to clean it, what is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from cleaner.dialects.base import Done, Health
from cleaner.dialects.looked import Looked
from cleaner.dialects.postgresql import activity, baseline, capture, failures
from cleaner.dialects.postgresql.catalog import Catalog, parse
from cleaner.dialects.postgresql.clone import Clones, template_name
from cleaner.dialects.postgresql.columns import columns_of
from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.dialects.postgresql.description import DESCRIPTION
from cleaner.dialects.postgresql.differences import differences
from cleaner.dialects.postgresql.discovery import discovery
from cleaner.dialects.postgresql.program import Outcome, Program, read
from cleaner.dialects.postgresql.recreation import Recreation, elsewhere
from cleaner.dialects.postgresql.sql import quote
from cleaner.dialects.postgresql.writer import compile_plan
from cleaner.dialects.strings import literal
from cleaner.difference import Diff
from cleaner.errors import (
    BlockedError,
    Blocker,
    CleanerError,
    NotCleanError,
    ProvisionError,
    StrategyRefusedError,
)
from cleaner.retry import Conflict, Stale
from cleaner.spi import Database, Plan, Recreate, Relation, Target

_LOOKS = 4  # while what is captured is changed meanwhile


class PostgresSession(Looked[Catalog], PostgresConnection):
    """See :class:`cleaner.dialects.base.Session`."""

    # -- looking --------------------------------------------------------------------------

    @property
    def session_settings(self) -> dict[str, str]:
        # What shows an expression or a view waits for whoever has locked a table of it.
        return {**super().session_settings, "lock_timeout": str(max(1, self._patience))}

    @property
    def _patience(self) -> int:
        return round(self.lock_timeout * 1000)

    @contextmanager
    def _looking(self) -> Iterator[None]:
        try:
            yield
        except self.driver_error as error:
            if not failures.is_wait(error):
                raise
            name = self.execute("SELECT pg_catalog.current_database()")[0][0]
            blockers = activity.blockers(self.execute, (), False, cleans=False)
            work = f"Looking at {name}"
            raise BlockedError.waiting(work, self.lock_timeout, blockers) from error

    def look(self) -> Database:
        with self._looking():
            return self._look()

    def _look(self) -> Database:
        self._connect()
        version = self.engine.dialect.server_version_info or (14,)
        for _ in range(_LOOKS):
            found = json.loads(self.execute(discovery(version))[0][0])
            try:
                self._catalog = parse(found, self._baseline(found) if found["baseline"] else None)
            except Conflict:
                continue
            return self._catalog.database
        raise CleanerError(
            f"What {found['name']} is put back to changes faster than it can be looked at.",
            "capture() runs again and again in another session",
            "capture() once, before the tests",
        )

    def _baseline(self, found: dict[str, Any]) -> baseline.Baseline:
        """What is captured; raises Conflict where that is being changed."""
        try:
            answer = self.execute(baseline.STORED)
            if not answer:
                return baseline.emptied(found["baseline"])
            stored = baseline.Stored.of(found["baseline"], answer[0][0])
            keys = {(row["schema"], row["table"]): row["key"] for row in found["relations"] or ()}
            there = (keys[name] for name in stored.names if name in keys)
            look = f"SELECT ({columns_of(there)}), {stored.counts}"
            columns, counted = self.execute(look)[0]
            if counted is None:
                raise Conflict("another capture() has just ended")
            counts = dict(zip(stored.kept, counted, strict=True))
        except self.driver_error as error:
            if failures.may_be_stale(error):
                raise Conflict(failures.first_line(error)) from error
            raise
        return baseline.read(stored, counts, baseline.shapes(columns), keys)

    def _no_functions(self) -> str:
        """Why this role can't make the functions that clean, with the remedy; empty if it can."""
        database = self.catalog.database
        if self.catalog.temporary:
            return ""
        return (
            f"role {database.user} may not create temporary functions: "
            f"GRANT TEMPORARY ON DATABASE {quote(database.name)} TO {quote(database.user)}"
        )

    def diff(self, target: Target, samples: int, wait: int) -> Diff:
        try:
            return differences(self.execute, self.catalog, target, samples, wait)
        except self.driver_error as error:
            if failures.may_be_stale(error):
                raise Stale(failures.unreadable(error, self.catalog)) from error
            raise failures.unreadable(error, self.catalog) from error

    # -- cleaning -------------------------------------------------------------------------

    def compile(self, plan: Plan, target: Target) -> Program | Recreation:
        for step in plan.steps:
            if isinstance(step, Recreate):
                return Recreation(target, step.template)
        if reason := self._no_functions():
            raise StrategyRefusedError(
                f"{target.database.name} can't be cleaned: {reason}.",
                "the privilege, which everybody has by default, was revoked",
                reason.partition(": ")[2],
            )
        return compile_plan(plan, target, self.catalog)

    def run(self, program: Program | Recreation, wait: int) -> Done:
        if isinstance(program, Recreation):
            with self._clones(program.template) as clones:
                return Done(ended=clones.recreate())
        try:
            outcome = self._call(program, wait)
        except self.driver_error as error:
            translated = failures.translate(error, program, self.catalog)
            # Or something has written to the copies of captured rows: that is seen by looking.
            left = isinstance(translated, NotCleanError) and any(t.captured for t in program.tables)
            if failures.may_be_stale(error) or left:
                self.states.pop(program.name, None)
                raise Stale(translated) from error
            raise translated from error
        if outcome is None:
            self.states.pop(program.name, None)
            raise Stale
        self.states[program.name] = outcome.state
        return Done(
            tables=tuple(program.tables[i - 1].name for i in outcome.held),
            truncated=tuple(program.tables[i - 1].name for i in outcome.truncated),
            sequences=tuple(program.sequences[i - 1].name for i in sorted(set(outcome.restarted))),
            refreshed=tuple(program.views[i - 1].name for i in dict.fromkeys(outcome.refreshed)),
        )

    def _call(self, program: Program, wait: int, reload: bool = False) -> Outcome | None:
        for _ in range(3):
            self._connect()
            if program.name not in self.states:
                self.execute(program.create)
                self.states[program.name] = program.first()
            try:
                rows = self.execute(program.call(wait, self.states[program.name], reload))
            except KeyError:  # the connection was replaced, and its functions went with it
                continue
            except self.driver_error as error:
                if not reload and failures.needs_reload(error, program):
                    return self._call(program, wait, reload=True)
                if not failures.is_missing_function(error, program):
                    raise
                self.states.clear()
                continue
            return read(rows[0][0])
        raise ProvisionError(
            "The functions that clean the database vanish as soon as they are made.",
            "a pooler between us and the server hands each statement to another session",
            "url: the server's own address, or the pooler's port for session pooling",
        )

    # -- baselines ------------------------------------------------------------------------

    def capture(self, target: Target, tables: Iterable[Relation], wait: int) -> None:
        self._translated(lambda: capture.capture(self.execute, self.catalog, target, tables, wait))

    def release(self, wait: int) -> None:
        self._translated(lambda: capture.release(self.execute, wait))

    def _translated(self, work: Callable[[], None]) -> None:
        try:
            work()
        except self.driver_error as error:
            raise failures.refused(error, self.catalog) from error
        finally:
            self._catalog = None

    # -- the whole database ---------------------------------------------------------------

    @contextmanager
    def _clones(self, template: str = "") -> Iterator[Clones]:
        """Copies of this database, to which we are not connected meanwhile."""
        name, wait = self.catalog.database.name, self.lock_timeout
        with elsewhere(self.engine.url, name, template, wait, self.execute) as clones:
            self.close()
            yield clones

    def make_template(self) -> None:
        with self._clones() as clones:
            clones.make_template()

    def has_template(self) -> bool:
        name = literal(template_name(self.catalog.database.name))
        found = f"SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = {name})"
        return bool(self.execute(found)[0][0])

    def drop_template(self) -> None:
        with self._clones() as clones:
            clones.drop_template()

    def describe(self) -> frozenset[str]:
        with self._looking():
            return frozenset(line for (line,) in self.execute(DESCRIPTION))

    # -- other sessions -------------------------------------------------------------------

    def health(self) -> Health:
        superuser, owner = self.execute(
            """SELECT pg_catalog.current_setting('is_superuser')::bool,
       pg_catalog.pg_has_role(d.datdba, 'USAGE')
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()"""
        )[0]
        idle, unseen = activity.idle_in_transaction(self.execute)
        user = self.catalog.database.user
        return Health(
            superuser=superuser,
            owner=owner,
            no_fast_path=self._no_functions(),
            idle=idle,
            unseen=f"role {user} can't see what {unseen} sessions of other roles do: "
            f"GRANT pg_read_all_stats TO {quote(user)}"
            if unseen
            else "",
        )

    def blockers(self, program: Program | None) -> tuple[Blocker, ...]:
        if program is not None:
            return activity.blockers(
                self.execute, program.locks, program.exclusive, resets=program.resets
            )
        # Only where row-level security has to be switched off is looking more than reading.
        hidden = (facts for facts in self.catalog.facts.values() if facts.hidden and facts.owned)
        return activity.blockers(self.execute, [f.leaves[0] for f in hidden], True, cleans=False)

    def terminate(self, blockers: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
        return activity.terminate(self.execute, blockers)
