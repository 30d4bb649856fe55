"""The pytest plug-in: fixtures, a marker, options, a header line and a report.

Nothing of cleaner, nor SQLAlchemy, is imported before a test run turns out to use it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from cleaner.pytest_run import Run

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cleaner.api import Cleaner

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
    if run.configured and run.settings.url is None:
        node.workerinput["cleaner_directory"] = str(run.embedded().directory)


def pytest_report_header(config: pytest.Config) -> str | None:
    run = config.stash[_RUN]
    return run.header() if run.configured else None


def pytest_itemcollected(item: pytest.Item) -> None:
    names = getattr(item, "fixturenames", None)
    if names is None:
        return
    run = item.config.stash[_RUN]
    marked = next(item.iter_markers("cleaner"), None) is not None
    if not marked and "clean_database" not in names and not run.autouse:
        return
    # First to be set up and so last to be torn down: by then the sessions of the test's other
    # fixtures are closed. In a list of its own, since all parameters of a test share one.
    others = [name for name in names if name != "clean_database"]
    item.fixturenames = ["clean_database", *others]  # type: ignore[attr-defined]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if call.when == "call":
        item.stash[_FAILED] = report.failed
    if call.when == "call" and report.failed and _IN_USE in item.stash:
        from cleaner.pytest_report import compared

        report.sections.append((_SECTION, str(compared(item.stash[_IN_USE]))))
    if call.when == "teardown":
        # Of plain types: pytest-xdist sends it to the controller.
        report.cleaner_cleans = item.stash.get(_CLEANS, [])  # type: ignore[attr-defined]
        report.cleaner_left = item.stash.get(_LEFT, "")  # type: ignore[attr-defined]
        if kept := item.stash.get(_KEPT, None):
            from cleaner.pytest_kept import SECTION

            name, how = kept
            report.cleaner_kept = kept  # type: ignore[attr-defined]
            report.sections.append((SECTION, f"{name}\n{how}" if name else f"not kept: {how}"))
            del item.stash[_KEPT]
    return report


_RUN: pytest.StashKey[Run] = pytest.StashKey()
_CLEANS: pytest.StashKey[list[tuple[str, float, int]]] = pytest.StashKey()
_LEFT: pytest.StashKey[str] = pytest.StashKey()
_FAILED: pytest.StashKey[bool] = pytest.StashKey()
_KEPT: pytest.StashKey[tuple[str, str]] = pytest.StashKey()
_IN_USE: pytest.StashKey[Cleaner] = pytest.StashKey()  # from the first clean to the last one
_SECTION = "cleaner: what the test left in the database"


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(session.config.stash[_RUN], "cleaner-run")


# -- fixtures -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cleaner_setup(request: pytest.FixtureRequest) -> Callable[[Engine], None]:
    """Override it: return ``setup(engine)``, which builds the schema.

    The default creates what the metadata of the settings describes. It runs once for all workers
    and runs, until something changes that shapes the database; where all tests share the
    configured database it runs in each process, so it has to bear that.
    """
    from cleaner.metadata import Models

    models = Models(request.config.stash[_RUN].settings.metadata)

    def setup(engine: Engine) -> None:
        for metadata in models.metadata:
            metadata.create_all(engine)

    return setup


@pytest.fixture(scope="session")
def cleaner_url(
    request: pytest.FixtureRequest, cleaner_setup: Callable[[Engine], None]
) -> Iterator[str]:
    """The URL of this process's own database, its schema built: on the server of ``url``, on the
    embedded one without.
    """
    maker = request._get_active_fixturedef("cleaner_setup").func
    database = request.config.stash[_RUN].provide(cleaner_setup, maker)
    yield database.url.render_as_string(hide_password=False)
    database.close()


@pytest.fixture(scope="session")
def cleaner_engine(cleaner_url: str) -> Iterator[Engine]:
    """An engine for the tests and the application, on :func:`cleaner_url`."""
    from sqlalchemy import create_engine

    engine = create_engine(cleaner_url)
    yield engine
    engine.dispose()


@pytest.fixture(scope="session")
def cleaner(request: pytest.FixtureRequest, cleaner_url: str) -> Iterator[Cleaner]:
    """The Cleaner of this run's database."""
    from cleaner.api import Cleaner

    settings = request.config.stash[_RUN].settings_for(cleaner_url)
    with Cleaner(settings=settings) as made:
        yield made


@pytest.fixture
def clean_database(request: pytest.FixtureRequest, cleaner: Cleaner) -> Iterator[Cleaner]:
    """The database is at its baseline before and after the test; yields the Cleaner."""
    item: pytest.Item = request.node
    run = item.config.stash[_RUN]
    chosen = run.cleaner_for(cleaner, item)
    cleans = item.stash.setdefault(_CLEANS, [])

    def clean(by: Cleaner) -> None:
        started = time.perf_counter()
        report = by.clean()
        cleans.append((report.strategy, time.perf_counter() - started, len(report.tables)))

    assert run.provided is not None
    with run.provided.turn():
        before = cleaner if chosen.strategy.recreates else chosen
        clean(before)
        guard = run.schema_guard(cleaner) if chosen is before else None
        if guard and not guard.intact(before):
            guard = None  # a fixture has changed it, for the tests to come
        item.stash[_IN_USE] = chosen
        yield chosen
        del item.stash[_IN_USE]
        if run.config.option.cleaner_report:
            from cleaner.pytest_report import left

            item.stash[_LEFT] = left(chosen)
        if run.config.option.cleaner_keep and item.stash.get(_FAILED, False):
            # Now that the test's other fixtures are gone, whose sessions this would end.
            item.stash[_KEPT] = run.keep(item.nodeid)
        if guard is None:
            clean(chosen)
        else:
            guard.after(chosen, item.nodeid, lambda: clean(chosen))
