"""Making what the database holds its baseline, and forgetting it again."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from cleaner.dialects.sqlite import baseline
from cleaner.dialects.sqlite.baseline import Baseline, Captured
from cleaner.dialects.sqlite.catalog import Found
from cleaner.dialects.sqlite.cleaning import positions
from cleaner.dialects.sqlite.facts import Ask, Facts
from cleaner.dialects.sqlite.sql import BASELINE, qualified
from cleaner.errors import StrategyRefusedError
from cleaner.spi import Relation, Target

_Kept = Mapping[str, Any]


def capture(
    ask: Ask, found: Found, known: Baseline | None, target: Target, tables: Iterable[Relation]
) -> None:
    """Make the rows of ``tables`` and the positions of their sequences the baseline, in the
    transaction that was begun. Raises StrategyRefusedError where rows could not be put back.
    """
    _Capture(ask, found, known, target, tuple(tables)).run()


def release(ask: Ask, known: Baseline | None) -> None:
    """Remove every captured row, in the transaction that was begun."""
    if known:
        for entry in known.entries["tables"]:
            ask(f"DROP TABLE IF EXISTS {qualified(entry['schema'], entry['copy'])}")
        baseline.write(ask, None)


class _Capture:
    def __init__(
        self,
        ask: Ask,
        found: Found,
        known: Baseline | None,
        target: Target,
        tables: tuple[Relation, ...],
    ) -> None:
        self.ask, self.found, self.known = ask, found, known
        self.target, self.tables = target, tables
        self.before: _Kept = known.entries if known else baseline.EMPTY
        self.chosen = {(table.schema, table.table) for table in tables}

    def run(self) -> None:
        filled = [table for table in self.tables if self._holds_rows(table)]
        for table in filled:
            self._refuse(table)
        self._refuse_indexes({table.key for table in filled})
        kept = [e for e in self.before["tables"] if (e["schema"], e["table"]) not in self.chosen]
        for entry in self.before["tables"]:
            if entry not in kept:
                self.ask(f"DROP TABLE {qualified(entry['schema'], entry['copy'])}")
        taken = {entry["copy"] for entry in kept}
        numbers = (f"{BASELINE}_{n}" for n in range(1, len(kept) + len(filled) + 1))
        free = iter([name for name in numbers if name not in taken])
        copied = [self._copy(table, next(free)) for table in filled]
        entries = {
            "tables": kept + copied,
            "positions": self._others() + self._positions(),
        }
        if len(self.tables) < len(self.target.tables):
            self._refuse_orphans(entries["tables"])
        if self.known or any(entries.values()):
            baseline.write(self.ask, entries if any(entries.values()) else None)

    def _others(self) -> list[Any]:
        """The positions of tables that are not captured anew."""
        return [
            entry for entry in self.before["positions"] if (entry[0], entry[1]) not in self.chosen
        ]

    def _facts(self, table: Relation) -> Facts:
        return self.found.facts[table.key]

    def _holds_rows(self, table: Relation) -> bool:
        return bool(self.ask(f"SELECT {self._facts(table).look}")[0][0])

    def _refuse(self, table: Relation) -> None:
        facts = self._facts(table)
        reason = table.undeletable or facts.uncapturable
        if not (reason or facts.key):
            reason = "its columns rowid, _rowid_ and oid hide what tells its rows apart"
        if reason:
            raise StrategyRefusedError(
                f"The rows of {table.name} can't become its baseline, since they could not be put "
                f"back: {reason}.",
                "it is a virtual table, or one of an unusual shape",
                f'exclude = ["{table.name}"]',
            )

    def _refuse_indexes(self, filled: set[int]) -> None:
        """Make sure that what is made anew from captured rows is what there is now."""
        for view in self.target.stale_views:
            index = self.found.indexes[view.key]
            if filled & {*view.reads} and not index.is_in_step(self.ask):
                raise StrategyRefusedError(
                    f"What {view.name} holds can't become its baseline, since it could not be put "
                    f"back: it is not in step with {index.content}, which it is an index of.",
                    "it was not filled, or not by triggers for every kind of change",
                    f"INSERT INTO {view.name} ({view.table}) VALUES ('rebuild'); "
                    f'or exclude = ["{view.name}"]',
                )

    def _copy(self, table: Relation, name: str) -> dict[str, Any]:
        facts, copy = self._facts(table), qualified(table.schema, name)
        self.ask(f"DROP TABLE IF EXISTS {copy}")
        self.ask(baseline.create_copy(facts, copy))
        self.ask(baseline.fill_copy(facts, copy))
        rows = self.ask(f"SELECT count(*) FROM {copy}")[0][0]
        return baseline.entry(table.schema, table.table, facts, name, rows)

    def _positions(self) -> list[Any]:
        """The sequences of the tables that are not at their start."""
        owned = [s for s in self.target.sequences if (s.schema, s.sequence) in self.chosen]
        now = positions(self.ask, (self.found.starts[sequence.key] for sequence in owned))
        return [
            [sequence.schema, sequence.sequence, position]
            for sequence in owned
            if (position := now.get((self.found.starts[sequence.key], sequence.sequence), 0))
        ]

    def _refuse_orphans(self, entries: list[dict[str, Any]]) -> None:
        """Make sure that captured rows refer to captured rows where only some are captured."""
        kept = {
            table.key: Captured(
                self._facts(table),
                e["rows"],
                qualified(e["schema"], e["copy"]),
                tuple(e["columns"]),
            )
            for table in self.target.tables
            for e in entries
            if (e["schema"], e["table"]) == (table.schema, table.table)
        }
        inside = {table.key for table in self.target.tables}
        for key in self.target.database.foreign_keys:
            if key.child not in kept or key.parent not in inside:
                continue
            ours = kept[key.child]
            lost = " AND ".join(f"{ours.value(name)} IS NOT NULL" for name in key.columns)
            if parent := kept.get(key.parent):
                theirs = ", ".join(f"{parent.value(n)} AS p{i}" for i, n in enumerate(key.referred))
                same = " AND ".join(
                    f"p.p{i} = {ours.value(name)}" for i, name in enumerate(key.columns)
                )
                rows = f"SELECT {theirs} FROM {parent.copy} AS c"
                lost += f" AND NOT EXISTS (SELECT 1 FROM ({rows}) AS p WHERE {same})"
            if self.ask(f"SELECT EXISTS (SELECT 1 FROM {ours.copy} AS c WHERE {lost})")[0][0]:
                relation = self.target.database.relation
                child, above = relation(key.child).name, relation(key.parent).name
                raise StrategyRefusedError(
                    f"The rows of {child} and {above} can't be a baseline: captured rows of "
                    f"{child} refer to rows of {above} that are not captured (foreign key "
                    f"{key.name}).",
                    "only some tables were to be captured",
                    f'cleaner.capture(tables=["{child}", "{above}"]), or capture()',
                )
