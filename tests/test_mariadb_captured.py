"""Captured baselines: rows and counters that every clean puts back."""

from __future__ import annotations

import random
from typing import Any

import pymysql
import pytest
from support.mariadb import MariaDatabase

from cleaner.errors import (
    BlockedError,
    ExcludedTableError,
    NotCleanError,
    SchemaChangedError,
    StrategyRefusedError,
)

STRATEGIES = ("auto", "delete", "truncate", "replica")
every = pytest.mark.parametrize("strategy", STRATEGIES)
ROLES = """CREATE TABLE role (id int AUTO_INCREMENT PRIMARY KEY, name varchar(20), boss int,
    FOREIGN KEY (boss) REFERENCES role (id));
CREATE TABLE member (id int AUTO_INCREMENT PRIMARY KEY, role int NOT NULL,
    FOREIGN KEY (role) REFERENCES role (id) ON DELETE CASCADE);
INSERT INTO role VALUES (1, 'admin', 1), (2, 'guest', 1)"""


def ours(mariadb: MariaDatabase) -> int:
    return len(mariadb.execute("SHOW TABLES LIKE 'cleaner!_baseline%'".replace("!", "\\")))


@pytest.mark.parametrize("strategy", ["auto", "truncate"])
@pytest.mark.parametrize(
    "change",
    [
        "UPDATE role SET name = 'x' WHERE id = 2",
        "UPDATE role SET name = 'ADMIN' WHERE id = 1",
        "UPDATE role SET name = NULL",
        "DELETE FROM role WHERE id = 2",
        "INSERT INTO role (name) VALUES ('new')",
        "DELETE FROM role WHERE id = 2; INSERT INTO role VALUES (3, 'guest', 1)",
        "UPDATE role SET boss = 2 WHERE id = 1; INSERT INTO member (role) VALUES (2)",
        "SET foreign_key_checks = 0; TRUNCATE TABLE role; SET foreign_key_checks = 1",
        "INSERT INTO role (name) VALUES ('x'); DELETE FROM role WHERE name = 'x'",
    ],
)
def test_every_change_is_undone(mariadb: MariaDatabase, strategy: str, change: str) -> None:
    mariadb.execute(ROLES)
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.capture()
        assert cleaner.captured == {"role": 2}
        assert cleaner.clean().tables == (() if strategy != "truncate" else ("member",))
        mariadb.execute(change)
        assert cleaner.diff()
        cleaner.clean()
        assert mariadb.execute("SELECT * FROM role ORDER BY id") == [
            (1, "admin", 1),
            (2, "guest", 1),
        ]
        assert (mariadb.counter("role"), mariadb.counter("member")) == (3, 1)
        cleaner.verify()
        with mariadb.cleaner(strategy=strategy) as another:
            another.verify()


def test_release_forgets_and_leaves_nothing(mariadb: MariaDatabase) -> None:
    mariadb.execute(ROLES)
    with mariadb.cleaner() as cleaner, mariadb.cleaner() as another:
        cleaner.capture()
        another.clean()
        assert mariadb.count("role") == 2
        assert ours(mariadb) == 2
        cleaner.release()
        assert ours(mariadb) == 0
        assert mariadb.count("role") == 2
        another.clean()
        assert mariadb.count("role") == 0
        cleaner.release()


def test_capture_again_replaces_and_of_one_table_only_adds(mariadb: MariaDatabase) -> None:
    mariadb.execute(ROLES)
    with mariadb.cleaner() as cleaner:
        cleaner.capture()
        mariadb.execute("DELETE FROM role WHERE id = 2; INSERT INTO member (role) VALUES (1)")
        cleaner.capture(tables=["member"])
        assert cleaner.captured == {"role": 2, "member": 1}
        cleaner.clean()
        assert (mariadb.count("role"), mariadb.count("member")) == (2, 1)
        assert mariadb.counter("member") == 2
        cleaner.capture()
        cleaner.capture()
        assert ours(mariadb) == 3
        mariadb.execute("DELETE FROM member; UPDATE role SET boss = NULL; DELETE FROM role")
        cleaner.capture()
        assert cleaner.captured == {}
        cleaner.clean()
        assert mariadb.count("role") == 0


KINDS = """CREATE TABLE kinds (id bigint unsigned AUTO_INCREMENT PRIMARY KEY, t tinyint(1),
    de decimal(30, 10), f float, d double, b bit(9), c char(5), v varchar(20) COLLATE utf8mb4_bin,
    l varchar(20) CHARACTER SET latin1, tx longtext, bi binary(4), vb varbinary(20), bl longblob,
    e enum('a', 'b', ''), s set('x', 'y'), dt datetime(6), ts timestamp(3) NULL, da date,
    ti time(6), y year, j json, g geometry, u uuid, i inet6, n int INVISIBLE DEFAULT 4,
    gv int AS (t + 1) VIRTUAL, gs varchar(30) AS (concat(v, '!')) STORED)"""
VALUES = """0, 1, -12345.0000000001, 1.1, -0e0, b'101010101', 'a ', 'a\\'ß☃', 'ü',
    'long', 'ab', x'00ff', x'00ff00', 'a', 'x,y', '2020-01-01 10:00:00.123456',
    '2020-06-01 10:00:00.123', '0000-00-00', '-10:00:00.5', 2020, '{"a": [1, 2]}',
    ST_GeomFromText('POINT(1 2)'), uuid(), '::1'"""


def test_every_type_comes_back_to_the_last_bit(mariadb: MariaDatabase) -> None:
    connection = mariadb.connect(sql_mode="NO_AUTO_VALUE_ON_ZERO")
    cursor = connection.cursor()
    cursor.execute(KINDS)
    cursor.execute(
        "INSERT INTO kinds (id, t, de, f, d, b, c, v, l, tx, bi, vb, bl, e, s, dt, ts, da, ti, y,"
        f" j, g, u, i) VALUES ({VALUES})"
    )
    cursor.execute("INSERT INTO kinds (id) VALUES (7)")
    changes = {
        "t": "0", "de": "de + 0.0000000001", "f": "1.1000001", "d": "1e-300", "b": "b + 1",
        "c": "'A'", "v": "concat(v, ' ')", "l": "'u'", "tx": "'Long'", "bi": "'AB'",
        "vb": "x'00ff00'", "bl": "x'00ff'", "e": "''", "s": "'x'",
        "dt": "dt + interval 1 microsecond",
        "ts": "ts + interval 1000 microsecond", "da": "NULL", "ti": "'-10:00:00.6'", "y": "2021",
        "j": "'{}'", "g": "ST_GeomFromText('POINT(1 3)')", "u": "uuid()", "i": "'::2'", "n": "5",
    }  # fmt: skip
    every_column = "SELECT *, n, hex(b), hex(bl), hex(g) FROM kinds ORDER BY id"
    cursor.execute(every_column)
    before = cursor.fetchall()
    with mariadb.cleaner() as cleaner:
        cleaner.capture()
        assert not cleaner.diff()
        for column, value in changes.items():
            cursor.execute(f"UPDATE kinds SET {column} = {value} WHERE id = 0")
            assert "kinds: 1 row changed" in str(cleaner.diff()), column
            assert cleaner.clean().tables == ("kinds",), column
            cursor.execute(every_column)
            assert cursor.fetchall() == before, column
            cleaner.verify()
    connection.close()


@every
def test_rows_that_nothing_tells_apart(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute("CREATE TABLE loose (a int, b varchar(9)); INSERT INTO loose VALUES (1, 'x')")
    mariadb.execute("INSERT INTO loose VALUES (1, 'x'), (NULL, NULL)")
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.capture()
        mariadb.execute("DELETE FROM loose LIMIT 1; INSERT INTO loose VALUES (NULL, NULL)")
        diff = cleaner.diff()
        (table,) = diff.tables
        assert (table.added, table.changed, table.gone) == (1, 0, 1)
        assert "a=NULL, b=NULL" in str(diff)
        assert cleaner.clean().tables == ("loose",)
        assert sorted(mariadb.execute("SELECT count(*), b FROM loose GROUP BY b")) == [
            (1, None), (2, "x"),
        ]  # fmt: skip
        cleaner.verify()


def test_the_difference_is_told_row_by_row(mariadb: MariaDatabase) -> None:
    mariadb.execute(ROLES)
    with mariadb.cleaner() as cleaner:
        cleaner.capture()
        mariadb.execute("UPDATE role SET name = 'boss' WHERE id = 1")
        mariadb.execute("INSERT INTO role (name, boss) VALUES ('new', 2)")
        mariadb.execute("INSERT INTO member (role) VALUES (3), (3)")
        assert str(cleaner.diff()) == (
            "member: 2 rows\n  + id=1, role=3\n  + id=2, role=3\n"
            "role: 1 row added, 1 changed\n  + id=3, name=new, boss=2\n"
            "  ~ id=1: name: admin -> boss\n"
            "sequence member.id: before 1 -> 2\nsequence role.id: 2 -> 3"
        )
        with pytest.raises(NotCleanError, match="member: 2 rows"):
            cleaner.verify()


@pytest.mark.parametrize(
    ("schema", "reason"),
    [
        ("CREATE TABLE seed (id int) ENGINE = MyISAM", "no transactions"),
        ("CREATE TABLE seed (id int) WITH SYSTEM VERSIONING", "system-versioned"),
        (
            "CREATE TABLE seed (id int); CREATE TRIGGER t BEFORE INSERT ON seed FOR EACH ROW"
            " SET NEW.id = 1",
            "trigger t would fire",
        ),
    ],
)
def test_what_could_not_be_put_back_is_refused_by_name(
    mariadb: MariaDatabase, schema: str, reason: str
) -> None:
    mariadb.execute(f"{schema}; CREATE TABLE other (id int)")
    with mariadb.cleaner() as cleaner:
        cleaner.capture()
        mariadb.execute("INSERT INTO seed VALUES (1); INSERT INTO other VALUES (1)")
        with pytest.raises(StrategyRefusedError, match=f"seed can't be captured: .*{reason}"):
            cleaner.capture()
        assert cleaner.captured == {}


def test_rows_that_refer_to_what_is_deleted_can_t_be_captured(mariadb: MariaDatabase) -> None:
    mariadb.execute(f"{ROLES}; INSERT INTO member (role) VALUES (2)")
    with mariadb.cleaner() as cleaner:
        with pytest.raises(StrategyRefusedError, match="they refer to role"):
            cleaner.capture(tables=["member"])
        assert ours(mariadb) == 0
        assert cleaner.captured == {}


@pytest.mark.parametrize(
    "change",
    ["DROP TABLE seed", "ALTER TABLE seed DROP COLUMN b", "ALTER TABLE seed MODIFY b bigint"],
)
def test_captured_rows_that_have_nowhere_to_go(mariadb: MariaDatabase, change: str) -> None:
    mariadb.execute("CREATE TABLE seed (a int, b int); INSERT INTO seed VALUES (1, 2)")
    mariadb.execute("CREATE TABLE other (id int); INSERT INTO other VALUES (1)")
    with mariadb.cleaner() as cleaner:
        cleaner.capture()
        mariadb.execute(change)
        with pytest.raises(SchemaChangedError, match="seed"):
            cleaner.clean()


def test_a_child_outside_that_refers_to_a_new_row(mariadb: MariaDatabase) -> None:
    mariadb.execute(ROLES)
    with mariadb.cleaner(exclude=["member"]) as cleaner:
        cleaner.capture()
        mariadb.execute("INSERT INTO member (role) VALUES (2)")
        cleaner.clean()
        mariadb.execute("UPDATE role SET name = 'x'")
        cleaner.clean()
        assert mariadb.execute("SELECT role FROM member") == [(2,)]
        mariadb.execute("INSERT INTO role (name) VALUES ('x')")
        mariadb.execute("INSERT INTO member (role) SELECT MAX(id) FROM role")
        with pytest.raises(ExcludedTableError, match="member"):
            cleaner.clean()
        assert mariadb.count("member") == 2


def test_a_change_that_is_not_committed_is_waited_for(mariadb: MariaDatabase) -> None:
    mariadb.execute(ROLES)
    with mariadb.cleaner(lock_timeout=0.3, retries=2) as cleaner:
        cleaner.capture()
        with mariadb.transaction("UPDATE role SET name = 'x' WHERE id = 2"):
            with pytest.raises(BlockedError):
                cleaner.clean()
            with pytest.raises(BlockedError):
                cleaner.capture()
        cleaner.verify()


def test_real_sequences_come_back_to_the_captured_value(mariadb: MariaDatabase) -> None:
    mariadb.execute("CREATE SEQUENCE number START 10; SELECT NEXTVAL(number)")
    with mariadb.cleaner() as cleaner:
        cleaner.capture()
        for _ in range(2):
            assert mariadb.scalar("SELECT NEXTVAL(number)") == 11
            assert cleaner.clean().sequences == ("number",)
            cleaner.verify()


@every
def test_random_histories(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(ROLES)
    mariadb.execute(
        "INSERT INTO role SELECT seq + 2, concat('r', seq), 1 + seq % 2 FROM seq_1_to_50"
    )
    mariadb.execute("INSERT INTO member SELECT seq, 1 + seq % 50 FROM seq_1_to_80")
    dice = random.Random(7)

    def state() -> Any:
        return [mariadb.execute(f"SELECT * FROM {t} ORDER BY id") for t in ("role", "member")]

    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.capture()
        before = state()
        for _ in range(12):
            for _ in range(dice.randrange(4)):
                table = dice.choice(["role", "member"])
                number = dice.randrange(60)
                column, value = (
                    ("name", "'z'") if table == "role" else ("role", str(number % 9 + 1))
                )
                statement = dice.choice(
                    [
                        f"UPDATE {table} SET {column} = {value} WHERE id > {number}",
                        f"DELETE FROM {table} WHERE id = {number}",
                        f"INSERT INTO {table} ({column}) VALUES ({value})",
                    ]
                )
                try:
                    mariadb.execute(statement)
                except pymysql.err.IntegrityError:
                    continue
            cleaner.clean()
            assert state() == before
            assert (mariadb.counter("role"), mariadb.counter("member")) == (53, 81)
            cleaner.verify()


@every
def test_a_captured_table_may_take_its_numbers_from_a_sequence(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(
        """CREATE SEQUENCE numbers;
CREATE TABLE seed (id int DEFAULT NEXTVAL(numbers) PRIMARY KEY, n int AUTO_INCREMENT UNIQUE);
INSERT INTO seed (n) VALUES (1)"""
    )
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.capture()
        mariadb.execute("INSERT INTO seed (n) VALUES (5)")
        cleaner.clean()
        cleaner.verify()
        mariadb.execute("INSERT INTO seed (n) VALUES (NULL)")
        assert mariadb.execute("SELECT * FROM seed ORDER BY id") == [(1, 1), (2, 2)]


@every
def test_captured_rows_whose_excluded_parents_are_gone_are_no_orphans_then(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(ROLES)
    mariadb.execute("INSERT INTO member (role) VALUES (1), (2)")
    with mariadb.cleaner(strategy=strategy, exclude=["role"]) as cleaner:
        cleaner.capture()
        mariadb.execute("DELETE FROM role WHERE id = 2")
        with pytest.raises(ExcludedTableError, match="rows of role that are gone"):
            cleaner.clean()
        mariadb.execute("INSERT INTO role VALUES (2, 'guest', 1)")
        cleaner.clean()
        assert mariadb.execute("SELECT id, role FROM member ORDER BY id") == [(1, 1), (2, 2)]


def test_a_look_that_was_in_vain_is_not_taken_for_another(mariadb: MariaDatabase) -> None:
    mariadb.execute(ROLES)
    with mariadb.cleaner(lock_timeout=0.2, retries=1) as cleaner:
        cleaner.clean()
        mariadb.execute("INSERT INTO role VALUES (1, 'admin', 1)")
        cleaner.capture()
        with (
            mariadb.transaction("UPDATE role SET name = 'x'"),
            pytest.raises(BlockedError),
        ):
            cleaner.clean()
        cleaner.release()
        assert cleaner.clean().tables == ("role",)
        cleaner.verify()
