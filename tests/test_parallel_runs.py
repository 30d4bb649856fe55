"""Runs of pytest with workers, on one server: at once, killed, interrupted, and the next ones."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.pools import Own, until
from support.projects import CONFTEST, Result, Suite

pytestmark = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)

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


def test_three_workers_have_a_database_each_of_one_template_which_the_next_run_finds(
    suite: Suite,
) -> None:
    suite.write("pyproject.toml", "")
    suite.write("test_it.py", ALONE.format(tests=12, pause=0))
    for _ in range(2):
        suite.run("-n3", "--cleaner-url", suite.own.text()).passed(12)
        assert suite.builds == 1
        assert len(suite.own.templates()) == 1
        assert len(suite.own.databases()) == 1 + 3
        assert suite.own.given_back() == 3


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
    assert suite.run(DIE="1").code == 1
    (before,) = suite.own.databases() - suite.own.templates()
    assert suite.run("-W", "ignore::cleaner.errors.SchemaWarning").outcomes == {"passed": 3}
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
    suite.write("conftest.py", CONFTEST.replace("def cleaner_setup", "def no_setup"))
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
    other.write("conftest.py", CONFTEST + "\n# another fingerprint\n")
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
    own.given_back()
    own.sweep()
    assert own.databases() == set()


# -- without CREATEDB -----------------------------------------------------------------------


def test_without_createdb_the_workers_take_turns_or_have_what_was_provided(suite: Suite) -> None:
    own = suite.own
    role = own.role()
    own.run(f"CREATE DATABASE {own.base} OWNER {role}")
    suite.settings(role=role)
    suite.write("conftest.py", CONFTEST.replace("CREATE TABLE", "CREATE TABLE IF NOT EXISTS"))
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
        assert own.given_back() == 0
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
    suite.own.given_back()
    suite.write("conftest.py", right)
    suite.run("-n2").passed(4)


def test_ctrl_c_while_the_template_is_built_leaves_no_half_of_it(suite: Suite) -> None:
    slow = CONFTEST.replace(
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
    suite.own.given_back()
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
