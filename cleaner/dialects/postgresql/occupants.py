"""Who is connected to a database that is about to be copied or replaced, and how to end it."""

from __future__ import annotations

import time
from collections.abc import Iterable

from cleaner import waits
from cleaner.dialects.postgresql.activity import Execute
from cleaner.dialects.strings import literal, literals
from cleaner.errors import BlockedError, Blocker


def vacate(execute: Execute, database: str, wait: float, only_idle: bool) -> tuple[Blocker, ...]:
    """Return once nobody is connected to ``database``.

    Sessions are ended, with ``only_idle`` those that are idle, and waited for: no longer than
    ``wait`` seconds, then BlockedError names those that are left. Returns those that were ended
    and were not idle.
    """
    deadline = time.monotonic() + wait
    pause = 0.001
    ended: dict[int | None, Blocker] = {}
    while sessions := _sessions(execute, database):
        if time.monotonic() > deadline or any(session.pid is None for session, _ in sessions):
            raise _occupied(database, tuple(session for session, _ in sessions))
        chosen = [
            session
            for session, may_end in sessions
            if may_end and (session.state == "idle" or not only_idle)
        ]
        if chosen:
            # Its own wait, like that of DROP DATABASE ... (FORCE), takes 100 ms at the least.
            execute(
                "SELECT pg_catalog.pg_terminate_backend(pid) FROM pg_catalog.pg_stat_activity"
                f" WHERE datname = {literal(database)}"
                f" AND pid IN ({', '.join(str(session.pid) for session in chosen)})"
                + (" AND state = 'idle'" if only_idle else "")
            )
        ended |= {session.pid: session for session in chosen if session.state not in ("idle", None)}
        waits.pause(pause)
        pause = min(2 * pause, 0.05)
    return tuple(ended.values())


def in_use(execute: Execute, database: str) -> BlockedError:
    """The error that names who is connected to ``database`` now."""
    return _occupied(database, tuple(session for session, _ in _sessions(execute, database)))


def _sessions(execute: Execute, database: str) -> list[tuple[Blocker, bool]]:
    """Sessions and prepared transactions, and whether this role may end them."""
    rows = execute(
        f"""SELECT a.pid, a.usename::text, a.application_name, a.state,
       EXTRACT(EPOCH FROM clock_timestamp() - a.xact_start)::float8, a.query,
       pg_catalog.current_setting('is_superuser')::bool OR NOT coalesce(r.rolsuper, false)
           AND (pg_catalog.pg_has_role(a.usesysid, 'USAGE')
                OR pg_catalog.pg_has_role('pg_signal_backend', 'USAGE'))
  FROM pg_catalog.pg_stat_activity a LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.usesysid
 WHERE a.datname = {literal(database)} AND a.usesysid IS NOT NULL
   AND a.backend_type IS DISTINCT FROM 'parallel worker'
UNION ALL
SELECT NULL, p.owner::text, NULL, 'prepared', NULL, p.gid, false
  FROM pg_catalog.pg_prepared_xacts p WHERE p.database = {literal(database)}
 ORDER BY 1 NULLS FIRST"""
    )
    return [(Blocker(*row[:6]), row[6]) for row in rows]


def _occupied(database: str, sessions: tuple[Blocker, ...]) -> BlockedError:
    remedy = "close them; GRANT pg_signal_backend, pg_read_all_stats lets this role end idle ones"
    if sessions and sessions[0].pid is None:
        remedy = f"in {database}: ROLLBACK PREPARED {literal(sessions[0].query or '')}"
    return BlockedError(
        f"{database} is in use by {'; '.join(map(str, sessions)) or 'a session that is gone now'}.",
        "a session was left open that is at work, or that this role may not end",
        remedy,
        sessions,
    )


def locked(execute: Execute, key: int, databases: tuple[str, ...], wait: float) -> BlockedError:
    """The error that names who holds the advisory lock ``key``, or one on a database itself."""
    blockers = lock_holders(execute, key, databases)
    return BlockedError(
        f"{databases[0]} could not be replaced: waited {wait:g} s for a lock, held by "
        f"{'; '.join(map(str, blockers)) or 'a session that is gone now'}.",
        "another process copies, replaces or drops the same database",
        "a database for each process, or a longer lock_timeout",
        blockers,
    )


def lock_holders(execute: Execute, key: int, databases: Iterable[str] = ()) -> tuple[Blocker, ...]:
    """Who holds the advisory lock ``key``, or one on one of the databases itself."""
    rows = execute(
        f"""SELECT DISTINCT a.pid, a.usename::text, a.application_name, a.state,
       EXTRACT(EPOCH FROM clock_timestamp() - a.xact_start)::float8, a.query
  FROM pg_catalog.pg_locks l JOIN pg_catalog.pg_stat_activity a ON a.pid = l.pid
 WHERE l.granted AND l.pid <> pg_catalog.pg_backend_pid()
   AND (l.locktype = 'advisory' AND (l.classid::int8 << 32 | l.objid::int8) = {key}
        OR l.locktype = 'object' AND l.classid = 'pg_catalog.pg_database'::regclass
           AND l.objid IN (SELECT oid FROM pg_catalog.pg_database
                            WHERE datname IN ({literals(databases) or "''"})))"""
    )
    return tuple(Blocker(*row) for row in rows)
