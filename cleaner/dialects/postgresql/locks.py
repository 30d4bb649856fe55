"""Waiting for other sessions."""

from __future__ import annotations

from collections.abc import Iterable

from cleaner.dialects.postgresql.sql import oid_array
from cleaner.dialects.strings import literal

_GIVE_WAY = "CL004"
_TURN = 20  # milliseconds of waiting for a lock before a look at whom that keeps from going on


def wait_for_writers(names: Iterable[str], oids: Iterable[int]) -> str:
    """Wait for those whose rows are not committed yet. See :func:`lock` for the arguments."""
    oids = tuple(oids)
    # With no transaction id in use there is no uncommitted row, and no need to ask who holds
    # locks. A snapshot does not list ids from its xmax on; age() tells whether there are any.
    return f"""-- 2. rows that are not committed yet would appear after the clean
here := pg_catalog.pg_current_snapshot();
IF pg_catalog.pg_snapshot_xmin(here) <> pg_catalog.pg_snapshot_xmax(here)
   OR pg_catalog.age(pg_catalog.pg_snapshot_xmax(here)::xid) <> 0 THEN
    IF EXISTS (SELECT FROM pg_catalog.pg_locks l
     WHERE l.locktype = 'relation' AND l.mode = 'RowExclusiveLock'
       AND l.pid IS DISTINCT FROM pg_catalog.pg_backend_pid()
       AND l.relation = ANY ({oid_array(oids)})) THEN
{lock(names, oids, "SHARE ROW EXCLUSIVE", "AccessShareLock,RowShareLock")}
    END IF;
END IF;"""


def lock(names: Iterable[str], oids: Iterable[int], mode: str, harmless: str) -> str:
    """Lock the tables ``names``, whose oids with all partitions are ``oids``, in ``mode``, without
    ever making a deadlock of it. ``harmless`` are the lock modes that don't conflict with it.
    """
    # Parents first, as most writers come by them: who waits for us then holds nothing that we
    # want. Where one does, nobody gets on until we let go of all, and let it pass.
    listed = ", ".join(literal(name) for name in reversed([*names]))
    keys = oid_array(oids)
    return f"""since := pg_catalog.clock_timestamp();
ignored := pg_catalog.set_config('lock_timeout', least({_TURN}, wait)::text, true);
<<together>> LOOP BEGIN
    FOREACH wanted IN ARRAY ARRAY[{listed}] LOOP
        LOOP BEGIN
            EXECUTE 'LOCK TABLE ' || wanted || ' IN {mode} MODE';
            EXIT;
        EXCEPTION WHEN lock_not_available THEN
            IF pg_catalog.clock_timestamp() - since
                > pg_catalog.make_interval(secs => wait / 1000.0) THEN RAISE; END IF;
            IF EXISTS (
                SELECT FROM pg_catalog.pg_locks h JOIN pg_catalog.pg_locks w
                    ON w.pid = h.pid AND NOT w.granted AND w.relation = ANY ({keys})
                 WHERE h.granted AND h.relation = ANY ({keys}) AND h.mode <> ALL ('{{{harmless}}}')
                   AND h.pid <> pg_catalog.pg_backend_pid())
            THEN RAISE SQLSTATE '{_GIVE_WAY}'; END IF;
        END; END LOOP;
    END LOOP;
    EXIT together;
EXCEPTION WHEN SQLSTATE '{_GIVE_WAY}' THEN
    PERFORM pg_catalog.pg_sleep(pg_catalog.random() * {_TURN} / 10000.0);
END; END LOOP;
ignored := pg_catalog.set_config('lock_timeout', wait::text, true);"""
