"""Making what the database holds its baseline, and forgetting it again.

To make a table commits whatever was begun, so the copies come first, under numbers that nobody
knows yet; they count from the moment when one transaction has written them into the list.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from cleaner.dialects.mysql.baseline import listed
from cleaner.dialects.mysql.catalog import Catalog
from cleaner.dialects.mysql.cleaning import let_go
from cleaner.dialects.mysql.connection import MySQLConnection
from cleaner.dialects.mysql.discovery import BASELINE
from cleaner.dialects.mysql.program import REPEATABLE, lock_name
from cleaner.dialects.mysql.sql import exists, quote
from cleaner.dialects.strings import literal
from cleaner.errors import StrategyRefusedError
from cleaner.retry import Conflict, LockWait
from cleaner.spi import Relation, Sequence, Target

_BOOK = f"""CREATE TABLE IF NOT EXISTS {BASELINE} (
    kind char(1) NOT NULL, name varchar(200) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL,
    copy varchar(64) NOT NULL, number bigint unsigned NOT NULL, PRIMARY KEY (kind, name)
) ENGINE = InnoDB COMMENT 'rows that cleaner puts back: cleaner release removes them'"""
_OURS = f"""SELECT TABLE_NAME FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()
   AND LEFT(TABLE_NAME, {len(BASELINE)}) = {literal(BASELINE)} ORDER BY TABLE_NAME"""


def capture(
    connection: MySQLConnection,
    catalog: Catalog,
    target: Target,
    tables: Iterable[Relation],
    wait: int,
) -> None:
    """Make the rows of ``tables`` and the positions of their sequences the baseline; all of the
    target's sequences where all of its tables are meant. All or nothing.

    Lets the driver's errors through; ``wait`` bounds each wait for a lock, in milliseconds. Raises
    StrategyRefusedError where rows could not be put back.
    """
    with _alone(connection, catalog, wait):
        _Capture(connection, catalog, target, tuple(tables)).run()


def release(connection: MySQLConnection, catalog: Catalog, wait: int) -> None:
    """Remove every captured row. Harmless where there is none."""
    if not catalog.has_baseline:
        return
    with _alone(connection, catalog, wait):
        # The list first: without it the copies count for nothing.
        _drop(connection, [name for (name,) in connection.execute(_OURS, True)])


@contextmanager
def _alone(connection: MySQLConnection, catalog: Catalog, wait: int) -> Iterator[None]:
    """Hold the lock of the database, and let go of all in the end."""
    seconds = connection.flavour.seconds(wait)
    name = literal(lock_name(catalog.database.name))
    connection.execute(
        f"SET SESSION innodb_lock_wait_timeout = {max(1, seconds)},"
        f" lock_wait_timeout = {max(1, seconds)}"
    )
    if connection.execute(f"SELECT GET_LOCK({name}, {wait / 1000:.3f})", True)[0][0] != 1:
        raise LockWait("a clean of the database is running")
    try:
        yield
    finally:
        let_go(connection)


def _drop(connection: MySQLConnection, names: Iterable[str]) -> None:
    for name in sorted(names):
        connection.execute(f"DROP TABLE IF EXISTS {quote(name)}", True)


class _Capture:
    def __init__(
        self,
        connection: MySQLConnection,
        catalog: Catalog,
        target: Target,
        tables: tuple[Relation, ...],
    ) -> None:
        self.connection, self.catalog, self.target = connection, catalog, target
        self.tables = tables
        self.sequences = target.sequences_of(tables)

    def execute(self, sql: str) -> list[tuple[object, ...]]:
        return self.connection.execute(sql, True)

    def run(self) -> None:
        ours = {str(name) for (name,) in self.execute(_OURS)}
        if (BASELINE in ours) != self.catalog.has_baseline:
            raise Conflict("another capture() or release() has just ended")
        filled = self._filled()
        self._refuse(filled)
        positions = {s: at for s in self.sequences if (at := self._position(s)) is not None}
        if not (filled or positions or ours):
            return  # that is the baseline of a database where nothing was captured
        number = 1 + max((int(name[len(BASELINE) :] or 0) for name in ours), default=0)
        copies = {table: f"{BASELINE}{number + i}" for i, table in enumerate(filled)}
        try:
            self.execute(_BOOK)
            for table, copy in copies.items():
                facts = self.catalog.facts[table.key]
                self.execute(f"CREATE TABLE {quote(copy)} LIKE {facts.sql}")
            self._copy(copies, positions)
        except BaseException:
            unwanted = [*copies.values(), *([] if BASELINE in ours else [BASELINE])]
            self.execute("ROLLBACK")
            _drop(self.connection, unwanted)
            raise
        kept = {copy for _, copy in self._book()}
        _drop(self.connection, ours - kept - {BASELINE})

    def _book(self) -> list[tuple[str, str]]:
        rows = self.execute(f"SELECT name, copy FROM {BASELINE} WHERE kind = 't'")
        return [(str(name), str(copy)) for name, copy in rows]

    def _filled(self) -> list[Relation]:
        facts = self.catalog.facts
        if not self.tables:
            return []
        looks = ", ".join(exists(facts[table.key].sql) for table in self.tables)
        answer = self.execute(f"SELECT CONCAT({looks})")[0][0]
        flags = answer.decode() if isinstance(answer, (bytes, bytearray)) else str(answer)
        return [table for table, flag in zip(self.tables, flags, strict=True) if flag == "1"]

    def _refuse(self, filled: list[Relation]) -> None:
        for table in filled:
            if reason := self.catalog.facts[table.key].unrestorable:
                raise StrategyRefusedError(
                    f"The rows of {table.name} can't be captured: {reason}.",
                    "it holds rows, which a clean would have to put back",
                    f'exclude = ["{table.name}"], or empty it first',
                )

    def _position(self, sequence: Sequence) -> int | None:
        """The next value that it will give, None where that is its first."""
        if sequence.key < 0:
            table = self.catalog.database.relation(-sequence.key).table
            rows = self.execute(
                "SELECT AUTO_INCREMENT FROM information_schema.TABLES WHERE"
                f" TABLE_SCHEMA = DATABASE() AND TABLE_NAME = {literal(table)}"
            )
            at = int(str(rows[0][0] or 1))
            return at if at != 1 else None
        name = quote(sequence.sequence)
        state = f"SELECT next_not_cached_value, start_value, cycle_count FROM {name}"
        reserved, start, cycles = self.execute(state)[0]
        if reserved == start and not cycles:
            return None
        # The values up to that one are in the server's memory, where only the next can be had.
        at = int(str(self.execute(f"SELECT NEXTVAL({name})")[0][0]))
        self.execute(f"ALTER SEQUENCE {name} RESTART WITH {at}")
        return at

    def _copy(self, copies: dict[Relation, str], positions: dict[Sequence, int]) -> None:
        """Fill the copies and the list, in one transaction."""
        self.execute(REPEATABLE)
        self.execute("START TRANSACTION")
        # One statement for all: nobody writes to one of them between the looks at two.
        for table in self.tables:
            name = literal(table.name)
            self.execute(f"DELETE FROM {BASELINE} WHERE kind = 't' AND name = {name}")
        for sequence in self.sequences:
            name = literal(sequence.name)
            self.execute(f"DELETE FROM {BASELINE} WHERE kind = 's' AND name = {name}")
        for table, copy in copies.items():
            facts = self.catalog.facts[table.key]
            names = listed(facts.columns)
            self.execute(
                f"INSERT INTO {quote(copy)} ({names})"
                f" SELECT {names} FROM {facts.sql} LOCK IN SHARE MODE"
            )
            rows = self.execute(f"SELECT COUNT(*) FROM {quote(copy)}")[0][0]
            self._enter("t", table.name, copy, int(str(rows)))
        for sequence, at in positions.items():
            self._enter("s", sequence.name, "", at)
        self._refuse_orphans({table.key for table in copies})
        self.execute("COMMIT")

    def _enter(self, kind: str, name: str, copy: str, number: int) -> None:
        values = f"{literal(kind)}, {literal(name)}, {literal(copy)}, {number}"
        self.execute(f"INSERT INTO {BASELINE} VALUES ({values})")

    def _refuse_orphans(self, captured: set[int]) -> None:
        """Captured rows must not refer to rows that a clean deletes."""
        chosen = {table.key for table in self.tables}
        relation = self.catalog.database.relation
        targeted = {table.key for table in self.target.tables}
        for key in self.catalog.database.foreign_keys:
            parent = relation(key.parent)
            kept = key.parent in captured or (parent.captured > 0 and key.parent not in chosen)
            if key.child not in captured or key.parent not in targeted or kept:
                continue
            child = self.catalog.facts[key.child].sql
            given = " AND ".join(f"{quote(column)} IS NOT NULL" for column in key.columns)
            if self.execute(f"SELECT EXISTS (SELECT 1 FROM {child} WHERE {given})")[0][0]:
                raise StrategyRefusedError(
                    f"The rows of {relation(key.child).name} can't be captured: they refer to "
                    f"{parent.name}, whose baseline is no rows.",
                    "only some of the tables were named",
                    f'capture(tables=["{relation(key.child).name}", "{parent.name}"])',
                )
