"""What is asked of an SQLite database: what it holds, to clean it, what is left."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

from sqlalchemy import URL, Engine
from sqlalchemy.pool import SingletonThreadPool

from cleaner.dialects.base import Done, Guard, Health
from cleaner.dialects.looked import Looked
from cleaner.dialects.sqlite import baseline, capture, catalog, cleaning, differences, failures
from cleaner.dialects.sqlite.connection import SqliteConnection, driver_of
from cleaner.dialects.sqlite.image import Image, Recreation
from cleaner.dialects.sqlite.program import Program, compile_plan
from cleaner.dialects.sqlite.sql import BASELINE, quote
from cleaner.difference import Diff
from cleaner.errors import BlockedError, Blocker, StrategyRefusedError
from cleaner.retry import Conflict, LockWait, Stale
from cleaner.spi import Database, Plan, Recreate, Relation, Target

Result = TypeVar("Result")


class SqliteSession(Looked[catalog.Found], SqliteConnection):
    """See :class:`cleaner.dialects.base.Session`."""

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        super().__init__(source, guard, lock_timeout)
        self._baseline: baseline.Baseline | None = None
        # What writing changes, as it was when the program had just run.
        self._clean: WeakKeyDictionary[Program, tuple[Any, ...]] = WeakKeyDictionary()
        # The schema after it had run: a trigger that was made again counts as another.
        self._left: WeakKeyDictionary[Program, tuple[Any, ...]] = WeakKeyDictionary()
        self._image: Image | None = None

    # -- looking --------------------------------------------------------------------------

    def look(self) -> Database:
        wait = round(self.lock_timeout * 1000)
        try:
            with self._doing("to tell what it holds"), self.transaction(wait, writes=False):
                self._look()
        except LockWait as error:
            raise BlockedError.waiting(
                f"Looking at {self._name()}", self.lock_timeout, self.holders()
            ) from error
        assert self._catalog is not None
        return self._catalog.database

    def _look(self) -> None:
        found = catalog.discover(self.ask, self._name(), self.connection_id)
        relations = found.database.relations
        known = {(r.schema, r.table): found.facts[r.key] for r in relations if r.key in found.facts}
        self._baseline = kept = baseline.read(self.ask, known)
        if kept:
            rows = {place: captured.rows for place, captured in kept.tables.items()}
            found = replace(
                found,
                database=replace(
                    found.database,
                    relations=tuple(
                        replace(r, captured=rows.get((r.schema, r.table), 0)) for r in relations
                    ),
                    lost=kept.lost,
                    fingerprint=sha256(
                        f"{found.database.fingerprint} {kept.entries}".encode()
                    ).hexdigest(),
                ),
            )
        if self.private:
            warning = (
                f"{', '.join(sorted(self.private))}: attached as a database in memory, of which "
                "each connection has another, so the application's can't be cleaned"
            )
            found = replace(found, database=replace(found.database, warnings=(warning,)))
        self._catalog = found

    def _name(self) -> str:
        if self.path:
            return Path(self.path).name
        if self._source is not None and isinstance(self._source.pool, SingletonThreadPool):
            return f"the database in memory of thread {threading.current_thread().name!r}"
        return "the database in memory"

    @contextmanager
    def _doing(self, what: str) -> Iterator[None]:
        try:
            yield
        except self.driver_error as error:
            raise failures.refused(error, f"{self._name()} {what}") from error

    # -- cleaning -------------------------------------------------------------------------

    def compile(self, plan: Plan, target: Target) -> Program | Recreation:
        self._check_attached(target)
        for step in plan.steps:
            if isinstance(step, Recreate):
                self._refuse_copying(_beside_main(target))
                return Recreation(target, step.template or self._template.name)
        return compile_plan(plan, target, self.catalog, self._baseline)

    def _check_attached(self, target: Target) -> None:
        """The guard is to see every file that is written to."""
        self._refuse_private(target)
        self._check_files(_beside_main(target))

    def _check_files(self, schemas: Iterable[str]) -> None:
        files = dict(self.catalog.versions[1])
        for schema in schemas:
            if files.get(schema):
                self._guard(Path(files[schema]).name)

    def _refuse_private(self, target: Target) -> None:
        """Raise StrategyRefusedError where what we see of the target is not the application's."""
        for schema in _beside_main(target):
            if schema in self.private:
                raise StrategyRefusedError(
                    f"The tables of {schema} can't be cleaned: it is attached to {self._name()} as "
                    "a database in memory, and our connection has another than the application's.",
                    "a database in memory belongs to the connection that attaches it",
                    f'exclude = ["{schema}.*"]; or ATTACH '
                    f"'file:{schema}_test?mode=memory&cache=shared' AS {schema}, with uri=true",
                )

    def _refuse_copying(self, schemas: tuple[str, ...]) -> None:
        """Raise StrategyRefusedError where a copy would not hold what is in ``schemas``."""
        if schemas:
            listed = ", ".join(schemas)
            raise StrategyRefusedError(
                f"The strategy 'recreate' can't clean {self._name()}: tables of the target are in "
                f"{listed}, which is attached.",
                "it copies the main database only",
                f'strategy = "auto", or exclude = ["{schemas[0]}.*"]',
            )

    def run(self, program: Program | Recreation, wait: int) -> Done:
        if isinstance(program, Recreation):
            return self._recreate(program, wait)
        with self._doing("to be cleaned"), self.transaction(wait):
            left = self._left.get(program, program.found.versions)
            if self._versions() != left:
                raise Stale
            # Another connection's writing shows in data_version, and our own in total_changes. Of
            # the application's the latter misses some: incremental blobs, whole images.
            if not self.borrows and self._clean.get(program) == self._written(program):
                return Done()
            done = cleaning.clean(self.ask, program)
            if program.switches:
                left = self._versions()
            written = () if self.borrows else self._written(program)
        self._left[program], self._clean[program] = left, written
        return done

    def _versions(self) -> tuple[Any, ...]:
        return catalog.versions(self.ask, self.connection_id)

    def _written(self, program: Program) -> tuple[Any, ...]:
        schemas = (quote(name) for name, _ in program.found.versions[1])
        changed = tuple(self.ask(f"PRAGMA {schema}.data_version") for schema in schemas)
        return self.connection_id, self.ask("SELECT total_changes()"), changed

    def diff(self, target: Target, samples: int, wait: int) -> Diff:
        found = self.catalog
        self._refuse_private(target)
        with self._doing("to be compared"), self.transaction(wait, writes=False):
            if self._versions() != found.versions:
                self._catalog = None
                raise Stale
            return differences.differences(self.ask, found, self._baseline, target, samples)

    # -- baselines ------------------------------------------------------------------------

    def capture(self, target: Target, tables: Iterable[Relation], wait: int) -> None:
        found = self.catalog
        self._check_attached(target)
        try:
            with self._doing("to be captured"), self.transaction(wait):
                if self._versions() != found.versions:
                    raise Conflict("the schema has just changed")
                capture.capture(self.ask, found, self._baseline, target, tables)
        finally:
            self._catalog = None

    def release(self, wait: int) -> None:
        try:
            with self._doing("to forget what was captured"), self.transaction(wait):
                self._look()
                if self._baseline:
                    self._check_files(kept["schema"] for kept in self._baseline.entries["tables"])
                capture.release(self.ask, self._baseline)
        finally:
            self._catalog = None

    # -- the whole database ---------------------------------------------------------------

    @property
    def _template(self) -> Image:
        if self._image is None:
            with self.working():  # tells what the path is
                self._image = Image(self.path, lambda: driver_of(self._held))
        return self._image

    def _imaged(self, work: Callable[[Image], Result]) -> Result:
        image = self._template
        with self._doing("to be copied"), self.working():
            try:
                return work(image)
            finally:
                self._catalog = None

    def _recreate(self, program: Recreation, wait: int) -> Done:
        template = "" if program.template == self._template.name else program.template
        self._imaged(lambda image: image.restore(template, wait))
        return Done()

    def make_template(self) -> None:
        wait = round(self.lock_timeout * 1000)
        self._imaged(lambda image: image.make(wait))

    def has_template(self) -> bool:
        return self._template.exists()

    def drop_template(self) -> None:
        self._template.drop()

    def describe(self) -> frozenset[str]:
        self.look()
        lines = set()
        with self.working():
            for schema in [name for name, _ in self.catalog.versions[1] if name != "temp"]:
                for kind, name, sql in self.execute(
                    f"SELECT type, name, sql FROM {quote(schema)}.sqlite_master"
                    f" WHERE name NOT LIKE '{BASELINE}%' AND name NOT LIKE 'sqlite!_%' ESCAPE '!'"
                ):
                    shown = name if schema == "main" else f"{schema}.{name}"
                    lines.add(f"{kind} {shown}: {' '.join((sql or '').split())}")
        return frozenset(lines)

    # -- other sessions -------------------------------------------------------------------

    def health(self) -> Health:
        return Health(superuser=False, owner=True, no_fast_path="", idle=(), unseen="")

    def blockers(self, program: Any) -> tuple[Blocker, ...]:
        return self.holders()

    def terminate(self, blockers: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
        return ()


def _beside_main(target: Target) -> tuple[str, ...]:
    """The attached databases that tables of the target are in."""
    return tuple(dict.fromkeys(t.schema for t in target.tables if t.schema != "main"))
