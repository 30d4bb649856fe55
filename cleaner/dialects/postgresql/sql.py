"""Names, strings and arrays as PostgreSQL spells them."""

from __future__ import annotations

from collections.abc import Iterable

from sqlalchemy.dialects.postgresql.base import PGDialect

# Other parameter styles make the preparer double percent signs.
_PREPARER = PGDialect(paramstyle="named").identifier_preparer  # type: ignore[no-untyped-call]


def quote(name: str) -> str:
    """The identifier in quotes, whatever is in it."""
    return _PREPARER.quote_identifier(name)


def qualified(schema: str, name: str) -> str:
    """The quoted name, independent of any search_path."""
    return f"{quote(schema)}.{quote(name)}"


def oid_array(oids: Iterable[int]) -> str:
    """The oids as an array."""
    return "'{" + ",".join(map(str, oids)) + "}'::oid[]"


def dollars(body: str) -> str:
    """``body`` in dollar quotes that do not occur in it."""
    tag = "$cleaner$"
    while tag in body:
        tag = f"{tag[:-1]}_$"
    return f"{tag}{body}{tag}"


def function(signature: str, returns: str, body: str) -> str:
    """The statement that makes a plpgsql function of this session's own."""
    return (
        f"CREATE OR REPLACE FUNCTION pg_temp.{signature} RETURNS {returns}\n"
        f"LANGUAGE plpgsql AS {dollars(body)}"
    )
