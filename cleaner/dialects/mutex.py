"""Who uses a session of several threads, or event loops."""

from __future__ import annotations

import asyncio
import threading
import time

from cleaner import waits
from cleaner.errors import BlockedError

_TURN = 0.005  # seconds between two tries to take it without blocking


class Mutex:
    """A lock that its thread may take again. An event loop goes on while one of its tasks waits.

    Raises BlockedError where it was taken in an event loop that has not run for ``patience``
    seconds: nobody knows whether it will.
    """

    def __init__(self, patience: float) -> None:
        self._lock = threading.RLock()
        self._patience = patience
        self._loop: asyncio.AbstractEventLoop | None = None  # in which it was taken

    def __enter__(self) -> None:
        if not waits.is_awaited():
            self._lock.acquire()
            return
        ran = time.monotonic()
        while not self._lock.acquire(blocking=False):
            if self._loop is None or self._loop.is_running():
                ran = time.monotonic()
            if time.monotonic() > ran + self._patience:
                raise BlockedError(
                    "Another event loop has left a call of this AsyncCleaner unfinished.",
                    "it was stopped meanwhile, by the timeout of a test for instance",
                    "an AsyncCleaner for each loop, or cancel the call before its loop is stopped",
                )
            waits.pause(_TURN)
        self._loop = asyncio.get_running_loop()

    def __exit__(self, *raised: object) -> None:
        self._lock.release()
