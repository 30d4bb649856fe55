"""What the contract suite needs on DuckDB."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, Sequence, create_engine, text

from cleaner.testing import StrategyContract


class OnDuckDB(StrategyContract):
    __test__ = False
    cycles = False  # it can't add a foreign key to a table that is there

    @pytest.fixture
    def engine(self, tmp_path: Path) -> Iterator[Engine]:
        engine = create_engine(f"duckdb:///{tmp_path}/test.duckdb")
        yield engine
        engine.dispose()

    @pytest.fixture
    def tables(self, engine: Engine) -> MetaData:
        metadata = self.metadata()
        for each in (metadata, self.outsider().metadata):  # in a database that is new each time
            each.create_all(engine, checkfirst=False)
        return metadata

    def numbered(self, table: str) -> Column[int]:
        return Column("id", Integer, Sequence(f"{table}_ids"), primary_key=True)

    def schema(self, engine: Engine, tables: MetaData) -> object:
        with engine.connect() as connection:
            return connection.execute(
                text("SELECT sql FROM duckdb_tables() UNION ALL SELECT sql FROM duckdb_views()")
            ).all()
