"""Programs of DELETEs and UPDATEs, and one run of one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import (
    ClauseElement,
    ColumnClause,
    Connection,
    Delete,
    Dialect,
    Executable,
    TableClause,
    Update,
    case,
    column,
    delete,
    exists,
    func,
    literal_column,
    null,
    or_,
    select,
    table,
    update,
)

from cleaner.dialects.base import Done
from cleaner.dialects.excluded import reaches_outside
from cleaner.dialects.generic.reading import Catalog
from cleaner.errors import NotCleanError, StrategyRefusedError, Survivor
from cleaner.graph import deletion_order
from cleaner.spi import ForeignKey, Relation, Target

Begin = Callable[[], AbstractContextManager[Connection]]
_AT_ONCE = 500  # tables asked after in one SELECT: databases bound the length of its list
_PASSES = 3  # triggers may fill again what was emptied
_ONE: ColumnClause[int] = literal_column("1")
_ZERO: ColumnClause[int] = literal_column("0")
_WHY = "a trigger or a rule keeps them, or fills the table again"


@dataclass(frozen=True)
class Program:
    """The tables in the order of deletion, and the foreign keys that are set to NULL before."""

    catalog: Catalog
    tables: tuple[Relation, ...]
    cut: tuple[ForeignKey, ...]
    outside: tuple[ForeignKey, ...]
    dialect: Dialect

    def __str__(self) -> str:
        statements: list[ClauseElement] = list(self.looks())
        for each in self.tables:
            if self.catalog.eager and (leaves := self.leaves(each)) is not None:
                statements.append(leaves)  # until none is left
            statements += self.statements(each)
        between = ";\nCOMMIT;\n" if self.catalog.eager else ";\n"
        texts = [str(each.compile(dialect=self.dialect)) for each in statements]
        return between.join([*texts, "COMMIT;" if not self.catalog.eager else ""]).rstrip()

    def looks(self) -> Iterator[Any]:
        """What tells which of the tables hold rows, and which foreign keys from outside are used,
        as 1 and 0.
        """
        relation = self.catalog.database.relation
        asked = [select(_ONE).select_from(name_of(each)) for each in self.tables]
        asked += [
            select(_ONE)
            .select_from(name_of(relation(key.child)))
            .where(*(column(each).is_not(None) for each in key.columns))
            for key in self.outside
        ]
        for start in range(0, len(asked), _AT_ONCE):
            part = asked[start : start + _AT_ONCE]
            flags = [case((exists(each), _ONE), else_=_ZERO) for each in part]
            yield select(*(flag.label(f"t{n}") for n, flag in enumerate(flags, 1)))

    def statements(self, relation: Relation) -> Iterator[Update | Delete]:
        """What empties the table, if those before it are empty."""
        for key in self.cut:
            if key.parent == relation.key:
                yield self.nullify(key)
        yield delete(name_of(relation))

    def nullify(self, key: ForeignKey) -> Update:
        """What sets the foreign key to NULL, as far as it can be."""
        child = self.catalog.database.relation(key.child)
        columns = [c for c in key.columns if (child.table, c) in self.catalog.nullable]
        held = or_(*(column(each).is_not(None) for each in columns))
        return (
            update(name_of(child, *columns)).values({each: null() for each in columns}).where(held)
        )

    def leaves(self, relation: Relation) -> Delete | None:
        """What deletes the rows to which none of their own table refers; None if none can."""
        keys = self.catalog.database.foreign_keys
        own = [key for key in keys if key.child == key.parent == relation.key]
        columns = {name for key in own for name in (*key.columns, *key.referred)}
        rows = name_of(relation, *sorted(columns))
        others = rows.alias("others")
        leaves = delete(rows)
        for key in own:
            pairs = zip(key.columns, key.referred, strict=True)
            refers = [others.c[one] == rows.c[other] for one, other in pairs]
            referring = select(_ONE).select_from(others).where(*refers).correlate(rows)
            leaves = leaves.where(~exists(referring))
        return leaves if own else None


def compiled(
    catalog: Catalog, groups: Iterable[tuple[Relation, ...]], target: Target, dialect: Dialect
) -> Program:
    """The program that empties the groups. Raises StrategyRefusedError for a cycle of foreign keys
    that can't be NULL.
    """
    tables: list[Relation] = []
    cut: list[ForeignKey] = []
    for group in groups:
        members = {relation.key: relation for relation in group}
        inside = [
            key
            for key in catalog.database.foreign_keys
            if key.child in members
            and key.parent in members
            and not (catalog.eager and key.child == key.parent)
        ]
        soft = [
            key
            for key in inside
            if any((members[key.child].table, each) in catalog.nullable for each in key.columns)
        ]
        hard = [(key.child, key.parent) for key in inside if key not in soft]
        for cycle in deletion_order(list(members), hard):
            if len(cycle) > 1:
                names = ", ".join(members[key].name for key in cycle)
                raise StrategyRefusedError(
                    f"{names} of {catalog.database.name} can't be emptied: their foreign keys form "
                    "a cycle, and none of their columns can be NULL.",
                    "whichever of the tables goes first, rows of the others refer to it",
                    f'make one of the columns nullable, or exclude = ["{members[cycle[0]].name}", '
                    "...] with all that belong to the cycle",
                )
            tables.append(members[cycle[0]])
        place = {relation.key: number for number, relation in enumerate(tables)}
        cut += [key for key in soft if place[key.child] >= place[key.parent]]
    return Program(catalog, tuple(tables), tuple(cut), target.outside, dialect)


class Run:
    """``begin`` gives a transaction, ``execute`` a statement to it."""

    def __init__(self, program: Program, begin: Begin, execute: Callable[..., Any]) -> None:
        self.program, self._begin, self._execute = program, begin, execute
        self._at: Relation | None = None
        self._emptied: list[Relation] = []

    def clean(self) -> Done:
        """Do it; raises what SQLAlchemy does, ExcludedTableError, NotCleanError."""
        if self.program.catalog.eager:
            for turn in range(_PASSES + 1):
                with self._begin() as connection:
                    held = self._held(connection, turn)
                for each in held:
                    self._empty_alone(each)
                if not held:
                    break
        else:
            with self._begin() as connection:
                for turn in range(_PASSES + 1):
                    held = self._held(connection, turn)
                    for each in held:
                        self._empty(connection, each)
                    if not held:
                        break
        done = {relation.key for relation in self._emptied}
        names = tuple(each.name for each in self.program.tables if each.key in done)
        return Done(tables=names)

    def stumbled(self) -> bool:
        """Whether what went wrong may be the foreign key of rows that were deleted just before."""
        gone = {relation.key for relation in self._emptied}
        return self._at is not None and any(
            key.parent == self._at.key and (key.child in gone or key.child == key.parent)
            for key in self.program.catalog.database.foreign_keys
        )

    # -- looking --------------------------------------------------------------------------

    def _held(self, connection: Connection, turn: int) -> list[Relation]:
        """The tables that hold rows, if nothing outside refers to them."""
        program, database = self.program, self.program.catalog.database
        flags: list[int] = []
        for look in program.looks():
            flags += self._execute(connection, look).one()
        for key, flag in zip(program.outside, flags[len(program.tables) :], strict=True):
            if flag:
                raise reaches_outside(database, key)
        held = [each for each, flag in zip(program.tables, flags, strict=False) if flag]
        if turn == _PASSES and held:
            rows = (self._execute(connection, count(each)).scalar_one() for each in held)
            named = zip(held, rows, strict=True)
            raise NotCleanError.of(tuple(Survivor(each.name, n, _WHY) for each, n in named))
        return held

    # -- deleting -------------------------------------------------------------------------

    def _empty(self, connection: Connection, relation: Relation) -> None:
        self._at = relation
        for statement in self.program.statements(relation):
            self._execute(connection, statement)
        self._emptied.append(relation)

    def _empty_alone(self, relation: Relation) -> None:
        """By transactions of its own."""
        self._at = relation
        *nulls, everything = self.program.statements(relation)
        for statement in nulls:
            self._alone(statement)
        if (leaves := self.program.leaves(relation)) is not None:
            self._peel(relation, leaves)
        self._alone(everything)
        self._emptied.append(relation)

    def _peel(self, relation: Relation, leaves: Delete) -> None:
        left = -1
        while True:
            with self._begin() as connection:
                now = self._execute(connection, count(relation)).scalar_one()
            if now in (0, left):
                return
            left = now
            self._alone(leaves)

    def _alone(self, statement: Executable) -> None:
        with self._begin() as connection:
            self._execute(connection, statement)


def count(relation: Relation) -> Any:
    """What counts its rows."""
    return select(func.count()).select_from(name_of(relation))


def name_of(relation: Relation, *columns: str) -> TableClause:
    """The table in a statement, with those of its columns that it is about."""
    return table(relation.table, *map(column, columns))
