"""The database of a test run: its schema built, its seed captured, and undone what tests do to
the schema.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.pool import NullPool

from cleaner.api import Cleaner
from cleaner.errors import SchemaChangedError, SettingsError

Setup = Callable[[Engine], None]


class SchemaWarning(UserWarning):
    """A test changed the schema of its database."""


def build(cleaner: Cleaner, setup: Setup, *, seeds: bool, template: str) -> tuple[URL, bool]:
    """Let ``setup`` build schema and seed, and make that the baseline.

    ``seeds`` is whether it may have written rows that were not there before; rows that it does
    not answer for don't become the baseline of an empty table. What an earlier run captured is
    restored first. With the ``template`` "wanted" a copy of the whole database is kept, to undo
    changes of the schema; with "welcome" only where nobody is connected who would have to be
    disconnected for it. Returns the URL, and whether there is such a copy. Raises what the cleaner
    raises, and whatever ``setup`` does.
    """
    url = cleaner.connect()
    if cleaner.captured:
        cleaner.clean()
        seeds = True
    elif not seeds:
        seeds = not _holds_rows(cleaner)
    engine = create_engine(url, poolclass=NullPool)
    try:
        setup(engine)
    finally:
        engine.dispose()
    seeded = seeds and _holds_rows(cleaner)
    copied = template == "wanted" or (template == "welcome" and not cleaner.sessions())
    if copied:
        cleaner.using(strategy="recreate").capture()
    elif seeded:
        cleaner.capture()
    return url, copied


def _holds_rows(cleaner: Cleaner) -> bool:
    """Whether there are any that are not the baseline."""
    try:
        return bool(cleaner.diff(samples=0).tables)
    except SettingsError:  # `only` names tables that are still to be made
        return False


class SchemaGuard:
    """Undoes what a test does to the schema, by recreating the database from its template."""

    def __init__(self, cleaner: Cleaner) -> None:
        self._recreating = cleaner.using(strategy="recreate")
        cleaner.plan()
        self._baseline = cleaner.fingerprint

    def intact(self, cleaner: Cleaner) -> bool:
        """Whether the schema is that of the template, as the last clean found it."""
        return cleaner.fingerprint == self._baseline

    def after(self, cleaner: Cleaner, test: str, clean: Callable[[], None]) -> None:
        """Let ``cleaner`` clean after the test, and undo what that did to the schema."""
        try:
            clean()
            changed = not self.intact(cleaner)
        except SchemaChangedError:  # a table is gone whose rows were captured
            changed = True
        if changed:
            self.undo(test)

    def undo(self, test: str) -> None:
        """Recreate the database, and warn of what ``test`` changed."""
        changed = self._recreating.describe()
        self._recreating.clean()
        baseline = self._recreating.describe()
        lines = [f"+ {line}" for line in sorted(changed - baseline)]
        lines += [f"- {line}" for line in sorted(baseline - changed)]
        shown = "; ".join(lines[:8]) + (f" and {len(lines) - 8} more" if len(lines) > 8 else "")
        warnings.warn(
            f"{test} changed the schema, so its database was recreated: {shown}. To have it so "
            'without this warning: @pytest.mark.cleaner(strategy="recreate")',
            SchemaWarning,
            stacklevel=2,
        )
