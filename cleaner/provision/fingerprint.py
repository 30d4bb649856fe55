"""What a template is found again by: a digest of everything that shapes the database.

It is the same in every process, on every machine and in every checkout of the same content; line
endings and the order of files, imports and constraints don't matter. Nothing is imported to find
it: the project is read as text, and a file counts with its name and its content.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from types import CodeType, FunctionType, MethodType

import sqlalchemy

from cleaner import __version__
from cleaner.errors import SettingsError
from cleaner.metadata import Models
from cleaner.provision import ddl, sources
from cleaner.provision.project import Project

Function = Callable[..., object]


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
    project, metadata = Project(root), models.metadata
    try:
        with warnings.catch_warnings():  # of the user's code they are seen where it runs
            warnings.simplefilter("ignore")
            said = _defining(setup, project, installed=True)
            for part in (*makers, *(part for each in metadata for part in ddl.creation(each))):
                said += [part] if isinstance(part, str) else _defining(part, project)
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


def _defining(function: Function, project: Project, *, installed: bool = False) -> list[str]:
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
        elif project.has(str(file)):
            project.follow(str(file))
        else:
            theirs.append(file)
            continue
        ours = True
    if installed and not ours:
        said += [f"{file.name} {sources.read(str(file))[0]}" for file in theirs]
    return said


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
