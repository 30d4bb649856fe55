"""A plan as one plpgsql function, so that a clean is one message to the server.

The function lives in ``pg_temp`` (it needs no privilege but TEMPORARY, and goes with the
session), runs in a transaction of its own, and does in this order:

1. bound every wait and take the database's advisory lock;
2. wait for writers that have not committed yet, so that their rows are seen;
3. find the tables that are not at their baseline, with one expression that is planned once per connection;
4. check that the plan still fits the schema, and leave otherwise;
5. empty those tables, each under a lock that keeps new writers out, and look that they are empty;
   put captured rows back where they have changed;
6. refresh materialized views, then put sequences back (last, since ``setval`` can't be undone).

Step 4 costs nothing in the ordinary case. Every expression of step 3 carries a *stamp*: a
function declared IMMUTABLE, so that the planner computes it when it plans the expression. When
something is altered on a table, the server discards the cached plan, and the stamp changes with
the next one. New relations show in ``max(pg_class.oid)``. Only when one of the two has changed, or
a relation may have been made and not committed, is the fingerprint of the catalogs computed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

from cleaner.dialects.postgresql import restoring, truncation, views
from cleaner.dialects.postgresql.catalog import Catalog
from cleaner.dialects.postgresql.discovery import FINGERPRINT
from cleaner.dialects.postgresql.emptying import Emptying
from cleaner.dialects.postgresql.locks import lock, wait_for_writers
from cleaner.dialects.postgresql.program import ADVISORY_LOCK, SURVIVED, Program
from cleaner.dialects.postgresql.sequences import Sequences
from cleaner.dialects.postgresql.sql import dollars, function, oid_array
from cleaner.dialects.postgresql.tables import Tables
from cleaner.dialects.strings import literal
from cleaner.errors import StrategyRefusedError
from cleaner.spi import Empty, Plan, Relation, Restart, Sequence, Target, Truncate

_CHUNK = 128  # tables per expression: one that is altered costs the planning of so many
# A relation's size is found without keeping its file open, the look for a row is not: beyond
# this share of max_files_per_process the server would open and close a file for each look.
_OPEN_FILES = 0.5
# What changes without a plan being discarded: new relations, functions, types and schemas, and
# sequences that are altered.
_NEWEST = (
    "(SELECT max(oid)::int8 << 31 FROM pg_catalog.pg_class) # (SELECT max(oid)::int8 << 16 "
    "FROM pg_catalog.pg_proc) # (SELECT max(oid)::int8 << 8 FROM pg_catalog.pg_type) "
    "# (SELECT max(oid)::int8 << 24 FROM pg_catalog.pg_namespace) "
    "# (SELECT coalesce(sum(pg_catalog.hashint8(seqstart # (seqcache << 9) # (seqincrement << 18)"
    " # (seqmin << 27) # (seqmax << 36) # seqcycle::int)), 0) FROM pg_catalog.pg_sequence)"
)
# Who makes a relation holds it until the end of the transaction. One that is older than the newest,
# and committed after it, would never show: as long as there may be such the next call looks again.
_UNSETTLED = """IF EXISTS (
        SELECT FROM pg_catalog.pg_locks
         WHERE locktype = 'relation' AND mode = 'AccessExclusiveLock'
           AND pid IS DISTINCT FROM pg_catalog.pg_backend_pid() AND database =
               (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database()))
    THEN latest := -1; END IF;"""


def compile_plan(plan: Plan, target: Target, catalog: Catalog) -> Program:
    """Write the function for ``plan``."""
    return _Writer(plan, target, catalog).program()


class _Writer:
    def __init__(self, plan: Plan, target: Target, catalog: Catalog) -> None:
        self.plan, self.target, self.catalog = plan, target, catalog
        tables: list[Relation] = []
        sequences: list[Sequence] = []
        for step in plan.steps:
            if isinstance(step, Empty):
                tables += self.scanned(step)
            elif isinstance(step, Truncate):
                tables += step.tables
            elif isinstance(step, Restart):
                sequences += step.sequences
        self.sequences = Sequences(sequences, catalog)
        self.tables = Tables(tables, target, catalog)
        self.emptying = Emptying(self.tables, self.sequences)
        facts = [self.tables.facts(table) for table in tables]
        self.chunks = 0
        oids = [leaf for table in facts for leaf in table.leaves]
        self.locks = tuple(dict.fromkeys(oids))
        self.gated = len(oids) > catalog.open_files * _OPEN_FILES
        self.truncates = any(isinstance(step, Truncate) for step in plan.steps)
        self.refuse_unseen()
        self.alters = bool(
            target.stale_views or self.sequences.cached or self.tables.forced_outside
        ) or any(
            table.delete_switches or table.truncate_switches or table.replica_switches
            for table in facts
        )
        self.logged = self.alters and bool(catalog.event_trigger)
        self.watched = any(table.watched for table in facts) or (self.logged and not self.truncates)
        # All there is to look at in one expression: a statement costs as much as five looks.
        self.at_once = (
            bool(tables)
            and not (self.gated or self.watched or self.logged or self.truncates)
            and all(isinstance(step, (Empty, Restart)) for step in plan.steps)
        )

    def refuse_unseen(self) -> None:
        """Make sure that it can be seen whether rows outside the target refer to what goes."""
        database = self.target.database
        for key in self.target.outside:
            reason = self.catalog.facts[key.child].unreadable
            if reason and key.parent in self.tables.position:
                child, parent = database.relation(key.child), database.relation(key.parent)
                why, _, remedy = reason.partition(": ")
                raise StrategyRefusedError(
                    f"{parent.name} can't be cleaned: {child.name}, which is outside the target, "
                    f"refers to it (foreign key {key.name}), and {why}.",
                    "without a look at its rows they might be changed, or keep rows from deletion",
                    f'{remedy}, or exclude = ["{parent.name}"]',
                )

    def scanned(self, step: Empty) -> list[Relation]:
        """The tables, those with captured rows last: they are looked at in another way."""
        tables = [table for group in step.groups for table in group]
        return sorted(tables, key=lambda table: self.catalog.facts[table.key].captured is not None)

    def program(self) -> Program:
        body = "\n".join(self.body())
        helper = any(isinstance(step, Empty) and step.truncate for step in self.plan.steps)
        truncate = "\n".join(truncation.body(self.tables.all, self.catalog.facts)) if helper else ""
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
                f"{name}(wait int, known int8, stamps float8[], horizon xid8, own xid[], reload bool)",
                "text[]",
                body.replace("pg_temp.truncate(", f"pg_temp.{name}_truncate("),
            )
        )
        block = "\nBEGIN\n" + ";\n".join(functions) + ";\nEND\n"
        restarted = self.sequences.cached
        return Program(
            name=name,
            create=f"DO {dollars(block)}",
            tables=self.tables.all,
            sequences=self.sequences.all,
            views=self.target.stale_views,
            outside=self.target.outside,
            locks=(
                *self.locks,
                *(view.key for view in self.target.stale_views),
                *self.tables.forced_outside,
                *(s.key for s in self.sequences.all if self.truncates or s.key in restarted),
            ),
            resets=tuple(sequence.key for sequence in self.sequences.all),
            exclusive=self.truncates,
            horizon=self.catalog.baseline.horizon if self.catalog.baseline else None,
        )

    def body(self) -> Iterator[str]:
        looks = any(isinstance(step, Empty) and step.groups for step in self.plan.steps)
        captured = looks and bool(self.tables.captured)
        yield """#variable_conflict use_variable
DECLARE
    ignored text; latest int8; here pg_snapshot; print text; since timestamptz; wanted text;
    held boolean[] := '{}'; filled boolean[]; part boolean[]; stamp float8; seen float8[] := '{}';
    truncated int[] := '{}'; survivors int[] := '{}'; done boolean;
    restarted int[] := '{}'; refreshed int[] := '{}'; lim int; changed int[];
BEGIN"""
        yield "-- 1. no wait is longer than this, and one clean at a time\n" + (
            "ignored := pg_catalog.set_config('lock_timeout', wait::text, true);\n"
            f"PERFORM pg_catalog.pg_advisory_xact_lock({ADVISORY_LOCK});"
        )
        if looks:
            yield wait_for_writers(self.tables.names(self.tables.all), self.locks)
        if captured:
            yield restoring.LIMIT
        if self.catalog.deferrable:
            yield "SET CONSTRAINTS ALL IMMEDIATE;"
        if not self.at_once:
            yield f"SELECT {self.newest()} INTO latest;"
        if self.watched:
            # Triggers that can't be switched off may write into a table already emptied, and event
            # triggers when others are switched off, a view is refreshed or a sequence altered.
            yield "FOR pass IN 1..3 LOOP\nheld := '{}'; seen := '{}'; survivors := '{}';"
        yield from self.scan()
        yield from self.check_freshness()
        if captured:
            yield from restoring.acquit(self.tables)
            others = len(self.tables.all) - len(self.tables.captured)
            yield f"""IF reload THEN
    held := held[:{others}] || pg_catalog.array_fill(true, ARRAY[{len(self.tables.captured)}]);
END IF;"""
        if self.watched:
            first = " AND pass > 1" if self.logged else ""
            yield f"filled := coalesce(filled, held); EXIT WHEN NOT true = ANY (held){first};"
        yield "-- 5. empty them"
        yield "IF true = ANY (held) THEN"
        for step in self.plan.steps:
            if isinstance(step, Empty):
                emptying = self.emptying
                yield from emptying.replica(step) if step.replica else emptying.empty(step)
            elif isinstance(step, Truncate):
                yield from self.emptying.truncate(step)
        yield "END IF;"
        yield from self.finish()
        if captured:
            yield restoring.ADVANCE
        yield """RETURN ARRAY[latest::text, seen::text, held::text, truncated::text,
             restarted::text, refreshed::text, horizon::text, own::text];
END"""

    def finish(self) -> Iterator[str]:
        if self.logged:
            yield from views.refresh(self.tables)
            yield from self.sequences.restart(known=self.at_once)
        if self.watched:
            yield "END LOOP;"
        if self.watched or self.logged:
            yield "survivors := '{}';"
            for table in self.tables.all:
                yield f"IF held[{self.tables.at(table)}] THEN"
                yield from restoring.look_again(self.tables, table)
                yield "END IF;"
        if self.watched:
            yield "held := filled;"
        yield f"""IF survivors <> '{{}}' THEN
    RAISE EXCEPTION USING ERRCODE = '{SURVIVED}', MESSAGE = 'cleaner: rows survived ' || survivors::text;
END IF;"""
        if not self.logged:
            yield from views.refresh(self.tables)
            yield from self.sequences.restart(known=self.at_once)

    def scan(self) -> Iterator[str]:
        yield "-- 3. which tables hold rows"
        for step in self.plan.steps:
            if isinstance(step, Truncate) and step.tables:
                yield lock(self.tables.names(step.tables), self.locks, "ACCESS EXCLUSIVE", "")
                yield f"held := held || pg_catalog.array_fill(true, ARRAY[{len(step.tables)}]);"
            elif isinstance(step, Empty):
                tables = self.scanned(step)
                first = next((i for i, t in enumerate(tables) if t.captured), len(tables))
                for part in (tables[:first], tables[first:]):
                    for start in range(0, len(part), _CHUNK):
                        yield from self.scan_chunk(part[start : start + _CHUNK])

    def scan_chunk(self, tables: list[Relation]) -> Iterator[str]:
        self.chunks += 1
        looks = ",\n    ".join(self.tables.look(table) for table in tables)
        look, into = f"SELECT ARRAY[\n    {looks}],\n    pg_temp.cleaner_stamp()", "part, stamp"
        if self.at_once and self.chunks == 1:
            look, into = f"{look}, {self.newest()}", f"{into}, latest"
            if self.sequences.plain:
                look, into = f"{look},\n    {self.sequences.moved()}", f"{into}, restarted"
        yield from self.gate(tables, f"{look} INTO {into};")
        yield "held := held || part; seen := seen || stamp;"

    def gate(self, tables: list[Relation], look: str) -> Iterator[str]:
        if not self.gated or tables[0].captured:  # of those that were truncated no page is left
            yield look
            return
        oids = oid_array(leaf for table in tables for leaf in self.tables.facts(table).leaves)
        yield f"""IF EXISTS (SELECT FROM unnest({oids}) u(o) WHERE pg_catalog.pg_relation_size(u.o) > 0) THEN
{look}
ELSE part := pg_catalog.array_fill(false, ARRAY[{len(tables)}]); stamp := stamps[{self.chunks}];
END IF;"""

    def newest(self) -> str:
        if self.catalog.baseline is None:
            return _NEWEST
        book = f"SELECT count(*) << 62 FROM pg_catalog.pg_class WHERE oid = {self.catalog.baseline.oid}"
        return f"{_NEWEST} # ({book})"

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
    {"" if self.truncates else _UNSETTLED}
END IF;"""
