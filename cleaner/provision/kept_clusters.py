"""Where the embedded servers' clusters are kept, and how they go.

Each has a place of its own in the user's cache, called after the version and the machine that it
is for and a digest of what else it depends on; `_watchdog.py` tells what is in it. There is another
for each Python, wheel and way of making it, so those that nobody comes back to are removed.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path

from cleaner.errors import ProvisionError
from cleaner.provision import _watchdog

if sys.platform != "win32":
    import pwd

_UNUSED = timedelta(days=30)
_NAME = r"[0-9][\w.]*-\w+-[0-9a-f]{12}"
_KEPT, _REMOVED = re.compile(_NAME), re.compile(_NAME + r"-removed-\w+")


def directory() -> Path:
    """Return where they are kept, or raise ProvisionError where others could write."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not home.is_absolute():
        home = Path("~").expanduser() / ".cache"
    temporary = Path(tempfile.gettempdir()) / f"cleaner-cache-{os.geteuid()}"
    candidates = [home / "cleaner", temporary]
    for candidate in candidates:
        with suppress(OSError):
            if _is_private(candidate):
                return candidate
    raise ProvisionError(
        "There is no safe place to keep a cluster in",
        f"{' and '.join(map(str, candidates))} are closed to the server's user, belong to others "
        "or are open to them, or are links",
        "set XDG_CACHE_HOME to a directory of this user's, or remove what is in the way",
    )


def make_directory() -> Path:
    """Return the same, once it is there."""
    made, mode = directory(), 0o711 if server_user() else 0o700
    made.parent.mkdir(mode, parents=True, exist_ok=True)
    with suppress(FileExistsError):
        made.mkdir(mode)
    if made != directory():
        raise ProvisionError(f"{made} was just made by somebody else")
    made.chmod(mode)
    return made


def remove_all() -> None:
    """Remove all that is kept, or raise ProvisionError and leave it while any is in use."""
    cache = directory()
    places = [path for path in cache.glob("*") if path.is_dir()]
    with ExitStack() as stack:
        for place in places:
            locks = _watchdog.take(place, server_user())
            if locks is None:
                raise ProvisionError(
                    f"The kept clusters in {cache} can't be removed now.",
                    f"a run uses {place.name}",
                    "try again when it has ended",
                )
            for lock in locks:
                stack.callback(os.close, lock)
        for place in places:
            _remove(place)
    with suppress(OSError):
        cache.rmdir()


def remove_unused() -> None:
    """Remove those that no run has used for 30 days. Whatever else there is stays."""
    with suppress(OSError, ProvisionError):
        for place in directory().iterdir():
            with suppress(OSError):
                _remove_unused(place)


def _remove_unused(place: Path) -> None:
    if place.is_symlink() or not _is_old(place):
        return
    if _REMOVED.fullmatch(place.name):  # its remover was killed
        shutil.rmtree(place, ignore_errors=True)
    elif _KEPT.fullmatch(place.name) and (place / "watchdog.lock").is_file():
        locks = _watchdog.take(place, server_user())
        if locks is None:
            return
        try:
            if _is_old(place):  # still: it may have been used just before
                _remove(place)
        finally:
            for lock in locks:
                os.close(lock)


def _is_old(place: Path) -> bool:
    """Tell whether its last run ended long ago: that has removed a file in it."""
    return time.time() - place.stat().st_mtime > _UNUSED.total_seconds()


def _remove(place: Path) -> None:
    """Remove it, renamed first: a run that begins now makes another."""
    removed = tempfile.mkdtemp(prefix=f"{place.name}-removed-", dir=place.parent)
    shutil.rmtree(place.rename(removed), ignore_errors=True)


def _is_private(candidate: Path) -> bool:
    """Tell whether it is this user's, or may become it, and nobody else's to change.

    In a place that all may write to, somebody else may have been there first.
    """
    user = server_user()
    parent = candidate.parent.resolve()
    parents = [path for path in (parent, *parent.parents) if path.exists()]
    for path in parents:
        found = path.stat()
        if found.st_uid not in (0, os.geteuid()) or (user and not found.st_mode & stat.S_IXOTH):
            return False
        if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
            return False
    try:
        found = candidate.lstat()
    except FileNotFoundError:
        return os.access(parents[0], os.W_OK)
    writable = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not writable


def server_user() -> tuple[int, int] | None:
    """Return the user and group that run the server in place of root, None for those of now."""
    if os.geteuid() == 0:
        for name in ("nobody", "postgres"):
            with suppress(KeyError):
                entry = pwd.getpwnam(name)
                return entry.pw_uid, entry.pw_gid
    return None
