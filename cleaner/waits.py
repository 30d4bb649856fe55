"""Waiting: a Cleaner blocks its thread meanwhile, an AsyncCleaner lets its event loop go on.

The code between the two and the database is one and the same. For an AsyncCleaner it runs in a
greenlet of SQLAlchemy's, and is *awaited*: a wait is handed to the event loop.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

Result = TypeVar("Result")

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
        try:
            return await greenlet_spawn(work)
        except BaseException as error:
            if not isinstance(error, Exception):
                _let_go(error)
            raise


def _let_go(ended_by: BaseException) -> None:
    """Clear what was cut short. Of SQLite a statement lives, and keeps its locks though its
    connection was closed, for as long as somebody has the cursor.
    """
    error: BaseException | None = ended_by
    while error is not None:
        traceback.clear_frames(error.__traceback__)
        error = error.__context__


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


def pause(seconds: float) -> None:
    """Wait that long."""
    if not is_awaited():
        time.sleep(seconds)
        return
    import asyncio

    from sqlalchemy.util import await_only

    await_only(asyncio.sleep(seconds))
