"""The query that reads a PostgreSQL database's catalogs, and the fingerprint of what it reads."""

from __future__ import annotations

from typing import Any

INSERT, DELETE, UPDATE, TRUNCATE = 4, 8, 16, 32  # bits of pg_trigger.tgtype
BASELINE = "cleaner_baseline"  # the schema in which captured rows are kept

# Changes whenever an object of the schema does, and not when rows do. The first user-made object
# has oid 16384 (FirstNormalObjectId); `hash_record_extended` came with PostgreSQL 14. What sessions
# have to themselves is left out: temporary tables, and functions like those that clean. A record's
# hash is hashed again: it is a sum, too, in which two that have swapped their names do not show.
_TEMPORARY = "(SELECT oid FROM pg_catalog.pg_namespace WHERE nspname ~ '^pg_(toast_)?temp_')"
_LASTING = "oid >= 16384 AND relpersistence <> 't' AND relkind <> 't'"
_KEPT = f"(SELECT oid FROM pg_catalog.pg_class WHERE {_LASTING})"
_HASHED = {  # of each catalog the columns, and of which rows
    "pg_class": (
        "oid, relname, relnamespace, relowner, relkind, relispartition, relrowsecurity,"
        " relforcerowsecurity, relreplident, relacl, reloptions",
        _LASTING,
    ),
    "pg_attribute": (
        "attrelid, attnum, attname, atttypid, atttypmod, attnotnull, attisdropped, attidentity,"
        " attgenerated",
        f"attnum > 0 AND attrelid IN {_KEPT}",
    ),
    "pg_constraint": (
        "oid, conrelid, confrelid, contype, confdeltype, condeferrable",
        f"conrelid IN {_KEPT}",
    ),
    "pg_trigger": (
        "oid, tgrelid, tgname, tgenabled, tgtype, tgfoid, tgargs, tgqual::text",
        "NOT tgisinternal",
    ),
    "pg_rewrite": ("oid, ev_class, rulename, ev_type, ev_enabled", "oid >= 16384"),
    "pg_inherits": ("inhrelid, inhparent", "true"),
    "pg_sequence": (
        "seqrelid, seqstart, seqcache, seqincrement, seqmin, seqmax, seqcycle",
        "true",
    ),
    "pg_namespace": ("oid, nspname, nspowner", "nspname !~ '^pg_'"),
    "pg_policy": (
        "oid, polname, polcmd, polroles, polpermissive, polqual::text, polwithcheck::text",
        "true",
    ),
    "pg_attrdef": ("oid, adrelid", "oid >= 16384"),
    "pg_proc": ("oid, proname, xmin", f"oid >= 16384 AND pronamespace NOT IN {_TEMPORARY}"),
    "pg_type": ("oid, typname", "oid >= 16384 AND typrelid = 0 AND typelem = 0"),
    "pg_enum": ("oid, enumlabel", "true"),
    "pg_publication": ("oid, puballtables, pubdelete", "true"),
    "pg_publication_rel": ("oid, prrelid", "true"),
    "pg_event_trigger": ("oid, evtenabled", "true"),
}
_SUMS = (
    f"(SELECT sum(hashint8extended(hash_record_extended(({columns}), 0), 0))"
    f" FROM pg_catalog.{catalog} WHERE {rows})"
    for catalog, (columns, rows) in _HASHED.items()
)
FINGERPRINT = f"pg_catalog.concat_ws(' ',\n    {f',{chr(10)}    '.join(_SUMS)})"

# Tables of which the server refuses to delete rows: their deletes are published, themselves or
# through a partitioned table above them, and the columns that identify a row are none, not all
# published, or not all that a row filter asks for. Columns of publications came with PostgreSQL 15.
_UNIDENTIFIED = """family AS (
    SELECT oid AS leaf, oid AS rel FROM visible WHERE relkind = 'r'
    UNION SELECT v.oid, a.relid FROM visible v, pg_catalog.pg_partition_ancestors(v.oid) a
           WHERE v.relkind = 'r' AND v.relispartition
), identity AS (
    SELECT v.oid AS leaf, CASE v.relreplident WHEN 'f' THEN ARRAY(
               SELECT a.attname FROM pg_catalog.pg_attribute a
                WHERE a.attrelid = v.oid AND a.attnum > 0 AND NOT a.attisdropped)
           ELSE (SELECT pg_catalog.array_agg(a.attname)
                   FROM pg_catalog.pg_index i JOIN pg_catalog.pg_attribute a
                     ON a.attrelid = v.oid
                    AND a.attnum = ANY ((i.indkey::int2[])[0:i.indnkeyatts - 1])
                  WHERE i.indrelid = v.oid AND CASE v.relreplident WHEN 'i' THEN i.indisreplident
                        WHEN 'd' THEN i.indisprimary AND i.indimmediate END)
           END AS names
      FROM visible v WHERE v.relkind = 'r'
), unidentified AS MATERIALIZED (
    SELECT f.leaf FROM family f JOIN identity i ON i.leaf = f.leaf
     WHERE i.names IS NULL AND f.rel IN (
               SELECT pg_catalog.to_regclass(
                          pg_catalog.format('%I.%I', t.schemaname, t.tablename))::oid
                 FROM pg_catalog.pg_publication_tables t
                 JOIN pg_catalog.pg_publication p ON p.pubname = t.pubname AND p.pubdelete)
    UNION
    SELECT f.leaf FROM family f JOIN identity i ON i.leaf = f.leaf
      JOIN pg_catalog.pg_publication_rel r ON r.prrelid = f.rel
      JOIN pg_catalog.pg_publication p ON p.oid = r.prpubid AND p.pubdelete
      CROSS JOIN LATERAL (
          SELECT pg_catalog.to_jsonb(r) -> 'prqual' <> 'null' AS filtered,
                 pg_catalog.to_jsonb(r) -> 'prattrs' <> 'null' AS chosen,
                 ARRAY(SELECT a.attname FROM pg_catalog.pg_depend d
                         JOIN pg_catalog.pg_attribute a
                           ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
                        WHERE d.classid = 'pg_catalog.pg_publication_rel'::regclass
                          AND d.objid = r.oid AND d.refobjsubid > 0) AS names) c
     WHERE c.filtered AND NOT c.names <@ i.names OR c.chosen AND NOT i.names <@ c.names
)"""

_DISCOVERY = f"""
WITH visible AS (
    SELECT c.*, n.nspname,
           (SELECT e.extname FROM pg_catalog.pg_depend d
              JOIN pg_catalog.pg_extension e ON e.oid = d.refobjid
             WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
               AND d.deptype = 'e') AS extension
      FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
     WHERE n.nspname !~ '^pg_' AND n.nspname NOT IN ('information_schema', '{BASELINE}')
       AND c.relpersistence <> 't'
), {_UNIDENTIFIED}
SELECT pg_catalog.json_build_object(
    'name', pg_catalog.current_database(),
    'user', current_user,
    'version', pg_catalog.current_setting('server_version'),
    'version_num', pg_catalog.current_setting('server_version_num')::int,
    'files', pg_catalog.current_setting('max_files_per_process')::int,
    'search_path', pg_catalog.current_schemas(false),
    'superuser', pg_catalog.current_setting('is_superuser')::bool,
    'may_replica', {{may_replica}},
    'replica', pg_catalog.current_setting('session_replication_role') = 'replica',
    'event_trigger', (SELECT min(evtname) FROM pg_catalog.pg_event_trigger
                       WHERE evtenabled <> 'D' AND evtevent <> 'login'),
    'temporary', pg_catalog.has_database_privilege(pg_catalog.current_database(), 'TEMPORARY'),
    'baseline', pg_catalog.to_regclass('{BASELINE}.baseline')::oid::int8,
    'fingerprint', {FINGERPRINT},
    'relations', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
        'key', c.oid::int8, 'schema', c.nspname, 'table', c.relname, 'kind', c.relkind,
        'extension', c.extension, 'owned', pg_catalog.pg_has_role(c.relowner, 'USAGE'),
        'owner', pg_catalog.pg_get_userbyid(c.relowner), 'partition', c.relispartition,
        'alembic', c.relnatts = 1 AND EXISTS (
            SELECT FROM pg_catalog.pg_attribute a
             WHERE a.attrelid = c.oid AND a.attnum = 1 AND a.attname = 'version_num'),
        'hidden', c.relkind IN ('r', 'p') AND pg_catalog.row_security_active(c.oid),
        'may_use', pg_catalog.has_schema_privilege(c.relnamespace, 'USAGE'),
        'may_select', pg_catalog.has_table_privilege(c.oid, 'SELECT'),
        'may_look', pg_catalog.has_any_column_privilege(c.oid, 'SELECT'),
        'may_delete', pg_catalog.has_table_privilege(c.oid, 'DELETE'),
        'may_insert', pg_catalog.has_table_privilege(c.oid, 'INSERT'),
        'may_update', pg_catalog.has_table_privilege(c.oid, 'UPDATE'),
        'may_truncate', pg_catalog.has_table_privilege(c.oid, 'TRUNCATE'),
        'unidentified', EXISTS (SELECT FROM pg_catalog.pg_publication)
            AND c.oid IN (SELECT leaf FROM unidentified),
        'parents', (SELECT pg_catalog.json_agg(i.inhparent::int8 ORDER BY i.inhseqno)
                      FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
        'triggers', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                                t.tgname, t.tgenabled, t.tgtype) ORDER BY t.tgname)
                       FROM pg_catalog.pg_trigger t
                      WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'),
        'rules', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                             r.rulename, r.ev_enabled, r.ev_type) ORDER BY r.rulename)
                    FROM pg_catalog.pg_rewrite r
                   WHERE r.ev_class = c.oid AND r.ev_type > '1' AND r.ev_enabled <> 'D'),
        'reads', (SELECT pg_catalog.json_agg(DISTINCT d.refobjid::int8)
                    FROM pg_catalog.pg_rewrite r
                    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass
                     AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
                   WHERE c.relkind IN ('v', 'm') AND r.ev_class = c.oid AND d.refobjid <> c.oid)
        ) ORDER BY c.nspname, c.relname)
        FROM visible c WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')),
    'foreign_keys', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
        k.conname, k.conrelid::int8, k.confrelid::int8, k.confdeltype, k.condeferrable,
        (SELECT pg_catalog.json_agg(a.attname ORDER BY u.i)
           FROM unnest(k.conkey) WITH ORDINALITY u(n, i) JOIN pg_catalog.pg_attribute a
             ON a.attrelid = k.conrelid AND a.attnum = u.n),
        (SELECT pg_catalog.json_agg(a.attname ORDER BY u.i)
           FROM unnest(k.confkey) WITH ORDINALITY u(n, i) JOIN pg_catalog.pg_attribute a
             ON a.attrelid = k.confrelid AND a.attnum = u.n),
        k.confdeltype = 'n' AND EXISTS (SELECT FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey) AND a.attidentity = 'a'))
        ORDER BY k.oid)
        FROM pg_catalog.pg_constraint k WHERE k.contype = 'f' AND k.conparentid = 0),
    'deferrable', EXISTS (SELECT FROM pg_catalog.pg_constraint
                           WHERE contype IN ('f', 't') AND condeferrable),
    'sequences', (SELECT pg_catalog.json_agg(pg_catalog.json_build_object(
        'key', c.oid::int8, 'schema', c.nspname, 'sequence', c.relname, 'start', s.seqstart,
        'cached', s.seqcache > 1, 'owned', pg_catalog.pg_has_role(c.relowner, 'USAGE'),
        'may_reset', pg_catalog.has_sequence_privilege(c.oid, 'UPDATE')
                     AND pg_catalog.has_sequence_privilege(c.oid, 'SELECT'),
        'owner', (SELECT d.refobjid::int8 FROM pg_catalog.pg_depend d
                   WHERE d.classid = 'pg_catalog.pg_class'::regclass AND d.objid = c.oid
                     AND d.refclassid = 'pg_catalog.pg_class'::regclass
                     AND d.deptype IN ('a', 'i') LIMIT 1),
        'users', (SELECT pg_catalog.json_agg(DISTINCT a.adrelid::int8)
                    FROM pg_catalog.pg_depend d JOIN pg_catalog.pg_attrdef a ON a.oid = d.objid
                   WHERE d.classid = 'pg_catalog.pg_attrdef'::regclass
                     AND d.refclassid = 'pg_catalog.pg_class'::regclass AND d.refobjid = c.oid)
        ) ORDER BY c.nspname, c.relname)
        FROM visible c JOIN pg_catalog.pg_sequence s ON s.seqrelid = c.oid
       WHERE c.extension IS NULL)
)::text"""


def discovery(version: tuple[Any, ...]) -> str:
    """The query whose answer :func:`parse` reads, for a server of that version."""
    may_replica = "false"
    if version >= (15,):
        may_replica = "pg_catalog.has_parameter_privilege('session_replication_role', 'SET')"
    return _DISCOVERY.replace("{may_replica}", may_replica)
