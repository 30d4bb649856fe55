"""Connections of asynchronous drivers, each of which belongs to an event loop."""

from __future__ import annotations

import asyncio
import socket
import threading
import weakref
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from sqlalchemy import Dialect
from sqlalchemy.util import await_only, greenlet_spawn

Result = TypeVar("Result")

_GRACE = 2.0  # seconds in which a connection is to be closed in the orderly way


# -- closing --------------------------------------------------------------------------------


def close(dialect: Dialect, connection: Any) -> None:
    """Close the driver's ``connection`` in its own running loop: in the orderly way if the server
    answers in time and nobody cancels it, else at once. Called in a greenlet.
    """
    try:
        await_only(asyncio.wait_for(greenlet_spawn(connection.close), _GRACE))
    except Exception:
        kill(dialect, connection)
    except BaseException:
        kill(dialect, connection)
        raise


def kill(dialect: Dialect, connection: Any) -> None:
    """Close it at once, in its own running loop, without a word to the server. Waits for nobody
    but a driver's own thread. Called in a greenlet.
    """
    driver = connection.driver_connection

    async def kill_outside_of_the_greenlet() -> None:  # inside, SQLAlchemy would wait
        if hasattr(driver, "interrupt"):
            await _end_thread(driver)
        else:
            abandon(dialect, connection)
            await asyncio.sleep(0)  # in which the loop closes the socket

    await_only(kill_outside_of_the_greenlet())


async def _end_thread(driver: Any) -> None:
    """End aiosqlite's thread, which reports to the loop, and so has to be outlived by it."""
    if not getattr(driver, "_thread", driver).is_alive():
        return
    with suppress(Exception):
        await driver.interrupt()
    stop = getattr(driver, "stop", driver.close)  # which older versions don't have
    ended, cancelled = asyncio.ensure_future(stop()), None
    deadline = asyncio.get_running_loop().time() + _GRACE
    while not ended.done() and asyncio.get_running_loop().time() < deadline:
        try:
            await asyncio.wait([ended], timeout=_GRACE)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


def abandon(
    dialect: Dialect, connection: Any, loop: asyncio.AbstractEventLoop | None = None
) -> None:
    """Close it at once, from wherever; ``loop`` is the loop that it belongs to, if that is not
    the one that runs here.
    """
    if loop is not None and loop.is_running():
        loop.call_soon_threadsafe(abandon, dialect, connection)
        return
    driver = connection.driver_connection
    transport = _transport(driver)
    if transport is not None:
        # The server is to hear of it now: the loop may do nothing any more, or not for a while.
        with suppress(OSError, AttributeError):
            transport.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
    with suppress(Exception):
        if hasattr(driver, "pgconn"):  # psycopg's way, which SQLAlchemy would wait for
            driver.pgconn.finish()
        else:
            dialect.do_terminate(connection)
    if transport is not None and loop is not None and loop.is_closed():
        with suppress(Exception):  # what the loop would have been left to do
            transport._call_connection_lost(None)


def fileno(connection: Any) -> int:
    """The descriptor of the connection's socket."""
    driver = connection.driver_connection
    transport = _transport(driver)
    found: int = (
        driver.fileno() if transport is None else transport.get_extra_info("socket").fileno()
    )
    return found


def _transport(driver: Any) -> Any:
    """Asyncio's transport, in the drivers that have one."""
    writer = getattr(driver, "_writer", None)
    return getattr(writer, "transport", None) or getattr(driver, "_transport", None)


# -- the end of a loop ----------------------------------------------------------------------


class Guest(Protocol):
    """What has a connection that belongs to a loop."""

    def leave(self) -> None:
        """Close the connection; called in a greenlet. Harmless if there is none."""


@dataclass(frozen=True)
class _Watch:
    """Of a loop: who has connections there, and the generator that the loop's shutdown ends."""

    guests: weakref.WeakSet[Guest]
    generator: AsyncGenerator[None, None]


_watches: dict[asyncio.AbstractEventLoop, _Watch] = {}


def at_shutdown(guest: Guest) -> None:
    """Have ``guest`` leave when the running loop is shut down, as asyncio.run() and test runners
    do before they close it. Called in a greenlet.
    """
    loop = asyncio.get_running_loop()
    if loop not in _watches:
        for other in [other for other in _watches if other.is_closed()]:
            del _watches[other]
        guests: weakref.WeakSet[Guest] = weakref.WeakSet()
        generator = _until_shutdown(loop, guests)
        await_only(generator.__anext__())
        _watches[loop] = _Watch(guests, generator)
    _watches[loop].guests.add(guest)


async def _until_shutdown(
    loop: asyncio.AbstractEventLoop, guests: weakref.WeakSet[Guest]
) -> AsyncGenerator[None, None]:
    try:
        yield
    finally:
        for guest in list(guests):
            await greenlet_spawn(guest.leave)
        _watches.pop(loop, None)


# -- a loop of our own ----------------------------------------------------------------------


class LoopThread:
    """An event loop in a thread of its own, where synchronous code has an asynchronous driver
    work. Starts when first used, and again after :meth:`stop`.
    """

    def __init__(self) -> None:
        self.loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    def run(self, work: Callable[[], Result]) -> Result:
        """What ``work()`` returns, which is run there in a greenlet."""
        if self.loop is None:
            self.loop = asyncio.new_event_loop()
            self._thread = threading.Thread(
                target=_serve, args=(self.loop,), name="cleaner", daemon=True
            )
            self._thread.start()
        if self._thread is threading.current_thread():
            return work()
        future = asyncio.run_coroutine_threadsafe(greenlet_spawn(work), self.loop)
        try:
            return future.result()
        except BaseException:  # Ctrl-C, a timeout: or else what ``work()`` has raised
            future.cancel()
            raise

    def stop(self) -> None:
        """End the thread."""
        loop, thread = self.loop, self._thread
        self.loop = self._thread = None
        if loop is None or thread is None or not thread.is_alive():
            return
        loop.call_soon_threadsafe(loop.stop)
        if thread is not threading.current_thread():  # a garbage collection may be anywhere
            thread.join()


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(_end_others())
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


async def _end_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
