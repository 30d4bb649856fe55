"""``AsyncCleaner``: the Cleaner for asyncio."""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from types import TracebackType
from typing import Any, TypeVar

from sqlalchemy import URL
from sqlalchemy.ext.asyncio import AsyncEngine

from cleaner import waits
from cleaner.api import Cleaner
from cleaner.difference import Diff
from cleaner.errors import SettingsError
from cleaner.settings import Settings
from cleaner.spi import Plan, Report, Strategy

Result = TypeVar("Result")


class AsyncCleaner:
    """Puts a test database back to its baseline, without blocking the event loop.

    Like :class:`cleaner.Cleaner`, whose work it does, but for a URL whose driver works with
    asyncio, or an AsyncEngine. Each method that waits is awaited, promises what its namesake does
    and raises the same.

    It holds one connection of its own, which belongs to the running event loop: it is closed when
    that loop is shut down, and replaced when the next call comes from another loop. Tasks may
    share it, and take turns. When a call is cancelled, the connection is closed at once, and the
    server rolls back. With the application's connection to a database in memory that would go, too:
    there the call is finished first.
    """

    def __init__(
        self,
        url: str | URL | AsyncEngine | None = None,
        metadata: object = None,
        *,
        settings: Settings | None = None,
        **keywords: Any,
    ) -> None:
        if url is not None:
            keywords["url"] = url
        with waits.awaited():
            self._cleaner = Cleaner(metadata=metadata, settings=settings, **keywords)
        self._turns = _Turns()

    async def _awaited(self, work: Callable[[], Result]) -> Result:
        run = waits.run if self._cleaner.cancellable else waits.finish
        async with self._turns.here():
            return await run(work)

    @property
    def settings(self) -> Settings:
        """The settings in use."""
        return self._cleaner.settings

    @property
    def strategy(self) -> Strategy:
        """The strategy in use."""
        return self._cleaner.strategy

    async def clean(self) -> Report:
        """Put every table of the target back to its baseline, and every sequence to its START."""
        return await self._awaited(self._cleaner.clean)

    async def plan(self) -> Plan:
        """What :meth:`clean` would do now. Looks at the database and runs nothing."""
        return await self._awaited(self._cleaner.plan)

    async def verify(self) -> None:
        """Look at every row and sequence; raises NotCleanError where one is not at its baseline."""
        await self._awaited(self._cleaner.verify)

    async def diff(self, samples: int = 3) -> Diff:
        """What differs from the baseline now; false if nothing does."""
        return await self._awaited(lambda: self._cleaner.diff(samples))

    async def capture(self, tables: Iterable[str] | None = None) -> None:
        """From now on the baseline is what the database holds at this moment."""
        await self._awaited(lambda: self._cleaner.capture(tables))

    async def release(self) -> None:
        """Forget what was captured: from now on the baseline is no rows."""
        await self._awaited(self._cleaner.release)

    async def captured(self) -> dict[str, int]:
        """How many rows are the baseline of a table of the target, for those that have any."""
        return await self._awaited(lambda: self._cleaner.captured)

    async def describe(self) -> frozenset[str]:
        """What the schema consists of: a line for each table, column, constraint and so on."""
        return await self._awaited(self._cleaner.describe)

    async def fingerprint(self) -> str:
        """A fingerprint of the schema as the last clean found it."""
        return await self._awaited(lambda: self._cleaner.fingerprint)

    async def server(self) -> str:
        """The kind and version of the server, for instance ``postgresql 18.6``."""
        return await self._awaited(lambda: self._cleaner.server)

    async def connect(self) -> URL:
        """Connect now; returns the URL, with the driver that was chosen for it."""
        return await self._awaited(self._cleaner.connect)

    @asynccontextmanager
    async def cleaning(self) -> AsyncIterator[AsyncCleaner]:
        """Clean when the body ends, whatever happens in it."""
        try:
            yield self
        finally:
            await self.clean()

    def using(self, **keywords: object) -> AsyncCleaner:
        """A cleaner with other settings that shares this one's connection."""
        other = object.__new__(type(self))
        other._cleaner = self._cleaner.using(**keywords)
        other._turns = self._turns
        return other

    async def close(self) -> None:
        """Close the connection. The cleaner can be used again, and opens another."""
        await self._awaited(self._cleaner.close)

    async def __aenter__(self) -> AsyncCleaner:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    def __repr__(self) -> str:
        return f"Async{self._cleaner!r}"


class _Turns:
    """One task at a time, in each event loop: threads take turns by the session's mutex, which
    lets all tasks of one thread through.
    """

    def __init__(self) -> None:
        self._locks: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]
        self._locks = weakref.WeakKeyDictionary()

    def here(self) -> asyncio.Lock:
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError as error:
            raise SettingsError(
                "An AsyncCleaner was awaited without an event loop of asyncio.",
                "it is used under trio, with which SQLAlchemy does not work",
                "with anyio: the backend asyncio; else Cleaner, which blocks meanwhile",
            ) from error
        return self._locks.setdefault(loop, asyncio.Lock())
