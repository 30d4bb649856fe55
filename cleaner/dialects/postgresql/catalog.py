"""What a PostgreSQL database holds, read from its catalogs in one query."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from cleaner.dialects.postgresql.discovery import DELETE, TRUNCATE
from cleaner.dialects.postgresql.sql import oid_array, qualified, quote
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

    @property
    def size(self) -> str:
        """An expression: the bytes that its rows, dead ones too, take up."""
        if not self.partitioned:
            return f"pg_catalog.pg_relation_size({self.leaves[0]})"
        leaves = oid_array(self.leaves)
        return f"(SELECT sum(pg_catalog.pg_relation_size(u.o)) FROM unnest({leaves}) u(o))"


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
    """Read the answer to :func:`.discovery.discovery`."""
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
    keys = [key for key in found["foreign_keys"] or () if key[1] in rows and key[2] in rows]
    for name, child, parent, *_, impossible in keys:
        for leaf in leaves[parent] if impossible else ():
            rows[leaf]["undeletable"] = (
                f"foreign key {name} of {rows[child]['table']} would set an identity column "
                "that is GENERATED ALWAYS to NULL, so the server refuses DELETE"
            )
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
                for name, child, parent, action, deferrable, columns, _ in keys
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
        elif row.get("undeletable"):
            undeletable = row["undeletable"]
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
        else f"role {user} may not reset it: "
        f"GRANT SELECT, UPDATE ON SEQUENCE {sql} TO {quote(user)}",
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
    delete += switches(DELETE, fires)
    in_replica += switches(DELETE, "RA")
    return Facts(
        sql=sql if partitioned else f"ONLY {sql}",
        leaves=leaves,
        partitioned=partitioned,
        hidden=row["hidden"] or not row["may_select"],
        owned=owned,
        delete_switches=tuple(delete),
        truncate_switches=tuple(switches(TRUNCATE, fires)),
        replica_switches=tuple(in_replica),
        watched=tuple(
            name for leaf, name, enabled, _ in triggers if enabled in fires and not leaf["owned"]
        ),
    )


def _switch(alter: str, noun: str, name: str, enabled: str) -> tuple[str, str]:
    """Statements that disable a trigger or rule and put it back to the mode it was in."""
    mode = {"O": "", "A": "ALWAYS ", "R": "REPLICA "}[enabled]
    return f"{alter} DISABLE {noun} {quote(name)}", f"{alter} ENABLE {mode}{noun} {quote(name)}"
