"""The process that makes an embedded server, and ends it with its owner.

`EmbeddedPostgres.start` runs it as a script, with its job as JSON in the argument, the locked
``start.lock`` as stdout and the run's log as stderr. It writes the outcome into ``start.lock``,
unlocks it, and waits: for the owner to let go of byte 0 of ``owner.lock``, for the server to end
by itself, or for SIGTERM. Then it removes the directory, and ends. Should it be killed itself, the
server ends within a minute of its directory. Only the standard library is imported here.
"""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

if sys.platform != "win32":
    import fcntl

_PATIENCE = 60.0


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


def _serve(
    directory: Path, job: dict[str, Any], serving: ExitStack
) -> tuple[subprocess.Popen[bytes], dict[str, Any]]:
    """Return a server that is ready, which closing ``serving`` stops, and its port and version."""
    binaries, data = Path(job["binaries"]), directory / "data"
    # A server too obeys some of what a shell sets for its clients, such as PGCLIENTENCODING.
    environment = {name: value for name, value in os.environ.items() if name[:2] != "PG"}
    environment |= {"HOME": str(directory), "LC_ALL": "C", "TZ": "UTC"}
    spawn: dict[str, Any] = {"cwd": directory, "env": environment, "stdout": sys.stderr}
    version = subprocess.check_output([binaries / "postgres", "--version"], text=True)
    version = version.partition(") ")[2].split()[0]
    if job["user"]:
        uid, gid = job["user"]
        spawn |= {"user": uid, "group": gid, "extra_groups": []}
        if not open_to_all(binaries / "postgres"):
            binaries = _copy(binaries, directory / "copy", uid, gid)

    initdb = [str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust"]
    initdb += ["-E", "UTF8", "--locale=C", "--no-sync", "--no-instructions"]
    subprocess.run([*initdb, *_character_types(version)], check=True, timeout=_PATIENCE, **spawn)
    for _ in range(5):
        settings = {
            "port": _free_port(),
            "unix_socket_directories": directory,
            "max_files_per_process": _open_files(),
            **job["settings"],
        }
        with (data / "postgresql.conf").open("a") as configuration:
            configuration.writelines(f"{n} = {_quoted(v)}\n" for n, v in settings.items())
        server = subprocess.Popen([binaries / "postgres", "-D", data], **spawn)
        serving.callback(_stop, server)
        if port := _port_when_ready(server, data / "postmaster.pid"):
            return server, {"port": port, "version": version}
        if "could not create any TCP/IP sockets" not in tail(directory):
            break  # it was not about the port, which another process may take before the server
    raise RuntimeError(f"postgres ended with exit code {server.returncode}")


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
