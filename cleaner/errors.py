"""Every error that cleaner raises on purpose, and every warning.

    CleanerError
     ├── SettingsError              a setting is unknown, misspelt or of the wrong type
     │    └── UnknownStrategyError  no installed plug-in has that name
     ├── UnsafeDatabaseError        the live connection is not to a test database
     ├── StrategyRefusedError       the strategy can't serve this target; says which can
     ├── ExcludedTableError         a CASCADE or a delete would reach a table outside the target
     ├── BlockedError               another session holds a lock past ``lock_timeout``
     ├── RetriesExhaustedError      deadlocks or serialization failures, ``retries`` times
     ├── NotCleanError              rows or sequences are not at their baseline
     ├── SchemaChangedError         the schema keeps changing, or has lost what was captured
     └── ProvisionError             a server or a database could not be provided
          └── PoolRefusedError      the role may not create databases, and none were provided

    CleanerWarning
     ├── SchemaWarning              a test changed the schema of its database
     └── ConnectionBudgetWarning    the workers may open more connections than the server grants

Each message has three parts: what happened, the likely cause, and the line to write. All are
picklable, since pytest-xdist sends them from a worker to its controller.
"""

from __future__ import annotations

from dataclasses import dataclass

from cleaner.difference import Diff, counted

__all__ = [
    "BlockedError",
    "Blocker",
    "CleanerError",
    "CleanerWarning",
    "ConnectionBudgetWarning",
    "ExcludedTableError",
    "NotCleanError",
    "PoolRefusedError",
    "ProvisionError",
    "RetriesExhaustedError",
    "SchemaChangedError",
    "SchemaWarning",
    "SettingsError",
    "StrategyRefusedError",
    "Survivor",
    "UnknownStrategyError",
    "UnsafeDatabaseError",
]


class CleanerError(Exception):
    """The root: ``what`` happened, the likely ``cause``, and the ``remedy``, a line to write."""

    def __init__(self, what: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(what, cause, remedy)
        self.what = what
        self.cause = cause
        self.remedy = remedy

    def __str__(self) -> str:
        parts = [self.what]
        if self.cause:
            parts.append(f"Likely cause: {self.cause}")
        if self.remedy:
            parts.append(f"Remedy: {self.remedy}")
        return "\n".join(parts)


class SettingsError(CleanerError):
    """A setting is unknown, misspelt, of the wrong type, or contradicts another."""


class UnknownStrategyError(SettingsError):
    """No installed plug-in answers to that name; the message lists those that do."""


class UnsafeDatabaseError(CleanerError):
    """The live connection is to a database that the guard does not know as a test database."""


class StrategyRefusedError(CleanerError):
    """The strategy can't keep its promise on this target; the remedy names one that can."""


class ExcludedTableError(CleanerError):
    """A TRUNCATE ... CASCADE or a DELETE would change a table outside the target, or captured rows
    lack what they refer to in one.
    """

    @classmethod
    def referring(cls, child: str, parent: str, key: str, on_delete: str) -> ExcludedTableError:
        """The error for rows that are to be kept, and refer to rows that are not."""
        return cls(
            f"Rows of {child}, which is outside the target, refer to {parent} "
            f"(foreign key {key}, ON DELETE {on_delete.upper()}).",
            f"{child} is excluded, or the metadata does not know it",
            f'exclude = ["{parent}"] to keep both, or clean both',
        )

    @classmethod
    def lacking(cls, child: str, parent: str, key: str) -> ExcludedTableError:
        """The error for captured rows that refer to rows that are to be kept, and are gone."""
        return cls(
            f"Captured rows of {child} can't be put back: they refer to rows of {parent} "
            f"that are gone (foreign key {key}).",
            f"{parent} is outside the target, and they were deleted, or missing at capture()",
            f"put the rows of {parent} back, or clean both and capture() again",
        )


@dataclass(frozen=True)
class Blocker:
    """A session that holds what the clean waits for.

    ``age`` is the number of seconds since its transaction began, None for a prepared transaction.
    """

    pid: int | None
    user: str | None
    application: str | None
    state: str | None
    age: float | None
    query: str | None

    def __str__(self) -> str:
        if self.pid is None:
            return f"prepared transaction {self.query!r} of {self.user}"
        age = "" if self.age is None else f" for {self.age:.1f} s"
        return (
            f"pid {self.pid} ({self.user}, {self.application or 'no application_name'}), "
            f"{self.state}{age}, last query: {' '.join((self.query or '').split())}"
        )


class BlockedError(CleanerError):
    """Another session held a lock for longer than ``lock_timeout``; ``blockers`` says who."""

    def __init__(
        self, what: str, cause: str = "", remedy: str = "", blockers: tuple[Blocker, ...] = ()
    ) -> None:
        super().__init__(what, cause, remedy)
        self.blockers = blockers

    @classmethod
    def waiting(cls, work: str, seconds: float, blockers: tuple[Blocker, ...]) -> BlockedError:
        """The error of ``work`` that has waited so long for those."""
        idle = any((blocker.state or "").startswith("idle in transaction") for blocker in blockers)
        endable = any(
            blocker.state in ("idle in transaction", "idle in transaction (aborted)")
            for blocker in blockers
        )
        prepared = [b.query.replace("'", "''") for b in blockers if b.pid is None and b.query]
        remedies = [f"ROLLBACK PREPARED '{name}'" for name in prepared]
        if endable:
            remedies.append(
                'commit, roll back or close it before clean(), or on_blocked = "terminate"'
            )
        elif not prepared:
            remedies.append("commit, roll back or close it before clean()")
        return cls(
            f"{work} waited {seconds:g} s for a lock, held by "
            + ("; ".join(map(str, blockers)) or "a session that has gone since, or can't be seen"),
            "a session of the test, or of the application, was left open in a transaction"
            if idle
            else "another session is at work on the same tables",
            "; ".join(remedies),
            blockers,
        )

    @classmethod
    def for_turn(cls, database: str, seconds: float, holders: tuple[Blocker, ...]) -> BlockedError:
        """The error of a test process that has waited so long for its turn at a shared one."""
        return cls(
            f"Waited {seconds:g} s for a turn at {database}, held by "
            f"{'; '.join(map(str, holders)) or 'a session that has gone since'}.",
            "a test of another process, or of a run that was forgotten, does not end",
            "end it; where each worker has a database of its own none waits",
            holders,
        )


class RetriesExhaustedError(CleanerError):
    """Every one of the ``retries`` attempts met a deadlock or a serialization failure."""


@dataclass(frozen=True)
class Survivor:
    """A table that still holds ``rows`` rows (None: they can't be counted), and why.

    Of a table whose ``baseline`` has rows, they are those that were added to it, ``changed`` and
    ``gone`` the others.
    """

    table: str
    rows: int | None
    why: str = ""
    changed: int = 0
    gone: int = 0
    baseline: int = 0

    def __str__(self) -> str:
        held = counted(self.rows, self.changed, self.gone, self.baseline)
        return f"{self.table}: {held}" + (f" ({self.why})" if self.why else "")


class NotCleanError(CleanerError):
    """Rows or sequences are not at their baseline: ``survivors`` and ``sequences``.

    ``diff`` is what :meth:`cleaner.Cleaner.verify` saw, None where a clean itself has failed.
    """

    def __init__(
        self,
        what: str,
        cause: str = "",
        remedy: str = "",
        survivors: tuple[Survivor, ...] = (),
        sequences: tuple[str, ...] = (),
    ) -> None:
        super().__init__(what, cause, remedy)
        self.survivors = survivors
        self.sequences = sequences
        self.diff: Diff | None = None

    @classmethod
    def of(cls, survivors: tuple[Survivor, ...], diff: Diff | None = None) -> NotCleanError:
        """The error that names each of them, and the reason if there is one."""
        parts = [str(survivor) for survivor in survivors]
        sequences = diff.sequences if diff else ()
        for moved in sequences:
            place = f"at {moved.now}, not {moved.baseline}"
            place = place if moved.baseline.called else "not at its START"
            parts.append(f"sequence {moved.sequence}: {place}")
        lost = diff.lost if diff else ()
        parts += [f"{each}, is gone" for each in lost]
        reasons = [survivor.why for survivor in survivors if survivor.why]
        remedy = "capture() again, or release()" if lost else "cleaner.clean()"
        error = cls(
            "Not clean: " + "; ".join(parts) + ".",
            reasons[0] if reasons else "something wrote after the last clean(), or there was none",
            'strategy = "truncate"' if reasons else remedy,
            survivors,
            tuple(moved.sequence for moved in sequences),
        )
        error.diff = diff
        return error

    @classmethod
    def left(cls, diff: Diff) -> NotCleanError:
        """The error that names what differs."""
        survivors = (
            Survivor(table.table, table.added, table.why, table.changed, table.gone, table.baseline)
            for table in diff.tables
        )
        return cls.of(tuple(survivors), diff)


class SchemaChangedError(CleanerError):
    """The schema changes faster than it can be cleaned, or has lost what was captured."""

    @classmethod
    def lost(cls, database: str, lost: tuple[str, ...]) -> SchemaChangedError:
        """The error for captured rows that are gone, or have nowhere to go any more."""
        return cls(
            f"The baseline of {database} can't be restored, since this is gone: {'; '.join(lost)}.",
            "a test, or a migration, has changed the schema since capture(), or a helper has "
            "truncated the tables of all schemas",
            'strategy = "recreate" for such tests; or capture() again, or release()',
        )


class ProvisionError(CleanerError):
    """A server or a database could not be provided."""

    @classmethod
    def lost_turn(cls) -> ProvisionError:
        """The error where others may have used the database during a test."""
        return cls(
            "The connection that kept others from this database was lost.",
            "the server was restarted, or somebody has ended its sessions",
            "run the tests again; if it happens again, look at the server's log",
        )


class PoolRefusedError(ProvisionError):
    """The role may not create databases for workers, and nobody has provided any for it."""


class CleanerWarning(UserWarning):
    """The root of what is only a warning."""


class SchemaWarning(CleanerWarning):
    """A test changed the schema of its database, which was recreated."""


class ConnectionBudgetWarning(CleanerWarning):
    """The server can't serve as many connections as the workers may open."""
