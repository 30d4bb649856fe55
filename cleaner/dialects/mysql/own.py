"""A MariaDB or MySQL database of one process's own, and turns at one that several share.

Neither can clone a database. So each process has one that is called like the configured one and
its worker, ``app_test_gw0``, which is built once and kept for the next run. Which there are is in
a database ``app_test_control``; who lives is told by GET_LOCK, which ends with the connection.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count

from sqlalchemy import URL, Engine

from cleaner.dialects.base import Guard, Prepared
from cleaner.dialects.mysql.activity import others
from cleaner.dialects.mysql.connection import MySQLConnection, number
from cleaner.dialects.mysql.sql import account, quote
from cleaner.dialects.strings import literal
from cleaner.errors import BlockedError, CleanerError, PoolRefusedError, ProvisionError

_DENIED = (1044, 1045, 1142)
_PATIENCE = 1800.0  # seconds, in which the test of another process should have ended


class OwnSchema:
    """See :class:`cleaner.dialects.base.OwnDatabase`. Raises PoolRefusedError where the user may
    not create databases.
    """

    template = ""

    def __init__(self, url: URL, worker: str, guard: Guard, lock_timeout: float) -> None:
        self.base = url.database or ""
        guard(self.base)
        anywhere = url.set(database="information_schema")  # which everybody may use
        self._session = MySQLConnection(anywhere, lambda name: None, lock_timeout)
        self._control = f"{self.base}_control"
        try:
            self._session.connect()
            self._make_control()
            self.name = self._take(worker)
        except BaseException:
            self._session.close()
            raise
        self.source: URL | Engine = url.set(database=self.name)

    def _make_control(self) -> None:
        try:
            self._session.execute(f"CREATE DATABASE IF NOT EXISTS {quote(self._control)}")
            self._session.execute(
                f"CREATE TABLE IF NOT EXISTS {self._made} (name varchar(64) PRIMARY KEY,"
                " fingerprint varchar(255), shape varchar(255)) ENGINE = InnoDB"
            )
        except self._session.driver_error as error:
            if number(error) not in _DENIED:
                raise
            pattern = self.base.replace("_", "\\_")
            user = account(self._session.user)
            raise PoolRefusedError(
                f"User {user} may not create databases beside {self.base}.",
                "each worker needs a database of its own",
                f"GRANT ALL ON `{pattern}\\_%`.* TO {user}",
            ) from error

    @property
    def _made(self) -> str:
        return f"{quote(self._control)}.made"

    def _take(self, worker: str) -> str:
        """The name of a database that is ours from now on."""
        for attempt in count(1):
            name = f"{self.base}_{worker if attempt == 1 else f'{worker}_{attempt}'}"
            lock = literal(_lock("own", name))
            if not self._session.execute(f"SELECT GET_LOCK({lock}, 0)")[0][0]:
                continue
            found, ours = self._session.execute(
                "SELECT (SELECT COUNT(*) FROM information_schema.SCHEMATA"
                f" WHERE SCHEMA_NAME = {literal(name)}),"
                f" (SELECT COUNT(*) FROM {self._made} WHERE name = {literal(name)})"
            )[0]
            if ours or not found:
                self._lock = lock
                return name
            self._session.execute(f"SELECT RELEASE_LOCK({lock})")  # somebody else's database
        raise AssertionError

    def prepare(self, work: Prepared) -> None:
        told, name = literal(work.fingerprint(self._session.server)), literal(self.name)
        known = self._session.execute(
            f"SELECT shape FROM {self._made} JOIN information_schema.SCHEMATA"
            f" ON SCHEMA_NAME = name WHERE name = {name} AND fingerprint = {told}"
        )
        if known:
            with suppress(CleanerError):
                if work.intact(self.source, self.name) == known[0][0]:
                    return
        # The intent first: what a killed process leaves is known to be ours, and not to be whole.
        statements = (
            f"REPLACE INTO {self._made} VALUES ({name}, NULL, NULL)",
            f"DROP DATABASE IF EXISTS {quote(self.name)}",
            f"CREATE DATABASE {quote(self.name)}{self._character_set()}",
        )
        self.check()
        for statement in statements:
            self._session.execute(statement, True)  # not on another connection, without the lock
        work.build(self.source, self.name)
        shape = literal(work.intact(self.source, self.name))
        self.check()
        self._session.execute(f"REPLACE INTO {self._made} VALUES ({name}, {told}, {shape})")

    def check(self) -> None:
        held = f"SELECT IS_USED_LOCK({self._lock}) <=> CONNECTION_ID()"
        if not self._session.execute(held)[0][0]:
            raise ProvisionError(
                f"The database {self.name} was given to another worker.",
                "the connection that showed that this one lives was lost",
                "run the tests again; if it happens again, look at the server's log",
            )

    def _character_set(self) -> str:
        """That of the configured database, if there is one."""
        rows = self._session.execute(
            "SELECT DEFAULT_CHARACTER_SET_NAME, DEFAULT_COLLATION_NAME"
            f" FROM information_schema.SCHEMATA WHERE SCHEMA_NAME = {literal(self.base)}"
        )
        return f" CHARACTER SET {rows[0][0]} COLLATE {rows[0][1]}" if rows else ""

    def close(self) -> None:
        self._session.close()  # and with it goes the lock


class SchemaTurns:
    """See :class:`cleaner.dialects.base.Turns`."""

    def __init__(self, url: URL, lock_timeout: float, patience: float = _PATIENCE) -> None:
        self._session = MySQLConnection(url, lambda name: None, lock_timeout)
        self._database, self._patience = url.database or "", patience

    @contextmanager
    def turn(self) -> Iterator[None]:
        lock = literal(_lock("turns", self._database))
        if not self._session.execute(f"SELECT GET_LOCK({lock}, {self._patience})")[0][0]:
            holder = self._session.execute(f"SELECT IS_USED_LOCK({lock})")[0][0]
            sessions = others(self._session.execute, self._session.driver_error)
            holders = tuple(session for session in sessions if session.pid == holder)
            raise BlockedError.for_turn(self._database, self._patience, holders)
        try:
            yield
        finally:
            kept = self._session.execute(f"SELECT RELEASE_LOCK({lock})")[0][0]
        if kept != 1:
            raise ProvisionError.lost_turn()

    def close(self) -> None:
        self._session.close()


def _lock(kind: str, name: str) -> str:
    return f"cleaner {kind} {hashlib.sha256(name.encode()).hexdigest()[:32]}"
