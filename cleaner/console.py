"""Text for people: in colour on a terminal, plain elsewhere, none at all under ``--json``."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from typing import TextIO

_COLOURS = {"bold": 1, "dim": 2, "red": 31, "green": 32, "yellow": 33}


class Console:
    """What is said goes to standard output, progress to standard error if that is a terminal."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._coloured = _colours(sys.stdout)
        self._progress = not quiet and sys.stderr.isatty()

    def say(self, text: str = "") -> None:
        """Print a line, over the progress that was shown."""
        self.progress("")
        if not self._quiet:
            print(text)

    def title(self, text: str) -> None:
        """Print the headline of what follows."""
        self.say()
        self.say(self.paint("bold", text))

    def progress(self, text: str) -> None:
        """Show what takes its time, on a line that goes when it is done."""
        if self._progress:
            shown = f"{text} ..." if text else ""
            print(f"\r\x1b[K{shown}", end="", file=sys.stderr, flush=True)

    def paint(self, colour: str, text: str) -> str:
        """``text`` in that colour, where colours are shown."""
        return f"\x1b[{_COLOURS[colour]}m{text}\x1b[0m" if self._coloured else text

    def table(self, rows: Sequence[Sequence[str]], indent: str = "  ") -> None:
        """Print ``rows`` in columns: the first one and the last one to the left, figures right."""
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        for row in rows:
            first, *figures, last = row
            cells = [f"{cell:>{width}}" for cell, width in zip(figures, widths[1:], strict=False)]
            self.say("  ".join([f"{indent}{first:<{widths[0]}}", *cells, last]))


def print_json(found: object) -> None:
    """Print the one object of ``--json``."""
    print(json.dumps(found, indent=2))


def count(number: int, noun: str) -> str:
    """The number with the noun, in the plural where it is due."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def baseline(tables: int, rows: int) -> str:
    """A baseline of that many rows, in that many tables."""
    return f"{count(rows, 'captured row')} in {count(tables, 'table')}" if rows else "no rows"


def _colours(stream: TextIO) -> bool:
    wanted = not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
    return wanted and stream.isatty()
