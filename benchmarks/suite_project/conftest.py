"""The application's engine, on a database that is cleaned between tests as SUITE_BY says."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator

import pytest
from sqlalchemy import URL, Engine, create_engine, make_url, text

from .models import TABLES, Base

BY = os.environ.get("SUITE_BY")


def truncate(engine: Engine) -> None:
    """The usual statement."""
    tables = ", ".join(table.name for table in TABLES)
    with engine.begin() as connection:
        connection.execute(text(f"TRUNCATE {tables} RESTART IDENTITY CASCADE"))


def delete(engine: Engine) -> None:
    """The usual recipe. Sequences go on."""
    with engine.begin() as connection:
        for table in reversed(TABLES):
            connection.execute(table.delete())


def rebuild(engine: Engine) -> None:
    """A schema for each test."""
    Base.metadata.drop_all(engine)
    Base.metadata.create_all(engine)


def _url() -> URL:
    return make_url(os.environ["SUITE_URL"])


if BY == "cleaner":

    @pytest.fixture(scope="session")
    def engine(cleaner_url: str) -> Iterator[Engine]:
        """On this worker's database."""
        made = create_engine(cleaner_url)
        yield made
        made.dispose()

    @pytest.fixture(autouse=True)
    def _cleaned(clean_database: object) -> None:
        """By the plug-in."""

elif BY == "clone":
    from pytest_postgresql import factories

    def load(dbname: str, **_: object) -> None:
        """Build the template."""
        made = create_engine(_url().set(database=dbname))
        Base.metadata.create_all(made)
        made.dispose()

    server = factories.postgresql_noproc(
        host=str(_url().query["host"]),
        port=_url().port,
        user="postgres",
        dbname=_url().database,
        load=[load],
    )
    client = factories.postgresql("server")

    @pytest.fixture(scope="session")
    def application() -> Engine:
        """One for all tests, as their database has one name."""
        return create_engine(_url())

    @pytest.fixture
    def engine(client: object, application: Engine) -> Iterator[Engine]:
        """On this test's database."""
        yield application
        application.dispose()

else:
    RECIPES: dict[str | None, Callable[[Engine], None]] = {
        "truncate": truncate,
        "delete": delete,
        "rebuild": rebuild,
    }

    @pytest.fixture(scope="session")
    def engine() -> Iterator[Engine]:
        """On the one database."""
        made = create_engine(_url())
        with made.begin() as connection:
            connection.execute(text("SELECT pg_advisory_xact_lock(1)"))  # another worker's turn
            Base.metadata.create_all(connection)
        yield made
        made.dispose()

    @pytest.fixture(autouse=BY in RECIPES)
    def _cleaned(engine: Engine) -> Iterator[None]:
        """After each test."""
        yield
        RECIPES[BY](engine)
