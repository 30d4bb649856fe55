"""The database of a test process: where it comes from."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.pool import NullPool

from cleaner.api import Cleaner
from cleaner.dialects.postgresql.server import Server
from cleaner.dialects.postgresql.turns import Turns
from cleaner.errors import (
    CleanerError,
    ConnectionBudgetWarning,
    PoolRefusedError,
    ProvisionError,
    SchemaChangedError,
    SettingsError,
)
from cleaner.provision.leases import Lease, Pool
from cleaner.settings import Settings

Setup = Callable[[Engine], None]
_POOLED, _OURS = 15, 3  # connections of a worker at most: QueuePool's 5 + 10, and ours
_CHECKED = 1.0  # seconds for which a lease that was ours is taken to be so still


def settings_for(settings: Settings, url: URL) -> Settings:
    """The settings for a database that was made for one which they allow. Its own name may be too
    long to say so.
    """
    allowed = (*(settings.allow_databases or ()), url.database or "test")
    return settings.merged({"url": url, "allow_databases": allowed}, "fixture")


@dataclass(frozen=True)
class Order:
    """What is wanted: a database for ``worker`` on the server of ``url``, called like its database,
    its schema and seed as ``setup`` builds them. ``fingerprint`` is given the server's version and
    changes when those do. ``seeds`` is whether ``setup`` is the user's own.
    """

    settings: Settings
    url: URL
    worker: str
    workers: int
    setup: Setup
    fingerprint: Callable[[str], str]
    seeds: bool

    def cleaner(self, url: URL) -> Cleaner:
        """A cleaner of that database."""
        return Cleaner(settings=settings_for(self.settings, url))


class Leased:
    """A database that no other process has: a clone of a template that is built once."""

    def __init__(self, order: Order, lease: Lease, pool: Pool, server: Server) -> None:
        self._lease, self._checked = lease, time.monotonic()
        self.url = lease.url
        self.unkept = (
            "its database was provided, for a role that may not create the copy"
            if lease.provisioned
            else ""
        )
        source, shape = ("", "") if order.seeds or not server.base else self._source(order, pool)
        fingerprint = order.fingerprint(f"{server.version} {shape}")
        self.template = ""
        if not lease.provisioned:
            self.template = pool.template(
                fingerprint, lambda url: _build(order, url, source), source
            )
        with order.cleaner(lease.url) as cleaner:

            def intact() -> str:
                cleaner.plan()
                if not cleaner.strategy.recreates:  # what a run has left that did not clean
                    cleaner.clean()
                return cleaner.fingerprint

            if self.template:
                lease.prepare(self.template, intact)
            else:
                lease.prepare(fingerprint, intact, lambda url: _build(order, url, ""))

    def _source(self, order: Order, pool: Pool) -> tuple[str, str]:
        """The configured database if its schema is the one to have, and its fingerprint."""
        for patience in (0.1, 0.3, 1.0, 0.0):
            try:
                with order.cleaner(order.url) as cleaner:
                    cleaner.plan()
                    tables = any(line.startswith("table ") for line in cleaner.describe())
                    return (pool.base, cleaner.fingerprint) if tables else ("", "")
            except ProvisionError:  # a worker that copies it has ended our session
                if not patience:
                    raise
                time.sleep(patience)
        raise AssertionError

    @contextmanager
    def turn(self) -> Iterator[None]:
        """During a test: make sure that the database is still ours."""
        if time.monotonic() - self._checked > _CHECKED:
            self._lease.check()
            self._checked = time.monotonic()
        yield

    def close(self) -> None:
        """Give the database back."""
        self._lease.release()


class Shared:
    """The configured database itself, which the tests of all processes have one at a time."""

    template = ""

    def __init__(self, order: Order, reason: str) -> None:
        self.unkept = f"all tests share one database: {reason}"
        with order.cleaner(order.url) as cleaner:
            self.url = cleaner.connect()
        self._turns = Turns(self.url, order.settings.lock_timeout)
        with self.turn(), order.cleaner(self.url) as cleaner:
            build(cleaner, order.setup, seeds=order.seeds)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """During a test: nobody else has the database."""
        with self._turns.turn():
            yield

    def close(self) -> None:
        """Let go of the database."""
        self._turns.close()


def provide(order: Order, pool: Pool, lease: Lease | None = None) -> Leased | Shared:
    """A database of this process's own, that of ``lease`` if it has one already; else, where the
    role may not have one, turns at the configured one.
    """
    try:
        try:
            server = pool.look()
            lease = lease or pool.lease(order.worker)
        except PoolRefusedError as error:
            return Shared(order, f"{error.what} {error.remedy}")
        if order.worker in ("main", "gw0"):
            with suppress(CleanerError):  # another run's sweep, for instance: the next one does it
                pool.sweep()
            _check_budget(order, server.free)
        return Leased(order, lease, pool, server)
    except BaseException:
        if lease is not None:
            lease.release()
        raise


def _check_budget(order: Order, free: int) -> None:
    """Warn, before the first test, if the workers' connections will be too many."""
    needed = order.workers * (_POOLED + _OURS)
    if needed > free:
        warnings.warn(
            f"{order.workers} workers may need {needed} connections (SQLAlchemy's pool of "
            f"{_POOLED} each, and {_OURS} of cleaner's), and the server has {free} to give: "
            f"-n {max(1, free // (_POOLED + _OURS))}, or max_connections = "
            f"{needed + 20} in postgresql.conf",
            ConnectionBudgetWarning,
            stacklevel=2,
        )


def _build(order: Order, url: URL, source: str) -> None:
    """Make the template: by the user's setup, or of what is in a copy of the configured database,
    less the rows that are not its baseline.
    """
    with order.cleaner(url) as cleaner:
        if source:
            cleaner.clean()
        build(cleaner, order.setup, seeds=True)


def build(cleaner: Cleaner, setup: Setup, *, seeds: bool) -> None:
    """Let ``setup`` build schema and seed, and make that the baseline.

    ``seeds`` is whether it may have written rows that were not there before; rows that it does
    not answer for don't become the baseline of an empty table. What an earlier run captured is
    restored first. Raises what the cleaner raises, and whatever ``setup`` does.
    """
    if cleaner.captured:
        with suppress(SchemaChangedError):  # by a migration, for instance
            cleaner.clean()
        seeds = True
    elif not seeds:
        seeds = not _holds_rows(cleaner)
    engine = create_engine(cleaner.connect(), poolclass=NullPool)
    try:
        setup(engine)
    finally:
        engine.dispose()
    if seeds and _holds_rows(cleaner):
        cleaner.capture()


def _holds_rows(cleaner: Cleaner) -> bool:
    """Whether there are any that are not the baseline."""
    try:
        return bool(cleaner.diff(samples=0).tables)
    except SettingsError:  # `only` names tables that are still to be made
        return False
