"""What other sessions do on the database, and who of them is in the way."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from cleaner.dialects.postgresql.program import ADVISORY_LOCK
from cleaner.dialects.postgresql.sql import oid_array
from cleaner.dialects.strings import literal
from cleaner.errors import Blocker

Execute = Callable[[str], list[tuple[Any, ...]]]


def blockers(
    execute: Execute,
    locks: Iterable[int],
    exclusive: bool,
    cleans: bool = True,
    resets: Iterable[int] = (),
) -> tuple[Blocker, ...]:
    """Who holds a lock on one of the relations ``locks``, one that keeps from writing to one of
    ``resets``, or one on any that nobody can pass; those who only read where ``exclusive`` locks
    are needed, or there are no others; with ``cleans`` who cleans.
    """
    advisory = f"(l.classid::int8 << 32 | l.objid::int8) = {ADVISORY_LOCK}" if cleans else "false"
    rows = execute(
        f"""SELECT DISTINCT ON (l.pid, p.gid) l.pid, coalesce(a.usename, p.owner),
       a.application_name, a.state, EXTRACT(EPOCH FROM clock_timestamp() - a.xact_start)::float8,
       coalesce(a.query, p.gid), l.mode = 'AccessShareLock' AS reads
  FROM pg_catalog.pg_locks l
  LEFT JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
  LEFT JOIN pg_catalog.pg_locks x ON l.pid IS NULL AND x.pid IS NULL
        AND x.locktype = 'transactionid' AND x.virtualtransaction = l.virtualtransaction
  LEFT JOIN pg_catalog.pg_prepared_xacts p ON p.transaction = x.transactionid
 WHERE l.granted AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
   AND l.database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())
   AND (l.locktype = 'advisory' AND {advisory}
        OR l.locktype = 'relation' AND l.relation = ANY ({oid_array(locks)})
        OR l.locktype = 'relation' AND l.relation = ANY ({oid_array(resets)})
           AND l.mode IN ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock')
        OR l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock')
 ORDER BY l.pid, p.gid, l.mode = 'AccessShareLock'"""
    )
    # A reader stands in the way of TRUNCATE alone.
    writers = [row for row in rows if not row[-1]]
    chosen = rows if exclusive or not writers else writers
    return tuple(Blocker(*row[:6]) for row in chosen)


def terminate(execute: Execute, blockers: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
    """End those that are idle in transaction; returns those that were ended."""
    ended = []
    for blocker in blockers:
        if blocker.pid is None or not (blocker.state or "").startswith("idle in transaction"):
            continue
        rows = execute(
            "SELECT pg_catalog.pg_terminate_backend(pid, 1000) FROM pg_catalog.pg_stat_activity"
            f" WHERE pid = {blocker.pid} AND state = {literal(blocker.state or '')}"
        )
        if rows and rows[0][0]:
            ended.append(blocker)
    return tuple(ended)


def idle_in_transaction(execute: Execute) -> tuple[tuple[Blocker, ...], int]:
    """Sessions of others that are left open in a transaction, the oldest first, and the number
    of those that this role can't see into.
    """
    rows = execute(
        """SELECT a.pid, a.usename, a.application_name, a.state,
       EXTRACT(EPOCH FROM clock_timestamp() - a.xact_start)::float8 AS age, a.query
  FROM pg_catalog.pg_stat_activity a
 WHERE a.datname = pg_catalog.current_database() AND a.pid <> pg_catalog.pg_backend_pid()
   AND a.usename IS NOT NULL AND coalesce(a.backend_type, 'client backend') = 'client backend'
   AND coalesce(a.state, 'idle in transaction') IN (
       'idle in transaction', 'idle in transaction (aborted)')
UNION ALL
SELECT NULL, p.owner, NULL, 'prepared',
       EXTRACT(EPOCH FROM clock_timestamp() - p.prepared)::float8, p.gid
  FROM pg_catalog.pg_prepared_xacts p WHERE p.database = pg_catalog.current_database()
 ORDER BY age DESC"""
    )
    seen = tuple(Blocker(*row) for row in rows if row[3] is not None)
    return seen, len(rows) - len(seen)
