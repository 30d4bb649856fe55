"""One package per kind of database: all SQL is in here."""

from __future__ import annotations

from sqlalchemy import URL, Engine

from cleaner.dialects.base import Done, Guard, Health, Session
from cleaner.errors import SettingsError

__all__ = ["Done", "Health", "Session", "connect"]


def connect(source: URL | Engine, guard: Guard, lock_timeout: float) -> Session:
    """A session on the database that ``source`` leads to; connects when first used.

    ``guard`` is called with the name of each live connection's database before anything else.
    """
    url = source.url if isinstance(source, Engine) else source
    if url.get_backend_name() == "postgresql":
        from cleaner.dialects.postgresql.session import PostgresSession

        return PostgresSession(source, guard, lock_timeout)
    raise SettingsError(
        f"There is no cleaner for {url.get_backend_name()!r} databases.",
        "this version knows PostgreSQL",
        'url = "postgresql+psycopg://localhost/app_test"',
    )
