"""What other sessions may keep from succeeding: tried again, and who stood in the way named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from cleaner import retry
from cleaner.dialects import Session
from cleaner.errors import BlockedError, Blocker, RetriesExhaustedError
from cleaner.settings import Settings

Result = TypeVar("Result")


@dataclass(frozen=True)
class Trial(Generic[Result]):
    """What came of trying until it worked, in how many ``attempts``; ``terminated`` are the
    sessions that were ended for it.
    """

    result: Result
    attempts: int
    terminated: tuple[str, ...]


class Attempts:
    """As many as the settings allow, on one session, waiting no longer than they say in all."""

    def __init__(self, session: Session, settings: Settings) -> None:
        self._session, self._settings = session, settings
        self._slices = retry.slices(settings, session.least_wait)
        self._retrying = retry.Policy(settings)

    def change(
        self, work: Callable[[int], Result], doing: str, program: Callable[[], Any]
    ) -> Trial[Result]:
        """Try ``work``, which changes the database and is given the milliseconds it may wait for a
        lock. Who blocks ``program()`` is ended, where the settings say so.

        Raises BlockedError, RetriesExhaustedError.
        """
        terminated: list[str] = []
        over = False

        def in_the_way(wait: retry.LockWait | BlockedError, last: bool) -> None:
            nonlocal over
            ends = self._settings.on_blocked == "terminate" and not over
            if not last and not ends:
                return
            if not isinstance(wait, BlockedError):
                blocked = self._blocked(doing, self._session.blockers(program()))
                blocked.__cause__ = wait
                wait = blocked
            ended = self._session.terminate(wait.blockers) if ends else ()
            terminated.extend(map(str, ended))
            if last and not ended:
                raise wait
            over = last

        result, attempts = self._tried(work, doing, in_the_way)
        return Trial(result, attempts, tuple(terminated))

    def look(self, work: Callable[[int], Result], doing: str) -> Result:
        """Try ``work``, which changes nothing and is given the milliseconds it may wait for a lock.

        Raises BlockedError, RetriesExhaustedError.
        """

        def in_the_way(wait: retry.LockWait | BlockedError, last: bool) -> None:
            if isinstance(wait, BlockedError):
                raise wait
            if last:
                raise self._blocked(doing, self._session.blockers(None)) from wait

        return self._tried(work, doing, in_the_way)[0]

    def _tried(
        self,
        work: Callable[[int], Result],
        doing: str,
        in_the_way: Callable[[retry.LockWait | BlockedError, bool], None],
    ) -> tuple[Result, int]:
        attempts = 0

        def attempt() -> Result:
            nonlocal attempts
            attempts += 1
            # Zero is no limit at all to some servers.
            wait = max(1, self._slices[min(attempts, len(self._slices)) - 1])
            # Without time left another attempt could only fail again, unless who was in the way has
            # been ended: which would have been for nothing without another.
            last = not any(self._slices[attempts:])
            while True:
                try:
                    return work(wait)
                except retry.LockWait as error:
                    in_the_way(error, last)
                    if not last:
                        raise
                except BlockedError as error:  # of a look at the schema, which had all the time
                    in_the_way(error, True)
                attempts += 1

        try:
            return self._retrying(attempt), attempts
        except retry.Conflict as conflict:
            raise RetriesExhaustedError(
                f"{doing} {self._session.look().name} failed {attempts} times: {conflict}",
                conflict.cause
                or "other sessions go on writing meanwhile, or rows outside the target are in the "
                "way",
                conflict.remedy or "stop background writers before it, or retries = 20",
            ) from conflict

    def _blocked(self, doing: str, blockers: tuple[Blocker, ...]) -> BlockedError:
        work = f"{doing} {self._session.look().name}"
        return BlockedError.waiting(work, self._settings.lock_timeout, blockers)
