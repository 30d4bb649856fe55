"""When a table is better truncated than deleted from, and how."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from cleaner.dialects.postgresql.catalog import Facts
from cleaner.dialects.postgresql.sql import oid_array
from cleaner.dialects.strings import literal
from cleaner.spi import Relation

SMALL = 16 * 8192  # bytes from which on it is worth a thought
# TRUNCATE costs about as much for each table it reaches as deleting from 18 pages does; each
# foreign key to the table makes a deleted row five times as dear. See benchmarks/.
_PAGES_PER_TRUNCATE, _PRICE_OF_A_KEY = 18, 4


def body(tables: Iterable[Relation], facts: Mapping[int, Facts]) -> Iterator[str]:
    """The body of ``truncate(chosen oid, pages float8) RETURNS boolean``.

    It truncates a table with all that refer to it, and returns false, nothing done, where that
    reaches too far, is too dear or would have to wait; the last two not if ``pages`` is NULL.
    """
    tables = tuple(tables)
    allowed = oid_array(
        leaf
        for table in tables
        if not (table.untruncatable or table.captured)
        for leaf in facts[table.key].leaves
    )
    switches = [
        (leaf, *pair)
        for table in tables
        for leaf in facts[table.key].leaves
        for pair in facts[table.key].truncate_switches
    ]
    yield f"""DECLARE reached oid[]; names text; switch text;
BEGIN
WITH RECURSIVE referring(o) AS (
    SELECT chosen UNION
    SELECT k.conrelid FROM referring r JOIN pg_catalog.pg_constraint k
        ON k.confrelid = r.o AND k.contype = 'f')
SELECT pg_catalog.array_agg(o) INTO reached FROM referring;
IF NOT reached <@ {allowed} THEN RETURN false; END IF;
SELECT string_agg(CASE c.relkind WHEN 'p' THEN '' ELSE 'ONLY ' END || c.oid::regclass::text, ', ')
  INTO names FROM pg_catalog.pg_class c WHERE c.oid = ANY (reached);
IF pages IS NOT NULL THEN
    IF pages * (1 + {_PRICE_OF_A_KEY} * (SELECT count(*) FROM pg_catalog.pg_constraint k
            WHERE k.confrelid = chosen AND k.contype = 'f'))
        < {_PAGES_PER_TRUNCATE} * pg_catalog.cardinality(reached) THEN RETURN false; END IF;
    BEGIN  -- an idle reader would make TRUNCATE wait; DELETE is slower, but needs not
        EXECUTE 'LOCK TABLE ' || names || ' IN ACCESS EXCLUSIVE MODE NOWAIT';
    EXCEPTION WHEN lock_not_available THEN RETURN false;
    END;
END IF;"""
    for column, order in (("off", ""), ("back", " DESC")):
        if switches:
            rows = ", ".join(
                f"({leaf}::oid, {literal(off)}, {literal(on)})" for leaf, off, on in switches
            )
            yield f"""FOR switch IN SELECT DISTINCT s.{column} FROM (VALUES {rows}) s(o, off, back)
    WHERE s.o = ANY (reached) ORDER BY 1{order} LOOP EXECUTE switch; END LOOP;"""
        if column == "off":
            yield "EXECUTE 'TRUNCATE ' || names;"
    yield "RETURN true;\nEND"
