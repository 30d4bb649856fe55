"""Names and strings as MariaDB and MySQL spell them, in a session of ours (``connection.py``)."""

from __future__ import annotations


def quote(name: str) -> str:
    """The identifier in quotes, whatever is in it."""
    return "`" + name.replace("`", "``") + "`"


def qualified(schema: str, name: str) -> str:
    """The quoted name, whatever the current database is."""
    return f"{quote(schema)}.{quote(name)}"


def exists(table: str) -> str:
    """An expression: whether the table has a row, that of an uncommitted transaction too.

    It waits for the one who has written the row, where a plain read would look past it: an INSERT
    that is not committed yet would appear after the clean, and so would the rows of a DELETE that
    is rolled back.
    """
    return f"EXISTS (SELECT 1 FROM {table} LOCK IN SHARE MODE)"


def account(user: str) -> str:
    """A user as CURRENT_USER() has it, as GRANT wants it."""
    return "@".join(f"'{part}'" for part in user.rsplit("@", 1))
