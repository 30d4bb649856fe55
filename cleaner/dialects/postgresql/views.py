"""Materialized views, which keep the rows they were made of."""

from __future__ import annotations

from collections.abc import Iterator

from cleaner.dialects.postgresql.sql import oid_array, qualified
from cleaner.dialects.postgresql.tables import Tables
from cleaner.graph import reachable
from cleaner.spi import Relation


def refreshing(view: Relation) -> str:
    """The statement."""
    return f"REFRESH MATERIALIZED VIEW {qualified(view.schema, view.table)}"


def refresh(tables: Tables) -> Iterator[str]:
    """Refresh those that show what is not there any more."""
    views = tables.target.stale_views
    if not views:
        return
    yield "-- 6. materialized views keep the rows they were made of"
    reads = {relation.key: relation.reads for relation in tables.target.database.relations}
    shows = {view.key: reachable(view.reads, reads) for view in views}
    for i, view in enumerate(views, 1):
        sql, setting = qualified(view.schema, view.table), f"'cleaner.view_{view.key}'"
        # Rows that are there even when all tables are at their baseline (an aggregate, captured
        # rows) are not refreshed again and again: the setting remembers what our refresh left.
        state = f"""(SELECT pg_catalog.concat_ws(' ', pg_catalog.pg_relation_filenode({view.key}),
        count(*), min(v.xmin::text), max(v.xmin::text)) FROM {sql} v)"""
        renew = f"""{refreshing(view)};
    refreshed := refreshed || {i};
    ignored := pg_catalog.set_config({setting}, {state}, false);"""
        units = {
            tables.unit_of[key].key for key in reachable([view.key], reads) if key in tables.unit_of
        }
        emptied = " OR ".join(f"held[{i}]" for i in sorted(tables.position[key] for key in units))
        shown = f"EXISTS (SELECT FROM {sql})"
        if any(table.key in units for table in tables.captured):
            shown = "true"
        # What a populated view reads was populated too, before a REFRESH ... WITH NO DATA.
        readers = [key for key, others in shows.items() if view.key in others]
        read = f"""ELSIF EXISTS (SELECT FROM pg_catalog.pg_class
    WHERE oid = ANY ({oid_array(readers)}) AND relispopulated) THEN
    {renew}
"""
        yield f"""IF (SELECT relispopulated FROM pg_catalog.pg_class WHERE oid = {view.key}) THEN
IF {shown} THEN
IF {emptied} OR pg_catalog.current_setting({setting}, true) IS DISTINCT FROM {state} THEN
    {renew}
END IF; END IF;
{read if readers else ""}END IF;"""
