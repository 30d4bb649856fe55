"""The pytest plug-in, in real runs of pytest on a real database."""

from __future__ import annotations

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from support.database import Database

from cleaner.provision.leases import Pool

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)

CONFTEST = """
import pytest


@pytest.fixture(scope="session")
def cleaner_setup():
    def setup(engine):
        with engine.begin() as connection:
            connection.exec_driver_sql("DROP TABLE IF EXISTS item, kept")
            connection.exec_driver_sql("CREATE TABLE item (id serial PRIMARY KEY, name text)")
            connection.exec_driver_sql("CREATE TABLE kept (id serial PRIMARY KEY, name text)")
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

Run = Callable[..., pytest.RunResult]


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A suite of its own, which knows nothing of the run that it is run by."""
    for variable in list(os.environ):
        if variable.startswith(("PYTEST_", "CLEANER_")):
            monkeypatch.delenv(variable)
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:hypothesispytest -p no:cacheprovider")  # slow
    pytester.makeconftest(CONFTEST)
    return pytester


@pytest.fixture
def url(database: Database) -> str:
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
    """Run that suite on the server of this test's database."""

    def run(*arguments: str) -> pytest.RunResult:
        return project.runpytest_subprocess("--cleaner-url", url, *arguments)

    return run


def lines(result: pytest.RunResult, pattern: str) -> list[str]:
    return [line for line in result.outlines if re.search(pattern, line)]


# -- header, settings -----------------------------------------------------------------------


@on_embedded
def test_the_header_names_strategy_server_and_database(run: Run, database: Database) -> None:
    result = run("--cleaner-strategy", "delete")
    version = database.scalar("SHOW server_version")
    assert (
        f"cleaner: delete on postgresql {version}, database {database.name}_main" in result.outlines
    )


@on_embedded
def test_each_source_of_settings_is_stronger_than_the_one_before(
    project: pytest.Pytester, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def header(*arguments: str) -> str:
        (line,) = lines(project.runpytest_subprocess("--co", *arguments), "^cleaner: ")
        return str(line)

    project.makepyprojecttoml(f'[tool.cleaner]\nurl = "{url}"\nstrategy = "replica"')
    assert header().startswith("cleaner: replica on ")
    monkeypatch.setenv("CLEANER_STRATEGY", "truncate")
    assert header().startswith("cleaner: truncate on ")
    assert header("--cleaner-strategy=delete").startswith("cleaner: delete on ")
    nowhere = "postgresql+psycopg://127.0.0.1:1/nowhere_test"
    assert header(f"--cleaner-url={nowhere}").endswith("database nowhere_test_main")


def test_a_wrong_setting_is_a_usage_error_that_suggests_the_right_one(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml('[tool.cleaner]\nstratgy = "auto"')
    project.makepyfile("def test(): pass")
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "did you mean 'strategy'?" in result.stderr.str()
    assert "Traceback" not in result.stderr.str()


@on_embedded
def test_an_unknown_strategy_is_named_with_those_installed(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile("def test(clean_database): pass")
    result = run("--cleaner-strategy=trunkate")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*There is no strategy 'trunkate'; installed are auto, *truncate*"]
    )


@on_embedded
def test_a_database_that_is_no_test_database_is_refused_before_the_setup_runs(
    project: pytest.Pytester, database: Database
) -> None:
    project.makeconftest(
        "import pytest\n\n@pytest.fixture(scope='session')\ndef cleaner_setup():\n"
        "    def setup(engine):\n        print('THE SETUP RAN')\n    return setup"
    )
    project.makepyfile("def test(clean_database): pass")
    production = database.url.set(database="postgres").render_as_string(hide_password=False)
    result = project.runpytest_subprocess("-s", f"--cleaner-url={production}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UnsafeDatabaseError*'postgres'*"])
    assert "THE SETUP RAN" not in result.stdout.str()


# -- fixtures, marker -----------------------------------------------------------------------


@on_embedded
def test_each_test_begins_and_ends_at_the_baseline(
    project: pytest.Pytester, run: Run, leased: Database
) -> None:
    project.makepyfile(
        """
        from sqlalchemy import Engine
        from cleaner import Cleaner

        def test_fixtures(clean_database, cleaner, cleaner_engine, cleaner_url):
            assert isinstance(clean_database, Cleaner)
            assert isinstance(cleaner_engine, Engine)
            assert cleaner_engine.url.render_as_string(hide_password=False) == cleaner_url
            assert cleaner.plan().tables == ("item", "kept")

        def test_unclean(add):
            add("left behind")

        def test_clean_from_the_start(add, rows, clean_database):
            assert rows() == []
            add()
            assert rows() == [(1, "x")]

        def test_ids_start_again(add, rows, clean_database):
            add()
            assert rows() == [(1, "x")]
        """
    )
    run().assert_outcomes(passed=4)
    assert leased.count("item") == 0


@on_embedded
def test_markers_of_module_class_and_function_are_merged_and_imply_the_fixture(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        test_marks="""
        import pytest
        pytestmark = pytest.mark.cleaner(strategy="delete", exclude=["kept"])
        seen = {}

        @pytest.fixture(autouse=True)
        def look(request):
            cleaner = request.getfixturevalue("clean_database")
            seen[request.node.name] = cleaner.settings.strategy, cleaner.settings.exclude

        class TestClass:
            pytestmark = pytest.mark.cleaner(strategy="truncate")

            def test_of_class(self): pass

            @pytest.mark.cleaner(strategy="replica", exclude=[])
            def test_of_function(self): pass

        def test_of_module(add):
            add()
            add("stays", "kept")

        def test_z(rows):
            assert rows() == []
            assert rows("kept") == [(1, "stays")]
            assert seen == {
                "test_of_class": ("truncate", ("kept",)),
                "test_of_function": ("replica", ()),
                "test_of_module": ("delete", ("kept",)),
                "test_z": ("delete", ("kept",)),
            }
        """,
        test_other="""
        def test_unmarked(request):
            assert "clean_database" not in request.fixturenames
        """,
    )
    run("-p", "no:randomly").assert_outcomes(passed=5)


@on_embedded
def test_a_marker_on_one_parameter_is_a_matter_of_that_parameter(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", [0, pytest.param(1, marks=pytest.mark.cleaner), 2])
        def test(n, request):
            assert ("clean_database" in request.fixturenames) == (n == 1)
        """
    )
    run().assert_outcomes(passed=3)


@on_embedded
def test_a_positional_argument_of_the_marker_is_an_error_that_shows_how_to_write_it(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.cleaner("delete")
        def test(): pass

        @pytest.mark.cleaner(strateegy="delete")
        def test_misspelt(): pass

        def test_next(clean_database): pass
        """
    )
    result = run()
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.cleaner(strategy='delete')*"])
    result.stdout.fnmatch_lines(["*'strateegy'*did you mean 'strategy'?*"])


@on_embedded
def test_the_marker_is_a_known_one(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile("import pytest\n\n@pytest.mark.cleaner\ndef test(): pass")
    run("--strict-markers").assert_outcomes(passed=1)
    project.runpytest_subprocess("--markers").stdout.fnmatch_lines(["@pytest.mark.cleaner(*"])


@on_embedded
def test_autouse_and_the_marker_serve_unittest_too(
    project: pytest.Pytester, url: str, leased: Database
) -> None:
    project.makepyprojecttoml(f'[tool.cleaner]\nurl = "{url}"\nautouse = true')
    project.makepyfile(
        """
        import unittest
        import pytest
        import sqlalchemy

        @pytest.fixture(autouse=True)
        def engine(request, cleaner_engine):
            if request.cls:
                request.cls.engine = cleaner_engine

        def test_plain(rows, add):
            assert rows() == []
            add()

        class TestCase(unittest.TestCase):
            def setUp(self):
                with self.engine.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO item (name) VALUES ('of setUp')")
                    found = connection.exec_driver_sql("SELECT id FROM item")
                    self.assertEqual(found.scalars().all(), [1])

            def test_one(self): pass

            @pytest.mark.cleaner(strategy="truncate")
            def test_two(self): pass

        class TestPlain:
            def setup_method(self):
                with self.engine.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO item DEFAULT VALUES")

            def test_one(self, rows): assert rows() == [(1, None)]
            def test_two(self, rows): assert rows() == [(1, None)]
        """
    )
    result = project.runpytest_subprocess("--cleaner-report")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["10 cleans in *", "  auto: 8 cleans*", "  truncate: 2 cleans*"])
    assert leased.count("item") == 0


@on_embedded
def test_the_marker_serves_unittest_without_autouse(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        """
        import unittest
        import pytest

        class TestMarked(unittest.TestCase):
            @pytest.mark.cleaner
            def test_one(self): pass
            def test_two(self): pass
        """
    )
    result = run("--cleaner-report")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["2 cleans in *"])


@on_embedded
def test_a_setup_of_the_users_own_runs_once_for_all_runs(
    project: pytest.Pytester, run: Run, database: Database
) -> None:
    counted = project.path / "setups"
    project.makeconftest(
        "import pytest\n\n@pytest.fixture(scope='session')\ndef cleaner_setup():\n"
        "    def setup(engine):\n        with open('setups', 'a') as file: file.write('x')\n"
        "    return setup"
    )
    project.makepyfile(
        test_a="import pytest\npytestmark = pytest.mark.cleaner\n"
        "def test_a(): pass\ndef test_b(): pass",
        test_b="import pytest\npytestmark = pytest.mark.cleaner\ndef test_c(): pass",
    )
    for _ in range(2):
        run().assert_outcomes(passed=3)
    assert counted.read_text() == "x"


@on_embedded
def test_the_default_setup_creates_the_metadata_of_the_settings(
    project: pytest.Pytester, run: Run, leased: Database
) -> None:
    project.makeconftest("")
    project.makepyprojecttoml('[tool.cleaner]\nmetadata = "models:Base"')
    project.makepyfile(
        models="from sqlalchemy.orm import *\n\nclass Base(DeclarativeBase): pass\n\n"
        "class Thing(Base):\n    __tablename__ = 'thing'\n"
        "    id: Mapped[int] = mapped_column(primary_key=True)",
        test_it="def test(clean_database): assert clean_database.plan().tables == ('thing',)",
    )
    run("-p", "no:randomly").assert_outcomes(passed=1)
    assert leased.count("thing") == 0


# -- the schema -----------------------------------------------------------------------------


@on_embedded
@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("CREATE TABLE extra (id int)", "+ table public.extra"),
        ("DROP TABLE role", "- table public.role"),
        ("ALTER TABLE role ADD more int", "+ column public.role.more integer"),
        ("CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'", "+ function public.f()"),
        # The same words describe it, and the rows that were captured are lost with it.
        ("ALTER TABLE role DROP name, ADD name text", "column name of public.role"),
    ],
)
def test_what_a_test_does_to_the_schema_is_undone_and_named(
    project: pytest.Pytester, run: Run, change: str, named: str
) -> None:
    project.makeconftest(
        CONFTEST.replace(
            "    return setup",
            """        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE role (id int PRIMARY KEY)")
            connection.exec_driver_sql("ALTER TABLE role ADD name text")
            connection.exec_driver_sql("INSERT INTO role VALUES (1, 'admin')")
    return setup""",
        )
    )
    project.makepyfile(
        f"""
        def test_changes(clean_database, cleaner_engine):
            with cleaner_engine.begin() as connection:
                connection.exec_driver_sql({change!r})

        def test_follows(clean_database, rows, cleaner_engine):
            assert rows("role") == [(1, "admin")]
            with cleaner_engine.begin() as connection:
                connection.exec_driver_sql({change!r})

        def test_is_last(clean_database, rows, cleaner_engine):
            assert rows("role") == [(1, "admin")]
        """
    )
    result = run("-p", "no:randomly")
    result.assert_outcomes(passed=3, warnings=2)
    result.stdout.fnmatch_lines([f"*test_changes changed the schema, *{named}*"])


# -- order, errors --------------------------------------------------------------------------


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
        # In the background of a shell Ctrl-C is ignored, and inherited so.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
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
    deadline = time.monotonic() + 10
    while leased.scalar(
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE datname = current_database() AND pid <> pg_backend_pid()"
    ):
        assert time.monotonic() < deadline


@pytest.mark.skipif(
    importlib.util.find_spec("pytest_rerunfailures") is None,
    reason="pytest-rerunfailures is not installed",
)
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
    result = run(workers, "-p", "no:randomly")
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
    result = run("-p", "no:randomly")
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


# -- parallel workers -----------------------------------------------------------------------

NEIGHBOURS = """
import os
import pytest

@pytest.mark.parametrize("n", range(10))
def test(n, add, rows, clean_database, cleaner_url, worker_id):
    assert cleaner_url.partition("?")[0].endswith(f"/test_{worker_id}")
    assert rows() == []
    for turn in range(5):
        add(worker_id)
        assert rows() == [(i + 1, worker_id) for i in range(turn + 1)]
"""


def test_workers_on_the_embedded_server_never_see_a_neighbours_row(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml("[tool.cleaner]\n")
    project.makepyfile(NEIGHBOURS)
    result = project.runpytest_subprocess("-n2", "--dist=load", "--cleaner-report", "-v")
    result.assert_outcomes(passed=10)
    assert {line.split("]")[0] for line in lines(result, "PASSED")} == {"[gw0", "[gw1"}
    result.stdout.fnmatch_lines(["20 cleans in *", "  auto: 20 cleans*"])
    result.stdout.fnmatch_lines(["cleaner: auto on postgresql * (embedded), *"])


def test_a_crashed_worker_is_replaced_by_one_with_a_clean_database(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml("[tool.cleaner]\nautouse = true")
    project.makepyfile(
        """
        import os
        import signal
        import pytest

        def test_crash(add):
            add()
            os.kill(os.getpid(), signal.SIGKILL)

        @pytest.mark.parametrize("n", range(8))
        def test(n, rows, add):
            assert rows() == []
            add()
        """
    )
    result = project.runpytest_subprocess("-n2")
    result.assert_outcomes(passed=8, failed=1)
    result.stdout.fnmatch_lines(["*worker 'gw?' crashed*"])


def test_without_a_url_one_process_has_the_embedded_server_to_itself(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml('[tool.cleaner]\nstrategy = "delete"')
    project.makepyfile(
        "def test(cleaner_url, clean_database, add, request):\n    add()\n"
        "    import pathlib, sqlalchemy\n"
        "    host = sqlalchemy.make_url(cleaner_url).query['host']\n"
        "    pathlib.Path('directory').write_text(host)"
    )
    result = project.runpytest_subprocess("-p", "no:xdist")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["cleaner: delete on postgresql * (embedded), database test_main"])
    assert not Path((project.path / "directory").read_text()).exists()


# -- manners --------------------------------------------------------------------------------


def test_a_suite_that_uses_none_of_it_pays_nothing(project: pytest.Pytester) -> None:
    project.makeconftest("")
    project.makepyfile(
        """
        import sys

        def test():
            import cleaner
            heavy = {"sqlalchemy", "psycopg", "tenacity", "cleaner.api", "cleaner.settings"}
            assert heavy.isdisjoint(sys.modules)
        """
    )
    result = project.runpytest_subprocess("-n0")
    result.assert_outcomes(passed=1)
    assert not lines(result, "^cleaner: ")


def test_it_can_be_switched_off(project: pytest.Pytester) -> None:
    project.makeconftest("")
    project.makepyfile(
        "def test(request): assert not request.config.pluginmanager.hasplugin('cleaner')"
    )
    project.runpytest_subprocess("-p", "no:cleaner").assert_outcomes(passed=1)


@on_embedded
def test_a_package_strategies_of_the_users_own_is_not_shadowed(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        **{
            "strategies/__init__": "MINE = True",
            "test_it": "import cleaner\nimport strategies\n\n"
            "def test(clean_database):\n    assert strategies.MINE\n"
            "    assert clean_database.clean().strategy == 'auto'",
        }
    )
    run().assert_outcomes(passed=1)
