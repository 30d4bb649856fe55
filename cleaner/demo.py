"""The demo: a shop's database on a server of its own, dirtied, cleaned and proved clean."""

from __future__ import annotations

import textwrap
import time
from statistics import median
from typing import Any

from sqlalchemy import Connection, Engine, ForeignKey, Text, create_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cleaner.api import Cleaner
from cleaner.console import Console
from cleaner.errors import (
    BlockedError,
    CleanerError,
    ExcludedTableError,
    NotCleanError,
    ProvisionError,
    StrategyRefusedError,
    UnsafeDatabaseError,
)
from cleaner.registry import names
from cleaner.settings import Settings

_ROWS, _CLEANS = 20, 7


class Base(DeclarativeBase):
    """The shop's models."""


class Event(Base):
    """A click, in a partition for each year and one for all the others."""

    __tablename__ = "event"
    __table_args__ = {"postgresql_partition_by": "RANGE (year)"}  # noqa: RUF012
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    year: Mapped[int] = mapped_column(primary_key=True)


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
for _name, _parents in _TABLES.items():
    _columns = {
        f"{parent.rstrip('?')}_id": mapped_column(
            ForeignKey(f"{parent.rstrip('?')}.id"), nullable=parent.endswith("?")
        )
        for parent in _parents.split()
    }
    _id = mapped_column(primary_key=True, autoincrement=_name != "country")
    type(
        _name.title().replace("_", ""),
        (Base,),
        {
            "__tablename__": _name,
            "__annotations__": {"id": Mapped[int]},
            "id": _id,
            "name": mapped_column(Text),
            **_columns,
        },
    )

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
_KEPT = {"country": 3, "legacy_import": 3}
_PURCHASE = """
INSERT INTO customer (name, country_id) VALUES ('Ada', 1);
INSERT INTO address (name, customer_id, country_id) VALUES ('home', 1, 1);
INSERT INTO purchase (name, customer_id, address_id) VALUES ('a book', 1, 1);
"""


def _fill() -> str:
    """Rows for every table. They refer to ids from 1 on, so they fit only where sequences do."""
    series = f"FROM generate_series(1, {_ROWS}) n"
    statements = []
    for name, parents in _TABLES.items():
        columns, values = ["name"], ["'row ' || n"]
        for parent in parents.split():
            table = parent.rstrip("?")
            columns.append(f"{table}_id")
            values.append("nullif(n - 1, 0)" if table == name else f"1 + n % {_KEPT.get(table, _ROWS)}")
        statements.append(
            f"INSERT INTO {name} ({', '.join(columns)}) SELECT {', '.join(values)} {series}"
        )
    del statements[list(_TABLES).index("country")]
    cycle = [at for at, sql in enumerate(statements) if "INTO department" in sql][0]
    statements[cycle : cycle + 2] = [
        "WITH d AS (INSERT INTO department (name, manager_id) "
        f"SELECT 'row ' || n, n {series}) {statements[cycle + 1]}"
    ]
    statements.append(f"INSERT INTO event (year) SELECT 2023 + n % 4 {series}")
    statements.append("REFRESH MATERIALIZED VIEW bestseller")
    statements.append("SELECT nextval('ticket_number')")
    return "; ".join(statements)


def _left(connection: Connection) -> tuple[dict[str, int], int]:
    """Rows by table, and how many sequences are not at their START: counted without cleaner."""

    def ask(sql: str) -> list[Any]:
        return list(connection.exec_driver_sql(sql))

    relations = ask(
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace"
        " AND relkind IN ('r', 'm')"
    )
    rows = ask(" UNION ALL ".join(f"SELECT '{name}', count(*) FROM {name}" for (name,) in relations))
    sequences = ask("SELECT seqrelid::regclass::text, seqstart FROM pg_sequence")
    moved = " + ".join(
        f"(SELECT (is_called OR last_value <> {start})::int FROM {name})" for name, start in sequences
    )
    return {name: count for name, count in rows if count}, ask(f"SELECT {moved}")[0][0]
