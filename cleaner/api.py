"""``Cleaner``: the one place where looking, planning, cleaning and retrying come together."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL, Engine

from cleaner import guard, pools, registry, retry
from cleaner.attempts import Attempts, Trial
from cleaner.dialects import Done, connect
from cleaner.difference import Diff
from cleaner.errors import (
    NotCleanError,
    SchemaChangedError,
    SettingsError,
    StrategyRefusedError,
)
from cleaner.metadata import Models
from cleaner.selection import named_tables, select
from cleaner.settings import Settings
from cleaner.spi import Plan, Recreate, Report, Strategy, Target

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

Result = TypeVar("Result")


@dataclass(frozen=True)
class _Prepared:
    """A plan, the models it was made for, and the program that runs it."""

    known: tuple[frozenset[str], ...]
    target: Target
    plan: Plan
    program: Any


class Cleaner:
    """Puts a test database back to its baseline.

    ``url`` is a database URL or an Engine, ``metadata`` whatever names the tables (see
    :class:`cleaner.metadata.Models`; None: all that the database holds), ``keywords`` any field
    of :class:`cleaner.Settings`. What is not given comes from pytest's options, the environment
    and ``[tool.cleaner]`` in pyproject.toml.

    It holds one connection of its own, opened when first needed and replaced when it dies, and
    may be shared by threads. Raises SettingsError, UnknownStrategyError.
    """

    def __init__(
        self,
        url: str | URL | Engine | AsyncEngine | None = None,
        metadata: object = None,
        *,
        settings: Settings | None = None,
        **keywords: Any,
    ) -> None:
        if url is not None:
            keywords["url"] = url
        if metadata is not None:
            keywords["metadata"] = metadata
        if settings is None:
            settings = Settings.load(**keywords)
        else:
            settings = settings.merged(keywords, "keyword")
        if settings.url is None:
            raise SettingsError(
                "There is no database to clean: url is not set.",
                "neither pyproject.toml, nor CLEANER_URL, nor the call says where it is",
                'Cleaner("postgresql+psycopg://localhost/app_test", Base)',
            )
        self.settings = settings
        self._session = connect(settings.url, self._check_database, settings.lock_timeout)
        self._configure()

    def _configure(self) -> None:
        source = self.settings.url
        options = source.get_execution_options() if isinstance(source, Engine) else {}
        self._models = Models(self.settings.metadata, options.get("schema_translate_map"))
        self._strategy = registry.create(self.settings.strategy, self.settings.strategy_options)
        self._attempts = Attempts(self._session, self.settings)
        self._prepared: _Prepared | None = None

    def _check_database(self, name: str) -> None:
        guard.check(name, self.settings.allow_databases)

    # -- cleaning -------------------------------------------------------------------------

    def clean(self) -> Report:
        """Put every table of the target back to its baseline, and every sequence to its START.

        All or nothing (but ``setval``, which comes last, can't be undone), one at a time per
        database. Raises UnsafeDatabaseError, StrategyRefusedError, ExcludedTableError, BlockedError
        (after ``lock_timeout`` seconds), RetriesExhaustedError, NotCleanError, SchemaChangedError,
        ProvisionError.
        """
        with self._session.mutex:
            started, trips = time.perf_counter(), self._session.round_trips
            trial = self._changed(self._run, "Cleaning")
            assert self._prepared is not None
            done = trial.result
            if self._strategy.recreates:
                pools.forget_connections()
            return Report(
                strategy=self._strategy.name,
                tables=done.tables,
                sequences=done.sequences,
                seconds=time.perf_counter() - started,
                attempts=trial.attempts,
                round_trips=self._session.round_trips - trips,
                truncated=done.truncated,
                refreshed=done.refreshed,
                terminated=(*trial.terminated, *map(str, done.ended)),
                warnings=self._prepared.plan.warnings,
            )

    def _changed(self, work: Callable[[int], Result], doing: str) -> Trial[Result]:
        return self._attempts.change(work, doing, lambda: self._prepare().program)

    def _run(self, wait: int) -> Done:
        for _ in range(4):
            prepared = self._prepare()
            try:
                return self._session.run(prepared.program, wait)
            except retry.Stale as stale:
                self._prepared = None
                if stale.error is not None and self._target.database == prepared.target.database:
                    raise stale.error from stale.__cause__
        raise self._unsettled()

    def _unsettled(self) -> SchemaChangedError:
        return SchemaChangedError(
            f"The schema of {self._session.look().name} changes faster than it can be cleaned.",
            "migrations, or tests that create tables, are still running in another session",
            "let them end before clean()",
        )

    # -- planning -------------------------------------------------------------------------

    @property
    def _target(self) -> Target:
        return self._prepare().target

    def _prepare(self) -> _Prepared:
        known = self._models.known()
        if self._prepared is None or self._prepared.known != known:
            self._prepared = self._planned(known)
        return self._prepared

    def _planned(self, known: tuple[frozenset[str], ...]) -> _Prepared:
        target = self._selected()
        if target.database.lost and not self._strategy.recreates:
            raise SchemaChangedError.lost(target.database.name, target.database.lost)
        self._check_served(target)
        plan = self._strategy.plan(target)
        program = self._session.compile(plan, target)
        return _Prepared(known, target, replace(plan, sql=str(program)), program)

    def _check_served(self, target: Target) -> None:
        """Raise StrategyRefusedError if the strategy can't serve there."""
        if refusal := self._strategy.refusal(target):
            raise StrategyRefusedError(
                f"The strategy {self._strategy.name!r} can't clean {target.database.name}: "
                f"{refusal}.",
                "the role, or a table, does not allow what this strategy does",
                'strategy = "auto", or exclude = ["table"]'
                + (", or the GRANT above" if "GRANT" in refusal else ""),
            )

    def plan(self) -> Plan:
        """What :meth:`clean` would do now. Looks at the database and runs nothing.

        Raises what :meth:`clean` would raise before it begins.
        """
        with self._session.mutex:
            self._prepared = None
            return self._prepare().plan

    def _selected(self) -> Target:
        return select(self._session.look(), self._models.tables(), self.settings)

    # -- baselines ------------------------------------------------------------------------

    def capture(self, tables: Iterable[str] | None = None) -> None:
        """From now on the baseline is what the database holds at this moment.

        That is every row of every table of the target, and the position of every sequence; with
        ``tables`` (names or patterns) of those only, the others keep the baseline they had. The
        rows are kept in a schema ``cleaner_baseline`` of the same database, so that every Cleaner
        of it, in whatever process, restores them, also after a crash, until :meth:`release`.

        Waits for uncommitted writers. All or nothing. Raises StrategyRefusedError where rows could
        not be put back by this role, SettingsError where ``tables`` names none of the target's,
        and what :meth:`clean` raises for a lock or a conflict.
        """
        if isinstance(tables, str):
            raise SettingsError(
                f"capture() was given the string {tables!r}.",
                "one table was meant",
                f"cleaner.capture(tables=[{tables!r}])",
            )
        named = None if tables is None else tuple(tables)
        with self._session.mutex:

            def attempt(wait: int) -> None:
                target = self._selected()
                if self._strategy.recreates:
                    self._check_served(target)
                    self._session.compile(self._strategy.plan(target), target)
                chosen = target.tables if named is None else named_tables(target, named)
                self._session.capture(target, chosen, wait)

            self._changed(attempt, "Capturing the baseline of")
            self._prepared = None
            if self._strategy.recreates:
                for step in self._strategy.plan(self._selected()).steps:
                    if isinstance(step, Recreate) and not step.template:
                        self._session.make_template()
                pools.forget_connections()
            elif self._session.has_template():  # of an older baseline
                self._session.drop_template()

    def release(self) -> None:
        """Forget what was captured: from now on the baseline is no rows. Leaves nothing of ours
        in the database, and all rows as they are.
        """
        with self._session.mutex:
            self._changed(self._session.release, "Releasing the baseline of")
            self._prepared = None
            if self._session.has_template():
                self._session.drop_template()

    @property
    def captured(self) -> dict[str, int]:
        """How many rows are the baseline of a table of the target, for those that have any."""
        with self._session.mutex:
            return {
                table.name: table.captured for table in self._selected().tables if table.captured
            }

    @property
    def strategy(self) -> Strategy:
        """The strategy in use."""
        return self._strategy

    def describe(self) -> frozenset[str]:
        """What the schema consists of: a line for each table, column, constraint and so on. Two
        such sets tell what was changed between them.
        """
        with self._session.mutex:
            return self._session.describe()

    @property
    def fingerprint(self) -> str:
        """A fingerprint of the schema as the last clean found it."""
        with self._session.mutex:
            return self._target.database.fingerprint

    @property
    def server(self) -> str:
        """The kind and version of the server, for instance ``postgresql 18.6``."""
        with self._session.mutex:
            return self._session.look().server

    @property
    def cancellable(self) -> bool:
        """Whether a call of an AsyncCleaner may be cut off anywhere; else it has to be finished."""
        return self._session.cancellable

    def connect(self) -> URL:
        """Connect now; returns the URL, with the driver that was chosen for it.

        Raises UnsafeDatabaseError, ProvisionError.
        """
        with self._session.mutex:
            return self._session.connect()

    def diff(self, samples: int = 3) -> Diff:
        """What differs from the baseline now; false if nothing does, ``str(diff)`` tells it.

        Looks at every row of every table of the target, at all their bits, and at every sequence;
        knows nothing of earlier cleans, changes nothing, and does not see what is not committed.
        ``samples`` rows are shown that were added to a table, as many that were changed, as many
        that are gone. Raises BlockedError (after ``lock_timeout`` seconds),
        RetriesExhaustedError, SchemaChangedError, UnsafeDatabaseError, ProvisionError.
        """
        with self._session.mutex:
            return self._attempts.look(lambda wait: self._compared(samples, wait), "Looking at")

    def _compared(self, samples: int, wait: int) -> Diff:
        for _ in range(4):
            target = self._selected()
            try:
                return self._session.diff(target, samples, wait)
            except retry.Stale as stale:
                if stale.error is not None and self._session.look() == target.database:
                    raise stale.error from stale.__cause__
        raise self._unsettled()

    def verify(self) -> None:
        """Look at every row of every table of the target, and at every sequence.

        Raises NotCleanError where one is not at its baseline, and what :meth:`diff` raises.
        """
        if diff := self.diff():
            raise NotCleanError.left(diff)

    # -- around a test --------------------------------------------------------------------

    @contextmanager
    def cleaning(self) -> Iterator[Cleaner]:
        """Clean when the body ends, whatever happens in it."""
        try:
            yield self
        finally:
            self.clean()

    def using(self, **keywords: object) -> Cleaner:
        """A cleaner with other settings that shares this one's connection."""
        if "url" in keywords:
            raise SettingsError(
                "using() keeps the connection, so it can't take another url.",
                "another database is meant",
                "Cleaner(url, ...)",
            )
        other = object.__new__(type(self))
        other.settings = self.settings.merged(keywords, "keyword")
        other._session = self._session
        other._configure()
        return other

    def close(self) -> None:
        """Close the connection. The cleaner can be used again, and opens another."""
        with self._session.mutex:
            self._session.close()

    def __enter__(self) -> Cleaner:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        url = self.settings.url
        shown = url.url if isinstance(url, Engine) else url
        return f"Cleaner({shown!s}, strategy={self._strategy.name!r})"
