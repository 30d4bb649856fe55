"""A user with privileges on one database only, or less; and a server that takes one statement at a
time, as MySQL does.
"""

from __future__ import annotations

import pytest
from support.mariadb import MariaDatabase

from cleaner.dialects.mysql.flavour import MariaDB, MySQL
from cleaner.errors import CleanerError

STRATEGIES = ("auto", "delete", "truncate", "replica")
every = pytest.mark.parametrize("strategy", STRATEGIES)
SCHEMA = """CREATE TABLE parent (id int AUTO_INCREMENT PRIMARY KEY, boss int NOT NULL,
    FOREIGN KEY (boss) REFERENCES parent (id));
CREATE TABLE child (id int AUTO_INCREMENT PRIMARY KEY, parent int,
    FOREIGN KEY (parent) REFERENCES parent (id));
CREATE TABLE plain (id int AUTO_INCREMENT PRIMARY KEY) ENGINE = MyISAM;
CREATE TABLE seed (id int AUTO_INCREMENT PRIMARY KEY, name varchar(9));
CREATE SEQUENCE number;
INSERT INTO seed (name) VALUES ('one'), ('two')"""
ROWS = """INSERT INTO parent VALUES (1, 1), (2, 1);
INSERT INTO child VALUES (1, 2);
INSERT INTO plain VALUES ();
UPDATE seed SET name = 'changed';
SELECT NEXTVAL(number)"""


def captures_and_cleans(mariadb: MariaDatabase, strategy: str, user: str) -> None:
    mariadb.execute(SCHEMA)
    with mariadb.cleaner(strategy=strategy, user=user) as cleaner:
        cleaner.capture()
        for _ in range(2):
            mariadb.execute(ROWS)
            report = cleaner.clean()
            assert {"parent", "child", "plain", "seed"} <= set(report.tables)
            assert set(report.sequences) == {"parent.id", "child.id", "plain.id", "number"}
            cleaner.verify()
        assert mariadb.execute("SELECT name FROM seed ORDER BY id") == [("one",), ("two",)]
        cleaner.release()
    with mariadb.cleaner(strategy=strategy, user=user) as cleaner:
        cleaner.clean()
        cleaner.verify()


@every
def test_all_on_one_database_is_enough(mariadb: MariaDatabase, strategy: str) -> None:
    captures_and_cleans(mariadb, strategy, mariadb.plain_user())


@every
def test_a_server_that_takes_one_statement_at_a_time(
    mariadb: MariaDatabase, strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MariaDB, "messages", MySQL.messages)
    monkeypatch.setattr(MariaDB, "seconds", MySQL.seconds)
    captures_and_cleans(mariadb, strategy, "root")


@pytest.mark.parametrize("strategy", ["delete", "replica"])
def test_rows_need_no_privilege_but_select_and_delete(
    mariadb: MariaDatabase, strategy: str
) -> None:
    user = mariadb.plain_user()
    mariadb.execute(f"REVOKE ALL ON {mariadb.name}.* FROM {user}")
    mariadb.execute(f"GRANT SELECT, DELETE ON {mariadb.name}.* TO {user}")
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY); INSERT INTO one VALUES (1)")
    with mariadb.cleaner(strategy=strategy, user=user) as cleaner:
        assert cleaner.clean().tables == ("one",)
        cleaner.verify()


@every
def test_a_privilege_that_lacks_is_named_and_nothing_is_done(
    mariadb: MariaDatabase, strategy: str
) -> None:
    user = mariadb.plain_user()
    mariadb.execute(f"REVOKE ALL ON {mariadb.name}.* FROM {user}")
    mariadb.execute(f"GRANT SELECT ON {mariadb.name}.* TO {user}")
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY); INSERT INTO one VALUES (1)")
    with (
        mariadb.cleaner(strategy=strategy, user=user) as cleaner,
        pytest.raises(CleanerError, match="command denied") as raised,
    ):
        cleaner.clean()
    assert raised.value.remedy.startswith(f"GRANT ALL PRIVILEGES ON `{mariadb.name}`.* TO")
    assert mariadb.count("one") == 1


def test_counters_without_the_privilege_to_lock_tables(mariadb: MariaDatabase) -> None:
    user = mariadb.plain_user()
    mariadb.execute(f"REVOKE LOCK TABLES ON {mariadb.name}.* FROM {user}")
    mariadb.execute(SCHEMA)
    mariadb.execute(ROWS)
    with mariadb.cleaner(user=user) as cleaner:
        cleaner.clean()
        cleaner.verify()
    assert mariadb.counter("parent") == 1


def test_a_server_that_is_read_only_is_said_to_be(mariadb: MariaDatabase) -> None:
    user = mariadb.plain_user()
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY); INSERT INTO one VALUES (1)")
    mariadb.execute("SET GLOBAL read_only = ON")
    try:
        with mariadb.cleaner(user=user) as cleaner:
            with pytest.raises(CleanerError, match="read-only") as raised:
                cleaner.clean()
            assert raised.value.remedy == "SET GLOBAL read_only = OFF"
            mariadb.execute(raised.value.remedy)
            assert cleaner.clean().tables == ("one",)
    finally:
        mariadb.execute("SET GLOBAL read_only = OFF")


def test_health_says_what_can_t_be_seen(mariadb: MariaDatabase) -> None:
    user = mariadb.plain_user()
    mariadb.execute("CREATE TABLE one (id int)")
    with mariadb.cleaner(user=user) as cleaner:
        assert "GRANT PROCESS" in cleaner._session.health().unseen
        assert not cleaner._session.health().superuser
    with (
        mariadb.transaction("INSERT INTO one VALUES (1)") as cursor,
        mariadb.cleaner() as cleaner,
    ):
        health = cleaner._session.health()
        assert [blocker.pid for blocker in health.idle] == [cursor.connection.thread_id()]
        assert not health.unseen


def test_the_schema_is_described_line_by_line(mariadb: MariaDatabase) -> None:
    mariadb.execute(SCHEMA)
    with mariadb.cleaner() as cleaner:
        before = cleaner.describe()
        mariadb.execute("INSERT INTO seed (name) VALUES ('three')")
        cleaner.capture()
        assert cleaner.describe() == before
        mariadb.execute("ALTER TABLE child ADD COLUMN late int; DROP TABLE plain")
        changed = cleaner.describe() ^ before
        assert "in `child`: `late` int(11) DEFAULT NULL" in changed
        assert "table `plain`" in changed
