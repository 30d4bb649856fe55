"""What PostgreSQL's errors mean for a clean."""

from __future__ import annotations

import re

from cleaner.dialects.excluded import lacks, reaches_outside
from cleaner.dialects.postgresql.catalog import Catalog, Facts
from cleaner.dialects.postgresql.program import (
    NEEDS_RELOAD,
    NEEDS_TRUNCATE,
    REACHES_OUTSIDE,
    SURVIVED,
    Program,
)
from cleaner.dialects.postgresql.sql import qualified, quote
from cleaner.dialects.postgresql.views import refreshing
from cleaner.errors import (
    CleanerError,
    ExcludedTableError,
    NotCleanError,
    StrategyRefusedError,
    Survivor,
)
from cleaner.retry import Conflict, LockWait, Transient
from cleaner.spi import Relation

_FOREIGN_KEY = "23503"
_CONFLICTS = {
    "40P01",  # deadlock_detected
    "40001",  # serialization_failure
    _FOREIGN_KEY,  # foreign_key_violation: a concurrent writer's row
    "23001",  # restrict_violation, likewise
    "53200",  # out_of_memory: the lock table is full for the moment
}
_IN_THE_WAY = {
    NEEDS_RELOAD,
    "23505",  # unique_violation: rows that have swapped their values
    "23P01",  # exclusion_violation, likewise
    _FOREIGN_KEY,  # foreign_key_violation: a key was moved from one row to another
    "23001",  # restrict_violation, likewise
    "23514",  # check_violation: a row went to another partition
    "55000",  # object_not_in_prerequisite_state: updates are published, by nothing that identifies
    "42P10",  # invalid_column_reference: likewise, by other columns than identify it
}
_FULL = re.compile(r"max_\w*locks_per_transaction")  # named by the hint in every language
_DDL = re.compile(r'"(ALTER|CREATE|DROP) ')  # as the context quotes our statements
_LOCK_NOT_AVAILABLE = "55P03"
_SCHEMA_CHANGES = {
    "0A000",  # feature_not_supported: cached plan must not change result type
    "2BP01",  # dependent_objects_still_exist
    "3F000",  # invalid_schema_name
    "42P01",  # undefined_table
    "42703",  # undefined_column
    "42704",  # undefined_object: a trigger, a rule
    "42809",  # wrong_object_type
    "55000",  # object_not_in_prerequisite_state: published meanwhile, without replica identity
    "XX000",  # internal_error: cache lookup failed, could not open relation with OID
    "42P10",  # invalid_column_reference: published meanwhile, by other columns than identify it
    "42501",  # insufficient_privilege: row-level security came to a table
}


def sqlstate(error: Exception) -> str:
    """The five characters by which PostgreSQL tells errors apart, from any driver."""
    for attribute in ("sqlstate", "pgcode"):
        code = getattr(error, attribute, None)
        if code:
            return str(code)
    details = error.args
    if details and isinstance(details[0], dict):  # pg8000
        return str(details[0].get("C", ""))
    return ""


def said(error: Exception) -> str:
    """What the server said, alike from any driver: a line, and others for detail and hint."""
    details = error.args[0] if error.args else ""
    if isinstance(details, dict):  # pg8000
        parts = (("", "M"), ("DETAIL: ", "D"), ("HINT: ", "H"))
        return "\n".join(f"{head}{details[key]}" for head, key in parts if key in details)
    original = error.__cause__  # asyncpg's, of which SQLAlchemy does not hand on all
    return str(original if hasattr(original, "sqlstate") else error)


def first_line(error: Exception) -> str:
    """What the server said, without detail and hint."""
    return (said(error).splitlines() or [type(error).__name__])[0]


def context(error: Exception) -> str:
    """Where in our functions it happened, the innermost first; what they ran is quoted."""
    details = error.args[0] if error.args else ""
    if isinstance(details, dict):  # pg8000
        return str(details.get("W", ""))
    diagnostics = getattr(error, "diag", error.__cause__)  # psycopg's, else asyncpg's
    return str(getattr(diagnostics, "context", None) or "")


def may_be_stale(error: Exception) -> bool:
    """Whether a change of the schema may be the reason."""
    return sqlstate(error) in _SCHEMA_CHANGES


def needs_reload(error: Exception, program: Program) -> bool:
    """Whether captured rows are in each other's way, and have to be put back all anew."""
    if not any(table.captured for table in program.tables):
        return False
    return sqlstate(error) in _IN_THE_WAY


def is_missing_function(error: Exception, program: Program) -> bool:
    """Whether the session has lost our functions (DISCARD ALL, a pooler)."""
    message = first_line(error)
    return sqlstate(error) in ("42883", "3F000") and (
        program.name in message or "pg_temp" in message
    )


def translate(error: Exception, program: Program, catalog: Catalog) -> Exception:
    """The error to raise for what the server said while ``program`` ran."""
    code, message = sqlstate(error), said(error)
    if lacking := _lacks_parent(error, program, catalog):
        return lacking
    if transient := passing(error):
        return transient
    positions = [int(n) for n in re.findall(r"\d+", message.partition("{")[2].partition("}")[0])]
    if code == SURVIVED:
        held = [
            (program.tables[i - 1], rows)
            for i, rows in zip(positions[::2], positions[1::2], strict=True)
        ]
        return NotCleanError.of(
            tuple(
                Survivor(t.name, rows, why(catalog.facts[t.key], t) or _logged(catalog))
                for t, rows in held
            )
        )
    if code == REACHES_OUTSIDE:
        return reaches_outside(catalog.database, program.outside[positions[0]])
    if code == NEEDS_TRUNCATE:
        table = program.tables[positions[0] - 1]
        return StrategyRefusedError(
            f"{table.name} can only be truncated ({table.undeletable}), and that would reach "
            "tables outside the target.",
            "a table that refers to it, directly or not, is excluded",
            f'exclude = ["{table.name}"]',
        )
    return refused(error, catalog, program)


def _lacks_parent(
    error: Exception, program: Program, catalog: Catalog
) -> ExcludedTableError | None:
    """The error for captured rows that refer to rows that were to be kept, and are gone."""
    if sqlstate(error) != _FOREIGN_KEY:
        return None
    inside, restored = set[int](), set[int]()
    for table in program.tables:
        facts = catalog.facts[table.key]
        inside |= {*facts.leaves}
        restored |= {*facts.leaves} if facts.captured else set()
    line = first_line(error)
    meant = [key for key in catalog.database.foreign_keys if _names(line, key.name)]
    if not meant or any(key.child not in restored or key.parent in inside for key in meant):
        return None  # or another key of that name
    return lacks(catalog.database, meant[0])


def is_wait(error: Exception) -> bool:
    """Whether a lock was not to be had in time."""
    return sqlstate(error) == _LOCK_NOT_AVAILABLE


def _names(line: str, name: str) -> bool:
    """Whether that name is in what the server said, and no longer one that contains it."""
    return bool(re.search(rf"(?<![\w$]){re.escape(name)}(?![\w$])", line))


def passing(error: Exception) -> Transient | None:
    """The error if it may pass when tried again, else None."""
    if is_wait(error):
        return LockWait(said(error))
    if full := _FULL.search(said(error)) if sqlstate(error) == "53200" else None:
        return Conflict(
            first_line(error),
            f"a clean holds a lock for each table, partition and index: {full[0]} is too low for "
            "so many, or other sessions need it all",
            f"ALTER SYSTEM SET {full[0]} = 1024, and restart the server",
        )
    if sqlstate(error) in _CONFLICTS:
        return Conflict(first_line(error))
    return None


def refused(error: Exception, catalog: Catalog, program: Program | None = None) -> Exception:
    """The error to raise for what no rule of ours explains, in ``program`` or in a capture."""
    if transient := passing(error):
        return transient
    name, code, message = catalog.database.name, sqlstate(error), said(error)
    for view in program.views if program else ():
        if f'"{refreshing(view)}"' in context(error):
            return CleanerError(
                f"The materialized view {view.name} can't be refreshed, so {name} was not cleaned: "
                f"{first_line(error)} [{code}]",
                "its query fails on tables that are at their baseline, or reads a view that is not "
                "populated",
                f'exclude = ["{view.name}"] to leave it as it is, or {refreshing(view)} WITH NO '
                "DATA after the tests that populate it",
            )
    what = "clean" if program else "change the baseline of"
    refusal = f"The server refused to {what} {name}: {first_line(error)} [{code}]"
    if code == "25006":  # read_only_sql_transaction, although our sessions are not
        return CleanerError(
            refusal,
            "the server is a hot standby, where nothing can be written",
            "url: the address of its primary",
        )
    cause, remedy = _explained(error, catalog, capturing=program is None)
    details = " ".join(message.split("\n", 1)[1].split()) if "\n" in message else ""
    return CleanerError(refusal, f"{cause}: {details}" if details else cause, remedy)


def _explained(error: Exception, catalog: Catalog, capturing: bool) -> tuple[str, str]:
    """The likely cause, and the line to write."""
    user, database = catalog.database.user, catalog.database
    innermost, _, outer = context(error).partition("\n")
    ran_ddl = capturing or _DDL.search(outer)
    if catalog.event_trigger and innermost and ran_ddl and not _DDL.search(innermost):
        trigger = quote(catalog.event_trigger)
        return (
            f"an event trigger such as {catalog.event_trigger} forbids DDL, by which cleaner "
            "makes its functions and switches off triggers",
            f"ALTER EVENT TRIGGER {trigger} DISABLE",
        )
    if sqlstate(error) == "42501":  # insufficient_privilege
        line = first_line(error)
        named = [
            qualified(relation.schema, relation.table)
            for relation in database.relations
            if _names(line, relation.table)
        ]
        on = named[0] if len(named) == 1 else "what the server names"
        return (
            f"role {user} lacks a privilege, or a trigger or view that runs meanwhile does",
            f"GRANT ALL ON {on} TO {quote(user)}, or url: a role that owns it",
        )
    return (
        "a trigger that raises",
        'strategy = "truncate" if it is a DELETE trigger, else run `cleaner doctor`',
    )


def unreadable(error: Exception, catalog: Catalog) -> Exception:
    """The error to raise where the server did not let us look."""
    if transient := passing(error):
        return transient
    return CleanerError(
        f"The server refused to compare {catalog.database.name} with its baseline: "
        f"{first_line(error)} [{sqlstate(error)}]",
        "a privilege that the role lacks, or a type that has changed since capture()",
        "run `cleaner doctor`, or capture() again",
    )


def why(facts: Facts, table: Relation) -> str:
    """What may have kept rows in the table."""
    if facts.watched:
        return f"trigger {facts.watched[0]} fires on it, which only the table's owner can prevent"
    if facts.hidden:
        return "row-level security hides its rows"
    return table.undeletable


def _logged(catalog: Catalog) -> str:
    if not catalog.event_trigger:
        return ""
    return f"event trigger {catalog.event_trigger} writes into it while it is cleaned"
