"""The schema that is measured: N tables, two of three refer to the one before."""

from __future__ import annotations

from typing import Any

import psycopg
from sqlalchemy import URL, Column, ForeignKey, Integer, MetaData, Table, Text

from cleaner.provision.embedded import EmbeddedPostgres

DIRTY = 3
ROWS = 10


class Bench:
    """A database of ``size`` such tables, and the statements that cleaners are made of."""

    def __init__(self, server: EmbeddedPostgres, size: int, name: str) -> None:
        self.size = size
        self.url: URL = server.create_database(name)
        self._conninfo: dict[str, Any] = {
            "host": str(server.directory),
            "port": self.url.port,
            "user": "postgres",
            "dbname": name,
        }
        self.connection = self.connect()
        self.writer = self.connect()
        for start in range(0, size, 50):
            self.connection.execute(
                "".join(self._table(i) for i in range(start, min(size, start + 50))).encode()
            )
        self.dirty_tables = [size * (i + 1) // (DIRTY + 1) for i in range(DIRTY)]
        children_first = range(size - 1, -1, -1)
        self.delete_all = "".join(f"DELETE FROM t{i};" for i in children_first).encode()
        self.deletes = [f"DELETE FROM t{i}".encode() for i in children_first]
        self.truncate_all = (
            f"TRUNCATE {', '.join(f't{i}' for i in range(size))} RESTART IDENTITY CASCADE"
        ).encode()
        self.minimum = (
            "".join(f"DELETE FROM t{i};" for i in reversed(self.dirty_tables))
            + "".join(f"SELECT setval('t{i}_id_seq', 1, false);" for i in self.dirty_tables)
        ).encode()

    @staticmethod
    def _table(i: int) -> str:
        parent = f", parent int REFERENCES t{i - 1}" if i % 3 else ""
        return f"CREATE TABLE t{i} (id serial PRIMARY KEY, name text, email text UNIQUE{parent});"

    @property
    def metadata(self) -> MetaData:
        """The same tables as an application's models would describe them."""
        metadata = MetaData()
        for i in range(self.size):
            parent = [Column("parent", Integer, ForeignKey(f"t{i - 1}.id"))] if i % 3 else []
            Table(
                f"t{i}",
                metadata,
                Column("id", Integer, primary_key=True),
                Column("name", Text),
                Column("email", Text, unique=True),
                *parent,
            )
        return metadata

    def connect(self) -> psycopg.Connection[Any]:
        """A connection in autocommit mode."""
        return psycopg.connect(**self._conninfo, autocommit=True)

    def fill(self, tables: list[int] | None = None) -> None:
        """Write a few rows to each of the tables (default: the three of a typical test)."""
        for i in self.dirty_tables if tables is None else tables:
            self.writer.execute(
                f"INSERT INTO t{i} (name, email) SELECT 'n' || g, 'e' || g "
                f"FROM generate_series(1, {ROWS}) g ON CONFLICT DO NOTHING".encode()
            )

    def touch_all(self) -> None:
        """Leave every table as after many tests: empty, with pages that once held rows."""
        self.fill(list(range(self.size)))
        self.connection.execute(self.delete_all)
        self.connection.execute(
            "".join(f"SELECT setval('t{i}_id_seq', 1, false);" for i in range(self.size)).encode()
        )

    def recipe(self) -> None:
        """The usual recipe: a DELETE and a round trip for each table, in one transaction."""
        with self.connection.transaction():
            for statement in self.deletes:
                self.connection.execute(statement)

    def close(self) -> None:
        """Close the connections."""
        self.connection.close()
        self.writer.close()
