"""What SQLite's errors mean for a clean."""

from __future__ import annotations

from cleaner.errors import CleanerError
from cleaner.retry import LockWait

_MISSING = ("no such function", "no such collation", "no such module")


def is_locked(error: BaseException) -> bool:
    """Whether somebody else holds a lock."""
    return "is locked" in str(error)


def refused(error: Exception, doing: str) -> Exception:
    """The error to raise for what SQLite said while we were ``doing`` something."""
    said = str(error)
    if is_locked(error):
        return LockWait(said)
    if "readonly" in said:
        return CleanerError(
            f"SQLite refused {doing}: {said}.",
            "the file, or its directory, is not writable for this user; or the URL has mode=ro, or "
            "the connection PRAGMA query_only",
            "chmod u+w the file and its directory",
        )
    if "created in a thread" in said:
        return CleanerError(
            f"SQLite refused {doing}: {said}",
            "the application's only connection was opened in another thread",
            'create_engine("sqlite://", poolclass=StaticPool, '
            'connect_args={"check_same_thread": False})',
        )
    if said.startswith(_MISSING):
        return CleanerError(
            f"SQLite refused {doing}: {said}.",
            "the application adds it to its own connections",
            "Cleaner(engine), with the application's Engine, whose events prepare our connection",
        )
    return CleanerError(
        f"SQLite refused {doing}: {said}",
        "the file is damaged or its disk is full, or the schema is not what its triggers expect",
        "PRAGMA integrity_check",
    )
