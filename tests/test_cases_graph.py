"""Foreign keys: chains, cycles, keys that reach outside the target, and keys nobody knew of."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, ForeignKey, Integer, MetaData, Table
from support.cases import (
    AS_SUPERUSER,
    AUTO,
    DELETE,
    REPLICA,
    TRUNCATE,
    Watched,
    Way,
    clean,
    ways,
)
from support.database import Database

from cleaner.errors import ExcludedTableError

# Each is a graph with rows in every table. DELETE of one table after the other fails for most.
GRAPHS = {
    "chain": """
        CREATE TABLE c (id serial PRIMARY KEY);
        CREATE TABLE b (id serial PRIMARY KEY, c int NOT NULL REFERENCES c);
        CREATE TABLE a (id serial PRIMARY KEY, b int NOT NULL REFERENCES b);
        INSERT INTO c DEFAULT VALUES; INSERT INTO b (c) VALUES (1); INSERT INTO a (b) VALUES (1)""",
    "self-reference": """
        CREATE TABLE a (id serial PRIMARY KEY, up int REFERENCES a);
        INSERT INTO a (up) VALUES (NULL), (1), (1), (2)""",
    "self-reference that restricts": """
        CREATE TABLE a (id serial PRIMARY KEY, up int NOT NULL REFERENCES a ON DELETE RESTRICT);
        INSERT INTO a (up) VALUES (1), (1), (2), (3)""",
    "cycle of two": """
        CREATE TABLE a (id serial PRIMARY KEY, b int);
        CREATE TABLE b (id serial PRIMARY KEY, a int REFERENCES a);
        ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b;
        INSERT INTO a DEFAULT VALUES; INSERT INTO b (a) VALUES (1); UPDATE a SET b = 1""",
    "cycle of two that can't be null": """
        CREATE TABLE a (id serial PRIMARY KEY, b int NOT NULL);
        CREATE TABLE b (id serial PRIMARY KEY, a int NOT NULL REFERENCES a ON DELETE RESTRICT);
        INSERT INTO a (b) VALUES (1); INSERT INTO b (a) VALUES (1);
        ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b ON DELETE RESTRICT""",
    "cycle of six with branches": """
        CREATE TABLE c1 (id serial PRIMARY KEY, next int NOT NULL);
        CREATE TABLE c2 (id serial PRIMARY KEY, next int NOT NULL REFERENCES c1);
        CREATE TABLE c3 (id serial PRIMARY KEY, next int NOT NULL REFERENCES c2);
        CREATE TABLE c4 (id serial PRIMARY KEY, next int NOT NULL REFERENCES c3 ON DELETE CASCADE);
        CREATE TABLE c5 (id serial PRIMARY KEY, next int NOT NULL REFERENCES c4);
        CREATE TABLE c6 (id serial PRIMARY KEY, next int NOT NULL REFERENCES c5);
        CREATE TABLE into_it (id serial PRIMARY KEY, c3 int REFERENCES c3, up int);
        CREATE TABLE out_of_it (id serial PRIMARY KEY);
        ALTER TABLE c2 ADD out int NOT NULL REFERENCES out_of_it;
        ALTER TABLE c5 ADD across int REFERENCES c2 ON DELETE SET NULL;
        INSERT INTO out_of_it DEFAULT VALUES;
        INSERT INTO c1 (next) VALUES (1); INSERT INTO c2 (next, out) VALUES (1, 1);
        INSERT INTO c3 (next) VALUES (1); INSERT INTO c4 (next) VALUES (1);
        INSERT INTO c5 (next, across) VALUES (1, 1); INSERT INTO c6 (next) VALUES (1);
        INSERT INTO into_it (c3) VALUES (1);
        ALTER TABLE c1 ADD FOREIGN KEY (next) REFERENCES c6""",
    "two keys, composite, onto UNIQUE": """
        CREATE TABLE p (id serial PRIMARY KEY, x int, y text, code text UNIQUE, UNIQUE (x, y));
        CREATE TABLE c (id serial PRIMARY KEY, one int REFERENCES p, two int NOT NULL REFERENCES p,
            x int, y text, code text REFERENCES p (code) ON UPDATE CASCADE,
            FOREIGN KEY (x, y) REFERENCES p (x, y) MATCH FULL);
        INSERT INTO p (x, y, code) VALUES (1, 'y', 'code');
        INSERT INTO c (one, two, x, y, code) VALUES (1, 1, 1, 'y', 'code')""",
    "across schemas": """
        CREATE SCHEMA other; CREATE SCHEMA "Third one";
        CREATE TABLE "Third one".c (id serial PRIMARY KEY);
        CREATE TABLE a (id serial PRIMARY KEY, c int REFERENCES "Third one".c);
        CREATE TABLE other.a (id serial PRIMARY KEY, a int NOT NULL REFERENCES a);
        ALTER TABLE "Third one".c ADD back int REFERENCES other.a;
        INSERT INTO "Third one".c DEFAULT VALUES; INSERT INTO a (c) VALUES (1);
        INSERT INTO other.a (a) VALUES (1); UPDATE "Third one".c SET back = 1""",
    "deferred": """
        CREATE TABLE a (id serial PRIMARY KEY, b int NOT NULL);
        CREATE TABLE b (id serial PRIMARY KEY,
            a int NOT NULL REFERENCES a DEFERRABLE INITIALLY DEFERRED);
        ALTER TABLE a ADD FOREIGN KEY (b) REFERENCES b DEFERRABLE INITIALLY DEFERRED;
        BEGIN; INSERT INTO a (b) VALUES (1); INSERT INTO b (a) VALUES (1); COMMIT""",
    "of partitions": """
        CREATE TABLE p (id int PRIMARY KEY) PARTITION BY RANGE (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES FROM (0) TO (10);
        CREATE TABLE p2 PARTITION OF p DEFAULT;
        CREATE TABLE onto_root (id serial PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE);
        CREATE TABLE onto_leaf (id serial PRIMARY KEY, p int NOT NULL REFERENCES p1);
        ALTER TABLE p ADD up int REFERENCES p, ADD leaf int REFERENCES onto_leaf;
        INSERT INTO p (id, up) VALUES (1, NULL), (2, 1), (20, 2);
        INSERT INTO onto_root (p) VALUES (1), (20); INSERT INTO onto_leaf (p) VALUES (1);
        UPDATE p SET leaf = 1""",
}


@ways(*AS_SUPERUSER, Way("auto", owner=True))
def test_every_graph_is_emptied(database: Database, way: Way) -> None:
    for i, (name, graph) in enumerate(GRAPHS.items()):
        database.execute(f"CREATE SCHEMA g{i}; COMMENT ON SCHEMA g{i} IS $${name}$$")
        database.execute(f"SET search_path = g{i}")
        database.execute(graph)
    database.execute("RESET search_path")
    clean(database, way)


@ways(AUTO, DELETE, REPLICA)
def test_a_part_of_a_cycle_may_hold_no_rows(database: Database, way: Way) -> None:
    database.execute(GRAPHS["cycle of six with branches"])
    database.execute("TRUNCATE c1, c2, c3, c4, c5, c6, into_it, out_of_it")
    database.execute("INSERT INTO out_of_it VALUES (7)")
    assert clean(database, way).tables == ("out_of_it",)


@ways(AUTO, DELETE)
def test_many_pages_with_keys_onto_a_leaf_are_emptied(database: Database, way: Way) -> None:
    database.execute(GRAPHS["of partitions"])
    database.execute(
        "ALTER TABLE p ADD fill text; ALTER TABLE p ALTER fill SET STORAGE PLAIN;"
        "INSERT INTO p (id, fill) SELECT n, repeat('x', 4000) FROM generate_series(100, 900) n"
    )
    assert ("p" in clean(database, way).truncated) == (way is AUTO)


@ways(AUTO)
def test_many_pages_of_a_cycle_are_truncated_at_once(database: Database, way: Way) -> None:
    database.execute(GRAPHS["cycle of two that can't be null"])
    database.execute("INSERT INTO b (a) SELECT 1 FROM generate_series(1, 60000)")
    assert set(clean(database, way).truncated) == {"a", "b"}


# -- the metadata and the database do not agree -----------------------------------------------


@ways(*AS_SUPERUSER)
def test_a_key_that_only_the_database_has_orders_the_deletes(database: Database, way: Way) -> None:
    metadata = MetaData()
    for name in ("a", "b"):
        Table(name, metadata, Column("id", Integer, primary_key=True), Column("b", Integer))
    database.execute(
        "CREATE TABLE b (id serial PRIMARY KEY); CREATE TABLE a (id int, b int REFERENCES b);"
        "INSERT INTO b DEFAULT VALUES; INSERT INTO a VALUES (1, 1)"
    )
    clean(database, way, metadata)


@ways(*AS_SUPERUSER)
def test_a_key_that_only_the_metadata_has_does_no_harm(database: Database, way: Way) -> None:
    metadata = MetaData()
    Table("b", metadata, Column("id", Integer, primary_key=True), Column("a", ForeignKey("a.id")))
    Table("a", metadata, Column("id", Integer, primary_key=True), Column("b", ForeignKey("b.id")))
    database.execute(
        "CREATE TABLE b (id int PRIMARY KEY, a int); CREATE TABLE a (id int, b int REFERENCES b);"
        "INSERT INTO b VALUES (1, 8); INSERT INTO a VALUES (1, 1)"
    )
    clean(database, way, metadata)


# -- keys that reach outside ------------------------------------------------------------------

ACTIONS = ["NO ACTION", "RESTRICT", "CASCADE", "SET NULL", "SET DEFAULT"]


@ways()
def test_an_excluded_child_is_never_changed(database: Database, way: Way) -> None:
    database.execute("CREATE TABLE p (id serial PRIMARY KEY); INSERT INTO p DEFAULT VALUES")
    for i, action in enumerate(ACTIONS):
        database.execute(
            f"CREATE TABLE x{i} (id int, p int DEFAULT NULL REFERENCES p ON DELETE {action});"
            f"INSERT INTO x{i} VALUES (1, NULL)"
        )
    children = [f"public.x{i}" for i in range(len(ACTIONS))]
    with Watched(database, way, exclude=["x?"], kept=children) as watched:
        for i in range(len(ACTIONS)):
            database.execute(f"INSERT INTO x{i} VALUES (2, 1)")
            with pytest.raises(ExcludedTableError, match=rf"(?s)x{i}.* p\b.*Remedy: .*exclude"):
                watched.cleaner.clean()
            assert database.execute(f"SELECT p FROM x{i} ORDER BY id") == [(None,), (1,)]
            assert database.count("p") == 1
            database.execute(f"UPDATE x{i} SET p = NULL")
        if way.strategy != "truncate":
            watched.clean()


@ways(AUTO, DELETE, REPLICA)
def test_an_excluded_child_behind_a_chain_is_never_changed(database: Database, way: Way) -> None:
    database.execute(
        """CREATE TABLE p (id serial PRIMARY KEY);
        CREATE TABLE mid (id serial PRIMARY KEY, p int REFERENCES p ON DELETE CASCADE);
        CREATE TABLE child (mid int REFERENCES mid ON DELETE CASCADE);
        INSERT INTO p DEFAULT VALUES; INSERT INTO mid (p) VALUES (1);
        INSERT INTO child VALUES (1)"""
    )
    with (
        database.cleaner(strategy=way.strategy, exclude=["child"]) as cleaner,
        pytest.raises(ExcludedTableError, match="child"),
    ):
        cleaner.clean()
    assert (database.count("child"), database.count("p")) == (1, 1)


@ways(AUTO, TRUNCATE)
def test_many_pages_never_make_truncate_reach_an_excluded_table(
    database: Database, way: Way
) -> None:
    database.execute(
        """CREATE TABLE p (id serial PRIMARY KEY, fill text);
        CREATE TABLE mid (id serial PRIMARY KEY, p int REFERENCES p);
        CREATE TABLE child (mid int REFERENCES mid); INSERT INTO child VALUES (NULL);
        INSERT INTO p (fill) SELECT repeat('x', 1000) FROM generate_series(1, 3000)"""
    )
    if way is TRUNCATE:
        with (
            database.cleaner(strategy="truncate", exclude=["child"]) as cleaner,
            pytest.raises(ExcludedTableError, match="child"),
        ):
            cleaner.clean()
        assert (database.count("child"), database.count("p")) == (1, 3000)
    else:
        report = clean(database, way, exclude=["child"], kept=["public.child"])
        assert report.truncated == ()


@ways(*AS_SUPERUSER)
def test_an_excluded_parent_is_kept(database: Database, way: Way) -> None:
    database.execute(GRAPHS["chain"])
    clean(database, way, exclude=["c"], kept=["public.c"], running=["public.c_id_seq"])


@ways(AUTO, DELETE, REPLICA)
def test_a_key_of_an_excluded_partition_is_respected(database: Database, way: Way) -> None:
    database.execute(
        """CREATE TABLE p (id serial PRIMARY KEY);
        CREATE TABLE part (id int, p int REFERENCES p ON DELETE CASCADE) PARTITION BY LIST (id);
        CREATE TABLE part1 PARTITION OF part FOR VALUES IN (1);
        CREATE TABLE part2 PARTITION OF part FOR VALUES IN (2);
        INSERT INTO p DEFAULT VALUES; INSERT INTO part VALUES (1, 1), (2, 1)"""
    )
    with Watched(database, way, exclude=["part2"], kept=["public.part2", "public.part"]) as watched:
        with pytest.raises(ExcludedTableError, match=r"part\b"):
            watched.cleaner.clean()
        assert (database.count("part1"), database.count("part2")) == (1, 1)
        database.execute("UPDATE part SET p = NULL; DELETE FROM part1")
        watched.clean()


@ways(AUTO, DELETE, REPLICA)
def test_a_key_added_between_two_cleans_is_respected(database: Database, way: Way) -> None:
    database.execute(
        "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE b (id int PRIMARY KEY, a int);"
        "CREATE TABLE x (id int PRIMARY KEY, a int)"
    )
    fill = "INSERT INTO b VALUES (1, 1); INSERT INTO a VALUES (1)"
    with Watched(database, way, exclude=["x"], kept=["public.x"]) as watched:
        for change in (
            "ALTER TABLE a ADD FOREIGN KEY (id) REFERENCES b",
            "ALTER TABLE b ADD FOREIGN KEY (a) REFERENCES a DEFERRABLE INITIALLY DEFERRED",
        ):
            database.execute(f"BEGIN; {fill}; COMMIT")
            watched.clean()
            database.execute(change)
        database.execute(f"BEGIN; {fill}; INSERT INTO x VALUES (1, 1); COMMIT")
        database.execute("ALTER TABLE x ADD FOREIGN KEY (a) REFERENCES a ON DELETE CASCADE")
        with pytest.raises(ExcludedTableError, match="x"):
            watched.cleaner.clean()
        assert database.count("x") == 1
