"""What a strategy may import: the terms in which it sees a database and says what to do.

A strategy is a class with a ``name`` and a pure :meth:`Strategy.plan`. It is given a
:class:`Target` (the tables to clean, in an order in which they can be deleted from) and answers
with a :class:`Plan` made of :class:`Empty`, :class:`Truncate`, :class:`Restart` or
:class:`Recreate` steps. It never sees a connection and writes no SQL: the dialect does, in as few
round trips as it can.

Register it under the entry-point group ``cleaner.strategies``, or pass an instance::

    Cleaner(url, Base, strategy=MyStrategy())
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Literal

__all__ = [
    "Database",
    "Empty",
    "ForeignKey",
    "Plan",
    "Recreate",
    "Relation",
    "Report",
    "Restart",
    "Sequence",
    "Step",
    "Strategy",
    "Target",
    "Truncate",
]

Kind = Literal["table", "partitioned table", "foreign table", "view", "materialized view"]
Action = Literal["no action", "restrict", "cascade", "set null", "set default"]


@dataclass(frozen=True)
class Relation:
    """A table or view as the database has it.

    ``name`` is how the metadata spells it: bare in the default schema, else ``schema.table``.
    ``key`` identifies it within one :class:`Database`. ``parents`` are the keys of the
    partitioned table or the inheritance parents it belongs to, ``reads`` those of the relations
    that a view is made from. ``undeletable`` and ``untruncatable`` say why the statement can't
    serve on this table, and are empty where it can. ``swallows`` means that a plain DELETE
    would leave rows behind in silence (a rule, row-level security) unless that is switched off.
    ``captured`` is the number of rows of its baseline.
    """

    key: int
    schema: str
    table: str
    name: str
    kind: Kind = "table"
    parents: tuple[int, ...] = ()
    is_partition: bool = False
    reads: tuple[int, ...] = ()
    undeletable: str = ""
    untruncatable: str = ""
    swallows: bool = False
    bookkeeping: bool = False
    foreign_owned: str = ""
    captured: int = 0


@dataclass(frozen=True)
class ForeignKey:
    """A constraint of ``child`` to ``parent`` (keys of relations): the child's ``columns`` hold
    what is in the parent's ``referred``.
    """

    name: str
    child: int
    parent: int
    columns: tuple[str, ...]
    referred: tuple[str, ...]
    on_delete: Action = "no action"
    deferrable: bool = False


@dataclass(frozen=True)
class Sequence:
    """A sequence. ``owner`` is the table whose column owns it, ``users`` those whose defaults
    draw from it. ``refusal`` says why this role can't reset it.
    """

    key: int
    schema: str
    sequence: str
    name: str
    owner: int | None = None
    users: tuple[int, ...] = ()
    refusal: str = ""


@dataclass(frozen=True)
class Database:
    """What a live database holds, and what this role may do there.

    ``fingerprint`` changes whenever anything in here does. ``no_replica`` says why foreign keys
    and triggers can't be switched off for a session, ``no_recreate`` why the database can't be
    made anew from a copy; both are empty where that can be done. ``ignores_case`` is whether
    ``Users`` is the table ``users``. ``lost`` names what was captured and is not in the schema any
    more. ``warnings`` tell which promises the database can't keep, whatever the plan.
    """

    name: str
    server: str
    user: str
    search_path: tuple[str, ...]
    fingerprint: str
    no_replica: str = ""
    no_recreate: str = ""
    ignores_case: bool = False
    lost: tuple[str, ...] = ()
    relations: tuple[Relation, ...] = ()
    foreign_keys: tuple[ForeignKey, ...] = ()
    sequences: tuple[Sequence, ...] = ()
    warnings: tuple[str, ...] = ()

    def relation(self, key: int) -> Relation:
        """The relation with that key."""
        return self._by_key[key]

    @property
    def _by_key(self) -> dict[int, Relation]:
        cached: dict[int, Relation] | None = self.__dict__.get("_relations_by_key")
        if cached is None:
            cached = {relation.key: relation for relation in self.relations}
            self.__dict__["_relations_by_key"] = cached
        return cached


@dataclass(frozen=True)
class Target:
    """The tables and sequences that one clean is about, of what ``database`` holds.

    ``groups`` are the tables in deletion order, children before parents; a group of several is
    a cycle of foreign keys. ``outside`` are the foreign keys by which tables that are NOT to be
    changed refer to tables of the target. ``stale_views`` are the materialized views that show
    rows of the target.
    """

    database: Database
    groups: tuple[tuple[Relation, ...], ...]
    sequences: tuple[Sequence, ...] = ()
    outside: tuple[ForeignKey, ...] = ()
    stale_views: tuple[Relation, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def tables(self) -> tuple[Relation, ...]:
        """All tables of all groups, in deletion order."""
        return tuple(table for group in self.groups for table in group)

    def sequences_of(self, tables: Iterable[Relation]) -> list[Sequence]:
        """The sequences that go with ``tables`` of the target: with some, those that they own or
        draw from; with all, those of nobody too.
        """
        keys = {table.key for table in tables}
        everything = len(keys) == len(self.tables)
        return [
            sequence
            for sequence in self.sequences
            if everything or sequence.owner in keys or keys & {*sequence.users}
        ]


@dataclass(frozen=True)
class Empty:
    """Put those ``groups`` that are not at their baseline back to it, in this order: delete their
    rows, and where rows were captured put those back.

    With ``truncate`` a table may be truncated instead where that is cheaper or the only way.
    With ``replica`` foreign keys and triggers are switched off for the statements.
    """

    groups: tuple[tuple[Relation, ...], ...]
    truncate: bool = False
    replica: bool = False


@dataclass(frozen=True)
class Truncate:
    """Truncate the tables in one statement, whether they hold rows or not, and put the captured
    rows in again.
    """

    tables: tuple[Relation, ...]
    restart_identity: bool = True


@dataclass(frozen=True)
class Restart:
    """Put those of the sequences that have moved back to their START or captured position."""

    sequences: tuple[Sequence, ...]


@dataclass(frozen=True)
class Recreate:
    """Replace the whole database by a clone of its baseline; the only step of its plan.

    ``template`` is the database to clone, by default the one that ``capture()`` makes.
    """

    template: str = ""


Step = Empty | Truncate | Restart | Recreate


@dataclass(frozen=True)
class Plan:
    """What a clean would do. ``str(plan)`` is the SQL; ``tables`` are in the order of cleaning."""

    strategy: str
    steps: tuple[Step, ...]
    warnings: tuple[str, ...] = ()
    sql: str = field(default="", repr=False)

    @property
    def tables(self) -> tuple[str, ...]:
        """The names of the tables, in the order in which they are cleaned."""
        names: list[str] = []
        for step in self.steps:
            if isinstance(step, Empty):
                names += [table.name for group in step.groups for table in group]
            elif isinstance(step, Truncate):
                names += [table.name for table in step.tables]
        return tuple(names)

    @property
    def sequences(self) -> tuple[str, ...]:
        """The names of the sequences that are put back to their START."""
        return tuple(
            sequence.name
            for step in self.steps
            if isinstance(step, Restart)
            for sequence in step.sequences
        )

    def __str__(self) -> str:
        return self.sql


@dataclass(frozen=True)
class Report:
    """What a clean did.

    ``tables`` held rows and were emptied (``truncate`` names all that it truncated);
    ``sequences`` had moved and were put back; ``seconds`` is the wall time of ``clean()`` with
    every retry in ``attempts``; ``round_trips`` counts the messages to the server;
    ``terminated`` are the sessions ended under ``on_blocked = "terminate"``.
    """

    strategy: str
    tables: tuple[str, ...] = ()
    sequences: tuple[str, ...] = ()
    seconds: float = 0.0
    attempts: int = 1
    round_trips: int = 1
    truncated: tuple[str, ...] = ()
    refreshed: tuple[str, ...] = ()
    terminated: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        def listed(names: tuple[str, ...], noun: str) -> str:
            shown = ", ".join(names[:6]) + (", ..." if len(names) > 6 else "")
            plural = "" if len(names) == 1 else "s"
            return f"{len(names)} {noun}{plural}" + (f" ({shown})" if names else "")

        lines = [
            f"{self.strategy}: {listed(self.tables, 'table')}, "
            f"{listed(self.sequences, 'sequence')}, {self.seconds * 1000:.2f} ms, "
            f"{self.round_trips} round trip{'' if self.round_trips == 1 else 's'}"
            + (f", {self.attempts} attempts" if self.attempts > 1 else "")
        ]
        lines += [f"terminated {session}" for session in self.terminated]
        return "\n".join(lines)


class Strategy(ABC):
    """How a database is put back to its baseline.

    Keyword arguments of ``__init__`` are the strategy's options (``strategy_options`` in the
    settings). ``recreates`` tells that the plan is to :class:`Recreate`: ``capture()`` then keeps
    a copy of the whole database.
    """

    name: ClassVar[str]
    recreates: ClassVar[bool] = False

    def refusal(self, target: Target) -> str | None:
        """Why this strategy can't keep the promise on ``target``, with the remedy; else None."""
        return None

    @abstractmethod
    def plan(self, target: Target) -> Plan:
        """What cleaning ``target`` takes. Pure: the same target gives the same plan."""
