"""Metadata in all its forms, and models that come late."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import ClassVar

import pytest
from sqlalchemy import Column, Integer, MetaData, Table, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, registry
from sqlmodel import Field, SQLModel
from support.database import Database

from cleaner import Cleaner, errors
from cleaner.metadata import Models


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)


class Hero(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)


class Binds:
    """As Flask-SQLAlchemy has it: one MetaData for each bind."""

    metadatas: ClassVar = {None: Base.metadata, "heroes": SQLModel.metadata}


@pytest.mark.parametrize(
    ("source", "tables"),
    [
        (Base, {"user"}),
        (Base.metadata, {"user"}),
        (registry(metadata=Base.metadata), {"user"}),
        (SQLModel, {"hero"}),
        ([Base, SQLModel.metadata], {"user", "hero"}),
        ((Base, Base), {"user"}),
        (Binds(), {"user", "hero"}),
        (f"{__name__}:Base", {"user"}),
        (f"{__name__}:Base.metadata", {"user"}),
        ([f"{__name__}:Base", SQLModel], {"user", "hero"}),
        ([], set()),
    ],
)
def test_every_form_of_metadata_is_understood(source: object, tables: set[str]) -> None:
    assert {name for _, name in Models(source).tables() or ()} == tables


def test_none_stands_for_whatever_the_database_holds() -> None:
    assert Models(None).tables() is None


@pytest.mark.parametrize(
    ("source", "said"),
    [
        (7, "7"),
        (object, "object"),
        ("models", "colon"),
        (":Base", "colon"),
        ("no_such_package.models:Base", "no_such_package"),
        (f"{__name__}:Bass", "Bass"),
        ([Base, 7], "7"),
    ],
)
def test_metadata_without_tables_to_find_is_named(source: object, said: str) -> None:
    with pytest.raises(errors.SettingsError) as raised:
        Models(source).tables()
    assert said in str(raised.value)
    assert raised.value.remedy


def test_models_that_are_imported_later_are_cleaned_too(database: Database) -> None:
    database.execute("CREATE TABLE early (id int); CREATE TABLE late (id int)")
    metadata = MetaData()
    Table("early", metadata, Column("id", Integer))
    with database.cleaner(metadata) as cleaner:
        database.execute("INSERT INTO early VALUES (1); INSERT INTO late VALUES (1)")
        assert cleaner.clean().tables == ("early",)
        Table("late", metadata, Column("id", Integer))
        assert cleaner.clean().tables == ("late",)


def test_the_schemas_that_the_engine_has_tables_in_are_cleaned(database: Database) -> None:
    database.execute(
        """CREATE SCHEMA tenant; CREATE TABLE tenant.a (id int); INSERT INTO tenant.a VALUES (1);
        CREATE TABLE a (id int); INSERT INTO a VALUES (1)"""
    )
    metadata = MetaData()
    Table("a", metadata, Column("id", Integer))
    engine = create_engine(database.url).execution_options(schema_translate_map={None: "tenant"})
    with Cleaner(engine, metadata) as cleaner:
        assert cleaner.clean().tables == ("tenant.a",)
    assert (database.count("tenant.a"), database.count("a")) == (0, 1)


def test_a_module_is_imported_when_first_needed(database: Database) -> None:
    database.execute("CREATE TABLE a (id int); INSERT INTO a VALUES (1)")
    with database.cleaner("models_of_later:metadata") as cleaner:
        module = ModuleType("models_of_later")
        module.metadata = MetaData()  # type: ignore[attr-defined]
        Table("a", module.metadata, Column("id", Integer))
        sys.modules["models_of_later"] = module
        try:
            assert cleaner.clean().tables == ("a",)
        finally:
            del sys.modules["models_of_later"]


def test_metadata_without_tables_is_a_warning(database: Database) -> None:
    database.execute("CREATE TABLE a (id int); INSERT INTO a VALUES (1)")
    with database.cleaner(MetaData()) as cleaner:
        assert "import the modules" in " ".join(cleaner.plan().warnings)
        assert cleaner.clean().tables == ()
    assert database.count("a") == 1


def test_what_only_one_side_knows_is_said_in_the_plan(database: Database) -> None:
    database.execute("CREATE TABLE common (id int); CREATE TABLE unknown (id int)")
    metadata = MetaData()
    Table("common", metadata, Column("id", Integer))
    Table("absent", metadata, Column("id", Integer))
    with database.cleaner(metadata) as cleaner:
        plan = cleaner.plan()
    assert plan.tables == ("common",)
    assert "in the metadata but not in the database: absent" in plan.warnings
    assert "in the database but not in the metadata, left alone: unknown" in plan.warnings
