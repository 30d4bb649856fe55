"""``--cleaner-keep``: a copy of the database of each test that fails, to be looked at afterwards.

Imports nothing: a run that uses nothing of it should not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cleaner.provision.leases import Pool

SECTION = "cleaner: kept database (teardown)"  # with that word pytest shows it below the failure
ENDS = (
    "the embedded server ends with this run, and its databases with it, since another run has the "
    "one that stays: --cleaner-url, or try again"
)


def keep(pool: Pool, database: str, *, run: str, worker: str, test: str) -> tuple[str, str]:
    """The name of the copy and a line for a shell that leads there; or no name, and why there is
    none: whatever goes wrong here takes the place of nothing that the test itself has to say.
    """
    from cleaner.pools import forget_connections
    from cleaner.provision.housekeeping import MOST_KEPT

    try:
        copy = pool.keep(database, run=run, test=test, worker=worker)
    except Exception as error:
        return "", f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
    finally:
        forget_connections()
    if copy is None:
        return "", f"{MOST_KEPT} databases were kept of this run, which are as many as ever are"
    return copy.name, copy.psql


def summary(kept: Sequence[tuple[str, str, str]]) -> Iterator[str]:
    """The lines at the end of the run. Each of ``kept`` is test, name and how to look at it, or
    test, no name and why.
    """
    for test, name, how in kept:
        if name:
            yield f"{test}: {name}"
            yield f"    {how}"
    reasons: dict[str, list[str]] = {}
    for test, name, why in kept:
        if not name:
            reasons.setdefault(why, []).append(test)
    for why, tests in reasons.items():
        more = f" and {len(tests) - 1} more" if len(tests) > 1 else ""
        yield f"not kept of {tests[0]}{more}: {why}"
    if any(name for _, name, _ in kept):
        yield "they go with `cleaner pool drop`, or by themselves after a week"
