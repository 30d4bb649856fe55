"""How `lock_timeout` is shared out among the attempts of a clean."""

from __future__ import annotations

import pytest

from cleaner.retry import slices
from cleaner.settings import Settings

SHARES = [(timeout, retries) for timeout in (0.3, 1.0, 2.5, 5.0, 60.0) for retries in (1, 2, 5, 30)]


@pytest.mark.parametrize(("timeout", "retries"), SHARES)
@pytest.mark.parametrize("least", [1, 1000])
def test_all_attempts_together_wait_for_lock_timeout(
    timeout: float, retries: int, least: int
) -> None:
    given = slices(Settings(lock_timeout=timeout, retries=retries), least)
    assert len(given) == retries
    assert sum(given) == timeout * 1000
    assert min(given) >= 0


def test_of_many_attempts_each_has_its_time() -> None:
    given = slices(Settings(lock_timeout=10, retries=50))
    assert max(given) < 20 * min(given)


@pytest.mark.parametrize("timeout", [2.5, 5.0, 60.0])
@pytest.mark.parametrize("retries", [2, 5, 30])
def test_what_a_server_can_wait_no_shorter_is_waited_from_the_second_attempt_on(
    timeout: float, retries: int
) -> None:
    given = slices(Settings(lock_timeout=timeout, retries=retries), 1000)
    waited = [wait for wait in given if wait >= 1000]
    assert given[1] >= 1000
    assert all(wait % 1000 == 0 for wait in given[1:-1] if wait)
    assert sum(wait // 1000 for wait in waited) >= int(timeout) - 1
