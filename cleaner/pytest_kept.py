"""``--cleaner-keep``: a copy of the database of each test that fails, to be looked at afterwards.

Imports nothing: a run that uses nothing of it should not wait for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cleaner.pytest_run import Run

SECTION = "cleaner: kept database (teardown)"  # with that word pytest shows it below the failure


def keep(run: Run, test: str) -> tuple[str, str]:
    """The name of the copy and how to look at it; or no name, and why there is none. Whatever goes
    wrong here takes the place of nothing that the test itself has to say.
    """
    try:
        return _keep(run, test)
    except Exception as error:
        what = (str(error).splitlines() or [""])[0]
        return "", f"{type(error).__name__}: {what}"


def _keep(run: Run, test: str) -> tuple[str, str]:
    provided = run.provided
    if provided is None:
        return "", "there is none"
    if provided.unkept:
        return "", provided.unkept
    if run.settings.url is None and not run.embedded().kept:
        return "", (
            "the embedded server ends with this run, and its databases with it, since another run "
            "has the one that stays: --cleaner-url, or try again"
        )
    from cleaner.pools import forget_connections
    from cleaner.provision.housekeeping import MOST_KEPT
    from cleaner.provision.leases import Pool

    pool = Pool(run.url, run.settings.lock_timeout)
    try:
        copy = pool.keep(str(provided.url.database), run=run.id, test=test, worker=run.worker)
    finally:
        forget_connections()
    if copy is None:
        return "", f"{MOST_KEPT} databases were kept of this run, which are as many as ever are"
    # The embedded server ends with the run; this starts it again.
    how = f"cleaner pool psql {copy.name}" if run.settings.url is None else copy.psql
    return copy.name, how


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
