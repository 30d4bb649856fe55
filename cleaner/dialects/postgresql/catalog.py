"""What a PostgreSQL database holds, read from its catalogs in one query."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy.dialects.postgresql.base import PGDialect

from cleaner.graph import reachable
from cleaner.spi import Database, ForeignKey, Relation, Sequence

_KINDS = {
    "r": "table",
    "p": "partitioned table",
    "f": "foreign table",
    "v": "view",
    "m": "materialized view",
}
_ACTIONS = {"a": "no action", "r": "restrict", "c": "cascade", "n": "set null", "d": "set default"}
_DELETE, _TRUNCATE = 8, 32  # bits of pg_trigger.tgtype

# Other parameter styles make the preparer double percent signs.
_PREPARER = PGDialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]


def quote(name: str) -> str:
    """The identifier in quotes, whatever is in it."""
    return _PREPARER.quote_identifier(name)


def qualified(schema: str, name: str) -> str:
    """The quoted name, independent of any search_path."""
    return f"{quote(schema)}.{quote(name)}"


# Changes whenever a table, key, trigger, rule, partition, sequence or publication does, and not
# when rows do. The first user-made object has oid 16384 (FirstNormalObjectId); `hash_record_extended`
# came with PostgreSQL 14.
FINGERPRINT = """pg_catalog.concat_ws(' ',
    (SELECT sum(hash_record_extended((oid, relname, relnamespace, relowner, relkind, relispartition,
            relrowsecurity, relforcerowsecurity, relreplident), 0))
       FROM pg_catalog.pg_class
      WHERE oid >= 16384 AND relkind IN ('r', 'p', 'f', 'v', 'm', 'S') AND relpersistence <> 't'),
    (SELECT sum(hash_record_extended((oid, conrelid, confrelid, confdeltype, condeferrable), 0))
       FROM pg_catalog.pg_constraint WHERE contype = 'f' AND conparentid = 0),
    (SELECT sum(hash_record_extended((oid, tgrelid, tgname, tgenabled, tgtype), 0))
       FROM pg_catalog.pg_trigger WHERE NOT tgisinternal),
    (SELECT sum(hash_record_extended((oid, ev_class, rulename, ev_type, ev_enabled), 0))
       FROM pg_catalog.pg_rewrite WHERE oid >= 16384),
    (SELECT sum(hash_record_extended((inhrelid, inhparent), 0)) FROM pg_catalog.pg_inherits),
    (SELECT sum(hash_record_extended((seqrelid, seqstart, seqcache), 0)) FROM pg_catalog.pg_sequence),
    (SELECT sum(hash_record_extended((oid, adrelid), 0))
       FROM pg_catalog.pg_attrdef WHERE oid >= 16384),
    (SELECT sum(hash_record_extended((oid, puballtables, pubdelete), 0))
       FROM pg_catalog.pg_publication),
    (SELECT sum(hash_record_extended((oid, prrelid), 0)) FROM pg_catalog.pg_publication_rel),
    (SELECT sum(hash_record_extended((oid, evtenabled), 0)) FROM pg_catalog.pg_event_trigger))"""

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
     WHERE n.nspname !~ '^pg_' AND n.nspname <> 'information_schema' AND c.relpersistence <> 't'
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
    'newest', (SELECT max(oid)::int8 FROM pg_catalog.pg_class),
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
        'may_delete', pg_catalog.has_table_privilege(c.oid, 'DELETE'),
        'may_truncate', pg_catalog.has_table_privilege(c.oid, 'TRUNCATE'),
        'unidentified', EXISTS (SELECT FROM pg_catalog.pg_publication)
            AND c.oid IN (SELECT leaf FROM unidentified),
        'parents', (SELECT pg_catalog.json_agg(i.inhparent::int8 ORDER BY i.inhseqno)
                      FROM pg_catalog.pg_inherits i WHERE i.inhrelid = c.oid),
        'triggers', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                                t.tgname, t.tgenabled, t.tgtype) ORDER BY t.tgname)
                       FROM pg_catalog.pg_trigger t
                      WHERE t.tgrelid = c.oid AND NOT t.tgisinternal AND t.tgenabled <> 'D'
                        AND t.tgtype & {_DELETE | _TRUNCATE} <> 0),
        'rules', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
                             r.rulename, r.ev_enabled) ORDER BY r.rulename)
                    FROM pg_catalog.pg_rewrite r
                   WHERE r.ev_class = c.oid AND r.ev_type = '4' AND r.ev_enabled <> 'D'),
        'reads', (SELECT pg_catalog.json_agg(DISTINCT d.refobjid::int8)
                    FROM pg_catalog.pg_rewrite r
                    JOIN pg_catalog.pg_depend d ON d.classid = 'pg_catalog.pg_rewrite'::regclass
                     AND d.objid = r.oid AND d.refclassid = 'pg_catalog.pg_class'::regclass
                   WHERE c.relkind IN ('v', 'm') AND r.ev_class = c.oid AND d.refobjid <> c.oid)
        ) ORDER BY c.nspname, c.relname)
        FROM visible c WHERE c.relkind IN ('r', 'p', 'f', 'v', 'm')),
    'foreign_keys', (SELECT pg_catalog.json_agg(pg_catalog.json_build_array(
        k.conname, k.conrelid::int8, k.confrelid::int8, k.confdeltype, k.condeferrable,
        (SELECT pg_catalog.json_agg(a.attname) FROM pg_catalog.pg_attribute a
          WHERE a.attrelid = k.conrelid AND a.attnum = ANY (k.conkey))) ORDER BY k.oid)
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


@dataclass(frozen=True)
class Facts:
    """What the SQL for one table has to know beyond :class:`cleaner.spi.Relation`.

    ``delete_switches`` and ``truncate_switches`` are pairs of statements that switch off and on
    again what would interfere with the statement: triggers, rules, forced row-level security;
    ``replica_switches`` what would even under ``session_replication_role = replica``.
    ``hidden`` are rows that this role can't see, ``watched`` triggers that it can't switch off,
    since the table belongs to another.
    """

    sql: str
    leaves: tuple[int, ...]
    partitioned: bool
    hidden: bool
    owned: bool
    delete_switches: tuple[tuple[str, str], ...] = ()
    truncate_switches: tuple[tuple[str, str], ...] = ()
    replica_switches: tuple[tuple[str, str], ...] = ()
    watched: tuple[str, ...] = ()


@dataclass(frozen=True)
class Catalog:
    """A database as :class:`cleaner.spi.Database` says it, and what only PostgreSQL knows."""

    database: Database
    facts: dict[int, Facts]
    sequence_starts: dict[int, int]
    cached_sequences: frozenset[int]
    version: int
    newest: int
    deferrable: bool
    open_files: int
    temporary: bool
    event_trigger: str


def parse(document: str) -> Catalog:
    """Read the answer to :func:`discovery`."""
    found = json.loads(document)
    rows = {row["key"]: row for row in found["relations"] or ()}
    leaves = _leaves(rows)
    path = tuple(found["search_path"])
    default = path[0] if path else ""
    facts = {
        key: _facts(row, rows, leaves[key], found["replica"])
        for key, row in rows.items()
        if row["kind"] in "rp"
    }
    return Catalog(
        database=Database(
            name=found["name"],
            server=f"postgresql {found['version'].split()[0]}",
            user=found["user"],
            search_path=path,
            fingerprint=found["fingerprint"],
            no_replica=_no_replica(found),
            relations=tuple(
                _relation(
                    row,
                    [rows[leaf] for leaf in leaves[key]],
                    facts[key].watched if key in facts else (),
                    found["user"],
                    default,
                )
                for key, row in rows.items()
            ),
            foreign_keys=tuple(
                ForeignKey(name, child, parent, tuple(columns), _ACTIONS[action], deferrable)  # type: ignore[arg-type]
                for name, child, parent, action, deferrable, columns in found["foreign_keys"] or ()
                if child in rows and parent in rows
            ),
            sequences=tuple(
                _sequence(row, rows, found["user"], default) for row in found["sequences"] or ()
            ),
        ),
        facts=facts,
        sequence_starts={row["key"]: row["start"] for row in found["sequences"] or ()},
        cached_sequences=frozenset(
            row["key"] for row in found["sequences"] or () if row["cached"] and row["owned"]
        ),
        version=found["version_num"],
        newest=found["newest"],
        deferrable=found["deferrable"],
        open_files=found["files"],
        temporary=found["temporary"],
        event_trigger=found["event_trigger"] or "",
    )


def _name(schema: str, name: str, default: str) -> str:
    return name if schema == default else f"{schema}.{name}"


def _no_replica(found: dict[str, Any]) -> str:
    if found["superuser"] or found["may_replica"]:
        return ""
    return (
        f"role {found['user']} may not set session_replication_role: "
        + (
            f"GRANT SET ON PARAMETER session_replication_role TO {quote(found['user'])}"
            if found["version_num"] >= 150000
            else f"ALTER ROLE {quote(found['user'])} SUPERUSER"
        )
    )  # fmt: skip


def _relation(
    row: dict[str, Any],
    leaves: list[dict[str, Any]],
    watched: tuple[str, ...],
    user: str,
    default: str,
) -> Relation:
    sql = qualified(row["schema"], row["table"])
    undeletable = untruncatable = ""
    if row["kind"] in "rp":
        if not row["may_use"]:
            undeletable = untruncatable = (
                f"role {user} may not use its schema: "
                f"GRANT USAGE ON SCHEMA {quote(row['schema'])} TO {quote(user)}"
            )
        elif not (row["may_select"] and row["may_delete"]):
            undeletable = (
                f"role {user} may not delete from it: "
                f"GRANT SELECT, DELETE ON {sql} TO {quote(user)}"
            )
        elif any(leaf["unidentified"] for leaf in leaves):
            undeletable = (
                "it is in a publication without a replica identity that fits, so the server "
                "refuses DELETE"
            )
        elif row["hidden"] and not row["owned"]:
            undeletable = f"row-level security hides rows of it from role {user}"
        elif row["rules"] and not row["owned"]:
            undeletable = f"the rule {row['rules'][0][0]} rewrites DELETE, and {user} is not owner"
        if row["may_use"] and not row["may_truncate"]:
            untruncatable = (
                f"role {user} may not truncate it: GRANT TRUNCATE ON {sql} TO {quote(user)}"
            )
    elif row["kind"] == "m" and not row["owned"]:
        undeletable = f"only its owner {row['owner']} may refresh it"
    return Relation(
        key=row["key"],
        schema=row["schema"],
        table=row["table"],
        name=_name(row["schema"], row["table"], default),
        kind=_KINDS[row["kind"]],  # type: ignore[arg-type]
        parents=tuple(row["parents"] or ()),
        is_partition=row["partition"],
        reads=tuple(row["reads"] or ()),
        undeletable=undeletable,
        untruncatable=untruncatable,
        swallows=bool(row["hidden"] or row["rules"] or watched),
        bookkeeping=row["alembic"],
        foreign_owned=f"extension {row['extension']}" if row["extension"] else "",
    )


def _sequence(
    row: dict[str, Any], rows: dict[int, dict[str, Any]], user: str, default: str
) -> Sequence:
    sql = qualified(row["schema"], row["sequence"])
    return Sequence(
        key=row["key"],
        schema=row["schema"],
        sequence=row["sequence"],
        name=_name(row["schema"], row["sequence"], default),
        owner=row["owner"] if row["owner"] in rows else None,
        users=tuple(key for key in row["users"] or () if key in rows),  # not a temporary table
        refusal=""
        if row["may_reset"]
        else f"role {user} may not reset it: GRANT SELECT, UPDATE ON SEQUENCE {sql} TO {quote(user)}",
    )


def _leaves(rows: dict[int, dict[str, Any]]) -> dict[int, tuple[int, ...]]:
    """Each table with the partitions below it, itself included."""
    below: dict[int, list[int]] = {}
    for key, row in rows.items():
        if row["partition"]:
            below.setdefault((row["parents"] or [0])[0], []).append(key)
    return {key: tuple(sorted(reachable([key], below))) for key in rows}


def _facts(
    row: dict[str, Any], rows: dict[int, dict[str, Any]], leaves: tuple[int, ...], replica: bool
) -> Facts:
    sql = qualified(row["schema"], row["table"])
    partitioned = row["kind"] == "p"
    fires = "RA" if replica else "OA"  # as the session's replication role is by default
    triggers = [
        (rows[leaf], name, enabled, events)
        for leaf in leaves
        for name, enabled, events in rows[leaf]["triggers"] or ()
    ]

    def switches(event: int, modes: str) -> Iterable[tuple[str, str]]:
        for leaf, name, enabled, events in triggers:
            if events & event and enabled in modes and leaf["owned"]:
                table = qualified(leaf["schema"], leaf["table"])
                yield _switch(f"ALTER TABLE ONLY {table}", "TRIGGER", name, enabled)

    delete: list[tuple[str, str]] = []
    owned = row["owned"]
    if row["hidden"] and owned:
        delete.append(
            (
                f"ALTER TABLE {sql} NO FORCE ROW LEVEL SECURITY",
                f"ALTER TABLE {sql} FORCE ROW LEVEL SECURITY",
            )
        )
    in_replica = [*delete]
    for name, enabled in row["rules"] or () if owned else ():
        pair = _switch(f"ALTER TABLE {sql}", "RULE", name, enabled)
        if enabled in fires:
            delete.append(pair)
        if enabled in "RA":
            in_replica.append(pair)
    delete += switches(_DELETE, fires)
    in_replica += switches(_DELETE, "RA")
    return Facts(
        sql=sql if partitioned else f"ONLY {sql}",
        leaves=leaves,
        partitioned=partitioned,
        hidden=row["hidden"] or not row["may_select"],
        owned=owned,
        delete_switches=tuple(delete),
        truncate_switches=tuple(switches(_TRUNCATE, fires)),
        replica_switches=tuple(in_replica),
        watched=tuple(
            name for leaf, name, enabled, _ in triggers if enabled in fires and not leaf["owned"]
        ),
    )


def _switch(alter: str, noun: str, name: str, enabled: str) -> tuple[str, str]:
    """Statements that disable a trigger or rule and put it back to the mode it was in."""
    mode = {"O": "", "A": "ALWAYS ", "R": "REPLICA "}[enabled]
    return f"{alter} DISABLE {noun} {quote(name)}", f"{alter} ENABLE {mode}{noun} {quote(name)}"
