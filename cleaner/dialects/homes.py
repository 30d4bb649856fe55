"""Where the calls of a held connection's driver are made."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from sqlalchemy import Connection, Dialect

from cleaner.dialects import loops

Result = TypeVar("Result")


class Home(Protocol):
    """All of it is about a connection of the driver's, as SQLAlchemy adapts it."""

    def is_here(self) -> bool:
        """Whether the connection can be used in this place."""

    def run(self, work: Callable[[], Result]) -> Result:
        """What ``work()`` returns, which calls the driver."""

    def settle(self, guest: loops.Guest) -> None:
        """Tell ``guest``, whose connection was just opened, when it is time to leave."""

    def close(self, connection: Any) -> None:
        """Close it in the orderly way."""

    def kill(self, connection: Any) -> None:
        """Close it at once, whatever it is doing."""

    def abandon(self, connection: Any) -> None:
        """Close it at once, in whatever place this is called."""

    def fileno(self, connection: Any) -> int:
        """The descriptor of its socket."""

    def disown(self, connection: Connection) -> None:
        """In a forked child: close the child's side of it, which leads nowhere."""

    def stop(self) -> None:
        """Free what the place itself takes."""


def home_of(dialect: Dialect, *, awaited: bool) -> Home:
    """The place for connections of that dialect."""
    if not dialect.is_async:
        return _Anywhere()
    return _InLoop(dialect) if awaited else _InThread(dialect)


class _Anywhere:
    """For synchronous drivers."""

    def is_here(self) -> bool:
        return True

    def run(self, work: Callable[[], Result]) -> Result:
        return work()

    def settle(self, guest: loops.Guest) -> None:
        pass

    def close(self, connection: Any) -> None:
        connection.close()

    kill = abandon = close

    def fileno(self, connection: Any) -> int:
        socket = next(  # of pg8000, of PyMySQL
            (s for name in ("_usock", "_sock") if (s := getattr(connection, name, None))),
            connection,
        )
        number: int = socket.fileno()
        return number

    def disown(self, connection: Connection) -> None:
        connection.connection.dbapi_connection.close()  # type: ignore[union-attr]

    def stop(self) -> None:
        pass


class _InLoop:
    """In the event loop that runs, by a greenlet that is awaited."""

    def __init__(self, dialect: Dialect) -> None:
        self._dialect = dialect
        self._loop: asyncio.AbstractEventLoop | None = None
        self._disowned: list[Connection] = []

    def is_here(self) -> bool:
        try:
            return asyncio.get_running_loop() is self._loop
        except RuntimeError:
            return False

    def run(self, work: Callable[[], Result]) -> Result:
        self._loop = asyncio.get_running_loop()
        return work()

    def settle(self, guest: loops.Guest) -> None:
        loops.at_shutdown(guest)

    def close(self, connection: Any) -> None:
        loops.close(self._dialect, connection)

    def kill(self, connection: Any) -> None:
        loops.kill(self._dialect, connection)

    def abandon(self, connection: Any) -> None:
        loops.abandon(self._dialect, connection, self._loop)

    def fileno(self, connection: Any) -> int:
        return loops.fileno(connection)

    def disown(self, connection: Connection) -> None:
        # To close it would take its socket out of a selector that is the parent's too.
        self._disowned.append(connection)
        self._loop = None

    def stop(self) -> None:
        pass


class _InThread(_InLoop):
    """In an event loop of our own, for synchronous code."""

    def __init__(self, dialect: Dialect) -> None:
        super().__init__(dialect)
        self._thread = loops.LoopThread()

    def is_here(self) -> bool:
        return True

    def run(self, work: Callable[[], Result]) -> Result:
        return self._thread.run(work)

    def settle(self, guest: loops.Guest) -> None:
        pass

    def close(self, connection: Any) -> None:
        self.run(lambda: loops.close(self._dialect, connection))

    def kill(self, connection: Any) -> None:
        self.run(lambda: loops.kill(self._dialect, connection))

    def abandon(self, connection: Any) -> None:
        loops.abandon(self._dialect, connection, self._thread.loop)
        self.stop()

    def disown(self, connection: Connection) -> None:
        super().disown(connection)
        self._thread = loops.LoopThread()  # threads are not forked

    def stop(self) -> None:
        self._thread.stop()
