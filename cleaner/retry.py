"""How often and how long a clean is tried, as one policy of tenacity.

The waits of all attempts together last no longer than ``lock_timeout``: each of the first may wait
about twice as long as the one before, so a short contention costs little, a queue behind our lock
request stays short, and a leaked session is found early.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate
from typing import TypeVar

from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from cleaner import waits
from cleaner.settings import Settings

Result = TypeVar("Result")
_DOUBLINGS = 4  # of what the first attempt may wait: with more, the first of many have no time


class Transient(Exception):  # noqa: N818 -- no error that a caller ever sees
    """A clean that failed for a reason that may pass. Never leaves the package."""


class Stale(Exception):  # noqa: N818 -- likewise
    """The program was written for another schema; what was done another run finds done.

    ``error`` is what to raise if a second look finds the schema as it was.
    """

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.error = error


class LockWait(Transient):
    """The server's lock timeout: another session held a lock for the whole slice."""


class Conflict(Transient):
    """A deadlock, a serialization failure, or a row that a concurrent writer slipped in.

    ``cause`` and ``remedy`` are those of the error where it does not pass, if it is none of these.
    """

    def __init__(self, said: str, cause: str = "", remedy: str = "") -> None:
        super().__init__(said)
        self.cause, self.remedy = cause, remedy


def slices(settings: Settings, least: int = 1) -> list[int]:
    """How long each attempt may wait for a lock, in milliseconds; together ``lock_timeout``. Zero
    where no time is left.

    Where the server waits no shorter than ``least`` they are whole multiples of it while there are
    any; if the first attempt's share is less than one, it has only what is over.
    """
    total = max(1, round(settings.lock_timeout * 1000))
    shares = [2 ** min(attempt, _DOUBLINGS) for attempt in range(settings.retries)]
    dues = [round(total * due / sum(shares)) for due in accumulate(shares)]
    given: list[int] = []
    left = total
    for due in dues[:-1]:
        share = due - (total - left)
        wait = share - share % least
        if wait <= 0:
            wait = least if given else min(share, total % least)
        given.append(wait if wait <= left else 0)
        left -= given[-1]
    return [*given, left]


class Policy:
    """Retry what is Transient, ``retries`` attempts in all, and raise the last one's error."""

    def __init__(self, settings: Settings) -> None:
        self._again = Retrying(
            retry=retry_if_exception_type(Transient),
            stop=stop_after_attempt(settings.retries - 1),
            wait=wait_random_exponential(multiplier=0.01, max=0.5),
            sleep=waits.pause,
            reraise=True,
        )
        self._once = settings.retries == 1

    def __call__(self, attempt: Callable[[], Result]) -> Result:
        """What ``attempt()`` returns."""
        # The first attempt nearly always is the last, and tenacity's bookkeeping would be a good
        # part of a clean's own Python.
        try:
            return attempt()
        except Transient:
            if self._once:
                raise
        return self._again(attempt)
