"""An application that makes its engine when it is imported has it of its worker's database."""

from __future__ import annotations

import signal

import pytest
from support.pools import until
from support.projects import CONFTEST, Result, Suite

pytestmark = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)

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
    suite.write("conftest.py", AT_IMPORT + CONFTEST)
    return suite


@pytest.mark.parametrize(
    "arguments", [["-n2", "--dist=loadscope"], ["-p", "no:xdist"]], ids=" ".join
)
def test_an_engine_made_at_import_is_of_this_workers_database(
    exporting: Suite, arguments: list[str]
) -> None:
    exporting.write("test_it.py", EXPORTED + FLAKY)
    exporting.write("test_more.py", EXPORTED)
    exporting.run(*arguments, "--reruns=1").passed(13)
    assert exporting.own.given_back() == (2 if "-n2" in arguments else 1)
    assert exporting.builds == 1


def test_it_is_so_for_a_worker_that_takes_the_place_of_one_that_crashed(exporting: Suite) -> None:
    exporting.write("test_it.py", "import os\n" + CRASH + EXPORTED)
    result = exporting.run("-n2")
    assert result.outcomes == {"passed": 6, "failed": 1}, result.text
    until(lambda: not any(living for _, living in exporting.own.pool().rows()), "all have ended")
    exporting.write("test_it.py", EXPORTED)
    exporting.run("-n2").passed(6)
    exporting.own.given_back()
    assert exporting.builds == 1
    assert exporting.own.sweep()
    assert exporting.own.databases() == set()


@pytest.mark.parametrize("arguments", [["-n2", "-x"], ["-n0", "-x"]], ids=" ".join)
def test_a_run_that_stops_at_the_first_failure_gives_its_leases_back(
    exporting: Suite, arguments: list[str]
) -> None:
    exporting.write("test_it.py", "import os\nimport application\n" + FAILS + EXPORTED)
    assert exporting.run(*arguments).code in (1, 2)
    exporting.own.given_back()


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
    exporting.own.given_back()
    exporting.write("test_it.py", EXPORTED)
    exporting.run(workers).passed(6)


def test_a_run_that_never_begins_leaves_no_lease_behind(exporting: Suite) -> None:
    exporting.write("conftest.py", AT_IMPORT + "import nowhere\n" + CONFTEST)
    exporting.write("test_it.py", EXPORTED)
    assert exporting.run().code == 4
    assert "No module named 'nowhere'" in exporting.run().text
    exporting.own.given_back()
