"""What there is of a pool, and how an administrator adds to it and tidies it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from sqlalchemy import URL

from cleaner.dialects.postgresql.control import PROVIDER, Control, Row
from cleaner.dialects.postgresql.control_databases import NoPoolError
from cleaner.dialects.postgresql.control_templates import Template
from cleaner.dialects.postgresql.failures import said, sqlstate
from cleaner.dialects.postgresql.sql import quote
from cleaner.errors import ProvisionError

Progress = Callable[[str], None]

IDLE, UNUSED = timedelta(days=1), timedelta(days=7)  # databases and templates that are swept
MOST_KEPT = 5  # databases of the failed tests of one run


@dataclass(frozen=True)
class Entry:
    """A database of a pool, which may still have to be made.

    ``state`` is one of

        leased, free, dead      somebody works on it, it was given back, its worker has died
        provisioned             made by an administrator, and free
        template ready          what clones are made of
        kept                    of a test that has failed
        building, failed        one of the last two being made, or in vain

    ``age`` is the seconds since it was leased, or else last used or made; ``size`` is in bytes,
    None where there is no database yet or the role may not know. ``note`` is the error of a
    template, or the test.
    """

    database: str
    state: str
    base: str
    role: str
    worker: str | None
    host: str | None
    pid: int | None
    age: float
    size: int | None
    note: str


@dataclass
class Dropped:
    """The names of the databases that are gone; and of those that are ``left`` because they are in
    use, or that could not be dropped, each with why.
    """

    databases: list[str] = field(default_factory=list)
    left: dict[str, str] = field(default_factory=dict)
    failed: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Copy:
    """A database that was kept, and the line for a shell that leads there."""

    name: str
    psql: str


def _silent(text: str) -> None:
    """Show no progress."""


class Housekeeping:
    """The part of a pool that no worker needs. Raises ProvisionError."""

    def __init__(self, url: URL, lock_timeout: float = 5.0) -> None:
        if not url.database:
            raise ProvisionError(
                f"The URL {url.render_as_string()} names no database.",
                "the databases of the workers are called like it",
                'url = "postgresql+psycopg://localhost/app_test"',
            )
        self.url, self.base = url, url.database
        self._lock_timeout = lock_timeout

    @contextmanager
    def _control(self, make: bool = True) -> Iterator[Control]:
        control = Control(self.url, self._lock_timeout, make)
        try:
            yield control
        finally:
            control.close()

    @contextmanager
    def _translated(self, make: bool = False) -> Iterator[Control]:
        """The same; what the server refuses becomes a ProvisionError."""
        with self._control(make) as control:
            try:
                yield control
            except control.driver_error as error:
                raise ProvisionError(
                    f"The server refused: {_said(error)} [{sqlstate(error)}]",
                    "this role may do less than that takes, or another does the same just now",
                    "correct what the server says, or use a role that may",
                ) from error

    # -- looking --------------------------------------------------------------------------

    def rows(self) -> list[tuple[Row, bool]]:
        """All leases, each with whether its holder lives."""
        with self._control() as control:
            rows, held = control.rows(self.base), control.held()
            return [(row, row.id in held) for row in rows]

    def status(self, everything: bool = False) -> list[Entry]:
        """What there is of this pool, or of all pools on the server, for this role and the roles
        whose privileges it has. Locks nothing, and changes nothing.
        """
        with suppress(NoPoolError):
            return self._status(None if everything else self.base)
        return []

    def _status(self, base: str | None) -> list[Entry]:
        with self._translated() as control:
            rows, templates = control.rows(base, True), control.all_templates(base, True)
            kept, held, now = control.kept(base, True), control.held(), control.now()
            names = [template.name for template in templates] + [copy.name for copy in kept]
            sizes = control.sizes([*names, *(row.database for row in rows)])
            being_made = {name for name in names if control.being_made(name)}
        entries = [
            _lease_entry(row, row.id in held, now, sizes)
            for row in rows
            if row.database in sizes or row.worker is not None or row.provisioned
        ]
        for each in templates:
            building = each.name in being_made
            entries.append(_template_entry(each, building, now, sizes.get(each.name)))
        for copy in kept:
            state = "kept" if copy.name in sizes else "failed"
            state = "building" if copy.name in being_made else state
            age, size = (now - copy.made).total_seconds(), sizes.get(copy.name)
            who = copy.worker, copy.host, copy.pid
            entries.append(
                Entry(copy.name, state, copy.base, copy.role, *who, age, size, copy.test)
            )
        return entries

    def psql(self, name: str) -> str:
        """A line for a shell that leads to that database."""
        with self._translated() as control:
            if not control.exists(name):
                raise ProvisionError(
                    f"There is no database {name}.",
                    "a misspelt name, or it was dropped since",
                    "cleaner pool status",
                )
            return control.psql(name)

    # -- adding ---------------------------------------------------------------------------

    def provision(self, count: int, role: str = "", progress: Progress = _silent) -> list[str]:
        """Have ``count`` databases for ``role`` (default: the URL's) there, which its workers lease
        though it may not create any. Returns the names of those that had to be made.
        """
        made: list[str] = []
        with self._translated(make=True) as control:
            role = role or control.role()[0]
            self._check_provider(control, role)
            there = 0
            for row in control.rows(self.base, True):
                if row.worker == PROVIDER and control.lock(row.id):  # it was killed at it
                    control.forget(row)
                    control.unlock(row.id)
                elif row.role == role and row.provisioned:
                    there += 1
                    if control.mend(row):
                        made.append(row.database)
            number = 0
            while there < count:
                number += 1
                progress(f"making database {there + 1} of {count}")
                if name := control.provide(self.base, role, f"provided_{number}"):
                    made.append(name)
                    there += 1
        return made

    def _check_provider(self, control: Control, role: str) -> None:
        user, creates = control.role()
        if not creates:
            raise ProvisionError(
                f"Role {user} may not create databases.",
                "databases are provided by an administrator, for roles that may not",
                f"ALTER ROLE {quote(user)} CREATEDB, or --url with the name of one who may",
            )
        if not control.has_role(role):
            raise ProvisionError(
                f"There is no role {role}.",
                "a misspelt name, or another server",
                f"CREATE ROLE {quote(role)} LOGIN",
            )

    def keep(self, source: str, *, run: str, test: str, worker: str) -> Copy | None:
        """A copy of the database ``source`` as ``test`` of that ``run`` has left it; None if so
        many were kept of the run already as are ever kept of one.

        Idle sessions on ``source`` are ended, those in a transaction too. Raises CleanerError.
        """
        with self._translated() as control:
            name = control.keep(
                source, self.base, run=run, test=test, worker=worker, most=MOST_KEPT
            )
            return Copy(name, control.psql(name)) if name else None

    # -- tidying --------------------------------------------------------------------------

    def sweep(self, idle: timedelta = IDLE, unused: timedelta = UNUSED) -> list[str]:
        """Drop what dead workers have left, databases that nobody has used for ``idle``, templates
        that nobody has used for ``unused`` and no lease is cloned from, and those that were kept
        of failed tests for as long. Returns what was dropped.

        Touches nothing that is in use, was provisioned, or is not said to be ours by the control
        database and by its own comment.
        """
        with self._translated(make=True) as control:
            return _Tidying(control, self.base, idle, unused).run().databases

    def sweep_all(
        self, older_than: timedelta | None = None, progress: Progress = _silent
    ) -> Dropped:
        """The same, of all roles whose privileges this one has."""
        idle, unused = (IDLE, UNUSED) if older_than is None else (older_than, older_than)
        with suppress(NoPoolError), self._translated() as control:
            return _Tidying(
                control, self.base, idle, unused, everyone=True, progress=progress
            ).run()
        return Dropped()

    def drop(self, progress: Progress = _silent) -> Dropped:
        """Drop everything of this pool that is ours and that nobody uses: what a sweep would, of
        any age, and the provisioned databases, if this role could make them again.
        """
        nothing = timedelta(0)
        with suppress(NoPoolError), self._translated() as control:
            tidying = _Tidying(
                control, self.base, nothing, nothing, everyone=True, progress=progress
            )
            return tidying.run(provisioned=control.role()[1], provided=True)
        return Dropped()


class _Tidying:
    """One sweep."""

    def __init__(
        self,
        control: Control,
        base: str,
        idle: timedelta,
        unused: timedelta,
        *,
        everyone: bool = False,
        progress: Progress = _silent,
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
            self._dropped.failed[name] = _said(error)


def _lease_entry(row: Row, held: bool, now: datetime, sizes: dict[str, int | None]) -> Entry:
    if held:
        state = "building" if row.worker == PROVIDER else "leased"
    elif row.worker is not None:
        state = "dead"
    else:
        state = "provisioned" if row.provisioned else "free"
    since = row.used if row.worker is None else row.since or row.used
    taken = row.worker is not None
    return Entry(
        database=row.database,
        state=state,
        base=row.base,
        role=row.role,
        worker=row.worker,
        host=row.host if taken else None,
        pid=row.pid if taken else None,
        age=(now - since).total_seconds(),
        size=sizes.get(row.database),
        note="",
    )


def _template_entry(known: Template, building: bool, now: datetime, size: int | None) -> Entry:
    state, note, moment = "template ready", "", known.used
    if not known.ready:
        state = "building" if building else "failed"
        note = known.error or ("" if building else "its builder was killed")
        moment = known.attempted or known.used
    age = (now - moment).total_seconds()
    return Entry(known.name, state, known.base, known.role, None, None, None, age, size, note)


def _said(error: Exception) -> str:
    """What the server says, on one line."""
    return (said(error).splitlines() or [type(error).__name__])[0]
