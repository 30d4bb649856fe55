"""Workers on databases that can't be cloned: files of SQLite, databases of MariaDB, DuckDB."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest
from sqlalchemy import create_engine
from support.mariadb import MariaDatabase
from support.projects import builds

CONFTEST = """
import pathlib
import pytest
from sqlalchemy import Column, Integer, MetaData, String, Table

metadata = MetaData()
item = Table("item", metadata, Column("id", Integer, primary_key=True), Column("name", String(20)))


@pytest.fixture(scope="session")
def cleaner_setup():
    def setup(engine):
        metadata.create_all(engine)
        with engine.begin() as connection:
            if connection.execute(item.select()).first():
                return
            connection.execute(item.insert(), [{"name": "seed"}])
        with pathlib.Path(__file__).with_name("builds").open("a") as file:
            file.write("built\\n")
    return setup


@pytest.fixture
def add(cleaner_engine):
    def add():
        with cleaner_engine.begin() as connection:
            return connection.execute(item.insert(), {"name": "x"}).inserted_primary_key[0]
    return add
"""
TESTS = """
import pytest

@pytest.mark.parametrize("turn", range(8))
def test(clean_database, add, turn):
    assert add() == 2
"""


@pytest.fixture
def suite(project: pytest.Pytester) -> pytest.Pytester:
    project.makeconftest(CONFTEST)
    project.makepyfile(TESTS)
    return project


def settings(suite: pytest.Pytester, url: str) -> None:
    suite.makepyprojecttoml(f'[tool.cleaner]\nurl = "{url}"')


def test_each_worker_has_a_file_of_its_own_which_is_built_once(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite:///app_test.db")
    for arguments in (("-n", "2"), ("-p", "no:xdist")):
        suite.runpytest_subprocess(*arguments).assert_outcomes(passed=8)
    assert builds(suite.path) == 1
    assert {path.name.partition("_template_")[0] for path in suite.path.glob("*.db")} == {
        "app_test"
    }
    suite.makeconftest(CONFTEST.replace('"seed"', '"other seed"'))
    suite.runpytest_subprocess().assert_outcomes(passed=8)
    assert builds(suite.path) == 2


def test_the_configured_file_is_never_touched(suite: pytest.Pytester) -> None:
    path = suite.path / "app_test.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE mine (id)")
    connection.execute("INSERT INTO mine VALUES (1)")
    connection.commit()
    connection.close()
    before = path.read_bytes()
    settings(suite, "sqlite:///app_test.db")
    suite.runpytest_subprocess().assert_outcomes(passed=8)
    assert path.read_bytes() == before


def test_a_file_that_is_not_called_a_test_database_is_refused(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite:///app.db")
    result = suite.runpytest_subprocess()
    result.assert_outcomes(errors=8)
    result.stdout.fnmatch_lines(["*Refused to clean the database 'app*"])
    assert not builds(suite.path)


def test_in_memory_each_process_has_its_own(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite://")
    suite.runpytest_subprocess("-n", "2").assert_outcomes(passed=8)


def test_a_failing_set_up_leaves_no_template(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite:///app_test.db")
    suite.makeconftest(CONFTEST.replace("    return setup", "        1 / 0\n    return setup"))
    suite.runpytest_subprocess().assert_outcomes(errors=8)
    assert not list(suite.path.glob("*.db*"))


def test_each_worker_has_a_database_of_mariadbs(
    suite: pytest.Pytester, mariadb: MariaDatabase
) -> None:
    user = mariadb.plain_user()
    mariadb.execute(f"GRANT ALL ON `{mariadb.name}\\_%`.* TO {user}")
    settings(suite, mariadb.server.url(mariadb.name, user).render_as_string())
    try:
        for arguments in (("-n", "2"), ("-n", "2")):
            suite.runpytest_subprocess(*arguments).assert_outcomes(passed=8)
        assert builds(suite.path) == 2  # one for each worker
        found = mariadb.execute(f"SHOW DATABASES LIKE '{mariadb.name}%'")
        assert {name.removeprefix(mariadb.name) for (name,) in found} == {
            "", "_control", "_gw0", "_gw1",
        }  # fmt: skip
    finally:
        for (name,) in mariadb.execute(f"SHOW DATABASES LIKE '{mariadb.name}\\_%'"):
            mariadb.execute(f"DROP DATABASE {name}")


def test_a_user_who_may_not_create_databases_has_turns_at_one(
    suite: pytest.Pytester, mariadb: MariaDatabase
) -> None:
    user = mariadb.plain_user()
    settings(suite, mariadb.server.url(mariadb.name, user).render_as_string())
    suite.runpytest_subprocess("-n", "2").assert_outcomes(passed=8)


def test_what_cannot_be_shared_is_refused_with_several_workers(suite: pytest.Pytester) -> None:
    settings(suite, "duckdb:///app_test.duckdb")
    result = suite.runpytest_subprocess("-n", "2")
    result.stdout.fnmatch_lines(
        ["*2 workers can't share duckdb:///app_test.duckdb*", "*pytest -n 0*"]
    )
    assert Path(suite.path / "builds").exists() is False


def test_a_shared_database_that_is_not_called_a_test_database_is_refused_and_left_alone(
    suite: pytest.Pytester, mariadb: MariaDatabase
) -> None:
    live = f"live_{mariadb.name.removeprefix('test_')}"
    user = mariadb.plain_user()
    mariadb.execute(f"CREATE DATABASE {live}; GRANT ALL ON {live}.* TO {user}")
    mariadb.execute(f"CREATE TABLE {live}.item (id int); INSERT INTO {live}.item VALUES (1)")
    duckdb = create_engine(f"duckdb:///{suite.path}/live.duckdb")
    with duckdb.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE item AS SELECT 1 AS id")
    duckdb.dispose()
    try:
        for url in (mariadb.server.url(live, user), duckdb.url):
            settings(suite, url.render_as_string())
            result = suite.runpytest_subprocess()
            result.assert_outcomes(errors=8)
            result.stdout.fnmatch_lines(["*Refused to clean the database 'live*"])
        assert mariadb.execute(f"SELECT id FROM {live}.item") == [(1,)]
        with duckdb.connect() as connection:
            assert connection.exec_driver_sql("SELECT id FROM item").all() == [(1,)]
    finally:
        duckdb.dispose()
        mariadb.execute(f"DROP DATABASE {live}")
