"""The database of a test process where there is no pool: one that its dialect makes, or turns."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

from sqlalchemy import URL, Engine

from cleaner.dialects import OwnDatabase, Prepared, Turns
from cleaner.errors import SettingsError
from cleaner.pytest_build import Order, StillOurs, build


class Own:
    """A database that its dialect makes for this process beside the configured one."""

    unkept = "databases of this kind can't be copied"

    def __init__(self, order: Order, own: OwnDatabase) -> None:
        self._own, self.name = own, own.name
        self.turn = StillOurs(own.check).turn
        try:
            own.prepare(Prepared(order.fingerprint, order.build, order.intact))
            self.source, self.template = own.source, own.template
            self.url = _url_of(order, own.source, own.name)
        except BaseException:
            own.close()
            raise

    def close(self) -> None:
        """Let go of the database."""
        self._own.close()


def _url_of(order: Order, source: URL | Engine, name: str = "") -> URL:
    """The URL by which tests connect, with the driver that was asked for."""
    with order.cleaner(source, name) as cleaner:
        found = cleaner.connect()
    return source if isinstance(source, URL) and source.get_driver_name() else found


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
        self.url = _url_of(order, order.url)
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
