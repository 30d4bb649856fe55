"""Waiting: a Cleaner blocks its thread meanwhile, an AsyncCleaner lets its event loop go on.

The code between the two and the database is one and the same. For an AsyncCleaner it runs in a
greenlet of SQLAlchemy's, and is *awaited*: a wait is handed to the event loop.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Result = TypeVar("Result")

_TURN = 0.005  # seconds between two tries to take a lock without blocking

_awaited: ContextVar[bool] = ContextVar("cleaner_awaited", default=False)


def is_awaited() -> bool:
    """Whether this code works for an AsyncCleaner."""
    return _awaited.get()


@contextmanager
def awaited(by_async_cleaner: bool = True) -> Iterator[None]:
    """Let the body work for an AsyncCleaner, or not."""
    token = _awaited.set(by_async_cleaner)
    try:
        yield
    finally:
        _awaited.reset(token)


async def run(work: Callable[[], Result]) -> Result:
    """What ``work()`` returns; it is awaited."""
    from sqlalchemy.util import greenlet_spawn

    with awaited():
        return await greenlet_spawn(work)


async def finish(work: Callable[[], Result]) -> Result:
    """The same, but who cancels it waits for its end."""
    import asyncio

    task = asyncio.ensure_future(run(work))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait([task])
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        task.cancelled() or task.exception()  # which is nobody's concern any more
        raise cancelled
    return task.result()


class Mutex:
    """A lock that its thread may take again. An event loop goes on while one of its tasks waits."""

    def __init__(self) -> None:
        self._lock = threading.RLock()

    def __enter__(self) -> None:
        while not self._lock.acquire(blocking=not is_awaited()):
            pause(_TURN)

    def __exit__(self, *raised: object) -> None:
        self._lock.release()


def pause(seconds: float) -> None:
    """Wait that long."""
    if not is_awaited():
        time.sleep(seconds)
        return
    import asyncio

    from sqlalchemy.util import await_only

    await_only(asyncio.sleep(seconds))
