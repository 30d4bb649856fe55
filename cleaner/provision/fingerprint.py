"""What a template is found again by: a digest of everything that shapes the database.

It is the same in every process, on every machine and in every checkout of the same content; line
endings and the order of files, imports and constraints don't matter. Nothing is imported to find
it: the project is read as text, and a file counts with its name and its content.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import re
import sys
import time
import unicodedata
import warnings
from collections.abc import Callable, Iterable, Iterator
from configparser import ConfigParser
from configparser import Error as IniError
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from types import CodeType, FunctionType, MethodType
from typing import Any

import sqlalchemy
from sqlalchemy import ClauseElement, Dialect, MetaData, Table, schema
from sqlalchemy.dialects.postgresql import DOMAIN, CreateDomainType
from sqlalchemy.dialects.postgresql.base import PGDialect
from sqlalchemy.types import TypeEngine

from cleaner import __version__
from cleaner.errors import SettingsError
from cleaner.metadata import Models

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Function = Callable[..., object]
Needs = tuple[tuple[int, str], ...]  # what a Python file imports: level and dotted name

_SETTLED = 2_000_000_000  # nanoseconds after which every change of a file changes its times too
_FOREIGN = re.compile(  # directories in which nothing is the project's own
    r"(^|/)(__pycache__|(site|dist)-packages|node_modules|\.?venv|\.tox|\.nox|\.git|\.hg|\.svn"
    r"|lib/python\d[^/]*|\.\w+_cache|\.hypothesis|\.idea|\.vscode)(/|$)"
)
_LEFTOVER = re.compile(r"~$|\.(pyc|pyo|bak|orig|rej|tmp)$|^\..*\.sw[a-p]$|^\.?#|^\.DS_Store$")
_SEPARATORS = {"space": " ", "newline": "\n", "os": os.pathsep, ":": ":", ";": ";"}
_DIALECT: Dialect = PGDialect()  # type: ignore[no-untyped-call]
_TELLING = (  # noqa: SIM905 - of what can't be compiled
    "name type nullable primary_key server_default foreign_keys unique expressions elements "
    "columns sqltext ondelete onupdate deferrable initially match start increment statement context"
).split()

_digests: dict[str, tuple[tuple[int, ...], str]] = {}  # by path: times and size, and the digest
_needs: dict[str, Needs] = {}  # by digest


def fingerprint(
    models: Models,
    setup: Function,
    files: Iterable[str],
    root: Path,
    server: str,
    *,
    makers: Iterable[Function] = (),
) -> str:
    """The digest, in hexadecimal, of all that shapes a database that ``setup`` makes.

    That is:

    - the DDL of ``models``, for PostgreSQL, and whatever listens to its creation;
    - the file that defines ``setup``, those of the ``makers`` (the fixture that returned it), and
      every file in ``root`` that they import, directly or not;
    - ``files``: names, directories or patterns, relative to ``root``, and what they import;
    - what alembic.ini or ``[tool.alembic]`` says, the migrations there, and what they import;
    - the ``server``'s version, cleaner's, and SQLAlchemy's major and minor.

    Raises SettingsError where one of ``files`` matches nothing or a file can't be read.
    """
    project, metadata = _Project(root), models.metadata
    try:
        with warnings.catch_warnings():  # of the user's code they are seen where it runs
            warnings.simplefilter("ignore")
            said = project.function(setup, installed=True)
            for part in (*makers, *(part for each in metadata for part in _ddl(each))):
                said += [part] if isinstance(part, str) else project.function(part)
            for name in files:
                project.named(name)
            project.migrations()
    except OSError as error:
        raise SettingsError(
            f"{error.filename} can't be read: {error.strerror}.",
            "it shapes the database, and this user may not read it",
            f"chmod -R u+rX {error.filename}",
        ) from error
    versions = [server, __version__, sqlalchemy.__version__.split(".")[:2]]
    shapes = [versions, sorted(set(said)), sorted(project.found.items())]
    return hashlib.sha256(json.dumps(shapes).encode()).hexdigest()


class _Project:
    """The files below ``root``. Those that count are in ``found``, with their digests."""

    def __init__(self, root: Path) -> None:
        self.root = str(root.resolve())
        self.found: dict[str, str] = {}
        self._listing = functools.cache(_listing)
        self._modules = functools.cache(self._imported)
        self._ours = functools.cache(self._inside)
        self._seen: set[str] = set()
        paths = [f"{self.root}/src", *(str(Path(path).resolve()) for path in sys.path)]
        self._paths = [path for path in paths if self._inside(path)]

    def follow(self, start: str) -> None:
        """Count this file and, of Python's, all that it imports within the project."""
        queue = [start]
        while queue:
            path = queue.pop()
            if path in self._seen:
                continue
            self._seen.add(path)
            label = unicodedata.normalize("NFC", os.path.relpath(path, self.root))
            self.found[label], needs = _read(path)
            if path.endswith(".py"):
                directory, _, name = path.rpartition("/")
                package = directory.rpartition("/")[0] if name == "__init__.py" else directory
                queue += self._modules(package, 1, "__init__")
                for need in needs:
                    queue += self._modules(directory, *need)

    def function(self, function: Function, *, installed: bool = False) -> list[str]:
        """Follow the files that define it. Returns what there is to say of it besides.

        The file of an ``installed`` package counts where no part of it is of the project.
        """
        said: list[str] = []
        theirs: list[Path] = []
        ours = False
        for part in _parts(function):
            if isinstance(part, str):
                said.append(part)
                continue
            file = Path(part if isinstance(part, Path) else part.co_filename).resolve()
            if not file.is_file():
                said += [_bytecode(part)] if isinstance(part, CodeType) else []
            elif self._inside(str(file)):
                self.follow(str(file))
            else:
                theirs.append(file)
                continue
            ours = True
        if installed and not ours:
            said += [f"{file.name} {_read(str(file))[0]}" for file in theirs]
        return said

    def named(self, name: str) -> None:
        """Count what the user names."""
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
        for file in (file for each in found for file in self._files(each)):
            self.follow(file)

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
                own = [top / "env.py", top / "versions"] if str(top) == self.root else [top]
                for file in (file for each in own for file in self._files(each)):
                    self.follow(file)

    def _inside(self, path: str) -> bool:
        """Whether it is the project's own, and not installed in it."""
        below = path[len(self.root) :]
        ours = path.startswith(self.root) and below[:1] in ("", "/")
        return ours and not _FOREIGN.search(below)

    def _skipped(self, path: Path) -> bool:
        ours = path.is_relative_to(self.root)
        foreign = not self._inside(str(path)) if ours else bool(_FOREIGN.search(path.name))
        return foreign or bool(_LEFTOVER.search(path.name))

    def _files(self, place: Path) -> Iterator[str]:
        if place.is_file():
            yield str(place)
            return
        for directory, below, names in os.walk(place, onerror=_raise):
            below[:] = [name for name in below if not self._skipped(Path(directory, name))]
            paths = (Path(directory, name) for name in names)
            yield from (str(path) for path in paths if path.is_file() and not self._skipped(path))

    def _imported(self, directory: str, level: int, name: str) -> list[str]:
        """The files that an import there may stand for."""
        bases = []
        while self._inside(directory):
            bases.append(directory)
            directory = directory.rpartition("/")[0]
        bases = bases[level - 1 : level] if level else [*bases, *self._paths]
        found = {path for base in bases for path in self._below(base, name.split("."))}
        return [path for path in found if self._ours(path)]

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


def _read(path: str) -> tuple[str, Needs]:
    """The digest of a file, and what it imports; both remembered while it looks the same."""
    stat = Path(path).stat()
    state = (stat.st_mtime_ns, stat.st_ctime_ns, stat.st_size, stat.st_ino)
    known, digest = _digests.get(path, ((), ""))
    if known == state:
        return digest, _needs[digest]
    source = Path(path).read_bytes()
    if b"\0" not in source:
        source = source.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    digest = f"{hashlib.sha256(source).hexdigest()}{Path(path).suffix}"
    if digest not in _needs:
        _needs[digest] = tuple(dict.fromkeys(_imports(source))) if path.endswith(".py") else ()
    if time.time_ns() - max(stat.st_mtime_ns, stat.st_ctime_ns) > _SETTLED:
        _digests[path] = (state, digest)
    return digest, _needs[digest]


def _imports(source: bytes) -> Iterator[tuple[int, str]]:
    try:
        nodes = list(ast.walk(ast.parse(source))) if b"import" in source else []
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((0, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = f"{node.module}." if node.module else ""
            yield from ((node.level, prefix + alias.name) for alias in node.names)
        elif isinstance(node, ast.Call):
            called = getattr(node.func, "attr", getattr(node.func, "id", ""))
            given = [*node.args, *(keyword.value for keyword in node.keywords)]
            texts = [getattr(each, "value", None) for each in given]
            if called in ("import_module", "__import__") and texts and isinstance(texts[0], str):
                name = texts[0].lstrip(".")
                level = len(texts[0]) - len(name)
                if level and len(texts) > 1 and isinstance(texts[1], str):
                    level, name = 0, f"{texts[1]}.{name}"
                yield level, name


def _parts(function: object) -> Iterator[CodeType | Path | str]:
    """What defines a function: its code, that of those which it wraps, closes over or is bound to,
    the files of their classes, and the arguments that it was given in advance.
    """
    queue, seen = [function], list[object]()
    while queue:
        each = queue.pop()
        if any(each is other for other in seen):
            continue
        seen.append(each)
        held: dict[str, object] = {}
        with suppress(Exception):  # a proxy that stands for nothing yet
            held = dict(vars(each.__self__ if isinstance(each, MethodType) else each))
        kinds = (FunctionType, MethodType, functools.partial)
        queue += [
            value
            for name, value in held.items()
            if name == "__wrapped__" or (isinstance(value, kinds) and not isinstance(each, type))
        ]
        if isinstance(each, functools.partial):
            pairs = [*enumerate(each.args), *each.keywords.items()]
            given = {str(key): value for key, value in pairs}
            yield f"partial {sorted((key, _value(value)) for key, value in given.items())}"
            queue += [each.func, *filter(callable, given.values())]
        elif isinstance(each, MethodType):
            queue += [each.__func__, type(each.__self__)]
        elif isinstance(each, FunctionType):
            yield each.__code__
            for cell in each.__closure__ or ():
                with suppress(ValueError):  # it is still empty
                    queue += filter(callable, [cell.cell_contents])
        elif isinstance(each, type):
            if file := getattr(sys.modules.get(each.__module__), "__file__", None):
                yield Path(file)
        elif callable(each):
            queue += [type(each), getattr(type(each), "__call__")]  # noqa: B004, B009


def _value(value: object) -> str:
    """What an argument is. URLs and directories don't count: each worker has others."""
    plain = value is None or isinstance(value, (bool, int, float, str, bytes))
    return repr(value) if plain and not re.match(r"/|[\w+.]+://", str(value)) else ""


def _bytecode(code: CodeType) -> str:
    constants = [
        _bytecode(each)
        if isinstance(each, CodeType)
        else str(sorted(map(repr, each)))
        if isinstance(each, frozenset)
        else repr(each)
        for each in code.co_consts
    ]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _ddl(metadata: MetaData) -> Iterator[str | Function]:
    """What creates everything of ``metadata``; a function where one listens to the creation."""
    sequences = getattr(metadata, "_sequences", {})
    yield from (_compiled(schema.CreateSequence(each)) for each in sequences.values())
    for target in (metadata, *metadata.tables.values()):
        for event in ("before_create", "after_create"):
            for listener in getattr(target.dispatch, event):
                if isinstance(listener, schema.ExecutableDDLElement):
                    condition = getattr(listener, "_ddl_if", None)
                    where = f"{event} of {getattr(target, 'fullname', '')}"
                    yield f"{where}: {_compiled(listener)} {_plain(condition)}"
                    listener = getattr(condition, "callable_", None)  # noqa: PLW2901
                owner = getattr(listener, "__self__", getattr(listener, "target", None))
                if hasattr(owner, "enums"):  # a type that belongs to the metadata, not to a table
                    yield _type(owner)
                elif listener is not None:
                    yield listener
    for table in metadata.tables.values():
        yield "\n".join(
            [table.fullname, str([each.name for each in table.columns]), *_table(table)]
        )


def _table(table: Table) -> list[str]:
    create = getattr(table, "_creator_ddl", None)
    parts: list[str] = []
    apart = list(table.constraints)
    try:
        text = str(
            (schema.CreateTable(table) if create is None else create).compile(dialect=_DIALECT)
        )
    except Exception:  # a type, or the table of a foreign key, that is unknown here
        parts += [_compiled(schema.CreateColumn(each)) for each in table.columns]
    else:
        head, _, rest = text.partition("(\n\t")
        body, _, tail = rest.rpartition("\n)")
        parts += [head, tail, *body.split(", \n\t")]
        apart = [each for each in apart if getattr(each, "use_alter", False)]
    parts += [_compiled(each) for each in apart]
    parts += [_compiled(schema.CreateIndex(each)) for each in table.indexes]
    parts += [_type(each.type) for each in table.columns]
    commented = [table, *table.columns, *table.constraints]
    parts += [f"{each.name}: {each.comment}" for each in commented if each.comment]
    return sorted(parts)


def _type(kind: object) -> str:
    """The values of an enum and the body of a domain, wherever they are within the type."""
    told: list[str] = []
    queue = [kind]
    for each in queue:
        if not isinstance(each, TypeEngine) or len(queue) > 20:
            continue
        with suppress(Exception):  # a type of the user's that doesn't know PostgreSQL
            each = each.dialect_impl(_DIALECT)  # noqa: PLW2901
        if hasattr(each, "enums"):
            told.append(_plain([getattr(each, name, None) for name in ("schema", "name", "enums")]))
        elif isinstance(each, DOMAIN):
            told.append(_compiled(CreateDomainType(each)))
        queue += [getattr(each, name, None) for name in ("impl", "item_type", "data_type")]
    return " ".join(told)


def _compiled(element: Any) -> str:
    try:
        if isinstance(element, ClauseElement):
            return str(element.compile(dialect=_DIALECT))
        return str(_DIALECT.ddl_compiler(_DIALECT, None).process(element))  # type: ignore[arg-type]
    except Exception:
        of = getattr(element, "element", element)
        return _plain([type(of).__qualname__, *(getattr(of, name, None) for name in _TELLING)])


def _plain(value: object) -> str:
    """A text without what differs between two processes: addresses, and the order of sets."""
    try:
        if isinstance(value, (list, tuple)):
            return str([_plain(each) for each in value])
        if hasattr(value, "arg") or hasattr(value, "sqltext"):  # a server default
            return _plain([getattr(value, name, None) for name in ("arg", "sqltext")])
        if isinstance(value, (str, ClauseElement)):
            return str(value)
        text = repr(value)
    except Exception:
        text = type(value).__qualname__
    text = re.sub(r"(?i)(\bat |@)(0x[0-9a-f]+|\d{9,})", "", text)
    return re.sub(r"\{([^{}]*)\}", lambda found: str(sorted(found[1].split(", "))), text)
