"""What other sessions do on the database, and who of them is in the way.

Who may not see into others (PROCESS) is told of the sessions of its own user only, and not which
of them has a transaction open.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from cleaner import waits
from cleaner.dialects.mysql.program import lock_name
from cleaner.dialects.strings import literal
from cleaner.errors import Blocker

Rows = list[tuple[Any, ...]]
Execute = Callable[[str], Rows]
# Seconds for which INNODB_TRX stays what it was when somebody last read it.
_STALE = 0.15
_HERE = "p.DB = DATABASE() AND p.ID <> CONNECTION_ID()"
# A transaction that has begun and has nothing running is idle in it.
_STATE = """CASE WHEN p.COMMAND <> 'Sleep'
            THEN CONCAT('active', IF(COALESCE(p.STATE, '') = '', '', CONCAT(' (', p.STATE, ')')))
            WHEN {has_begun} THEN 'idle in transaction' ELSE '{else_idle}' END"""
_ALL = f"""SELECT p.ID, p.USER, p.HOST,
       {_STATE.format(has_begun="t.trx_id IS NOT NULL", else_idle="idle")},
       IF(t.trx_id IS NULL, p.TIME, TIMESTAMPDIFF(MICROSECOND, t.trx_started,
          CONVERT_TZ(NOW(6), '+00:00', @@GLOBAL.time_zone)) / 1000000), p.INFO, t.trx_id IS NOT NULL
  FROM information_schema.PROCESSLIST p
  LEFT JOIN information_schema.INNODB_TRX t ON t.trx_mysql_thread_id = p.ID"""
_OWN = f"""SELECT p.ID, p.USER, p.HOST,
       {_STATE.format(has_begun="FALSE", else_idle="idle, or idle in a transaction")},
       p.TIME, p.INFO, TRUE FROM information_schema.PROCESSLIST p"""


def blockers(execute: Execute, database: str, driver_error: Any) -> tuple[Blocker, ...]:
    """Who cleans the database, and who has a transaction open in it or is at work there."""
    holder = execute(f"SELECT IS_USED_LOCK({literal(lock_name(database))})")[0][0]
    rows, _ = _sessions(execute, driver_error)
    return tuple(
        _blocker(row)
        for row in rows
        if row[0] == holder or row[6] or str(row[3]).startswith("active")
    )


def idle_in_transaction(execute: Execute, driver_error: Any) -> tuple[tuple[Blocker, ...], bool]:
    """Sessions that are left open in a transaction, and whether that can be seen at all."""
    rows, seen = _sessions(execute, driver_error)
    idle = (row for row in rows if row[3] == "idle in transaction")
    return tuple(_blocker(row) for row in idle), seen


def others(execute: Execute, driver_error: Any) -> tuple[Blocker, ...]:
    """Who else is connected to this database."""
    return tuple(_blocker(row) for row in _sessions(execute, driver_error)[0])


def terminate(
    execute: Execute, blockers: tuple[Blocker, ...], driver_error: Any
) -> tuple[Blocker, ...]:
    """End those that are idle in transaction; returns those that were ended."""
    idle = {blocker.pid for blocker in blockers if blocker.state == "idle in transaction"}
    ended = []
    for blocker in idle_in_transaction(execute, driver_error)[0] if idle else ():
        if blocker.pid not in idle:
            continue
        try:
            execute(f"KILL {blocker.pid}")
        except driver_error:  # it is gone, or another's
            continue
        ended.append(blocker)
    return tuple(ended)


def _sessions(execute: Execute, driver_error: Any) -> tuple[Rows, bool]:
    waits.pause(_STALE)
    try:
        return execute(f"{_ALL} WHERE {_HERE} ORDER BY 5 DESC"), True
    except driver_error:
        return execute(f"{_OWN} WHERE {_HERE} ORDER BY 5 DESC"), False


def _blocker(row: tuple[Any, ...]) -> Blocker:
    pid, user, host, state, age, query, _ = row
    return Blocker(int(pid), user, host, state, None if age is None else float(age), query)
