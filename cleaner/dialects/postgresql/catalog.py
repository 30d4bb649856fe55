"""What a PostgreSQL database holds, read from its catalogs in one query."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cleaner.dialects.postgresql.baseline import Baseline, Captured
from cleaner.dialects.postgresql.discovery import DELETE, INSERT, TRUNCATE, UPDATE
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
    since the table belongs to another. ``force`` are the switches of row-level security alone,
    and ``unreadable`` is why this role can't see the rows in spite of them, with the remedy.
    ``captured`` says which rows are its baseline, None where
    that is none; the switches are then those for INSERT and UPDATE too. ``unrestorable`` is why
    this role could not put rows back, with the remedy.
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
    captured: Captured | None = None
    unrestorable: str = ""
    force: tuple[tuple[str, str], ...] = ()
    unreadable: str = ""

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
    sequence_positions: dict[int, tuple[int, bool]]
    cached_sequences: frozenset[int]
    version: int
    baseline: Baseline | None
    deferrable: bool
    open_files: int
    temporary: bool
    event_trigger: str


def parse(found: dict[str, Any], baseline: Baseline | None = None) -> Catalog:
    """Read the answer to :func:`.discovery.discovery`."""
    rows = {row["key"]: row for row in found["relations"] or ()}
    leaves = _leaves(rows)
    path = tuple(found["search_path"])
    default = path[0] if path else ""
    facts = {
        key: _facts(row, rows, leaves[key], found, baseline.captured(row) if baseline else None)
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
            lost=baseline.lost if baseline else (),
            relations=tuple(
                _relation(
                    row,
                    [rows[leaf] for leaf in leaves[key]],
                    facts.get(key),
                    found["user"],
                    default,
                )
                for key, row in rows.items()
            ),
            foreign_keys=tuple(
                ForeignKey(
                    name,
                    child,
                    parent,
                    tuple(columns),
                    tuple(referred),
                    _ACTIONS[action],  # type: ignore[arg-type]
                    deferrable,
                )
                for name, child, parent, action, deferrable, columns, referred, _ in keys
            ),
            sequences=tuple(
                _sequence(row, rows, found["user"], default) for row in found["sequences"] or ()
            ),
        ),
        facts=facts,
        sequence_starts={row["key"]: row["start"] for row in found["sequences"] or ()},
        sequence_positions={
            row["key"]: (baseline.position(row) if baseline else None) or (row["start"], False)
            for row in found["sequences"] or ()
        },
        cached_sequences=frozenset(
            row["key"] for row in found["sequences"] or () if row["cached"] and row["owned"]
        ),
        version=found["version_num"],
        baseline=baseline,
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
    facts: Facts | None,
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
        elif (rules := _rules(row, DELETE)) and not row["owned"]:
            undeletable = f"the rule {rules[0][0]} rewrites DELETE, and {user} is not owner"
        if row["may_use"] and not row["may_truncate"]:
            untruncatable = (
                f"role {user} may not truncate it: GRANT TRUNCATE ON {sql} TO {quote(user)}"
            )
        if facts and facts.captured and facts.unrestorable:
            undeletable = untruncatable = facts.unrestorable
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
        swallows=bool(row["hidden"] or _rules(row, DELETE) or (facts and facts.watched)),
        bookkeeping=row["alembic"],
        foreign_owned=f"extension {row['extension']}" if row["extension"] else "",
        captured=facts.captured.rows if facts and facts.captured else 0,
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
    row: dict[str, Any],
    rows: dict[int, dict[str, Any]],
    leaves: tuple[int, ...],
    found: dict[str, Any],
    captured: Captured | None,
) -> Facts:
    sql = qualified(row["schema"], row["table"])
    partitioned = row["kind"] == "p"
    fires = "RA" if found["replica"] else "OA"  # as the session's replication role is by default
    owned = row["owned"]
    touched = INSERT | UPDATE | DELETE
    written = touched if captured else DELETE
    triggers = [
        (rows[leaf], name, enabled, events)
        for leaf in leaves
        for name, enabled, events in rows[leaf]["triggers"] or ()
    ]

    def switches(events: int, modes: str) -> Iterator[tuple[str, str]]:
        for name, enabled in _rules(row, events) if owned else ():
            if enabled in modes:
                yield _switch(f"ALTER TABLE {sql}", "RULE", name, enabled)
        for leaf, name, enabled, on in triggers:
            if on & events and enabled in modes and leaf["owned"]:
                table = qualified(leaf["schema"], leaf["table"])
                yield _switch(f"ALTER TABLE ONLY {table}", "TRIGGER", name, enabled)

    def unswitchable(events: int) -> tuple[str, ...]:
        return tuple(
            name
            for leaf, name, enabled, on in triggers
            if on & events and enabled in fires and not leaf["owned"]
        )

    force: tuple[tuple[str, str], ...] = ()
    if row["hidden"] and owned:
        force = (
            (
                f"ALTER TABLE {sql} NO FORCE ROW LEVEL SECURITY",
                f"ALTER TABLE {sql} FORCE ROW LEVEL SECURITY",
            ),
        )
    unrestorable = ""
    if names := unswitchable(touched):
        unrestorable = (
            f"trigger {names[0]} would fire, which only its owner {row['owner']} can prevent"
        )
    elif not owned and (rules := _rules(row, touched)):
        unrestorable = f"only its owner {row['owner']} can switch off the rule {rules[0][0]}"
    elif not (row["may_insert"] and row["may_update"]):
        unrestorable = (
            f"role {found['user']} may not write to it: "
            f"GRANT INSERT, UPDATE ON {sql} TO {quote(found['user'])}"
        )
    return Facts(
        sql=sql if partitioned else f"ONLY {sql}",
        leaves=leaves,
        partitioned=partitioned,
        hidden=row["hidden"] or not row["may_select"],
        owned=owned,
        delete_switches=(*force, *switches(written, fires)),
        truncate_switches=tuple(switches(TRUNCATE, fires)),
        replica_switches=(*force, *switches(written, "RA")),
        watched=unswitchable(DELETE),
        captured=captured,
        unrestorable=unrestorable,
        force=force,
        unreadable=_unreadable(row, found["user"]),
    )


def _unreadable(row: dict[str, Any], user: str) -> str:
    """Why this role can't see all rows, with the remedy; empty if it can."""
    sql, role = qualified(row["schema"], row["table"]), quote(user)
    grants = []
    if not row["may_use"]:
        grants.append(f"GRANT USAGE ON SCHEMA {quote(row['schema'])} TO {role}")
    if not row["may_look"]:
        grants.append(f"GRANT SELECT ON {sql} TO {role}")
    if grants:
        return f"role {user} may not read it: {'; '.join(grants)}"
    if row["hidden"] and not row["owned"]:
        return f"row-level security hides rows of it from role {user}: ALTER ROLE {role} BYPASSRLS"
    return ""


def _rules(row: dict[str, Any], events: int) -> list[tuple[str, str]]:
    """The names and modes of the rules that rewrite one of the commands."""
    numbers = {"2": UPDATE, "3": INSERT, "4": DELETE}  # pg_rewrite.ev_type
    return [(name, mode) for name, mode, event in row["rules"] or () if numbers[event] & events]


def _switch(alter: str, noun: str, name: str, enabled: str) -> tuple[str, str]:
    """Statements that disable a trigger or rule and put it back to the mode it was in."""
    mode = {"O": "", "A": "ALWAYS ", "R": "REPLICA "}[enabled]
    return f"{alter} DISABLE {noun} {quote(name)}", f"{alter} ENABLE {mode}{noun} {quote(name)}"
