"""What differs between MariaDB and MySQL."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

# Statements that change what a database consists of. Not among them: TRUNCATE, which is how a
# clean puts AUTO_INCREMENT back, and ALTER SEQUENCE, with which it does that for a sequence.
_DDL = (
    "alter_table",
    "create_db",
    "create_index",
    "create_table",
    "create_trigger",
    "create_view",
    "drop_db",
    "drop_index",
    "drop_table",
    "drop_trigger",
    "drop_view",
    "rename_table",
)
# Whatever the defaults of server and role are: each statement commits by itself, sees what was
# committed before it, is not cut short, and may delete without a WHERE. Zeros and invalid dates
# are stored as they are, and no string has escapes.
_SESSION = {
    "autocommit": "1",
    "completion_type": "'NO_CHAIN'",
    "foreign_key_checks": "1",
    "unique_checks": "1",
    "group_concat_max_len": "1073741824",
    "low_priority_updates": "0",
    "sql_big_selects": "1",
    "sql_mode": "'NO_AUTO_VALUE_ON_ZERO,NO_BACKSLASH_ESCAPES,ALLOW_INVALID_DATES,"
    "NO_ENGINE_SUBSTITUTION'",
    "sql_safe_updates": "0",
    "sql_select_limit": "18446744073709551615",
    "time_zone": "'+00:00'",
    "wait_timeout": "2147483",
}


class MySQL:
    """MySQL 8. What MariaDB does otherwise is in its subclass."""

    name: ClassVar[str] = "mysql"
    session: ClassVar[dict[str, str]] = {
        "max_execution_time": "0",
        "information_schema_stats_expiry": "0",
    }
    counters: ClassVar[tuple[str, ...]] = _DDL
    status: ClassVar[str] = "performance_schema.global_status"
    has_sequences: ClassVar[bool] = False
    foreign_keys: ClassVar[str] = "information_schema.INNODB_FOREIGN"

    def setup(self) -> str:
        """The statement that makes a session ours."""
        chosen = {**_SESSION, **self.session}
        return "SET SESSION " + ", ".join(f"{name} = {value}" for name, value in chosen.items())

    def messages(self, statements: Sequence[str]) -> list[str]:
        """The statements in as few messages as the server takes; the last one's rows are wanted."""
        return [*statements]

    def seconds(self, milliseconds: float) -> int:
        """The time to wait for a lock in whole seconds: one at least on MySQL, which has no word
        for not waiting.
        """
        return max(1, int(milliseconds // 1000))

    @property
    def newest(self) -> str:
        """An expression that changes whenever the schema of any database on the server does."""
        names = ", ".join(f"'Com_{name}'" for name in self.counters)
        return f"(SELECT SUM(VARIABLE_VALUE) FROM {self.status} WHERE VARIABLE_NAME IN ({names}))"


class MariaDB(MySQL):
    """MariaDB 10.6 and later."""

    name = "mariadb"
    session: ClassVar[dict[str, str]] = {
        "check_constraint_checks": "0",
        "idle_transaction_timeout": "0",
        "max_statement_time": "0",
        "system_versioning_alter_history": "'KEEP'",
    }
    counters = (*_DDL, "create_sequence", "drop_sequence")
    status = "information_schema.GLOBAL_STATUS"
    has_sequences = True
    foreign_keys = "information_schema.INNODB_SYS_FOREIGN"

    def messages(self, statements: Sequence[str]) -> list[str]:
        if len(statements) == 1:
            return [*statements]
        return ["BEGIN NOT ATOMIC\n" + ";\n".join(statements) + ";\nEND"]

    def seconds(self, milliseconds: float) -> int:
        return int(milliseconds // 1000)


def flavour_of(version: str) -> MySQL:
    """The flavour of the server that says this of itself."""
    return MariaDB() if "mariadb" in version.lower() else MySQL()
