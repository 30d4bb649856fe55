"""What a PostgreSQL database holds and is, read from its catalogs alone.

The eyes of the checks: nothing here comes from the library under test. Every function leaves the
connection as it found it, in or out of a transaction, and wants a superuser. Names come
schema-qualified and quoted the way the server quotes them (``format('%I.%I')``).
"""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg.rows import tuple_row

Connection = psycopg.Connection[Any]

_COUNTS = r"""
SELECT format('SELECT %L, count(*) FROM %s%I.%I', format('%I.%I', nspname, relname),
              CASE relkind WHEN 'r' THEN 'ONLY ' ELSE '' END, nspname, relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'p') AND nspname !~ '^pg_' AND nspname <> 'information_schema'
ORDER BY nspname, relname"""

# A row as it goes over the wire in binary: equal to the last bit, not only by its type's equality.
_CONTENTS = r"""
SELECT format($$SELECT %L, count(*) || ' ' || coalesce(md5(string_agg(h, '' ORDER BY h)), '')
                  FROM (SELECT md5(record_send(t.*)) FROM ONLY %I.%I t) _(h)$$,
              format('%I.%I', nspname, relname), nspname, relname)
FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
WHERE relkind IN ('r', 'm') AND relispopulated AND nspname !~ '^pg_'
  AND nspname NOT IN ('information_schema', 'cleaner_baseline')
ORDER BY nspname, relname"""

_SEQUENCES = r"""
SELECT format('SELECT %L, last_value, is_called, %L::bigint FROM %I.%I',
              format('%I.%I', nspname, relname), seqstart, nspname, relname)
FROM pg_catalog.pg_sequence JOIN pg_catalog.pg_class c ON c.oid = seqrelid
JOIN pg_catalog.pg_namespace n ON n.oid = relnamespace
WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
ORDER BY nspname, relname"""


def counts(conn: Connection) -> dict[str, int]:
    """Rows of every table: a plain one's own (ONLY), a partitioned one's whole tree.

    Row security that would hide a row is an error, never a smaller count.
    """
    return dict(_gather(conn, _COUNTS))


def contents(conn: Connection) -> dict[str, str]:
    """What every table, partition and materialized view holds: its rows, counted and hashed.

    Captured rows that are kept to be put back are not among them.
    """
    return dict(_gather(conn, _CONTENTS))


def sequences(conn: Connection) -> dict[str, tuple[int, bool, int]]:
    """``(last_value, is_called, start)`` of every sequence, read from the sequence itself."""
    return {name: (last, called, start) for name, last, called, start in _gather(conn, _SEQUENCES)}


def schema_text(conn: Connection) -> str:
    """The whole schema, a sorted line for each catalog row: equal texts, unchanged schema.

    Whatever the catalogs say is in it, on any server version: owners, privileges, states of
    triggers and rules, row security, replica identity, settings, comments, ... What a VACUUM, a
    TRUNCATE or a restore changes without changing the schema is not: OIDs, files, statistics, rows.
    """
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL search_path = ''")
        version = conn.info.server_version
        if version not in _queries:
            _queries[version] = _write_queries(conn)
        lines = [line for query in _queries[version] for (line,) in _rows(conn, query)]
    ours = sorted(line for line in lines if not _STORAGE.search(line))
    return _RI_TRIGGER.sub(r"\1*", "\n".join(ours))


def _rows(conn: Connection, query: str) -> list[tuple[Any, ...]]:
    return conn.cursor(row_factory=tuple_row).execute(query.encode()).fetchall()


def _gather(conn: Connection, queries: str) -> list[tuple[Any, ...]]:
    """The rows of the queries that `queries` writes: one statement, hence one snapshot."""
    with conn.transaction(force_rollback=True):
        conn.execute("SET LOCAL row_security = off")
        parts = [part for (part,) in _rows(conn, queries)]
        return _rows(conn, " UNION ALL ".join(parts)) if parts else []


# --- how schema_text reads a catalog: every column, as JSON, but an OID as the object it names, and
# a parse tree as the text that one of these functions makes of it.
_CATALOGS = {
    "pg_aggregate": [],
    "pg_attrdef": ["pg_get_expr(adbin, adrelid)"],
    "pg_attribute": [],
    "pg_cast": [],
    "pg_class": ["pg_get_expr(relpartbound, oid)"],
    "pg_collation": [],
    "pg_constraint": ["pg_get_constraintdef(oid)"],
    "pg_database": [],
    "pg_db_role_setting": [],
    "pg_default_acl": [],
    "pg_enum": [],
    "pg_event_trigger": [],
    "pg_extension": [],
    "pg_foreign_data_wrapper": [],
    "pg_foreign_server": [],
    "pg_foreign_table": [],
    "pg_index": ["pg_get_indexdef(indexrelid)"],
    "pg_inherits": [],
    "pg_namespace": [],
    "pg_operator": [],
    "pg_partitioned_table": ["pg_get_partkeydef(partrelid)"],
    "pg_policy": ["pg_get_expr(polqual, polrelid)", "pg_get_expr(polwithcheck, polrelid)"],
    "pg_proc": ["pg_get_function_arguments(oid)", "pg_get_function_sqlbody(oid)"],
    "pg_publication": [],
    "pg_publication_namespace": [],
    "pg_publication_rel": ["pg_get_expr(prqual, prrelid)"],
    "pg_range": [],
    "pg_rewrite": ["pg_get_ruledef(oid)"],
    "pg_sequence": [],
    "pg_statistic_ext": ["pg_get_statisticsobjdef(oid)"],
    "pg_trigger": ["pg_get_triggerdef(oid)"],
    "pg_type": [],
}
# Not the schema: storage, statistics, and hints that only a VACUUM takes back.
_VOLATILE = set(
    """relfilenode relpages reltuples relallvisible relallfrozen relfrozenxid relminmxid
    reltoastrelid relrewrite relispopulated relhasindex relhasrules relhastriggers relhassubclass
    indcheckxmin atthasmissing attmissingval attcacheoff datfrozenxid datminmxid""".split()
)
_OPAQUE = {"pg_node_tree", "oid", "oid[]", "oidvector"}  # but an OID that refers to a catalog
# The others' first column, an OID, tells our own rows: initdb leaves those from 16384 to users.
_OURS = {
    "pg_database": "datname = current_database()",
    "pg_db_role_setting": "setdatabase IN (0, (SELECT oid FROM pg_database"
    " WHERE datname = current_database()))",
    "pg_namespace": "nspname !~ '^pg_'",
    "pg_attribute": "attrelid >= 16384 AND attnum > 0",
}
_COLUMNS = """
SELECT relname, attname, atttypid::regtype::text, pktable::text, coalesce(is_array, false)
FROM pg_class c JOIN pg_attribute a ON attrelid = c.oid AND attnum > 0
LEFT JOIN pg_get_catalog_foreign_keys()
  ON fktable = c.oid AND fkcols = ARRAY[attname::text] AND pkcols = ARRAY['oid']
WHERE relnamespace = 'pg_catalog'::regnamespace AND relkind = 'r' ORDER BY relname, attnum"""
_COMMENTS = """
SELECT 'pg_description ' || json_build_array(
    pg_describe_object(classoid, objoid, objsubid), description)
FROM pg_description WHERE objoid >= 16384 OR classoid = 'pg_namespace'::regclass"""
_OWNERSHIP = """
SELECT 'pg_depend ' || json_build_array(deptype, pg_describe_object(classid, objid, objsubid),
                                        pg_describe_object(refclassid, refobjid, refobjsubid))
FROM pg_depend LEFT JOIN pg_class ON classid = 'pg_class'::regclass AND oid = objid
WHERE deptype IN ('e', 'x') OR (relkind = 'S' AND deptype IN ('a', 'i') AND refobjsubid <> 0)"""
_STORAGE = re.compile(r'[ "]pg_(toast|temp_\d+|toast_temp_\d+)[."]')
_RI_TRIGGER = re.compile(r"(RI_ConstraintTrigger_[ac]_)\d+")  # named after its OID
_queries: dict[int, list[str]] = {}


def _write_queries(conn: Connection) -> list[str]:
    columns: dict[str, list[str]] = {}
    filters = dict(_OURS)
    for catalog, name, type_, target, is_array in _rows(conn, _COLUMNS):
        filters.setdefault(catalog, f"{name}::oid >= 16384")
        if name in _VOLATILE or (type_ in _OPAQUE and not target):
            continue
        if is_array:
            value = (
                f"ARRAY(SELECT pg_describe_object('{target}'::regclass, o, 0)"
                f" FROM unnest({name}::oid[]) o)"
            )
        elif target:
            value = f"pg_describe_object('{target}'::regclass, {name}, 0)"
        else:
            value = name
        columns.setdefault(catalog, []).append(f"{value} AS {name}")
    return [_COMMENTS, _OWNERSHIP] + [
        f"SELECT '{catalog} ' || json_strip_nulls(row_to_json(r)) FROM (SELECT"
        f" {', '.join(columns[catalog] + texts)} FROM {catalog} WHERE {filters[catalog]}) r"
        for catalog, texts in _CATALOGS.items()
        if catalog in columns
    ]
