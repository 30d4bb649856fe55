"""Which files of the project a set-up depends on: what it imports, migrations, what is named."""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterator
from configparser import ConfigParser
from configparser import Error as IniError
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

from cleaner.errors import SettingsError
from cleaner.provision import sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_FOREIGN = re.compile(  # directories in which nothing is the project's own
    r"(^|/)(__pycache__|(site|dist)-packages|node_modules|\.?venv|\.tox|\.nox|\.git|\.hg|\.svn"
    r"|lib/python\d[^/]*|\.\w+_cache|\.hypothesis|\.idea|\.vscode)(/|$)"
)
_LEFTOVER = re.compile(r"~$|\.(pyc|pyo|bak|orig|rej|tmp)$|^\..*\.sw[a-p]$|^\.?#|^\.DS_Store$")
_SEPARATORS = {"space": " ", "newline": "\n", "os": os.pathsep, ":": ":", ";": ";"}


class Project:
    """The files below ``root``. Those that count are in ``found``, with their digests."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.resolve())
        self.found: dict[str, str] = {}
        self._listing = functools.cache(_listing)
        self._modules = functools.cache(self._imported)
        self._seen: set[str] = set()
        paths = [f"{self.root}/src", *(str(Path(path).resolve()) for path in sys.path)]
        self._paths = [path for path in paths if self.has(path)]

    def has(self, path: str) -> bool:
        """Whether it is the project's own, and not installed in it."""
        below = path[len(self.root) :]
        ours = path.startswith(self.root) and below[:1] in ("", "/")
        return ours and not _FOREIGN.search(below)

    def follow(self, start: str) -> None:
        """Count this file and, of Python's, all that it imports within the project."""
        queue = [start]
        while queue:
            path = queue.pop()
            if path in self._seen:
                continue
            self._seen.add(path)
            label = unicodedata.normalize("NFC", os.path.relpath(path, self.root))
            self.found[label], needs = sources.read(path)
            if path.endswith(".py"):
                directory, _, name = path.rpartition("/")
                package = directory.rpartition("/")[0] if name == "__init__.py" else directory
                queue += self._modules(package, 1, "__init__")
                for need in needs:
                    queue += self._modules(directory, *need)

    def named(self, name: str) -> None:
        """Count what the user names. Raises SettingsError where there is no such thing."""
        place = Path(os.path.normpath(Path(self.root, name)))
        found = [place] if place.exists() else []
        if not found:
            with suppress(ValueError):  # not a pattern either
                base, pattern = ("/", name.lstrip("/")) if name[0] == "/" else (self.root, name)
                places = (Path(os.path.normpath(each)) for each in Path(base).glob(pattern))
                found = [each for each in places if not self._skipped(each)]
        if not found:
            paths = [Path(file).relative_to(self.root) for file in self._files(Path(self.root))]
            known = {str(each) for path in paths for each in (path, *path.parents)}
            near = get_close_matches(name.strip("./"), sorted(known), 1)
            raise SettingsError(
                f"fingerprint names {name!r}, of which there is nothing in {self.root}"
                + (f"; did you mean {near[0]!r}?" if near else "."),
                "a misspelt name, or one that is not relative to that directory",
                f'fingerprint = ["{near[0] if near else "seeds/*.sql"}"]',
            )
        for each in found:
            self._count(each)

    def migrations(self) -> None:
        """Count Alembic's settings, and the scripts where they say."""
        places: list[str] = []
        ini, toml = Path(self.root, "alembic.ini"), Path(self.root, "pyproject.toml")
        if ini.is_file():
            self.follow(str(ini))
            places += _places(ini)
        table: object = None
        with suppress(FileNotFoundError, ValueError):
            document = tomllib.loads(toml.read_text(encoding="utf-8"))
            table = document.get("tool", {}).get("alembic")
        if isinstance(table, dict):
            self.found["[tool.alembic]"] = json.dumps(table, sort_keys=True, default=str)
            more = table.get("version_locations", [])
            values = [table.get("script_location", ""), *(more if isinstance(more, list) else [])]
            places += [str(value).replace("%(here)s", ".") for value in values]
        for place in filter(None, places):
            tops = [Path(self.root, place)]
            if ":" in place and not place.startswith("/"):  # a directory of a package
                package, *below = place.split(":")
                below = [*package.split("."), *below]
                tops = [Path(top, *below) for top in (self.root, *self._paths)]
            for top in (Path(os.path.normpath(top)) for top in tops):
                for each in [top / "env.py", top / "versions"] if str(top) == self.root else [top]:
                    self._count(each)

    def _count(self, place: Path) -> None:
        for file in self._files(place):
            self.follow(file)

    def _files(self, place: Path) -> Iterator[str]:
        if place.is_file():
            yield str(place)
            return
        for directory, below, names in os.walk(place, onerror=_raise):
            below[:] = [name for name in below if not self._skipped(Path(directory, name))]
            paths = (Path(directory, name) for name in names)
            yield from (str(path) for path in paths if path.is_file() and not self._skipped(path))

    def _skipped(self, path: Path) -> bool:
        ours = path.is_relative_to(self.root)
        foreign = not self.has(str(path)) if ours else bool(_FOREIGN.search(path.name))
        return foreign or bool(_LEFTOVER.search(path.name))

    def _imported(self, directory: str, level: int, name: str) -> list[str]:
        """The files that an import there may stand for."""
        bases = []
        while self.has(directory):
            bases.append(directory)
            directory = directory.rpartition("/")[0]
        bases = bases[level - 1 : level] if level else [*bases, *self._paths]
        found = {path for base in bases for path in self._below(base, name.split("."))}
        return [path for path in found if self.has(path)]

    def _below(self, directory: str, parts: list[str]) -> Iterator[str]:
        for part in parts:
            names = self._listing(directory)
            if part == "*":
                yield from (f"{directory}/{name}" for name in names if name.endswith(".py"))
            if f"{part}.py" in names:
                yield f"{directory}/{part}.py"
            if f"{part}/" not in names:
                return
            directory = f"{directory}/{part}"
            if "__init__.py" in self._listing(directory):
                yield f"{directory}/__init__.py"


def _raise(error: OSError) -> None:
    if not isinstance(error, FileNotFoundError):
        raise error


def _listing(directory: str) -> frozenset[str]:
    """The names of the files and, with a slash, of the directories."""
    with suppress(OSError), os.scandir(directory) as entries:
        each = [(entry.name, entry.is_dir(), entry.is_file()) for entry in entries]
        return frozenset(
            f"{name}/" if below else name for name, below, file in each if below or file
        )
    return frozenset()


def _places(ini: Path) -> Iterator[str]:
    """Where the scripts are, by each section of an alembic.ini."""
    parser = ConfigParser({"here": "."}, strict=False, allow_no_value=True)
    with suppress(IniError):
        parser.read_string(ini.read_text(encoding="utf-8-sig", errors="replace"))
    for section in parser.sections():
        get = functools.partial(parser.get, section, fallback="")
        with suppress(IniError):
            yield get("script_location") or ""
            how = get("path_separator") or get("version_path_separator")
            split = re.escape(_SEPARATORS[how]) if how in _SEPARATORS else r", *|\s+"
            yield from map(str.strip, re.split(split, get("version_locations") or ""))
