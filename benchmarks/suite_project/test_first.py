"""Tests that say when and where they ran, and look for rows of others in every table."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from sqlalchemy import Engine, exists, select
from sqlalchemy.orm import Session

from .models import TABLES, chain

NUMBERS = range(int(os.environ.get("SUITE_TESTS", "1")))


def _log(database: str | None) -> None:
    with Path(os.environ["SUITE_LOG"]).open("a") as log:
        log.write(f"{time.time()} {os.getpid()} {database}\n")


@pytest.mark.parametrize("n", NUMBERS)
def test_writes(n: int, clean_database: object, cleaner_engine: Engine) -> None:
    """No table has rows of another test, and no sequence has moved."""
    _log(cleaner_engine.url.database)
    with Session(cleaner_engine) as session:
        for _ in range(2):  # what a neighbour writes meanwhile would be seen too
            any_row = select(*(exists(select(1).select_from(table)) for table in TABLES))
            assert not any(session.execute(any_row).one())
            session.rollback()
        above = None
        for model in chain(n):
            row = model(name=f"test {n}") if above is None else model(name="x", above_id=above)
            session.add(row)
            session.commit()
            above = row.id
            assert above == 1


@pytest.mark.parametrize("n", NUMBERS)
def test_bare(n: int) -> None:
    """The same imports, and no database."""
    _log(None)
