"""Engines of our own, and the drivers that they use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any, ClassVar

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.pool import NullPool

from cleaner.errors import SettingsError

_CONNECT_TIMEOUT = 10  # seconds; the default of most drivers is to wait for ever


@dataclass(frozen=True)
class Twin:
    """The synchronous ``drivers`` that reach a database by the URL of an asynchronous one, in the
    order in which one is chosen.

    ``arguments`` are those of the URL's query that they have too, by name, with the name they have
    there, which is empty where they need none; None: all, by the same names.
    """

    drivers: tuple[str, ...]
    arguments: Mapping[str, str] | None = field(default_factory=dict)

    def query(self, url: URL) -> dict[str, Any] | None:
        """The query of their URL; None if they don't have an argument of ``url``."""
        if self.arguments is None:
            return dict(url.query)
        if not set(url.query) <= set(self.arguments):
            return None
        named = ((self.arguments[name], value) for name, value in url.query.items())
        return {name: value for name, value in named if name}


class Drivers:
    """A dialect says which ``drivers`` it knows, synchronous ones and those that ``async_drivers``
    are, each with the argument that bounds connecting in seconds (empty if it has none), in the
    order in which one is chosen for a URL that names none; further ``arguments`` of a driver; the
    ``twins`` of the asynchronous ones; the ``extra`` that brings the first of them; and an
    ``example`` of a URL for each.
    """

    arguments: ClassVar[dict[str, Mapping[str, object]]] = {}
    drivers: ClassVar[dict[str, str]] = {}
    async_drivers: ClassVar[dict[str, str]] = {}
    twins: ClassVar[dict[str, Twin]] = {}
    extra: ClassVar[str] = ""
    example: ClassVar[str] = ""
    async_example: ClassVar[str] = ""

    def _own_engine(self, source: URL | Engine, *, awaited: bool) -> Engine:
        """An engine of our own, so that neither pool waits for the other. Its driver is
        asynchronous if it is to be ``awaited``, or if there is no other way.

        An Engine's way of connecting (creator, arguments, events) is kept by re-creating its pool.
        """
        if isinstance(source, Engine):
            if awaited and not source.dialect.is_async:
                raise self._synchronous(f"The engine's driver {source.dialect.driver!r}")
            pool = source.pool.recreate()
            event.listen(pool, "connect", _end_transaction)
            made = engine_maker(asynchronous=source.dialect.is_async)(
                source.url, pool=pool, isolation_level="AUTOCOMMIT"
            )
        else:
            known = self.async_drivers if awaited else self.drivers
            url = _with_driver(source if awaited else self._twin(source), known)
            made = self._engine(url, {**self.drivers, **self.async_drivers}, awaited=awaited)
        engine: Engine = getattr(made, "sync_engine", made)
        return engine.execution_options(no_parameters=True)

    def _engine(self, url: URL, known: Mapping[str, str], *, awaited: bool) -> Any:
        driver = url.get_driver_name()
        arguments: dict[str, object] = {**self.arguments.get(driver, {})}
        if known.get(driver):
            arguments[known[driver]] = _CONNECT_TIMEOUT
        arguments = {name: value for name, value in arguments.items() if name not in url.query}
        try:
            return engine_maker(asynchronous=awaited)(
                url, poolclass=NullPool, isolation_level="AUTOCOMMIT", connect_args=arguments
            )
        except ModuleNotFoundError as error:
            raise SettingsError(
                f"The driver {driver!r} of {url.render_as_string()} is not installed.",
                "cleaner does not bring drivers but by its extras",
                f"pip install 'database-cleaner[{self.extra}]'",
            ) from error
        except InvalidRequestError as error:
            raise self._synchronous(f"The driver {driver!r}") from error

    def _twin(self, url: URL) -> URL:
        """The URL by which a synchronous driver reaches the same database, if one is installed."""
        twin = self.twins.get(url.drivername.partition("+")[2])
        query = twin.query(url) if twin else None
        if twin is None or query is None:
            return url
        for driver in twin.drivers:
            if find_spec(driver):
                name = f"{url.get_backend_name()}+{driver}"
                return url.set(drivername=name, query=query)
        return url

    def _synchronous(self, what: str) -> SettingsError:
        return SettingsError(
            f"{what} does not work with asyncio.",
            "an AsyncCleaner was given what is for a Cleaner",
            f'AsyncCleaner("{self.async_example}")',
        )


def engine_maker(*, asynchronous: bool) -> Callable[..., Any]:
    """SQLAlchemy's function that makes engines of that kind. Raises SettingsError."""
    if not asynchronous:
        return create_engine
    if not find_spec("greenlet"):
        raise SettingsError(
            "asyncio needs greenlet, which is not installed.",
            "SQLAlchemy brings it by an extra only",
            "pip install 'sqlalchemy[asyncio]'",
        )
    from sqlalchemy.ext.asyncio import create_async_engine

    return create_async_engine


def _end_transaction(connection: Any, record: Any) -> None:
    # An event of the application may have begun one, by a SET; in it no driver would let us go over
    # to AUTOCOMMIT, which SQLAlchemy does after this.
    connection.commit()


def _with_driver(url: URL, known: Mapping[str, str]) -> URL:
    """The URL with a driver that is installed, if it names none."""
    if "+" not in url.drivername:
        for driver in known:
            if find_spec(driver):
                return url.set(drivername=f"{url.drivername}+{driver}")
    return url
