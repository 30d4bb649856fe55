"""A plan in the terms of MariaDB and MySQL: what to look at, and what to do with what is found.

A clean is a few messages (on MariaDB, that runs several statements as one; on MySQL each statement
is one), in this order:

1. take the database's lock, and find in one query (after a conflict in one for each) the tables
   that are not at their baseline, the counters that have moved, and whether the schema is still
   the one that this was written for;
2. if tables are to be truncated or altered, or there was a conflict before, wait for all who
   use the tables, while nothing is done, and keep others out until all is done;
3. in one transaction delete, and put captured rows back; look whether what was deleted without a
   check of foreign keys is referred to by a row that came meanwhile; commit;
4. truncate and alter, which can't be undone, and give the locks back.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property

from cleaner.dialects.mysql.catalog import Catalog, Facts, relation_sql
from cleaner.dialects.mysql.discovery import BASELINE, NAMES
from cleaner.dialects.mysql.flavour import MySQL
from cleaner.dialects.mysql.sql import exists, quote
from cleaner.dialects.strings import literal
from cleaner.graph import reachable
from cleaner.spi import Empty, ForeignKey, Plan, Relation, Restart, Sequence, Target, Truncate

MANY = 1 << 20  # bytes of a table that is rather truncated than deleted from
REPEATABLE = "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"
ALONE = "SET SESSION autocommit = 0"  # a transaction that does not unlock tables as it begins
UNLOCK = ("SET SESSION autocommit = 1", "START TRANSACTION", "COMMIT")  # by one that does
RELEASE = "DO RELEASE_ALL_LOCKS()"
_OFF, _ON = "SET SESSION foreign_key_checks = 0", "SET SESSION foreign_key_checks = 1"

Guards = tuple[ForeignKey, ...]


def lock_name(database: str) -> str:
    """The name of the lock that only one clean of the database can have; at most 64 characters."""
    return "cleaner_" + hashlib.sha256(database.encode()).hexdigest()[:40]


def _alias(kind: str, number: int) -> str:
    """LOCK TABLES takes no alias twice, and none that a table has as its name."""
    return f"{BASELINE}{kind}{number}"


@dataclass(frozen=True)
class Job:
    """One table to be emptied. ``unchecked``: with foreign keys off."""

    table: Relation
    facts: Facts
    truncate: bool
    may_truncate: bool
    unchecked: bool


@dataclass(frozen=True)
class Program:
    """The SQL of a plan. ``keys`` are the foreign keys onto the target's tables, and those of its
    captured tables.
    """

    catalog: Catalog
    jobs: tuple[Job, ...]
    sequences: tuple[Sequence, ...]
    keys: tuple[ForeignKey, ...]
    outside: frozenset[ForeignKey]
    flavour: MySQL

    @cached_property
    def tables(self) -> tuple[Relation, ...]:
        """All tables that are to be emptied."""
        return tuple(job.table for job in self.jobs)

    @cached_property
    def looked_at(self) -> tuple[Job, ...]:
        """The jobs that depend on what is found; parents first, as most writers come by them."""
        return tuple(job for job in reversed(self.jobs) if not job.truncate)

    @cached_property
    def real_sequences(self) -> tuple[Sequence, ...]:
        """Those that are no table's AUTO_INCREMENT."""
        return tuple(sequence for sequence in self.sequences if sequence.key > 0)

    @cached_property
    def counters(self) -> dict[str, Sequence]:
        """By the names of their tables: the AUTO_INCREMENTs that are to be put back."""
        relation = self.catalog.database.relation
        own = [sequence for sequence in self.sequences if sequence.key < 0]
        return {relation(-sequence.key).table: sequence for sequence in own}

    @cached_property
    def referring(self) -> dict[int, tuple[ForeignKey, ...]]:
        """By table: the foreign keys of others onto it."""
        found: dict[int, list[ForeignKey]] = {}
        for key in self.keys:
            if key.child != key.parent:
                found.setdefault(key.parent, []).append(key)
        return {parent: tuple(keys) for parent, keys in found.items()}

    def reached(self, keys: Iterable[int]) -> set[int]:
        """Those tables, and all that refer to one of them, directly or by others."""
        children = {
            parent: [key.child for key in referring] for parent, referring in self.referring.items()
        }
        return reachable(keys, children)

    # -- 1. look --------------------------------------------------------------------------

    def look(self, wait: int, newest: int, looking: Iterable[str]) -> list[str]:
        """Take the lock and look, in ``wait`` milliseconds if others are in the way; gives the lock
        back where there is nothing to do. The answer: had the lock, gave it back, the newest DDL,
        the tables' names with counters and sizes, and a digit for each table and sequence that was
        looked at ``looking`` so.
        """
        name = literal(lock_name(self.catalog.database.name))
        waited = "(TIMESTAMPDIFF(MICROSECOND, @cleaner_began, SYSDATE(6)) + 500000) DIV 1000000"
        seconds, least = self.flavour.seconds(wait), self.flavour.seconds(0)
        left = f"IF(@cleaner_lock, GREATEST({seconds} - {waited}, {least}), {least})"
        return [
            f"SET @cleaner_began = SYSDATE(6), @cleaner_lock = GET_LOCK({name}, {wait / 1000:.3f})",
            f"SET @cleaner_left = {left}",
            "SET SESSION innodb_lock_wait_timeout = @cleaner_left,"
            " lock_wait_timeout = @cleaner_left",
            *looking,
            f"SET @cleaner_idle = IF(@cleaner_newest = {newest} AND NOT LOCATE('1', @cleaner_held)"
            f" AND @cleaner_tables = '{self.catalog.names}' AND {int(self.can_be_idle)},"
            f" RELEASE_LOCK({name}), 0)",
            "SELECT @cleaner_lock, @cleaner_idle, @cleaner_newest, @cleaner_tables, @cleaner_held",
        ]

    @cached_property
    def can_be_idle(self) -> bool:
        """Whether there is nothing to do where nothing was found."""
        return len(self.looked_at) == len(self.jobs) and not self.catalog.positions

    @cached_property
    def _looks(self) -> list[str]:
        looks = [job.facts.looks for job in self.looked_at]
        return looks + [self._has_moved(sequence) for sequence in self.real_sequences]

    @cached_property
    def at_once(self) -> str:
        """Look in one statement, which locks what it has found while it waits for others."""
        return self._look(self._looks)

    @cached_property
    def prepared(self) -> list[str]:
        """To prepare :attr:`at_once`, since parsing it is a third of its time; to execute it."""
        return [f"PREPARE cleaner_look FROM {literal(self.at_once)}", "EXECUTE cleaner_look"]

    @property
    def apart(self) -> Iterator[str]:
        """Look at one after the other, locking nothing meanwhile; what is captured is not compared,
        but said to have changed.
        """
        found = []
        for number, look in enumerate(self._looks):
            captured = number < len(self.looked_at) and self.looked_at[number].facts.captured
            if captured:  # to compare the rows takes many locks: it is restored anyway
                found.append("1")
            else:
                found.append(f"@cleaner_{number}")
                yield f"SET @cleaner_{number} = {look}"
        yield self._look(found)

    def _look(self, looks: list[str]) -> str:
        held = f"CONCAT(\n    {f',{chr(10)}    '.join(looks)})" if looks else "''"
        big = f"DATA_LENGTH >= {MANY}"
        return (
            f"SELECT {self.flavour.newest},\n  (SELECT CONCAT({NAMES}, COALESCE(GROUP_CONCAT("
            f"IF(AUTO_INCREMENT > 1 OR {big}, CONCAT(' ', HEX(TABLE_NAME), ':',"
            f" COALESCE(AUTO_INCREMENT, 1), ':', {big}), NULL) SEPARATOR ''), ''))"
            f" FROM information_schema.TABLES WHERE TABLE_SCHEMA = DATABASE()),\n  {held}\n"
            "  INTO @cleaner_newest, @cleaner_tables, @cleaner_held"
        )

    def _has_moved(self, sequence: Sequence) -> str:
        position = self.catalog.positions.get(sequence.key)
        at = "start_value" if position is None else str(position)
        name = quote(sequence.sequence)
        return f"(SELECT next_not_cached_value <> {at} OR cycle_count <> 0 FROM {name})"

    # -- 2. wait --------------------------------------------------------------------------

    def lock_tables(self, jobs: Iterable[Job], others: Iterable[int], keys: Guards) -> str:
        """Wait for those who use the tables, and keep others out. What is then done may use the
        tables of ``jobs``, those with the keys ``others``, and :meth:`check` the ``keys``; no more.
        """
        jobs = [*jobs]
        written = {job.facts.sql for job in jobs}
        written |= {relation_sql(self.catalog, key) for key in others}
        restored = {job.table.key for job in jobs if job.facts.captured}
        written |= {
            quote(sequence.sequence)  # an INSERT opens those of its defaults
            for sequence in self.catalog.database.sequences
            if restored.intersection(sequence.users)
        }
        locks = [f"{name} WRITE" for name in sorted(written)]
        locks += [f"{job.facts.captured.copy} READ" for job in jobs if job.facts.captured]
        for number, key in enumerate(keys):
            child, parent = self._ends(number, key)
            locks += [f"{child} READ", f"{parent} READ"]
        return "LOCK TABLES " + ", ".join(locks)

    # -- 3. in one transaction ------------------------------------------------------------

    def begun(self, jobs: list[Job]) -> Iterator[str]:
        """Begin one in which the tables are emptied though others may use them meanwhile."""
        yield REPEATABLE  # whoever inserts into what was deleted from waits for us
        yield "START TRANSACTION"
        # Parents first, as most writers come by them: who waits for us then holds nothing that
        # we want. By no index, in which rows would lie in another order than the one of DELETE.
        for job in reversed(jobs if len(jobs) > 1 else []):
            yield f"SELECT COUNT(*) INTO @cleaner_rows FROM {job.facts.sql} USE INDEX () FOR UPDATE"

    def emptied(self, jobs: Iterable[Job]) -> Iterator[str]:
        """Empty or restore the tables; foreign keys are checked after it again."""
        unchecked = False
        for job in jobs:
            off = job.unchecked or job.facts.captured is not None
            if off != unchecked:
                yield _OFF if off else _ON
                unchecked = off
            if job.facts.captured:
                yield from job.facts.captured.restore(job.facts.sql)
            else:
                yield f"DELETE FROM {job.facts.sql}"
                if job.facts.versioned:
                    yield f"DELETE HISTORY FROM {job.facts.sql}"
        if unchecked:
            yield _ON

    def unguarded(self, jobs: Iterable[Job]) -> Guards:
        """The foreign keys that the server did not see to when those tables were emptied."""
        changed, restored = set(), set()
        for job in jobs:
            if job.facts.captured:
                restored.add(job.table.key)
            if job.unchecked or job.facts.captured:
                changed.add(job.table.key)
        return tuple(k for k in self.keys if k.parent in changed or k.child in restored)

    def check(self, keys: Guards, unreferred: Guards = (), empty: Iterable[int] = ()) -> str:
        """A query: a digit for each of the ``keys``, 1 if a row refers to one that is not there,
        then one for each of ``unreferred``, 1 if any row refers by it, then one for each of the
        tables that should be ``empty``, 1 if it is not.
        """
        looks = [self._orphan(number, key) for number, key in enumerate(keys)]
        for key in unreferred:
            given = " AND ".join(f"{quote(column)} IS NOT NULL" for column in key.columns)
            child = relation_sql(self.catalog, key.child)
            looks.append(f"EXISTS (SELECT 1 FROM {child} WHERE {given})")
        looks += [exists(relation_sql(self.catalog, table)) for table in empty]
        return f"SELECT CONCAT({', '.join(looks)})"

    def _ends(self, number: int, key: ForeignKey) -> tuple[str, str]:
        """The tables that refer by it and are referred to, by the names that they have here."""
        child, parent = (relation_sql(self.catalog, end) for end in (key.child, key.parent))
        return f"{child} {_alias('c', number)}", f"{parent} {_alias('p', number)}"

    def _orphan(self, number: int, key: ForeignKey) -> str:
        child, parent = self._ends(number, key)
        c, p = _alias("c", number), _alias("p", number)
        pairs = list(zip(key.columns, key.referred, strict=True))
        joined = " AND ".join(f"{c}.{quote(column)} = {p}.{quote(to)}" for column, to in pairs)
        given = " AND ".join(f"{c}.{quote(column)} IS NOT NULL" for column, _ in pairs)
        return (
            f"EXISTS (SELECT 1 FROM {child} LEFT JOIN {parent} ON {joined}"
            f" WHERE {given} AND {p}.{quote(pairs[0][1])} IS NULL LOCK IN SHARE MODE)"
        )

    # -- 4. what can't be undone ----------------------------------------------------------

    def truncations(self, names: Iterable[str]) -> Iterator[str]:
        """Truncate the tables, whoever refers to them."""
        truncations = [f"TRUNCATE TABLE {name}" for name in names]
        if truncations:
            yield from (_OFF, *truncations, _ON)

    def put_back(self, table: str, position: int) -> str:
        """Set the AUTO_INCREMENT of a table."""
        return f"ALTER TABLE {quote(table)} AUTO_INCREMENT = {position}"

    def restart(self, sequence: Sequence) -> str:
        """Set a sequence to its START or captured position."""
        position = self.catalog.positions.get(sequence.key)
        to = "" if position is None else f" WITH {position}"
        return f"ALTER SEQUENCE {quote(sequence.sequence)} RESTART{to}"

    # -- shown ----------------------------------------------------------------------------

    def __str__(self) -> str:
        lines = ["-- 1. one clean at a time; which tables hold rows, which counters have moved"]
        lines += self.look(0, self.catalog.newest, [self.at_once])
        rows = [job for job in self.jobs if not job.truncate and job.facts.transactional]
        keys = self.unguarded(rows)
        lines.append("-- 2. alone with the tables, if 4 has something to do, or after a conflict")
        lines += [self.lock_tables(self.jobs, (), keys), ALONE] if self.jobs else []
        if rows:
            lines += ["-- or else with others", *self.begun(rows)]
            lines += ["-- 3. of these, what was found to be needed", *self.emptied(rows)]
            lines += [self.check(keys)] if keys else []
            lines.append("COMMIT")
        lines.append("-- 4. of these, what was found to be needed; each commits by itself")
        lasting = [
            job.facts.sql
            for job in self.jobs
            if job.truncate or not job.facts.transactional or job.may_truncate
        ]
        lines += self.truncations(lasting)
        lines += [self.put_back(table, self.position(table)) for table in self.counters]
        lines += [*UNLOCK, *(self.restart(sequence) for sequence in self.real_sequences), RELEASE]
        return "\n".join(line if line.startswith("--") else f"{line};" for line in lines)

    def position(self, table: str) -> int:
        """Where the table's AUTO_INCREMENT belongs."""
        sequence = self.counters.get(table)
        return self.catalog.positions.get(sequence.key, 1) if sequence else 1


def compile_plan(plan: Plan, target: Target, catalog: Catalog, flavour: MySQL) -> Program:
    """What ``plan`` takes."""
    cyclic = {table.key for group in target.groups if len(group) > 1 for table in group}
    cyclic |= {key.child for key in target.database.foreign_keys if key.child == key.parent}
    cyclic |= {key.parent for key in target.outside}
    jobs: list[Job] = []
    sequences: list[Sequence] = []
    for step in plan.steps:
        if isinstance(step, Restart):
            sequences += step.sequences
        elif isinstance(step, Empty):
            for table in (table for group in step.groups for table in group):
                facts = catalog.facts[table.key]
                may = step.truncate and not table.untruncatable and not facts.captured
                free = step.replica or table.key in cyclic
                jobs.append(Job(table, facts, bool(may and table.undeletable), may, free))
        elif isinstance(step, Truncate):
            for table in step.tables:
                facts = catalog.facts[table.key]
                jobs.append(Job(table, facts, facts.captured is None, False, True))
    chosen = {table.key for table in target.tables}
    return Program(
        catalog=catalog,
        jobs=tuple(jobs),
        sequences=tuple(sequences),
        keys=tuple(
            key
            for key in target.database.foreign_keys
            if key.parent in chosen or (key.child in chosen and catalog.facts[key.child].captured)
        ),
        outside=frozenset(target.outside),
        flavour=flavour,
    )
