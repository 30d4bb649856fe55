"""Whether a database may be cleaned, judged by the name that the live connection gives."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from cleaner.errors import UnsafeDatabaseError

_TEST = re.compile(r"(?<![^\W\d_])test(?![^\W\d_])", re.IGNORECASE)


def check(database: str, allowed: Iterable[str] | None) -> None:
    """Return if ``database`` may be cleaned; raise UnsafeDatabaseError otherwise.

    ``allowed`` are names or patterns. None means the default: ``test`` as a word of the name,
    as in ``test``, ``app_test``, ``app-test-gw3``, ``test2``, but not ``latest`` or ``contest``.
    """
    if allowed is None:
        safe = _TEST.search(database) is not None
        rule = "its name does not have the word 'test' in it"
    else:
        patterns = list(allowed)
        safe = any(fnmatchcase(database, pattern) for pattern in patterns)
        rule = f"allow_databases = {patterns!r} does not name it"
    if not safe:
        raise UnsafeDatabaseError(
            f"Refused to clean the database {database!r}: {rule}.",
            "the URL is not the one of the test database, or a tunnel leads elsewhere",
            f'if it may lose all its rows, allow_databases = ["{database}"]'
            " in [tool.cleaner] of pyproject.toml",
        )
