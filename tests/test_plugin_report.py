"""The pytest plug-in: what it tells of the cleans, and of what the tests left."""

from __future__ import annotations

import pytest
from support.projects import CONFTEST, Run, lines

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


# -- the report -----------------------------------------------------------------------------


@on_embedded
def test_the_report_tells_cleans_time_strategies_and_the_slowest(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        """
        import pytest

        def test_one(clean_database, add): add()

        @pytest.mark.cleaner(strategy="truncate")
        def test_two(): pass
        """
    )
    result = run("--cleaner-report")
    result.stdout.fnmatch_lines(
        [
            "*= cleaner =*",
            "4 cleans in * s, * ms each",
            "  auto: 2 cleans, * s",
            "  truncate: 2 cleans, * s",
            "slowest:",
            "* ms  *, * tables  test_*.py::test_*",
        ]
    )
    assert lines(result, r"ms  auto, 1 tables  .*::test_one")
    result = run("--cleaner-report", "-k", "nothing")
    result.stdout.fnmatch_lines(["no test used clean_database"])


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
@on_embedded
def test_the_report_names_the_tests_that_left_something_and_what(
    project: pytest.Pytester, run: Run, workers: str
) -> None:
    project.makepyfile(
        """
        import pytest
        pytestmark = pytest.mark.cleaner

        @pytest.fixture(scope="module", autouse=True)
        def seed(cleaner, add):
            add("one", "kept")
            add("two", "kept")
            cleaner.capture(tables=["kept"])
            yield
            cleaner.release()

        @pytest.fixture(scope="module")
        def add(cleaner_engine):
            def add(name="x", table="item"):
                with cleaner_engine.begin() as connection:
                    connection.exec_driver_sql(f"INSERT INTO {table} (name) VALUES ('{name}')")
            return add

        def test_of_nothing(): pass
        def test_adds(add): add()
        def test_changes(cleaner_engine, add):
            with cleaner_engine.begin() as connection:
                connection.exec_driver_sql("UPDATE kept SET name = 'x' WHERE id = 1")
                connection.exec_driver_sql("DELETE FROM kept WHERE id = 2")
            add("new", "kept")
        """
    )
    project.makepyprojecttoml("[tool.pytest.ini_options]\nfilterwarnings = ['error']")
    result = run("--cleaner-report", workers)
    result.assert_outcomes(passed=3)
    assert result.outlines[result.outlines.index("left something in the database:") + 1 :][:2] == [
        "  test_the_report_names_the_tests_that_left_something_and_what.py::test_adds:"
        " item: 1 row; sequence item_id_seq",
        "  test_the_report_names_the_tests_that_left_something_and_what.py::test_changes:"
        " kept: 1 row added, 1 changed, 1 gone; sequence kept_id_seq",
    ]
    assert not lines(result, "test_of_nothing:")
    assert "left something" not in run(workers).stdout.str()


@on_embedded
def test_without_the_report_no_test_that_passes_is_compared(
    project: pytest.Pytester, run: Run
) -> None:
    project.makeconftest(
        CONFTEST
        + """
def pytest_runtest_logreport(report):
    assert not getattr(report, "cleaner_left", "")
"""
    )
    project.makepyfile("def test(add, clean_database): add()")
    assert run().ret == pytest.ExitCode.OK
    assert run("--cleaner-report").ret == pytest.ExitCode.INTERNAL_ERROR


@on_embedded
def test_a_long_report_is_cut_unless_it_is_asked_for(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        "import pytest\n\n@pytest.mark.parametrize('n', range(60))\n"
        "def test(add, clean_database, n): add()"
    )
    result = run("--cleaner-report")
    assert len(lines(result, "item: 1 row")) == 50
    assert "  and 10 more tests: pytest -v shows them" in result.outlines
    assert len(lines(run("--cleaner-report", "-v"), "item: 1 row")) == 60


# -- what a failed test left ----------------------------------------------------------------

SECTION = "- cleaner: what the test left in the database -"


@pytest.mark.parametrize("workers", ["-n0", "-n1"])
@on_embedded
def test_a_failed_test_shows_what_it_left_in_the_database(
    project: pytest.Pytester, run: Run, workers: str
) -> None:
    project.makepyfile(
        """
        import pytest

        def test_fails(add, clean_database):
            add("tea")
            assert False, "of the test"

        def test_fails_without_a_trace(clean_database): assert False
        def test_fails_without_a_database(add):
            add()
            assert False
        def test_passes(add, clean_database): add()
        @pytest.mark.xfail
        def test_expected(add, clean_database):
            add()
            assert False
        @pytest.fixture
        def broken(add):
            add()
            assert False
        def test_error(clean_database, broken): pass
        """
    )
    project.makeconftest(
        CONFTEST
        + """
def pytest_runtest_logreport(report):
    if not report.failed or report.when != "call":
        assert not [name for name, _ in report.sections if "cleaner" in name]
"""
    )
    result = run(workers)
    result.assert_outcomes(failed=3, passed=1, xfailed=1, errors=1)
    result.stdout.fnmatch_lines(
        [
            "*_ test_fails _*",
            "E*of the test",
            f"*{SECTION}*",
            "item: 1 row",
            "  + id=1, name=tea",
            "sequence item_id_seq: before 1 -> 1",
            "*_ test_fails_without_a_trace _*",
            f"*{SECTION}*",
            "Nothing that is committed differs from the baseline.",
            "*_ test_fails_without_a_database _*",
        ]
    )
    assert len(lines(result, SECTION)) == 2


@on_embedded
def test_what_a_failed_test_has_not_committed_is_no_hindrance(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.fixture
        def session(cleaner_engine):
            with cleaner_engine.connect() as connection:
                connection.exec_driver_sql("INSERT INTO item DEFAULT VALUES")
                yield connection

        def test(clean_database, session, add):
            add("tea", "kept")
            assert False
        """
    )
    result = run()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{SECTION}*", "kept: 1 row", "  + id=1, name=tea"])
    assert not lines(result, "^item: ")


@on_embedded
def test_what_cannot_be_told_of_a_failed_test_takes_a_line_and_a_second(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyprojecttoml("[tool.cleaner]\nlock_timeout = 60")
    project.makepyfile(
        """
        import time
        import pytest

        @pytest.fixture(scope="module", autouse=True)
        def quick():
            started = time.monotonic()
            yield
            assert time.monotonic() - started < 10

        @pytest.fixture
        def session(cleaner_engine):
            with cleaner_engine.connect() as connection:
                yield connection

        def test_locks(clean_database, session):
            session.exec_driver_sql("LOCK TABLE item")
            assert False, "of the test"

        def test_next(clean_database, rows): assert rows() == []
        """
    )
    result = run()
    result.assert_outcomes(failed=1, passed=1)
    result.stdout.fnmatch_lines(
        ["E*of the test", f"*{SECTION}*", "not known: BlockedError: Looking at * waited 1 s *"]
    )


@on_embedded
def test_an_error_in_looking_never_takes_the_place_of_the_tests_own(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        """
        def test(clean_database, monkeypatch):
            monkeypatch.setattr("cleaner.Cleaner.diff", lambda *_: 1 / 0)
            assert False, "of the test"
        """
    )
    result = run("--cleaner-report")
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        ["E*of the test", f"*{SECTION}*", "not known: ZeroDivisionError: division by zero"]
    )
