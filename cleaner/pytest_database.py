"""One of the databases of a test run: what its settings say, and where it is in this process."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from sqlalchemy import URL, Engine, create_engine

from cleaner import guard
from cleaner.api import Cleaner
from cleaner.dialects import OwnDatabase, has_pool, own_database, turns
from cleaner.errors import CleanerError, PoolRefusedError, SettingsError
from cleaner.metadata import Models
from cleaner.provision.fingerprint import fingerprint
from cleaner.provision.leases import Lease, Pool
from cleaner.pytest_build import Order, Setup, settings_for
from cleaner.pytest_leased import Leased, leased
from cleaner.pytest_own import Own, Shared
from cleaner.pytest_schema import SchemaGuard
from cleaner.pytest_variables import Variables

if TYPE_CHECKING:
    import pytest

    from cleaner.provision.embedded import EmbeddedPostgres
    from cleaner.settings import Settings

Setups = Setup | Mapping[str, Setup]
MAIN = "main"
_OWN = ("CLEANER_URL",)


class Process(Protocol):
    """The test process: :class:`cleaner.pytest_run.Run`."""

    @property
    def settings(self) -> Settings: ...

    @property
    def id(self) -> str: ...

    @property
    def worker(self) -> str: ...

    @property
    def workers(self) -> int: ...

    @property
    def root(self) -> Path: ...

    def embedded(self) -> EmbeddedPostgres: ...

    def option(self, name: str) -> Any: ...


class TestDatabase:
    """The database that the settings call ``name``; the one of ``[tool.cleaner]`` is the main one.

    It is there from the first :meth:`provide` to the end of the run.
    """

    __test__ = False  # pytest takes everything called Test for one

    def __init__(self, run: Process, name: str) -> None:
        self.run, self.name = run, name
        self.settings: Settings = run.settings if name == MAIN else run.settings.database(name)
        self.place: Leased | Own | Shared | None = None
        self._reserved: Lease | OwnDatabase | None = None
        self._failed: Exception | None = None
        self.variables = Variables(self.settings.export, _OWN if name == MAIN else ())
        self._cleaner: Cleaner | None = None
        self._variants: list[tuple[dict[str, Any], Cleaner]] = []
        self._schema_guard: SchemaGuard | None = None

    # -- where it is ------------------------------------------------------------------------

    @property
    def url(self) -> URL:
        """The configured URL, or that of the embedded server, with the name that the databases of
        the workers begin with.
        """
        url = self.settings.url
        if url is None:
            return self.run.embedded().url(self.embedded_name)
        return url.url if isinstance(url, Engine) else url

    @property
    def embedded_name(self) -> str:
        """What those of the workers are called like on the embedded server."""
        return "test" if self.name == MAIN else f"test_{self.name}"

    @property
    def pool(self) -> Pool:
        """The databases of the workers. Raises UnsafeDatabaseError where there are to be none."""
        url = self.url
        self._check_name(url.database or "")
        return Pool(url, self.settings.lock_timeout)

    def _check_name(self, name: str) -> None:
        guard.check(name, self.settings.allow_databases)

    def reserve(self) -> None:
        """Have the right to a database, which is made when first used, and tell its URL in the
        environment.
        """
        try:
            self._reserved = reserved = self._reservation()
            source = reserved.url if isinstance(reserved, Lease) else reserved.source
            if isinstance(source, Engine):
                raise SettingsError(
                    f"{self.url.render_as_string()} can't be exported.",
                    "a database in memory is seen by the engine that made it, and by no other",
                    "without export, and the application given cleaner_engine; or a file",
                )
            self.variables.tell(source)
        except PoolRefusedError:
            self.variables.tell(self.url)
        except CleanerError as error:  # of no concern to a run that needs no database
            self._failed = error

    def _reservation(self) -> Lease | OwnDatabase:
        """The right to a database that nobody else has. Raises PoolRefusedError."""
        if has_pool(self.url):
            return self.pool.lease(self.run.worker)
        wait = self.settings.lock_timeout
        own = own_database(self.url, self.run.worker, self._check_name, wait)
        if own is None:
            raise PoolRefusedError("cleaner can't make databases of this kind.")
        return own

    def provide(self, setups: Setups | None, maker: Callable[..., object]) -> Leased | Own | Shared:
        """The database of this process, where the tests run from now on. ``maker`` is the fixture
        that returned ``setups``; None: nobody has overridden it.
        """
        if self._failed is not None:  # a set-up that fails is not tried for each test again
            raise self._failed
        if self.place is None:
            try:
                self.place = self._placed(self._order(setups, maker))
            except Exception as error:
                self._failed = error
                raise
            self.variables.tell(self.place.url)
        return self.place

    def _placed(self, order: Order) -> Leased | Own | Shared:
        reserved, self._reserved = self._reserved, None
        try:
            if has_pool(order.url):
                return leased(order, self.pool, reserved if isinstance(reserved, Lease) else None)
            if reserved is None or isinstance(reserved, Lease):
                reserved = self._reservation()
            assert not isinstance(reserved, Lease)
            return Own(order, reserved)
        except PoolRefusedError as error:
            shared = turns(order.url, order.settings.lock_timeout)
            return Shared(order, shared, f"{error.what} {error.remedy}")

    def _order(self, setups: Setups | None, maker: Callable[..., object]) -> Order:
        models, settings, root = Models(self.settings.metadata), self.settings, self.run.root
        self._check_setups(setups)
        given = setups.get(self.name) if isinstance(setups, Mapping) else setups
        if given is not None and self.name != MAIN and not isinstance(setups, Mapping):
            # A function builds what belongs together, not what another database has for itself.
            given = given if settings.metadata is None else None

        def create(engine: Engine) -> None:
            for metadata in models.metadata:
                metadata.create_all(engine)

        setup = given or create
        makers = [maker] if given else []

        def set_up(engine: Engine) -> None:
            # What it starts may go by the variables, such as an env.py of Alembic's.
            with self.variables.telling(engine.url):
                setup(engine)

        return Order(
            settings=settings,
            url=self.url,
            worker=self.run.worker,
            workers=self.run.workers,
            setup=set_up,
            fingerprint=lambda server: fingerprint(
                models, setup, settings.fingerprint, root, server, makers=makers
            ),
            seeds=settings.url is None or given is not None,
        )

    def _check_setups(self, setups: Setups | None) -> None:
        if setups is None:
            return
        by_name = setups if isinstance(setups, Mapping) else {MAIN: setups}
        for name, setup in by_name.items():
            if name != MAIN:
                self.run.settings.database(name)
            if not callable(setup):
                raise SettingsError(
                    f"cleaner_setup gave {setup!r} for the database {name!r}.",
                    "it calls the set-up instead of returning it",
                    "return setup, a function that is given the engine",
                )

    def keep(self, test: str) -> tuple[str, str]:
        """Keep the database as ``test`` has left it: the copy's name and how to look at it, or no
        name, and why there is none.
        """
        from cleaner import pytest_kept

        assert self.place is not None
        embedded = self.settings.url is None
        if self.place.unkept:
            return "", self.place.unkept
        if embedded and not self.run.embedded().kept:
            return "", pytest_kept.ENDS
        name, how = pytest_kept.keep(
            self.pool, str(self.place.url.database), run=self.run.id, worker=self.run.worker,
            test=test,
        )  # fmt: skip
        # The embedded server ends with the run; this starts it again.
        return name, f"cleaner pool psql {name}" if embedded and name else how

    # -- who works on it --------------------------------------------------------------------

    @property
    def source(self) -> URL | Engine:
        """What leads to it."""
        assert self.place is not None
        return self.place.source

    @property
    def url_in_use(self) -> URL:
        """Its URL."""
        assert self.place is not None
        return self.place.url

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """An engine on it."""
        source = self.source
        if isinstance(source, Engine):  # memory, which goes with its pool
            yield source
            return
        # By the URL of an asynchronous driver: with the synchronous one that the cleaner took.
        engine = create_engine(self.cleaner.connect() if source.get_dialect().is_async else source)
        yield engine
        engine.dispose()

    @property
    def cleaner(self) -> Cleaner:
        """Its cleaner."""
        if self._cleaner is None:
            assert self.place is not None
            settings = settings_for(self.settings, self.source, self.place.name)
            template = self.place.template
            if template and settings.strategy == "recreate" and not settings.strategy_options:
                options = {"strategy_options": {"template": template}}
                settings = settings.merged(options, "fixture")
            self._cleaner = Cleaner(settings=settings)
        return self._cleaner

    def cleaner_for(self, item: pytest.Item) -> Cleaner:
        """The cleaner with what the markers of the test, its class and its module say."""
        keywords: dict[str, Any] = {}
        for marker in reversed(list(item.iter_markers("cleaner"))):
            if marker.args:
                raise SettingsError(
                    f"@pytest.mark.cleaner has the positional argument {marker.args[0]!r}.",
                    "settings are given by name",
                    f"@pytest.mark.cleaner(strategy={marker.args[0]!r})",
                )
            keywords.update(marker.kwargs)
        keywords.pop("database", None)
        if not keywords:
            return self.cleaner
        if keywords.get("strategy") == "recreate" and self.place and self.place.template:
            keywords.setdefault("strategy_options", {"template": self.place.template})
        # One cleaner, and so one compiled plan, for all tests marked alike.
        for known, variant in self._variants:
            if known == keywords:
                return variant
        self._variants.append((keywords, self.cleaner.using(**keywords)))
        return self._variants[-1][1]

    @property
    def schema_guard(self) -> SchemaGuard:
        """Notices changes of the schema, and undoes them where there is a template for that."""
        assert self.place is not None
        if self._schema_guard is None:
            self._schema_guard = SchemaGuard(self.cleaner, self.place.template)
        return self._schema_guard

    # -- the end ----------------------------------------------------------------------------

    def give_back(self) -> None:
        """Let go of what was reserved and never used."""
        reserved, self._reserved = self._reserved, None
        if isinstance(reserved, Lease):
            reserved.release()
        elif reserved is not None:
            reserved.close()

    def close(self) -> None:
        """Let go of it."""
        self.give_back()
        if self._cleaner is not None:
            self._cleaner.close()
        place, self.place = self.place, None
        if place is not None:
            place.close()
        self.variables.restore()
