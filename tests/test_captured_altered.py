"""What is altered after a capture: the schema that the rows belong to, and what is kept of them."""

from __future__ import annotations

import pytest
from support.cases import AS_SUPERUSER, Way, ways
from support.database import Database
from support.history import state

from cleaner import Cleaner
from cleaner.errors import NotCleanError, SchemaChangedError

SEED = """
CREATE TABLE parent (id int PRIMARY KEY, code text);
CREATE TABLE child (id serial PRIMARY KEY, parent int REFERENCES parent);
INSERT INTO parent VALUES (1, 'a'), (2, 'b'); INSERT INTO child (parent) VALUES (1), (2);
"""

# -- what is kept ---------------------------------------------------------------------------------

TRUNCATE_ALL = """DO $$ DECLARE name text; BEGIN
FOR name IN SELECT format('%I.%I', schemaname, tablename) FROM pg_tables
             WHERE schemaname IN ('public', 'cleaner_baseline')
LOOP EXECUTE format('TRUNCATE %s CASCADE', name); END LOOP; END $$"""
COPY = "cleaner_baseline.t' || 'parent'::regclass::oid"
ONE = f"{COPY} || ' WHERE id = 2'"
TAMPERED = {
    "all tables truncated": TRUNCATE_ALL,
    "the list truncated": "TRUNCATE cleaner_baseline.baseline",
    "a copy emptied": f"DO $$ BEGIN EXECUTE 'DELETE FROM {COPY}; END $$",
    "a row of a copy deleted": f"DO $$ BEGIN EXECUTE 'DELETE FROM {ONE}; END $$",
    "a copy dropped": f"DO $$ BEGIN EXECUTE 'DROP TABLE {COPY}; END $$",
}


@pytest.mark.parametrize("how", TAMPERED)
@ways(*AS_SUPERUSER)
def test_where_what_was_captured_is_gone_no_seed_is_deleted(
    database: Database, way: Way, how: str
) -> None:
    database.execute(SEED)
    with database.cleaner(strategy=way.strategy) as warm:
        warm.capture()
        warm.clean()
        database.execute(TAMPERED[how])
        before = state(database)
        with database.cleaner(strategy=way.strategy) as cleaner:
            for _ in range(2):
                with pytest.raises(SchemaChangedError, match=r"cleaner_baseline.*emptied|written"):
                    cleaner.clean()
                with pytest.raises(NotCleanError, match="cleaner_baseline"):
                    cleaner.verify()
            assert state(database) == before
            cleaner.capture()
            database.execute("DELETE FROM child; UPDATE parent SET code = 'x'")
            database.execute("INSERT INTO parent VALUES (5, 'new')")
            for each in (cleaner, warm):
                each.clean()
                assert state(database) == before


def test_a_cleaner_that_can_not_put_back_what_was_truncated_with_its_copy_says_so(
    database: Database,
) -> None:
    database.execute(SEED)
    with database.cleaner() as cleaner:
        cleaner.capture()
        cleaner.clean()
        database.execute(TRUNCATE_ALL)
        for _ in range(2):
            with pytest.raises(SchemaChangedError, match="emptied"):
                cleaner.clean()


def test_some_tables_can_not_be_captured_while_nobody_knows_what_was(database: Database) -> None:
    database.execute(SEED)
    with database.cleaner() as cleaner:
        cleaner.capture()
        database.execute("TRUNCATE cleaner_baseline.baseline")
        with pytest.raises(SchemaChangedError, match="emptied"):
            cleaner.capture(tables=["parent"])
        with pytest.raises(SchemaChangedError, match="emptied"):
            cleaner.clean()


# -- other tables of the same names ---------------------------------------------------------------

TABLES = """
CREATE TABLE price (id int PRIMARY KEY, v int); INSERT INTO price VALUES (1, 10), (2, 20);
CREATE TABLE price_new (id int PRIMARY KEY, v int); INSERT INTO price_new VALUES (1, 77), (2, 88);
CREATE TABLE bag (v int); INSERT INTO bag VALUES (1), (1);
CREATE TABLE bag_new (v int); INSERT INTO bag_new VALUES (1), (2);
CREATE TABLE month (k int, v int) PARTITION BY LIST (k);
CREATE TABLE month_1 PARTITION OF month FOR VALUES IN (1);
CREATE TABLE spare (k int, v int); INSERT INTO month VALUES (1, 5);
INSERT INTO spare VALUES (1, 9);
"""
SWAP = """ALTER TABLE {0} RENAME TO t; ALTER TABLE {0}_new RENAME TO {0};
    ALTER TABLE t RENAME TO {0}_new"""
SWAPPED = {
    "tables": SWAP.format("price"),
    "without a key": SWAP.format("bag"),
    "partitions": """ALTER TABLE month DETACH PARTITION month_1;
        ALTER TABLE month_1 RENAME TO t; ALTER TABLE spare RENAME TO month_1;
        ALTER TABLE month ATTACH PARTITION month_1 FOR VALUES IN (1); ALTER TABLE t RENAME TO spare;
        DELETE FROM spare; INSERT INTO spare VALUES (1, 9)""",
}


@pytest.mark.parametrize("what", SWAPPED)
@pytest.mark.parametrize("warm", [True, False], ids=["known", "new"])
@ways(*AS_SUPERUSER)
def test_rows_of_tables_that_have_swapped_their_names_are_put_back(
    database: Database, way: Way, what: str, warm: bool
) -> None:
    database.execute(TABLES)
    with database.cleaner(strategy=way.strategy) as cleaner:
        cleaner.capture()
        baseline = state(database)
        if warm:
            cleaner.clean()
        for _ in range(2):
            database.execute(f"BEGIN; {SWAPPED[what]}; COMMIT")
            assert state(database) != baseline
            cleaner.clean()
            assert state(database) == baseline
            cleaner.verify()
        assert cleaner.clean().round_trips == 1
        with database.cleaner(strategy=way.strategy) as other:
            other.clean()
            assert state(database) == baseline


@ways(*AS_SUPERUSER)
def test_what_an_older_version_has_kept_is_put_back(database: Database, way: Way) -> None:
    database.execute(SEED + TYPES)
    with database.cleaner(strategy=way.strategy) as cleaner:
        cleaner.capture()
        baseline = state(database)
        database.execute(
            """UPDATE cleaner_baseline.baseline SET tables = (SELECT json_agg(
                (SELECT jsonb_set(e - 'oids', '{columns}', jsonb_object_agg(c.key,
                    jsonb_set(c.value - 'values' - 'attributes', '{type}',
                              to_jsonb(replace(c.value ->> 'type', 'public.', '')))))
                   FROM jsonb_each(e -> 'columns') c))
                FROM jsonb_array_elements(tables::jsonb) e)"""
        )
        database.execute("UPDATE person SET m = 'ok', n = 1; DELETE FROM child WHERE id = 1")
        cleaner.clean()
        assert state(database) == baseline
        cleaner.verify()


# -- types ----------------------------------------------------------------------------------------

TYPES = """
CREATE TYPE mood AS ENUM ('ok', 'bad'); CREATE TYPE pair AS (a int, m mood);
CREATE DOMAIN email AS varchar(20); CREATE TYPE span AS RANGE (subtype = float8);
CREATE TABLE person (id int PRIMARY KEY, m mood, e email, p pair, ps pair[], s span,
    n numeric(5, 2));
INSERT INTO person VALUES (1, 'ok', 'x', (1, 'bad'), ARRAY[(2, 'ok')::pair], '[1,2)', 1.5),
    (2, 'bad', NULL, NULL, '{}', NULL, NULL);
"""


@pytest.mark.parametrize("captured", ["public", "app,public", "other,app"])
@pytest.mark.parametrize("cleaned", ["public", "app,public", "other,app"])
def test_types_are_known_again_whatever_the_search_path(
    database: Database, captured: str, cleaned: str
) -> None:
    database.execute(f"CREATE SCHEMA app; SET search_path = app; {TYPES}; RESET search_path")
    database.execute("CREATE SCHEMA other; CREATE TYPE other.mood AS ENUM ('other')")
    capturer, cleaner = (
        Cleaner(database.url.update_query_dict({"options": f"-c search_path={path}"}))
        for path in (captured, cleaned)
    )
    with capturer, cleaner:
        capturer.capture()
        baseline = state(database)
        database.execute("UPDATE app.person SET m = 'bad', ps = NULL, n = 2 WHERE id = 1")
        database.execute("DELETE FROM app.person WHERE id = 2")
        cleaner.clean()
        assert state(database) == baseline
        cleaner.verify()


@pytest.mark.parametrize("warm", [True, False], ids=["known", "new"])
@pytest.mark.parametrize(
    ("change", "lost"),
    [
        ("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'", {"m", "p", "ps"}),
        ("ALTER TYPE pair DROP ATTRIBUTE a", {"p", "ps"}),
        ("ALTER TYPE pair ADD ATTRIBUTE b int", {"p", "ps"}),
        ("ALTER TYPE pair DROP ATTRIBUTE a, ADD ATTRIBUTE b int", {"p", "ps"}),
    ],
)
@ways(*AS_SUPERUSER)
def test_a_type_that_reads_otherwise_than_when_it_was_captured_is_named(
    database: Database, way: Way, change: str, lost: set[str], warm: bool
) -> None:
    database.execute(TYPES)
    with database.cleaner(strategy=way.strategy) as cleaner:
        cleaner.capture()
        for _ in range(3 if warm else 0):
            database.execute("UPDATE person SET n = 7")
            cleaner.clean()
        database.execute(change)
        before = state(database)
        with pytest.raises(SchemaChangedError, match=r"column ps of public\.person"):
            cleaner.clean()
        assert set(cleaner.diff().lost) == {
            f"column {column} of public.person as it was captured" for column in lost
        }
        assert state(database) == before
        # Rows hold an attribute that was dropped until they are written again.
        database.execute("UPDATE person SET p = p::text::pair, ps = ps::text::pair[]")
        cleaner.capture()
        database.execute("DELETE FROM person WHERE id = 1; UPDATE person SET m = NULL")
        cleaner.clean()
        assert state(database) == before


def test_a_type_that_is_altered_after_a_look_is_seen_by_the_next(database: Database) -> None:
    database.execute(TYPES)
    with database.cleaner() as cleaner:
        cleaner.capture()
        assert not cleaner.diff()
        database.execute("ALTER TYPE mood RENAME VALUE 'ok' TO 'fine'")
        assert len(cleaner.diff().lost) == 3


@ways(*AS_SUPERUSER)
def test_new_values_of_an_enum_are_no_matter_and_one_that_took_a_name_is_not_the_same(
    database: Database, way: Way
) -> None:
    database.execute(TYPES)
    with database.cleaner(strategy=way.strategy) as cleaner:
        cleaner.capture()
        cleaner.clean()
        baseline = state(database)
        database.execute("ALTER TYPE mood ADD VALUE 'new' BEFORE 'ok'")
        database.execute("UPDATE person SET m = 'new'")
        cleaner.clean()
        assert state(database) == baseline
        database.execute("ALTER TYPE mood RENAME VALUE 'ok' TO 'old'")
        database.execute("ALTER TYPE mood ADD VALUE 'ok'")
        assert state(database) != baseline
        cleaner.clean()
        assert state(database) == baseline
