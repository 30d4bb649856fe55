"""What differs from the baseline, as a dialect finds it and as people read it.

Plain frozen dataclasses, picklable, since pytest-xdist sends them from a worker to its controller.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

__all__ = ["Diff", "Position", "RowDiff", "SequenceDiff", "TableDiff", "Value"]

Kind = Literal["added", "changed", "gone"]
_SHOWN = 60  # characters of a value
_LINE = 200  # characters of a row
_BARE = re.compile(r"[^\s,:='\"]([^,='\"\n]*[^\s,:='\"])?")


@dataclass(frozen=True)
class Value:
    """A value as the server writes it; ``text`` is None for NULL.

    Of a long one ``text`` is a part of the ``length`` characters or bytes (``unit``), the one
    that begins after the first ``skipped`` characters; ``length`` is 0 where nothing is left out.
    """

    text: str | None
    length: int = 0
    skipped: int = 0
    unit: str = "characters"

    @classmethod
    def of(cls, text: str | None, length: int, skipped: int = 0, binary: bool = False) -> Value:
        """The value whose ``length`` characters begin with ``text``, all of it if it is short.

        ``binary`` says that they are two for each byte, after two at the beginning.
        """
        if text is None or length <= _SHOWN:
            return cls(text)
        shown = text[skipped : skipped + _SHOWN]
        if binary:
            return cls(shown, (length - 2) // 2, skipped, "bytes")
        return cls(shown, length, skipped)

    def __str__(self) -> str:
        if self.text is None:
            return "NULL"
        printable = self.text.isprintable()
        if not self.length and printable and self.text != "NULL" and _BARE.fullmatch(self.text):
            return self.text
        doubled = self.text.replace("'", "''")
        shown = f"'{doubled}'" if printable else repr(self.text)
        if not self.length:
            return shown
        return f"{'...' if self.skipped else ''}{shown}... ({self.length} {self.unit})"


def start_of_difference(one: str | None, other: str | None) -> int:
    """From where on two long texts are to be shown, so that their first difference is seen."""
    pairs = zip(one or "", other or "", strict=False)
    alike = next((i for i, (a, b) in enumerate(pairs) if a != b), 0)
    return max(0, alike - _SHOWN // 3) if alike >= _SHOWN // 2 else 0


@dataclass(frozen=True)
class RowDiff:
    """A row that was added, changed or is gone.

    ``values`` are all of its columns, of a changed one those that tell it from others; ``changes``
    are column, value in the baseline, and value now.
    """

    kind: Kind
    values: tuple[tuple[str, Value], ...]
    changes: tuple[tuple[str, Value, Value], ...] = ()

    def __str__(self) -> str:
        row = ", ".join(f"{column}={value}" for column, value in self.values)
        if self.changes:
            row += ": " + ", ".join(_change(*change) for change in self.changes)
        row = row if len(row) <= _LINE else f"{row[:_LINE]}..."
        return f"{ {'added': '+', 'changed': '~', 'gone': '-'}[self.kind] } {row}"


def _change(column: str, old: Value, new: Value) -> str:
    shown = f"{column}: {old} -> {new}"
    if str(old) != str(new):
        return shown
    return shown + (
        " (they differ further on)" if old.length else " (not the same to the last bit)"
    )


@dataclass(frozen=True)
class TableDiff:
    """How many rows were added to a table, changed in it, and are gone, and a few of them.

    ``baseline`` is how many rows its baseline has. ``added`` is None where they can't be counted;
    ``why`` is what may have kept them there.
    """

    table: str
    added: int | None
    changed: int = 0
    gone: int = 0
    baseline: int = 0
    rows: tuple[RowDiff, ...] = ()
    why: str = ""

    @property
    def counts(self) -> str:
        """In words: ``1 row added, 2 changed``, or ``3 rows`` where there should be none."""
        return counted(self.added, self.changed, self.gone, self.baseline)

    def __str__(self) -> str:
        lines = [f"{self.table}: {self.counts}" + (f" ({self.why})" if self.why else "")]
        lines += [f"  {row}" for row in self.rows]
        more = (self.added or 0) + self.changed + self.gone - len(self.rows)
        if self.rows and more:
            lines.append(f"  and {more} more")
        return "\n".join(lines)


def counted(added: int | None, changed: int, gone: int, baseline: int) -> str:
    """See :attr:`TableDiff.counts`."""
    if added is None:
        return "rows that can't be counted"
    if not baseline:
        return f"{added} row" + ("" if added == 1 else "s")
    parts = [(n, how) for n, how in ((added, "added"), (changed, "changed"), (gone, "gone")) if n]
    first, *others = parts or [(0, "added")]
    noun = "row" if first[0] == 1 else "rows"
    return ", ".join([f"{first[0]} {noun} {first[1]}", *(f"{n} {how}" for n, how in others)])


@dataclass(frozen=True)
class Position:
    """The last value of a sequence, and whether that was ``called``, that is given out."""

    last: int
    called: bool

    def __str__(self) -> str:
        return str(self.last) if self.called else f"before {self.last}"


@dataclass(frozen=True)
class SequenceDiff:
    """A sequence that has moved."""

    sequence: str
    baseline: Position
    now: Position

    def __str__(self) -> str:
        return f"sequence {self.sequence}: {self.baseline} -> {self.now}"


@dataclass(frozen=True)
class Diff:
    """What differs from the baseline, by table and sequence; false where nothing does.

    ``lost`` names what was captured and is gone. ``str(diff)`` is a few
    lines for each table: ``+`` rows that were added, ``~`` changed, ``-`` gone.
    """

    tables: tuple[TableDiff, ...] = ()
    sequences: tuple[SequenceDiff, ...] = ()
    lost: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tables or self.sequences or self.lost)

    def __str__(self) -> str:
        if not self:
            return "Nothing that is committed differs from the baseline."
        lines = [f"lost: {each}" for each in self.lost]
        return "\n".join([*lines, *map(str, self.tables), *map(str, self.sequences)])
