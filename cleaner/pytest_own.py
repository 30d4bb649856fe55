"""The database of a test process where there is no pool: one that its dialect makes, or turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial

from sqlalchemy import URL, Engine

from cleaner import guard
from cleaner.dialects import OwnDatabase, Turns
from cleaner.errors import SettingsError
from cleaner.pytest_build import Order, build


class Own:
    """A database that its dialect makes for this process beside the configured one."""

    template = ""
    unkept = "only databases of PostgreSQL are copied"

    def __init__(self, order: Order, own: OwnDatabase) -> None:
        self._own, self.name = own, own.name
        try:
            guard.check(own.base, order.settings.allow_databases)
            own.prepare(lambda: order.fingerprint(own.server), partial(self._build, order))
            self.source: URL | Engine = own.source
            with order.cleaner(self.source, own.name) as cleaner:
                self.url = cleaner.connect()
                order.intact(cleaner)
        except BaseException:
            own.close()
            raise

    def _build(self, order: Order, source: URL | Engine, name: str) -> None:
        with order.cleaner(source, name) as cleaner:
            build(cleaner, order.setup, seeds=True)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """During a test: nobody else has it anyway."""
        yield

    def close(self) -> None:
        """Let go of the database."""
        self._own.close()


class Shared:
    """The configured database itself, which the tests of all processes have one at a time."""

    template = ""
    name = ""

    def __init__(self, order: Order, turns: Turns | None, reason: str) -> None:
        if turns is None and order.workers > 1:
            raise SettingsError(
                f"{order.workers} workers can't share {order.url.render_as_string()}: {reason}.",
                "cleaner knows no way to let them take turns at a database of this kind",
                "pytest -n 0",
            )
        self._turns = turns
        self.unkept = f"all tests share one database: {reason}"
        with order.cleaner(order.url) as cleaner:
            self.url = cleaner.connect()
        self.source: URL | Engine = self.url
        with self.turn(), order.cleaner(self.url) as cleaner:
            build(cleaner, order.setup, seeds=order.seeds)

    @contextmanager
    def turn(self) -> Iterator[None]:
        """During a test: nobody else has the database."""
        with self._turns.turn() if self._turns else nullcontext():
            yield

    def close(self) -> None:
        """Let go of the database."""
        if self._turns is not None:
            self._turns.close()
