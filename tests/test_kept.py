"""``--cleaner-keep``: the database of a failed test, to be looked at afterwards."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.pools import Own
from support.projects import Run

from cleaner.cli import main

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


@pytest.fixture(autouse=True)
def cleaned(monkeypatch: pytest.MonkeyPatch, project: pytest.Pytester) -> None:
    """Each test of the project is cleaned up after."""
    monkeypatch.setenv("CLEANER_AUTOUSE", "true")


@pytest.fixture
def run(project: pytest.Pytester, own: Own) -> Run:
    """Run that suite with the option, on a server."""

    def run(*arguments: str, role: str = "") -> pytest.RunResult:
        return project.runpytest("--cleaner-keep", "--cleaner-url", own.text(role), *arguments)

    return run


def kept(own: Own) -> list[str]:
    return sorted(name for name in own.databases() if "_kept_" in name)


def names(own: Own, database: str) -> list[str]:
    return [name for (name,) in own.inside(database, "SELECT name FROM item ORDER BY id")]


FAILING = """
    def test_fails(add):
        add("what it has left")
        assert False

    def test_passes(add, cleaner_engine):
        with cleaner_engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT count(*) FROM item").scalar() == 0
        add("of no interest")
"""


def test_the_database_of_a_failed_test_is_kept_and_the_report_says_how_to_look(
    project: pytest.Pytester, run: Run, own: Own
) -> None:
    project.makepyfile(test_it=FAILING)
    result = run()
    result.assert_outcomes(failed=1, passed=1)
    (name,) = kept(own)
    assert names(own, name) == ["what it has left"]
    result.stdout.fnmatch_lines(
        [
            "*cleaner: kept database (teardown)*",
            name,
            "*cleaner: kept databases*",
            f"test_it.py::test_fails: {name}",
        ]
    )
    lines = {line.strip() for line in result.outlines if f"-d {name}" in line}
    (line,) = lines
    shown = subprocess.run(
        f'{line} -At -c "SELECT name FROM item"',
        shell=True,
        capture_output=True,
        text=True,
        check=True,
    )
    assert shown.stdout == "what it has left\n"
    (entry,) = [entry for entry in own.pool().status() if entry.state == "kept"]
    assert (entry.database, entry.note) == (name, "test_it.py::test_fails")


@on_embedded
def test_without_the_option_nothing_is_kept(project: pytest.Pytester, own: Own) -> None:
    project.makepyfile(test_it=FAILING)
    result = project.runpytest("--cleaner-url", own.text())
    result.assert_outcomes(failed=1, passed=1)
    assert kept(own) == []
    assert "kept database" not in result.stdout.str()


@on_embedded
def test_a_transaction_that_the_failed_test_left_open_is_no_obstacle(
    project: pytest.Pytester, run: Run, own: Own
) -> None:
    project.makepyfile(
        """
        def test_fails(add, cleaner_engine):
            add("committed")
            connection = cleaner_engine.connect()
            connection.exec_driver_sql("SELECT count(*) FROM item")
            assert False

        def test_passes(add):
            add("x")
        """
    )
    run().assert_outcomes(failed=1, passed=1)
    (name,) = kept(own)
    assert names(own, name) == ["committed"]


@on_embedded
def test_who_is_at_work_in_it_is_named_and_the_run_goes_on(
    project: pytest.Pytester, run: Run, own: Own
) -> None:
    project.makepyfile(
        """
        import threading, psycopg, pytest

        @pytest.fixture(scope="module")
        def busy(cleaner_engine):
            url = cleaner_engine.url
            where = dict(host=url.query.get("host") or url.host, port=url.port,
                         user=url.username, dbname=url.database)
            with psycopg.connect(**where, autocommit=True) as connection:
                def work():
                    with pytest.raises(psycopg.Error):
                        connection.execute("SELECT pg_sleep(600)")
                thread = threading.Thread(target=work)
                thread.start()
                yield
                connection.cancel()
                thread.join()

        def test_fails(add, busy):
            assert False

        def test_passes(add):
            add("x")
        """
    )
    project.makepyprojecttoml("[tool.cleaner]\nlock_timeout = 0.2")
    result = run()
    result.assert_outcomes(failed=1, passed=1)
    assert kept(own) == []
    result.stdout.re_match_lines([r"not kept: BlockedError: .* is in use by pid \d+.*pg_sleep"])
    assert [entry for entry in own.pool().status() if entry.state == "kept"] == []


@on_embedded
@pytest.mark.parametrize("arguments", [(), ("-n", "2")], ids=["alone", "workers"])
def test_five_at_most_are_kept_of_a_run_and_five_more_of_the_next(
    project: pytest.Pytester, run: Run, own: Own, arguments: tuple[str, ...]
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(8))
        def test_fails(add, number):
            add(str(number))
            assert False
        """
    )
    for count in (5, 10) if not arguments else (5,):
        result = run(*arguments)
        result.assert_outcomes(failed=8)
        assert len(kept(own)) == count
        result.stdout.re_match_lines([r"not kept of .* and 2 more: 5 databases were kept"])
    left = [names(own, name) for name in kept(own)]
    assert all(len(each) == 1 for each in left)  # of one test each, whoever worked beside it


@on_embedded
def test_a_rerun_that_passes_has_the_first_attempt_kept(
    project: pytest.Pytester, run: Run, own: Own
) -> None:
    project.makepyfile(
        """
        attempts = []

        def test_flaky(add):
            attempts.append(1)
            add(f"attempt {len(attempts)}")
            assert len(attempts) == 2
        """
    )
    run("--reruns", "1").assert_outcomes(passed=1)
    (name,) = kept(own)
    assert names(own, name) == ["attempt 1"]


@on_embedded
@pytest.mark.parametrize("provided", [False, True])
def test_where_no_database_may_be_created_one_line_says_why_none_is_kept(
    project: pytest.Pytester, run: Run, own: Own, provided: bool
) -> None:
    role = own.role()
    if provided:
        own.pool().provision(1, role)
    else:
        own.run(f"CREATE DATABASE {own.base} OWNER {role}")
    project.makepyfile(test_it=FAILING)
    result = run(role=role)
    result.assert_outcomes(failed=1, passed=1)
    why = "its database was provided" if provided else "all tests share one database"
    result.stdout.fnmatch_lines([f"not kept of test_it.py::test_fails: {why}*"])
    assert kept(own) == []


@on_embedded
def test_kept_databases_go_with_drop(
    project: pytest.Pytester, run: Run, own: Own, capsys: pytest.CaptureFixture[str]
) -> None:
    project.makepyfile(test_it=FAILING)
    run()
    assert kept(own)
    assert main(["pool", "drop", "--url", own.text()]) == 0
    assert own.databases() == set()


def test_on_the_embedded_server_it_is_there_after_the_run_for_who_starts_the_server_again(
    project: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    with tempfile.TemporaryDirectory(prefix="cache-", dir="/tmp") as root:
        Path(root).chmod(0o711)
        monkeypatch.setenv("XDG_CACHE_HOME", root)
        project.makepyprojecttoml("[tool.cleaner]")
        project.makepyfile(test_it=FAILING)
        result = project.runpytest_subprocess("--cleaner-keep")
        result.assert_outcomes(failed=1, passed=1)
        (line,) = {line.strip() for line in result.outlines if "cleaner pool psql" in line}
        assert re.fullmatch(r"cleaner pool psql test_kept_1", line)
        shown = project.run(*[sys.executable, "-m", *line.split(), "-c", "SELECT name FROM item"])
        assert "what it has left" in shown.stdout.str()
