"""The database of a test process on PostgreSQL: a lease on a clone of a template."""

from __future__ import annotations

import time
import warnings
from contextlib import suppress
from functools import partial

from sqlalchemy import URL

from cleaner.dialects.postgresql.server import Server
from cleaner.errors import (
    CleanerError,
    ConnectionBudgetWarning,
    ProvisionError,
)
from cleaner.provision.leases import Lease, Pool
from cleaner.pytest_build import Order, StillOurs

_POOLED, _OURS = 15, 3  # connections of a worker at most: QueuePool's 5 + 10, and ours


class Leased:
    """A database that no other process has: a clone of a template that is built once."""

    def __init__(self, order: Order, lease: Lease, pool: Pool, server: Server) -> None:
        self._lease = lease
        self.turn = StillOurs(lease.check).turn
        self.url = self.source = lease.url
        self.name = lease.database
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
                fingerprint, lambda url: _build(order, url, copied=bool(source)), source
            )
        intact = partial(order.intact, lease.url, lease.database)
        if self.template:
            lease.prepare(self.template, intact)
        else:
            lease.prepare(fingerprint, intact, partial(_build, order))

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

    def close(self) -> None:
        """Give the database back."""
        self._lease.release()


def leased(order: Order, pool: Pool, lease: Lease | None = None) -> Leased:
    """A database of this process's own, that of ``lease`` if it has one already.

    Raises PoolRefusedError where the role may not have one.
    """
    try:
        server = pool.look()
        lease = lease or pool.lease(order.worker)
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


def _build(order: Order, url: URL, *, copied: bool = False) -> None:
    order.build(url, url.database or "", copied=copied)
