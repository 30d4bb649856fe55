"""What tests do to the schema of their database, undone and named."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from cleaner.api import Cleaner
from cleaner.errors import (
    BlockedError,
    CleanerError,
    RetriesExhaustedError,
    SchemaChangedError,
    SchemaWarning,
    StrategyRefusedError,
)


class SchemaGuard:
    """Undoes what a test does to the schema, by recreating the database from its ``template``, and
    names it; without a template that is all.
    """

    def __init__(self, cleaner: Cleaner, template: str) -> None:
        self._cleaner, self._recreating = cleaner, None
        if template:
            options = {"template": template}
            self._recreating = cleaner.using(strategy="recreate", strategy_options=options)
        cleaner.plan()
        self._baseline, self._described = cleaner.fingerprint, cleaner.describe()

    def intact(self, cleaner: Cleaner) -> bool:
        """Whether the schema is that of the template, as the last clean found it."""
        return cleaner.fingerprint == self._baseline

    def after(self, cleaner: Cleaner, test: str, clean: Callable[[], None]) -> None:
        """Let ``cleaner`` clean after the test, and undo what that did to the schema."""
        failed: CleanerError | None = None
        try:
            clean()
            if self.intact(cleaner):
                return
        except (BlockedError, RetriesExhaustedError):
            raise
        except CleanerError as error:  # such as for a constraint that captured rows violate
            if self._recreating is None:
                raise
            failed = error
        now, before = self._cleaner.describe(), self._described
        lines = [f"+ {line}" for line in sorted(now - before)]
        lines += [f"- {line}" for line in sorted(before - now)]
        if failed and not (lines or isinstance(failed, SchemaChangedError)):
            raise failed
        if lines or failed:
            if self._recreated():
                cleaner.plan()
            elif failed:
                raise failed
            else:
                self._described = now
            self._warn(test, lines or [failed.what if failed else ""])
        # Else it has captured another baseline, which is not in the template.
        self._baseline = cleaner.fingerprint

    def _recreated(self) -> bool:
        """Recreate the database, if that can be done."""
        if self._recreating is None:
            return False
        try:
            self._recreating.clean()
        except StrategyRefusedError:
            self._recreating = None
            return False
        return True

    def _warn(self, test: str, lines: list[str]) -> None:
        shown = "; ".join(lines[:8]) + (f" and {len(lines) - 8} more" if len(lines) > 8 else "")
        if self._recreating is None:
            undone = "can't be undone for the tests to come, so it has to do that itself"
        else:
            undone = (
                "was undone by recreating the database. To have it so without this warning: "
                '@pytest.mark.cleaner(strategy="recreate")'
            )
        warnings.warn(
            f"{test} changed the schema, which {undone}: {shown}", SchemaWarning, stacklevel=2
        )
