"""The tables of a plan, numbered from 1, and what is asked of them while it runs.

The function's variables: ``held`` says which tables are not at their baseline, ``survivors``
collects positions and counts of those that still are not; ``lim`` and ``own`` tell rows that were
written since the horizon (see ``restoring.py``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import cached_property

from cleaner.dialects.postgresql.catalog import Catalog, Facts
from cleaner.dialects.postgresql.columns import altered
from cleaner.dialects.postgresql.program import REACHES_OUTSIDE
from cleaner.dialects.postgresql.sql import qualified, quote
from cleaner.dialects.strings import literal
from cleaner.graph import reachable
from cleaner.spi import ForeignKey, Relation, Target

WRITTEN = "pg_catalog.age({}xmin) <= lim"


class Tables:
    """In the order of cleaning."""

    def __init__(self, tables: Iterable[Relation], target: Target, catalog: Catalog) -> None:
        self.all, self.target, self.catalog = tuple(tables), target, catalog
        self.position = {table.key: i for i, table in enumerate(self.all, 1)}
        self.unit_of = {leaf: table for table in self.all for leaf in self.facts(table).leaves}
        self.outside: dict[int, list[int]] = {}
        for i, key in enumerate(target.outside):
            self.outside.setdefault(key.parent, []).append(i)

    def facts(self, table: Relation) -> Facts:
        return self.catalog.facts[table.key]

    def at(self, table: Relation) -> int:
        return self.position[table.key]

    def names(self, tables: Iterable[Relation]) -> list[str]:
        return [self.facts(table).sql for table in tables]

    @cached_property
    def captured(self) -> tuple[Relation, ...]:
        """Those whose baseline is not empty."""
        return tuple(table for table in self.all if self.facts(table).captured)

    @cached_property
    def altered(self) -> str:
        """A condition: captured rows read otherwise since a type was altered; may be empty. It is
        part of the look at the first of them, where it costs least.
        """
        shown = (self.facts(table).captured for table in self.captured)
        return altered(column for captured in shown if captured for column in captured.columns)

    @cached_property
    def above_captured(self) -> frozenset[int]:
        """The keys of those with captured rows, and of all that they refer to, directly or not."""
        parents: dict[int, list[int]] = {}
        for key in self.target.database.foreign_keys:
            child, parent = self.unit_of.get(key.child), self.unit_of.get(key.parent)
            if child and parent:
                parents.setdefault(child.key, []).append(parent.key)
        return frozenset(reachable((table.key for table in self.captured), parents))

    def bystanders(self, table: Relation) -> tuple[Relation, ...]:
        """Those with captured rows to which a key's action may reach when this table is put right,
        although they are at their baseline: the key refers to other columns than those by which a
        row is known again.
        """
        captured, leaves = self.facts(table).captured, self.facts(table).leaves
        known = {column.name for column in captured.key} if captured else set[str]()
        children = (
            self.unit_of[key.child]
            for key in self.target.database.foreign_keys
            if captured
            and key.parent in leaves
            and key.child in self.unit_of
            and {*key.referred} != known
        )
        return tuple(
            child
            for child in dict.fromkeys(children)
            if child != table and self.facts(child).captured
        )

    def parents_outside(self, table: Relation) -> Iterator[ForeignKey]:
        """The keys by which this table refers to what is not to be changed."""
        for key in self.target.database.foreign_keys:
            if key.child in self.facts(table).leaves and key.parent not in self.unit_of:
                yield key

    @cached_property
    def forced_outside(self) -> tuple[int, ...]:
        """The keys of children outside whose rows row-level security hides from their owner too."""
        children = dict.fromkeys(
            key.child for key in self.target.outside if key.parent in self.position
        )
        return tuple(child for child in children if self.catalog.facts[child].force)

    # -- expressions ----------------------------------------------------------------------

    def look(self, table: Relation) -> str:
        """Whether the table may not be at its baseline."""
        facts = self.facts(table)
        if facts.hidden:  # rows that row-level security hides still take up pages
            return "true" if facts.captured else f"{facts.size} > 0"
        return self.differs(table)

    def differs(self, table: Relation) -> str:
        """The same of a table whose rows can be seen."""
        facts = self.facts(table)
        if not facts.captured:
            return f"EXISTS (SELECT FROM {facts.sql})"
        # All that were there are, and nobody has written one: an UPDATE leaves a younger version,
        # a DELETE one row less.
        more = f" OR {self.altered}" if self.altered and table == self.captured[0] else ""
        return (
            f"(SELECT count(*) <> {facts.captured.rows} OR min(pg_catalog.age(xmin)) <= lim "
            f"FROM {facts.sql}){more}"
        )

    # -- statements -----------------------------------------------------------------------

    def look_again(self, table: Relation) -> str:
        """Find rows that survived the DELETE."""
        name = self.facts(table).sql
        return (
            f"IF EXISTS (SELECT FROM {name}) THEN survivors := survivors"
            f" || ARRAY[{self.at(table)}, (SELECT count(*)::int FROM {name})]; END IF;"
        )

    def guard_outside(self, table: Relation) -> Iterator[str]:
        """Fail if rows outside the target refer to this table, which is about to be emptied."""
        for i in self.outside.get(table.key, ()):
            columns = " AND ".join(
                f"c.{quote(column)} IS NOT NULL" for column in self.target.outside[i].columns
            )
            yield self._reaches(table, i, f"SELECT FROM {self.child(i)} c WHERE {columns}")

    def guard_rows(self, table: Relation, rows: Callable[[ForeignKey], str]) -> Iterator[str]:
        """The same if only ``rows``, a condition on ``t``, lose what such a key refers to."""
        for i in self.outside.get(table.key, ()):
            key = self.target.outside[i]
            same = " AND ".join(
                f"o.{quote(child)} = t.{quote(parent)}"
                for child, parent in zip(key.columns, key.referred, strict=True)
            )
            name = self.facts(table).sql
            yield self._reaches(
                table, i, f"SELECT FROM {name} t JOIN {self.child(i)} o ON {same} WHERE {rows(key)}"
            )

    def child(self, outside: int) -> str:
        relation = self.target.database.relation(self.target.outside[outside].child)
        return qualified(relation.schema, relation.table)

    def _reaches(self, table: Relation, outside: int, select: str) -> str:
        guard = f"""IF held[{self.at(table)}] AND EXISTS (
    {select}) THEN
    RAISE EXCEPTION USING ERRCODE = '{REACHES_OUTSIDE}', MESSAGE = 'cleaner: outside {{{outside}}}';
END IF;"""
        for off, on in self.catalog.facts[self.target.outside[outside].child].force:
            guard = f"IF held[{self.at(table)}] THEN {off};\n{guard}\n{on}; END IF;"
        return guard

    def guard_children(self, table: Relation) -> Iterator[str]:
        """Fail, to try again, where a writer has filled a child since the look at it."""
        leaves = self.facts(table).leaves
        children = dict.fromkeys(
            self.unit_of[key.child]
            for key in self.target.database.foreign_keys
            if key.parent in leaves and key.child in self.unit_of
        )
        for child in children:
            if child.key == table.key:
                continue
            said = literal(f"cleaner: {child.name} was written to")
            yield f"""IF NOT held[{self.at(child)}] THEN IF {self.look(child)} THEN
    RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = {said};
END IF; END IF;"""
