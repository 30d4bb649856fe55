"""A connection of our own to a PostgreSQL database, and what is asked over it."""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine
from sqlalchemy.exc import InterfaceError, OperationalError, SQLAlchemyError
from sqlalchemy.pool import NullPool

from cleaner.dialects.base import Done, Guard, Health, Remains
from cleaner.dialects.postgresql import failures
from cleaner.dialects.postgresql.catalog import Catalog, parse
from cleaner.dialects.postgresql.discovery import discovery
from cleaner.dialects.postgresql.program import (
    ADVISORY_LOCK,
    Outcome,
    Program,
    compile_plan,
    read,
)
from cleaner.dialects.postgresql.sql import literal, qualified, quote
from cleaner.errors import Blocker, ProvisionError, SettingsError, StrategyRefusedError, Survivor
from cleaner.retry import Stale
from cleaner.spi import Database, Plan, Relation, Target

# Of this session only. Whatever the role's defaults are: each statement sees what was committed
# before it, nothing but lock_timeout cuts it short, and a row-level policy raises instead of
# hiding rows. Compiling an expression over a thousand tables would cost more than running it.
_SESSION = {
    "application_name": "cleaner",
    "client_min_messages": "warning",
    "default_transaction_deferrable": "off",
    "default_transaction_isolation": "read committed",
    "default_transaction_read_only": "off",
    "idle_in_transaction_session_timeout": "0",
    "idle_session_timeout": "0",
    "jit": "off",
    "standard_conforming_strings": "on",
    "max_parallel_workers_per_gather": "0",
    "row_security": "off",
    "statement_timeout": "0",
    "transaction_timeout": "0",
}
_SETUP = (
    "SELECT pg_catalog.current_database(), count(pg_catalog.set_config(v.name, v.value, false))"
    " FROM (VALUES "
    + ", ".join(f"('{name}', '{value}')" for name, value in _SESSION.items())
    + ") v(name, value) JOIN pg_catalog.pg_settings s ON s.name = v.name"
)
_DRIVERS = {"psycopg": "connect_timeout", "psycopg2": "connect_timeout", "pg8000": "timeout"}
_CONNECT_TIMEOUT = 10  # seconds; libpq's default is to wait for ever


_sessions: weakref.WeakSet[PostgresSession] = weakref.WeakSet()


class PostgresSession:
    """See :class:`cleaner.dialects.base.Session`."""

    def __init__(self, source: URL | Engine, guard: Guard, lock_timeout: float) -> None:
        self.round_trips = 0
        self.mutex = threading.RLock()
        self._engine = _own_engine(source)
        self._guard = guard
        self._lock_timeout = lock_timeout
        self._connection: Connection | None = None
        self._finalizer: weakref.finalize[Any, Any] | None = None
        self._reconnecting = False  # a server that was there may be restarting: wait for it
        self._catalog: Catalog | None = None
        # Per program on this connection: the state that its next call is given.
        self._states: dict[str, tuple[str, str]] = {}
        _sessions.add(self)

    # -- the connection -------------------------------------------------------------------

    def _connect(self) -> Connection:
        if self._connection is not None:
            return self._connection
        deadline = time.monotonic() + (self._lock_timeout if self._reconnecting else 0)
        while True:
            try:
                self._connection = self._open()
                break
            except (OperationalError, InterfaceError, self.driver_error) as error:
                if time.monotonic() >= deadline:
                    raise failures.unreachable(self._engine.url, error) from error
                time.sleep(0.05)
            except SQLAlchemyError as error:
                raise failures.unreachable(self._engine.url, error) from error
        self._reconnecting = False
        self._finalizer = weakref.finalize(self, _release, self._connection)
        return self._connection

    def _open(self) -> Connection:
        connection = self._engine.connect()
        try:
            connection.detach()  # ours until closed: no place in a pool is taken
            # By the driver's cursor: SQLAlchemy would begin a transaction, and if interrupted
            # forget a connection that is detached without closing it.
            cursor = connection.connection.cursor()
            self.round_trips += 1
            cursor.execute(_SETUP)
            self._guard(cursor.fetchall()[0][0])
            cursor.close()
        except BaseException:
            _release(connection)
            raise
        return connection

    def _forget(self) -> None:
        if self._finalizer is not None:
            self._finalizer.detach()
        self._connection = self._finalizer = None
        self._states.clear()

    def close(self) -> None:
        connection = self._connection
        self._forget()
        if connection is not None:
            _release(connection)
        self._engine.dispose()

    def disown(self) -> None:
        """In a forked child: leave the connection to the parent, and begin anew."""
        connection = self._connection
        self.mutex = threading.RLock()  # a thread that is not here may have held it
        self._forget()
        if connection is None:
            return
        # Whatever the child says on the socket, if only that it closes it, the server would take
        # for the parent's word. So the child's end of it leads nowhere from now on.
        driver: Any = connection.connection.dbapi_connection
        nowhere = os.open(os.devnull, os.O_RDWR)
        os.dup2(nowhere, getattr(driver, "_usock", driver).fileno())  # _usock is pg8000's
        os.close(nowhere)
        _release(connection)

    def _execute(self, sql: str, in_transaction: bool = False) -> list[tuple[Any, ...]]:
        """Run one statement in a transaction of its own, on a new connection if the held one
        turns out to have died: none of ours leaves anything half done. With ``in_transaction``
        it belongs to one that was begun before, and is not run outside of that.

        SQLAlchemy makes the connection; its statement execution would double the client's share
        of a clean, so the driver's cursor is used. Raises the driver's own errors.
        """
        while True:
            held = self._connection is not None
            connection = self._connect().connection
            self.round_trips += 1
            try:
                cursor = connection.cursor()
                cursor.execute(sql)
                rows = list(cursor.fetchall()) if cursor.description else []
                cursor.close()
                return rows
            except self.driver_error as error:
                if not self._engine.dialect.is_disconnect(error, connection, None):
                    raise
                self._drop()
                if not held or in_transaction:
                    raise failures.unreachable(self._engine.url, error) from error
            except BaseException:
                # Ctrl-C, a timeout: the statement may still be running over there.
                self._drop()
                raise

    @property
    def driver_error(self) -> Any:
        """The root of the driver's errors."""
        error: Any = self._engine.dialect.loaded_dbapi.Error
        return error

    def _drop(self) -> None:
        """Let go of a connection that has died."""
        connection = self._connection
        self._forget()
        self._reconnecting = True
        if connection is not None:
            _release(connection)

    def connect(self) -> URL:
        self._connect()
        return self._engine.url

    # -- looking --------------------------------------------------------------------------

    @property
    def driver(self) -> str:
        driver: Any = self._engine.dialect.loaded_dbapi
        return f"{driver.__name__} {str(driver.__version__).split()[0]}"

    def health(self) -> Health:
        superuser, owner = self._execute(
            """SELECT pg_catalog.current_setting('is_superuser')::bool,
       pg_catalog.pg_has_role(d.datdba, 'USAGE')
  FROM pg_catalog.pg_database d WHERE d.datname = pg_catalog.current_database()"""
        )[0]
        rows = self._execute(
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
        user, unseen = self.catalog.database.user, sum(row[3] is None for row in rows)
        return Health(
            superuser=superuser,
            owner=owner,
            no_fast_path=self._no_functions(),
            idle=tuple(Blocker(*row) for row in rows if row[3] is not None),
            unseen=f"role {user} can't see what {unseen} sessions of other roles do: "
            f"GRANT pg_read_all_stats TO {quote(user)}"
            if unseen
            else "",
        )

    def look(self) -> Database:
        self._connect()
        version = self._engine.dialect.server_version_info or (14,)
        self._catalog = parse(self._execute(discovery(version))[0][0])
        return self._catalog.database

    def _no_functions(self) -> str:
        """Why this role can't make the functions that clean, with the remedy; empty if it can."""
        database = self.catalog.database
        if self.catalog.temporary:
            return ""
        return (
            f"role {database.user} may not create temporary functions: "
            f"GRANT TEMPORARY ON DATABASE {quote(database.name)} TO {quote(database.user)}"
        )

    @property
    def catalog(self) -> Catalog:
        if self._catalog is None:
            self.look()
        assert self._catalog is not None
        return self._catalog

    def remains(self, target: Target) -> Remains:
        facts = self.catalog.facts
        counted: dict[int, int | None] = {}
        visible = [table for table in target.tables if not facts[table.key].hidden]
        for start in range(0, len(visible), 100):
            part = visible[start : start + 100]
            counts = ", ".join(f"(SELECT count(*) FROM {facts[t.key].sql})" for t in part)
            row = self._execute(f"SELECT ARRAY[{counts}]")[0][0]
            counted.update(zip((table.key for table in part), row, strict=True))
        for table in target.tables:
            if facts[table.key].hidden:
                counted[table.key] = self._count_hidden(table)
        moved = [
            sequence.name
            for sequence in target.sequences
            if self._execute(
                "SELECT s.is_called OR s.last_value <> "
                f"{self.catalog.sequence_starts[sequence.key]} "
                f"FROM {qualified(sequence.schema, sequence.sequence)} s"
            )[0][0]
        ]
        return Remains(
            tuple(
                Survivor(table.name, counted[table.key], failures.why(facts[table.key], table))
                for table in target.tables
                if counted[table.key] != 0
            ),
            tuple(moved),
        )

    def _count_hidden(self, table: Relation) -> int | None:
        """Count rows that row-level security hides, which only the owner can; None otherwise."""
        facts = self.catalog.facts[table.key]
        sizes = " + ".join(f"pg_catalog.pg_relation_size({leaf})" for leaf in facts.leaves)
        if self._execute(f"SELECT {sizes}")[0][0] == 0:
            return 0
        if not facts.owned:
            return None
        name = qualified(table.schema, table.table)
        wait = int(self._lock_timeout * 1000)
        try:
            self._execute("BEGIN")
            self._execute(f"SET LOCAL lock_timeout = {wait}", True)
            self._execute(f"ALTER TABLE {name} NO FORCE ROW LEVEL SECURITY", True)
            count: int = self._execute(f"SELECT count(*) FROM {facts.sql}", True)[0][0]
            return count
        finally:
            self._execute("ROLLBACK")

    # -- cleaning -------------------------------------------------------------------------

    def compile(self, plan: Plan, target: Target) -> Program:
        if reason := self._no_functions():
            raise StrategyRefusedError(
                f"{target.database.name} can't be cleaned: {reason}.",
                "the privilege, which everybody has by default, was revoked",
                reason.partition(": ")[2],
            )
        return compile_plan(plan, target, self.catalog)

    def run(self, program: Program, wait: int) -> Done:
        try:
            outcome = self._call(program, wait)
        except self.driver_error as error:
            translated = failures.translate(error, program, self.catalog)
            if failures.may_be_stale(error):
                self._states.pop(program.name, None)
                raise Stale(translated) from error
            raise translated from error
        if outcome is None:
            self._states.pop(program.name, None)
            raise Stale
        self._states[program.name] = (outcome.newest, outcome.stamps)
        return Done(
            tables=tuple(program.tables[i - 1].name for i in outcome.held),
            truncated=tuple(program.tables[i - 1].name for i in outcome.truncated),
            sequences=tuple(program.sequences[i - 1].name for i in sorted(set(outcome.restarted))),
            refreshed=tuple(program.views[i - 1].name for i in dict.fromkeys(outcome.refreshed)),
        )

    def _call(self, program: Program, wait: int) -> Outcome | None:
        for _ in range(3):
            self._connect()
            if program.name not in self._states:
                self._execute(program.create)
                self._states[program.name] = ("0", "{}")
            try:
                rows = self._execute(program.call(wait, *self._states[program.name]))
            except KeyError:  # the connection was replaced, and its functions went with it
                continue
            except self.driver_error as error:
                if not failures.is_missing_function(error, program):
                    raise
                self._states.clear()
                continue
            return read(rows[0][0])
        raise ProvisionError(
            "The functions that clean the database vanish as soon as they are made.",
            "a pooler between us and the server hands each statement to another session",
            "url: the server's own address, or the pooler's port for session pooling",
        )

    # -- who is in the way ----------------------------------------------------------------

    def blockers(self, program: Program) -> tuple[Blocker, ...]:
        locks = "{" + ",".join(map(str, program.locks)) + "}"
        rows = self._execute(
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
   AND (l.locktype = 'advisory' AND (l.classid::int8 << 32 | l.objid::int8) = {ADVISORY_LOCK}
        OR l.locktype = 'relation' AND l.relation = ANY ('{locks}'::oid[])
        OR l.locktype = 'relation' AND l.mode = 'AccessExclusiveLock')
 ORDER BY l.pid, p.gid, l.mode = 'AccessShareLock'"""
        )
        # A reader stands in the way of TRUNCATE alone.
        writers = [row for row in rows if not row[-1]]
        chosen = rows if program.exclusive or not writers else writers
        return tuple(Blocker(*row[:6]) for row in chosen)

    def terminate(self, blockers: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
        ended = []
        for blocker in blockers:
            if blocker.pid is None or not (blocker.state or "").startswith("idle in transaction"):
                continue
            rows = self._execute(
                "SELECT pg_catalog.pg_terminate_backend(pid, 1000) FROM pg_catalog.pg_stat_activity"
                f" WHERE pid = {blocker.pid} AND state = {literal(blocker.state or '')}"
            )
            if rows and rows[0][0]:
                ended.append(blocker)
        return tuple(ended)


def _release(connection: Connection) -> None:
    """Close it, whatever state it is in: the server may be gone, or still at work for it."""
    with suppress(Exception):  # SQLAlchemy would roll back first, and a detached one it forgets
        connection.connection.dbapi_connection.close()  # type: ignore[union-attr]
    with suppress(SQLAlchemyError):
        connection.invalidate()
        connection.close()


def _after_fork() -> None:
    for session in list(_sessions):
        session.disown()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def _own_engine(source: URL | Engine) -> Engine:
    """An engine of our own, so that neither pool waits for the other.

    An Engine's way of connecting (creator, arguments, events) is kept by re-creating its pool.
    """
    if isinstance(source, Engine):
        if source.dialect.is_async:
            raise SettingsError(
                f"The engine's driver {source.dialect.driver} works with asyncio only.",
                "the application's own engine was passed",
                'Cleaner("postgresql+psycopg://...")',
            )
        return create_engine(
            source.url, pool=source.pool.recreate(), isolation_level="AUTOCOMMIT"
        ).execution_options(no_parameters=True)
    url = failures.with_driver(source)
    driver = url.get_driver_name()
    arguments: dict[str, object] = {}
    if driver in _DRIVERS and _DRIVERS[driver] not in url.query:
        arguments[_DRIVERS[driver]] = _CONNECT_TIMEOUT
    try:
        engine = create_engine(
            url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
        )
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"The driver {driver!r} of {url.render_as_string()} is not installed.",
            "cleaner does not bring drivers but by its extras",
            "pip install 'database-cleaner[postgresql]'",
        ) from error
    if engine.dialect.is_async:
        raise SettingsError(
            f"The driver {driver!r} works with asyncio only, which a Cleaner can't wait for.",
            "the application's own URL was given",
            f'url = "{url.set(drivername="postgresql+psycopg").render_as_string()}"',
        )
    return engine.execution_options(no_parameters=True)
