"""What is asked of a database that has no package of its own here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NoReturn

from sqlalchemy import URL, Engine, inspect, literal_column, select
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError

from cleaner.dialects.base import Done, Guard, Health
from cleaner.dialects.generic.cleaning import Program, Run, compiled, count, name_of
from cleaner.dialects.generic.connection import GenericConnection
from cleaner.dialects.generic.reading import Catalog, catalog, described, table_names
from cleaner.dialects.looked import Looked
from cleaner.difference import Diff, RowDiff, TableDiff, Value
from cleaner.errors import Blocker, CleanerError, StrategyRefusedError
from cleaner.retry import Conflict, Stale
from cleaner.spi import Database, Empty, Plan, Relation, Restart, Target


class GenericSession(Looked[Catalog], GenericConnection):
    """See :class:`cleaner.dialects.base.Session`.

    By SQLAlchemy's Inspector and statements alone: deletes, in one transaction, and where the
    database checks foreign keys too early for that, in one for each table.
    """

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        super().__init__(source, guard, lock_timeout)
        self._eager = False

    # -- looking --------------------------------------------------------------------------

    def look(self) -> Database:
        self.connect()
        try:
            self._catalog = catalog(self.engine, self.name, eager=self._eager)
        except DBAPIError as error:
            raise self._passing(error) or self._refused(error) from error
        return self._catalog.database

    def diff(self, target: Target, samples: int, wait: int) -> Diff:
        try:
            with self.begin() as connection:
                tables: list[TableDiff] = []
                for each in target.tables:
                    if rows := self.execute(connection, count(each)).scalar_one():
                        found: Any = select(literal_column("*")).select_from(name_of(each))
                        shown = self.execute(connection, found.limit(samples))
                        names = list(shown.keys())
                        added = tuple(_added(names, row) for row in shown)
                        tables.append(TableDiff(each.name, rows, rows=added))
                return Diff(tuple(tables))
        except DBAPIError as error:
            raise self._passing(error) or Stale(self._refused(error)) from error

    # -- cleaning -------------------------------------------------------------------------

    def compile(self, plan: Plan, target: Target) -> Program:
        groups: list[tuple[Relation, ...]] = []
        for step in plan.steps:
            if isinstance(step, Empty) and not step.replica:
                groups += step.groups
            elif not isinstance(step, Restart):
                raise self._beyond(f"The strategy {plan.strategy!r} can't clean")
        return compiled(self.catalog, groups, target, self.engine.dialect)

    def run(self, program: Program, wait: int) -> Done:
        self._check_schema(program)
        run = Run(program, self.begin, self.execute)
        try:
            return run.clean()
        except IntegrityError as error:
            self._compare(program, error)
            if program.catalog.eager or not run.stumbled():
                raise Conflict(_said(error)) from error
        except DBAPIError as error:
            if passing := self._passing(error, program):
                raise passing from error
            self._compare(program, error)
            raise self._refused(error) from error
        return self._run_again(program)

    def _run_again(self, program: Program) -> Done:
        """Whether it was another session that stood in the way, or always will be."""
        run = Run(program, self.begin, self.execute)
        try:
            return run.clean()
        except IntegrityError as error:
            if not run.stumbled():
                raise Conflict(_said(error)) from error
            self._eager = True
            raise Stale from error  # the plan is another one
        except DBAPIError as error:
            raise self._passing(error, program) or self._refused(error) from error

    def _check_schema(self, program: Program) -> None:
        self.round_trips += 1
        with self._open() as connection:
            try:
                names = table_names(inspect(connection))
            except DBAPIError as error:
                raise self._passing(error) or self._refused(error) from error
        if program.catalog.names != names:
            raise Stale

    def _compare(self, program: Program, error: Exception) -> None:
        """Raise Stale if the schema is not the one of the program any more."""
        if self.look().fingerprint != program.catalog.database.fingerprint:
            raise Stale from error

    # -- what goes wrong ------------------------------------------------------------------

    def _passing(self, error: DBAPIError, program: Program | None = None) -> Exception | None:
        """The error if it may pass when tried again. No database says by the same code that it
        was a deadlock: whatever its driver calls operational may be one.
        """
        if error.connection_invalidated:
            return Conflict(_said(error))
        if not isinstance(error, OperationalError):
            return None
        if program is not None:  # or a table is missing
            self._compare(program, error)
        return Conflict(_said(error))

    def _refused(self, error: DBAPIError) -> CleanerError:
        return CleanerError(
            f"{self.name} refused to be cleaned: {_said(error)}",
            "a trigger that raises, a privilege that is missing, or a table that is read-only",
            'exclude = ["table"], or GRANT what is missing',
        )

    def _beyond(self, what: str) -> StrategyRefusedError:
        return StrategyRefusedError(
            f"{what} {self.name}: SQLAlchemy alone has no way to do that on "
            f"{self.engine.dialect.name}.",
            "for this kind of database cleaner knows nothing but to delete rows",
            'strategy = "auto"; rows that every test needs: insert them in a fixture, or exclude '
            "their tables",
        )

    # -- what can't be done ---------------------------------------------------------------

    def capture(self, target: Target, tables: Iterable[Relation], wait: int) -> NoReturn:
        raise self._beyond("Can't capture the rows of")

    def release(self, wait: int) -> None:
        """Nothing was captured."""

    def make_template(self) -> NoReturn:
        raise self._beyond("Can't copy")

    def has_template(self) -> bool:
        return False

    def drop_template(self) -> None:
        """There is none."""

    def blockers(self, program: Any) -> tuple[Blocker, ...]:
        return ()

    def terminate(self, blockers: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
        return ()

    # -- what is told ---------------------------------------------------------------------

    def describe(self) -> frozenset[str]:
        self.look()
        return frozenset(described(self.engine, self.catalog))

    def health(self) -> Health:
        return Health(
            superuser=False,
            owner=False,
            no_fast_path="",
            idle=(),
            unseen="SQLAlchemy has no way to see other sessions: ask the server itself",
        )


def _said(error: DBAPIError) -> str:
    return " ".join(str(error.orig).split())


def _added(names: list[str], row: Iterable[Any]) -> RowDiff:
    return RowDiff("added", tuple(zip(names, map(_value, row), strict=True)))


def _value(value: Any) -> Value:
    if isinstance(value, (bytes, bytearray, memoryview)):
        digits = "0x" + bytes(value).hex()
        return Value.of(digits, len(digits), binary=True)
    text = None if value is None else str(value)
    return Value.of(text, len(text or ""))
