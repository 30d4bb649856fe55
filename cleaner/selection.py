"""The target of a clean: what the metadata and the settings select of what the database holds."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches
from fnmatch import fnmatchcase

from cleaner.errors import SettingsError
from cleaner.graph import deletion_order, reachable
from cleaner.metadata import TableName
from cleaner.settings import Settings
from cleaner.spi import Database, ForeignKey, Relation, Sequence, Target

# Tables in which migration tools keep their books. Alembic's is also known by its shape, since
# its name can be chosen (`Relation.bookkeeping`).
BOOKKEEPING = (
    "alembic_version*",
    "*_alembic_version",
    "schema_migrations",
    "schema_version",
    "flyway_schema_history",
    "databasechangelog",
    "databasechangeloglock",
    "django_migrations",
    "goose_db_version",
    "_yoyo_*",
    "yoyo_lock",
    "aerich",
    "_prisma_migrations",
    "_sqlx_migrations",
    "atlas_schema_revisions",
)


def select(database: Database, models: frozenset[TableName] | None, settings: Settings) -> Target:
    """Choose tables, sequences and the order; see :class:`cleaner.spi.Target`.

    ``models`` are the tables of the metadata, None where all that the database holds is meant.
    Raises SettingsError where ``only`` names a table that is not there.
    """
    chosen = _Selection(database, models, settings)
    return chosen.target()


def named_tables(target: Target, patterns: Iterable[str]) -> tuple[Relation, ...]:
    """Those tables of the target that the names or patterns mean, in its order.

    Raises SettingsError for one that means none.
    """
    chosen: set[int] = set()
    for pattern in patterns:
        meant = {t.key for t in target.tables if _matches([pattern], t.schema, t.table)}
        if not meant:
            near = get_close_matches(pattern, [table.name for table in target.tables], 1)
            raise SettingsError(
                f"{pattern!r} matches no table of the target in {target.database.name}"
                + (f"; did you mean {near[0]!r}?" if near else "."),
                "a misspelt name, or the table is excluded",
                f'tables=["{near[0] if near else "table"}"]',
            )
        chosen |= meant
    return tuple(table for table in target.tables if table.key in chosen)


def _spellings(schema: str, name: str) -> tuple[str, str]:
    return name, f"{schema}.{name}"


def _matches(patterns: Iterable[str], schema: str, name: str) -> bool:
    return any(
        pattern == spelling or fnmatchcase(spelling, pattern)
        for pattern in patterns
        for spelling in _spellings(schema, name)
    )


class _Selection:
    def __init__(
        self, database: Database, models: frozenset[TableName] | None, settings: Settings
    ) -> None:
        self.database, self.models, self.settings = database, models, settings
        self.warnings: list[str] = [*database.warnings]
        self.tables = {
            relation.key: relation
            for relation in database.relations
            if relation.kind in ("table", "partitioned table")
        }

    def target(self) -> Target:
        self.check_patterns()
        chosen = self.chosen()
        units = self.units(chosen)
        ordered = sorted(units, key=lambda key: (self.tables[key].schema, self.tables[key].table))
        unit_of = {leaf: unit for unit in units for leaf in self.below(unit)}
        keys = self.database.foreign_keys
        references = [
            (child, parent)
            for key in keys
            for child in self.ends(key.child, unit_of)
            for parent in self.ends(key.parent, unit_of)
        ]
        outside = tuple(
            key
            for key in self.onto_units(unit_of)
            if not self.ends(key.child, unit_of) or self.partly_outside(key.child, unit_of)
        )
        self.warn_about_children(chosen)
        return Target(
            database=self.database,
            groups=tuple(
                tuple(self.settle(self.tables[key], outside) for key in group)
                for group in deletion_order(ordered, references)
            ),
            sequences=tuple(self.sequences(unit_of)) if self.settings.reset_sequences else (),
            outside=outside,
            stale_views=tuple(self.stale_views(unit_of)),
            warnings=tuple(self.warnings),
        )

    # -- tables ---------------------------------------------------------------------------

    def chosen(self) -> set[int]:
        """The tables that the metadata or the database itself offers, less what is excluded."""
        offered = self.offered_by_models() if self.models is not None else set(self.tables)
        return {key for key in offered if self.wanted(self.tables[key])}

    def wanted(self, table: Relation) -> bool:
        spelt = table.schema, table.table
        settings = self.settings
        if not self.in_schemas(table.schema):
            return False
        if table.foreign_owned or _matches(settings.exclude, *spelt):
            return False
        if settings.only:
            return _matches(settings.only, *spelt) or any(
                self.wanted(self.tables[parent])
                for parent in table.parents
                if table.is_partition and parent in self.tables
            )
        return not (table.bookkeeping or _matches(BOOKKEEPING, *spelt))

    def in_schemas(self, schema: str) -> bool:
        patterns = self.settings.schemas
        return not patterns or any(fnmatchcase(schema, pattern) for pattern in patterns)

    def offered_by_models(self) -> set[int]:
        assert self.models is not None
        spelt = str.casefold if self.database.ignores_case else str
        by_name = {(spelt(r.schema), spelt(r.table)): r for r in self.database.relations}
        offered: set[int] = set()
        missing: list[str] = []
        for schema, name in sorted(self.models, key=lambda t: (t[0] or "", t[1])):
            places = [schema] if schema else list(self.database.search_path)
            known = ((spelt(place), spelt(name)) for place in places)
            found = next((by_name[each] for each in known if each in by_name), None)
            if found is None:
                missing.append(f"{schema}.{name}" if schema else name)
            elif found.key in self.tables:
                offered.add(found.key)
            elif found.kind == "foreign table":
                self.warnings.append(
                    f"{found.name} is a foreign table: its rows live elsewhere and are left alone"
                )
        if not self.models:
            self.warnings.append(
                "the metadata holds no tables: import the modules that define your models"
            )
        elif missing:
            self.warnings.append(f"in the metadata but not in the database: {_listed(missing)}")
        covered = {leaf for key in offered for leaf in self.below(key)}
        unknown = [
            table.name
            for key, table in self.tables.items()
            if key not in covered and self.wanted(table)
        ]
        if unknown and self.models:
            self.warnings.append(
                f"in the database but not in the metadata, left alone: {_listed(unknown)}"
            )
        return offered

    def units(self, chosen: set[int]) -> set[int]:
        """What is cleaned as a whole: a partition tree through its root if all of it is chosen
        or comes with the root, else partition by partition.
        """
        units: set[int] = set()
        for key in chosen:
            parent = self.tables[key].parents
            if self.tables[key].is_partition and parent and parent[0] in chosen:
                continue
            units |= self.split(key)
        return units

    def split(self, key: int) -> set[int]:
        leaves = self.below(key)  # a partition may be a foreign table
        if all(leaf in self.tables and self.wanted(self.tables[leaf]) for leaf in leaves):
            return {key}
        parts: set[int] = set()
        for child in self.partitions.get(key, ()):
            if child in self.tables and self.wanted(self.tables[child]):
                parts |= self.split(child)
        return parts

    @property
    def partitions(self) -> dict[int, list[int]]:
        found: dict[int, list[int]] | None = self.__dict__.get("_partitions")
        if found is None:
            found = self.__dict__["_partitions"] = {}
            for relation in self.database.relations:
                if relation.is_partition:
                    for parent in relation.parents:
                        found.setdefault(parent, []).append(relation.key)
        return found

    def below(self, key: int) -> set[int]:
        return reachable([key], self.partitions) if key in self.partitions else {key}

    def warn_about_children(self, chosen: set[int]) -> None:
        for key, table in self.tables.items():
            if key in chosen or table.is_partition:
                continue
            for parent in table.parents:
                if parent in chosen:
                    self.warnings.append(
                        f"{table.name} inherits from {self.tables[parent].name} and is outside the "
                        "target: its rows stay, and show in queries on the parent"
                    )

    # -- foreign keys ---------------------------------------------------------------------

    def ends(self, key: int, unit_of: dict[int, int]) -> set[int]:
        """The units that a foreign key on this table is a matter of."""
        return {unit_of[leaf] for leaf in self.below(key) if leaf in unit_of}

    def partly_outside(self, key: int, unit_of: dict[int, int]) -> bool:
        return any(
            leaf not in unit_of and self.tables[leaf].kind == "table"
            for leaf in self.below(key)
            if leaf in self.tables
        )

    def onto_units(self, unit_of: dict[int, int]) -> Iterator[ForeignKey]:
        for key in self.database.foreign_keys:
            for parent in sorted(self.ends(key.parent, unit_of)):
                yield replace(key, parent=parent)

    def settle(self, table: Relation, outside: tuple[ForeignKey, ...]) -> Relation:
        """The table, untruncatable if something outside refers to it."""
        for key in outside:
            if key.parent == table.key and not table.untruncatable:
                child = self.database.relation(key.child)
                return replace(
                    table,
                    untruncatable=f"{child.name}, which is outside the target, refers to it",
                )
        return table

    # -- sequences and views --------------------------------------------------------------

    def sequences(self, unit_of: dict[int, int]) -> Iterator[Sequence]:
        schemas = {self.tables[leaf].schema for leaf in unit_of}
        if self.models is None:
            schemas = {s.schema for s in self.database.sequences if self.in_schemas(s.schema)}
        for sequence in self.database.sequences:
            spelt = sequence.schema, sequence.sequence
            if _matches(self.settings.exclude, *spelt):
                continue
            tables = {*sequence.users, *([sequence.owner] if sequence.owner else [])}
            inside = {table for table in tables if table in unit_of}
            if tables and not inside:
                continue
            if not tables:
                if self.settings.only and not _matches(self.settings.only, *spelt):
                    continue
                if sequence.schema not in schemas:
                    continue
            elif outside := [self.database.relation(t).name for t in sorted(tables - inside)]:
                self.warnings.append(
                    f"sequence {sequence.name} goes on, since {_listed(outside)} outside the "
                    "target draws from it too"
                )
                continue
            if sequence.refusal:
                self.warnings.append(f"sequence {sequence.name} goes on: {sequence.refusal}")
                continue
            yield sequence

    def stale_views(self, unit_of: dict[int, int]) -> Iterator[Relation]:
        """Materialized views over the target, those that others read first."""
        reads = {relation.key: relation.reads for relation in self.database.relations}
        views = [
            relation
            for relation in self.database.relations
            if relation.kind == "materialized view"
            and not relation.foreign_owned
            and not _matches(self.settings.exclude, relation.schema, relation.table)
            and any(key in unit_of for key in reachable([relation.key], reads))
        ]
        order = deletion_order(
            [view.key for view in views],
            [(other.key, view.key) for view in views for other in views
             if other.key in reachable(view.reads, reads)],
        )  # fmt: skip
        for (key,) in order:
            view = self.database.relation(key)
            if view.undeletable:
                self.warnings.append(
                    f"materialized view {view.name} keeps what it shows: {view.undeletable}"
                )
            else:
                yield view

    # -- the settings' names --------------------------------------------------------------

    def check_patterns(self) -> None:
        relations = [(r.schema, r.table) for r in self.database.relations]
        named = relations + [(s.schema, s.sequence) for s in self.database.sequences]
        known = sorted({spelling for pair in named for spelling in _spellings(*pair)})
        for setting in ("only", "exclude"):
            for pattern in getattr(self.settings, setting):
                if any(_matches([pattern], *pair) for pair in named):
                    continue
                near = get_close_matches(pattern, known, 1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                if setting == "only" and self.database.relations:
                    raise SettingsError(
                        f"only names {pattern!r}, which nothing in {self.database.name} "
                        f"matches{hint}",
                        "a misspelt name, or the schema is not created yet",
                        f'only = ["{near[0] if near else "table"}"]',
                    )
                self.warnings.append(f"{setting} names {pattern!r}, which matches nothing{hint}")


def _listed(names: list[str]) -> str:
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
