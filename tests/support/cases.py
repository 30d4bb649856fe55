"""One clean, and all that must hold afterwards, looked at behind the cleaner's back."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

import psycopg
import pytest
from sqlalchemy import create_engine

from cleaner import Cleaner, Report
from support import observe
from support.database import Database


@dataclass(frozen=True)
class Way:
    """A strategy, and whether the plain owner of the tables runs it or the superuser."""

    strategy: str
    owner: bool = False

    def __str__(self) -> str:
        return f"{self.strategy}-owner" if self.owner else self.strategy

    def role(self, database: Database) -> str:
        return database.role if self.owner else "postgres"


AUTO, DELETE, TRUNCATE, REPLICA = map(Way, ("auto", "delete", "truncate", "replica"))
AS_SUPERUSER = (AUTO, DELETE, TRUNCATE, REPLICA)
AS_OWNER = tuple(Way(name, owner=True) for name in ("auto", "delete", "truncate"))


def ways(*chosen: Way) -> pytest.MarkDecorator:
    """The test for each of these ways to clean; for all there are if none is named."""
    return pytest.mark.parametrize("way", chosen or (*AS_SUPERUSER, *AS_OWNER), ids=str)


deleting = ways(AUTO, DELETE, REPLICA, *AS_OWNER[:2])


class Watched:
    """A cleaner and the promise that only what it is for changes in the database.

    ``kept`` tables and ``running`` sequences, schema-qualified, are those that have to stay as
    they are.
    """

    def __init__(
        self,
        database: Database,
        way: Way,
        metadata: object = None,
        *,
        kept: Collection[str] = (),
        running: Collection[str] = (),
        **settings: Any,
    ) -> None:
        if way.owner:
            database.give_away()
        self.database, self.kept, self.running = database, set(kept), set(running)
        self._sessions: list[psycopg.Connection[Any]] = []
        user = way.role(database)

        def connect() -> psycopg.Connection[Any]:
            self._sessions.append(database.connect(user, autocommit=False))
            return self._sessions[-1]

        self.cleaner = Cleaner(
            create_engine(database.url, creator=connect),
            metadata,
            strategy=way.strategy,
            **{"lock_timeout": 0.6, **settings},
        )

    def __enter__(self) -> Watched:
        return self

    def __exit__(self, *_: object) -> None:
        self.cleaner.close()

    def _settings(self) -> dict[str, str]:
        rows = self._sessions[-1].execute("SELECT name, setting FROM pg_settings")
        return {name: setting for name, setting in rows if not name.startswith("cleaner.")}

    def _outside(self) -> dict[str, list[Any]]:
        return {
            name: self.database.session.execute(
                f"SELECT t::text FROM {name} t ORDER BY 1".encode()
            ).fetchall()
            for name in self.kept
        }

    def clean(self) -> Report:
        """Clean once, and hold it to its promise."""
        self.cleaner.connect()
        settings, outside = self._settings(), self._outside()
        schema = observe.schema_text(self.database.session)
        sequences = observe.sequences(self.database.session)
        report = self.cleaner.clean()
        self.assert_clean(sequences)
        assert self._outside() == outside
        assert observe.schema_text(self.database.session) == schema
        if not self._sessions[-1].closed:
            assert settings.items() - self._settings().items() == set()
        self.assert_nothing_held()
        return report

    def assert_clean(self, before: dict[str, tuple[int, bool, int]]) -> None:
        """No rows and no sequence on its way but those that are kept."""
        counts = observe.counts(self.database.session)
        assert not self.kept - counts.keys()
        assert {name: n for name, n in counts.items() if n and name not in self.kept} == {}
        for name, (last, called, start) in observe.sequences(self.database.session).items():
            if name in self.running:
                assert (last, called, start) == before[name]
            else:
                assert (name, last, called) == (name, start, False)

    def assert_nothing_held(self) -> None:
        """No lock stays, and no transaction."""
        for session in self._sessions:
            assert session.closed or session.info.transaction_status.name == "IDLE"
        pids = [session.info.backend_pid for session in self._sessions if not session.closed]
        assert self.database.session.execute(
            "SELECT pid, mode FROM pg_locks WHERE pid = ANY (%s)", [pids]
        ).fetchall() == []  # fmt: skip


def clean(
    database: Database, way: Way, metadata: object = None, *, twice: bool = True, **keywords: Any
) -> Report:
    """Clean, and once more, when there is nothing left to do; returns the first report."""
    with Watched(database, way, metadata, **keywords) as watched:
        report = watched.clean()
        if twice:
            again = watched.cleaner.clean()
            assert again.round_trips == 1
            assert way.strategy == "truncate" or not again.tables
            assert not again.sequences
        watched.cleaner.verify()
    return report
