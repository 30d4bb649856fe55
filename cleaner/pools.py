"""Connections that SQLAlchemy's pools in this process hold to a database that was replaced."""

from __future__ import annotations

import threading
import time
from typing import Any

from sqlalchemy import event
from sqlalchemy.exc import DisconnectionError
from sqlalchemy.pool import ConnectionPoolEntry, Pool, PoolProxiedConnection

__all__ = ["forget_connections"]

_PROVEN = "cleaner.alive_after"
_installing = threading.Lock()
_moment = 0.0  # connections made after it need no proof


def forget_connections() -> None:
    """Have every engine of this process replace its pooled connections that are dead by now.

    A connection made before this moment has to answer its dialect's ping when it is checked out
    next; if it can't, the pool opens another one in its place, and the caller gets that. One ping
    for each: those to other databases answer, and are kept with all their state. Connections that
    are checked out at this moment are their holders' concern.

    Serves pools of any class and driver that belong to an engine, asynchronous ones too.
    """
    global _moment  # noqa: PLW0603
    with _installing:
        if not event.contains(Pool, "checkout", _prove):
            event.listen(Pool, "checkout", _prove)
        _moment = time.time()


def _prove(
    connection: Any, record: ConnectionPoolEntry, checked_out: PoolProxiedConnection
) -> None:
    moment = _moment
    if getattr(record, "last_connect_time", 0.0) > moment:
        return
    if record.info.get(_PROVEN) != moment:
        # The pool's dialect is not to be had otherwise: engines do not know of each other.
        dialect = checked_out._pool._dialect
        if _is_dead(dialect, connection):
            raise DisconnectionError("the database of this connection was replaced")
        record.info[_PROVEN] = moment


def _is_dead(dialect: Any, connection: Any) -> bool:
    if not hasattr(dialect, "loaded_dbapi"):  # a pool without an engine
        return False
    driver = dialect.loaded_dbapi
    try:
        return dialect.do_ping(connection) is False  # so SQLAlchemy 2.0.0; later ones raise
    # In the instant in which a session ends some drivers raise what dialects do not recognise.
    except (driver.OperationalError, driver.InterfaceError, OSError):
        return True
    except driver.Error as error:
        # Else it is in the middle of something: its holder shares it.
        return bool(dialect.is_disconnect(error, connection, None))
