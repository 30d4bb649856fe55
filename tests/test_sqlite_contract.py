"""The contract suite on SQLite: a file in either journal mode, and a database in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
from sqlalchemy import Engine, MetaData, event
from support.lite import lite
from test_contract import TruncateGroupByGroup

from cleaner.spi import Strategy
from cleaner.testing import StrategyContract


class OnSqlite(StrategyContract):
    __test__ = False

    @pytest.fixture(params=["memory, keys enforced", "delete", "wal, keys enforced"])
    def engine(self, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Engine]:
        engine = lite(request.param, tmp_path)
        yield engine
        engine.dispose()

    @pytest.fixture(autouse=True)
    def loose_ends(self, engine: Engine, tables: MetaData) -> Iterator[None]:
        """Tables that refer to each other can't be dropped while that is enforced."""
        yield

        def prepare(connection: Any, record: Any) -> None:
            connection.execute("PRAGMA foreign_keys = OFF")

        event.listen(engine, "connect", prepare)
        if engine.url.database:
            engine.dispose()
        with engine.connect() as connection:
            connection.exec_driver_sql("PRAGMA foreign_keys = OFF")


class TestAuto(OnSqlite):
    __test__ = True
    strategy = "auto"


class TestDelete(OnSqlite):
    __test__ = True
    strategy = "delete"


class TestTruncate(OnSqlite):
    __test__ = True
    strategy = "truncate"


class TestReplica(OnSqlite):
    __test__ = True
    strategy = "replica"


class TestThirdParty(OnSqlite):
    __test__ = True
    strategy: ClassVar[Strategy] = TruncateGroupByGroup()
