"""Every error that cleaner raises on purpose.

    CleanerError
     ├── SettingsError              a setting is unknown, misspelt or of the wrong type
     │    └── UnknownStrategyError  no installed plug-in has that name
     ├── UnsafeDatabaseError        the live connection is not to a test database
     ├── StrategyRefusedError       the strategy can't serve this target; says which can
     ├── ExcludedTableError         a CASCADE or a delete would reach a table outside the target
     ├── BlockedError               another session holds a lock past ``lock_timeout``
     ├── RetriesExhaustedError      deadlocks or serialization failures, ``retries`` times
     ├── NotCleanError              rows or sequence positions survived
     ├── SchemaChangedError         the schema keeps changing while it is being cleaned
     └── ProvisionError             a server or a database could not be provided

Each message has three parts: what happened, the likely cause, and the line to write. All are
picklable, since pytest-xdist sends them from a worker to its controller.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = [
    "BlockedError",
    "Blocker",
    "CleanerError",
    "ExcludedTableError",
    "NotCleanError",
    "ProvisionError",
    "RetriesExhaustedError",
    "SchemaChangedError",
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
    """A TRUNCATE ... CASCADE or a DELETE would change a table outside the target."""


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


class RetriesExhaustedError(CleanerError):
    """Every one of the ``retries`` attempts met a deadlock or a serialization failure."""


@dataclass(frozen=True)
class Survivor:
    """A table that still holds ``rows`` rows (None: they can't be counted), and why."""

    table: str
    rows: int | None
    why: str = ""

    def __str__(self) -> str:
        held = "rows that can't be counted" if self.rows is None else f"{self.rows} row"
        held += "s" if self.rows not in (None, 1) else ""
        return f"{self.table}: {held}" + (f" ({self.why})" if self.why else "")


class NotCleanError(CleanerError):
    """Rows survived, or sequences are not at their START: ``survivors`` and ``sequences``."""

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

    @classmethod
    def of(cls, survivors: tuple[Survivor, ...], sequences: tuple[str, ...] = ()) -> NotCleanError:
        """The error that names each of them, and the reason if there is one."""
        parts = [str(survivor) for survivor in survivors]
        parts += [f"sequence {sequence}: not at its START" for sequence in sequences]
        reasons = [survivor.why for survivor in survivors if survivor.why]
        return cls(
            "Not clean: " + "; ".join(parts) + ".",
            reasons[0] if reasons else "something wrote after the last clean(), or there was none",
            'strategy = "truncate"' if reasons else "cleaner.clean()",
            survivors,
            sequences,
        )


class SchemaChangedError(CleanerError):
    """The schema changed during the clean, again and again, so no plan could be trusted."""


class ProvisionError(CleanerError):
    """A server or a database could not be provided."""
