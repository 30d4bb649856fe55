"""The command ``cleaner``: parse, call, print.

It ends with 0 when it is done, 1 when something was refused or failed, or differs from the
baseline, 2 on wrong usage.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from cleaner import Cleaner, Settings, __version__, pool_cli
from cleaner.console import Console, baseline, count, print_json
from cleaner.errors import Blocker, CleanerError, SettingsError
from cleaner.spi import Plan

_INTERRUPTED, _BROKEN_PIPE = 130, 141
_OPTIONS = ("url", "metadata", "strategy", "only", "exclude", "schemas")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: those of the process); return the exit code."""
    options = _parser().parse_args(arguments)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a name the terminal can't show
    if "" not in sys.path:
        sys.path.insert(0, "")  # the working directory: `--metadata app.models:Base` is there
    try:
        code: int = options.run(options, Console(quiet=options.json))
        sys.stdout.flush()
        return code
    except CleanerError as error:
        return _fail(error, options.json)
    except KeyboardInterrupt:
        return _INTERRUPTED
    except BrokenPipeError:
        # Python flushes standard output once more when it ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _BROKEN_PIPE


def _fail(error: CleanerError, as_json: bool) -> int:
    if as_json:
        from cleaner.doctor import explained

        print_json(explained(error))
    else:
        print(error, file=sys.stderr)
    return 1


# -- usage ----------------------------------------------------------------------------------


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="cleaner",
        description="Puts a test database back to its baseline.",
        epilog="example: cleaner demo",
    )
    parser.add_argument("--version", action="version", version=f"cleaner {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    _command(
        commands,
        _demo,
        "show on a shop's database what each strategy does, what it costs, and what is refused",
        "cleaner demo",
    )
    target = _target()
    _command(
        commands,
        _plan,
        "print the SQL that `cleaner clean` would run, and run nothing",
        "cleaner plan --url postgresql://localhost/app_test --exclude country",
        target,
    )
    _command(
        commands,
        _clean,
        "put the tables and the sequences back to their baseline",
        "cleaner clean --metadata app.models:Base --strategy truncate",
        target,
    )
    _command(
        commands,
        _diff,
        "show what differs from the baseline, by table; exit with 1 if anything does",
        "cleaner diff --url postgresql://localhost/app_test",
        target,
    )
    _command(
        commands,
        _capture,
        "make the rows that the database holds now its baseline",
        "cleaner capture --table country --table role",
        target,
        _tables(),
    )
    _command(
        commands,
        _release,
        "forget what was captured: the baseline is no rows again",
        "cleaner release --url postgresql://localhost/app_test",
        target,
    )
    _command(
        commands,
        _doctor,
        "check settings, connection, privileges and strategies; say what to write where one fails",
        "cleaner doctor --database reports",
        target,
    )
    pool_cli.add(commands, _command, _settings)
    return parser


def _command(
    commands: Any, run: Callable[..., int], purpose: str, example: str, *parents: Any
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        run.__name__.removeprefix("_"),
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=f"example: {example}",
        parents=parents,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead")
    parser.set_defaults(run=run)
    return parser


def _target() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    group = parser.add_argument_group(
        "settings", "stronger than CLEANER_... in the environment, and that than [tool.cleaner]"
    )
    add = group.add_argument
    add("--url", help="the database, for instance postgresql+psycopg://localhost/app_test")
    add("--metadata", metavar="PATH", help="the models, for instance app.models:Base")
    add("--strategy", metavar="NAME", help="how to clean; `cleaner doctor` lists those installed")
    repeatable = "name or pattern; may be given several times"
    add("--only", action="append", metavar="TABLE", help=f"clean these tables: {repeatable}")
    add("--exclude", action="append", metavar="TABLE", help=f"leave these tables: {repeatable}")
    add("--schemas", action="append", metavar="SCHEMA", help=f"clean these schemas: {repeatable}")
    add("--database", metavar="NAME", help="the one of [tool.cleaner.databases.NAME]")
    return parser


def _tables() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--table",
        action="append",
        metavar="NAME",
        help="of these tables only: name or pattern; may be given several times",
    )
    return parser


def _settings(options: argparse.Namespace) -> Settings:
    settings = Settings.load()
    if options.database is not None:
        settings = settings.database(options.database)
    given = {name: getattr(options, name, None) for name in _OPTIONS}
    return settings.merged(
        {key: value for key, value in given.items() if value is not None}, "option"
    )


def _cleaner(options: argparse.Namespace) -> Cleaner:
    settings = _settings(options)
    if settings.url is None:
        raise SettingsError(
            "There is no database to clean: url is not set.",
            "neither pyproject.toml, nor CLEANER_URL, nor --url says where it is",
            "--url postgresql+psycopg://localhost/app_test, or url = ... in [tool.cleaner]",
        )
    return Cleaner(settings=settings)


# -- commands -------------------------------------------------------------------------------


def _plan(options: argparse.Namespace, console: Console) -> int:
    with _cleaner(options) as cleaner:
        plan = cleaner.plan()
        captured = cleaner.captured
    if options.json:
        names = ("strategy", "tables", "sequences", "warnings", "sql")
        print_json({name: getattr(plan, name) for name in names} | {"captured": captured})
    else:
        console.say("\n".join(_commented(plan, captured)))
        console.say(str(plan))
    return 0


def _commented(plan: Plan, captured: dict[str, int]) -> list[str]:
    """The plan as comments of SQL, so that the whole output is a script."""
    lines = [f"strategy: {plan.strategy}", f"{count(len(plan.tables), 'table')}, in this order:"]
    for name in plan.tables:
        rows = captured.get(name)
        lines.append(f"    {name}" + (f", back to {count(rows, 'captured row')}" if rows else ""))
    place = "back to the captured position" if captured else "back to START"
    lines += [f"{count(len(plan.sequences), 'sequence')}, {place}:"]
    lines += [f"    {name}" for name in plan.sequences]
    lines += [f"warning: {warning}" for warning in plan.warnings]
    return [f"-- {' '.join(line.splitlines())}" for line in lines]


def _clean(options: argparse.Namespace, console: Console) -> int:
    with _cleaner(options) as cleaner:
        report = cleaner.clean()
    if options.json:
        print_json(asdict(report))
    else:
        console.say(str(report))
        for warning in report.warnings:
            console.say(f"{console.paint('yellow', 'warning')}: {warning}")
    return 0


def _diff(options: argparse.Namespace, console: Console) -> int:
    with _cleaner(options) as cleaner:
        diff = cleaner.diff()
    if options.json:
        print_json(asdict(diff))
    else:
        console.say(str(diff))
    return 1 if diff else 0


def _capture(options: argparse.Namespace, console: Console) -> int:
    with _cleaner(options) as cleaner:
        cleaner.capture(options.table)
        return _say_captured(cleaner.captured, options, console)


def _release(options: argparse.Namespace, console: Console) -> int:
    with _cleaner(options) as cleaner:
        cleaner.release()
        return _say_captured(cleaner.captured, options, console)


def _say_captured(captured: dict[str, int], options: argparse.Namespace, console: Console) -> int:
    if options.json:
        print_json({"captured": captured})
    else:
        console.say(f"baseline: {baseline(len(captured), sum(captured.values()))}")
    return 0


def _demo(options: argparse.Namespace, console: Console) -> int:
    from cleaner import demo

    figures = demo.run(console)
    if options.json:
        print_json(figures)
    return 0 if figures["proved"] else 1


def _doctor(options: argparse.Namespace, console: Console) -> int:
    from cleaner import doctor

    found = doctor.examine(lambda: _settings(options))
    if options.json:
        print_json(found)
    else:
        _print_findings(found, console)
    return 1 if found["problems"] else 0


def _print_findings(found: dict[str, Any], console: Console) -> None:
    """Print a checklist: what is wrong comes first, and of that what to write."""

    def check(fine: bool | None, name: str, text: object) -> None:
        mark, colour = {True: ("ok", "green"), False: ("!!", "red"), None: ("--", "yellow")}[fine]
        console.say(f"{console.paint(colour, mark)}  {name:<20}  {text}")

    console.say(", ".join(f"{name} {text}" for name, text in found["versions"].items()))
    for problem in found["problems"]:
        console.title(f"!! write  {problem['remedy']}")
        console.say(f"   since  {problem['what']}")
        console.say(f"   cause  {problem['cause']}")
    console.title("Settings")
    for name, setting in found.get("settings", {}).items():
        console.say(f"    {name:<20}  {json.dumps(setting['value']):<24}  {setting['origin']}")
    console.title("Database")
    check("connection" in found, "connection", found.get("connection", "none"))
    if "server" in found:
        check(True, "server", found["server"])
        verdict = "a test database" if found["safe"] else "not a test database: see above"
        check(found["safe"], "database", f"{found['database']}, {verdict}")
        role = found["role"]
        kinds = [f"{'' if role[kind] else 'not '}{kind}" for kind in ("superuser", "owner")]
        check(True, "role", f"{role['name']}, {', '.join(kinds)}")
        slow = found["no_fast_path"]
        check(not slow, "one round trip", slow or "possible")
        for session in found["idle_in_transaction"]:
            check(None, "idle in transaction", Blocker(**session))
        if found["sessions_unseen"]:
            check(None, "sessions unseen", found["sessions_unseen"])
    if "tables" in found:
        counts = [count(found[f"{noun}s"], noun) for noun in ("table", "sequence")]
        check(True, "to clean", ", ".join(counts))
        check(True, "baseline", baseline(**found["captured"]))
        for side in ("metadata", "database"):
            if names := found[f"only_in_{side}"]:
                check(None, f"only in the {side}", ", ".join(names))
        for warning in found["warnings"]:
            check(None, "warning", warning)
    console.title("Strategies")
    for name, verdict in found["strategies"].items():
        serves = {True: "can serve", False: "refuses", None: "installed"}[verdict["serves"]]
        check(verdict["serves"] or None, name, verdict["refusal"] or serves)
    console.title("Embedded PostgreSQL")
    embedded = found["embedded"]
    binaries = embedded["binaries"]
    check(True if binaries else None, "binaries", binaries or embedded["missing"])
