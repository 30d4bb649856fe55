"""What belongs to a database and is not inside of it: a clone does not get it from its template."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from typing import NamedTuple

from cleaner.dialects.postgresql.activity import Execute
from cleaner.dialects.postgresql.sql import quote
from cleaner.dialects.strings import literal, literals

OURS = "made by cleaner: "  # how the comment on a database of ours begins
_LONGEST = 63  # bytes of a name
# Settings that are lists of names, each in quotes where it needs them.
_LISTS = {
    "local_preload_libraries",
    "search_path",
    "session_preload_libraries",
    "shared_preload_libraries",
    "temp_tablespaces",
    "unix_socket_directories",
}


class Found(NamedTuple):
    """A row of pg_database, as :func:`found_query` reads it."""

    oid: int
    name: str
    owner: str
    is_template: bool
    open: bool
    limit: int
    comment: str | None

    @property
    def ours(self) -> bool:
        """Whether its comment says so."""
        return (self.comment or "").startswith(OURS)


def template_name(database: str) -> str:
    """The name of the template of that database's baseline: always the same, 63 bytes at most."""
    return derived(database, "template")


def derived(name: str, kind: str) -> str:
    """A name of ours that begins like ``name``, and no two databases share."""
    suffix = f"_cleaner_{kind}_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
    return name.encode()[: _LONGEST - len(suffix)].decode(errors="ignore") + suffix


def found_query(names: Iterable[str]) -> str:
    """The query for those databases."""
    return f"""SELECT d.oid::int8, d.datname::text, pg_catalog.pg_get_userbyid(d.datdba)::text,
       d.datistemplate, d.datallowconn, d.datconnlimit,
       pg_catalog.shobj_description(d.oid, 'pg_database')
  FROM pg_catalog.pg_database d WHERE d.datname IN ({literals(names)})"""


def attributes(execute: Execute, source: Found, new: str) -> list[str]:
    """The statements that give ``new`` the privileges, settings and limit of ``source``."""
    target = f"DATABASE {quote(new)}"
    settings = execute(
        f"""SELECT r.rolname::text, pg_catalog.unnest(s.setconfig)
  FROM pg_catalog.pg_db_role_setting s LEFT JOIN pg_catalog.pg_roles r ON r.oid = s.setrole
 WHERE s.setdatabase = {source.oid} AND (r.oid IS NOT NULL OR s.setrole = 0)"""
    )
    # The owner becomes the grantor of all: a role can't grant in the name of another.
    privileges = execute(
        f"""SELECT r.rolname::text, a.privilege_type, a.is_grantable
  FROM pg_catalog.pg_database d LEFT JOIN LATERAL pg_catalog.aclexplode(d.datacl) a ON true
  LEFT JOIN pg_catalog.pg_roles r ON r.oid = a.grantee
 WHERE d.oid = {source.oid} AND d.datacl IS NOT NULL"""
    )
    steps = [
        f"COMMENT ON {target} IS {literal(OURS + 'not ready')}",
        f"ALTER {target} CONNECTION LIMIT {source.limit}",
    ]
    for role, entry in settings:
        name, _, value = entry.partition("=")
        whose = target if role is None else f"ROLE {quote(role)} IN {target}"
        steps.append(f"ALTER {whose} SET {quote(name)} TO {_value(name, value)}")
    if privileges:
        steps.append(f"REVOKE ALL ON {target} FROM PUBLIC, {quote(source.owner)}")
    for role, privilege, grantable in privileges:
        if privilege is not None:
            to = "PUBLIC" if role is None else quote(role)
            option = " WITH GRANT OPTION" if grantable else ""
            steps.append(f"GRANT {privilege} ON {target} TO {to}{option}")
    return steps


def _value(name: str, value: str) -> str:
    """The value of a setting as SET takes it."""
    if name not in _LISTS:
        return literal(value)
    parts = re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', value)
    return literals(quoted.replace('""', '"') or bare for quoted, bare in parts)
