"""Each test writes through the application's engine, commits, and reads in another session."""

from __future__ import annotations

import os

import pytest
from sqlalchemy import Engine, func, select
from sqlalchemy.orm import Session

from .models import chain

ROWS = 10


@pytest.mark.parametrize("n", range(int(os.environ.get("SUITE_TESTS", "1"))))
def test_writes(n: int, engine: Engine) -> None:
    """Of three to six tables, and nobody else's rows are there."""
    name = f"test {n}"
    with Session(engine) as session:
        above: list[int] = []
        for model in chain(n):
            rows = [model(name=name, email=f"{n}-{i}@example.org") for i in range(ROWS)]
            for row, parent in zip(rows, above, strict=False):
                row.above_id = parent
            session.add_all(rows)
            session.flush()
            above = [row.id for row in rows]
        session.commit()
    with Session(engine) as session:
        for model in chain(n):
            mine = session.scalars(select(model).where(model.name == name)).all()
            assert len(mine) == ROWS
            there = session.scalar(select(func.count()).select_from(model))
            assert there == ROWS or "SUITE_BY" not in os.environ
