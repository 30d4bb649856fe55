"""What a test run tells of the database: what a test left in it, and what cleaning took.

Imports nothing: a run that uses nothing of it should not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cleaner.api import Cleaner
    from cleaner.difference import Diff

_PATIENCE = 1.0  # seconds to wait for locks only to tell what was left
_LISTED = 50


def compared(cleaner: Cleaner, samples: int = 3) -> Diff | str:
    """What differs from the baseline, or a line that says why that can't be told: nothing that
    goes wrong here may take the place of what the test itself has to say.
    """
    wait = min(cleaner.settings.lock_timeout, _PATIENCE)
    try:
        return cleaner.using(lock_timeout=wait, retries=1).diff(samples)
    except Exception as error:
        return f"not known: {type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def left(cleaner: Cleaner) -> str:
    """What a test has left, on one line; empty where that is nothing."""
    diff = compared(cleaner, samples=0)
    if isinstance(diff, str):
        return diff
    moved = [f"sequence {each.sequence}" for each in diff.sequences]
    return "; ".join([*diff.lost, *map(str, diff.tables), *moved])


def summary(
    cleans: Sequence[tuple[str, str, float, int]], leavings: Sequence[tuple[str, str]], full: bool
) -> Iterator[str]:
    """The lines of ``--cleaner-report``; ``full``: with all of ``leavings``.

    Each clean is test, strategy, seconds and number of tables, each of ``leavings`` test and
    what it left.
    """
    if not cleans:
        yield "no test used clean_database"
        return
    total = sum(seconds for _, _, seconds, _ in cleans)
    yield f"{len(cleans)} cleans in {total:.3f} s, {total / len(cleans) * 1000:.2f} ms each"
    by_strategy: dict[str, list[float]] = {}
    for _, strategy, seconds, _ in cleans:
        by_strategy.setdefault(strategy, []).append(seconds)
    for strategy, times in sorted(by_strategy.items()):
        yield f"  {strategy}: {len(times)} cleans, {sum(times):.3f} s"
    yield "slowest:"
    for nodeid, strategy, seconds, tables in sorted(cleans, key=lambda clean: -clean[2])[:5]:
        yield f"  {seconds * 1000:8.2f} ms  {strategy}, {tables} tables  {nodeid}"
    shown = leavings if full else leavings[:_LISTED]
    if shown:
        yield "left something in the database:"
    for nodeid, what in shown:
        yield f"  {nodeid}: {what}"
    if more := len(leavings) - len(shown):
        yield f"  and {more} more tests: pytest -v shows them"
