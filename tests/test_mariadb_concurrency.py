"""Other sessions: what they have not committed, what they hold, and what they do meanwhile."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import signal
import threading
import time
from typing import Any

import pymysql
import pytest
from support.mariadb import MariaDatabase
from support.pools import until

from cleaner import Cleaner
from cleaner.dialects.mysql.program import lock_name
from cleaner.dialects.mysql.session import MySQLSession
from cleaner.errors import BlockedError, CleanerError, ExcludedTableError

STRESS_SECONDS = float(os.environ.get("CLEANER_STRESS_SECONDS", "1.5"))
STRATEGIES = ("auto", "delete", "truncate", "replica")
every = pytest.mark.parametrize("strategy", STRATEGIES)
ONE = "CREATE TABLE one (id int AUTO_INCREMENT PRIMARY KEY, n int)"
PLAIN = "CREATE TABLE one (id int PRIMARY KEY, n int)"


def locks(mariadb: MariaDatabase) -> int:
    """How many sessions on the database hold its lock."""

    return int(mariadb.scalar(f"SELECT IS_USED_LOCK('{lock_name(mariadb.name)}') IS NOT NULL"))


# -- what is not committed --------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["auto", "delete", "truncate"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
@pytest.mark.parametrize(
    "written",
    ["INSERT INTO one VALUES (5, 5)", "DELETE FROM one"],
    ids=["insert", "delete"],
)
def test_what_is_not_committed_is_waited_for(
    mariadb: MariaDatabase, strategy: str, end: str, written: str
) -> None:
    mariadb.execute(PLAIN)
    if not written.startswith("INSERT"):
        mariadb.execute("INSERT INTO one VALUES (1, 1)")
    with mariadb.transaction(written) as cursor:
        timer = threading.Timer(0.3, getattr(cursor.connection, end))
        timer.start()
        with mariadb.cleaner(strategy=strategy) as cleaner:
            cleaner.clean()
        timer.join()
    assert mariadb.count("one") == 0


@every
def test_a_writer_that_stays_is_named(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(f"{PLAIN}; CREATE TABLE two (id int); INSERT INTO two VALUES (1)")
    with mariadb.transaction("INSERT INTO one VALUES (5, 5)") as cursor:
        with (
            mariadb.cleaner(strategy=strategy, lock_timeout=0.4, retries=3) as cleaner,
            pytest.raises(BlockedError) as raised,
        ):
            cleaner.clean()
        (blocker,) = raised.value.blockers
        assert blocker.pid == cursor.connection.thread_id()
        assert blocker.user == "root"
        assert blocker.state == "idle in transaction"
        assert blocker.age is not None
        assert 0 <= blocker.age < 60
        assert "on_blocked" in raised.value.remedy
        assert mariadb.count("two") == 1, "all or nothing"
        assert locks(mariadb) == 0


def test_an_idle_reader_is_not_waited_for_by_a_delete(mariadb: MariaDatabase) -> None:
    mariadb.execute(f"{PLAIN}; INSERT INTO one VALUES (1, 1)")
    with (
        mariadb.transaction("SELECT * FROM one"),
        mariadb.cleaner(strategy="delete", lock_timeout=0.2) as cleaner,
    ):
        assert cleaner.clean().tables == ("one",)


@every
def test_an_idle_reader_of_a_table_whose_counter_moved_is_named_and_nothing_is_done(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(f"{ONE}; INSERT INTO one VALUES (1, 1)")
    with (
        mariadb.transaction("SELECT * FROM one"),
        mariadb.cleaner(strategy=strategy, lock_timeout=0.3, retries=2) as cleaner,
    ):
        with pytest.raises(BlockedError, match="idle in transaction"):
            cleaner.clean()
        assert mariadb.count("one") == 1
        if strategy in ("auto", "delete", "replica"):
            without = cleaner.using(reset_sequences=False)
            assert without.clean().tables == ("one",)


def test_a_blocker_that_is_idle_is_ended_where_the_settings_say_so(
    mariadb: MariaDatabase,
) -> None:
    mariadb.execute(f"{ONE}; INSERT INTO one VALUES (1, 1)")
    with contextlib.suppress(pymysql.err.Error), mariadb.transaction("SELECT * FROM one") as cursor:
        pid = cursor.connection.thread_id()
        with mariadb.cleaner(on_blocked="terminate", lock_timeout=2) as cleaner:
            report = cleaner.clean()
        assert len(report.terminated) == 1
        assert f"pid {pid} " in report.terminated[0]
    assert mariadb.count("one") == 0


def test_a_session_that_has_just_committed_is_not_ended(mariadb: MariaDatabase) -> None:
    mariadb.execute(PLAIN)
    session = MySQLSession(mariadb.url, lambda name: None, 1.0)
    with mariadb.transaction("INSERT INTO one VALUES (2, 2)") as cursor:
        (writer,) = session.blockers(None)
        assert writer.state == "idle in transaction"
        cursor.connection.commit()
        assert session.terminate((writer,)) == ()
        cursor.connection.ping(reconnect=False)
    session.close()


def test_a_session_that_is_idle_without_a_transaction_is_not_ended(
    mariadb: MariaDatabase,
) -> None:
    mariadb.execute(f"{PLAIN}; INSERT INTO one VALUES (1, 1)")
    idle = mariadb.connect()
    with (
        contextlib.suppress(pymysql.err.Error),
        mariadb.transaction("INSERT INTO one VALUES (2, 2)"),
        mariadb.cleaner(on_blocked="terminate", lock_timeout=1) as cleaner,
    ):
        assert len(cleaner.clean().terminated) == 1
    idle.ping(reconnect=False)
    idle.close()


def test_a_plain_user_is_told_who_may_be_in_the_way(mariadb: MariaDatabase) -> None:
    user = mariadb.plain_user()
    mariadb.execute(PLAIN)
    with mariadb.transaction("INSERT INTO one VALUES (5, 5)", user=user) as cursor:
        with (
            mariadb.cleaner(user=user, lock_timeout=0.3, retries=2) as cleaner,
            pytest.raises(BlockedError) as raised,
        ):
            cleaner.clean()
        assert cursor.connection.thread_id() in {b.pid for b in raised.value.blockers}


# -- one at a time ------------------------------------------------------------------------------


def test_another_clean_of_the_database_is_waited_for_and_named(mariadb: MariaDatabase) -> None:

    mariadb.execute(ONE)
    holder = mariadb.connect()
    holder.cursor().execute(f"SELECT GET_LOCK('{lock_name(mariadb.name)}', 0)")
    with mariadb.cleaner(lock_timeout=0.3, retries=2) as cleaner:
        with pytest.raises(BlockedError) as raised:
            cleaner.clean()
        assert [blocker.pid for blocker in raised.value.blockers] == [holder.thread_id()]
        threading.Timer(0.2, holder.close).start()
        cleaner.using(lock_timeout=5.0).clean()
    assert locks(mariadb) == 0


@every
@pytest.mark.parametrize("fails", [False, True], ids=["done", "failed"])
def test_no_clean_leaves_a_lock_or_a_setting(
    mariadb: MariaDatabase, strategy: str, fails: bool
) -> None:
    mariadb.execute(
        """CREATE TABLE a (id int AUTO_INCREMENT PRIMARY KEY, a int,
    FOREIGN KEY (a) REFERENCES a (id));
CREATE TABLE keeper (a int, FOREIGN KEY (a) REFERENCES a (id));
INSERT INTO a VALUES (1, 1)"""
    )
    if fails:
        mariadb.execute("INSERT INTO keeper VALUES (1)")
    with mariadb.cleaner(strategy=strategy, exclude=["keeper"] if fails else []) as cleaner:
        for _ in range(2):
            if fails:
                with pytest.raises(CleanerError):
                    cleaner.clean()
            else:
                cleaner.clean()
            session: Any = cleaner._session
            state = "@@foreign_key_checks, @@in_transaction, @@autocommit, @@sql_log_bin"
            assert session.execute(f"SELECT {state}") == [(1, 0, 1, 1)]
            assert locks(mariadb) == 0
            mariadb.execute("DELETE FROM keeper WHERE FALSE; TRUNCATE TABLE keeper")
            if fails:
                mariadb.execute("INSERT INTO keeper VALUES (1)")
    assert mariadb.scalar("SELECT @@GLOBAL.foreign_key_checks") == 1


def clean_until_killed(url: str, strategy: str) -> None:
    with Cleaner(url, strategy=strategy) as cleaner:
        while True:
            cleaner.clean()


@every
def test_a_cleaner_that_is_killed_leaves_no_lock_and_no_half(
    mariadb: MariaDatabase, strategy: str
) -> None:
    mariadb.execute(
        """CREATE TABLE p (id int PRIMARY KEY);
CREATE TABLE c (id int PRIMARY KEY, FOREIGN KEY (id) REFERENCES p (id))"""
    )
    url = mariadb.url.render_as_string(hide_password=False)
    context = multiprocessing.get_context("spawn")
    process = context.Process(target=clean_until_killed, args=(url, strategy))
    process.start()
    writer = mariadb.connect(autocommit=False)
    deadline = time.monotonic() + random.uniform(1.0, 1.5)
    while time.monotonic() < deadline:
        with contextlib.suppress(pymysql.err.Error):
            cursor = writer.cursor()
            cursor.execute("INSERT IGNORE INTO p VALUES (1)")
            cursor.execute("INSERT IGNORE INTO c VALUES (1)")
            writer.commit()
    writer.close()
    assert process.pid
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.clean()
        cleaner.verify()


def test_a_server_that_restarts_between_two_cleans(mariadb: MariaDatabase) -> None:
    mariadb.execute(ONE)
    with mariadb.cleaner(lock_timeout=20) as cleaner:
        cleaner.clean()
        mariadb.server.restart()
        mariadb._session = mariadb.connect()
        mariadb.execute("INSERT INTO one (n) VALUES (1)")
        assert cleaner.clean().tables == ("one",)


def test_a_connection_that_was_ended_is_replaced(mariadb: MariaDatabase) -> None:
    mariadb.execute(f"{ONE}; INSERT INTO one VALUES (1, 1)")
    with mariadb.cleaner() as cleaner:
        cleaner.clean()
        session: Any = cleaner._session
        mariadb.execute(f"KILL {session.execute('SELECT CONNECTION_ID()')[0][0]}")
        mariadb.execute("INSERT INTO one VALUES (1, 1)")
        assert cleaner.clean().tables == ("one",)


@pytest.mark.parametrize(
    "defaults",
    [
        "sql_mode = 'ANSI_QUOTES,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,ORACLE'",
        "autocommit = 0",
        "foreign_key_checks = 0",
        "sql_safe_updates = 1",
        "tx_isolation = 'SERIALIZABLE'",
        "tx_read_only = 1",
        "max_statement_time = 0.001",
        "group_concat_max_len = 4",
        "innodb_lock_wait_timeout = 1",
        "completion_type = CHAIN",
        "sql_select_limit = 1",
        "low_priority_updates = 1",
        "innodb_snapshot_isolation = 1",
    ],
)
def test_whatever_the_server_s_defaults_are(mariadb: MariaDatabase, defaults: str) -> None:
    mariadb.execute(
        """CREATE TABLE one (id int AUTO_INCREMENT PRIMARY KEY, one int,
    FOREIGN KEY (one) REFERENCES one (id));
CREATE TABLE two (id int AUTO_INCREMENT PRIMARY KEY, one int,
    FOREIGN KEY (one) REFERENCES one (id));
INSERT INTO one VALUES (1, 1), (2, 1);
INSERT INTO two VALUES (1, 1), (2, 1)"""
    )
    # Not the server's own: its other databases belong to tests that run now.
    url = mariadb.url.update_query_dict({"init_command": f"SET SESSION {defaults}"})
    if defaults.startswith("tx_isolation"):
        url = mariadb.url.update_query_dict(
            {"init_command": "SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"}
        )
    with Cleaner(url) as cleaner:
        report = cleaner.clean()
        assert set(report.tables) == {"one", "two"}
        assert set(report.sequences) == {"one.id", "two.id"}
        cleaner.verify()


# -- meanwhile ----------------------------------------------------------------------------------


@every
def test_writers_and_cleaners_at_once(mariadb: MariaDatabase, strategy: str) -> None:
    mariadb.execute(
        """CREATE TABLE p (id int AUTO_INCREMENT PRIMARY KEY, n int);
CREATE TABLE c (id int AUTO_INCREMENT PRIMARY KEY, p int NOT NULL,
    FOREIGN KEY (p) REFERENCES p (id));
CREATE TABLE s (id int PRIMARY KEY, s int NOT NULL, FOREIGN KEY (s) REFERENCES s (id))"""
    )
    wrong: list[BaseException] = []
    until = time.monotonic() + STRESS_SECONDS

    def write(number: int) -> None:
        connection = mariadb.connect(autocommit=False)
        try:
            while time.monotonic() < until:
                try:
                    cursor = connection.cursor()
                    cursor.execute("INSERT INTO p (n) VALUES (1)")
                    cursor.execute(f"INSERT INTO c (p) VALUES ({cursor.lastrowid})")
                    cursor.execute(f"REPLACE INTO s VALUES ({number}, {number})")
                    connection.commit()
                except (pymysql.err.OperationalError, pymysql.err.IntegrityError) as error:
                    # A deadlock, a parent that is gone: what a writer has to bear with.
                    if error.args[0] not in (1205, 1213, 1452, 1451):
                        raise
                    connection.rollback()
        except BaseException as error:
            wrong.append(error)
        finally:
            connection.close()

    def clean() -> None:
        try:
            with mariadb.cleaner(strategy=strategy, lock_timeout=20) as cleaner:
                while time.monotonic() < until:
                    cleaner.clean()
        except BaseException as error:
            wrong.append(error)

    threads = [threading.Thread(target=write, args=(n,)) for n in range(4)]
    threads += [threading.Thread(target=clean) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    orphans = "SELECT COUNT(*) FROM c LEFT JOIN p ON c.p = p.id WHERE p.id IS NULL"
    assert mariadb.scalar(orphans) == 0
    with mariadb.cleaner(strategy=strategy) as cleaner:
        cleaner.clean()
        cleaner.verify()


def meanwhile(cleaner: Cleaner, statements: str, mariadb: MariaDatabase) -> list[str]:
    """Have these run when it has looked, and locks tables; returns what it sends from now on."""
    session: Any = cleaner._session
    execute, sent = session.execute, list[str]()

    def interrupted(sql: str, *args: Any) -> Any:
        sent.append(sql)
        if sql.startswith("LOCK TABLES") and statements:
            mariadb.execute(statements)
        return execute(sql, *args)

    session.execute = interrupted
    return sent


@pytest.mark.parametrize("action", ["CASCADE", "SET NULL", "RESTRICT"])
def test_rows_that_come_in_the_middle_of_a_clean_are_no_reason_to_change_what_is_excluded(
    mariadb: MariaDatabase, action: str
) -> None:
    mariadb.execute(
        f"""CREATE TABLE p (id int AUTO_INCREMENT PRIMARY KEY);
CREATE TABLE x (p int, FOREIGN KEY (p) REFERENCES p (id) ON DELETE {action})"""
    )
    with mariadb.cleaner(exclude=["x"]) as cleaner:
        cleaner.clean()
        mariadb.execute("INSERT INTO p VALUES (); DELETE FROM p")
        meanwhile(cleaner, "INSERT IGNORE INTO p VALUES (7); INSERT INTO x VALUES (7)", mariadb)
        with pytest.raises(ExcludedTableError):
            cleaner.clean()
    assert (7,) in mariadb.execute("SELECT p FROM x")
    assert mariadb.count("p") == 1


def test_no_attempt_follows_for_which_there_is_no_time(mariadb: MariaDatabase) -> None:
    mariadb.execute(f"{ONE}; INSERT INTO one VALUES (1, 1)")
    with (
        mariadb.cleaner(lock_timeout=1, retries=30) as cleaner,
        mariadb.transaction("SELECT * FROM one"),
    ):
        sent = meanwhile(cleaner, "", mariadb)
        with pytest.raises(BlockedError):
            cleaner.clean()
        assert sum("GET_LOCK" in sql for sql in sent) == 2


@pytest.mark.parametrize(
    ("first", "then"),
    [
        ("SELECT GET_LOCK('{}', 0)", "DELETE FROM one"),
        ("DELETE FROM one", "SELECT * FROM one"),
    ],
    ids=["GET_LOCK and row", "row and LOCK TABLES"],
)
def test_the_time_waited_for_one_lock_is_not_there_for_another(
    mariadb: MariaDatabase, first: str, then: str
) -> None:
    mariadb.execute(f"{ONE}; INSERT INTO one VALUES (1, 1)")
    holder = mariadb.connect(autocommit=False)
    holder.cursor().execute(first.format(lock_name(mariadb.name)))
    with mariadb.cleaner(lock_timeout=3, retries=1) as cleaner, mariadb.transaction(then):
        session: Any = cleaner._session
        session.look()
        timer = threading.Timer(1.6, holder.close)
        timer.start()
        with pytest.raises(BlockedError):
            cleaner.clean()
        timer.join()
        waits = "SELECT @@innodb_lock_wait_timeout, @@lock_wait_timeout"
        assert min(session.execute(waits)[0]) <= 2  # all that was left


def test_a_clean_whose_statement_somebody_ends_says_so(mariadb: MariaDatabase) -> None:
    mariadb.execute(f"{PLAIN}; INSERT INTO one VALUES (1, 1)")
    with mariadb.cleaner(lock_timeout=30, retries=1) as cleaner:
        cleaner.clean()
        session: Any = cleaner._session
        pid = session.execute("SELECT CONNECTION_ID()")[0][0]
        with mariadb.transaction("INSERT INTO one VALUES (2, 2)"):
            told: list[CleanerError] = []

            def clean() -> None:
                with pytest.raises(CleanerError) as raised:
                    cleaner.clean()
                told.append(raised.value)

            thread = threading.Thread(target=clean)
            thread.start()
            working = (
                f"SELECT 1 FROM information_schema.PROCESSLIST WHERE ID = {pid}"
                " AND COMMAND = 'Query' AND TIME_MS > 100"
            )
            until(lambda: mariadb.execute(working), "the clean waits for the row")
            mariadb.execute(f"KILL QUERY {pid}")
            thread.join()
        assert "KILL QUERY" in told[0].cause
        cleaner.clean()
        cleaner.verify()
    assert locks(mariadb) == 0


def test_the_report_names_what_an_attempt_did_that_did_not_come_to_its_end(
    mariadb: MariaDatabase,
) -> None:
    mariadb.execute(f"{PLAIN}; CREATE SEQUENCE numbers; INSERT INTO one VALUES (1, 1)")
    with mariadb.cleaner(lock_timeout=20) as cleaner, mariadb.transaction() as cursor:
        cursor.execute("SELECT NEXTVAL(numbers)")
        timer = threading.Timer(1.5, cursor.connection.commit)
        timer.start()
        report = cleaner.clean()
        timer.join()
        assert report.attempts > 1
        assert (report.tables, report.sequences) == (("one",), ("numbers",))


def test_after_a_conflict_all_kinds_of_tables_are_cleaned_as_ever(mariadb: MariaDatabase) -> None:
    mariadb.execute(
        """CREATE TABLE seed (id int AUTO_INCREMENT PRIMARY KEY, n int);
CREATE TABLE child (id int AUTO_INCREMENT PRIMARY KEY, seed int,
    FOREIGN KEY (seed) REFERENCES seed (id) ON DELETE CASCADE);
CREATE TABLE fired (id char(36) PRIMARY KEY, seed int, child int,
    FOREIGN KEY (seed) REFERENCES seed (id) ON DELETE SET NULL,
    FOREIGN KEY (child) REFERENCES child (id));
CREATE TABLE log (id int AUTO_INCREMENT PRIMARY KEY);
CREATE TRIGGER fires AFTER DELETE ON fired FOR EACH ROW INSERT INTO log VALUES ();
CREATE TABLE versioned (id int AUTO_INCREMENT PRIMARY KEY) WITH SYSTEM VERSIONING;
CREATE TABLE plain (id int AUTO_INCREMENT PRIMARY KEY) ENGINE = MyISAM;
CREATE TABLE one (id int PRIMARY KEY, other int);
CREATE TABLE other (id int PRIMARY KEY, one int, FOREIGN KEY (one) REFERENCES one (id));
ALTER TABLE one ADD FOREIGN KEY (other) REFERENCES other (id);
CREATE SEQUENCE numbers;
CREATE TABLE kept (id int AUTO_INCREMENT PRIMARY KEY, child int,
    FOREIGN KEY (child) REFERENCES child (id));
INSERT INTO seed (n) VALUES (1), (2)"""
    )
    with mariadb.cleaner(exclude=["kept"]) as cleaner:
        cleaner.capture()
        session: Any = cleaner._session
        for writes in (True, True, False):
            if writes:
                mariadb.execute(
                    """INSERT INTO seed (n) VALUES (3);
UPDATE seed SET n = 5;
INSERT INTO child (seed) VALUES (1);
INSERT INTO fired VALUES (UUID(), 1, 1);
INSERT INTO versioned VALUES ();
INSERT INTO plain VALUES ();
INSERT INTO one VALUES (1, NULL);
INSERT INTO other VALUES (1, 1);
UPDATE one SET other = 1;
SELECT NEXTVAL(numbers)"""
                )
            session._met_conflict = True
            report = cleaner.clean()
            assert report.attempts == 1
            cleaner.verify()
            state = "@@autocommit, @@foreign_key_checks, @@in_transaction"
            assert session.execute(f"SELECT {state}") == [(1, 1, 0)]
            mariadb.execute("INSERT INTO kept VALUES (); DELETE FROM kept")


def test_after_a_conflict_a_sequence_alone_is_put_back(mariadb: MariaDatabase) -> None:
    mariadb.execute("CREATE SEQUENCE numbers; CREATE TABLE plain (id int PRIMARY KEY)")
    with mariadb.cleaner() as cleaner:
        cleaner.clean()
        mariadb.execute("SELECT NEXTVAL(numbers)")
        session: Any = cleaner._session
        session._met_conflict = True
        assert cleaner.clean().sequences == ("numbers",)


def test_a_row_that_comes_in_the_middle_of_a_clean_after_a_conflict_goes_too(
    mariadb: MariaDatabase,
) -> None:
    mariadb.execute(
        """CREATE TABLE one (id int PRIMARY KEY, other int);
CREATE TABLE other (id int PRIMARY KEY, one int, FOREIGN KEY (one) REFERENCES one (id));
ALTER TABLE one ADD FOREIGN KEY (other) REFERENCES other (id);
INSERT INTO one VALUES (1, NULL)"""
    )
    with mariadb.cleaner(retries=1) as cleaner:
        cleaner.clean()
        mariadb.execute("INSERT INTO one VALUES (1, NULL)")
        session: Any = cleaner._session
        session._met_conflict = True
        # It has looked, and found `other` to be empty.
        meanwhile(cleaner, "INSERT INTO other VALUES (1, 1)", mariadb)
        cleaner.clean()
        cleaner.verify()


def test_an_ordinary_clean_takes_few_round_trips(mariadb: MariaDatabase) -> None:
    for i in range(40):
        mariadb.execute(f"CREATE TABLE t{i} (id int AUTO_INCREMENT PRIMARY KEY)")
    mariadb.execute("CREATE TABLE plain (id int PRIMARY KEY)")
    with mariadb.cleaner() as cleaner:
        cleaner.clean()
        assert cleaner.clean().round_trips == 1
        mariadb.execute("INSERT INTO plain VALUES (1)")
        assert cleaner.clean().round_trips == 2
        for i in range(40):
            mariadb.execute(f"INSERT INTO t{i} VALUES ()")
        assert cleaner.clean().round_trips == 3, "look, wait for users, all the rest"
        cleaner.verify()


def test_a_table_that_was_being_made_during_a_clean_is_cleaned(mariadb: MariaDatabase) -> None:
    mariadb.execute(f"{ONE}; INSERT INTO one VALUES (1, 1), (2, 2)")
    migration = mariadb.connect()
    with mariadb.cleaner(lock_timeout=20) as cleaner:
        cleaner.plan()
        pid = migration.thread_id()
        thread = threading.Thread(
            target=migration.cursor().execute,
            args=("CREATE TABLE late AS SELECT id, SLEEP(0.6) FROM one",),
        )
        thread.start()
        until(
            lambda: mariadb.execute(
                "SELECT 1 FROM information_schema.PROCESSLIST"
                f" WHERE ID = {pid} AND INFO LIKE 'CREATE%'"
            ),
            "the migration runs",
        )
        cleaner.clean()
        thread.join()
        assert mariadb.count("late") == 2
        assert "late" in cleaner.clean().tables
        assert mariadb.count("late") == 0
    migration.close()


def test_two_changes_in_one_second_are_told_apart(mariadb: MariaDatabase) -> None:
    other = mariadb.another()
    mariadb.execute("CREATE TABLE one (id int PRIMARY KEY)")
    with mariadb.cleaner() as cleaner:
        cleaner.clean()
        mariadb.execute(f"CREATE TABLE {other}.one (id int)")  # which may be a change of ours
        cleaner.clean()
        mariadb.execute("DROP TABLE one; CREATE TABLE one (id int PRIMARY KEY, one int)")
        mariadb.execute("ALTER TABLE one ADD FOREIGN KEY (one) REFERENCES one (id)")
        mariadb.execute("INSERT INTO one VALUES (1, 1), (2, 1)")
        cleaner.clean()
    assert mariadb.count("one") == 0


def test_a_forked_child_leaves_the_connection_to_its_parent(mariadb: MariaDatabase) -> None:
    mariadb.execute(f"{ONE}; INSERT INTO one (n) VALUES (1)")
    with mariadb.cleaner() as cleaner:
        cleaner.clean()
        child = os.fork()
        if not child:
            code = 1
            with contextlib.suppress(BaseException):
                cleaner.clean()
                cleaner.close()
                code = 0
            os._exit(code)
        assert os.waitpid(child, 0)[1] == 0
        mariadb.execute("INSERT INTO one (n) VALUES (1)")
        trips = cleaner._session.round_trips
        assert cleaner.clean().tables == ("one",)
        assert cleaner._session.round_trips - trips < 6, "on the connection that it had"
