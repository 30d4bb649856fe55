"""What the control database knows of templates."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from cleaner.dialects.postgresql.clone_attributes import derived
from cleaner.dialects.postgresql.control_databases import Databases
from cleaner.dialects.strings import literal

_BUILDS = int.from_bytes(b"tmpl", "big")  # the first half of an advisory lock's key

TEMPLATES = """CREATE TABLE IF NOT EXISTS cleaner.template (
    name text PRIMARY KEY, base text NOT NULL, role text NOT NULL,
    ready boolean NOT NULL DEFAULT false, error text, attempted timestamptz,
    used timestamptz NOT NULL DEFAULT now())"""


@dataclass(frozen=True)
class Template:
    """What is known of a template: whether it is ``ready``, or the ``error`` of the attempt."""

    name: str
    base: str
    role: str
    ready: bool
    error: str | None
    attempted: datetime | None
    used: datetime
    now: datetime


class Templates(Databases):
    """The rows of ``cleaner.template``, and the lock on each, which its builder has."""

    def template(self, name: str) -> Template | None:
        """What is known of a template."""
        found = self._templates(f"t.name = {literal(name)}")
        return found[0] if found else None

    def all_templates(self, base: str | None, everyone: bool) -> list[Template]:
        """All templates of this role, or of those for ``base``; with ``everyone`` also those of
        the roles whose privileges it has.
        """
        condition = "true" if base is None else f"base = {literal(base)}"
        return self._templates(f"{condition} AND {self.roles(everyone)}")

    def templates(self, base: str | None = None) -> list[str]:
        """The names of all templates of this role, or of those for ``base``."""
        return [template.name for template in self.all_templates(base, False)]

    def _templates(self, condition: str) -> list[Template]:
        rows = self.execute(
            f"""SELECT t.name, t.base, t.role, d.oid IS NOT NULL AND t.error IS NULL AND t.ready,
       t.error, t.attempted, t.used, clock_timestamp()
  FROM cleaner.template t LEFT JOIN pg_catalog.pg_database d ON d.datname = t.name
 WHERE {condition} ORDER BY t.base, t.name"""
        )
        return [Template(*row) for row in rows]

    def lock_template(self, name: str) -> bool:
        """Be the one who makes or drops that template; false if another is."""
        return bool(self.execute(f"SELECT pg_catalog.pg_try_advisory_lock({_key(name)})")[0][0])

    def unlock_template(self, name: str) -> None:
        """No longer be it."""
        self.execute(f"SELECT pg_catalog.pg_advisory_unlock({_key(name)})")

    def being_made(self, name: str) -> bool:
        """Whether somebody has that lock, and so is making or dropping it."""
        held = f"""SELECT FROM pg_catalog.pg_locks
 WHERE locktype = 'advisory' AND classid = {_BUILDS} AND objsubid = 2 AND granted
   AND objid::int8 = pg_catalog.hashtext({literal(name)})::int8 & 4294967295
   AND database = (SELECT oid FROM pg_catalog.pg_database WHERE datname = current_database())"""
        return bool(self.execute(f"SELECT EXISTS ({held})")[0][0])

    def begin_template(self, name: str, base: str) -> None:
        """Write down that it is going to be made."""
        self.execute(
            f"""INSERT INTO cleaner.template (name, base, role, attempted)
VALUES ({literal(name)}, {literal(base)}, current_user, clock_timestamp())
    ON CONFLICT (name) DO UPDATE SET ready = false, error = NULL, attempted = clock_timestamp()"""
        )

    def end_template(self, name: str, error: str | None) -> None:
        """Write down that it is ready, or why it can't be made."""
        said = "NULL" if error is None else literal(error)
        self.execute(
            f"""UPDATE cleaner.template SET ready = {error is None}, error = {said},
       attempted = clock_timestamp(), used = now() WHERE name = {literal(name)}"""
        )

    def use_template(self, name: str) -> None:
        """Write down that it was of use."""
        self.execute(f"UPDATE cleaner.template SET used = now() WHERE name = {literal(name)}")

    def forget_template(self, name: str) -> bool:
        """Drop it, and the row that tells of it. False if there is a database of that name which
        is not ours, and stays.
        """
        gone = self.drop(name)
        self.drop(derived(name, "build"))
        self.execute(f"DELETE FROM cleaner.template WHERE name = {literal(name)}")
        return gone


def _key(name: str) -> str:
    return f"{_BUILDS}, pg_catalog.hashtext({literal(name)})"
