"""A private MariaDB server for tests, of the binaries that Debian installs."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pymysql
import pytest
from sqlalchemy import URL

from cleaner import Cleaner

INSTALL = "apt-get install -y mariadb-server"
_PATIENCE = 60.0
# As small and as fast as it gets: nothing has to survive a crash of the machine.
_OPTIONS = (
    "--no-defaults",
    "--skip-log-bin",
    "--sync-frm=0",
    "--innodb-flush-log-at-trx-commit=0",
    "--innodb-flush-method=nosync",
    "--innodb-doublewrite=0",
    "--innodb-log-file-size=32M",
    "--innodb-buffer-pool-size=64M",
    "--innodb-fast-shutdown=2",
    "--innodb-temp-data-file-path=ibtmp1:4M:autoextend",
    "--aria-pagecache-buffer-size=8M",
    "--performance-schema=OFF",
    "--skip-name-resolve",
    "--max-connections=200",
    "--table-open-cache=4000",
    "--table-definition-cache=4000",
    "--plugin-maturity=unknown",
)


def installed() -> bool:
    """Whether there is a server to start."""
    return _binary("mariadbd") is not None and _binary("mariadb-install-db") is not None


def _memory() -> Path | None:
    """Where files are in memory: to make and drop tables is twenty times as fast there."""
    place = Path("/dev/shm")
    free = shutil.disk_usage(place).free if os.access(place, os.W_OK) else 0
    return place if free > 1 << 30 else None


def _binary(name: str) -> str | None:
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")


class MariaDB:
    """A server on a socket and a port of its own, in a directory that goes with it.

    A watchdog ends it when :meth:`close` is called or this process is gone, however it ended.
    """

    def __init__(self, *options: str) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="cleaner-mariadb-", dir=_memory()))
        self.socket = self.directory / "socket"
        self.port = _free_port()
        self._watchdog: subprocess.Popen[bytes] | None = None
        user = ["--user=mysql"] if os.geteuid() == 0 else []
        if user:
            shutil.chown(self.directory, "mysql")
            self.directory.chmod(0o755)
        data = f"--datadir={self.directory / 'data'}"
        install = _binary("mariadb-install-db")
        server = _binary("mariadbd")
        assert install
        assert server
        command = [
            server, *_OPTIONS, data, f"--socket={self.socket}", f"--port={self.port}",
            "--bind-address=127.0.0.1", f"--pid-file={self.directory / 'pid'}",
            f"--log-error={self.directory / 'log.err'}", f"--tmpdir={self.directory}",
            *user, *options,
        ]  # fmt: skip
        try:
            subprocess.run(
                [
                    install, "--no-defaults", data, "--skip-test-db", "--skip-name-resolve",
                    "--auth-root-authentication-method=normal", *user,
                ],
                check=True,
                capture_output=True,
                # Each would remove the temporary tables of all others that use the same.
                env={**os.environ, "TMPDIR": str(self.directory)},
            )  # fmt: skip
            self._watchdog = subprocess.Popen(
                [sys.executable, __file__, str(self.directory), *command],
                stdin=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is the owner's to answer
            )
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        deadline = time.monotonic() + _PATIENCE
        while True:
            try:
                with socket.socket(socket.AF_UNIX) as probe:
                    probe.connect(str(self.socket))
                self.connect().close()
                return
            except OSError:
                assert self._watchdog
                if self._watchdog.poll() is not None or time.monotonic() > deadline:
                    log = self.directory / "log.err"
                    text = log.read_text(errors="replace")[-2000:] if log.exists() else "no log"
                    raise RuntimeError(f"mariadbd did not start: {text}") from None
                time.sleep(0.01)

    def connect(self, database: str | None = None, user: str = "root", **keywords: Any) -> Any:
        """A new connection, the caller's to close; ``autocommit`` unless said otherwise."""
        return pymysql.connect(
            unix_socket=str(self.socket),
            user=user,
            database=database,
            **{"autocommit": True, "charset": "utf8mb4", **keywords},
        )

    def url(self, database: str | None, user: str = "root", backend: str = "mariadb") -> URL:
        """The URL of a database, over the socket."""
        query = {"unix_socket": str(self.socket), "charset": "utf8mb4"}
        return URL.create(
            f"{backend}+pymysql", user, host="localhost", database=database, query=query
        )

    def restart(self) -> None:
        """End the server as a crash would, and have another on the same data."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline:
            with suppress(FileNotFoundError, ValueError):  # it is being written
                if self.pid != pid:
                    self._wait()
                    return
            time.sleep(0.01)
        raise RuntimeError("mariadbd did not come back")

    @property
    def pid(self) -> int:
        """The server's process."""
        return int((self.directory / "pid").read_text())

    def close(self) -> None:
        """End the server and remove its directory. Harmless when done twice."""
        if self._watchdog is not None:
            assert self._watchdog.stdin
            self._watchdog.stdin.close()
            self._watchdog.wait()
            self._watchdog = None
        shutil.rmtree(self.directory, ignore_errors=True)


class MariaDatabase:
    """A database that belongs to one test, and ways to look at it behind the cleaner's back."""

    def __init__(self, server: MariaDB) -> None:
        self.server = server
        self.name = f"test_{uuid.uuid4().hex[:10]}"
        self._session = server.connect()
        self._others: list[str] = []
        self.execute(f"CREATE DATABASE {self.name} CHARACTER SET utf8mb4; USE {self.name}")

    @property
    def url(self) -> URL:
        return self.server.url(self.name)

    def connect(self, user: str = "root", **keywords: Any) -> Any:
        """A new connection, the caller's to close; ``autocommit`` unless said otherwise."""
        return self.server.connect(self.name, user, **keywords)

    @contextmanager
    def transaction(self, *statements: str, user: str = "root") -> Iterator[Any]:
        """A cursor in an open transaction in which these have run; rolled back in the end."""
        connection = self.connect(user, autocommit=False)
        try:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            yield cursor
            connection.rollback()
        finally:
            if connection.open:
                connection.close()

    def execute(self, sql: str) -> list[tuple[Any, ...]]:
        """Run statements, parted by semicolons at line ends, as root; the last one's rows."""
        rows: list[tuple[Any, ...]] = []
        for statement in sql.replace("; ", ";\n").split(";\n"):
            if statement.strip():
                cursor = self._session.cursor()
                cursor.execute(statement)
                rows = list(cursor.fetchall())
        return rows

    def scalar(self, sql: str) -> Any:
        """The first column of the first row."""
        return self.execute(sql)[0][0]

    def count(self, table: str) -> int:
        """How many rows a table holds."""
        return int(self.scalar(f"SELECT COUNT(*) FROM {table}"))

    def counter(self, table: str) -> int:
        """The next AUTO_INCREMENT of a table."""
        return int(
            self.scalar(
                "SELECT AUTO_INCREMENT FROM information_schema.TABLES"
                f" WHERE TABLE_SCHEMA = '{self.name}' AND TABLE_NAME = '{table}'"
            )
        )

    def another(self) -> str:
        """The name of another database on the server, dropped with this one."""
        name = f"{self.name}_other"
        self.execute(f"CREATE DATABASE {name}")
        self._others.append(name)
        return name

    def plain_user(self) -> str:
        """The name of a user with all privileges on this database, and none beyond it."""
        name = f"plain_{self.name}"
        self.execute(f"CREATE USER {name}; GRANT ALL ON {self.name}.* TO {name}")
        return name

    def cleaner(self, metadata: object = None, *, user: str = "root", **settings: Any) -> Cleaner:
        """A cleaner of this database, as root unless a ``user`` is given."""
        return Cleaner(self.server.url(self.name, user), metadata, **settings)

    def close(self) -> None:
        """Drop it, whoever has it in use."""
        for (pid,) in self.execute(
            "SELECT ID FROM information_schema.PROCESSLIST WHERE ID <> CONNECTION_ID()"
            f" AND DB LIKE '{self.name}%'"
        ):
            with suppress(pymysql.err.OperationalError):  # it has gone
                self.execute(f"KILL {pid}")
        for name in [*self._others, self.name]:
            self.execute(f"DROP DATABASE IF EXISTS {name}")
        self.execute(f"DROP USER IF EXISTS plain_{self.name}")
        self._session.close()


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[MariaDB]:
    """This process's own server."""
    if not installed():
        pytest.skip(f"no mariadbd here: {INSTALL}")
    server = MariaDB()
    yield server
    server.close()


@pytest.fixture
def mariadb(mariadb_server: MariaDB) -> Iterator[MariaDatabase]:
    """An empty database of this test's own."""
    database = MariaDatabase(mariadb_server)
    yield database
    database.close()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _watch(directory: str, command: list[str]) -> None:
    """Run the server until our standard input ends, which it does with the owner's life; start
    it anew should it crash.
    """
    reader = os.fdopen(0, "rb", buffering=0)
    os.set_blocking(0, False)
    server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
    try:
        while reader.read(1) != b"":
            if server.poll() is not None:
                if server.returncode != -signal.SIGKILL:
                    return
                server = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
            time.sleep(0.05)
    finally:
        server.kill()  # nothing on it is to be kept
        server.wait()
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    _watch(sys.argv[1], sys.argv[2:])
