"""A plan as one plpgsql function, so that a clean is one message to the server.

The function lives in ``pg_temp`` (it needs no privilege but TEMPORARY, and goes with the
session), runs in a transaction of its own, and does in this order:

1. bound every wait and take the database's advisory lock;
2. wait for writers that have not committed yet, so that their rows are seen;
3. find the tables that hold rows, with one expression that is planned once per connection;
4. check that the plan still fits the schema, and leave otherwise;
5. empty those tables, each under a lock that keeps new writers out, and look that they are empty;
6. refresh materialized views, then put sequences back (last, since ``setval`` can't be undone).

Step 4 costs nothing in the ordinary case. Every expression of step 3 carries a *stamp*: a
function declared IMMUTABLE, so that the planner computes it when it plans the expression. When
something is altered on a table, the server discards the cached plan, and the stamp changes with
the next one. New relations show in ``max(pg_class.oid)``. Only when one of the two has changed is
the fingerprint of the catalogs computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from math import isqrt

from cleaner.dialects.postgresql import truncation
from cleaner.dialects.postgresql.catalog import Catalog, Facts
from cleaner.dialects.postgresql.discovery import FINGERPRINT
from cleaner.dialects.postgresql.locks import lock, wait_for_writers
from cleaner.dialects.postgresql.program import (
    ADVISORY_LOCK,
    NEEDS_TRUNCATE,
    REACHES_OUTSIDE,
    SURVIVED,
    Program,
)
from cleaner.dialects.postgresql.sequences import Sequences
from cleaner.dialects.postgresql.sql import dollars, function, literal, oid_array, qualified, quote
from cleaner.graph import reachable
from cleaner.spi import Empty, Plan, Relation, Restart, Sequence, Target, Truncate

_CHUNK = 128  # tables per expression: one that is altered costs the planning of so many
_SKIPPED = 12  # groups per condition at least: a clean steps over so many at once
# A relation's size is found without keeping its file open, the look for a row is not: beyond
# this share of max_files_per_process the server would open and close a file for each look.
_OPEN_FILES = 0.5
# What changes without a plan being discarded: new relations, and sequences that are altered.
_NEWEST = (
    "(SELECT max(oid)::int8 << 31 FROM pg_catalog.pg_class) # (SELECT coalesce(sum("
    "pg_catalog.hashint8(seqstart) # pg_catalog.hashint8(seqcache)), 0) FROM pg_catalog.pg_sequence)"
)


def compile_plan(plan: Plan, target: Target, catalog: Catalog) -> Program:
    """Write the function for ``plan``."""
    return _Writer(plan, target, catalog).program()


class _Writer:
    def __init__(self, plan: Plan, target: Target, catalog: Catalog) -> None:
        self.plan, self.target, self.catalog = plan, target, catalog
        self.tables: list[Relation] = []
        sequences: list[Sequence] = []
        for step in plan.steps:
            if isinstance(step, Empty):
                self.tables += [table for group in step.groups for table in group]
            elif isinstance(step, Truncate):
                self.tables += step.tables
            else:
                sequences += step.sequences
        self.sequences = Sequences(sequences, catalog)
        self.position = {table.key: i for i, table in enumerate(self.tables, 1)}
        self.unit_of = {leaf: table for table in self.tables for leaf in self.facts(table).leaves}
        self.chunks = 0
        oids = [leaf for table in self.tables for leaf in self.facts(table).leaves]
        self.locks = tuple(dict.fromkeys(oids))
        self.gated = len(oids) > catalog.open_files * _OPEN_FILES
        self.outside: dict[int, list[int]] = {}
        for i, key in enumerate(target.outside):
            self.outside.setdefault(key.parent, []).append(i)
        self.truncates = any(isinstance(step, Truncate) for step in plan.steps)
        self.alters = bool(target.stale_views) or any(
            facts.delete_switches or facts.truncate_switches or facts.replica_switches
            for facts in map(self.facts, self.tables)
        ) or bool(self.sequences.cached)  # fmt: skip
        self.logged = self.alters and bool(catalog.event_trigger)
        self.watched = any(self.facts(table).watched for table in self.tables) or (
            self.logged and not self.truncates
        )
        # All there is to look at in one expression: a statement costs as much as five looks.
        self.at_once = (
            bool(self.tables)
            and not (self.gated or self.watched or self.logged or self.truncates)
            and all(isinstance(step, (Empty, Restart)) for step in plan.steps)
        )

    def facts(self, table: Relation) -> Facts:
        return self.catalog.facts[table.key]

    def names(self, tables: Iterable[Relation]) -> list[str]:
        return [self.facts(table).sql for table in tables]

    def program(self) -> Program:
        body = "\n".join(self.body())
        helper = any(isinstance(step, Empty) and step.truncate for step in self.plan.steps)
        truncate = "\n".join(truncation.body(self.tables, self.catalog.facts)) if helper else ""
        digest = hashlib.sha256((body + truncate).encode()).hexdigest()[:12]
        name = f"cleaner_{digest}"
        functions = [
            function(
                "cleaner_stamp()", "float8 IMMUTABLE", "BEGIN RETURN EXTRACT(EPOCH FROM "
                "pg_catalog.clock_timestamp()); END"
            )
        ]  # fmt: skip
        if helper:
            functions.append(
                function(f"{name}_truncate(chosen oid, pages float8)", "boolean", truncate)
            )
        functions.append(
            function(
                f"{name}(wait int, known int8, stamps float8[])",
                "text[]",
                body.replace("pg_temp.truncate(", f"pg_temp.{name}_truncate("),
            )
        )
        block = "\nBEGIN\n" + ";\n".join(functions) + ";\nEND\n"
        return Program(
            name=name,
            create=f"DO {dollars(block)}",
            tables=tuple(self.tables),
            sequences=self.sequences.all,
            views=self.target.stale_views,
            outside=self.target.outside,
            locks=(
                *self.locks,
                *(view.key for view in self.target.stale_views),
                *self.sequences.cached,
            ),
            exclusive=self.truncates,
        )

    def body(self) -> Iterator[str]:
        yield """DECLARE
    ignored text; latest int8; here pg_snapshot; print text; since timestamptz; wanted text;
    held boolean[] := '{}'; filled boolean[]; part boolean[]; stamp float8; seen float8[] := '{}';
    truncated int[] := '{}'; survivors int[] := '{}'; done boolean;
    restarted int[] := '{}'; refreshed int[] := '{}';
BEGIN"""
        yield "-- 1. no wait is longer than this, and one clean at a time\n" + (
            "ignored := pg_catalog.set_config('lock_timeout', wait::text, true);\n"
            f"PERFORM pg_catalog.pg_advisory_xact_lock({ADVISORY_LOCK});"
        )
        if any(isinstance(step, Empty) and step.groups for step in self.plan.steps):
            yield wait_for_writers(self.names(self.tables), self.locks)
        if self.catalog.deferrable:
            yield "SET CONSTRAINTS ALL IMMEDIATE;"
        if not self.at_once:
            yield f"SELECT {_NEWEST} INTO latest;"
        if self.watched:
            # Triggers that can't be switched off may write into a table already emptied, and event
            # triggers when others are switched off, a view is refreshed or a sequence altered.
            yield "FOR pass IN 1..3 LOOP\nheld := '{}'; seen := '{}'; survivors := '{}';"
        yield from self.scan()
        yield from self.check_freshness()
        if self.watched:
            first = " AND pass > 1" if self.logged else ""
            yield f"filled := coalesce(filled, held); EXIT WHEN NOT true = ANY (held){first};"
        yield "-- 5. empty them"
        yield "IF true = ANY (held) THEN"
        for step in self.plan.steps:
            if isinstance(step, Empty):
                yield from self.replica(step) if step.replica else self.empty(step)
            elif isinstance(step, Truncate):
                yield from self.truncate(step)
        yield "END IF;"
        yield from self.finish()
        yield """RETURN ARRAY[latest::text, seen::text, held::text, truncated::text,
             restarted::text, refreshed::text];
END"""

    def finish(self) -> Iterator[str]:
        if self.logged:
            yield from self.refresh()
            yield from self.sequences.restart(known=self.at_once)
        if self.watched:
            yield "END LOOP;"
        if self.watched or self.logged:
            yield "survivors := '{}';"
            for i, table in enumerate(self.tables, 1):
                yield f"IF held[{i}] THEN {self.look_again(table)} END IF;"
        if self.watched:
            yield "held := filled;"
        yield f"""IF survivors <> '{{}}' THEN
    RAISE EXCEPTION USING ERRCODE = '{SURVIVED}', MESSAGE = 'cleaner: rows survived ' || survivors::text;
END IF;"""
        if not self.logged:
            yield from self.refresh()
            yield from self.sequences.restart(known=self.at_once)

    def scan(self) -> Iterator[str]:
        yield "-- 3. which tables hold rows"
        for step in self.plan.steps:
            if isinstance(step, Truncate) and step.tables:
                yield lock(self.names(step.tables), self.locks, "ACCESS EXCLUSIVE", "")
                yield f"held := held || pg_catalog.array_fill(true, ARRAY[{len(step.tables)}]);"
            elif isinstance(step, Empty):
                tables = [table for group in step.groups for table in group]
                for start in range(0, len(tables), _CHUNK):
                    yield from self.scan_chunk(tables[start : start + _CHUNK])

    def scan_chunk(self, tables: list[Relation]) -> Iterator[str]:
        self.chunks += 1
        looks = ",\n    ".join(self.look(self.facts(table)) for table in tables)
        look, into = f"SELECT ARRAY[\n    {looks}],\n    pg_temp.cleaner_stamp()", "part, stamp"
        if self.at_once and self.chunks == 1:
            look, into = f"{look}, {_NEWEST}", f"{into}, latest"
            if self.sequences.plain:
                look, into = f"{look},\n    {self.sequences.moved()}", f"{into}, restarted"
        yield from self.gate(tables, f"{look} INTO {into};")
        yield "held := held || part; seen := seen || stamp;"

    def gate(self, tables: list[Relation], look: str) -> Iterator[str]:
        if not self.gated:
            yield look
            return
        oids = oid_array(leaf for table in tables for leaf in self.facts(table).leaves)
        yield f"""IF EXISTS (SELECT FROM unnest({oids}) u(o) WHERE pg_catalog.pg_relation_size(u.o) > 0) THEN
{look}
ELSE part := pg_catalog.array_fill(false, ARRAY[{len(tables)}]); stamp := stamps[{self.chunks}];
END IF;"""

    def look(self, facts: Facts) -> str:
        # Rows that row-level security hides still take up pages.
        return f"{facts.size} > 0" if facts.hidden else f"EXISTS (SELECT FROM {facts.sql})"

    def check_freshness(self) -> Iterator[str]:
        stale = "latest <> known OR seen IS DISTINCT FROM stamps"
        if self.alters:  # of an event trigger no plan is discarded
            stale += " OR EXISTS (SELECT FROM pg_catalog.pg_event_trigger)"
        if self.truncates:
            stale = "true"
        yield f"""-- 4. is it still the schema that this was written for?
IF {stale} THEN
    SELECT {FINGERPRINT} INTO print;
    IF print <> {literal(self.catalog.database.fingerprint)} THEN RETURN NULL; END IF;
END IF;"""

    def empty(self, step: Empty) -> Iterator[str]:
        # A condition costs a microsecond: one for every few groups lets the others be skipped.
        many = max(_SKIPPED, isqrt(len(step.groups)))
        for start in range(0, len(step.groups), many):
            groups = step.groups[start : start + many]
            first, last = (self.position[groups[0][0].key], self.position[groups[-1][-1].key])
            yield f"IF true = ANY (held[{first}:{last}]) THEN"
            for group in groups:
                yield from self.empty_group(group, step.truncate)
            yield "END IF;"

    def empty_group(self, group: tuple[Relation, ...], truncate: bool) -> Iterator[str]:
        positions = [self.position[table.key] for table in group]
        names = ", ".join(self.facts(table).sql for table in group)
        yield "IF " + " OR ".join(f"held[{i}]" for i in positions) + " THEN"
        # Who writes a row that refers to ours holds ROW SHARE here until it commits. Had we looked
        # before, its ON DELETE action would reach the table outside that we looked at.
        referred = any(table.key in self.outside for table in group)
        yield f"LOCK TABLE {names} IN {'' if referred else 'SHARE ROW '}EXCLUSIVE MODE;"
        for table in group:
            yield from self.guard_outside(table)
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
            yield f"held[{self.position[table.key]}] := EXISTS (SELECT FROM {self.facts(table).sql});"
        if len(group) == 1:
            yield f"DELETE FROM {self.facts(group[0]).sql};"
        else:
            # Foreign keys are checked when a statement ends: by then the whole cycle is empty.
            names = ", ".join(literal(self.facts(table).sql) for table in group)
            positions = ", ".join(str(self.position[table.key]) for table in group)
            delete = f"""EXECUTE (SELECT 'WITH ' || string_agg(pg_catalog.format('d%s AS (DELETE FROM %s)', u.i, u.t), ', ')
                || ' SELECT' FROM unnest(ARRAY[{names}], ARRAY[{positions}]) u(t, i) WHERE held[u.i]);"""
            some = " OR ".join(f"held[{self.position[table.key]}]" for table in group)
            yield f"IF {some} THEN {delete} END IF;" if hidden else delete
        for table in group:
            yield self.look_again(table)
        yield from (f"{on};" for _, on in reversed(switches))

    def look_again(self, table: Relation) -> str:
        name = self.facts(table).sql
        return (
            f"IF EXISTS (SELECT FROM {name}) THEN survivors := survivors"
            f" || ARRAY[{self.position[table.key]}, (SELECT count(*)::int FROM {name})]; END IF;"
        )

    def guard_outside(self, table: Relation) -> Iterator[str]:
        for i in self.outside.get(table.key, ()):
            key = self.target.outside[i]
            child = self.target.database.relation(key.child)
            columns = " AND ".join(f"c.{quote(column)} IS NOT NULL" for column in key.columns)
            yield f"""IF held[{self.position[table.key]}] AND EXISTS (
    SELECT FROM {qualified(child.schema, child.table)} c WHERE {columns}) THEN
    RAISE EXCEPTION USING ERRCODE = '{REACHES_OUTSIDE}', MESSAGE = 'cleaner: outside {{{i}}}';
END IF;"""

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
            yield f"""IF NOT held[{self.position[child.key]}] THEN IF {self.look(self.facts(child))} THEN
    RAISE EXCEPTION USING ERRCODE = '40001', MESSAGE = {said};
END IF; END IF;"""

    def consider_truncate(self, table: Relation) -> Iterator[str]:
        facts, i = self.facts(table), self.position[table.key]
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
        yield "ignored := pg_catalog.set_config('session_replication_role', 'replica', true);"
        for table in (table for group in step.groups for table in group):
            facts = self.facts(table)
            yield f"IF held[{self.position[table.key]}] THEN"
            yield f"LOCK TABLE {facts.sql} IN SHARE ROW EXCLUSIVE MODE;"
            yield from (f"{off};" for off, _ in facts.replica_switches)
            yield f"DELETE FROM {facts.sql};"
            yield self.look_again(table)
            # No foreign key is checked, so we do. The DELETE has waited for whoever refers to its
            # rows, and from now on nobody can.
            yield from self.guard_outside(table)
            yield from self.guard_children(table)
            yield from (f"{on};" for _, on in reversed(facts.replica_switches))
            yield "END IF;"
        yield "ignored := pg_catalog.set_config('session_replication_role', 'origin', true);"

    def truncate(self, step: Truncate) -> Iterator[str]:
        if not step.tables:
            return
        switches = [pair for table in step.tables for pair in self.facts(table).truncate_switches]
        yield from (f"{off};" for off, _ in switches)
        if self.sequences.plain:
            yield f"restarted := {self.sequences.moved()};"
        # Nobody can add a foreign key while the locks are held, so since the fingerprint was
        # compared CASCADE can reach nothing that is not in the list.
        names = ", ".join(self.facts(table).sql for table in step.tables)
        # It wants the sequences' owner; else those that this role may reset are, one by one.
        owned = all(self.facts(table).owned for table in step.tables)
        identity = "RESTART" if step.restart_identity and owned else "CONTINUE"
        yield f"TRUNCATE {names} {identity} IDENTITY CASCADE;"
        positions = ", ".join(str(self.position[table.key]) for table in step.tables)
        yield f"truncated := truncated || ARRAY[{positions}];"
        yield from (f"{on};" for _, on in reversed(switches))

    def refresh(self) -> Iterator[str]:
        if not self.target.stale_views:
            return
        yield "-- 6. materialized views keep the rows they were made of"
        reads = {relation.key: relation.reads for relation in self.target.database.relations}
        for i, view in enumerate(self.target.stale_views, 1):
            sql, setting = qualified(view.schema, view.table), f"'cleaner.view_{view.key}'"
            # Rows that are there even when all tables are empty (an aggregate) are not refreshed
            # again and again: the setting remembers what our own refresh left.
            state = f"""(SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_relation_filenode({view.key}),
        count(*), min(v.xmin::text), max(v.xmin::text)) FROM {sql} v)"""
            units = {self.unit_of[k].key for k in reachable([view.key], reads) if k in self.unit_of}
            emptied = " OR ".join(f"held[{i}]" for i in sorted(self.position[k] for k in units))
            yield f"""IF (SELECT relispopulated FROM pg_catalog.pg_class WHERE oid = {view.key}) THEN
IF EXISTS (SELECT FROM {sql}) THEN
IF {emptied} OR pg_catalog.current_setting({setting}, true) IS DISTINCT FROM {state} THEN
    REFRESH MATERIALIZED VIEW {sql};
    refreshed := refreshed || {i};
    ignored := pg_catalog.set_config({setting}, {state}, false);
END IF; END IF; END IF;"""
