"""The errors to raise for what the server says."""

from __future__ import annotations

import re

from cleaner.dialects.excluded import reaches_outside
from cleaner.dialects.mysql.catalog import Catalog
from cleaner.dialects.mysql.connection import number
from cleaner.dialects.mysql.program import Program
from cleaner.dialects.mysql.sql import account
from cleaner.errors import CleanerError
from cleaner.retry import Conflict, LockWait, Stale, Transient
from cleaner.spi import ForeignKey

_LOCK_WAIT = 1205
# A deadlock of rows or metadata locks, one of user locks, and a row that was changed meanwhile.
_CONFLICTS = (1213, 3058, 1020)
_REFERRED_TO = (1451, 1217)
_READ_ONLY = 1290
_INTERRUPTED = 1317
_NOT_PREPARED = 1243  # by this session, which has just taken the place of another
DENIED = (1044, 1142, 1143, 1227)
# What can be explained by a schema that is not the one that was looked at: a table, column or
# sequence is missing, is another thing, or has changed while it was used.
_CHANGED = (1054, 1091, 1146, 1347, 1412, 1932, 4089, 4091, 4124, 4137)
_CHILD = re.compile(r"fails \((?:`((?:[^`]|``)+)`\.)?`((?:[^`]|``)+)`")


def translate(error: Exception, program: Program) -> Exception:
    """The error to raise for what the server said while ``program`` ran."""
    if transient := passing(error):
        return transient
    code, catalog = number(error), program.catalog
    if code in _REFERRED_TO:
        key = _key(str(error), program)
        if key is not None and key not in program.outside:
            return Conflict(_message(error))
        return Stale(reaches_outside(catalog.database, key) if key else refused(error, catalog))
    if code in _CHANGED:
        return Stale(refused(error, catalog))
    if code == _NOT_PREPARED:
        return Stale()
    return refused(error, catalog)


def is_wait(error: Exception) -> bool:
    """Whether a lock was not to be had in time."""
    return number(error) == _LOCK_WAIT


def passing(error: Exception) -> Transient | None:
    """The error if it may pass when tried again, else None."""
    if is_wait(error):
        return LockWait(_message(error))
    if number(error) in _CONFLICTS:
        return Conflict(_message(error))
    return None


def refused(error: Exception, catalog: Catalog) -> Exception:
    """The error to raise for what no rule of ours explains."""
    if transient := passing(error):
        return transient
    name, user = catalog.database.name, catalog.database.user
    what = f"The server refused to clean {name}: {_message(error)}"
    if number(error) in DENIED:
        return CleanerError(
            what,
            f"{user} lacks a privilege",
            f"GRANT ALL PRIVILEGES ON `{name}`.* TO {account(user)}",
        )
    if number(error) == _READ_ONLY:
        return CleanerError(what, "the server is read-only", "SET GLOBAL read_only = OFF")
    if number(error) == _INTERRUPTED:
        return CleanerError(what, "somebody has ended the statement (KILL QUERY)", "clean() again")
    return CleanerError(
        what,
        "a trigger that raises, or a table that is damaged or of an engine that refuses",
        'strategy = "auto" if it is a DELETE trigger, else exclude = ["table"]',
    )


def unreadable(error: Exception, catalog: Catalog) -> Exception:
    """The error to raise where the server did not let us look."""
    if transient := passing(error):
        return transient
    wrong = CleanerError(
        f"The server refused to compare {catalog.database.name} with its baseline: "
        f"{_message(error)}",
        "a privilege that the user lacks, or a table that has changed since capture()",
        "run `cleaner doctor`, or capture() again",
    )
    return Stale(wrong) if number(error) in _CHANGED else wrong


def _message(error: Exception) -> str:
    text = error.args[1] if len(error.args) > 1 else error
    return f"{' '.join(str(text).split())} [{number(error)}]"


def _key(message: str, program: Program) -> ForeignKey | None:
    """The foreign key of the target that the message is about."""
    match = _CHILD.search(message)
    if not match:
        return None
    schema, table = ((part or "").replace("``", "`") for part in match.groups())
    database = program.catalog.database
    for key in program.keys:
        child = database.relation(key.child)
        if child.table == table and child.schema == (schema or database.name):
            return key
    return None
