"""A connection of our own to a MariaDB or MySQL database."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, ClassVar

from cleaner.dialects.drivers import Twin
from cleaner.dialects.held import HeldConnection
from cleaner.dialects.mysql.flavour import MySQL, flavour_of
from cleaner.errors import SettingsError

Rows = list[tuple[Any, ...]]
_KILLED = 1927  # MariaDB says so to the one whose connection was ended


class MySQLConnection(HeldConnection):
    """See :class:`cleaner.dialects.held.HeldConnection`."""

    drivers: ClassVar[dict[str, str]] = {
        "pymysql": "connect_timeout",
        "mysqldb": "connect_timeout",
        "mysqlconnector": "connection_timeout",
        "mariadbconnector": "connect_timeout",
    }
    async_drivers: ClassVar[dict[str, str]] = {
        "aiomysql": "connect_timeout",
        "asyncmy": "connect_timeout",
    }
    twins: ClassVar[dict[str, Twin]] = {
        "aiomysql": Twin(("pymysql",), None),
        "asyncmy": Twin(("pymysql",), None),
    }
    extra = "mysql"
    example = "mysql+pymysql://user:password@host/app_test"
    async_example = "mysql+aiomysql://user:password@host/app_test"

    flavour: MySQL = MySQL()
    server = ""
    user = ""
    ignores_case = False
    prepared = ""  # the statement that the session has parsed and keeps

    def _greet(self, cursor: Any) -> str:
        cursor.execute(
            "SELECT DATABASE(), VERSION(), CURRENT_USER(), @@lower_case_table_names <> 0,"
            " @@log_bin AND @@binlog_format = 'STATEMENT'"
        )
        name, version, self.user, folds, logs_statements = cursor.fetchall()[0]
        self.ignores_case = bool(folds)
        if name is None:
            raise SettingsError(
                "The URL names no database, so there is nothing to clean.",
                "it ends with the host, and the server has many databases",
                f'url = "{self.example}"',
            )
        self.flavour = flavour_of(version)
        number = re.match(r"[\d.]+", version.removeprefix("5.5.5-"))
        self.server = f"{self.flavour.name} {number[0] if number else version}"
        self.round_trips += 1
        cursor.execute(self.flavour.setup())
        self.round_trips += 1
        # Statements of READ COMMITTED can't be logged as such.
        level = "REPEATABLE READ" if logs_statements else "READ COMMITTED"
        cursor.execute(f"SET SESSION TRANSACTION ISOLATION LEVEL {level}, READ WRITE")
        # Where the server's completion_type is CHAIN one was begun before it was set.
        self.round_trips += 1
        cursor.execute("ROLLBACK")
        return str(name)

    def _vanished(self) -> None:
        self.prepared = ""

    def send(self, statements: Sequence[str], in_transaction: bool = False) -> Rows:
        """Run the statements in as few messages as can be; returns the rows of the last."""
        rows: Rows = []
        for i, message in enumerate(self.flavour.messages(statements)):
            rows = self.execute(message, in_transaction or i > 0)
        return rows

    def _ask(self, connection: Any, sql: str) -> Rows:
        cursor = connection.cursor()
        cursor.execute(sql)
        rows = list(cursor.fetchall()) if cursor.description else []
        # What a compound statement says at its end not every driver reads when it closes.
        while getattr(cursor, "nextset", lambda: None)():
            pass
        cursor.close()
        return rows

    def _is_disconnect(self, error: Any, connection: Any) -> bool:
        return number(error) == _KILLED or super()._is_disconnect(error, connection)


def number(error: BaseException) -> int:
    """The server's number for the error; 0 if it has none."""
    first = error.args[0] if error.args else None
    if isinstance(first, int):
        return first
    return int(getattr(error, "errno", None) or 0)
