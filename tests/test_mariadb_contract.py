"""The contract suite on MariaDB, and the strategies that can't serve there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any, ClassVar

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Table, create_engine
from support.mariadb import INSTALL, MariaDatabase, MariaDB, installed

from cleaner import Cleaner
from cleaner.errors import SettingsError, StrategyRefusedError, UnsafeDatabaseError
from cleaner.spi import Empty, Plan, Restart, Strategy, Target, Truncate
from cleaner.testing import StrategyContract


class OnMariaDB(StrategyContract):
    __test__ = False

    @pytest.fixture
    def engine(self, mariadb: MariaDatabase) -> Iterator[Engine]:
        engine = create_engine(mariadb.url)
        yield engine
        engine.dispose()


class TruncateAndRestart(Strategy):
    """A third party's."""

    name: ClassVar[str] = "truncate and restart"

    def plan(self, target: Target) -> Plan:
        steps = (Truncate(target.tables, restart_identity=False), Restart(target.sequences))
        return Plan(self.name, steps, warnings=target.warnings)

    def refusal(self, target: Target) -> str | None:
        return "it would reach outside; exclude the parents too" if target.outside else None


class OneByOne(Strategy):
    """Another third party's."""

    name: ClassVar[str] = "one by one"

    def plan(self, target: Target) -> Plan:
        steps = [Empty((group,)) for group in target.groups]
        return Plan(self.name, (*steps, Restart(target.sequences)), target.warnings)


class TestTruncateAndRestart(OnMariaDB):
    __test__ = True
    strategy = TruncateAndRestart()


class TestOneByOne(OnMariaDB):
    __test__ = True
    strategy = OneByOne()


def test_recreate_is_refused_by_name(mariadb: MariaDatabase) -> None:
    mariadb.execute("CREATE TABLE one (id int)")
    with mariadb.cleaner(strategy="recreate") as cleaner:
        with pytest.raises(StrategyRefusedError, match="no way to copy a database") as raised:
            cleaner.clean()
        assert 'strategy = "auto"' in raised.value.remedy


def test_a_url_without_a_database_is_refused(mariadb: MariaDatabase) -> None:

    with (
        Cleaner(mariadb.server.url(None)) as cleaner,
        pytest.raises(SettingsError, match="names no database"),
    ):
        cleaner.clean()


def test_the_guard_asks_the_live_connection(mariadb: MariaDatabase) -> None:
    name = f"prod_{mariadb.name[5:]}"
    mariadb.execute(f"CREATE DATABASE {name}; CREATE TABLE {name}.one (id int)")
    mariadb.execute(f"INSERT INTO {name}.one VALUES (1)")
    try:
        with Cleaner(mariadb.server.url(name)) as cleaner, pytest.raises(UnsafeDatabaseError):
            cleaner.clean()
        assert mariadb.count(f"{name}.one") == 1
    finally:
        mariadb.execute(f"DROP DATABASE {name}")


@pytest.mark.parametrize("backend", ["mysql", "mariadb"])
def test_the_plan_is_the_sql_and_the_server_is_named(mariadb: MariaDatabase, backend: str) -> None:

    mariadb.execute("CREATE TABLE one (id int AUTO_INCREMENT PRIMARY KEY)")
    with Cleaner(mariadb.server.url(mariadb.name, backend=backend)) as cleaner:
        plan = cleaner.plan()
        assert plan.tables == ("one",)
        assert plan.sequences == ("one.id",)
        assert "DELETE FROM `one`" in str(plan)
        assert "GET_LOCK" in str(plan)
        assert cleaner.server.startswith("mariadb 1")


def test_a_model_is_found_whatever_the_case_where_the_server_ignores_it() -> None:
    if not installed():
        pytest.skip(f"no mariadbd here: {INSTALL}")
    with closing(MariaDB("--lower-case-table-names=1")) as server:
        database = MariaDatabase(server)
        models = MetaData()
        Table("Users", models, Column("id", Integer, primary_key=True))
        engine = create_engine(database.url)
        models.create_all(engine)
        engine.dispose()
        database.execute("INSERT INTO users VALUES (1)")
        with database.cleaner(models) as cleaner:
            assert cleaner.plan().warnings == ()
            cleaner.clean()
        assert database.count("users") == 0
        database.close()


def test_a_server_that_chains_transactions_and_logs_statements() -> None:
    if not installed():
        pytest.skip(f"no mariadbd here: {INSTALL}")
    options = "--completion-type=CHAIN", "--log-bin", "--binlog-format=STATEMENT"
    with closing(MariaDB(*options)) as server:
        database = MariaDatabase(server)
        database.execute("CREATE TABLE one (id int AUTO_INCREMENT PRIMARY KEY)")
        with database.cleaner() as cleaner:
            for rows in (0, 1, 1):
                database.execute("INSERT INTO one VALUES ()" if rows else "DO 1")
                assert len(cleaner.clean().tables) == rows
                session: Any = cleaner._session
                assert session.execute("SELECT @@in_transaction, @@autocommit") == [(0, 1)]
        database.close()
