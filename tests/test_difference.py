"""What `diff()` and `verify()` say of a database whose baseline holds rows, on real servers."""

from __future__ import annotations

import os
import pickle
import random
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import psycopg
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from support import observe
from support.database import Database
from support.random_schema import Schema, schemas

from cleaner import Cleaner, Diff, errors
from cleaner.difference import Value

EXAMPLES = int(os.environ.get("CLEANER_EXAMPLES", "15"))
SCHEMA = """
CREATE TABLE role (id serial PRIMARY KEY, name text, rank numeric);
CREATE TABLE tag (name text, weight float8);
CREATE TABLE orders (id serial PRIMARY KEY, item text);
INSERT INTO role (name, rank) VALUES ('admin', 1.0), ('author', 2.0), ('guest', 3.0);
INSERT INTO tag VALUES ('new', 1), ('new', 1), ('old', NULL);
"""
EQUAL_TO_MOST = [
    ("numeric", "1.0", "1.00"),
    ("numeric[]", "'{1.0}'", "'{1.00}'"),
    ("float8", "'0'", "'-0'"),
    ("float8", "0.1", "0.1::float8 + 3e-17"),
    ("interval", "'1 month'", "'30 days'"),
    ("int[]", "'{1}'", "'[0:0]={1}'"),
    ("timetz", "'12:00+00'", "'13:00+01'"),
    ("bpchar", "'a'", "'a  '"),
    ("text", "''", "NULL"),
    ("text", "'NULL'", "NULL"),
    ("blind", "'a'", "'A'"),
    ("mood", "'ok'", "'bad'"),
    ("price", "1.0", "1.00"),
    ("bytea", "'\\x00'", "'\\x0000'"),
    ("json", "'{}'", "'{ }'"),
    ("timestamptz", "'2020-10-25 02:30:00.000001+02'", "'2020-10-25 02:30:00.000001+01'"),
]


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(SCHEMA)
    return database


@pytest.fixture
def cleaner(shop: Database) -> Iterator[Cleaner]:
    with shop.cleaner(lock_timeout=0.4) as cleaner:
        cleaner.capture()
        yield cleaner


def captured(database: Database, **settings: Any) -> Cleaner:
    """A cleaner of what the database holds now."""
    cleaner = database.cleaner(**settings)
    cleaner.capture()
    return cleaner


def lines(diff: Diff) -> list[str]:
    return str(diff).splitlines()


# -- what is seen ---------------------------------------------------------------------------


def test_nothing_differs_from_what_was_captured(cleaner: Cleaner) -> None:
    assert not cleaner.diff()
    assert str(cleaner.diff()) == "Nothing that is committed differs from the baseline."
    cleaner.verify()


def test_rows_added_changed_and_gone_are_counted_and_shown(
    cleaner: Cleaner, shop: Database
) -> None:
    shop.execute(
        """UPDATE role SET name = 'root', rank = 9 WHERE id = 1; DELETE FROM role WHERE id = 2;
        INSERT INTO role (name) VALUES ('it''s a new one');
        INSERT INTO orders (item) VALUES ('tea'), ('milk'); SELECT nextval('orders_id_seq');
        DELETE FROM tag WHERE name = 'old'; INSERT INTO tag VALUES ('new', 1), ('x', 0)"""
    )
    diff = cleaner.diff()
    assert lines(diff) == [
        "orders: 2 rows",
        "  + id=1, item=tea",
        "  + id=2, item=milk",
        "role: 1 row added, 1 changed, 1 gone",
        "  + id=4, name='it''s a new one', rank=NULL",
        "  ~ id=1: name: admin -> root, rank: 1.0 -> 9",
        "  - id=2, name=author, rank=2.0",
        "tag: 2 rows added, 1 gone",
        "  + name=new, weight=1",
        "  + name=x, weight=0",
        "  - name=old, weight=NULL",
        "sequence orders_id_seq: before 1 -> 3",
        "sequence role_id_seq: 3 -> 4",
    ]
    assert [(t.table, t.added, t.changed, t.gone, t.baseline) for t in diff.tables] == [
        ("orders", 2, 0, 0, 0),
        ("role", 1, 1, 1, 3),
        ("tag", 2, 0, 1, 3),
    ]
    cleaner.clean()
    assert not cleaner.diff()


@pytest.mark.parametrize("key", [" PRIMARY KEY", ""], ids=["keyed", "keyless"])
@pytest.mark.parametrize(
    ("type_", "old", "new"), EQUAL_TO_MOST, ids=[f"{t} {o}" for t, o, _ in EQUAL_TO_MOST]
)
def test_two_values_that_are_not_the_same_to_the_last_bit_differ(
    database: Database, key: str, type_: str, old: str, new: str
) -> None:
    database.execute("CREATE TYPE mood AS ENUM ('ok', 'bad'); CREATE DOMAIN price AS numeric")
    if type_ == "blind":
        type_ = "text COLLATE ci"
        try:
            database.execute(
                "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2',"
                " deterministic = false)"
            )
        except psycopg.errors.FeatureNotSupported:
            pytest.skip("the server was built without ICU")
    database.execute(
        f"CREATE TABLE t (id int{key}, v {type_}); INSERT INTO t VALUES (1, {old}), (2, {old})"
    )
    with captured(database) as cleaner:
        database.execute(f"UPDATE t SET v = {old} WHERE id = 1")
        assert not cleaner.diff()
        database.execute(f"UPDATE t SET v = {new} WHERE id = 2")
        (table,) = cleaner.diff().tables
    if key:
        assert (table.added, table.changed, table.gone) == (0, 1, 0)
        ((column, was, now),) = table.rows[0].changes
        assert column == "v"
        assert was != now
    else:
        assert (table.added, table.changed, table.gone) == (1, 0, 1)


def test_no_setting_of_the_role_hides_a_difference(database: Database) -> None:
    database.execute("CREATE TABLE t (v float8); INSERT INTO t VALUES (0.1)")
    database.execute(f'ALTER DATABASE "{database.name}" SET extra_float_digits = 0')
    with captured(database) as cleaner:
        database.execute("UPDATE t SET v = v + 3e-17")
        assert cleaner.diff()


def test_what_earlier_cleans_remember_is_not_believed(cleaner: Cleaner, shop: Database) -> None:
    """A horizon in the future says that no row was written since the last look."""
    cleaner.clean()
    shop.execute("UPDATE role SET name = 'root' WHERE id = 1")
    shop.execute(
        "UPDATE cleaner_baseline.baseline SET horizon = pg_snapshot_xmax(pg_current_snapshot()),"
        " author = pg_current_xact_id()::xid"
    )
    with shop.cleaner() as another:
        assert lines(another.diff())[1:] == ["  ~ id=1: name: admin -> root"]


def test_keys_of_several_columns_and_of_the_users_own_types_tell_rows_apart(
    database: Database,
) -> None:
    database.execute(
        """CREATE TYPE mood AS ENUM ('ok', 'bad');
        CREATE TABLE t (m mood, n int, v text, PRIMARY KEY (m, n));
        INSERT INTO t VALUES ('ok', 1, 'a'), ('ok', 2, 'b'), ('bad', 1, 'c')"""
    )
    with captured(database) as cleaner:
        database.execute(
            "UPDATE t SET v = 'z' WHERE (m, n) = ('bad', 1); DELETE FROM t WHERE n = 2"
        )
        assert lines(cleaner.diff()) == [
            "t: 1 row changed, 1 gone",
            "  ~ m=bad, n=1: v: c -> z",
            "  - m=ok, n=2, v=b",
        ]


def test_equal_rows_of_a_table_without_a_key_are_counted_one_by_one(
    cleaner: Cleaner, shop: Database
) -> None:
    shop.execute("DELETE FROM tag WHERE ctid = (SELECT min(ctid) FROM tag)")
    assert lines(cleaner.diff()) == ["tag: 1 row gone", "  - name=new, weight=1"]


def test_long_values_are_cut_where_they_differ(database: Database) -> None:
    database.execute(
        """CREATE TABLE t (id int PRIMARY KEY, a text, b bytea, c text);
        INSERT INTO t VALUES (1, repeat('x', 5000), repeat('y', 9000)::bytea, repeat('z', 5000))"""
    )
    with captured(database) as cleaner:
        database.execute(
            """UPDATE t SET a = overlay(a placing 'HERE' from 1500 for 4), b = 'short',
                            c = c || '!'"""
        )
        (table,) = cleaner.diff().tables
    changes = {column: (str(old), str(new)) for column, old, new in table.rows[0].changes}
    assert changes["a"] == (
        f"...'{'x' * 60}'... (5000 characters)",
        f"...'{'x' * 20}HERE{'x' * 36}'... (5000 characters)",
    )
    assert changes["b"] == (f"'\\x{'79' * 29}'... (9000 bytes)", "\\x73686f7274")
    assert changes["c"] == (
        f"'{'z' * 60}'... (5000 characters)",
        f"'{'z' * 60}'... (5001 characters)",
    )


def test_a_table_that_should_be_empty_is_counted_and_few_rows_of_it_are_fetched(
    cleaner: Cleaner, shop: Database
) -> None:
    shop.execute("INSERT INTO orders (item) SELECT 'tea' FROM generate_series(1, 5000)")
    (table,) = cleaner.diff().tables
    assert (table.added, len(table.rows)) == (5000, 3)
    assert str(table).splitlines()[-1] == "  and 4997 more"
    assert [len(cleaner.diff(samples=n).tables[0].rows) for n in (0, 1, 10)] == [0, 1, 10]


def test_every_kind_of_table_is_compared(database: Database) -> None:
    database.execute(
        """CREATE TABLE p (id int PRIMARY KEY, v text) PARTITION BY LIST (id);
        CREATE TABLE p1 PARTITION OF p FOR VALUES IN (1);
        CREATE TABLE p2 PARTITION OF p DEFAULT;
        CREATE TABLE parent (id int PRIMARY KEY, v text);
        CREATE TABLE heir (extra int) INHERITS (parent);
        CREATE TABLE made (id int PRIMARY KEY, v text,
            twice text GENERATED ALWAYS AS (v || v) STORED,
            n int GENERATED ALWAYS AS IDENTITY);
        CREATE TABLE nothing (); CREATE UNLOGGED TABLE "we""ird %s" ("co'l %s" text);
        INSERT INTO p VALUES (1, 'a'), (2, 'b'); INSERT INTO parent VALUES (1, 'a');
        INSERT INTO heir VALUES (1, 'b', 2); INSERT INTO made VALUES (1, 'a');
        INSERT INTO nothing DEFAULT VALUES; INSERT INTO "we""ird %s" VALUES ('%s')"""
    )
    with captured(database) as cleaner:
        assert not cleaner.diff()
        database.execute(
            """UPDATE p SET v = 'z'; DELETE FROM heir; UPDATE made SET v = 'z';
            INSERT INTO nothing DEFAULT VALUES; UPDATE "we""ird %s" SET "co'l %s" = '%d'"""
        )
        assert lines(cleaner.diff()) == [
            "heir: 1 row gone",
            "  - id=1, v=b, extra=2",
            "made: 1 row changed",
            "  ~ id=1: v: a -> z",
            "nothing: 1 row added",
            "  + ",
            "p: 2 rows changed",
            "  ~ id=1: v: a -> z",
            "  ~ id=2: v: b -> z",
            'we"ird %s: 1 row added, 1 gone',
            "  + co'l %s=%d",
            "  - co'l %s=%s",
        ]


@pytest.mark.parametrize("seed", range(4))
def test_the_counts_are_those_of_a_comparison_row_by_row(database: Database, seed: int) -> None:
    """Of random rows that were changed at random, beside a reckoning of our own."""
    chance = random.Random(seed)
    database.execute(
        """CREATE TABLE keyed (id int PRIMARY KEY, v text); CREATE TABLE loose (id int, v text);
        INSERT INTO keyed SELECT n, n % 3 FROM generate_series(1, 40) n;
        INSERT INTO loose SELECT n % 7, n % 3 FROM generate_series(1, 40) n"""
    )
    before = {name: Counter(database.execute(f"TABLE {name}")) for name in ("keyed", "loose")}
    with captured(database) as cleaner:
        for _ in range(12):
            n, table = chance.randint(1, 60), chance.choice(["keyed", "loose"])
            database.execute(
                chance.choice(
                    [
                        f"DELETE FROM {table} WHERE id = {n}",
                        f"UPDATE {table} SET v = {n % 3} WHERE id % 9 = {n % 9}",
                        f"INSERT INTO {table} VALUES ({n + 40 * (table == 'keyed')}, {n % 3})"
                        + " ON CONFLICT DO NOTHING" * (table == "keyed"),
                        f"UPDATE {table} SET v = v WHERE id = {n}",
                    ]
                )
            )
        found = {t.table: (t.added, t.changed, t.gone) for t in cleaner.diff().tables}
    for name, old in before.items():
        now = Counter(database.execute(f"TABLE {name}"))
        added, gone = (now - old).total(), (old - now).total()
        changed = 0
        if name == "keyed":
            changed = len({id_ for id_, _ in now - old} & {id_ for id_, _ in old - now})
        expected = (added - changed, changed, gone - changed)
        assert found.get(name, (0, 0, 0)) == expected


def test_of_any_schema_each_row_and_sequence_is_compared(database: Database) -> None:
    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(schemas())
    def check(schema: Schema) -> None:
        with database.cleaner() as cleaner:
            try:
                database.execute(";".join(schema.ddl))
                cleaner.release()
                assert not cleaner.diff()
                database.execute(";".join(schema.rows))
                written = {table.table: table.added for table in cleaner.diff().tables}
                try:
                    cleaner.capture()
                except errors.StrategyRefusedError:  # a key makes DELETE impossible there
                    return
                assert cleaner.captured == written
                assert not cleaner.diff()
                for table in schema.tables:
                    database.execute(
                        f"SET session_replication_role = replica; DELETE FROM ONLY {table};"
                        " RESET session_replication_role"
                    )
                diff = cleaner.diff()
                assert {table.table: table.gone for table in diff.tables} == written
                assert not any(table.added or table.changed for table in diff.tables)
                assert not diff.sequences
                assert str(diff)
            finally:
                cleaner.release()
                database.execute(";".join(schema.drop))

    check()


# -- what can't be seen, or is not there ----------------------------------------------------

FORCED = """
ALTER TABLE {0} ENABLE ROW LEVEL SECURITY; ALTER TABLE {0} FORCE ROW LEVEL SECURITY;
CREATE POLICY nobody ON {0} USING (false)"""


def test_rows_that_row_level_security_hides_from_their_owner_are_seen(shop: Database) -> None:
    for table in ("role", "orders", "tag"):
        shop.execute(FORCED.format(table))
    shop.give_away()
    shop.execute(f'GRANT CREATE ON DATABASE "{shop.name}" TO {shop.role}')
    with captured(shop, role=shop.role) as cleaner:
        schema = observe.schema_text(shop.session)
        assert not cleaner.diff()
        shop.execute("UPDATE role SET rank = 1.00 WHERE id = 1; INSERT INTO orders DEFAULT VALUES")
        assert [table.counts for table in cleaner.diff().tables] == ["1 row", "1 row changed"]
        assert observe.schema_text(shop.session) == schema
    shop.execute(f'REVOKE CREATE ON DATABASE "{shop.name}" FROM {shop.role}')


def test_rows_that_are_hidden_from_this_role_are_said_to_be_uncounted(shop: Database) -> None:
    shop.execute(FORCED.format("orders"))
    shop.execute(FORCED.format("role"))
    shop.execute(f"TRUNCATE role; GRANT ALL ON ALL TABLES IN SCHEMA public TO {shop.role}")
    with shop.cleaner(role=shop.role, only=["orders", "role"], reset_sequences=False) as cleaner:
        assert not cleaner.diff()
        shop.execute("INSERT INTO orders DEFAULT VALUES")
        assert lines(cleaner.diff()) == [
            "orders: rows that can't be counted (row-level security hides its rows)"
        ]
        with pytest.raises(errors.NotCleanError, match="orders: rows that can't be counted"):
            cleaner.verify()


def test_what_was_captured_and_is_gone_from_the_schema_is_named(
    cleaner: Cleaner, shop: Database
) -> None:
    shop.execute("DROP TABLE tag; ALTER TABLE role DROP COLUMN rank")
    shop.execute("UPDATE role SET name = 'root' WHERE id = 1")
    diff = cleaner.diff()
    assert sorted(diff.lost) == [
        "column rank of public.role as it was captured",
        "public.tag, 3 rows of which were captured",
    ]
    assert lines(diff) == [
        *(f"lost: {each}" for each in diff.lost),
        "role: 1 row changed",
        "  ~ id=1: name: admin -> root",
    ]
    with pytest.raises(errors.NotCleanError, match=r"public\.tag, .* is gone"):
        cleaner.verify()


def test_uncommitted_rows_are_not_seen_and_not_waited_for(cleaner: Cleaner, shop: Database) -> None:
    with shop.transaction() as session:
        session.execute("UPDATE role SET name = 'x'; INSERT INTO orders (id) VALUES (1)")
        assert not cleaner.diff()


def test_a_session_that_lets_nobody_look_is_named_after_lock_timeout(
    shop: Database,
) -> None:
    with (
        captured(shop, lock_timeout=0.4, on_blocked="terminate") as cleaner,
        shop.transaction() as session,
    ):
        session.execute("LOCK TABLE orders")
        started = time.monotonic()
        with pytest.raises(errors.BlockedError, match=r"^Looking at .* waited 0\.4 s") as blocked:
            cleaner.diff()
        assert time.monotonic() - started < 3
        assert [each.pid for each in blocked.value.blockers] == [session.info.backend_pid]
        session.execute("SELECT 1")  # it was not ended
        session.rollback()
        assert not cleaner.diff()


def test_a_reader_is_in_the_way_only_where_row_level_security_hides_rows(shop: Database) -> None:
    shop.execute("INSERT INTO orders DEFAULT VALUES")
    shop.give_away()
    with shop.cleaner(role=shop.role, lock_timeout=0.4) as cleaner, shop.transaction() as session:
        session.execute("SELECT FROM orders, role")
        assert cleaner.diff()
        session.rollback()
        shop.execute(FORCED.format("orders"))
        session.execute("SELECT FROM orders, role")
        with pytest.raises(errors.BlockedError) as blocked:
            cleaner.diff()
        assert [each.pid for each in blocked.value.blockers] == [session.info.backend_pid]


def test_a_captures_blocker_is_named_too(shop: Database) -> None:
    with shop.cleaner(lock_timeout=0.4) as cleaner, shop.transaction() as session:
        session.execute("INSERT INTO orders DEFAULT VALUES")
        with pytest.raises(errors.BlockedError, match="idle in transaction"):
            cleaner.capture()


def test_a_schema_that_changes_in_between_is_looked_at_again(
    cleaner: Cleaner, shop: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    selected, drops = Cleaner._selected, ["DROP TABLE orders", "ALTER TABLE tag RENAME TO label"]

    def late(self: Cleaner) -> Any:
        target = selected(self)
        if drops:
            shop.execute(drops.pop(0))
        return target

    monkeypatch.setattr(Cleaner, "_selected", late)
    assert cleaner.diff().lost == ("public.tag, 3 rows of which were captured",)
    assert not drops


def test_a_refusal_of_the_server_is_an_error_of_ours_and_nothing_stays_open(
    shop: Database,
) -> None:
    shop.execute("CREATE DOMAIN amount AS int; CREATE TABLE m (id int PRIMARY KEY, v amount)")
    shop.execute("INSERT INTO m VALUES (1, 1)")
    with captured(shop) as cleaner:
        shop.execute("ALTER DOMAIN amount ADD CONSTRAINT low CHECK (value < 1) NOT VALID")
        with pytest.raises(errors.CleanerError, match="refused to compare"):
            cleaner.diff()
        shop.execute("ALTER DOMAIN amount DROP CONSTRAINT low")
        assert not cleaner.diff()


# -- what it costs --------------------------------------------------------------------------


def test_tables_and_sequences_at_their_baseline_are_found_a_hundred_at_a_time(
    database: Database,
) -> None:
    database.execute(
        "DO $$ BEGIN FOR n IN 1..150 LOOP"
        " EXECUTE format('CREATE TABLE t%s (id serial PRIMARY KEY)', n);"
        " IF n % 2 = 0 THEN EXECUTE format('INSERT INTO t%s DEFAULT VALUES', n); END IF;"
        " END LOOP; END $$"
    )
    with captured(database) as cleaner:
        before = cleaner._session.round_trips
        assert not cleaner.diff()
        # The catalogs, three; the transaction, three; two for tables, two for sequences.
        assert cleaner._session.round_trips - before <= 10


def test_neither_rows_nor_schema_nor_session_are_changed_by_looking(
    cleaner: Cleaner, shop: Database
) -> None:
    shop.execute("INSERT INTO orders DEFAULT VALUES")
    schema, rows = observe.schema_text(shop.session), observe.counts(shop.session)
    settings = "SELECT name, setting FROM pg_settings ORDER BY name"
    before = cleaner._session.execute(settings)  # type: ignore[attr-defined]
    cleaner.diff()
    assert cleaner._session.execute(settings) == before  # type: ignore[attr-defined]
    assert observe.schema_text(shop.session) == schema
    assert observe.counts(shop.session) == rows


# -- verify, and how it is told -------------------------------------------------------------


def test_verify_names_table_and_rows_and_has_the_diff(cleaner: Cleaner, shop: Database) -> None:
    shop.execute(
        """UPDATE role SET name = 'x' WHERE id < 3; DELETE FROM role WHERE id = 3;
        INSERT INTO role VALUES (10, 'new'); INSERT INTO orders (id) VALUES (1), (2), (3);
        SELECT setval('role_id_seq', 10), nextval('orders_id_seq')"""
    )
    with pytest.raises(errors.NotCleanError) as raised:
        cleaner.verify()
    error = pickle.loads(pickle.dumps(raised.value))
    assert error.what == (
        "Not clean: orders: 3 rows; role: 1 row added, 2 changed, 1 gone; "
        "sequence orders_id_seq: not at its START; sequence role_id_seq: at 10, not 3."
    )
    assert error.survivors == (
        errors.Survivor("orders", 3),
        errors.Survivor("role", 1, changed=2, gone=1, baseline=3),
    )
    assert error.sequences == ("orders_id_seq", "role_id_seq")
    assert error.diff == cleaner.diff()
    assert error.remedy == "cleaner.clean()"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (None, "NULL"),
        ("NULL", "'NULL'"),
        ("", "''"),
        ("plain", "plain"),
        ("a b", "a b"),
        ("a, b=c", "'a, b=c'"),
        ("it's", "'it''s'"),
        (" a ", "' a '"),
        ("a\nb", r"'a\nb'"),
        ("2020-01-01 12:00:00+00", "2020-01-01 12:00:00+00"),
    ],
)
def test_a_value_is_quoted_where_it_would_be_taken_for_something_else(
    text: str | None, shown: str
) -> None:
    assert str(Value.of(text, len(text or ""))) == shown
