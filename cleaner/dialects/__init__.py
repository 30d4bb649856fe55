"""One package per kind of database: all SQL is in here."""

from __future__ import annotations

from sqlalchemy import URL, Engine

from cleaner.dialects.base import Done, Guard, Health, OwnDatabase, Prepared, Session, Turns

__all__ = [
    "Done",
    "Health",
    "OwnDatabase",
    "Prepared",
    "Session",
    "Turns",
    "connect",
    "has_pool",
    "own_database",
    "turns",
]


def connect(source: URL | Engine, guard: Guard, lock_timeout: float) -> Session:
    """A session on the database that ``source`` leads to; connects when first used.

    ``guard`` is called with the name of each live connection's database before anything else.
    """
    url = source.url if isinstance(source, Engine) else source
    if url.get_backend_name() == "postgresql":
        from cleaner.dialects.postgresql.session import PostgresSession

        return PostgresSession(source, guard, lock_timeout)
    if url.get_backend_name() in ("mysql", "mariadb"):
        from cleaner.dialects.mysql.session import MySQLSession

        return MySQLSession(source, guard, lock_timeout)
    if url.get_backend_name() == "sqlite":
        from cleaner.dialects.sqlite.session import SqliteSession

        return SqliteSession(source, guard, lock_timeout)
    from cleaner.dialects.generic.session import GenericSession

    return GenericSession(source, guard, lock_timeout)


def has_pool(url: URL) -> bool:
    """Whether there can be a pool of databases on the server of ``url``: see
    :mod:`cleaner.provision.leases`.
    """
    return url.get_backend_name() == "postgresql"


def own_database(url: URL, worker: str, guard: Guard, lock_timeout: float) -> OwnDatabase | None:
    """A database of the process's own beside that of ``url``; None where the dialect has no way to
    make one. ``worker`` is how it is shown to others. ``guard`` is called with the name of the
    configured one before anything is made. Raises ProvisionError.
    """
    if url.get_backend_name() == "sqlite":
        from cleaner.dialects.sqlite.own import own_sqlite

        return own_sqlite(url, worker, guard)
    if url.get_backend_name() in ("mysql", "mariadb"):
        from cleaner.dialects.mysql.own import OwnSchema

        return OwnSchema(url, worker, guard, lock_timeout)
    return None


def turns(url: URL, lock_timeout: float) -> Turns | None:
    """Turns at the database of ``url`` itself; None where the dialect has no way to take them."""
    if has_pool(url):
        from cleaner.dialects.postgresql.turns import PostgresTurns

        return PostgresTurns(url, lock_timeout)
    if url.get_backend_name() in ("mysql", "mariadb"):
        from cleaner.dialects.mysql.own import SchemaTurns

        return SchemaTurns(url, lock_timeout)
    return None
