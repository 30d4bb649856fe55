"""Projects with a test suite of their own, which know nothing of the run that they are run by."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from cleaner.provision.leases import Pool
from support.database import Database
from support.pools import PATIENCE, Own

CONFTEST = """
import os
import pathlib
import pytest


@pytest.fixture(scope="session")
def cleaner_setup():
    def setup(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE item (id serial PRIMARY KEY, name text)")
            connection.exec_driver_sql("CREATE TABLE kept (id serial PRIMARY KEY, name text)")
        with pathlib.Path(__file__).with_name("builds").open("a") as file:
            file.write("built\\n")
    return setup


@pytest.fixture
def add(cleaner_engine):
    def add(name="x", table="item"):
        with cleaner_engine.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO {table} (name) VALUES ('{name}')")
    return add


@pytest.fixture
def rows(cleaner_engine):
    def rows(table="item"):
        with cleaner_engine.connect() as connection:
            return [tuple(row) for row in
                    connection.exec_driver_sql(f"SELECT id, name FROM {table} ORDER BY id")]
    return rows
"""
PLUGINS = {"cleaner", "rerunfailures", "xdist"}  # others are slow, and would have a say
Run = Callable[..., pytest.RunResult]


def only(plugins: set[str]) -> str:
    """The options with which pytest loads no others of those that are installed."""
    others = {entry.name for entry in entry_points(group="pytest11")} - plugins
    return " ".join(f"-p no:{name}" for name in sorted({*others, "cacheprovider"}))


def environment() -> dict[str, str]:
    """Ours, without what the run around has set, and with the plug-ins that a suite wants."""
    return {
        **{
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "CLEANER_", "COV_"))
        },
        "PYTEST_ADDOPTS": only(PLUGINS),
    }


def builds(directory: Path) -> int:
    """How often the setup of the project there was run."""
    told = directory / "builds"
    return len(told.read_text().splitlines()) if told.exists() else 0


def lines(result: pytest.RunResult, pattern: str) -> list[str]:
    return [line for line in result.outlines if re.search(pattern, line)]


def interruptible() -> None:
    """Whatever started this run: in the background of a shell Ctrl-C is ignored, and inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@contextmanager
def uncollected() -> Iterator[None]:
    """Have no garbage collected in it, but afterwards.

    A connection that a failed test has left open, and whose session was ended, is logged with its
    traceback when it is collected; for which Python 3.11 parses the lines of that. In the middle of
    another parse, such as pytest does all the time, that makes this fail with SystemError.
    """
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
        gc.collect()


@pytest.fixture
def project(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> Iterator[pytest.Pytester]:
    """A project in an empty directory."""
    wanted = environment()
    for name in os.environ.keys() - wanted.keys():
        monkeypatch.delenv(name)
    monkeypatch.setenv("PYTEST_ADDOPTS", wanted["PYTEST_ADDOPTS"])
    pytester.makeconftest(CONFTEST)
    with uncollected():
        yield pytester


@pytest.fixture
def url(database: Database) -> str:
    """The URL of this test's database, as it is written in settings."""
    return database.url.render_as_string(hide_password=False)


@pytest.fixture
def leased(database: Database) -> Iterator[Database]:
    """The database that a run in one process leases where this test's database is configured."""
    leased = Database(database.url.set(database=f"{database.name}_main"), database.role)
    yield leased
    leased.close()
    Pool(database.url).sweep(timedelta(0), timedelta(0))


@pytest.fixture
def run(project: pytest.Pytester, url: str, leased: Database) -> Run:
    """Run the project's tests on the server of this test's database.

    In this process, unless the option ``--runpytest=subprocess`` is given.
    """

    def run(*arguments: str) -> pytest.RunResult:
        with warnings.catch_warnings():
            warnings.simplefilter("default")  # which are errors here
            return project.runpytest("--cleaner-url", url, *arguments)

    return run


class Suite:
    """A project whose runs are started, and ended, while others go on."""

    def __init__(self, path: Path, own: Own) -> None:
        self.path, self.own = path, own
        path.mkdir(exist_ok=True)
        self.write("conftest.py", CONFTEST)
        self.settings()

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def settings(self, *lines: str, role: str = "") -> None:
        text = [f'[tool.cleaner]\nurl = "{self.own.text(role)}"\nautouse = true', *lines]
        self.write("pyproject.toml", "\n".join(text) + "\n")

    @property
    def builds(self) -> int:
        return builds(self.path)

    def start(self, *arguments: str, **variables: str) -> subprocess.Popen[str]:
        """In a process group of its own, with everything that it says in one pipe."""
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=self.path,
            env={**environment(), **variables},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=interruptible,  # noqa: PLW1509 -- it takes no lock
        )

    def run(self, *arguments: str, **variables: str) -> Result:
        return Result(self.start(*arguments, **variables))


class Result:
    """What a run has said by its end."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.text, _ = process.communicate(timeout=2 * PATIENCE)
        self.code = process.returncode
        summary = self.text.splitlines()[-1] if self.text else ""
        self.outcomes = {
            word.rstrip("s") if word != "passed" else word: int(number)
            for number, word in re.findall(r"(\d+) (\w+)", summary)
        }

    def passed(self, number: int) -> None:
        """That many tests passed, and nothing else happened."""
        assert self.code == 0, self.text
        assert self.outcomes.get("passed") == number, self.text


@pytest.fixture
def suite(tmp_path: Path, own: Own) -> Suite:
    return Suite(tmp_path / "suite", own)
