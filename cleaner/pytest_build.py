"""What is in a test database at first: the schema and the seed that the user's set-up builds."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass

from sqlalchemy import URL, Engine, create_engine
from sqlalchemy.pool import NullPool

from cleaner.api import Cleaner
from cleaner.errors import SchemaChangedError, SettingsError
from cleaner.settings import Settings

Setup = Callable[[Engine], None]
_CHECKED = 1.0  # seconds for which a database that was ours is taken to be so still


def settings_for(settings: Settings, source: URL | Engine, name: str = "") -> Settings:
    """The settings for the database of ``source``; with the ``name`` of one that was made for one
    which they allow, since that itself may not be called as they say.
    """
    chosen: dict[str, object] = {"url": source}
    if name:
        chosen["allow_databases"] = (*(settings.allow_databases or ()), name)
    return settings.merged(chosen, "fixture")


@dataclass(frozen=True)
class Order:
    """What is wanted: a database for ``worker``, beside that of ``url`` and called like it, its
    schema and seed as ``setup`` builds them. ``fingerprint`` is given the server's version and
    changes when those do. ``seeds`` is whether ``setup`` is the user's own.
    """

    settings: Settings
    url: URL
    worker: str
    workers: int
    setup: Setup
    fingerprint: Callable[[str], str]
    seeds: bool

    def cleaner(self, source: URL | Engine, name: str = "") -> Cleaner:
        """A cleaner of that database; with the ``name`` of one that was made for this order."""
        return Cleaner(settings=settings_for(self.settings, source, name))

    def build(self, source: URL | Engine, name: str, *, copied: bool = False) -> None:
        """Build schema and seed in that database, which is empty, or ``copied`` from the configured
        one: less the rows that are not its baseline.
        """
        with self.cleaner(source, name) as cleaner:
            # Rows are kept as rows: what can be recreated later is a copy of what is built here.
            plain = cleaner.using(strategy="auto", strategy_options={})
            if copied:
                plain.clean()
            build(plain, self.setup, seeds=True)

    def intact(self, source: URL | Engine, name: str) -> str:
        """The fingerprint of the schema of a database that was used before; and clean that."""
        with self.cleaner(source, name) as cleaner:
            cleaner.plan()
            if not cleaner.strategy.recreates:  # what a run has left that did not clean
                cleaner.clean()
            return cleaner.fingerprint


class StillOurs:
    """During a test: ``check``, which raises where the database was given to another."""

    def __init__(self, check: Callable[[], None]) -> None:
        self._check, self._checked = check, time.monotonic()

    @contextmanager
    def turn(self) -> Iterator[None]:
        if time.monotonic() - self._checked > _CHECKED:
            self._check()
            self._checked = time.monotonic()
        yield


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
    url, given = cleaner.connect(), cleaner.settings.url
    if isinstance(given, Engine):  # there may be no other way to the database
        setup(given)
    else:
        engine = create_engine(url, poolclass=NullPool)
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
