"""The pytest plug-in: fixtures, a marker, options, a header line and a report.

Nothing of cleaner, nor SQLAlchemy, is imported before a test run turns out to use it.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from cleaner.pytest_run import Run

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cleaner.api import Cleaner
    from cleaner.pytest_database import Setups, TestDatabase

_MARKER = "cleaner(strategy=..., only=[...], ...): how this test's database is cleaned"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cleaner", "putting the test database back to its baseline")
    group.addoption("--cleaner-url", metavar="URL", help="the test database (default: embedded)")
    group.addoption("--cleaner-strategy", metavar="NAME", help="how to clean (default: auto)")
    group.addoption(
        "--cleaner-report",
        action="store_true",
        help="show the time spent cleaning, the slowest cleans, the strategies used, and what "
        "each test left in the database",
    )
    group.addoption(
        "--cleaner-keep",
        action="store_true",
        help="keep a copy of the database of each test that fails (five at most), and show how "
        "to look at it",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    config.stash.setdefault(_RUN, Run(config))


@pytest.hookimpl(tryfirst=True)
def pytest_load_initial_conftests(early_config: pytest.Config) -> None:
    """Before the application is imported, which may make its engine from what is in the
    environment.
    """
    run = early_config.stash.setdefault(_RUN, Run(early_config))
    run.reserve()


def pytest_unconfigure(config: pytest.Config) -> None:
    if (run := config.stash.get(_RUN, None)) is not None:
        run.end()


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Of pytest-xdist: tell each worker where the run's embedded server is or will be."""
    run = node.config.stash[_RUN]
    if run.configured and run.shares_server:
        node.workerinput["cleaner_directory"] = str(run.embedded().directory)


def pytest_report_header(config: pytest.Config) -> list[str] | None:
    run = config.stash[_RUN]
    in_worker = hasattr(config, "workerinput")  # where nobody sees it
    return run.header() if run.configured and not in_worker else None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give each test the databases that its markers or the settings choose, one after the other."""
    run = metafunc.config.stash[_RUN]
    names = run.chosen(metafunc.definition)
    if not names:
        return
    # A test may get its database by a fixture that asks for it in its body only.
    if "cleaner_database" not in metafunc.fixturenames:
        metafunc.fixturenames.append("cleaner_database")
    metafunc.parametrize("cleaner_database", names, indirect=True, scope="session")


def pytest_itemcollected(item: pytest.Item) -> None:
    names = getattr(item, "fixturenames", None)
    if names is None:
        return
    run = item.config.stash[_RUN]
    marked = next(item.iter_markers("cleaner"), None) is not None or _is_mixed_in(item)
    if not marked and "clean_database" not in names and not run.autouse:
        return
    if not hasattr(item, "callspec") and (chosen := run.chosen(item)):
        from cleaner.errors import CleanerWarning

        item.warn(
            CleanerWarning(
                f"{item.nodeid} is on the main database, not on {' and '.join(chosen)}: pytest "
                "gives tests of unittest and doctest no choice"
            )
        )
    # First to be set up and so last to be torn down: by then the sessions of the test's other
    # fixtures are closed. In a list of its own, since all parameters of a test share one.
    others = [name for name in names if name != "clean_database"]
    item.fixturenames = ["clean_database", *others]  # type: ignore[attr-defined]


def _is_mixed_in(item: pytest.Item) -> bool:
    """Whether the test's class is to be cleaned like by the mixin for unittest."""
    testcase = sys.modules.get("cleaner.testcase")
    cls = getattr(item, "cls", None)
    if testcase is None or cls is None or not issubclass(cls, testcase.CleanDatabaseMixin):
        return False
    cls.cleaned_by_pytest = cls.cleaner is None
    return bool(cls.cleaned_by_pytest)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[_FAILED] = report.failed
    if call.when == "call" and report.failed:
        for name, cleaner in item.stash.get(_IN_USE, {}).items():
            from cleaner.pytest_report import compared

            title = _SECTION if name == "main" else f"{_SECTION} {name}"
            report.sections.append((title, str(compared(cleaner))))
    if call.when == "teardown":
        # Of plain types: pytest-xdist sends it to the controller.
        report.cleaner_cleans = item.stash.get(_CLEANS, [])  # type: ignore[attr-defined]
        report.cleaner_left = [left for left in item.stash.get(_LEFT, []) if left]  # type: ignore[attr-defined]
        report.cleaner_kept = kept = item.stash.get(_KEPT, [])  # type: ignore[attr-defined]
        for name, how in kept:
            from cleaner.pytest_kept import SECTION

            report.sections.append((SECTION, f"{name}\n{how}" if name else f"not kept: {how}"))
        item.stash[_KEPT] = []
    return report


_RUN: pytest.StashKey[Run] = pytest.StashKey()
_CLEANS: pytest.StashKey[list[tuple[str, float, int]]] = pytest.StashKey()
_LEFT: pytest.StashKey[list[str]] = pytest.StashKey()
_FAILED: pytest.StashKey[bool] = pytest.StashKey()
_KEPT: pytest.StashKey[list[tuple[str, str]]] = pytest.StashKey()
_IN_USE: pytest.StashKey[dict[str, Cleaner]] = pytest.StashKey()  # between the two cleans
_SECTION = "cleaner: what the test left in the database"


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(session.config.stash[_RUN], "cleaner-run")


# -- fixtures -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cleaner_database(request: pytest.FixtureRequest) -> str:
    """The name of the database that the test uses: ``main``, or one of the setting ``databases``
    that ``@pytest.mark.cleaner(database="NAME")`` chooses, or that database's setting ``tests``.
    """
    return str(getattr(request, "param", "main"))


@pytest.fixture(scope="session")
def cleaner_setup() -> Setups | None:
    """Override it: return ``setup(engine)``, which builds the schema and, if it likes, rows that
    are the baseline; with several databases, a dictionary of such functions by name.

    The default creates what the metadata of the settings describes. It runs once for all workers
    and runs, until something changes that shapes the database; where all tests share the
    configured database it runs in each process, so it has to bear that.
    """
    return None


@pytest.fixture(scope="session")
def _cleaner_provide(
    request: pytest.FixtureRequest, cleaner_setup: Setups | None
) -> Callable[[str], TestDatabase]:
    """To have the database of that name there."""
    maker = request._get_active_fixturedef("cleaner_setup").func
    run = request.config.stash[_RUN]

    def provide(name: str) -> TestDatabase:
        database = run.database(name)
        database.provide(cleaner_setup, maker)
        return database

    return provide


@pytest.fixture(scope="session")
def cleaner_url(cleaner_database: str, _cleaner_provide: Callable[[str], TestDatabase]) -> str:
    """The URL of this process's own database, its schema built: on the server of ``url``, on the
    embedded one without.
    """
    url = _cleaner_provide(cleaner_database).url_in_use
    return url.render_as_string(hide_password=False)


@pytest.fixture(scope="session")
def cleaner_engine(
    cleaner_database: str, _cleaner_provide: Callable[[str], TestDatabase]
) -> Iterator[Engine]:
    """An engine for the tests and the application, on :func:`cleaner_url`."""
    with _cleaner_provide(cleaner_database).engine() as engine:
        yield engine


@pytest.fixture(scope="session")
def cleaner(cleaner_database: str, _cleaner_provide: Callable[[str], TestDatabase]) -> Cleaner:
    """The Cleaner of this run's database."""
    return _cleaner_provide(cleaner_database).cleaner


@pytest.fixture
def clean_database(
    request: pytest.FixtureRequest,
    cleaner_database: str,
    _cleaner_provide: Callable[[str], TestDatabase],
) -> Iterator[Cleaner]:
    """The database is at its baseline before and after the test; yields the Cleaner."""
    with _cleaned(_cleaner_provide(cleaner_database), request.node) as cleaner:
        yield cleaner


@pytest.fixture
def clean_databases(
    request: pytest.FixtureRequest, _cleaner_provide: Callable[[str], TestDatabase]
) -> Iterator[dict[str, Cleaner]]:
    """The same for all databases of the settings at once; yields their Cleaners by name."""
    names = [database.name for database in request.config.stash[_RUN].databases]
    with ExitStack() as stack:
        yield {
            name: stack.enter_context(_cleaned(_cleaner_provide(name), request.node))
            for name in names
        }


@pytest.fixture(scope="session")
def cleaner_engines(
    request: pytest.FixtureRequest, _cleaner_provide: Callable[[str], TestDatabase]
) -> Iterator[dict[str, Engine]]:
    """An engine for each database of the settings, by name."""
    names = [database.name for database in request.config.stash[_RUN].databases]
    with ExitStack() as stack:
        yield {name: stack.enter_context(_cleaner_provide(name).engine()) for name in names}


@contextmanager
def _cleaned(database: TestDatabase, item: pytest.Item) -> Iterator[Cleaner]:
    """One database, clean before and after the body, with what the run wants to know of it."""
    config, cleaner = item.config, database.cleaner
    chosen = database.cleaner_for(item)
    cleans = item.stash.setdefault(_CLEANS, [])

    def clean(by: Cleaner) -> None:
        started = time.perf_counter()
        report = by.clean()
        cleans.append((report.strategy, time.perf_counter() - started, len(report.tables)))

    in_use = item.stash.setdefault(_IN_USE, {})
    if database.name in in_use:  # by another fixture of the test
        yield in_use[database.name]
        return
    assert database.place is not None
    with database.place.turn():
        before = cleaner if chosen.strategy.recreates else chosen
        clean(before)
        guard = database.schema_guard if chosen is before else None
        if guard and not guard.intact(before):
            guard = None  # a fixture has changed it, for the tests to come
        in_use[database.name] = chosen
        try:
            yield chosen
        finally:
            del in_use[database.name]
            try:
                if config.option.cleaner_report:
                    from cleaner.pytest_report import left

                    item.stash.setdefault(_LEFT, []).append(left(chosen))
                if config.option.cleaner_keep and item.stash.get(_FAILED, False):
                    # Now that the test's other fixtures are gone, whose sessions this would end.
                    item.stash.setdefault(_KEPT, []).append(database.keep(item.nodeid))
            finally:
                if guard is None:
                    clean(chosen)
                else:
                    guard.after(chosen, item.nodeid, lambda: clean(chosen))
