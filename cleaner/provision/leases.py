"""A database for each worker: a clone of a template that is built once.

    pool = Pool(url, lock_timeout)
    lease = pool.lease("gw0")              # its URL is known from here on
    template = pool.template(fingerprint, build)
    lease.prepare(template)                # now there is a database
    ...
    lease.release()

What exists and who works on it is in the server's control database, so that any number of workers,
runs and machines share a server. A lease lasts as long as its holder's connection to that; who
dies gives it back, and the next holder gets another database in its place, so that whoever was
only thought dead can't write into it.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime

from sqlalchemy import URL

from cleaner.dialects.postgresql.clone_attributes import derived
from cleaner.dialects.postgresql.control import CONTROL, Control
from cleaner.dialects.postgresql.control_leases import Row, refused
from cleaner.dialects.postgresql.control_templates import Template
from cleaner.dialects.postgresql.server import Server, look
from cleaner.errors import CleanerError, ProvisionError
from cleaner.provision.housekeeping import Housekeeping

Build = Callable[[URL], None]
_TURN = 0.05  # seconds between two looks at whether a template is built
_PATIENCE = 1800  # seconds after which its builder counts as stuck


class Pool(Housekeeping):
    """The databases on the server of ``url`` that are called like its database.

    Each method opens and closes its own connection, but for those of a lease. Raises ProvisionError
    where the role may not create databases and none were provided.
    """

    def look(self) -> Server:
        """What the server has to offer; changes nothing there.

        Raises PoolRefusedError where there would be no lease.
        """
        server = look(self.url, CONTROL, self._lock_timeout)
        if not server.creates:
            if not server.control:
                raise refused(server.role)
            with self._control() as control:
                control.check(self.base)
        return server

    def lease(self, worker: str) -> Lease:
        """A lease that no other living worker has; ``worker`` is how it is shown to others."""
        control = Control(self.url, self._lock_timeout)
        try:
            row = control.take(self.base, worker)
            return Lease(self, control, row)
        except BaseException:
            control.close()
            raise

    # -- templates ------------------------------------------------------------------------

    def template(self, fingerprint: str, build: Build, source: str = "") -> str:
        """The name of the template for that fingerprint, which ``build`` has made of an empty
        database, or of a copy of ``source``; once, however many ask at once.

        Where ``build`` fails all who wait for it get that error, and the next who asks tries again.
        """
        with self._control() as control:
            shape = f"{control.role()[0]} {self.base} {fingerprint}"  # only its owner may clone it
            digest = hashlib.sha256(shape.encode()).hexdigest()[:12]
            name = derived(self.base, f"template_{digest}")
            since = control.now()
            deadline = time.monotonic() + _PATIENCE
            while not _ready(control.template(name)):
                if control.lock_template(name):
                    try:
                        self._build(control, name, build, source, since)
                    finally:
                        control.unlock_template(name)
                elif time.monotonic() > deadline:
                    raise ProvisionError(
                        f"Another process has been building {name} for half an hour.",
                        "its setup hangs, or waits for something that this process holds",
                        "end it; cleaner pool status",
                    )
                else:
                    time.sleep(_TURN)
            control.use_template(name)
        return name

    def _build(
        self,
        control: Control,
        name: str,
        build: Build,
        source: str,
        since: datetime,
    ) -> None:
        """Build it, unless that was done or tried in vain since we have been waiting for it."""
        known = control.template(name)
        if known is not None and _ready(known):
            return
        if known is not None and known.error and known.attempted and known.attempted > since:
            raise ProvisionError(
                f"The template of {self.base} could not be built: {known.error}",
                "cleaner_setup failed in the worker that ran it, for all who wait for it",
                "correct it; the next run tries again",
            )
        control.begin_template(name, self.base)
        being_built = derived(name, "build")
        control.drop(being_built)
        opened = control.opened

        def alone() -> bool:
            """Whether the lock is still ours: else somebody else may be building it."""
            control.now()
            return control.opened == opened

        try:
            control.create(being_built, source)
            build(self.url.set(database=being_built))
            if not alone():
                raise ProvisionError(
                    f"The connection that kept others from building {name} was lost.",
                    "the server was restarted, or somebody has ended its sessions",
                    "run the tests again; if it happens again, look at the server's log",
                )
            control.mark(being_built, f"for the tests of {self.base}")  # and so is each clone
            control.clones(being_built, name).make_template()
        except BaseException as error:
            # Ctrl-C is no failure: whoever waits for it builds.
            with suppress(CleanerError, control.driver_error):
                if alone() and not isinstance(error, KeyboardInterrupt):
                    control.end_template(name, f"{type(error).__name__}: {error}")
            raise
        finally:
            with suppress(CleanerError, control.driver_error):
                if alone():
                    control.drop(being_built)
        control.end_template(name, None)


def _ready(template: Template | None) -> bool:
    return template is not None and template.ready


class Lease:
    """The right to a database. ``url`` leads to it, once :meth:`prepare` has made it."""

    def __init__(self, pool: Pool, control: Control, row: Row) -> None:
        self._control, self._row = control, row
        self._opened = control.opened
        self.url = pool.url.set(database=row.database)

    @property
    def database(self) -> str:
        """The name of the database."""
        return self._row.database

    @property
    def provisioned(self) -> bool:
        """Whether the database is there for good, and can't be replaced by a clone."""
        return self._row.provisioned

    def prepare(self, template: str, intact: Callable[[], str], build: Build | None = None) -> None:
        """Have a database there that is a clone of the template; or, where one was provisioned and
        can't be replaced, that ``build`` has made like it.

        ``intact`` tells the fingerprint of its schema now, or raises CleanerError: a database that
        was given back with another one is made anew.
        """
        self.check()
        control, row = self._control, self._row
        control.bury(row)
        if row.template == template:
            with suppress(CleanerError):
                if intact() == row.schema:
                    return
        control.note(row, None)
        if build is None:
            control.clones(row.database, template).recreate()
        else:
            control.empty(row)
            build(self.url)
        try:
            self.check()
        except ProvisionError:
            if build is None:
                with suppress(control.driver_error):
                    control.drop(row.database)  # nobody else knows of it any more
            raise
        control.note(row, template, intact())

    def check(self) -> None:
        """Raise ProvisionError if the lease is not ours any more."""
        control = self._control
        control.now()  # opens another connection where the old one was lost, and with it the lock
        if control.opened == self._opened:
            return
        current = control.row(self._row.id)
        if (
            current is not None
            and current.generation == self._row.generation
            and control.lock(self._row.id)
        ):
            self._opened = control.opened
            return
        raise ProvisionError(
            f"The database {self._row.database} was given to another worker.",
            "the connection that showed that this one lives was lost for too long",
            "run the tests again; if it happens again, look at the server's log",
        )

    def release(self) -> None:
        """Give the database back, as it is."""
        try:
            self.check()
            self._control.give_back(self._row)
        finally:
            self._control.close()
