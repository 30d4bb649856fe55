"""Making what the database holds its baseline, and forgetting it again."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cleaner.dialects.postgresql.baseline import Captured, differ, shapes
from cleaner.dialects.postgresql.catalog import Catalog
from cleaner.dialects.postgresql.columns import Column, columns_of
from cleaner.dialects.postgresql.discovery import BASELINE
from cleaner.dialects.postgresql.program import ADVISORY_LOCK
from cleaner.dialects.postgresql.sql import qualified, quote
from cleaner.dialects.strings import literal
from cleaner.errors import SchemaChangedError, StrategyRefusedError
from cleaner.retry import Conflict
from cleaner.spi import Relation, Target

Execute = Callable[..., list[tuple[Any, ...]]]
_AT_ONCE = 200  # tables or sequences asked of in one statement


def capture(
    execute: Execute, catalog: Catalog, target: Target, tables: Iterable[Relation], wait: int
) -> None:
    """Make the rows of ``tables`` and the positions of their sequences the baseline; all of the
    target's sequences where all of its tables are meant. All or nothing.

    ``execute`` is that of :class:`cleaner.dialects.held.HeldConnection`, whose errors it lets
    through; ``wait`` bounds each wait for a lock, in milliseconds. Raises StrategyRefusedError
    where rows could not be put back, or kept.
    """
    with _transaction(execute, wait):
        filled = _Capture(execute, catalog, target, tuple(tables)).run()
    for table in filled:
        # Rows on pages that are known to be visible to all are faster to look at.
        execute(f"VACUUM (SKIP_LOCKED) {qualified(table.schema, table.table)}")


def release(execute: Execute, wait: int) -> None:
    """Remove every captured row. Harmless where there is none."""
    with _transaction(execute, wait):
        execute(f"DROP SCHEMA IF EXISTS {BASELINE} CASCADE", True)


@contextmanager
def _transaction(execute: Execute, wait: int) -> Iterator[None]:
    execute("BEGIN")
    try:
        execute(f"SET LOCAL lock_timeout = {wait}", True)
        # What is kept as text is to be read again by a session with whatever settings.
        execute("SET LOCAL datestyle = 'ISO'", True)
        execute("SET LOCAL intervalstyle = 'iso_8601'", True)
        execute("SET LOCAL extra_float_digits = 1", True)
        execute(f"SELECT pg_catalog.pg_advisory_xact_lock({ADVISORY_LOCK})", True)
        yield
        execute("COMMIT", True)
    except BaseException:
        execute("ROLLBACK", True)
        raise


class _Capture:
    def __init__(
        self,
        execute: Execute,
        catalog: Catalog,
        target: Target,
        tables: tuple[Relation, ...],
    ) -> None:
        self._execute = execute
        self.catalog, self.target, self.tables = catalog, target, tables
        self.sequences = target.sequences_of(tables)

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        return self._execute(sql, True)

    def run(self) -> list[Relation]:
        """Capture; returns the tables that hold rows."""
        known = self.catalog.baseline.oid if self.catalog.baseline else None
        if (
            self.execute(f"SELECT pg_catalog.to_regclass('{BASELINE}.baseline')::int8")[0][0]
            != known
        ):
            raise Conflict("another capture() or release() has just ended")
        if self.tables:
            # Parents first, as most writers come by them.
            names = ", ".join(self.catalog.facts[t.key].sql for t in reversed(self.tables))
            self.execute(f"LOCK TABLE {names} IN SHARE MODE")
        self._row_security("NO FORCE")
        filled = [table for table in self.tables if self._holds_rows(table)]
        self._refuse(filled)
        positions = self._positions()
        if not (filled or positions or self.catalog.baseline):
            self._row_security("FORCE")
            return []  # that is the baseline of a database where nothing was captured
        self._refuse_without_room()
        kept_tables, kept_sequences, horizon = self._make_room()
        shape = shapes(self.execute(columns_of(table.key for table in filled))[0][0])
        entries = [self._copy(table, shape[table.key]) for table in filled]
        self._refuse_orphans(filled, shape)
        self._row_security("FORCE")
        self.execute(
            f"INSERT INTO {BASELINE}.baseline VALUES "
            f"({literal(json.dumps(kept_tables + entries))}, "
            f"{literal(json.dumps(kept_sequences + positions))}, {horizon}, "
            "pg_catalog.pg_current_xact_id()::xid)"
        )
        return filled

    def _row_security(self, mode: str) -> None:
        for table in self.tables:
            facts = self.catalog.facts[table.key]
            if facts.hidden and facts.owned:
                self.execute(f"ALTER TABLE {self._name(table)} {mode} ROW LEVEL SECURITY")

    def _name(self, relation: Relation) -> str:
        return qualified(relation.schema, relation.table)

    def _holds_rows(self, table: Relation) -> bool:
        facts = self.catalog.facts[table.key]
        if facts.hidden and not facts.owned:
            return bool(self.execute(f"SELECT {facts.size} > 0")[0][0])
        return bool(self.execute(f"SELECT EXISTS (SELECT FROM {facts.sql})")[0][0])

    def _refuse(self, filled: Iterable[Relation]) -> None:
        for table in filled:
            reason = table.undeletable or self.catalog.facts[table.key].unrestorable
            if reason:
                raise StrategyRefusedError(
                    f"The rows of {table.name} can't become its baseline, since they could not be "
                    f"put back: {reason}.",
                    "the role that cleans is not the table's owner",
                    f'exclude = ["{table.name}"], or capture as its owner, or the GRANT above',
                )

    def _refuse_without_room(self) -> None:
        database, user = self.catalog.database.name, self.catalog.database.user
        may = "pg_catalog.has_database_privilege(pg_catalog.current_database(), 'CREATE')"
        if self.catalog.baseline is None and not self.execute(f"SELECT {may}")[0][0]:
            raise StrategyRefusedError(
                f"The rows can't be kept in {database}: role {user} may not create a schema there.",
                "captured rows are kept in a schema of their own",
                f"GRANT CREATE ON DATABASE {quote(database)} TO {quote(user)}",
            )

    def _refuse_orphans(self, filled: list[Relation], shape: dict[int, Captured]) -> None:
        """Make sure that captured rows refer to captured rows where only some are captured."""
        target, kept = self.target, dict[int, Captured]()
        if len(self.tables) == len(target.tables):
            return
        replaced = {table.key for table in self.tables}
        for table in target.tables:
            before = self.catalog.facts[table.key].captured
            if before and table.key not in replaced:
                kept[table.key] = before
        for table in filled:
            copy = qualified(BASELINE, f"t{table.key}")
            kept[table.key] = replace(shape[table.key], copy=copy)
        unit_of = {
            leaf: table for table in target.tables for leaf in self.catalog.facts[table.key].leaves
        }
        for key in target.database.foreign_keys:
            child, parent = unit_of.get(key.child), unit_of.get(key.parent)
            if not (child and parent and child.key in kept):
                continue
            ours = kept[child.key].kept(key.columns)
            lost = " AND ".join(f"o.k{i} IS NOT NULL" for i in range(len(key.columns)))
            if parent.key in kept:
                theirs = kept[parent.key].kept(key.referred)
                same = " AND ".join(f"p.k{i} = o.k{i}" for i in range(len(key.columns)))
                lost += f" AND NOT EXISTS (SELECT FROM ({theirs}) p WHERE {same})"
            if self.execute(f"SELECT EXISTS (SELECT FROM ({ours}) o WHERE {lost})")[0][0]:
                raise StrategyRefusedError(
                    f"The rows of {child.name} and {parent.name} can't be a baseline: captured "
                    f"rows of {child.name} refer to rows of {parent.name} that are not captured "
                    f"(foreign key {key.name}).",
                    "only some tables were to be captured",
                    f'cleaner.capture(tables=["{child.name}", "{parent.name}"]), or capture()',
                )

    def _make_room(self) -> tuple[list[Any], list[Any], str]:
        """A new ``baseline``; returns what of an older one still holds, and the horizon."""
        tables: list[Any] = []
        sequences: list[Any] = []
        horizon = "pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())"
        listed = f"SELECT b.tables::text, b.sequences::text FROM {BASELINE}.baseline b"
        stored = self.execute(listed) if self.catalog.baseline else []
        if self.catalog.baseline and not stored:
            # Only in what is captured as a whole is nothing missed of what nobody knows any more.
            if len(self.tables) < len(self.target.tables):
                database = self.catalog.database
                raise SchemaChangedError.lost(database.name, database.lost)
            self.execute(f"DROP SCHEMA {BASELINE} CASCADE")
        elif self.catalog.baseline:
            replaced = {(table.schema, table.table) for table in self.tables}
            for entry in json.loads(stored[0][0]):
                if (entry["schema"], entry["table"]) in replaced:
                    self.execute(f"DROP TABLE IF EXISTS {qualified(BASELINE, entry['copy'])}")
                else:
                    tables.append(entry)
            positions = {(s.schema, s.sequence) for s in self.sequences}
            sequences = [
                entry
                for entry in json.loads(stored[0][1])
                if (entry["schema"], entry["sequence"]) not in positions
            ]
            if tables:  # nobody has looked whether they are at their baseline now
                horizon = literal(self.catalog.baseline.horizon or "")
                horizon = f"nullif({horizon}, '')::xid8"
        for statement in (
            f"CREATE SCHEMA IF NOT EXISTS {BASELINE}",
            f"COMMENT ON SCHEMA {BASELINE} IS "
            "'The rows that cleaner puts back. cleaner.release() removes them.'",
            f"GRANT USAGE ON SCHEMA {BASELINE} TO PUBLIC",
            f"DROP TABLE IF EXISTS {BASELINE}.baseline",
            f"CREATE TABLE {BASELINE}.baseline"
            " (tables json, sequences json, horizon xid8, author xid)",
            f"GRANT SELECT ON {BASELINE}.baseline TO PUBLIC",
        ):
            self.execute(statement)
        return tables, sequences, horizon

    def _copy(self, table: Relation, shape: Captured) -> dict[str, Any]:
        """Keep the rows; returns the entry for the list of tables."""
        name, copy = self.catalog.facts[table.key].sql, f"t{table.key}"
        self._check_types(table, [c for c in shape.columns if not c.builtin])
        rows = f"SELECT {', '.join(c.to_copy for c in shape.columns)} FROM {name} t"
        names = ", ".join(quote(column.name) for column in shape.columns)
        listed = f" ({names})" if names else ""
        copied = qualified(BASELINE, copy)
        self.execute(f"CREATE TABLE {copied}{listed} AS {rows}")
        if shape.key and all(column.builtin for column in shape.key):
            key = ", ".join(quote(column.name) for column in shape.key)
            self.execute(f"ALTER TABLE {copied} ADD PRIMARY KEY ({key})")
        self.execute(f"GRANT SELECT ON {copied} TO PUBLIC")
        self.execute(f"ANALYZE {copied}")
        return {
            "schema": table.schema,
            "table": table.table,
            "rows": self.execute(f"SELECT count(*) FROM {copied}")[0][0],
            "copy": copy,
            "columns": {column.name: column.entry for column in shape.columns},
            "oids": shape.oids,
        }

    def _check_types(self, table: Relation, columns: list[Column]) -> None:
        """Make sure that types which are kept as text come back as they were."""
        for column in columns:
            other = differ([f"t.{quote(column.name)}"], [column.there_and_back])
            name = self.catalog.facts[table.key].sql
            if self.execute(f"SELECT EXISTS (SELECT FROM {name} t WHERE {other})")[0][0]:
                raise StrategyRefusedError(
                    f"{table.name}.{column.name} can't be captured: a cast of {column.type} to "
                    "text and back changes its values.",
                    f"the type {column.type} has casts of its own that lose something",
                    f'exclude = ["{table.name}"]',
                )

    def _positions(self) -> list[dict[str, Any]]:
        """The sequences that are not at their START."""
        found: list[dict[str, Any]] = []
        for start in range(0, len(self.sequences), _AT_ONCE):
            part = self.sequences[start : start + _AT_ONCE]
            looks = " UNION ALL ".join(
                f"SELECT {i}, s.last_value, s.is_called FROM {qualified(s.schema, s.sequence)} s"
                for i, s in enumerate(part)
            )
            found += [
                {
                    "schema": part[i].schema,
                    "sequence": part[i].sequence,
                    "last": last,
                    "called": called,
                }
                for i, last, called in self.execute(looks)
                if (last, called) != (self.catalog.sequence_starts[part[i].key], False)
            ]
        return found
