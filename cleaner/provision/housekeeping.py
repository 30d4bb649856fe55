"""What there is of a pool, and how an administrator adds to it and tidies it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

from sqlalchemy import URL

from cleaner.dialects.postgresql.control import Control
from cleaner.dialects.postgresql.control_databases import NoPoolError
from cleaner.dialects.postgresql.control_leases import PROVIDER, Row
from cleaner.dialects.postgresql.control_templates import Template
from cleaner.dialects.postgresql.failures import first_line, sqlstate
from cleaner.dialects.postgresql.sql import quote
from cleaner.errors import ProvisionError
from cleaner.provision.tidying import Dropped, Progress, Tidying, silent

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


@dataclass(frozen=True)
class Copy:
    """A database that was kept, and the line for a shell that leads there."""

    name: str
    psql: str


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
                    f"The server refused: {first_line(error)} [{sqlstate(error)}]",
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

    def provision(self, count: int, role: str = "", progress: Progress = silent) -> list[str]:
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
            return Tidying(control, self.base, idle, unused).run().databases

    def sweep_all(
        self, older_than: timedelta | None = None, progress: Progress = silent
    ) -> Dropped:
        """The same, of all roles whose privileges this one has."""
        idle, unused = (IDLE, UNUSED) if older_than is None else (older_than, older_than)
        with suppress(NoPoolError), self._translated() as control:
            return Tidying(control, self.base, idle, unused, everyone=True, progress=progress).run()
        return Dropped()

    def drop(self, progress: Progress = silent) -> Dropped:
        """Drop everything of this pool that is ours and that nobody uses: what a sweep would, of
        any age, and the provisioned databases, if this role could make them again.
        """
        nothing = timedelta(0)
        with suppress(NoPoolError), self._translated() as control:
            tidying = Tidying(
                control, self.base, nothing, nothing, everyone=True, progress=progress
            )
            return tidying.run(provisioned=control.role()[1], provided=True)
        return Dropped()


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
