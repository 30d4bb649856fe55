"""What SQLite's errors mean for a clean, and what it can't do with a database in memory."""

from __future__ import annotations

from cleaner.errors import BlockedError, CleanerError, SettingsError
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
    if "constraint failed" in said:
        return CleanerError(
            f"SQLite refused {doing}: {said}.",
            "a test, or a migration, has added a constraint that captured rows do not meet",
            "cleaner.capture() while the database is at its baseline",
        )
    return CleanerError(
        f"SQLite refused {doing}: {said}",
        "the file is damaged or its disk is full, or the schema is not what its triggers expect",
        "PRAGMA integrity_check",
    )


def unseen(url: str, *, several: bool) -> SettingsError:
    """The error for a database in memory that our connection can't reach."""
    return SettingsError(
        f"{url} is a database in memory that nobody else can see.",
        "each connection to it has a database of its own"
        + (", and the engine's pool opens several of them" if several else ""),
        'engine = create_engine("sqlite://", poolclass=StaticPool, '
        'connect_args={"check_same_thread": False}); Cleaner(engine, Base)',
    )


def begun() -> BlockedError:
    """The error for a connection to a database in memory by which something was begun."""
    return BlockedError(
        "The application's connection to its database in memory is in a transaction.",
        "a session or connection of the test was not committed or closed; all of them "
        "share this one connection, and clean() would commit what they have begun",
        "commit, roll back or close it before clean()",
    )


def always_begun() -> SettingsError:
    """The error for one of which nobody can tell."""
    return SettingsError(
        "The application's connection to its database in memory is always in a transaction: it "
        "was opened with autocommit=False.",
        "nobody can tell whether the test has begun something, which clean() would commit",
        'create_engine("sqlite://", poolclass=StaticPool, '
        'connect_args={"check_same_thread": False}), without "autocommit"',
    )
