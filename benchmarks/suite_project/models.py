"""Sixty tables in ten areas, each referring to the one before it in its area."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from sqlalchemy import Connection, DateTime, ForeignKey, Integer, Text, event, func
from sqlalchemy.orm import DeclarativeBase, mapped_column


class Base(DeclarativeBase):
    """Of all models."""


def _model(area: int, at: int) -> Any:
    parts: dict[str, object] = {
        "__tablename__": f"area{area}_{at}",
        "id": mapped_column(Integer, primary_key=True),
        "name": mapped_column(Text, index=True, nullable=False),
        "email": mapped_column(Text, unique=True),
        "made": mapped_column(DateTime(timezone=True), server_default=func.now()),
    }
    if at:
        above = ForeignKey(f"area{area}_{at - 1}.id")
        parts["above_id"] = mapped_column(above, index=True, nullable=False)
    return type(f"Area{area}Model{at}", (Base,), parts)


AREAS = [[_model(area, at) for at in range(6)] for area in range(10)]
TABLES = Base.metadata.sorted_tables


def chain(n: int) -> list[Any]:
    """The three to six models that the test of that number writes to."""
    return AREAS[n % 10][: 3 + n // 10 % 4]


@event.listens_for(Base.metadata, "after_create")
def _created(_: object, connection: Connection, **__: object) -> None:
    if "SUITE_BUILDS" in os.environ:
        with Path(os.environ["SUITE_BUILDS"]).open("a") as builds:
            builds.write(f"{connection.engine.url.database}\n")
