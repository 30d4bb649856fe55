"""The command ``cleaner pool``: the databases of the workers, as an administrator sees them."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sqlalchemy import Engine

from cleaner.console import Console, count, print_json
from cleaner.dialects import has_pool
from cleaner.errors import ProvisionError
from cleaner.settings import Settings

if TYPE_CHECKING:
    from cleaner.provision.housekeeping import Entry
    from cleaner.provision.leases import Pool

_UNITS = ((86400, "d"), (3600, "h"), (60, "min"))
_COLOURS = {"dead": "yellow", "failed": "red", "leased": "green", "building": "green"}
_HEADINGS = ("database", "state", "worker", "host", "pid", "age", "size")


def add(
    commands: Any, command: Callable[..., Any], settings: Callable[[argparse.Namespace], Settings]
) -> None:
    """Add ``cleaner pool`` to the parser's ``commands``, each of its own by ``command``."""
    purpose = "show, provide and tidy the databases that parallel workers lease"
    pool = commands.add_parser(
        "pool",
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog="example: cleaner pool status",
    )
    actions = pool.add_subparsers(title="commands", metavar="COMMAND", required=True)
    target = _target(settings)
    status = command(
        actions,
        _status,
        "list the databases and templates: who works on which, their age and size",
        "cleaner pool status --url postgresql://localhost/app_test",
        target,
    )
    status.add_argument("--all", action="store_true", help="those of all pools on the server")
    provision = command(
        actions,
        _provision,
        "make databases for a role that may not create any, as one who may",
        "cleaner pool provision --url postgresql://admin@db/app_test --role app --count 8",
        target,
    )
    provision.add_argument(
        "--count", type=_count, required=True, metavar="N", help="have so many there"
    )
    provision.add_argument("--role", metavar="NAME", help="who owns them (default: the URL's user)")
    sweep = command(
        actions,
        _sweep,
        "drop what dead workers have left, and what nobody has used for long",
        "cleaner pool sweep --older-than 0.5",
        target,
    )
    sweep.add_argument(
        "--older-than",
        type=_days,
        metavar="DAYS",
        help="unused for so long (default: databases 1, templates and kept databases 7)",
    )
    command(
        actions,
        _drop,
        "drop all databases and templates that nobody uses, provisioned ones too; exit with 1 if "
        "any are in use",
        "cleaner pool drop --url postgresql://admin@db/app_test",
        target,
    )
    psql = command(
        actions,
        _psql,
        "run psql in a database, for instance one that was kept; without url, start the embedded "
        "PostgreSQL for as long",
        "cleaner pool psql test_kept_1",
        target,
    )
    psql.add_argument("name", metavar="DATABASE", help="as `cleaner pool status` calls it")
    psql.add_argument("-c", "--command", metavar="SQL", help="run that and end")


def _target(settings: Callable[[argparse.Namespace], Settings]) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--url",
        help="what the databases are called like (default: the settings', and without it the "
        "embedded PostgreSQL)",
    )
    parser.add_argument(
        "--database", metavar="NAME", help="the one of [tool.cleaner.databases.NAME]"
    )
    parser.set_defaults(settings=settings)
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number from 1 on")
    return int(text)


def _days(text: str) -> timedelta:
    with suppress(ValueError, OverflowError):
        if (age := timedelta(days=float(text))) >= timedelta(0):
            return age
    raise argparse.ArgumentTypeError(f"{text} is not a number of days")


@contextmanager
def _pool(options: argparse.Namespace, console: Console) -> Iterator[Pool]:
    """The pool of the settings' URL, or that of the embedded server, which starts for it."""
    from cleaner.provision.leases import Pool

    settings = options.settings(options)
    url = settings.url
    if url is not None:
        at = url.url if isinstance(url, Engine) else url
        if not has_pool(at):
            raise ProvisionError(
                f"There is no pool for {at.render_as_string()}.",
                "databases are cloned and leased on PostgreSQL only",
                "cleaner pool --url postgresql://localhost/app_test",
            )
        yield Pool(at, settings.lock_timeout)
        return
    from cleaner.provision.embedded import EmbeddedPostgres

    console.progress("starting the embedded PostgreSQL")
    with EmbeddedPostgres(keep=True) as server:
        if not server.kept:
            raise ProvisionError(
                "The embedded PostgreSQL's databases are not to be had now.",
                "a test run is using them",
                "try again when it has ended; or --url, if you mean another server",
            )
        yield Pool(server.url("test"), settings.lock_timeout)


def _status(options: argparse.Namespace, console: Console) -> int:
    with _pool(options, console) as pool:
        entries = pool.status(options.all)
        base = pool.base
    if options.json:
        print_json({"base": base, "databases": [asdict(entry) for entry in entries]})
    elif entries:
        _print_table(entries, console)
    else:
        console.say(f"There are no databases of the pool {base}.")
    return 0


def _print_table(entries: list[Entry], console: Console) -> None:
    rows = [
        (
            entry.database,
            entry.state,
            entry.worker or "",
            entry.host or "",
            str(entry.pid or ""),
            _age(entry.age),
            _size(entry.size),
        )
        for entry in entries
    ]
    widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]

    def line(cells: Iterable[str], note: str = "", colour: str = "") -> str:
        padded = [
            f"{cell:<{width}}" if number < 4 else f"{cell:>{width}}"
            for number, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        if colour:
            padded[1] = console.paint(colour, padded[1])
        return "  ".join([*padded, note]).rstrip()

    console.say(console.paint("bold", line(_HEADINGS)))
    for entry, row in zip(entries, rows, strict=True):
        note = " ".join(entry.note.split())
        console.say(line(row, note, _COLOURS.get(entry.state, "")))


def _age(seconds: float) -> str:
    for length, unit in _UNITS:
        if seconds >= length:
            return f"{int(seconds // length)} {unit}"
    return f"{max(0, int(seconds))} s"


def _size(size: int | None) -> str:
    return "" if size is None else f"{size / 1024**2:.1f} MB"


def _provision(options: argparse.Namespace, console: Console) -> int:
    with _pool(options, console) as pool:
        made = pool.provision(options.count, options.role or "", console.progress)
    if options.json:
        print_json({"made": made})
    else:
        console.say(f"made {count(len(made), 'database')}{_list(made)}")
    return 0


def _sweep(options: argparse.Namespace, console: Console) -> int:
    with _pool(options, console) as pool:
        dropped = pool.sweep_all(options.older_than, console.progress)
    if options.json:
        print_json({"dropped": dropped.databases, "failed": dropped.failed})
    else:
        console.say(
            f"dropped {count(len(dropped.databases), 'database')}{_list(dropped.databases)}"
        )
        _say_left(dropped.failed, console)
    return 1 if dropped.failed else 0


def _drop(options: argparse.Namespace, console: Console) -> int:
    with _pool(options, console) as pool:
        dropped = pool.drop(console.progress)
    if options.json:
        names = {"dropped": dropped.databases, "left": dropped.left, "failed": dropped.failed}
        print_json(names)
    else:
        console.say(
            f"dropped {count(len(dropped.databases), 'database')}{_list(dropped.databases)}"
        )
        _say_left(dropped.left | dropped.failed, console)
    return 1 if dropped.left or dropped.failed else 0


def _list(names: list[str]) -> str:
    return "".join(f"\n  {name}" for name in names)


def _say_left(names: dict[str, str], console: Console) -> None:
    if names:
        console.say(f"{console.paint('yellow', 'left')} {count(len(names), 'database')}")
    for name, why in names.items():
        console.say(f"  {name}: {why}")


def _psql(options: argparse.Namespace, console: Console) -> int:
    with _pool(options, console) as pool:
        words = shlex.split(pool.psql(options.name))
        words[0] = _program(words[0])
        if options.command is not None:
            words += ["-c", options.command]
        environment = dict(os.environ)
        if pool.url.password is not None:
            environment["PGPASSWORD"] = str(pool.url.password)
        console.progress("")
        code = subprocess.run(words, env=environment, check=False).returncode
    return 1 if code else 0


def _program(name: str) -> str:
    """Where that program of PostgreSQL's is: on PATH, or where the embedded one's binaries are."""
    from cleaner.provision.embedded import find_binaries

    if found := shutil.which(name):
        return found
    program = find_binaries() / name
    if not program.exists():
        raise ProvisionError(
            f"{name} is not installed.", "it is no part of every package", f"install {name}"
        )
    return str(program)
