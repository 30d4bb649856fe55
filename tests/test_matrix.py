"""The README's table of databases, drivers and strategies: each cell of it is a test.

Where the table has a tick the whole contract suite has to pass, where it has a dash the strategy
has to be refused with a remedy.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import URL, Column, Engine, Integer, MetaData, Table, create_engine, inspect, select
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool
from support.drivers import Blocking
from support.duck import OnDuckDB
from support.mariadb import MariaDatabase

from cleaner import AsyncCleaner, Cleaner
from cleaner.errors import CleanerError, SettingsError, StrategyRefusedError
from cleaner.testing import StrategyContract

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
STRATEGIES = ("auto", "delete", "truncate", "replica", "recreate")
SCHEMES = {"PostgreSQL": "postgresql", "MariaDB": "mariadb", "SQLite": "sqlite", "DuckDB": "duckdb"}
# Drivers that need a client library or a compiler, and the modules that are there where they do.
OPTIONAL = {"mysqldb": "MySQLdb", "mysqlconnector": "mysql", "mariadbconnector": "mariadb"}
DEFAULT = ("sqlite3", "duckdb-engine")  # drivers that SQLAlchemy calls otherwise, or not at all


@dataclass(frozen=True)
class Row:
    """One line of the table: how a database is reached."""

    database: str
    driver: str
    waits: str

    def __str__(self) -> str:
        return re.sub(r"\W+", "_", f"{self.database}_{self.driver}_{self.waits}")

    def url(self, url: URL) -> URL:
        """The same database by the row's driver."""
        scheme = SCHEMES[self.database.split(",")[0]]
        if scheme == "postgresql":  # over TCP, which all drivers understand alike
            url = url.set(host="127.0.0.1", query={})
        query = {name: value for name, value in url.query.items() if name != "charset"}
        name = scheme if self.driver in DEFAULT else f"{scheme}+{self.driver}"
        return url.set(drivername=name, query=query)


def table() -> dict[Row, dict[str, str]]:
    lines = README.partition("| database | driver | ")[2].partition("\n\n")[0].splitlines()
    names = [cell.strip(" `") for cell in lines[0].split("|")[1:-1]]
    assert tuple(names) == STRATEGIES
    found = {}
    for line in lines[2:]:
        database, driver, waits, *cells = (cell.strip(" `") for cell in line.split("|")[1:-1])
        found[Row(database, driver, waits)] = dict(zip(names, cells, strict=True))
    return found


@pytest.fixture(scope="class")
def row_engine(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Engine]:
    """By the driver that there always is; the row's own is the cleaner's concern."""
    mariadb = None
    row: Row = request.cls.row
    if row.database == "PostgreSQL":
        engine = create_engine(request.getfixturevalue("cleaner_url"))
    elif row.database == "MariaDB":
        mariadb = MariaDatabase(request.getfixturevalue("mariadb_server"))
        engine = create_engine(mariadb.url)
    elif row.database == "SQLite, in memory":
        engine = create_engine("sqlite://", poolclass=StaticPool)
    else:
        engine = create_engine(f"sqlite:///{tmp_path_factory.mktemp('lite')}/test.db")
        engine.connect().close()
    yield engine
    engine.dispose()
    if mariadb is not None:
        mariadb.close()


class OnRow(StrategyContract):
    """The contract in one row of the table."""

    row: ClassVar[Row]

    @pytest.fixture
    def engine(self, row_engine: Engine) -> Engine:
        return row_engine

    def opened(self, engine: Engine, tables: MetaData, **settings: Any) -> Any:
        """A cleaner by the row's driver."""
        url = self.row.url(engine.url)
        if self.row.waits == "async":
            source = create_async_engine(url)
            return Blocking(AsyncCleaner(source, tables, lock_timeout=1.0, **settings))
        same = self.row.database == "SQLite, in memory"
        return Cleaner(engine if same else url, tables, lock_timeout=1.0, **settings)

    @pytest.fixture
    def cleaner(self, engine: Engine, tables: MetaData) -> Iterator[Any]:
        with self.opened(engine, tables, strategy=self.strategy) as cleaner:
            yield cleaner
            with suppress(CleanerError):
                cleaner.release()


class Recreated(OnRow):
    """``recreate`` goes back to what was captured, schema and all."""

    strategy = "recreate"

    def test_what_a_test_did_to_schema_and_rows_is_undone(
        self, cleaner: Any, engine: Engine, tables: MetaData
    ) -> None:
        owner = tables.tables["contract_owner"]
        with engine.begin() as connection:
            connection.execute(owner.insert().values(name="kept"))
        cleaner.capture()
        for _ in range(2):
            Table("contract_extra", MetaData(), Column("id", Integer)).create(engine)
            self.fill(engine, tables)
            cleaner.clean()
            assert "contract_extra" not in inspect(engine).get_table_names()
            with engine.connect() as connection:
                assert connection.execute(select(owner.c.name)).all() == [("kept",)]


class Refused(OnRow):
    """A dash in the table."""

    def test_it_is_refused_with_what_to_write_instead(
        self, cleaner: Any, engine: Engine, tables: MetaData
    ) -> None:
        self.fill(engine, tables)
        before = self.counts(engine, tables)
        with pytest.raises((StrategyRefusedError, SettingsError)) as refused:
            cleaner.clean()
        assert refused.value.remedy
        assert self.counts(engine, tables) == before


def _classes() -> Iterator[tuple[str, type]]:
    rows = table()
    for name, module in OPTIONAL.items():
        if find_spec(module):
            rows[Row("MariaDB", name, "sync")] = rows[Row("MariaDB", "pymysql", "sync")]
    for row, cells in rows.items():
        for strategy, cell in cells.items():
            base: type = OnRow if strategy != "recreate" else Recreated
            if cell != "✓":
                assert cell == "\N{EN DASH}", cell
                base = Refused
            only = {
                name: None
                for name in vars(StrategyContract)
                if name.startswith("test_") and base is not OnRow
            }
            attributes = {
                **only,
                "row": row,
                "strategy": strategy,
                "__module__": __name__,
                "__test__": True,
            }
            name = f"Test_{row}_{strategy}"
            bases = (OnDuckDB, base) if row.database == "DuckDB" else (base,)
            yield name, type(name, bases, attributes)


globals().update(_classes())
for each in (OnRow, Recreated, Refused):
    each.__test__ = False  # type: ignore[attr-defined]


def test_the_table_has_every_driver_that_is_claimed() -> None:
    assert {(row.database, row.driver, row.waits) for row in table()} == {
        ("PostgreSQL", "psycopg", "sync"),
        ("PostgreSQL", "psycopg", "async"),
        ("PostgreSQL", "psycopg2", "sync"),
        ("PostgreSQL", "pg8000", "sync"),
        ("PostgreSQL", "asyncpg", "sync"),
        ("PostgreSQL", "asyncpg", "async"),
        ("MariaDB", "pymysql", "sync"),
        ("MariaDB", "aiomysql", "async"),
        ("MariaDB", "asyncmy", "async"),
        ("SQLite, in memory", "sqlite3", "sync"),
        ("SQLite, a file", "sqlite3", "sync"),
        ("SQLite, a file", "aiosqlite", "async"),
        ("DuckDB", "duckdb-engine", "sync"),
    }
