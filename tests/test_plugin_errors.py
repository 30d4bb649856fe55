"""The pytest plug-in: the order of things, and what goes wrong in a test."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest
from support.database import Database
from support.pools import until
from support.projects import CONFTEST, Run, interruptible, lines

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


@on_embedded
def test_the_database_is_cleaned_after_the_tests_own_fixtures_have_closed(
    project: pytest.Pytester, run: Run
) -> None:
    """Each of them holds an open transaction for as long as its test runs."""
    project.makepyprojecttoml("[tool.cleaner]\nlock_timeout = 0.5")
    project.makepyfile(
        """
        import pytest

        @pytest.fixture
        def session(cleaner_engine):
            with cleaner_engine.connect() as connection:
                connection.exec_driver_sql("INSERT INTO item DEFAULT VALUES")
                yield connection

        @pytest.fixture
        def through(session, clean_database):
            yield session

        @pytest.fixture(autouse=True)
        def always(cleaner_engine):
            with cleaner_engine.connect() as connection:
                connection.exec_driver_sql("INSERT INTO kept DEFAULT VALUES")
                yield

        def test_before(clean_database, session): pass
        def test_after(session, clean_database): pass
        def test_through(through): pass
        @pytest.mark.cleaner
        def test_marked(session): pass
        @pytest.mark.usefixtures("session", "clean_database")
        def test_used(): pass

        class TestClass:
            @pytest.fixture(autouse=True)
            def own(self, session):
                yield

            def test(self, clean_database): pass
        """
    )
    run().assert_outcomes(passed=6)


@on_embedded
def test_fixtures_of_wider_scopes_live_on(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.fixture(scope="session")
        def client(cleaner_engine):
            with cleaner_engine.connect() as connection:
                yield connection.execution_options(isolation_level="AUTOCOMMIT")

        @pytest.fixture(scope="class")
        def owner(client):
            yield client

        @pytest.mark.cleaner
        class TestClass:
            @pytest.mark.parametrize("n", range(3))
            def test(self, owner, n):
                owner.exec_driver_sql("INSERT INTO item DEFAULT VALUES")
                assert owner.exec_driver_sql("SELECT id FROM item").scalars().all() == [1]
        """
    )
    run().assert_outcomes(passed=3)


@on_embedded
def test_a_leaked_transaction_is_an_error_of_the_test_that_leaked_it(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyprojecttoml("[tool.cleaner]\nlock_timeout = 0.2\nautouse = true")
    project.makeconftest(
        CONFTEST
        + """
leaked = []

@pytest.fixture
def leak(cleaner_engine):
    def leak():
        leaked.append(cleaner_engine.connect())
        leaked[-1].exec_driver_sql("INSERT INTO item (name) VALUES ('leaked')")
    return leak

def pytest_runtest_logfinish():
    while leaked:
        leaked.pop().close()
"""
    )
    project.makepyfile(
        """
        def test_before(add): add()
        def test_leaks(leak): leak()
        def test_after(rows): assert rows() == []
        """
    )
    result = run()
    result.assert_outcomes(passed=3, errors=1)
    assert lines(result, "ERROR at teardown of test_leaks")
    assert lines(result, "^E .*BlockedError: .*idle in transaction.*INSERT INTO item")


@on_embedded
def test_a_failing_test_or_fixture_is_cleaned_up_after_and_keeps_its_own_error(
    project: pytest.Pytester, run: Run, leased: Database
) -> None:
    project.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.cleaner

        @pytest.fixture
        def broken(add):
            add()
            raise RuntimeError("of the fixture")

        def test_fails(add):
            add()
            assert False, "of the test"
        def test_error(broken): pass
        def test_skipped(add):
            add()
            pytest.skip()
        @pytest.mark.skip
        def test_never(): pass
        @pytest.mark.xfail(strict=True)
        def test_expected(add):
            add()
            assert False
        def test_last(rows): assert rows() == []
        """
    )
    result = run("--cleaner-report")
    result.assert_outcomes(failed=1, errors=1, skipped=2, xfailed=1, passed=1)
    result.stdout.fnmatch_lines(["10 cleans in *"])
    assert run("-x").parseoutcomes() == {"failed": 1}
    assert leased.count("item") == 0


@on_embedded
def test_ctrl_c_in_the_middle_of_a_test_cleans_up_after_it(
    project: pytest.Pytester, url: str, leased: Database
) -> None:
    project.makepyfile(
        """
        import time

        def test(add, clean_database):
            add()
            print("READY", flush=True)
            time.sleep(60)
        """
    )
    process = project.popen(
        [sys.executable, "-m", "pytest", "-s", "--cleaner-url", url],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        preexec_fn=interruptible,
    )
    assert process.stdout is not None
    with process:
        for line in process.stdout:
            if b"READY" in line:
                break
        assert leased.count("item") == 1
        process.send_signal(signal.SIGINT)
        process.stdout.read()
    assert process.returncode == pytest.ExitCode.INTERRUPTED
    assert leased.count("item") == 0
    sessions = (
        "SELECT 1 FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    )
    until(lambda: not leased.execute(sessions), "its sessions have ended")


@on_embedded
def test_a_rerun_begins_clean(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        """
        turns = []

        def test(add, rows, clean_database):
            assert rows() == []
            add()
            turns.append(1)
            assert len(turns) == 3
        """
    )
    run("--reruns", "2").assert_outcomes(passed=1)
