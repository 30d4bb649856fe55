"""Runs of pytest in a copy of the project, as its users would start them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_PROJECT = "suite_project"


@contextmanager
def project() -> Iterator[Path]:
    """A copy of it, with a cache of its own for kept clusters, both gone afterwards."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as name:
        place = Path(name)
        place.chmod(0o711)  # where root starts the server, another user has to enter
        source = Path(__file__).with_name(_PROJECT)
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(source, place / _PROJECT, ignore=ignored)
        (place / _PROJECT / "pyproject.toml").rename(place / "pyproject.toml")
        yield place


def run(place: Path, *arguments: str, plugins: tuple[str, ...] = (), **variables: str) -> float:
    """One run of pytest, with these plug-ins and no others. When it was started.

    Raises RuntimeError with pytest's output where a test does not pass.
    """
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("CLEANER_", "PYTEST_"))}
    environment = kept | {
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "XDG_CACHE_HOME": str(place / "cache"),
        **variables,
    }
    chosen = [word for plugin in plugins for word in ("-p", plugin)]
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *chosen, *arguments]
    started = time.time()
    done = subprocess.run(
        command, cwd=place, env=environment, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stdout[-6000:]}{done.stderr[-2000:]}")
    return started
