"""A sweep of the databases of a pool: what is ours, in nobody's use and old goes."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

from cleaner.dialects.postgresql.control import Control
from cleaner.dialects.postgresql.control_leases import Row
from cleaner.dialects.postgresql.failures import first_line

Progress = Callable[[str], None]


@dataclass
class Dropped:
    """The names of the databases that are gone; and of those that are ``left`` because they are in
    use, or that could not be dropped, each with why.
    """

    databases: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


def silent(text: str) -> None:
    """Show no progress."""


class Tidying:
    """One sweep."""

    def __init__(
        self,
        control: Control,
        base: str,
        idle: timedelta,
        unused: timedelta,
        *,
        everyone: bool = False,
        progress: Progress = silent,
    ) -> None:
        self._control, self._base, self._everyone = control, base, everyone
        self._idle, self._unused = idle, unused
        self._progress = progress
        self._now = self._begun = control.now()  # when the first of the living workers began
        self._dropped = Dropped()

    def run(self, provisioned: bool = False, provided: bool = False) -> Dropped:
        """Drop what is due: ``provisioned`` databases too, or just say that those stay."""
        rows = self._control.rows(self._base, self._everyone)
        for row in rows:
            if not self._control.lock(row.id):
                self._left(row.database, f"in use by {row.worker} on {row.host}, pid {row.pid}")
                self._begun = min(self._begun, row.since or self._now)
                continue
            try:
                self._lease(self._control.row(row.id), provisioned, provided)
            finally:
                self._control.unlock(row.id)
        self._templates()
        for copy in self._control.kept(self._base, self._everyone):
            if self._now - copy.made < self._unused:
                continue
            if not self._control.lock_template(copy.name):
                self._left(copy.name, "being made or dropped")
                continue
            try:
                if self._control.occupied(copy.name):
                    self._left(copy.name, "somebody is connected to it")
                else:
                    self._drop(copy.name, partial(self._control.forget_kept, copy.name))
            finally:
                self._control.unlock_template(copy.name)
        return self._dropped

    def _lease(self, row: Row | None, provisioned: bool, provided: bool) -> None:
        """A lease whose lock is ours."""
        if row is None:
            return
        if row.provisioned and not provisioned:
            if provided:
                self._left(row.database, "provided by a role that may create databases")
        elif row.provisioned or row.worker is not None or self._now - row.used >= self._idle:
            self._drop(row.database, lambda: self._control.forget(row))
        else:
            self._control.bury(row)

    def _templates(self) -> None:
        rows = self._control.rows(self._base, self._everyone)
        cloned = {row.template for row in rows}
        for template in self._control.all_templates(self._base, self._everyone):
            name = template.name
            if name in cloned:
                self._left(name, "the database of a worker is a clone of it")
            elif not self._control.lock_template(name):
                self._left(name, "being built or dropped")
            else:
                try:
                    self._template(name)
                finally:
                    self._control.unlock_template(name)

    def _template(self, name: str) -> None:
        """One that nothing is cloned from, and whose lock is ours."""
        known = self._control.template(name)
        if known is None or self._now - known.used < self._unused:
            return
        if known.used >= self._begun:
            self._left(name, "a worker may be about to clone it")
        else:
            self._drop(name, lambda: self._control.forget_template(name))

    def _left(self, name: str, why: str) -> None:
        self._dropped.left[name] = why

    def _drop(self, name: str, drop: Callable[[], bool]) -> None:
        """Have ``drop`` drop it; what keeps it from that concerns no other database."""
        self._progress(f"dropping {name}")
        try:
            there = self._control.exists(name)
            if drop():
                self._dropped.databases += [name] if there else []
            else:
                self._dropped.failed[name] = "its comment does not say that it is cleaner's"
        except self._control.driver_error as error:
            self._dropped.failed[name] = first_line(error)
