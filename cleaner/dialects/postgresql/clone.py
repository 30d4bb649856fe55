"""A database put back by cloning it from a template of its baseline.

    template    app_test_cleaner_template_1f0a...   sealed; its comment says that it is ours
    being made  ..._cleaner_new_...                 sealed from birth
    going       ..._cleaner_old_...                 sealed; its comment says that it is ours

A clone is made under a private name and takes the place of the database in one transaction, which
renames both. So there is at every moment a whole database under its name, and a whole template or
none; what a killed process leaves has a private name, and the next call drops it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import datetime, timezone
from typing import Any

from cleaner.dialects.postgresql import occupants
from cleaner.dialects.postgresql.activity import Execute
from cleaner.dialects.postgresql.clone_attributes import (
    OURS,
    Found,
    attributes,
    derived,
    found_query,
    template_name,
)
from cleaner.dialects.postgresql.failures import first_line, sqlstate
from cleaner.dialects.postgresql.sql import quote
from cleaner.dialects.strings import literal, literals
from cleaner.errors import Blocker, CleanerError, ProvisionError, StrategyRefusedError

__all__ = ["Clones", "template_name"]

_ATTEMPTS = 3  # a pool may connect again between the end of its sessions and the next statement


class Clones:
    """The template of one ``database``, and the database made anew from it.

    ``execute`` runs SQL on an autocommit connection to ANOTHER database of the server, always the
    same one, as one message, so that several statements are one transaction. ``driver_error`` is
    the root of the errors it raises. Each wait for sessions or locks ends after ``wait`` seconds.

    One call at a time works on a database, whatever the process. The role needs CREATEDB and to
    own the database; databases that are not ours are never touched.
    """

    def __init__(
        self,
        execute: Execute,
        driver_error: Any,
        database: str,
        *,
        template: str = "",
        wait: float = 5.0,
    ) -> None:
        self.database = database
        self.template = template or template_name(database)
        self._execute = execute
        self._driver_error = driver_error
        self._wait = wait
        digest = hashlib.sha256(f"cleaner clones {database}".encode()).digest()
        self._key = int.from_bytes(digest[:8], "big", signed=True)

    # -- what it is for -------------------------------------------------------------------

    def refusal(self) -> str:
        """Why this role can't recreate the database, with the remedy; empty if it can."""
        user, superuser, creates, here = self._run(
            """SELECT current_user::text, pg_catalog.current_setting('is_superuser')::bool,
       (SELECT rolcreatedb FROM pg_catalog.pg_roles WHERE rolname = current_user),
       pg_catalog.current_database()::text"""
        )[0]
        if here == self.database:
            return f"the connection is to {here} itself: connect to another database"
        owned = self._run(
            f"""SELECT pg_catalog.pg_get_userbyid(d.datdba)::text,
       pg_catalog.pg_has_role(d.datdba, 'USAGE') AND pg_catalog.pg_has_role(d.datdba,
           CASE WHEN pg_catalog.current_setting('server_version_num')::int >= 160000
                THEN 'SET' ELSE 'MEMBER' END)
  FROM pg_catalog.pg_database d WHERE d.datname IN ({literals((self.database, self.template))})
 ORDER BY d.datname = {literal(self.database)} DESC"""
        )
        if not owned:
            return f"there is no database {self.database}: CREATE DATABASE {quote(self.database)}"
        if superuser:
            return ""
        if not creates:
            return f"role {user} may not create databases: ALTER ROLE {quote(user)} CREATEDB"
        for owner, mine in owned:
            if not mine:
                return (
                    f"role {user} does not own {self.database}, {owner} does: "
                    f"GRANT {quote(owner)} TO {quote(user)}"
                )
        return ""

    def make_template(self) -> None:
        """Make what the database holds now its baseline, in place of an older one.

        Sessions that are idle are ended; others are waited for, and named if they stay.
        """
        with self._alone():
            found = self._look()
            if self.database not in found:
                raise self._refused(self.refusal())
            source = found[self.database]
            shown = " ".join(self.database.split())
            comment = f"{OURS}template of {shown}, {datetime.now(timezone.utc):%Y-%m-%d %H:%M}Z"
            if source.comment is not None:
                comment += f"\n{source.comment}"
            with self._new(self.template, source) as new:
                self._run(*attributes(self._run, source, new))
                self._put(new, found.get(self.template), self.template, comment, is_template=True)

    def recreate(self) -> tuple[Blocker, ...]:
        """Put a clone of the template in the place of the database, if there still is one.

        It has the template's contents, and the owner, privileges, settings, connection limit and
        comment that the database had when the template was made. Every session on the old one is
        ended; those that were not idle are returned. If it fails, the old one is as it was.
        """
        with self._alone():
            found = self._look()
            source = found.get(self.template)
            if source is None:
                raise ProvisionError(
                    f"There is no template of {self.database}.",
                    "it was never made, or was dropped since",
                    'Cleaner(url, strategy="recreate").capture(), while it is at its baseline',
                )
            self._refuse_consumers()
            old = found.get(self.database)
            comment = (source.comment or "").partition("\n")[2]
            with self._new(self.database, source) as new:
                self._run(*attributes(self._run, source, new))
                is_template = old is not None and old.is_template
                return self._put(new, old, self.database, comment, is_template=is_template)

    def drop_template(self) -> None:
        """Drop the template, if there is one, and what killed processes have left."""
        with self._alone(check=False):
            if found := self._look().get(self.template):
                self._drop(found)

    def end_work(self) -> None:
        """End the sessions of others that work on the database in this way, from whichever database
        they do: the statement of a process that was killed runs on, and makes one that nobody would
        know of. Raises the driver's errors.
        """
        self._execute(
            f"""SELECT pg_catalog.pg_terminate_backend(pid, {int(self._wait * 1000)})
  FROM pg_catalog.pg_locks WHERE locktype = 'advisory' AND objsubid = 1 AND granted
   AND classid::int8 << 32 | objid::int8 = {self._key} AND pid <> pg_catalog.pg_backend_pid()"""
        )

    # -- the steps ------------------------------------------------------------------------

    @contextmanager
    def _alone(self, check: bool = True) -> Iterator[None]:
        """Alone with this database. The statement of a client that was killed runs on; its
        session holds the lock for as long.
        """
        if check and (reason := self.refusal()):
            raise self._refused(reason)
        before = self._run(
            f"""SELECT pg_catalog.current_setting('lock_timeout'),
       pg_catalog.set_config('lock_timeout', '{max(1, int(self._wait * 1000))}', false),
       pg_catalog.pg_advisory_lock({self._key})"""
        )[0][0]
        try:
            yield
        finally:
            with suppress(self._driver_error, CleanerError):
                self._execute(
                    f"""SELECT pg_catalog.pg_advisory_unlock({self._key}),
       pg_catalog.set_config('lock_timeout', {literal(before)}, false)"""
                )

    def _look(self) -> dict[str, Found]:
        """The database and its template, as they are; what was left half done is dropped."""
        private = [
            derived(n, kind) for n in (self.database, self.template) for kind in ("new", "old")
        ]
        rows = self._run(found_query((self.database, self.template, *private)))
        found = {row[1]: Found(*row) for row in rows}
        for one in found.values():
            # Between its birth and its comment a database of ours is known by its name and seal.
            newborn = one.name in private and one.comment is None and not one.open
            if one.name != self.database and not one.ours and not newborn:
                raise ProvisionError(
                    f"The database {one.name} is in the way, and its comment does not say that "
                    "it is cleaner's.",
                    "somebody else made it, or its comment was changed",
                    f"ALTER DATABASE {quote(one.name)} RENAME TO another, or DROP DATABASE",
                )
        for name in private:
            if name in found:
                self._drop(found.pop(name))
        return found

    @contextmanager
    def _new(self, name: str, source: Found) -> Iterator[str]:
        """A clone of ``source`` under the private name of what shall become ``name``."""
        new = derived(name, "new")
        # The default STRATEGY, from PostgreSQL 15 on WAL_LOG, is for a small database as fast as
        # FILE_COPY without fsync, and twice as fast with it.
        self._undisturbed(
            source.name,
            f"CREATE DATABASE {quote(new)} TEMPLATE {quote(source.name)}"
            f" OWNER {quote(source.owner)} ALLOW_CONNECTIONS false",
            only_idle=True,
        )
        try:
            yield new
        except Exception:
            with suppress(self._driver_error, CleanerError):
                self._execute(f"DROP DATABASE IF EXISTS {quote(new)}")
            raise

    def _put(
        self, new: str, old: Found | None, name: str, comment: str, *, is_template: bool
    ) -> tuple[Blocker, ...]:
        """Let ``new`` be ``name`` from one moment to the next, and drop what was."""
        steps = [
            f"ALTER DATABASE {quote(new)} RENAME TO {quote(name)}",
            f"COMMENT ON DATABASE {quote(name)} IS {literal(comment)}",
            f"ALTER DATABASE {quote(name)} IS_TEMPLATE {is_template}"
            f" ALLOW_CONNECTIONS {name == self.database}",
        ]
        if old is None:
            self._run(*steps)
            return ()
        gone = old._replace(name=derived(name, "old"), is_template=False)
        ended = self._undisturbed(
            name,
            f"ALTER DATABASE {quote(name)} RENAME TO {quote(gone.name)}",
            f"COMMENT ON DATABASE {quote(gone.name)} IS {literal(OURS + 'replaced')}",
            f"ALTER DATABASE {quote(gone.name)} IS_TEMPLATE false ALLOW_CONNECTIONS false",
            *steps,
        )
        self._drop(gone)
        return ended

    def _drop(self, found: Found) -> None:
        if found.is_template:
            self._run(f"ALTER DATABASE {quote(found.name)} IS_TEMPLATE false")
        self._run(f"DROP DATABASE IF EXISTS {quote(found.name)}")

    def _refuse_consumers(self) -> None:
        """A replication slot or a subscription would not survive, or would keep the database."""
        consumers = self._run(
            f"""SELECT 'replication slot ' || slot_name FROM pg_catalog.pg_replication_slots
 WHERE database = {literal(self.database)}
UNION ALL SELECT 'subscription ' || s.subname FROM pg_catalog.pg_subscription s
  JOIN pg_catalog.pg_database d ON d.oid = s.subdbid WHERE d.datname = {literal(self.database)}"""
        )
        if consumers:
            raise StrategyRefusedError(
                f"{self.database} can't be recreated: {', '.join(name for (name,) in consumers)} "
                "would go with it.",
                "a test or a consumer of changes has left it",
                "SELECT pg_drop_replication_slot(slot_name), DROP SUBSCRIPTION, "
                'or strategy = "auto"',
            )

    def _undisturbed(
        self, database: str, *statements: str, only_idle: bool = False
    ) -> tuple[Blocker, ...]:
        """Run what the server refuses for as long as anybody is connected to ``database``.

        Returns those of the ended sessions that were not idle.
        """
        ended: tuple[Blocker, ...] = ()
        for attempt in range(_ATTEMPTS):
            ended += occupants.vacate(self._run, database, self._wait, only_idle)
            try:
                self._execute(";\n".join(statements))
                break
            except self._driver_error as error:
                if sqlstate(error) != "55006" or attempt == _ATTEMPTS - 1:
                    raise self._translate(error) from error
        return ended

    # -- talking to the server ------------------------------------------------------------

    def _run(self, *statements: str) -> list[tuple[Any, ...]]:
        try:
            return self._execute(";\n".join(statements))
        except self._driver_error as error:
            raise self._translate(error) from error

    def _refused(self, reason: str) -> CleanerError:
        return StrategyRefusedError(
            f"{self.database} can't be recreated: {reason}.",
            "this role may do less than it takes to replace a database",
            f'{reason.partition(": ")[2]}, or strategy = "auto"',
        )

    def _translate(self, error: Exception) -> CleanerError:
        code, message = sqlstate(error), first_line(error)
        if code == "42501":
            remedy = "do it as superuser, or undo what only a superuser may"
            return self._refused(f"{message}: {remedy}")
        if code == "55006":
            return occupants.in_use(self._run, self.database)
        if code == "55P03":
            names = (self.database, self.template)
            return occupants.locked(self._run, self._key, names, self._wait)
        return ProvisionError(
            f"{self.database} could not be recreated: {message} [{code}]",
            "the server is short of space or memory, or something was changed meanwhile",
            'correct what the server says, or strategy = "auto"',
        )
