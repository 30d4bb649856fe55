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


def beside(mariadb: MariaDatabase) -> str:
    """Its URL for a user who may make databases that are called like it."""
    user = mariadb.plain_user()
    mariadb.execute(f"GRANT ALL ON `{mariadb.name}\\_%`.* TO {user}")
    return mariadb.server.url(mariadb.name, user).render_as_string()


def test_each_worker_has_a_file_of_its_own_which_is_built_once(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite:///app_test.db")
    for arguments in (("-n", "2"), ("-p", "no:xdist")):
        suite.runpytest_subprocess(*arguments).assert_outcomes(passed=8)
    assert builds(suite.path) == 1
    assert not list(suite.path.glob("*.db"))
    (template,) = suite.path.glob(".cleaner/*.db")
    assert template.name.startswith("app_test_template_")
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


def test_a_file_that_is_not_called_a_test_database_is_refused_and_nothing_is_made_or_removed(
    suite: pytest.Pytester,
) -> None:
    settings(suite, "sqlite:///prod.db")
    (suite.path / "prod_main.db").write_text("mine")
    result = suite.runpytest_subprocess()
    result.assert_outcomes(errors=8)
    result.stdout.fnmatch_lines(["*Refused to clean the database 'prod.db'*"])
    assert not (suite.path / ".cleaner").exists()
    assert (suite.path / "prod_main.db").read_text() == "mine"


@pytest.mark.parametrize("url", ["sqlite:///app_test.db", "sqlite://"])
def test_what_a_test_does_to_the_schema_is_undone_and_named(
    suite: pytest.Pytester, url: str
) -> None:
    settings(suite, url)
    suite.makepyfile(
        """
        import pytest
        from sqlalchemy import inspect

        def tables(engine):
            names = inspect(engine).get_table_names()
            return [name for name in names if not name.startswith("cleaner_baseline")]

        def change(engine):
            assert tables(engine) == ["item"]
            with engine.begin() as connection:
                connection.exec_driver_sql("CREATE TABLE extra (id int)")
                connection.exec_driver_sql("ALTER TABLE item ADD more int")

        def test_changes(clean_database, cleaner_engine):
            change(cleaner_engine)

        @pytest.mark.cleaner(strategy="recreate")
        def test_means_to(cleaner_engine):
            change(cleaner_engine)

        def test_follows(clean_database, add, cleaner_engine):
            assert add() == 2
            assert tables(cleaner_engine) == ["item"]
        """
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(passed=3, warnings=1)
    result.stdout.fnmatch_lines(["*test_changes changed the schema, which was undone *+ *extra*"])


def test_where_it_cannot_be_undone_it_is_named(
    suite: pytest.Pytester, mariadb: MariaDatabase
) -> None:
    settings(suite, beside(mariadb))
    suite.makepyfile(
        """
        def test_changes(clean_database, cleaner_engine):
            with cleaner_engine.begin() as connection:
                connection.exec_driver_sql("CREATE TABLE extra (id int)")
        """
    )
    try:
        for _ in range(2):  # the next run has its database made anew
            result = suite.runpytest_subprocess()
            result.assert_outcomes(passed=1, warnings=1)
            result.stdout.fnmatch_lines(
                ["*test_changes changed the schema, which can't be undone*"]
            )
        assert builds(suite.path) == 2
    finally:
        for (name,) in mariadb.execute(f"SHOW DATABASES LIKE '{mariadb.name}\\_%'"):
            mariadb.execute(f"DROP DATABASE {name}")


def test_the_variables_that_export_names_are_set_before_the_application_is_imported(
    suite: pytest.Pytester,
) -> None:
    suite.makepyprojecttoml(
        '[tool.cleaner]\nurl = "sqlite+aiosqlite:///app_test.db"\nexport = ["DATABASE_URL"]'
    )
    suite.makeconftest(f"import os\nURL = os.environ['DATABASE_URL']\n{CONFTEST}")
    suite.makepyfile(
        """
        import os
        from conftest import URL

        def test(clean_database, cleaner_url, add):
            assert add() == 2
            assert URL == cleaner_url == os.environ["DATABASE_URL"]
            assert URL.startswith("sqlite+aiosqlite:///") and "app_test_main.db" in URL
        """
    )
    suite.runpytest_subprocess("-p", "no:asyncio").assert_outcomes(passed=1)


def test_a_set_up_that_fails_is_tried_once(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite://")
    suite.makeconftest(CONFTEST.replace("    return setup", "        1 / 0\n    return setup"))
    suite.runpytest_subprocess().assert_outcomes(errors=8)
    assert builds(suite.path) == 1


def test_the_mixin_for_unittest_cleans_the_database_of_the_worker(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite:///app_test.db")
    suite.makepyfile(
        """
        import os
        import unittest
        from cleaner.testcase import CleanDatabaseMixin
        from conftest import item
        from sqlalchemy import create_engine

        class TestCase(CleanDatabaseMixin, unittest.TestCase):
            def insert(self):
                engine = create_engine(os.environ["CLEANER_URL"])
                with engine.begin() as connection:
                    key = connection.execute(item.insert(), {"name": "x"}).inserted_primary_key
                    assert key[0] == 2
                engine.dispose()

            test_one = test_two = insert
        """
    )
    suite.runpytest_subprocess("-n", "2").assert_outcomes(passed=2)
    assert not (suite.path / "app_test.db").exists()


def test_in_memory_each_process_has_its_own(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite://")
    suite.runpytest_subprocess("-n", "2").assert_outcomes(passed=8)


def test_a_failing_set_up_leaves_no_template(suite: pytest.Pytester) -> None:
    settings(suite, "sqlite:///app_test.db")
    suite.makeconftest(CONFTEST.replace("    return setup", "        1 / 0\n    return setup"))
    suite.runpytest_subprocess().assert_outcomes(errors=8)
    assert not list(suite.path.glob("**/*.db*"))


def test_each_worker_has_a_database_of_mariadbs(
    suite: pytest.Pytester, mariadb: MariaDatabase
) -> None:
    settings(suite, beside(mariadb))
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
