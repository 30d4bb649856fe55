"""The settings: where they come from, in increasing strength, and what they may be.

1. ``[tool.cleaner]`` in the nearest ``pyproject.toml``,
2. environment variables, ``CLEANER_`` and the name in capitals,
3. pytest's options,
4. keywords of ``Cleaner``.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, cast

from sqlalchemy import URL, Engine
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

from cleaner.errors import SettingsError
from cleaner.spi import Strategy

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_PREFIX = "CLEANER_"
_LISTS = {"only", "exclude", "schemas", "allow_databases", "fingerprint", "export", "tests"}


@dataclass(frozen=True)
class Settings:
    """What can be set. ``origins`` says where each value that is not the default came from.

    ``lock_timeout`` is in seconds; ``only``, ``exclude`` and ``schemas`` are names or patterns
    (``*``, ``?``, ``[...]``), table names with or without their schema; ``allow_databases`` None
    means: databases with the word ``test`` in their name. ``fingerprint`` is what else shapes the
    database, files, directories or patterns relative to pyproject.toml; ``export`` is the names of
    the environment variables that are to hold a worker's URL. ``tests`` are the tests that use a
    further database instead of the main one: directories, files or patterns relative to
    pyproject.toml. ``isolation`` "server" is an embedded server for each worker.
    """

    url: URL | Engine | None = None
    metadata: object = None
    strategy: str | Strategy = "auto"
    strategy_options: Mapping[str, object] = field(default_factory=dict)
    only: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    schemas: tuple[str, ...] = ()
    reset_sequences: bool = True
    lock_timeout: float = 5.0
    on_blocked: Literal["raise", "terminate"] = "raise"
    retries: int = 5
    allow_databases: tuple[str, ...] | None = None
    databases: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    autouse: bool = False
    fingerprint: tuple[str, ...] = ()
    export: tuple[str, ...] = ()
    tests: tuple[str, ...] = ()
    isolation: Literal["database", "server"] = "database"
    origins: Mapping[str, str] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def load(
        cls,
        directory: str | os.PathLike[str] | None = None,
        *,
        options: Mapping[str, object] | None = None,
        **keywords: object,
    ) -> Settings:
        """Merge all sources. ``directory`` is where the search for pyproject.toml starts
        (default: the working directory), ``options`` are pytest's.

        Raises SettingsError for an unknown key or a value of the wrong kind.
        """
        settings = cls()
        pyproject = _pyproject(Path(directory or "."))
        if pyproject is not None:
            settings = settings.merged(_tool_table(pyproject), str(pyproject))
        settings = settings._from_environment()
        settings = settings.merged(options or {}, "pytest option")
        return settings.merged(keywords, "keyword")

    def merged(self, values: Mapping[str, object], origin: str) -> Settings:
        """These settings with ``values`` over them, which came from ``origin``."""
        if not values:
            return self
        for key in values:
            if key not in _READERS:
                raise _unknown(key, origin)
        read = {key: _READERS[key](key, value, origin) for key, value in values.items()}
        origins = {**self.origins, **dict.fromkeys(read, origin)}
        return replace(self, **cast(Any, read), origins=origins)

    def database(self, name: str) -> Settings:
        """The settings of a further database: ``[tool.cleaner.databases.NAME]`` over these,
        of which it does not inherit what is of one database only: ``url``, ``metadata``,
        ``export`` and ``tests``.
        """
        if name not in self.databases:
            near = get_close_matches(name, self.databases, 1)
            raise SettingsError(
                f"There is no database {name!r} in the settings; "
                f"there are {', '.join(sorted(self.databases)) or 'none'}.",
                "a misspelt name, or a missing table in pyproject.toml",
                f"[tool.cleaner.databases.{near[0] if near else name}]",
            )
        origins = {
            key: origin
            for key, origin in self.origins.items()
            if key not in ("url", "metadata", "databases", "export", "tests")
        }
        base = replace(
            self, url=None, metadata=None, databases={}, export=(), tests=(), origins=origins
        )
        return base.merged(self.databases[name], f"databases.{name}")

    def _from_environment(self) -> Settings:
        settings = self
        for variable, text in sorted(os.environ.items()):
            key = variable.removeprefix(_PREFIX).lower()
            if not variable.startswith(_PREFIX):
                continue
            if key not in _READERS:
                # Other programs may have variables with this prefix; a near miss is a typo.
                if get_close_matches(key, _READERS, 1, cutoff=0.8):
                    raise _unknown(key, f"environment variable {variable}")
                continue
            value: object = text
            if key in _LISTS:
                value = [part.strip() for part in text.split(",") if part.strip()]
            elif key in ("strategy_options", "databases"):
                try:
                    value = json.loads(text)
                except ValueError:
                    value = text
            settings = settings.merged({key: value}, f"environment variable {variable}")
        return settings


def _pyproject(start: Path) -> Path | None:
    for directory in (start.resolve(), *start.resolve().parents):
        candidate = directory / "pyproject.toml"
        if candidate.is_file():
            return candidate
    return None


def _tool_table(pyproject: Path) -> Mapping[str, object]:
    try:
        document = tomllib.loads(pyproject.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{pyproject} can't be read: {error}.", "a syntax error in it", "[tool.cleaner]"
        ) from error
    table = document.get("tool", {}).get("cleaner", {})
    if not isinstance(table, dict):
        raise SettingsError(
            f"tool.cleaner in {pyproject} is {table!r}, not a table.",
            "an assignment where a header should be",
            "[tool.cleaner]",
        )
    return table


def _unknown(key: str, origin: str) -> SettingsError:
    near = get_close_matches(key, _READERS, 1, cutoff=0.5)
    known = ", ".join(_READERS)
    return SettingsError(
        f"There is no setting {key!r} ({origin})"
        + (f"; did you mean {near[0]!r}?" if near else "."),
        f"a misspelt name; the settings are {known}",
        f"{near[0]} = ..." if near else 'strategy = "auto"',
    )


def _wrong(key: str, value: object, origin: str, expected: str, example: str) -> SettingsError:
    return SettingsError(
        f"{key} is {value!r} ({origin}), which is not {expected}.",
        "a value of another kind",
        f"{key} = {example}",
    )


def masked(url: object) -> str:
    """``url``, or what was meant to be one, without its passwords."""
    if isinstance(url, Engine):
        url = url.url
    with suppress(ArgumentError, ValueError):
        url = make_url(url) if isinstance(url, str) else url
    text = url.render_as_string(hide_password=True) if isinstance(url, URL) else str(url)
    if not isinstance(url, URL) or "@" in (
        url.host or ""
    ):  # a password with an @ that is not quoted
        text = re.sub(r"^([\w+.-]+:/*)?.*@", r"\1***@", text, flags=re.DOTALL)
    return re.sub(r"(password=)[^&\s]*", r"\1***", text, flags=re.IGNORECASE)


def _url(key: str, value: object, origin: str) -> URL | Engine | None:
    if value is None or isinstance(value, (URL, Engine)):
        return value
    engine = getattr(value, "sync_engine", None)  # whose module needs greenlet
    if isinstance(engine, Engine):
        return engine
    if isinstance(value, str) and value:
        # SQLAlchemy has dropped the scheme that many platforms still hand out.
        text = "postgresql://" + value[11:] if value.startswith("postgres://") else value
        try:
            url = make_url(text)
            if "@" not in (url.host or ""):
                return url
        except (ArgumentError, ValueError):  # a port that is no number
            pass
    shown = masked(value) if isinstance(value, str) else value
    expected = "a database URL (an @ in a password is written %40)"
    raise _wrong(key, shown, origin, expected, '"postgresql+psycopg://localhost/app_test"')


def _anything(key: str, value: object, origin: str) -> object:
    return value


def _strategy(key: str, value: object, origin: str) -> str | Strategy:
    if isinstance(value, Strategy) or (isinstance(value, str) and value):
        return value
    raise _wrong(key, value, origin, "the name of a strategy or a Strategy", '"auto"')


def _table(key: str, value: object, origin: str) -> Mapping[str, object]:
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return dict(value)
    raise _wrong(key, value, origin, "a table of names and values", "{}")


def _databases(key: str, value: object, origin: str) -> Mapping[str, Mapping[str, object]]:
    databases = _table(key, value, origin)
    for name, table in databases.items():
        for inner in _table(f"databases.{name}", table, origin):
            if inner not in _READERS or inner == "databases":
                raise _unknown(inner, f"{origin}, databases.{name}")
    return cast("Mapping[str, Mapping[str, object]]", databases)


def _patterns(key: str, value: object, origin: str) -> tuple[str, ...]:
    if isinstance(value, str):
        return (value,)
    if isinstance(value, (list, tuple, set, frozenset)):
        names = tuple(value)
        if all(isinstance(name, str) and name for name in names):
            return names
    raise _wrong(key, value, origin, "a list of names or patterns", '["country", "geo_*"]')


def _optional_patterns(key: str, value: object, origin: str) -> tuple[str, ...] | None:
    return None if value is None else _patterns(key, value, origin)


def _flag(key: str, value: object, origin: str) -> bool:
    words = {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in words:
        return words[value.lower()]
    raise _wrong(key, value, origin, "true or false", "true")


def _seconds(key: str, value: object, origin: str) -> float:
    try:
        seconds = float(cast(Any, value))
    except (TypeError, ValueError):
        seconds = 0.0
    if isinstance(value, bool) or not 0.001 <= seconds <= 2_000_000:
        raise _wrong(key, value, origin, "a number of seconds above zero", "5.0")
    return seconds


def _count(key: str, value: object, origin: str) -> int:
    try:
        count = int(cast(Any, value))
    except (TypeError, ValueError):
        count = 0
    if isinstance(value, (bool, float)) or not 1 <= count <= 1000:
        raise _wrong(key, value, origin, "a number of attempts, at least 1", "5")
    return count


def _on_blocked(key: str, value: object, origin: str) -> str:
    if value in ("raise", "terminate"):
        return str(value)
    raise _wrong(key, value, origin, '"raise" or "terminate"', '"raise"')


def _isolation(key: str, value: object, origin: str) -> str:
    if value in ("database", "server"):
        return str(value)
    raise _wrong(key, value, origin, '"database" or "server"', '"database"')


_READERS: dict[str, Callable[[str, object, str], object]] = {
    "url": _url,
    "metadata": _anything,
    "strategy": _strategy,
    "strategy_options": _table,
    "only": _patterns,
    "exclude": _patterns,
    "schemas": _patterns,
    "reset_sequences": _flag,
    "lock_timeout": _seconds,
    "on_blocked": _on_blocked,
    "retries": _count,
    "allow_databases": _optional_patterns,
    "databases": _databases,
    "autouse": _flag,
    "fingerprint": _patterns,
    "export": _patterns,
    "tests": _patterns,
    "isolation": _isolation,
}
assert set(_READERS) | {"origins"} == {each.name for each in fields(Settings)}
