"""Real servers for every test: the embedded one, and one from the disk where there is one."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from sqlalchemy import make_url
from support.cases import AS_OWNER, AUTO, TRUNCATE
from support.database import Database

from cleaner.provision.embedded import EmbeddedPostgres

pytest_plugins = [
    "pytester",
    "support.pools",  # which the others import
    "support.checkouts",
    "support.commands",
    "support.kills",
    "support.lite",
    "support.mariadb",
    "support.projects",
]


def _disk_binaries() -> Path | None:
    """The PostgreSQL that is named, else the newest that is installed beside the wheel's."""
    if named := os.environ.get("TEST_POSTGRES_BIN"):
        return Path(named)
    places = [path.parent for path in Path("/usr/lib/postgresql").glob("[0-9]*/bin/postgres")]
    if on_path := shutil.which("postgres"):
        places.append(Path(on_path).resolve().parent)
    return max(places, default=None, key=str)


SERVERS = ["embedded", "disk"] if _disk_binaries() else ["embedded"]


@pytest.fixture(scope="session")
def disk_server() -> Iterator[EmbeddedPostgres]:
    with EmbeddedPostgres(bin_directory=_disk_binaries()) as server:
        yield server


@pytest.fixture(scope="session", params=SERVERS)
def worker_database(request: pytest.FixtureRequest) -> Iterator[Database]:
    """This worker's database on one of the servers, for one test after the other."""
    if request.param == "embedded":
        url = make_url(request.getfixturevalue("cleaner_url"))
    else:
        url = request.getfixturevalue("disk_server").create_database("test")
    role = f"plain_{url.database}"
    database = Database(url, role)
    with suppress(psycopg.errors.DuplicateObject):
        database.execute(f"CREATE ROLE {role} LOGIN")
    with database.cleaner() as cleaner:
        cleaner.release()  # a template, which every capture() would copy anew, ends our sessions
    yield database
    database.close()


@pytest.fixture
def database(worker_database: Database) -> Iterator[Database]:
    """An empty database of this test's own."""
    yield worker_database
    worker_database.wipe()


# Of a case for every way to clean, those that run on the second server, for the time it takes;
# CLEANER_ALL_WAYS=1, as in .ci/versions, runs them all.
_ON_DISK = {AUTO, TRUNCATE, AS_OWNER[1]}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    def is_told_already(item: pytest.Item) -> bool:
        given = getattr(getattr(item, "callspec", None), "params", {})
        return given.get("worker_database") == "disk" and given.get("way", AUTO) not in _ON_DISK

    if "CLEANER_ALL_WAYS" not in os.environ:
        config.hook.pytest_deselected(items=[item for item in items if is_told_already(item)])
        items[:] = [item for item in items if not is_told_already(item)]
