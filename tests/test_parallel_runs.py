"""Runs of pytest with workers, on one server: at once, killed, interrupted, and the next ones."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from support.database import Database
from support.pools import PATIENCE, Own, server_of, until

pytestmark = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


def interruptible() -> None:
    """Whatever started this run: in the background of a shell Ctrl-C is ignored, and inherited."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


SETUP = """
import os
import pathlib
import pytest


@pytest.fixture(scope="session")
def cleaner_setup():
    def setup(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE item (id serial PRIMARY KEY, name text)")
        with pathlib.Path(__file__).with_name("builds").open("a") as file:
            file.write("built\\n")
    return setup


@pytest.fixture
def add(cleaner_engine):
    def add(name="x"):
        with cleaner_engine.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO item (name) VALUES ('{name}')")
    return add


@pytest.fixture
def rows(cleaner_engine):
    def rows():
        with cleaner_engine.connect() as connection:
            return [tuple(row) for row in
                    connection.exec_driver_sql("SELECT id, name FROM item ORDER BY id")]
    return rows
"""
ALONE = """
import time
import pytest

@pytest.mark.parametrize("n", range({tests}))
def test(n, add, rows, clean_database, request):
    mine = str(request.config.workerinput["workerid"]) + str(n)
    assert rows() == []
    for turn in range(4):
        add(mine)
        assert rows() == [(i + 1, mine) for i in range(turn + 1)]
        time.sleep({pause})
"""


class Suite:
    """A project with tests of its own, which knows nothing of the run that it is run by."""

    def __init__(self, path: Path, own: Own) -> None:
        self.path, self.own = path, own
        path.mkdir(exist_ok=True)
        self.write("conftest.py", SETUP)

    def write(self, name: str, text: str) -> None:
        (self.path / name).write_text(text)

    def settings(self, *lines: str, role: str = "") -> None:
        text = [f'[tool.cleaner]\nurl = "{self.own.text(role)}"\nautouse = true', *lines]
        self.write("pyproject.toml", "\n".join(text) + "\n")

    @property
    def builds(self) -> int:
        """How often the setup was run."""
        told = self.path / "builds"
        return len(told.read_text().splitlines()) if told.exists() else 0

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """In a process group of its own, with everything that it says in one pipe."""
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("PYTEST_", "CLEANER_", "COV_"))
        }
        environment["PYTEST_ADDOPTS"] = "-p no:hypothesispytest -p no:cacheprovider"
        return subprocess.Popen(
            [sys.executable, "-m", "pytest", *arguments],
            cwd=self.path,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            preexec_fn=interruptible,  # noqa: PLW1509 -- it takes no lock
        )

    def run(self, *arguments: str) -> Result:
        return Result(self.start(*arguments))


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
def own(worker_database: Database) -> Iterator[Own]:
    with closing(Own(server_of(worker_database))) as own:
        yield own


@pytest.fixture
def suite(tmp_path: Path, own: Own) -> Suite:
    suite = Suite(tmp_path / "suite", own)
    suite.settings()
    return suite


def given_back(own: Own) -> int:
    """The number of leases, if each of them was given back."""
    rows = own.pool().rows()
    assert [(row.worker, living) for row, living in rows] == [(None, False)] * len(rows)
    return len(rows)


def wait_for_clones(own: Own, number: int) -> None:
    """Until so many workers have a database."""
    clones = (
        f"SELECT 1 FROM cleaner.lease WHERE base = '{own.base}' AND template IS NOT NULL"
        " AND worker IS NOT NULL"
    )
    until(lambda: len(own.control(clones)) >= number, f"there are {number} databases")


@contextmanager
def killed(process: subprocess.Popen[str]) -> Iterator[None]:
    """With all its workers, in the end."""
    try:
        yield
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()


# -- one template, a database each ----------------------------------------------------------


def test_four_workers_have_a_database_each_of_one_template_which_the_next_run_finds(
    suite: Suite,
) -> None:
    suite.write("pyproject.toml", "")
    suite.write("test_it.py", ALONE.format(tests=12, pause=0))
    for _ in range(2):
        suite.run("-n4", "--cleaner-url", suite.own.text()).passed(12)
        assert suite.builds == 1
        assert len(suite.own.templates()) == 1
        assert len(suite.own.databases()) == 1 + 4
        assert given_back(suite.own) == 4


def test_what_shapes_the_database_is_built_anew_when_it_changes(suite: Suite) -> None:
    suite.write("models.py", MODELS)
    suite.settings('metadata = "models:Base"')
    suite.write("conftest.py", "")
    suite.write("test_it.py", "def test(cleaner): print('has', *cleaner.plan().tables)")
    first = suite.run("-s")
    first.passed(1)
    assert "has thing" in first.text
    suite.write("models.py", MODELS.replace("thing", "other"))
    second = suite.run("-s")
    second.passed(1)
    assert "has other\n" in second.text
    assert len(suite.own.templates()) == 2
    assert len(suite.own.databases()) == 3


MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): pass

class Thing(Base):
    __tablename__ = "thing"
    id: Mapped[int] = mapped_column(primary_key=True)
"""


def test_the_schema_that_a_dying_test_changed_is_whole_for_the_next_run(suite: Suite) -> None:
    suite.write(
        "test_it.py",
        """
        import os

        def test_begin(add, rows):
            assert rows() == []

        def test_dies(cleaner_engine, add):
            add()
            with cleaner_engine.begin() as connection:
                connection.exec_driver_sql("ALTER TABLE item ADD more int")
            if os.environ.get("DIE"):
                os._exit(1)

        def test_end(rows): assert rows() == []
        """.replace("\n        ", "\n"),
    )
    os.environ["DIE"] = "1"
    try:
        assert suite.run("-p", "no:randomly").code == 1
    finally:
        del os.environ["DIE"]
    (before,) = suite.own.databases() - suite.own.templates()
    assert suite.run("-W", "ignore::cleaner.pytest_database.SchemaWarning").outcomes == {
        "passed": 3
    }
    (after,) = suite.own.databases() - suite.own.templates()
    assert after != before
    columns = "SELECT attname FROM pg_attribute WHERE attrelid = 'item'::regclass AND attnum > 0"
    assert suite.own.inside(after, f"{columns} ORDER BY attnum") == [("id",), ("name",)]
    assert suite.builds == 1


def test_the_configured_databases_own_schema_is_the_template_and_its_rows_are_not(
    suite: Suite,
) -> None:
    own = suite.own
    own.run(f"CREATE DATABASE {own.base}")
    own.inside(own.base, "CREATE TABLE item (id serial PRIMARY KEY, name text)")
    own.inside(own.base, "INSERT INTO item (name) VALUES ('mine')")
    suite.write("conftest.py", SETUP.replace("def cleaner_setup", "def no_setup"))
    suite.write("test_it.py", ALONE.format(tests=6, pause=0))
    suite.run("-n2").passed(6)
    assert own.inside(own.base, "SELECT * FROM item") == [(1, "mine")]
    assert own.inside(own.base, "SELECT last_value FROM item_id_seq") == [(1,)]
    assert len(own.databases()) == 1 + 1 + 2
    own.inside(own.base, "ALTER TABLE item ADD more int")
    suite.run("-n2").passed(6)
    assert len(own.templates()) == 2
    own.sweep()
    assert own.databases() == {own.base}


# -- several runs, some of them killed ------------------------------------------------------


def test_runs_at_once_are_not_disturbed_by_those_that_are_killed_nor_is_the_next(
    suite: Suite, tmp_path: Path
) -> None:
    own = suite.own
    suite.write("test_it.py", ALONE.format(tests=16, pause=0.02))
    other = Suite(tmp_path / "other", own)
    other.settings()
    other.write("conftest.py", SETUP + "\n# another fingerprint\n")
    other.write("test_it.py", ALONE.format(tests=16, pause=0.02))
    for wanted in (0, 1, 2):  # before there is anything, with one lease, in the middle of tests
        process = other.start("-n2")
        with killed(process):
            wait_for_clones(own, wanted)
        own.quiet()
    runs = [suite.start("-n2"), other.start("-n2")]
    for run in runs:
        Result(run).passed(16)
    assert len(own.databases()) <= 2 + 4
    suite.run("-n2").passed(16)
    given_back(own)
    own.sweep()
    assert own.databases() == set()


# -- an engine made at import ---------------------------------------------------------------

APPLICATION = """
import os
from sqlalchemy import create_engine

url = os.environ["DATABASE_URL"]
engine = create_engine(url)
"""
AT_IMPORT = (
    "import application\nassert application.os.environ['OTHER'].startswith('postgresql+asyncpg:')\n"
)
EXPORTED = """
import os
import time
import pytest
import application

@pytest.fixture
def add():
    def add(name="x"):
        with application.engine.begin() as connection:
            connection.exec_driver_sql(f"INSERT INTO item (name) VALUES ('{name}')")
    return add

@pytest.mark.parametrize("n", range(6))
def test(n, add, rows, cleaner_url):
    assert application.url == cleaner_url
    assert rows() == []
    add()
    assert rows() == [(1, "x")]
"""
CRASH = """
def test_crash(add):
    add()
    os._exit(1)
"""
FLAKY = """
def test_flaky(add, rows):
    assert rows() == []
    add()
    with open(f"ran_{os.getpid()}", "a") as file:
        file.write("x")
        assert file.tell() > 1
"""
FAILS = "\ndef test_fails(add):\n    add()\n    assert False\n"


@pytest.fixture
def exporting(suite: Suite) -> Suite:
    suite.settings('export = ["DATABASE_URL", "OTHER=postgresql+asyncpg"]')
    suite.write("application.py", APPLICATION)
    suite.write("conftest.py", AT_IMPORT + SETUP)
    return suite


@pytest.mark.parametrize(
    "arguments", [["-n2", "--dist=loadscope"], ["-n0"], ["-p", "no:xdist"]], ids=" ".join
)
def test_an_engine_made_at_import_is_of_this_workers_database(
    exporting: Suite, arguments: list[str]
) -> None:
    exporting.write("test_it.py", EXPORTED + FLAKY)
    exporting.write("test_more.py", EXPORTED)
    exporting.run(*arguments, "--reruns=1").passed(13)
    assert given_back(exporting.own) == (2 if "-n2" in arguments else 1)
    assert exporting.builds == 1


def test_it_is_so_for_a_worker_that_takes_the_place_of_one_that_crashed(exporting: Suite) -> None:
    exporting.write("test_it.py", "import os\n" + CRASH + EXPORTED)
    result = exporting.run("-n2")
    assert result.outcomes == {"passed": 6, "failed": 1}, result.text
    until(lambda: not any(living for _, living in exporting.own.pool().rows()), "all have ended")
    exporting.write("test_it.py", EXPORTED)
    exporting.run("-n2").passed(6)
    given_back(exporting.own)
    assert exporting.builds == 1
    assert exporting.own.sweep()
    assert exporting.own.databases() == set()


@pytest.mark.parametrize("arguments", [["-n2", "-x"], ["-n0", "-x"]], ids=" ".join)
def test_a_run_that_stops_at_the_first_failure_gives_its_leases_back(
    exporting: Suite, arguments: list[str]
) -> None:
    exporting.write("test_it.py", "import os\nimport application\n" + FAILS + EXPORTED)
    assert exporting.run(*arguments).code in (1, 2)
    given_back(exporting.own)


@pytest.mark.parametrize("workers", ["-n2", "-n0"])
def test_ctrl_c_gives_the_leases_back(exporting: Suite, workers: str) -> None:
    exporting.write(
        "test_it.py",
        EXPORTED
        + "\n@pytest.mark.parametrize('n', range(600))\ndef test_slow(n, add, rows):\n"
        + "    open('begun', 'w').close()\n    add()\n    time.sleep(0.1)\n"
        + "    assert len(rows()) == 1\n",
    )
    process = exporting.start(workers)
    begun = exporting.path / "begun"
    until(lambda: begun.exists() or process.poll() is not None, "it is in the middle of a test")
    process.send_signal(signal.SIGINT)
    result = Result(process)
    assert result.code == 2, result.text
    until(lambda: not any(living for _, living in exporting.own.pool().rows()), "all have ended")
    given_back(exporting.own)
    exporting.write("test_it.py", EXPORTED)
    exporting.run(workers).passed(6)


def test_a_run_that_never_begins_leaves_no_lease_behind(exporting: Suite) -> None:
    exporting.write("conftest.py", AT_IMPORT + "import nowhere\n" + SETUP)
    exporting.write("test_it.py", EXPORTED)
    assert exporting.run().code == 4
    assert "No module named 'nowhere'" in exporting.run().text
    given_back(exporting.own)


# -- without CREATEDB -----------------------------------------------------------------------


def test_without_createdb_the_workers_take_turns_or_have_what_was_provided(suite: Suite) -> None:
    own = suite.own
    role = own.role()
    own.run(f"CREATE DATABASE {own.base} OWNER {role}")
    suite.settings(role=role)
    suite.write("conftest.py", SETUP.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
    suite.write("test_it.py", ALONE.format(tests=10, pause=0.01))
    shared = suite.run("-n2")
    shared.passed(10)
    (header,) = [line for line in shared.text.splitlines() if line.startswith("cleaner: ")]
    assert "one database for all in turns" in header
    assert f"Role {role} may not create databases" in header
    assert f'ALTER ROLE "{role}" CREATEDB' in header
    assert "cleaner pool provision" in header
    assert own.databases() == {own.base}

    names = set(own.provision(role, "gw0", "gw1"))
    suite.write(
        "test_more.py",
        "import pathlib\n\ndef test_where(cleaner_url, worker_id):\n"
        "    pathlib.Path(worker_id).write_text(cleaner_url)\n",
    )
    for _ in range(2):
        own_each = suite.run("-n2", "--dist=each")
        own_each.passed(22)
        (header,) = [line for line in own_each.text.splitlines() if line.startswith("cleaner: ")]
        assert "in turns" not in header
        used = {(suite.path / worker).read_text() for worker in ("gw0", "gw1")}
        assert {url.partition("?")[0].rpartition("/")[2] for url in used} == names
        assert given_back(own) == 0
        assert own.databases() == {own.base} | names


# -- what goes wrong ------------------------------------------------------------------------


def test_a_setup_that_fails_is_one_clear_error_in_every_worker_and_of_this_run_only(
    suite: Suite,
) -> None:
    suite.write("test_it.py", ALONE.format(tests=4, pause=0))
    right = (suite.path / "conftest.py").read_text()
    suite.write("conftest.py", right.replace("CREATE TABLE item", "CREATE TABEL item"))
    result = suite.run("-n2")
    assert result.outcomes == {"error": 4}, result.text
    assert 'syntax error at or near "TABEL"' in result.text
    assert suite.own.databases() == set()
    given_back(suite.own)
    suite.write("conftest.py", right)
    suite.run("-n2").passed(4)


def test_ctrl_c_while_the_template_is_built_leaves_no_half_of_it(suite: Suite) -> None:
    slow = SETUP.replace(
        "        with pathlib", "        import time; open('begun', 'w').close(); "
        "time.sleep(0 if os.environ.get('QUICK') else 60)\n        with pathlib"
    )  # fmt: skip
    suite.write("conftest.py", slow)
    suite.write("test_it.py", "def test(add, rows):\n    add()\n    assert rows() == [(1, 'x')]\n")
    process = suite.start()
    until((suite.path / "begun").exists, "the template is being built")
    process.send_signal(signal.SIGINT)
    assert Result(process).code == 2
    assert suite.own.databases() == set()
    given_back(suite.own)
    suite.write("conftest.py", slow.replace("else 60", "else 0"))
    suite.run().passed(1)
    assert suite.builds == 1


def test_a_server_that_is_not_there_is_a_clear_error_and_no_hang(suite: Suite) -> None:
    suite.write("test_it.py", ALONE.format(tests=2, pause=0))
    nowhere = "postgresql+psycopg://127.0.0.1:1/nowhere_test"
    result = suite.run("-n2", "--cleaner-url", nowhere)
    assert result.outcomes == {"error": 2}, result.text
    assert "No connection to postgresql+psycopg://127.0.0.1:1/" in result.text
    assert "the server is down" in result.text
    assert "INTERNALERROR" not in result.text
