"""A table of an SQLite database in terms of statements."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from cleaner.retry import Transient

Ask = Callable[[str], list[tuple[Any, ...]]]
ROWID = ("rowid", "_rowid_", "oid")
RTREES = ("rtree", "rtree_i32", "geopoly")


@dataclass(frozen=True)
class Column:
    """A column that can be written to. ``affinity`` is how a copy has to declare it."""

    name: str
    type: str
    affinity: str


@dataclass(frozen=True)
class Trigger:
    """A trigger, as the statements that ``drop`` it and ``create`` it again."""

    name: str
    drop: str
    create: str


@dataclass(frozen=True)
class Facts:
    """A table, as statements. ``look`` is an expression that is true where it holds rows.

    ``key`` are the columns by which a row is known again: its rowid, or a primary key, each with
    its collation. ``triggers`` are those that would fire. ``uncapturable`` says why its rows can't
    be a baseline, and is empty where they can; ``checked`` is whether a CHECK may refuse one.
    ``identity`` are the columns that tell people which row it is.
    """

    sql: str
    look: str
    empty: str
    columns: tuple[Column, ...]
    key: tuple[tuple[str, str], ...]
    triggers: tuple[Trigger, ...] = ()
    module: str = ""
    uncapturable: str = ""
    checked: bool = False
    identity: tuple[str, ...] = ()

    @property
    def rows_elsewhere(self) -> bool:
        """Whether it is only an index, of rows that are nowhere."""
        return self.empty != f"DELETE FROM {self.sql}"

    @property
    def written(self) -> tuple[str, ...]:
        """The columns of an INSERT that puts a row back, rowid included."""
        names = [column.name for column in self.columns]
        if self.key[0][0] in ROWID and self.module not in RTREES:
            return (self.key[0][0], *names)
        return tuple(names)


@dataclass(frozen=True)
class Index:
    """A virtual table that is an index of the rows of ``content``, as statements: ``look`` is an
    expression that is true where it has entries, ``check`` fails where those are not of what
    ``content`` holds, and ``rebuild`` makes it anew from that.
    """

    content: str
    look: str
    check: str
    rebuild: str

    def is_in_step(self, ask: Ask) -> bool:
        """Whether making it anew gives the same one."""
        try:
            ask(self.check)
        except Transient:
            raise
        except Exception:  # whatever is wrong with it
            return False
        return True
