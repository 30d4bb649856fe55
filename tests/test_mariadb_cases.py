"""What a schema may hold: foreign keys, kinds of tables, names, counters."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from support.mariadb import MariaDatabase

from cleaner.errors import CleanerError, ExcludedTableError, NotCleanError, StrategyRefusedError

STRATEGIES = ("auto", "delete", "truncate", "replica")
every = pytest.mark.parametrize("strategy", STRATEGIES)
deleting = pytest.mark.parametrize("strategy", ["auto", "delete", "replica"])


def cleaned(mariadb: MariaDatabase, strategy: str, *tables: str) -> None:
    with mariadb.cleaner(strategy=strategy) as cleaner:
        report = cleaner.clean()
        assert {name: mariadb.count(f"`{name}`") for name in tables} == dict.fromkeys(tables, 0)
        assert set(tables) <= set(report.tables)
        cleaner.verify()


# -- the graph --------------------------------------------------------------------------------


@every
def test_a_self_reference_that_is_not_null_and_restricts(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(
        """CREATE TABLE node (id int PRIMARY KEY, parent int NOT NULL,
             FOREIGN KEY (parent) REFERENCES node (id) ON DELETE RESTRICT);
INSERT INTO node VALUES (1, 1), (2, 1), (3, 2)"""
    )
    cleaned(mariadb, strategy, "node")


@every
def test_a_cycle_that_is_not_null(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(
        """CREATE TABLE hen (id int PRIMARY KEY, egg int NOT NULL);
CREATE TABLE egg (id int PRIMARY KEY, hen int NOT NULL, FOREIGN KEY (hen) REFERENCES hen (id));
INSERT INTO hen VALUES (1, 1), (2, 2);
INSERT INTO egg VALUES (1, 1), (2, 2);
ALTER TABLE hen ADD FOREIGN KEY (egg) REFERENCES egg (id);
CREATE TABLE feather (hen int NOT NULL, FOREIGN KEY (hen) REFERENCES hen (id));
INSERT INTO feather VALUES (1)"""
    )
    cleaned(mariadb, strategy, "hen", "egg", "feather")
    assert mariadb.scalar("SELECT @@GLOBAL.foreign_key_checks") == 1


@every
@pytest.mark.parametrize(
    ("action", "filled"),
    [("RESTRICT", True), ("CASCADE", True), ("SET NULL", True), ("CASCADE", False)],
)
def test_a_child_outside_the_target_is_never_changed(
    mariadb: MariaDatabase, strategy: str, action: str, filled: bool
) -> None:
    mariadb.execute(
        f"""CREATE TABLE city (id int PRIMARY KEY);
CREATE TABLE country (id int PRIMARY KEY, capital int,
    FOREIGN KEY (capital) REFERENCES city (id) ON DELETE {action});
INSERT INTO city VALUES (1)"""
    )
    if filled:
        mariadb.execute("INSERT INTO country VALUES (7, 1)")
    with mariadb.cleaner(strategy=strategy, exclude=["country"]) as cleaner:
        if filled or strategy == "truncate":
            with pytest.raises(ExcludedTableError, match="country"):
                cleaner.clean()
            assert mariadb.count("city") == 1
            if filled:
                assert mariadb.execute("SELECT * FROM country") == [(7, 1)]
        else:
            cleaner.clean()
            assert mariadb.count("city") == 0


@every
def test_a_child_in_another_database_is_outside(mariadb: MariaDatabase, strategy: str) -> None:
    other = mariadb.another()
    mariadb.execute(
        f"""CREATE TABLE city (id int PRIMARY KEY);
CREATE TABLE {other}.country (id int PRIMARY KEY, capital int,
    FOREIGN KEY (capital) REFERENCES {mariadb.name}.city (id) ON DELETE CASCADE);
INSERT INTO city VALUES (1);
INSERT INTO {other}.country VALUES (7, 1)"""
    )
    with (
        mariadb.cleaner(strategy=strategy) as cleaner,
        pytest.raises(ExcludedTableError, match=f"{other}.country"),
    ):
        cleaner.clean()
    assert mariadb.execute(f"SELECT * FROM {other}.country") == [(7, 1)]


@every
def test_an_excluded_parent_of_a_cleaned_child_is_kept(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(
        """CREATE TABLE city (id int PRIMARY KEY);
CREATE TABLE street (city int NOT NULL, FOREIGN KEY (city) REFERENCES city (id));
INSERT INTO city VALUES (1);
INSERT INTO street VALUES (1)"""
    )
    with mariadb.cleaner(strategy=strategy, exclude=["city"]) as cleaner:
        cleaner.clean()
    assert (mariadb.count("city"), mariadb.count("street")) == (1, 0)


# -- kinds ------------------------------------------------------------------------------------


@every
@pytest.mark.parametrize("engine", ["MyISAM", "Aria", "MEMORY"])
def test_tables_without_transactions_are_emptied_too(
    mariadb: MariaDatabase, strategy: str, engine: str
) -> None:
    mariadb.execute(
        f"""CREATE TABLE plain (id int AUTO_INCREMENT PRIMARY KEY) ENGINE = {engine};
CREATE TABLE one (id int AUTO_INCREMENT PRIMARY KEY);
INSERT INTO plain VALUES (), ();
INSERT INTO one VALUES ()"""
    )
    cleaned(mariadb, strategy, "plain", "one")
    assert mariadb.counter("plain") == 1


@every
def test_a_failure_leaves_tables_without_transactions_as_they_were(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(
        """CREATE TABLE plain (id int) ENGINE = MyISAM;
CREATE TABLE city (id int PRIMARY KEY);
CREATE TABLE country (capital int, FOREIGN KEY (capital) REFERENCES city (id));
INSERT INTO plain VALUES (1);
INSERT INTO city VALUES (1);
INSERT INTO country VALUES (1)"""
    )
    with (
        mariadb.cleaner(strategy=strategy, exclude=["country"]) as cleaner,
        pytest.raises(ExcludedTableError),
    ):
        cleaner.clean()
    assert mariadb.count("plain") == 1


@deleting
def test_of_a_system_versioned_table_no_history_stays(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(
        """CREATE TABLE price (id int AUTO_INCREMENT PRIMARY KEY, n int) WITH SYSTEM VERSIONING;
INSERT INTO price (n) VALUES (1), (2);
UPDATE price SET n = 3"""
    )
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.clean()
        assert mariadb.count("price FOR SYSTEM_TIME ALL") == 0
        assert mariadb.counter("price") == 1
        mariadb.execute("INSERT INTO price (n) VALUES (1); DELETE FROM price")
        with pytest.raises(NotCleanError):
            cleaner.verify()
        cleaner.clean()
        assert mariadb.count("price FOR SYSTEM_TIME ALL") == 0
        cleaner.verify()


def test_truncate_refuses_a_system_versioned_table_by_name(mariadb: MariaDatabase) -> None:
    mariadb.execute("CREATE TABLE price (id int PRIMARY KEY) WITH SYSTEM VERSIONING")
    with (
        mariadb.cleaner(strategy="truncate") as cleaner,
        pytest.raises(StrategyRefusedError, match="price: it is system-versioned"),
    ):
        cleaner.clean()


@every
def test_views_and_partitions_and_generated_columns(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(
        """CREATE TABLE log (id int AUTO_INCREMENT, day date, PRIMARY KEY (id, day),
    double_id int AS (day + 1) VIRTUAL, hidden int INVISIBLE DEFAULT 3, CHECK (hidden > 0))
    PARTITION BY RANGE (year(day)) (
    PARTITION a VALUES LESS THAN (2020), PARTITION b VALUES LESS THAN MAXVALUE);
CREATE VIEW seen AS SELECT * FROM log;
INSERT INTO log (day) VALUES ('2019-01-01'), ('2024-01-01')"""
    )
    cleaned(mariadb, strategy, "log")
    assert mariadb.counter("log") == 1
    with mariadb.cleaner() as cleaner:
        assert cleaner.plan().tables == ("log",)


@every
def test_alembic_s_table_stays_under_whatever_name(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(
        """CREATE TABLE alembic_version (version_num varchar(32) PRIMARY KEY);
CREATE TABLE versions_of_ours (version_num varchar(32) PRIMARY KEY);
INSERT INTO alembic_version VALUES ('a');
INSERT INTO versions_of_ours VALUES ('b')"""
    )
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.clean()
    assert mariadb.count("alembic_version") == mariadb.count("versions_of_ours") == 1


# -- triggers ---------------------------------------------------------------------------------

AUDIT = """CREATE TABLE audit (n int);
CREATE TABLE watched (id int AUTO_INCREMENT PRIMARY KEY);
CREATE TRIGGER noted AFTER DELETE ON watched FOR EACH ROW INSERT INTO audit VALUES (OLD.id);
INSERT INTO watched VALUES (), ();
INSERT INTO audit VALUES (0)"""
RAISES = """CREATE TABLE watched (id int AUTO_INCREMENT PRIMARY KEY);
CREATE TRIGGER kept BEFORE DELETE ON watched FOR EACH ROW SIGNAL SQLSTATE '45000';
INSERT INTO watched VALUES (), ()"""


@pytest.mark.parametrize("strategy", ["auto", "truncate"])
@pytest.mark.parametrize("schema", [AUDIT, RAISES], ids=["writes", "raises"])
def test_delete_triggers_don_t_fire(mariadb: MariaDatabase, strategy: str, schema: str) -> None:
    mariadb.execute(schema)
    cleaned(mariadb, strategy, "watched")
    if schema is AUDIT:
        assert mariadb.count("audit") == 0


@pytest.mark.parametrize("strategy", ["delete", "replica"])
def test_a_table_whose_trigger_would_fire_is_refused_by_name(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(AUDIT)
    with (
        mariadb.cleaner(strategy=strategy) as cleaner,
        pytest.raises(StrategyRefusedError, match=r'watched: trigger noted .* "auto" can'),
    ):
        cleaner.clean()
    assert mariadb.count("watched") == 2


def test_a_parent_with_a_trigger_is_truncated_after_its_children(mariadb: MariaDatabase) -> None:
    mariadb.execute(RAISES)
    mariadb.execute(
        """CREATE TABLE child (id int, FOREIGN KEY (id) REFERENCES watched (id));
INSERT INTO child VALUES (1)"""
    )
    cleaned(mariadb, "auto", "watched", "child")


def test_a_parent_of_a_table_that_has_to_be_truncated_goes_with_it(mariadb: MariaDatabase) -> None:
    mariadb.execute(
        """CREATE TABLE parent (id int AUTO_INCREMENT PRIMARY KEY);
CREATE TABLE log (id int);
CREATE TABLE child (id int, parent int NOT NULL, FOREIGN KEY (parent) REFERENCES parent (id));
CREATE TRIGGER fires AFTER DELETE ON child FOR EACH ROW INSERT INTO log VALUES (1);
INSERT INTO parent VALUES ();
INSERT INTO child VALUES (1, 1)"""
    )
    cleaned(mariadb, "auto", "parent", "child")
    assert mariadb.count("log") == 0


# -- names ------------------------------------------------------------------------------------

ODD = ("Mixed Case", "order", "a.b", "back`tick", "quo'te", "back\\slash", "naïve ☃", "per%cent")


@every
def test_a_table_may_be_called_like_anything_that_a_statement_calls_it(
    mariadb: MariaDatabase, strategy: str
) -> None:
    names = ("c", "p", "t", "c0", "p0", "c1", "p1", "b")
    for name in names:
        mariadb.execute(
            f"""CREATE TABLE {name} (id int AUTO_INCREMENT PRIMARY KEY, {name} int,
    FOREIGN KEY ({name}) REFERENCES {name} (id));
INSERT INTO {name} VALUES (1, 1)"""
        )
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.capture(tables=["c", "p0", "t"])
        for name in names:
            mariadb.execute(f"INSERT INTO {name} VALUES (5, 5)")
        cleaner.clean()
        cleaner.verify()
        assert [mariadb.count(name) for name in names] == [1, 0, 1, 0, 1, 0, 0, 0]


@every
def test_whatever_a_table_is_called(mariadb: MariaDatabase, strategy: str) -> None:
    quoted = {name: "`" + name.replace("`", "``") + "`" for name in ODD}
    cursor = mariadb.connect().cursor()
    for name in quoted.values():
        cursor.execute(f"CREATE TABLE {name} (`a b``c` int AUTO_INCREMENT PRIMARY KEY)")
        cursor.execute(f"INSERT INTO {name} VALUES ()")
    with mariadb.cleaner(strategy=strategy) as cleaner:
        report = cleaner.clean()
        assert set(report.tables) == set(ODD)
        assert len(report.sequences) == len(ODD)
        cleaner.verify()
    for name in quoted.values():
        cursor.execute(f"SELECT count(*) FROM {name}")
        assert cursor.fetchall() == ((0,),)
    cursor.connection.close()


def test_metadata_selects_by_name_with_and_without_the_database(mariadb: MariaDatabase) -> None:
    mariadb.execute("CREATE TABLE one (id int); CREATE TABLE two (id int)")
    mariadb.execute("INSERT INTO one VALUES (1); INSERT INTO two VALUES (1)")
    metadata = MetaData()
    Table("one", metadata, Column("id", Integer), schema=mariadb.name)
    with mariadb.cleaner(metadata) as cleaner:
        report = cleaner.clean()
        assert any("two" in warning for warning in report.warnings)
    assert (mariadb.count("one"), mariadb.count("two")) == (0, 1)


def test_a_table_of_another_database_is_never_touched(mariadb: MariaDatabase) -> None:
    other = mariadb.another()
    mariadb.execute(f"CREATE TABLE {other}.one (id int); INSERT INTO {other}.one VALUES (1)")
    metadata = MetaData()
    Table("one", metadata, Column("id", Integer), schema=other)
    with mariadb.cleaner(metadata) as cleaner:
        report = cleaner.clean()
        assert any(f"{other}.one" in warning for warning in report.warnings)
    assert mariadb.count(f"{other}.one") == 1


# -- counters ---------------------------------------------------------------------------------


@every
def test_counters_of_tables_that_the_test_has_emptied_itself(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(
        """CREATE TABLE parent (id int AUTO_INCREMENT PRIMARY KEY);
CREATE TABLE child (id int AUTO_INCREMENT PRIMARY KEY, parent int,
    FOREIGN KEY (parent) REFERENCES parent (id));
CREATE TABLE idle (id int AUTO_INCREMENT PRIMARY KEY);
INSERT INTO parent VALUES ();
INSERT INTO child VALUES (9, 1);
DELETE FROM child;
DELETE FROM parent"""
    )
    with mariadb.cleaner(strategy=strategy) as cleaner:
        report = cleaner.clean()
        assert set(report.sequences) == {"parent.id", "child.id"}
        assert cleaner.clean().sequences == ()
    assert [mariadb.counter(t) for t in ("parent", "child", "idle")] == [1, 1, 1]


@every
def test_counters_go_on_where_they_are_not_to_be_reset(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute("CREATE TABLE one (id int AUTO_INCREMENT PRIMARY KEY)")
    mariadb.execute("INSERT INTO one VALUES (), ()")
    with mariadb.cleaner(strategy=strategy, reset_sequences=False) as cleaner:
        assert cleaner.clean().sequences == ()
    assert (mariadb.count("one"), mariadb.counter("one")) == (0, 3)


@every
def test_real_sequences_go_back_to_their_start(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(
        """CREATE SEQUENCE number START 1000 INCREMENT 5;
CREATE SEQUENCE round MINVALUE 1 MAXVALUE 2 CYCLE NOCACHE;
CREATE TABLE one (id int DEFAULT NEXTVAL(number) PRIMARY KEY);
INSERT INTO one VALUES (), ()"""
    )
    mariadb.execute("SELECT NEXTVAL(round); SELECT NEXTVAL(round); SELECT NEXTVAL(round)")
    with mariadb.cleaner(strategy=strategy) as cleaner:
        report = cleaner.clean()
        assert set(report.sequences) == {"number", "round"}
        cleaner.verify()
        assert mariadb.scalar("SELECT NEXTVAL(number)") == 1000
        with pytest.raises(NotCleanError, match="sequence number"):
            cleaner.verify()
        cleaner.clean()
    assert mariadb.scalar("SELECT NEXTVAL(number)") == 1000


@deleting
def test_rows_that_no_counter_knows_of(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(
        """CREATE TABLE one (id int AUTO_INCREMENT PRIMARY KEY);
INSERT INTO one VALUES (-5);
SET sql_mode = 'NO_AUTO_VALUE_ON_ZERO';
INSERT INTO one VALUES (0);
SET sql_mode = DEFAULT"""
    )
    cleaned(mariadb, strategy, "one")


def test_a_table_with_many_rows_is_truncated_by_auto(mariadb: MariaDatabase) -> None:
    mariadb.execute(
        """CREATE TABLE many (id int AUTO_INCREMENT PRIMARY KEY, filler char(200) DEFAULT 'x');
CREATE TABLE child (many int, FOREIGN KEY (many) REFERENCES many (id));
INSERT INTO many (id) SELECT seq FROM seq_1_to_20000;
INSERT INTO child VALUES (5);
ANALYZE TABLE many"""
    )
    with mariadb.cleaner() as cleaner:
        report = cleaner.clean()
        assert report.truncated == ("many",)
        assert set(report.tables) == {"many", "child"}
        cleaner.verify()


# -- a schema that changes ----------------------------------------------------------------------

Change = Callable[[MariaDatabase], object]


@pytest.mark.parametrize("strategy", ["auto", "truncate"])
@pytest.mark.parametrize(
    "change",
    [
        "CREATE TABLE three (id int AUTO_INCREMENT PRIMARY KEY); INSERT INTO three VALUES ()",
        "DROP TABLE two",
        "DROP TABLE two; CREATE TABLE two (id bigint); INSERT INTO two VALUES (1)",
        "ALTER TABLE two ADD FOREIGN KEY (one) REFERENCES one (id)",
        "ALTER TABLE two ADD CONSTRAINT k FOREIGN KEY (one) REFERENCES two (id);"
        " ALTER TABLE two DROP FOREIGN KEY k",
        "RENAME TABLE two TO deux",
        "CREATE TEMPORARY TABLE two (id int)",
        "CREATE VIEW three AS SELECT * FROM one",
        "DROP TABLE two; CREATE SEQUENCE two; SELECT NEXTVAL(two)",
    ],
)
def test_a_change_of_the_schema_is_noticed(
    mariadb: MariaDatabase, strategy: str, change: str
) -> None:
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY)")
    mariadb.execute("CREATE TABLE two (id int AUTO_INCREMENT PRIMARY KEY, one int)")
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.clean()
        mariadb.execute("INSERT INTO one VALUES (1); INSERT INTO two VALUES (1, 1)")
        mariadb.execute(change)
        cleaner.clean()
        tables = cleaner.plan().tables
        with mariadb.cleaner() as fresh:
            assert set(tables) == set(fresh.plan().tables)
            fresh.verify()


def test_a_change_is_noticed_by_each_of_those_who_share_a_connection(
    mariadb: MariaDatabase,
) -> None:
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY)")
    with mariadb.cleaner() as cleaner:
        other = cleaner.using(strategy="delete")
        cleaner.clean()
        other.clean()
        mariadb.execute("CREATE TABLE two (id int PRIMARY KEY)")
        other.clean()
        mariadb.execute("INSERT INTO two VALUES (1)")
        assert cleaner.clean().tables == ("two",)


def test_a_child_that_comes_later_outside_the_target_is_never_changed(
    mariadb: MariaDatabase,
) -> None:
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY)")
    metadata = MetaData()
    Table("one", metadata, Column("id", Integer))
    with mariadb.cleaner(metadata) as cleaner:
        cleaner.clean()
        mariadb.execute(
            """CREATE TABLE late (one int, FOREIGN KEY (one) REFERENCES one (id) ON DELETE CASCADE);
INSERT INTO one VALUES (1);
INSERT INTO late VALUES (1)"""
        )
        with pytest.raises(ExcludedTableError, match="late"):
            cleaner.clean()
    assert mariadb.count("late") == 1


def test_a_trigger_that_comes_later_does_not_fire(mariadb: MariaDatabase) -> None:
    mariadb.execute("CREATE TABLE watched (id int PRIMARY KEY)")
    with mariadb.cleaner() as cleaner:
        cleaner.clean()
        mariadb.execute(
            """INSERT INTO watched VALUES (1);
CREATE TRIGGER kept BEFORE DELETE ON watched FOR EACH ROW SIGNAL SQLSTATE '45000'"""
        )
        cleaner.clean()
    assert mariadb.count("watched") == 0


def test_a_table_that_is_damaged_is_an_error_with_a_remedy(mariadb: MariaDatabase) -> None:
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY)")
    data = mariadb.server.directory / "data" / mariadb.name
    with mariadb.cleaner() as cleaner:
        mariadb.execute("FLUSH TABLES")
        (data / "one.frm").write_bytes(b"")
        with pytest.raises(CleanerError) as raised:
            cleaner.clean()
        assert raised.value.remedy
