"""Tables emptied: by DELETE, by TRUNCATE, or under ``session_replication_role = replica``."""

from __future__ import annotations

from collections.abc import Iterator
from math import isqrt

from cleaner.dialects.postgresql import restoring, truncation
from cleaner.dialects.postgresql.program import NEEDS_TRUNCATE
from cleaner.dialects.postgresql.sequences import Sequences
from cleaner.dialects.postgresql.tables import Tables
from cleaner.dialects.strings import literal
from cleaner.spi import Empty, Relation, Truncate

_SKIPPED = 12  # groups per condition at least: a clean steps over so many at once


class Emptying:
    """The SQL that puts tables back to their baseline, most of which is to hold no rows."""

    def __init__(self, tables: Tables, sequences: Sequences) -> None:
        self.tables, self.sequences = tables, sequences
        self.facts, self.at = tables.facts, tables.at

    def empty(self, step: Empty) -> Iterator[str]:
        """Children before parents; captured rows, and what they refer to, last and together."""
        above = self.tables.above_captured
        apart = [group for group in step.groups if not any(t.key in above for t in group)]
        together = [group for group in step.groups if any(t.key in above for t in group)]
        yield from self.one_by_one(apart, step.truncate)
        if together:
            yield "IF reload THEN"
            yield from self.one_by_one(together, truncate=False)
            yield from restoring.fill(self.tables)
            yield "ELSE"
            flat = tuple(table for group in together for table in group)
            yield from restoring.put_right(self.tables, flat)
            yield "END IF;"

    def one_by_one(self, groups: list[tuple[Relation, ...]], truncate: bool) -> Iterator[str]:
        # A condition costs a microsecond: one for every few groups lets the others be skipped.
        many = max(_SKIPPED, isqrt(len(groups)))
        for start in range(0, len(groups), many):
            some = groups[start : start + many]
            places = [self.at(table) for group in some for table in group]
            yield f"IF true = ANY (held[{min(places)}:{max(places)}]) THEN"
            for group in some:
                yield from self.empty_group(group, truncate)
            yield "END IF;"

    def empty_group(self, group: tuple[Relation, ...], truncate: bool) -> Iterator[str]:
        positions = [self.at(table) for table in group]
        names = ", ".join(self.facts(table).sql for table in group)
        yield "IF " + " OR ".join(f"held[{i}]" for i in positions) + " THEN"
        # Who writes a row that refers to ours holds ROW SHARE here until it commits. Had we looked
        # before, its ON DELETE action would reach the table outside that we looked at.
        referred = any(table.key in self.tables.outside for table in group)
        yield f"LOCK TABLE {names} IN {'' if referred else 'SHARE ROW '}EXCLUSIVE MODE;"
        for table in group:
            yield from self.tables.guard_outside(table)
        if truncate:
            yield "done := false;"
            for table in group:
                yield from self.consider_truncate(table)
            yield f"IF done THEN truncated := truncated || ARRAY{positions}; ELSE"
        yield from self.delete(group)
        if truncate:
            yield "END IF;"
        yield "END IF;"

    def delete(self, group: tuple[Relation, ...]) -> Iterator[str]:
        switches = [pair for table in group for pair in self.facts(table).delete_switches]
        yield from (f"{off};" for off, _ in switches)
        hidden = [table for table in group if self.facts(table).hidden and self.facts(table).owned]
        for table in hidden:  # the pages said so; now that its rows can be seen, they may be none
            yield f"held[{self.at(table)}] := EXISTS (SELECT FROM {self.facts(table).sql});"
        if len(group) == 1:
            yield f"DELETE FROM {self.facts(group[0]).sql};"
        else:
            # Foreign keys are checked when a statement ends: by then the whole cycle is empty.
            names = ", ".join(literal(self.facts(table).sql) for table in group)
            positions = ", ".join(str(self.at(table)) for table in group)
            delete = f"""EXECUTE (SELECT 'WITH ' || string_agg(pg_catalog.format('d%s AS (DELETE FROM %s)', u.i, u.t), ', ')
                || ' SELECT' FROM unnest(ARRAY[{names}], ARRAY[{positions}]) u(t, i) WHERE held[u.i]);"""
            some = " OR ".join(f"held[{self.at(table)}]" for table in group)
            yield f"IF {some} THEN {delete} END IF;" if hidden else delete
        for table in group:
            yield self.tables.look_again(table)
        yield from (f"{on};" for _, on in reversed(switches))

    def consider_truncate(self, table: Relation) -> Iterator[str]:
        facts, i = self.facts(table), self.at(table)
        if table.undeletable:
            yield f"""IF held[{i}] AND NOT done THEN
    IF pg_temp.truncate({table.key}, NULL) THEN done := true; ELSE
    RAISE EXCEPTION USING ERRCODE = '{NEEDS_TRUNCATE}', MESSAGE = 'cleaner: truncate {{{i}}}'; END IF;
END IF;"""
        elif table.swallows:
            yield f"IF held[{i}] AND NOT done THEN done := pg_temp.truncate({table.key}, NULL); END IF;"
        elif not table.untruncatable:
            yield f"""IF held[{i}] AND NOT done THEN
    IF {facts.size} > {truncation.SMALL} THEN done := pg_temp.truncate({table.key}, {facts.size} / 8192); END IF;
END IF;"""

    def replica(self, step: Empty) -> Iterator[str]:
        """Each by itself, since no foreign key is checked."""
        yield "ignored := pg_catalog.set_config('session_replication_role', 'replica', true);"
        tables = [table for group in step.groups for table in group]
        captured = tuple(table for table in tables if self.facts(table).captured)
        for table in tables:
            if table not in captured:
                yield from self.delete_in_replica(table)
        if captured:
            yield "IF reload THEN"
            for table in captured:
                yield from self.delete_in_replica(table)
            yield from restoring.fill(self.tables, replica=True)
            yield "ELSE"
            yield from restoring.put_right(self.tables, captured, replica=True)
            yield "END IF;"
        yield "ignored := pg_catalog.set_config('session_replication_role', 'origin', true);"

    def delete_in_replica(self, table: Relation) -> Iterator[str]:
        facts = self.facts(table)
        yield f"IF held[{self.at(table)}] THEN"
        yield f"LOCK TABLE {facts.sql} IN SHARE ROW EXCLUSIVE MODE;"
        yield from (f"{off};" for off, _ in facts.replica_switches)
        yield f"DELETE FROM {facts.sql};"
        yield self.tables.look_again(table)
        # No foreign key is checked, so we do. The DELETE has waited for whoever refers to its
        # rows, and from now on nobody can.
        yield from self.tables.guard_outside(table)
        yield from self.tables.guard_children(table)
        yield from (f"{on};" for _, on in reversed(facts.replica_switches))
        yield "END IF;"

    def truncate(self, step: Truncate) -> Iterator[str]:
        """All in one statement, and the captured rows put in again."""
        if not step.tables:
            return
        switches = [pair for table in step.tables for pair in self.facts(table).truncate_switches]
        yield from (f"{off};" for off, _ in switches)
        if self.sequences.plain:
            yield f"restarted := {self.sequences.moved()};"
        # Nobody can add a foreign key while the locks are held, so since the fingerprint was
        # compared CASCADE can reach nothing that is not in the list.
        names = ", ".join(self.tables.names(step.tables))
        # It wants the sequences' owner; else those that this role may reset are, one by one.
        restart = step.restart_identity and all(self.facts(t).owned for t in step.tables)
        identity = "RESTART" if restart and not self.tables.catalog.baseline else "CONTINUE"
        yield f"TRUNCATE {names} {identity} IDENTITY CASCADE;"
        positions = ", ".join(str(self.at(table)) for table in step.tables)
        yield f"truncated := truncated || ARRAY[{positions}];"
        yield from (f"{on};" for _, on in reversed(switches))
        yield from restoring.fill(self.tables)
