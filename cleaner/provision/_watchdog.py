"""The process that makes an embedded server, and ends it with its owner.

`EmbeddedPostgres.start` runs it as a script, with its job as JSON in the argument, the locked
``start.lock`` as stdout and the run's log as stderr. It writes the outcome into ``start.lock``,
unlocks it, and waits: for the owner to let go of byte 0 of ``owner.lock``, for the server to end
by itself, or for SIGTERM. Then it removes the directory, and ends. Should it be killed itself, the
server ends within a minute of its directory. Only the standard library is imported here.

A cluster that is kept has a place of its own below the cache, in which are:

    data             the cluster; nothing there is written to but by the server
    old, part-*      one that did not start, until another does in its place; parts of others
    run              while it is in use: the run's directory, and the boot of the machine
    watchdog.lock    locked by the watchdog, for as long as it lives
    server.lock      locked by the watchdog and by each process of the server, which inherits it

Whoever holds both locks knows that no server is on the cluster, whatever its postmaster.pid says;
who gets only the first has met a server whose watchdog was killed.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, NamedTuple

if sys.platform != "win32":
    import fcntl
    import resource

_PATIENCE = 60.0
_Started = tuple[subprocess.Popen[bytes], int]


def main(job: dict[str, Any]) -> None:
    """Make the server that ``job`` describes, say so or why not, and see it to its end."""
    if os.fork():
        os._exit(0)  # the starter reaps this half; the other is nobody's child, and no zombie
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    directory = Path(job["directory"])
    owner = os.open(directory / "owner.lock", os.O_RDWR)  # never closed: the lock is our life
    fcntl.lockf(owner, fcntl.LOCK_EX, 1, 1)
    with ExitStack() as stack:
        stack.callback(_remove, directory)
        serving = stack.enter_context(ExitStack())
        server = None
        try:
            server, outcome = _serve(directory, job, serving)
        except Exception as error:
            serving.close()
            outcome = {"error": f"{error}\n{tail(directory)}".strip()}
        os.write(1, json.dumps(outcome).encode())
        fcntl.flock(1, fcntl.LOCK_UN)  # not just closed: a fork of the starter may hold it open
        if server:
            threading.Thread(target=_end_with_owner, args=(owner, server), daemon=True).start()
            server.wait()
        else:
            fcntl.lockf(owner, fcntl.LOCK_EX, 1, 0)


def tail(directory: Path) -> str:
    """Return the last lines of the run's log, nothing if it is gone."""
    with suppress(OSError):
        return "\n".join((directory / "log").read_text(errors="replace").splitlines()[-12:])
    return ""


def open_to_all(path: Path) -> bool:
    """Tell whether everybody may enter or run ``path``."""
    path = path.resolve()
    return all(part.stat().st_mode & 0o001 for part in (path, *path.parents))


def take(place: Path, user: tuple[int, int] | None) -> list[int] | None:
    """Lock the kept cluster in ``place``; return the locks, None if a living run has it.

    They last until both are closed. A server that has lost its watchdog and its owner is ended.
    """
    watchdog = _lock(place / "watchdog.lock")
    if watchdog is None:
        return None
    server = _lock(place / "server.lock")
    if server is None and not _owned(place):
        with suppress(OSError, ValueError):
            pid = int((place / "data" / "postmaster.pid").read_text().splitlines()[0])
            if pid > 1:  # it is the server's user who says so, and who may signal its own only
                quit_ = ["sh", "-c", f"kill -QUIT {pid} 2>&-"]
                subprocess.run(quit_, check=False, cwd="/", **_as(user))
        deadline = time.monotonic() + 10
        while (server := _lock(place / "server.lock")) is None and time.monotonic() < deadline:
            time.sleep(0.02)
    if server is None:
        os.close(watchdog)
        return None
    return [watchdog, server]


def _lock(path: Path) -> int | None:
    """Lock the file ``path`` unless another process does, and not one that was removed since."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            return None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        os.close(lock)


def _owned(place: Path) -> bool:
    """Tell whether the owner of the run that uses the kept cluster in ``place`` is alive."""
    with suppress(OSError, ValueError):
        run = json.loads((place / "run").read_text())["directory"]
        owner = os.open(Path(run) / "owner.lock", os.O_RDWR)
        try:
            fcntl.lockf(owner, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, 0)
        except OSError:
            return True
        finally:
            os.close(owner)
    return False


def _as(user: tuple[int, int] | None) -> dict[str, Any]:
    return {"user": user[0], "group": user[1], "extra_groups": []} if user else {}


class _Run(NamedTuple):
    """What it takes to make a cluster, and to start a server on it."""

    directory: Path
    binaries: Path
    initdb: list[str]
    settings: dict[str, Any]
    user: tuple[int, int] | None
    spawn: dict[str, Any]


def _serve(
    directory: Path, job: dict[str, Any], serving: ExitStack
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Return a server that is ready, which closing ``serving`` stops, and what is to know of it."""
    binaries, data, user = Path(job["binaries"]), directory / "data", job["user"]
    # A server too obeys some of what a shell sets for its clients, such as PGCLIENTENCODING.
    environment = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
    environment |= {"HOME": str(directory), "LC_ALL": "C", "TZ": "UTC"}
    spawn: dict[str, Any] = {"cwd": directory, "env": environment, "stdout": sys.stderr}
    version = subprocess.check_output([binaries / "postgres", "--version"], text=True)
    version = version.partition(") ")[2].split()[0]
    initdb = ["-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]
    initdb += ["--no-instructions", *_character_types(version)]
    kind = hashlib.sha256("\0".join([str(binaries), *initdb]).encode()).hexdigest()[:12]
    if user and not open_to_all(binaries / "postgres"):
        binaries = _copy(binaries, directory / "copy", *user)
    run = _Run(directory, binaries, initdb, job["settings"], user, spawn | _as(user))

    place = job["cache"] and Path(job["cache"]) / f"{version}-{os.uname().machine}-{kind}"
    if place and (locks := _claim(run, place, serving)):
        data.symlink_to(place / "data")
        server, port = _serve_kept(run, place, locks, serving)
    else:
        place = None
        _make(run, data)
        server, port = _start(run, data, serving)
    return server, {"port": port, "version": version, "kept": bool(place)}


def _claim(run: _Run, place: Path, serving: ExitStack) -> list[int] | None:
    """Lock ``place`` until ``serving`` is closed, return the locks; None if that can't be."""
    try:
        place.mkdir(exist_ok=True)
        place.chmod(0o711 if run.user else 0o700)
        if locks := take(place, run.user):
            serving.callback(_let_go, place, locks)
            return locks
    except OSError as error:
        _say(f"the kept cluster can't be used: {error}")
    else:
        _say("the kept cluster is in use: this run has one of its own")
    return None


def _let_go(place: Path, locks: list[int]) -> None:
    (place / "run").unlink(missing_ok=True)
    for lock in locks:
        os.close(lock)


def _serve_kept(run: _Run, place: Path, locks: list[int], serving: ExitStack) -> _Started:
    """Start a server on the cluster in ``place``; on a new one, if there is none that starts.

    One that does not start is removed only once another has: the settings may be to blame.
    """
    data, old = place / "data", place / "old"
    for part in place.glob("part-*"):  # of what was being made, or removed
        _remove(part)
    if old.exists():
        _remove(old) if data.exists() else old.rename(data)
    if data.exists() and _crashed(place):
        _say("the kept cluster was in use when the machine went down, and is made anew")
        _discard(data)
    with (place / "run").open("w") as file:
        json.dump({"directory": str(run.directory), "boot": _boot()}, file)
        file.flush()
        os.fsync(file.fileno())
    if data.exists():
        for stale in ("postmaster.pid", "postgresql.auto.conf"):
            (data / stale).unlink(missing_ok=True)
        try:
            return _start(run, data, serving, locks[1:])
        except Exception as error:
            _say(f"the kept cluster does not start, and is made anew: {error}")
        data.rename(old)
    try:
        new = _part(place)
        if run.user:
            os.chown(new, *run.user)
        _make(run, new)
        new.rename(data)
        started = _start(run, data, serving, locks[1:])
    except Exception:
        if old.exists():
            _discard(data)
            old.rename(data)
        raise
    _remove(old)
    return started


def _part(place: Path) -> Path:
    return Path(tempfile.mkdtemp(prefix="part-", dir=place))


def _discard(data: Path) -> None:
    """Remove a cluster such that a kill leaves none that looks whole."""
    if data.exists():
        _remove(data.rename(_part(data.parent)))


def _crashed(place: Path) -> bool:
    """Tell whether the machine went down during a run: what no fsync has saved may be garbage."""
    try:
        return bool(json.loads((place / "run").read_text())["boot"] != _boot())
    except FileNotFoundError:
        return False
    except (ValueError, KeyError):
        return True


def _boot() -> str:
    """Return what Linux calls this boot of the machine, nothing elsewhere."""
    with suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return ""


def _make(run: _Run, data: Path) -> None:
    command = [str(run.binaries / "initdb"), "-D", str(data), *run.initdb]
    subprocess.run(command, check=True, timeout=_PATIENCE, **run.spawn)


def _start(run: _Run, data: Path, serving: ExitStack, inherited: Sequence[int] = ()) -> _Started:
    """Return a server that is ready, which closing ``serving`` stops, and its port.

    It is configured outside of its cluster: there, nothing grows or stays from run to run.
    """
    configuration = run.directory / "postgresql.conf"
    for _ in range(5):
        settings = {
            "port": _free_port(),
            "unix_socket_directories": run.directory,
            "max_files_per_process": _open_files(),
            **run.settings,
        }
        configuration.unlink(missing_ok=True)
        with configuration.open("x") as file:
            file.write(f"include {_quoted(data / 'postgresql.conf')}\n")
            file.writelines(f"{name} = {_quoted(value)}\n" for name, value in settings.items())
        configuration.chmod(0o644)
        command = [str(run.binaries / "postgres"), "-D", str(data)]
        command += ["-c", f"config_file={configuration}"]
        with ExitStack() as attempt:
            server: subprocess.Popen[bytes] = subprocess.Popen(
                command, pass_fds=inherited, **run.spawn
            )
            attempt.callback(_stop, server)
            if port := _port_when_ready(server, data / "postmaster.pid"):
                serving.push(attempt.pop_all())
                return server, port
        if "could not create any TCP/IP sockets" not in tail(run.directory):
            break  # it was not about the port, which another process may take before the server
    raise RuntimeError(f"postgres ended with exit code {server.returncode}")


def _say(line: str) -> None:
    sys.stderr.write(f"cleaner: {line}\n")


def _open_files() -> int:
    """Let each server process keep as many files open as it may: a thousand tables are thousands
    of files, and the default makes it open and close them in turns. Return how many that are.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    enough = 10_000 if hard == resource.RLIM_INFINITY else min(hard, 10_000)
    if soft < enough:
        resource.setrlimit(resource.RLIMIT_NOFILE, (enough, hard))
    return max(1000, enough - 1000)


def _copy(binaries: Path, into: Path, uid: int, gid: int) -> Path:
    """Copy the installation of ``binaries`` for that user to read; return where they are then."""
    package = binaries.parents[1]
    around = package.parent  # in the wheel, shared libraries are beside the package or hidden in it
    libraries = (binaries.parent / "lib", package / ".dylibs", around / f"{package.name}.libs")
    for tree in filter(Path.is_dir, (binaries, binaries.parent / "share", *libraries)):
        target = into / tree.relative_to(around)
        shutil.copytree(tree, target, ignore_dangling_symlinks=True)
    for path in (into, *into.rglob("*")):
        os.chown(path, uid, gid)
    return into / binaries.relative_to(around)


def _character_types(version: str) -> list[str]:
    """Return initdb's options for an upper() that knows more letters than ASCII's.

    They cost nothing: text is compared byte by byte all the same, as in the C locale.
    """
    if int(re.split(r"\D", version)[0]) >= 17:
        return ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    return ["--lc-ctype=C.UTF-8"] if sys.platform == "linux" else []


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def _quoted(value: object) -> str:
    return "'" + str(value).replace("\\", "\\\\").replace("'", "''") + "'"


def _port_when_ready(server: subprocess.Popen[bytes], pidfile: Path) -> int | None:
    """Wait for ``server`` and return its port, None if it ended instead."""
    deadline = time.monotonic() + _PATIENCE
    while server.poll() is None:
        with suppress(OSError):
            lines = pidfile.read_text().splitlines()
            if len(lines) > 7 and lines[7].strip() == "ready":
                return int(lines[3])
        if time.monotonic() > deadline:
            raise TimeoutError(f"postgres was not ready after {_PATIENCE:.0f} s")
        time.sleep(0.005)
    return None


def _end_with_owner(owner: int, server: subprocess.Popen[bytes]) -> None:
    fcntl.lockf(owner, fcntl.LOCK_EX, 1, 0)
    _stop(server)


def _stop(server: subprocess.Popen[bytes]) -> None:
    """End ``server``: fast, immediately if it doesn't obey, and by force if it can't."""
    for request, patience in ((signal.SIGINT, 5), (signal.SIGQUIT, 10), (signal.SIGKILL, None)):
        server.send_signal(request)
        with suppress(subprocess.TimeoutExpired):
            server.wait(patience)
            return


def _remove(directory: Path) -> None:
    """Remove ``directory``, though a killed server's children may write to it for a moment yet."""
    for _ in range(50):
        shutil.rmtree(directory, ignore_errors=True)
        if not directory.exists():
            return
        time.sleep(0.1)


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
