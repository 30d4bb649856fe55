"""Captured rows put back.

What has changed is found by three facts. A row that was written since the *horizon* has a younger
``xmin`` (``lim`` is the horizon's age, ``own`` the transactions of our own that wrote since): an
INSERT, an UPDATE or a COPY, by whomever, under whatever role. A DELETE or a TRUNCATE leaves fewer
rows than were captured. And below the horizon every transaction has ended, so none of them can
write any more. See ``baseline.py`` for what the horizon is.

All tables that have changed are put right in one statement: rows that were added are deleted,
those that were changed are updated, those that are gone inserted, and where a table of the target
that is to be empty stands between them, it is emptied in the same statement. Foreign keys are
checked, and their actions run, when the statement ends: by then every row is where it belongs,
cycles included, and there is nothing for an action to do.

Unique keys are checked row by row, so rows that have swapped their values can't be put back that
way. Then the function is called again to ``reload``: all captured tables are emptied, children
first, and filled in one statement.
"""

from __future__ import annotations

from collections.abc import Iterator

from cleaner.dialects.postgresql.baseline import Captured
from cleaner.dialects.postgresql.program import NEEDS_RELOAD
from cleaner.dialects.postgresql.sql import qualified, quote
from cleaner.dialects.postgresql.tables import WRITTEN, Tables
from cleaner.dialects.strings import literal
from cleaner.spi import Relation

# A horizon that is ahead of this server, or a billion transactions behind, says nothing.
LIMIT = """lim := CASE WHEN pg_catalog.pg_snapshot_xmax(here)::text::int8 - horizon::text::int8
    BETWEEN 0 AND 1000000000 THEN pg_catalog.age(horizon::xid) ELSE 2147483647 END;"""

# What follows was looked at after `here` was taken. While an old transaction goes on, the
# horizon stays below it, and what we wrote has to be known by its transaction.
ADVANCE = """horizon := pg_catalog.pg_snapshot_xmin(here);
own := (ARRAY(SELECT o FROM unnest(pg_catalog.pg_current_xact_id_if_assigned()::xid || own) o
    WHERE pg_catalog.age(o) <= pg_catalog.age(horizon::xid)))[1:64];"""


def acquit(tables: Tables) -> Iterator[str]:
    """Don't hold tables in which all that is younger than the horizon was written by us. Leave if
    a type was altered so that rows read otherwise: no row, and no plan, shows that.
    """
    if tables.altered:
        first = tables.at(tables.captured[0])
        yield f"IF held[{first}] THEN IF {tables.altered} THEN RETURN NULL; END IF; END IF;"
    first, last = len(tables.all) - len(tables.captured) + 1, len(tables.all)
    yield f"IF own <> '{{}}' AND true = ANY (held[{first}:{last}]) THEN"
    for table in tables.captured:
        facts, i = tables.facts(table), tables.at(table)
        if not facts.hidden:
            yield f"""IF held[{i}] THEN
    held[{i}] := (SELECT count(*) <> {_captured(tables, table).rows} OR bool_or(
        {WRITTEN.format("")} AND xmin <> ALL (own)) FROM {facts.sql});
END IF;"""
    yield "END IF;"


def put_right(
    tables: Tables, together: tuple[Relation, ...], replica: bool = False
) -> Iterator[str]:
    """Put back those of ``together`` that are held; held stay those that had changed."""
    if not together:
        return
    held = " OR ".join(f"held[{tables.at(table)}]" for table in together)
    yield f"IF {held} THEN"
    for table in together:
        # Who writes a row that refers to ours holds ROW SHARE here until it commits.
        mode = "EXCLUSIVE" if table.key in tables.outside else "SHARE ROW EXCLUSIVE"
        yield (
            f"IF held[{tables.at(table)}] THEN "
            f"LOCK TABLE {tables.facts(table).sql} IN {mode} MODE; END IF;"
        )
    for table in together:
        yield from _unhide(tables, table, replica)
        yield from _guard(tables, table)
    parts = ", ".join(
        f"({tables.at(table)}, {literal(_with(_changes(tables, table)))},"
        f" {literal(_verdict(tables, table))})"
        for table in together
    )
    yield f"""changed := '{{}}';
IF {held} THEN EXECUTE (SELECT 'WITH ' || string_agg(p.changes, ', ') || ' SELECT ARRAY('
        || string_agg(p.verdict, ' UNION ALL ') || ')'
    FROM (VALUES {parts}) p(i, changes, verdict) WHERE held[p.i]) INTO changed USING lim; END IF;"""
    for table in together:
        yield f"IF held[{tables.at(table)}] THEN"
        yield from _check(tables, table)
        yield from _check_neighbours(tables, table, replica)
        yield from (f"{on};" for _, on in reversed(_switches(tables, table, replica)))
        yield "END IF;"
    positions = ",".join(str(tables.at(table)) for table in together)
    yield f"""held := ARRAY(SELECT u.h AND (u.i <> ALL ('{{{positions}}}') OR u.i = ANY (changed))
    FROM unnest(held) WITH ORDINALITY u(h, i) ORDER BY u.i);
END IF;"""


def fill(tables: Tables, replica: bool = False) -> Iterator[str]:
    """Put all captured rows into the tables, which are empty; ``held`` is theirs already."""
    if not tables.captured:
        return
    for table in tables.captured:
        yield from (f"{off};" for off, _ in _switches(tables, table, replica))
    inserts = ", ".join(
        f"i{tables.at(table)} AS ({_insert(tables, table)})" for table in tables.captured
    )
    yield f"EXECUTE {literal(f'WITH {inserts} SELECT')};"
    for table in tables.captured:
        yield from look_again(tables, table)
        if replica:
            yield from _check_neighbours(tables, table, replica)
        yield from (f"{on};" for _, on in reversed(_switches(tables, table, replica)))


def _captured(tables: Tables, table: Relation) -> Captured:
    captured = tables.facts(table).captured
    assert captured is not None
    return captured


def _switches(tables: Tables, table: Relation, replica: bool) -> tuple[tuple[str, str], ...]:
    facts = tables.facts(table)
    return facts.replica_switches if replica else facts.delete_switches


def _unhide(tables: Tables, table: Relation, replica: bool) -> Iterator[str]:
    """Switch off what would interfere; only then can it be seen whether all rows are there."""
    switches = _switches(tables, table, replica)
    if not switches:
        return
    i, facts = tables.at(table), tables.facts(table)
    yield f"IF held[{i}] THEN"
    yield from (f"{off};" for off, _ in switches)
    if facts.hidden:
        yield f"held[{i}] := {tables.differs(table)};"
        yield f"IF NOT held[{i}] THEN"
        yield from (f"{on};" for _, on in reversed(switches))
        yield "END IF;"
    yield "END IF;"


def _guard(tables: Tables, table: Relation) -> Iterator[str]:
    captured = tables.facts(table).captured
    if captured and captured.key:
        written, copy, same = WRITTEN.format("t."), captured.copy, captured.same
        yield from tables.guard_rows(
            table,
            lambda key: (
                f"{written} AND NOT EXISTS (SELECT FROM {copy} c WHERE {same}"
                f" AND {captured.same_in(key.referred)})"
            ),
        )
    else:
        yield from tables.guard_outside(table)


def _absent(captured: Captured) -> str:
    return f"NOT EXISTS (SELECT FROM {captured.copy} c WHERE {captured.same})"


def _with(changes: dict[str, str]) -> str:
    return ", ".join(f"{name} AS ({statement})" for name, statement in changes.items())


def _changes(tables: Tables, table: Relation) -> dict[str, str]:
    """The data-modifying CTEs by name: deletes, then updates, then inserts, each to its end before
    the next begins, since a row in the way of a unique key has to go first.
    """
    i, name, captured = tables.at(table), tables.facts(table).sql, tables.facts(table).captured
    if captured is None:
        return {f"d{i}": f"DELETE FROM {name} RETURNING 1"}
    after = f"(SELECT count(*) FROM d{i}) >= 0"
    if not captured.key:
        insert = f"{_insert(tables, table)} WHERE {after} RETURNING 1"
        return {f"d{i}": f"DELETE FROM {name} RETURNING 1", f"i{i}": insert}
    written = WRITTEN.format("t.").replace("lim", "$1")
    absent = _absent(captured)
    parts = {f"d{i}": f"DELETE FROM {name} t WHERE {written} AND {absent} RETURNING 1"}
    values = ", ".join(f"{quote(c.name)} = {c.from_copy}" for c in captured.columns if not c.always)
    if values:
        parts[f"u{i}"] = (
            f"UPDATE {name} t SET {values} FROM {captured.copy} c WHERE {captured.same}"
            f" AND {written} AND {captured.differs} AND {after} RETURNING 1"
        )
        after += f" AND (SELECT count(*) FROM u{i}) >= 0"
    gone = f"NOT EXISTS (SELECT FROM {name} t WHERE {captured.same})"
    parts[f"i{i}"] = f"{_insert(tables, table)} WHERE {gone} AND {after} RETURNING 1"
    return parts


def _insert(tables: Tables, table: Relation) -> str:
    captured = _captured(tables, table)
    names = ", ".join(quote(column.name) for column in captured.columns)
    values = ", ".join(column.from_copy for column in captured.columns)
    return (
        f"INSERT INTO {qualified(table.schema, table.table)}{f' ({names})' if names else ''}"
        f" OVERRIDING SYSTEM VALUE SELECT {values} FROM {captured.copy} c"
    )


def _verdict(tables: Tables, table: Relation) -> str:
    """The table's position, if any row was put back."""
    made = " OR ".join(f"EXISTS (SELECT FROM {name})" for name in _changes(tables, table))
    return f"SELECT {tables.at(table)} WHERE {made}"


def look_again(tables: Tables, table: Relation) -> Iterator[str]:
    """Find out whether the table is at its baseline after all that was done."""
    if tables.facts(table).captured is None:
        yield tables.look_again(table)
        return
    many = f"(SELECT count(*)::int FROM {tables.facts(table).sql})"
    yield f"""IF {_wrong(tables, table)} THEN
    survivors := survivors || ARRAY[{tables.at(table)}, {many}];
END IF;"""


def _check(tables: Tables, table: Relation) -> Iterator[str]:
    if tables.facts(table).captured is None:
        yield tables.look_again(table)
        return
    yield f"""IF {_wrong(tables, table)} THEN
    RAISE EXCEPTION USING ERRCODE = '{NEEDS_RELOAD}', MESSAGE = 'cleaner: reload';
END IF;"""


def _check_neighbours(tables: Tables, table: Relation, replica: bool) -> Iterator[str]:
    """Find what the foreign keys have done to tables that were at their baseline; and where they
    are switched off, what they would have said of parents outside the target.
    """
    if not replica:
        for child in tables.bystanders(table):
            hidden = _switches(tables, child, replica) if tables.facts(child).hidden else ()
            yield f"IF NOT held[{tables.at(child)}] THEN"
            yield from (f"{off};" for off, _ in hidden)
            yield from _check(tables, child)
            yield from (f"{on};" for _, on in reversed(hidden))
            yield "END IF;"
        return
    for key in tables.parents_outside(table) if tables.facts(table).captured else ():
        child, parent = (tables.target.database.relation(end) for end in (key.child, key.parent))
        pairs = [*zip(map(quote, key.columns), map(quote, key.referred), strict=True)]
        null = " OR ".join(f"o.{ours} IS NULL" for ours, _ in pairs)
        same = " AND ".join(f"p.{theirs} = o.{ours}" for ours, theirs in pairs)
        said = literal(f"foreign key {key.name}: {parent.name} lacks what {child.name} refers to")
        yield f"""IF EXISTS (SELECT FROM {qualified(child.schema, child.table)} o WHERE NOT ({null})
    AND NOT EXISTS (SELECT FROM {qualified(parent.schema, parent.table)} p WHERE {same})) THEN
    RAISE EXCEPTION USING ERRCODE = '23503', MESSAGE = {said};
END IF;"""


def _wrong(tables: Tables, table: Relation) -> str:
    captured, name = _captured(tables, table), tables.facts(table).sql
    wrong = f"(SELECT count(*) FROM {name}) <> {captured.rows}"
    if captured.key:
        alien = f"c.{quote(captured.key[0].name)} IS NULL OR {captured.differs}"
        # Counted, since for EXISTS the planner would look each row up in an index.
        wrong += f""" OR (SELECT count(*) FROM {name} t LEFT JOIN {captured.copy} c
    ON {captured.same} WHERE {WRITTEN.format("t.")} AND ({alien})) > 0"""
    else:  # as text, since not every type can be sorted
        values, kept = (
            f"SELECT ROW({', '.join(parts)})::text FROM"
            for parts in (
                [f"t.{quote(column.name)}" for column in captured.columns],
                [column.from_copy for column in captured.columns],
            )
        )
        wrong += f""" OR EXISTS (SELECT FROM {name} t WHERE {WRITTEN.format("t.")})
    AND EXISTS ({values} {name} t EXCEPT ALL {kept} {captured.copy} c)"""
    return wrong
