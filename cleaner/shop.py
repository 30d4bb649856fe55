"""The demo's database: a shop, with what makes real schemas hard to clean."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Engine, ForeignKey, Integer, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_ROWS = 20
KEPT = {"country": 3, "legacy_import": 3}

# Each table with those it refers to; with a question mark, a reference that may be null.
_TABLES = {
    "country": "",
    "supplier": "country",
    "warehouse": "country",
    "customer": "country customer?",
    "address": "customer country",
    "category": "category?",
    "product": "supplier",
    "product_category": "product category",
    "variant": "product",
    "price": "variant",
    "stock": "variant warehouse",
    "department": "",
    "employee": "department employee?",
    "coupon": "employee?",
    "cart": "customer coupon?",
    "cart_item": "cart variant",
    "purchase": "customer address coupon?",
    "purchase_item": "purchase variant",
    "payment": "purchase",
    "refund": "payment employee?",
    "shipment": "purchase warehouse",
    "parcel": "shipment",
    "review": "product customer",
    "ledger": "payment",
    "audit": "",
}


class Base(DeclarativeBase):
    """What the shop's models inherit from."""


class Event(Base):
    """A click, in a partition for its year or in that for all other years."""

    __tablename__ = "event"
    __table_args__ = ({"postgresql_partition_by": "RANGE (year)"},)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    year: Mapped[int] = mapped_column(primary_key=True)


def _model(name: str, parents: list[str]) -> None:
    columns: dict[str, Any] = {
        "__tablename__": name,
        "id": mapped_column(Integer, primary_key=True, autoincrement=name not in KEPT),
        "name": mapped_column(Text),
    }
    for parent in parents:
        table = parent.rstrip("?")
        reference = ForeignKey(f"{table}.id")
        columns[f"{table}_id"] = mapped_column(reference, nullable=parent != table)
    type(name.title().replace("_", ""), (Base,), columns)


for _name, _parents in _TABLES.items():
    _model(_name, _parents.split())

# What models don't say: a cycle of keys that are NOT NULL and not deferrable, partitions,
# sequences with a START and a step, a trigger that writes, a rule that swallows each DELETE.
_BEYOND = """
ALTER TABLE department ADD manager_id int NOT NULL REFERENCES employee;
CREATE TABLE event_2024 PARTITION OF event FOR VALUES FROM (2024) TO (2025);
CREATE TABLE event_2025 PARTITION OF event FOR VALUES FROM (2025) TO (2026);
CREATE TABLE event_other PARTITION OF event DEFAULT;
CREATE SEQUENCE invoice_number START 1000 INCREMENT 10;
CREATE SEQUENCE ticket_number START 500;
ALTER SEQUENCE review_id_seq START 100 RESTART;
ALTER TABLE purchase ADD invoice int NOT NULL DEFAULT nextval('invoice_number');
CREATE VIEW spending AS SELECT customer_id, count(*) FROM purchase GROUP BY 1;
CREATE MATERIALIZED VIEW bestseller AS SELECT variant_id, count(*) FROM purchase_item GROUP BY 1;
CREATE FUNCTION record() RETURNS trigger LANGUAGE plpgsql AS
    $$BEGIN INSERT INTO audit (name) VALUES (TG_OP); RETURN NULL; END$$;
CREATE TRIGGER record AFTER INSERT OR DELETE ON purchase FOR EACH ROW EXECUTE FUNCTION record();
CREATE RULE keep AS ON DELETE TO ledger DO INSTEAD NOTHING;
CREATE TABLE legacy_import (line text);
INSERT INTO legacy_import SELECT 'line ' || n FROM generate_series(1, 3) n;
INSERT INTO country SELECT n, 'country ' || n FROM generate_series(1, 3) n;
"""

# Writes to four tables: the trigger adds one.
PURCHASE = """
INSERT INTO customer (name, country_id) VALUES ('Ada', 1);
INSERT INTO address (name, customer_id, country_id) VALUES ('home', 1, 1);
INSERT INTO purchase (name, customer_id, address_id) VALUES ('a book', 1, 1);
"""


def build(engine: Engine) -> None:
    """Create the shop."""
    Base.metadata.create_all(engine)
    run(engine, _BEYOND)


def fill(engine: Engine) -> None:
    """Put rows into every table but the kept ones.

    The rows refer to ids from 1 on, so they fit only where the sequences are at their START.
    """
    series = f"FROM generate_series(1, {_ROWS}) n"
    statements = {name: _insert(name, _TABLES[name].split(), series) for name in _TABLES}
    del statements["country"]
    # A cycle of keys is checked when the statement ends.
    statements["department"] = (
        "WITH department AS (INSERT INTO department (name, manager_id) "
        f"SELECT 'row ' || n, n {series}) {statements.pop('employee')}"
    )
    statements["event"] = f"INSERT INTO event (year) SELECT 2023 + n % 4 {series}"
    statements["bestseller"] = "REFRESH MATERIALIZED VIEW bestseller"
    statements["ticket_number"] = "SELECT nextval('ticket_number')"
    run(engine, "; ".join(statements.values()))


def _insert(name: str, parents: list[str], series: str) -> str:
    columns, values = ["name"], ["'row ' || n"]
    for parent in parents:
        table = parent.rstrip("?")
        columns.append(f"{table}_id")
        values.append("nullif(n - 1, 0)" if table == name else f"1 + n % {KEPT.get(table, _ROWS)}")
    return f"INSERT INTO {name} ({', '.join(columns)}) SELECT {', '.join(values)} {series}"


def untidy(engine: Engine) -> list[str]:
    """What is not as it was built, counted without cleaner: tables and views by their rows,
    sequences by their position.
    """
    relations = run(
        engine,
        "SELECT relname FROM pg_class WHERE relkind IN ('r', 'm')"
        " AND relnamespace = 'public'::regnamespace",
    )
    counts = " UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for (name,) in relations)
    found = [name for name, rows in run(engine, counts) if rows != KEPT.get(name, 0)]
    starts = run(engine, "SELECT seqrelid::regclass::text, seqstart FROM pg_sequence")
    moved = " UNION ALL ".join(
        f"SELECT '{name}' FROM {name} WHERE is_called OR last_value <> {start}"
        for name, start in starts
    )
    return found + [name for (name,) in run(engine, moved)]


def run(engine: Engine, sql: str) -> list[Any]:
    """Run statements in a transaction; returns the rows of a single one."""
    with engine.begin() as connection:
        result = connection.execution_options(no_parameters=True).exec_driver_sql(sql)
        return list(result) if result.returns_rows else []
