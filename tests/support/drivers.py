"""Every driver of PostgreSQL, synchronous and asynchronous, behind one face."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, cast

from sqlalchemy import URL

from cleaner import AsyncCleaner, Cleaner

Result = TypeVar("Result")

SYNC, ASYNC = ("psycopg", "psycopg2", "pg8000"), ("asyncpg", "psycopg")
KINDS = (*SYNC, *(f"async {driver}" for driver in ASYNC))


def url_for(kind: str, url: URL, host: str = "127.0.0.1") -> URL:
    """The URL for a kind of driver, over TCP, which all of them understand alike."""
    driver = kind.removeprefix("async ")
    return url.set(drivername=f"postgresql+{driver}", host=host, query={})


class Blocking:
    """An AsyncCleaner with the methods of a Cleaner, each run to its end in one event loop."""

    def __init__(self, inner: AsyncCleaner, loop: asyncio.AbstractEventLoop | None = None) -> None:
        self.inner = inner
        self.loop = loop or asyncio.new_event_loop()
        self._owner = loop is None

    def run(self, work: Callable[[], Awaitable[Result]]) -> Result:
        async def awaited() -> Result:
            return await work()

        return self.loop.run_until_complete(awaited())

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.inner, name)
        if not callable(found):
            return found
        return lambda *args, **keywords: self.run(lambda: found(*args, **keywords))

    @property
    def captured(self) -> dict[str, int]:
        return self.run(self.inner.captured)

    def using(self, **keywords: Any) -> Blocking:
        return Blocking(self.inner.using(**keywords), self.loop)

    def __enter__(self) -> Blocking:
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self.run(self.inner.close)
        finally:
            if self._owner:
                self.loop.run_until_complete(self.loop.shutdown_asyncgens())
                self.loop.close()


def cleaner_for(kind: str, url: URL, metadata: object = None, **settings: Any) -> Cleaner:
    """A cleaner by that kind of driver."""
    url = url_for(kind, url)
    if kind in SYNC:
        return Cleaner(url, metadata, **settings)
    return cast(Cleaner, Blocking(AsyncCleaner(url, metadata, **settings)))
