"""Who is at an SQLite file: the turn to clean it, and the processes that have it locked."""

from __future__ import annotations

import hashlib
import os
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock

from cleaner.errors import Blocker

_TURNS = 1024  # files at most, of all databases


@dataclass(frozen=True)
class Unnamed(Blocker):
    """A connection that holds a lock. SQLite does not tell whose it is; Linux tells the process."""

    path: str = ""

    def __str__(self) -> str:
        if not self.path:
            return "another connection of this process to the same database in memory"
        if self.pid is None:
            return (
                f"a connection that SQLite does not name: `fuser {self.path}` lists the processes "
                "that have the file open; look for a session without commit() or close(), and for "
                "a result that was not read to its end"
            )
        which = "this very process" if self.pid == os.getpid() else self.application
        return f"a connection of pid {self.pid} ({which}) to {self.path}"


def turn_at(path: str) -> FileLock:
    """The lock by which cleans of that file take turns.

    SQLite's own lock would do, but whoever waits for it looks from time to time, and the one who
    works in a loop wins nearly always: with eight of them some wait for seconds. So it may be that
    of another file as well: there are but a thousand, since nobody could remove one safely.
    """
    return _lock(f"{int(_digest(path), 16) % _TURNS:03x}-turn")


def lock_on(path: str | Path, purpose: str) -> FileLock:
    """A lock between processes of this user that goes with its holder."""
    return _lock(f"{_digest(path)}-{purpose}")


def _digest(path: str | Path) -> str:
    return hashlib.sha256(os.path.realpath(path).encode()).hexdigest()[:16]


def _lock(name: str) -> FileLock:
    user = os.getuid() if hasattr(os, "getuid") else 0
    return FileLock(Path(tempfile.gettempdir()) / f"cleaner-{user}-{name}.lock")


def holders(path: str) -> tuple[Blocker, ...]:
    """Who holds locks on the file, as far as can be told."""
    pids = _locking(path) if path else set[int]()
    known = [_unnamed(pid, path) for pid in sorted(pids)]
    return tuple(known) or (_unnamed(None, path),)


def _unnamed(pid: int | None, path: str) -> Unnamed:
    command = ""
    if pid is not None:
        with suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace")
            command = " ".join(words.split("\0"))[:80].strip()
    return Unnamed(
        pid=pid,
        user=None,
        application=command or None,
        state="idle in transaction, or at work",
        age=None,
        query=None,
        path=path,
    )


def _locking(path: str) -> set[int]:
    """The processes of this machine that have locked the file, if it can be known."""
    inodes = set()
    for suffix in ("", "-shm"):
        with suppress(OSError):
            inodes.add(Path(path + suffix).stat().st_ino)
    pids = set()
    with suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text(encoding="utf-8").splitlines():
            words = line.replace("->", "").split()
            if words[1] == "POSIX" and int(words[5].rpartition(":")[2]) in inodes:
                pids.add(int(words[4]))
    return {pid for pid in pids if pid > 0}
