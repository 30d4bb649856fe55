"""The control database: which databases of a server are ours, and who works on which.

    cleaner.template   one row for each template: what it was built for, or why that failed
    cleaner.lease      one row for each database that workers take turns with
    cleaner.kept       one row for each database that was kept of a failed test

A row says what there is, or is about to be: it is written before a database is made, so that one
that a killed process leaves is known. Who is alive is said by a session advisory lock, one for
each lease, which the server lets go of when its holder's connection ends. Advisory locks are per
database, so all of it happens in this one.
"""

from __future__ import annotations

from contextlib import suppress

from sqlalchemy import URL, Connection

from cleaner.dialects.postgresql.clone_attributes import OURS
from cleaner.dialects.postgresql.connection import PostgresConnection
from cleaner.dialects.postgresql.control_databases import NoPoolError
from cleaner.dialects.postgresql.control_kept import KEPT
from cleaner.dialects.postgresql.control_leases import LEASES, Leases, Row, refused
from cleaner.dialects.postgresql.control_templates import TEMPLATES
from cleaner.dialects.postgresql.server import MAINTENANCE
from cleaner.dialects.postgresql.sql import quote
from cleaner.dialects.strings import literal
from cleaner.errors import CleanerError, ProvisionError

CONTROL = "cleaner_control"

_TABLES = (
    "CREATE SCHEMA IF NOT EXISTS cleaner",
    TEMPLATES,
    KEPT,
    LEASES,
    "GRANT USAGE ON SCHEMA cleaner TO PUBLIC",
    "GRANT ALL ON ALL TABLES IN SCHEMA cleaner TO PUBLIC",
    "GRANT ALL ON ALL SEQUENCES IN SCHEMA cleaner TO PUBLIC",
)


class Control(Leases):
    """The control database of the server of ``url``.

    It is made where it is missing, which needs CREATEDB. With ``make`` false NoPoolError is raised
    where it is missing. Raises ProvisionError.
    """

    def __init__(self, url: URL, lock_timeout: float, make: bool = True) -> None:
        super().__init__(url.set(database=CONTROL), lambda name: None, lock_timeout)
        self._make = make

    def _connect(self) -> Connection:
        if self._connection is None:
            try:
                super()._connect()
            except ProvisionError:
                self._create()
                super()._connect()
            self.opened += 1
            self._prepare()
        return super()._connect()

    def _create(self) -> None:
        """Make the database, unless it is there by now: another may have been faster."""
        server = PostgresConnection(
            self.engine.url.set(database=MAINTENANCE), lambda name: None, self.lock_timeout
        )
        try:
            found = (
                f"SELECT EXISTS (SELECT FROM pg_catalog.pg_database WHERE datname = '{CONTROL}')"
            )
            if server.execute(found)[0][0]:
                return
            if not self._make:
                raise NoPoolError(
                    f"There is no pool on the server of {self.engine.url.render_as_string()}.",
                    "no tests have run there yet",
                    "cleaner pool provision",
                )
            with suppress(server.driver_error):
                server.execute(f"CREATE DATABASE {CONTROL}")
                server.execute(f"COMMENT ON DATABASE {CONTROL} IS {literal(OURS + 'control')}")
            if not server.execute(found)[0][0]:
                raise refused(server.execute("SELECT current_user::text")[0][0])
        finally:
            server.close()

    def _prepare(self) -> None:
        settings = {"lock_timeout": round(self.lock_timeout * 1000)}
        changes = ", ".join(
            f"pg_catalog.set_config('{name}', '{value}', false)" for name, value in settings.items()
        )
        missing = self.execute(f"SELECT pg_catalog.to_regclass('cleaner.kept') IS NULL, {changes}")
        if missing[0][0]:
            with self.transaction():
                self.execute("SELECT pg_catalog.pg_advisory_xact_lock(0)", True)
                for statement in _TABLES:
                    self.execute(statement, True)

    # -- provisioned databases ------------------------------------------------------------

    def provide(self, base: str, role: str, label: str) -> str | None:
        """Make a database that ``role`` owns, and that its workers may lease from now on. Returns
        its name; None if that is taken. Raises ProvisionError.
        """
        lease = self._add(base, label, role)
        row = self.row(lease) if lease else None
        if row is None:
            return None
        try:
            self.make_for(role, row.database)
            self.execute(
                "UPDATE cleaner.lease SET provisioned = true, worker = NULL, used = now()"
                f" WHERE id = {row.id}"
            )
        except BaseException:
            with suppress(CleanerError, self.driver_error):
                self.forget(row)
            raise
        finally:
            with suppress(CleanerError, self.driver_error):
                self.unlock(row.id)
        return row.database

    def mend(self, row: Row) -> bool:
        """Make a provisioned database again that is gone; false if it is there, or in use."""
        if not self.lock(row.id):
            return False
        try:
            if self.exists(row.database):
                return False
            self.note(row, None)
            self.make_for(row.role, row.database)
            return True
        finally:
            self.unlock(row.id)

    def empty(self, row: Row) -> None:
        """Remove every schema of a lease's database, which itself has to stay."""
        inside = self.inside(row.database)
        try:
            schemas = inside.execute(
                "SELECT nspname::text FROM pg_catalog.pg_namespace"
                " WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'"
            )
            for (schema,) in schemas:
                inside.execute(f"DROP SCHEMA {quote(schema)} CASCADE")
            inside.execute("CREATE SCHEMA public")
        finally:
            inside.close()
