"""What the orchestration needs of a database, whatever its dialect."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import URL, Engine

from cleaner.difference import Diff
from cleaner.errors import Blocker
from cleaner.spi import Database, Plan, Relation, Target

if TYPE_CHECKING:
    from cleaner.dialects.mutex import Mutex


@dataclass(frozen=True)
class Done:
    """What a clean did, in names."""

    tables: tuple[str, ...] = ()
    truncated: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    refreshed: tuple[str, ...] = ()
    ended: tuple[Blocker, ...] = ()

    def after(self, earlier: Done) -> Done:
        """This, and what an attempt before it had done that did not come to its end."""

        def both(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
            return tuple(dict.fromkeys((*one, *other)))

        return Done(
            tables=both(earlier.tables, self.tables),
            truncated=both(earlier.truncated, self.truncated),
            sequences=both(earlier.sequences, self.sequences),
            refreshed=both(earlier.refreshed, self.refreshed),
            ended=(*earlier.ended, *self.ended),
        )


@dataclass(frozen=True)
class Health:
    """What tells how a clean would fare, beyond what the database holds.

    ``owner`` is whether the role owns the database, ``no_fast_path`` why a clean can't be one
    message, ``idle`` who is idle in transaction there, ``unseen`` why that may not be all; the
    reasons come with their remedy, and are empty where there is none.
    """

    superuser: bool
    owner: bool
    no_fast_path: str
    idle: tuple[Blocker, ...]
    unseen: str


class Session(Protocol):
    """One connection of our own to one database, replaced when it dies.

    Nothing here retries: a wait that timed out is raised as :class:`cleaner.retry.LockWait`, a
    deadlock and its like as :class:`cleaner.retry.Conflict`, everything else as one of
    :mod:`cleaner.errors`.
    """

    round_trips: int
    least_wait: int
    """The shortest time for which the server can wait for a lock, in milliseconds."""
    mutex: Mutex
    """Held by whoever asks something of the session; a forked child gets a new one."""

    @property
    def cancellable(self) -> bool:
        """Whether no more is lost than a connection where the driver's work is cut off."""

    def connect(self) -> URL:
        """Open the connection, if it is not; returns the URL with the driver in use."""

    @property
    def driver(self) -> str:
        """The name and the version of the driver."""

    def health(self) -> Health:
        """How a clean would fare at this moment."""

    def look(self) -> Database:
        """What the database holds at this moment."""

    def compile(self, plan: Plan, target: Target) -> Any:
        """The program that runs ``plan``; its ``str()`` is the SQL."""

    def run(self, program: Any, wait: int) -> Done:
        """Clean, waiting at most ``wait`` milliseconds for a lock; all or nothing.

        Raises :class:`cleaner.retry.Stale` where the schema is not the one the program is for.
        """

    def diff(self, target: Target, samples: int, wait: int) -> Diff:
        """Compare all rows and sequences with their baseline, without regard to what was cleaned.

        Shows ``samples`` rows of each kind for each table; ``wait`` as for :meth:`run`. Raises
        :class:`cleaner.retry.Stale` where the schema is not the one ``target`` is of.
        """

    def capture(self, target: Target, tables: Iterable[Relation], wait: int) -> None:
        """Make the rows of ``tables``, which are of the target, and the positions of its
        sequences the baseline; ``wait`` as for :meth:`run`. All or nothing.
        """

    def release(self, wait: int) -> None:
        """Forget all that was captured: the baseline is no rows."""

    def make_template(self) -> None:
        """Make a copy of the whole database, from which a plan to recreate it clones."""

    def has_template(self) -> bool:
        """Whether there is such a copy."""

    def drop_template(self) -> None:
        """Drop it, if there is one."""

    def describe(self) -> frozenset[str]:
        """What the schema consists of, a line for each object."""

    def blockers(self, program: Any) -> tuple[Blocker, ...]:
        """Who holds locks that keep ``program`` from running; None: :meth:`diff` from looking."""

    def terminate(self, blockers: tuple[Blocker, ...]) -> tuple[Blocker, ...]:
        """End those that are idle in transaction; returns those that were ended."""

    def close(self) -> None:
        """Give the connection back to the server. Harmless when done twice."""


Guard = Callable[[str], None]


class Turns(Protocol):
    """Turns at a database that the tests of several processes share."""

    def turn(self) -> AbstractContextManager[None]:
        """Wait for the turn, for as long as others take theirs, and have it.

        Raises BlockedError where one of them does not end in half an hour.
        """

    def close(self) -> None:
        """Close the connection."""


@dataclass(frozen=True)
class Prepared:
    """What a database of one's own is to be like.

    ``fingerprint``, given the kind and version of what it is made by, changes when that does;
    ``build`` makes an empty database so, and is given the name by which the guard will call that.
    ``intact`` cleans one that was used before, and tells the fingerprint of its schema, or raises
    CleanerError.
    """

    fingerprint: Callable[[str], str]
    build: Callable[[URL | Engine, str], None]
    intact: Callable[[URL | Engine, str], str]


class OwnDatabase(Protocol):
    """A database of one process's own, beside one that was configured, made by its dialect.

    ``name`` is what the guard calls it, ``source`` leads to it, and ``template`` is what the
    strategy ``recreate`` can make it anew from, empty if there is no such thing. Nobody who lives
    has the same.
    """

    @property
    def name(self) -> str: ...

    @property
    def source(self) -> URL | Engine: ...

    @property
    def template(self) -> str: ...

    def prepare(self, work: Prepared) -> None:
        """Have it there, clean. Raises what building it does, and then nobody will use it."""

    def check(self) -> None:
        """Raise ProvisionError if it is not ours any more."""

    def close(self) -> None:
        """Let the next one have it."""
