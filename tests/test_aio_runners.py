"""AsyncCleaner, and the plug-in's fixtures, in suites of asynchronous tests."""

from __future__ import annotations

import pytest
from sqlalchemy import URL
from support.database import Database
from support.drivers import ASYNC, url_for
from support.projects import only

from cleaner import AsyncCleaner
from cleaner.errors import SettingsError

MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...

class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
"""
TESTS = """
import pytest
from sqlalchemy import insert, text
from sqlalchemy.ext.asyncio import create_async_engine
from cleaner import AsyncCleaner
from models import Base, User

pytestmark = {mark}
URL = {url!r}
{extra}

@pytest.fixture(scope="session")
def shared():
    return AsyncCleaner(URL, Base)


@pytest.fixture
async def database(shared):
    await shared.clean()
    engine = create_async_engine(URL)
    yield engine
    await engine.dispose()
    await shared.clean()


@pytest.mark.parametrize("turn", range(4))
async def test_the_first_has_number_one(database, turn):
    async with database.begin() as connection:
        assert (await connection.scalars(insert(User).returning(User.id), [{{}}])).all() == [1]


async def test_nothing_is_left(shared):
    await shared.verify()
"""
ASYNCIO = "pytest.mark.asyncio"
RUNNERS = {
    "pytest-asyncio, a loop per test": (
        ASYNCIO,
        "",
        "asyncio",
        ["-o", "asyncio_default_fixture_loop_scope=function", "-o", "asyncio_mode=auto"],
    ),
    "pytest-asyncio, a loop per session": (
        'pytest.mark.asyncio(loop_scope="session")',
        "",
        "asyncio",
        ["-o", "asyncio_default_fixture_loop_scope=session", "-o", "asyncio_mode=auto"],
    ),
    "anyio": (
        "pytest.mark.anyio",
        "@pytest.fixture\ndef anyio_backend():\n    return 'asyncio'\n",
        "anyio",
        [],
    ),
    "anyio, a loop per session": (
        "pytest.mark.anyio",
        "@pytest.fixture(scope='session')\ndef anyio_backend():\n    return 'asyncio'\n",
        "anyio",
        [],
    ),
}


@pytest.fixture(params=ASYNC)
def url(request: pytest.FixtureRequest, database: Database) -> URL:
    database.execute("CREATE TABLE users (id serial PRIMARY KEY)")
    return url_for(request.param, database.url)


@pytest.mark.parametrize("runner", RUNNERS)
@pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)
def test_a_cleaner_of_the_session_serves_every_loop_without_a_warning(
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
    url: URL,
    runner: str,
    database: Database,
) -> None:
    mark, extra, plugin, options = RUNNERS[runner]
    pytester.makepyfile(models=MODELS)
    test = TESTS.format(mark=mark, extra=extra, url=url.render_as_string(hide_password=False))
    pytester.makepyfile(test_users=test)
    monkeypatch.setenv("PYTEST_ADDOPTS", only({"cleaner", plugin}))
    done = pytester.runpytest_subprocess("-W", "error", *options)
    done.assert_outcomes(passed=5)
    done.stderr.no_fnmatch_line("*Warning*")
    done.stderr.no_fnmatch_line("*Traceback*")


def test_awaiting_it_without_asyncio_names_trio(database: Database) -> None:
    waiting = AsyncCleaner(url_for("asyncpg", database.url)).clean()
    with pytest.raises(SettingsError, match="trio"):
        waiting.send(None)
