"""What of the metadata changes the fingerprint of a template, and what doesn't."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import (
    ARRAY,
    DDL,
    CheckConstraint,
    Column,
    Computed,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import UserDefinedType
from support.checkouts import Checkout

from cleaner.metadata import Models
from cleaner.provision.fingerprint import fingerprint

ddl: Callable[..., Any] = DDL


def of(*items: Any, **options: Any) -> str:
    """The fingerprint of a table with these columns and constraints."""
    metadata = MetaData()
    Table("thing", metadata, Column("id", Integer, primary_key=True), *items, **options)
    return printed(metadata)


def printed(*metadata: MetaData) -> str:
    return fingerprint(Models(metadata), len, (), Path("/nowhere"), "")


class Odd(UserDefinedType[Any]):
    cache_ok = True

    def __init__(self, size: object = None) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"Odd({self.size!r})"


class Speechless(UserDefinedType[Any]):
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    def get_col_spec(self, **_: object) -> str:
        raise RuntimeError("no words")


class Decorated(TypeDecorator[str]):
    impl = String(7)
    cache_ok = True


class Special(UserDefinedType[Any]):
    cache_ok = True


@compiles(Special, "postgresql")
def special(kind: Special, compiler: Any, **_: object) -> str:
    return SPECIAL[-1]


SPECIAL = ["special"]


DDLS: dict[str, Callable[[], str]] = {
    "nothing": of,
    "column": lambda: of(Column("a", Integer)),
    "name": lambda: of(Column("b", Integer)),
    "type": lambda: of(Column("a", String(3))),
    "length": lambda: of(Column("a", String(4))),
    "not null": lambda: of(Column("a", Integer, nullable=False)),
    "order": lambda: of(Column("a", Integer), Column("b", Integer)),
    "other order": lambda: of(Column("b", Integer), Column("a", Integer)),
    "default": lambda: of(Column("a", Integer, server_default="1")),
    "other default": lambda: of(Column("a", Integer, server_default=text("2"))),
    "function": lambda: of(Column("a", Integer, server_default=func.now())),
    "computed": lambda: of(Column("a", Integer, Computed("id + 1"))),
    "identity": lambda: of(Column("a", Integer, Identity(start=5))),
    "other identity": lambda: of(Column("a", Integer, Identity(start=6))),
    "index": lambda: of(Column("a", Integer, index=True)),
    "unique index": lambda: of(Column("a", Integer, index=True, unique=True)),
    "partial": lambda: of(Column("a", Integer), Index("i", "a", postgresql_where=text("a > 0"))),
    "unique": lambda: of(Column("a", Integer), UniqueConstraint("a")),
    "check": lambda: of(Column("a", Integer), CheckConstraint("a > 0")),
    "other check": lambda: of(Column("a", Integer), CheckConstraint("a > 1")),
    "comment": lambda: of(Column("a", Integer, comment="one")),
    "other comment": lambda: of(Column("a", Integer, comment="two")),
    "table comment": lambda: of(Column("a", Integer), comment="one"),
    "schema": lambda: of(Column("a", Integer), schema="other"),
    "partitions": lambda: of(Column("a", Integer), postgresql_partition_by="RANGE (a)"),
    "foreign key": lambda: of(Column("a", Integer, ForeignKey("thing.id"))),
    "cascade": lambda: of(Column("a", Integer, ForeignKey("thing.id", ondelete="CASCADE"))),
    "later": lambda: of(Column("a", Integer, ForeignKey("thing.id", name="f", use_alter=True))),
    "absent": lambda: of(Column("a", Integer, ForeignKey("absent.id"))),
    "absent, cascade": lambda: of(
        Column("a", Integer, ForeignKey("absent.id", ondelete="CASCADE"))
    ),
    "enum": lambda: of(Column("a", Enum("x", "y", name="e"))),
    "more values": lambda: of(Column("a", Enum("x", "y", "z", name="e"))),
    "values in order": lambda: of(Column("a", Enum("y", "x", name="e"))),
    "enums": lambda: of(Column("a", ARRAY(Enum("x", "y", name="e")))),
    "more enums": lambda: of(Column("a", ARRAY(Enum("x", "z", name="e")))),
    "variant": lambda: of(Column("a", String(3).with_variant(Enum("x", name="e"), "postgresql"))),
    "domain": lambda: of(Column("a", DOMAIN("d", Integer, check=text("VALUE > 0")))),
    "other domain": lambda: of(Column("a", DOMAIN("d", Integer, check=text("VALUE > 1")))),
    "sequence": lambda: of(Column("a", Integer, Sequence("s"))),
    "other start": lambda: of(Column("a", Integer, Sequence("s", start=3))),
    "decorated": lambda: of(Column("a", Decorated())),
    "special": lambda: of(Column("a", Special())),
    "odd": lambda: of(Column("a", Odd())),
    "odd 3": lambda: of(Column("a", Odd(3))),
    "odd default": lambda: of(Column("a", Odd(3), server_default=text("x"))),
    "odd, other default": lambda: of(Column("a", Odd(3), server_default=text("y"))),
    "odd check": lambda: of(Column("a", Odd(3)), CheckConstraint("a > 0")),
    "odd, other check": lambda: of(Column("a", Odd(3)), CheckConstraint("a > 1")),
    "speechless": lambda: of(Column("a", Speechless())),
}


def test_each_difference_of_the_ddl_is_another_fingerprint() -> None:
    found = {name: make() for name, make in DDLS.items()}
    assert len(set(found.values())) == len(DDLS)
    assert {name: make() for name, make in DDLS.items()} == found


def test_the_metadata_is_left_as_it_was() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    metadata = MetaData()
    Table("b", metadata, Column("id", Integer, primary_key=True))
    key = ForeignKey("b.id", name="f", use_alter=True)
    table = Table("a", metadata, Column("b", Integer, key), CheckConstraint("b > 0"))
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    before = str(CreateTable(table).compile(dialect=dialect))
    printed(metadata)
    assert str(CreateTable(table).compile(dialect=dialect)) == before
    assert set(metadata.tables) == {"a", "b"}


def test_a_type_that_compiles_otherwise_is_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = of(Column("a", Special()))
    monkeypatch.setattr(sys.modules[__name__], "SPECIAL", ["other"])
    assert of(Column("a", Special())) != before


def test_the_order_in_which_models_are_imported_does_not_matter() -> None:
    def one(metadata: MetaData) -> None:
        Table("one", metadata, Column("id", Integer, primary_key=True), Column("two", Integer))

    def two(metadata: MetaData) -> None:
        Table("two", metadata, Column("id", Integer, primary_key=True))
        Sequence("s", metadata=metadata)

    def constraints(metadata: MetaData, *names: str) -> None:
        for name in names:
            metadata.tables["one"].append_constraint(CheckConstraint(f"{name} > 0"))
            Index(f"i_{name}", metadata.tables["one"].c[name])

    first, second = MetaData(), MetaData()
    one(first)
    two(first)
    two(second)
    one(second)
    constraints(first, "id", "two")
    constraints(second, "two", "id")
    assert printed(first) == printed(second)
    assert printed(first, MetaData()) == printed(MetaData(), second)


def test_listeners_to_the_creation_count(checkout: Checkout) -> None:
    def metadata(*listeners: tuple[str, Any]) -> str:
        made = MetaData()
        table = Table("t", made, Column("id", Integer))
        for target, listener in listeners:
            event.listen(table if target == "table" else made, "after_create", listener)
        return checkout.print(models=Models(made))

    trigger = ddl("CREATE TRIGGER x AFTER INSERT ON %(table)s ...")
    other = ddl("CREATE TRIGGER x AFTER UPDATE ON %(table)s ...")
    prints = [
        metadata(),
        metadata(("table", trigger)),
        metadata(("table", other)),
        metadata(("table", trigger), ("table", other)),
        metadata(("metadata", ddl("CREATE EXTENSION a"))),
        metadata(("metadata", ddl("CREATE EXTENSION %(name)s", context={"name": "b"}))),
        metadata(("metadata", ddl("CREATE EXTENSION %(name)s", context={"name": "c"}))),
    ]
    assert len(set(prints)) == len(prints)
    assert metadata(("table", other), ("table", trigger)) == prints[3]
    file = checkout.write("app/events.py", "def listen(*a, **k):\n    pass\n")
    listener = checkout.function("listen", "app/events.py")
    before = metadata(("table", listener))
    file.write_text("def listen(*a, **k):\n    a\n")
    assert metadata(("table", listener)) != before
    conditional = ddl("X").execute_if(callable_=listener)
    before = metadata(("metadata", conditional))
    file.write_text("def listen(*a, **k):\n    k\n")
    assert metadata(("metadata", conditional)) != before


def test_an_enum_of_the_metadata_alone_counts() -> None:
    def enum(*values: str) -> str:
        metadata = MetaData()
        Enum(*values, name="e", metadata=metadata)
        return printed(metadata)

    assert enum("a") != enum("a", "b")
