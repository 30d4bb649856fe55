"""The applications in examples/, their tests run as those do who copy them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.pools import PATIENCE, Own
from support.projects import environment

EXAMPLES = Path(__file__).parents[1] / "examples"
# Notes for each process which database it writes to, by whatever driver.
OBSERVER = """
import os
from pathlib import Path
from sqlalchemy import Engine, event

@event.listens_for(Engine, "before_cursor_execute")
def observe(connection, cursor, statement, *more):
    words = statement.split()
    if words[:2] in (["CREATE", "TABLE"], ["INSERT", "INTO"]):
        worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
        with Path(__file__).with_name("observed").open("a") as file:
            print(worker, connection.engine.url.database, words[0], words[2], file=file)
"""


class Example:
    """A copy of an example, and what the tests have done when they were last run."""

    def __init__(self, name: str, directory: Path) -> None:
        self.copy, self._observer = directory / name, directory / "observer"
        foreign = shutil.ignore_patterns(".*", "__pycache__")
        shutil.copytree(EXAMPLES / name, self.copy, ignore=foreign)
        self._observer.mkdir()
        (self._observer / "observer.py").write_text(OBSERVER)
        self.created: Counter[str] = Counter()  # tables, by cleaner_setup
        self.databases: dict[str, set[str]] = {}  # that tests wrote to, by worker

    def run(self, *arguments: str, **variables: str) -> None:
        """Run all tests, which pass."""
        observed = self._observer / "observed"
        observed.unlink(missing_ok=True)
        if "asyncio_mode" in (self.copy / "pyproject.toml").read_text():
            arguments = ("-p", "pytest_asyncio.plugin", *arguments)
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "observer", *arguments],
            cwd=self.copy,
            env={**environment(), "PYTHONPATH": str(self._observer), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=2 * PATIENCE,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        assert re.search(r"^=+ \d+ passed in \S+ =+$", done.stdout, re.MULTILINE), done.stdout
        self.created.clear()
        self.databases.clear()
        for worker, database, verb, table in map(str.split, observed.read_text().splitlines()):
            if "_cleaner_template_" not in database:
                self.databases.setdefault(worker, set()).add(database)
            elif verb == "CREATE":
                self.created[table] += 1


@pytest.fixture(params=sorted(path.parent.name for path in EXAMPLES.glob("*/pyproject.toml")))
def example(request: pytest.FixtureRequest, tmp_path: Path) -> Example:
    return Example(request.param, tmp_path)


@pytest.fixture
def cache() -> Iterator[str]:
    """Where no run has kept anything, and which the server's user can enter."""
    with tempfile.TemporaryDirectory(prefix="cache-", dir="/tmp") as root:
        Path(root).chmod(0o711)
        yield root


def test_an_example_passes_on_two_workers_and_then_on_none_which_finds_the_schema_built(
    example: Example, cache: str
) -> None:
    example.run("-n2", XDG_CACHE_HOME=cache)
    assert set(example.created.values()) == {1}
    assert example.databases == {"gw0": {"test_gw0"}, "gw1": {"test_gw1"}}
    example.run("-p", "no:xdist", XDG_CACHE_HOME=cache)
    assert not example.created
    assert list(example.databases) == ["main"]
    assert len(example.databases["main"]) == 1


@pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)
@pytest.mark.parametrize("example", ["fastapi_async"], indirect=True)
def test_an_example_passes_on_the_server_that_a_url_names(example: Example, own: Own) -> None:
    url = own.url.set(host="127.0.0.1", query={})
    example.run("-n2", CLEANER_URL=url.render_as_string())
    assert set(example.created.values()) == {1}
    assert example.databases == {name: {f"{own.base}_{name}"} for name in ("gw0", "gw1")}
    assert len(own.databases() - own.templates()) == 2
    assert [living for _, living in own.pool().rows()] == [False, False]
