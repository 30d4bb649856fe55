"""What changes the fingerprint of a template, and what doesn't."""

from __future__ import annotations

import functools
import json
import os
import shutil
import subprocess
import sys
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import (
    ARRAY,
    DDL,
    CheckConstraint,
    Column,
    Computed,
    Enum,
    ForeignKey,
    Identity,
    Index,
    Integer,
    MetaData,
    Sequence,
    String,
    Table,
    TypeDecorator,
    UniqueConstraint,
    event,
    func,
    text,
)
from sqlalchemy.dialects.postgresql import DOMAIN
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.types import UserDefinedType

from cleaner import errors
from cleaner.metadata import Models
from cleaner.provision import fingerprint as module
from cleaner.provision.fingerprint import fingerprint

ddl: Callable[..., Any] = DDL
SETUP = "def setup(engine):\n    pass\n"


class Project:
    """A directory of files, with a setup in tests/conftest.py."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.write("tests/conftest.py", SETUP)

    def write(self, name: str, content: str | bytes = "") -> Path:
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    def function(self, name: str = "setup", file: str = "tests/conftest.py") -> Any:
        """What the file calls so, without an import of it."""
        path = self.root / file
        space: dict[str, Any] = {"__name__": path.stem}
        exec(compile(path.read_text(), str(path), "exec"), space)
        return space[name]

    def print(self, *files: str, setup: Callable[..., object] | None = None, **more: Any) -> str:
        function = setup or self.function()
        models, server = more.pop("models", Models(None)), more.pop("server", "PostgreSQL 18")
        return fingerprint(models, function, files, self.root, server, **more)

    def counts(self, name: str, *files: str, start: str = "") -> bool:
        """Whether the content of that file does."""
        start = start or SETUP
        setup = self.function() if "def setup" in start else None
        before = self.print(*files, setup=setup)
        path = self.root / name
        content = path.read_bytes()
        path.write_bytes(content + b"\n# more")
        after = self.print(*files, setup=setup)
        path.write_bytes(content)
        assert self.print(*files, setup=setup) == before
        return before != after


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "project")


def of(*items: Any, **options: Any) -> str:
    """The fingerprint of a table with these columns and constraints."""
    metadata = MetaData()
    Table("thing", metadata, Column("id", Integer, primary_key=True), *items, **options)
    return printed(metadata)


def printed(*metadata: MetaData) -> str:
    return fingerprint(Models(metadata), len, (), Path("/nowhere"), "")


class Odd(UserDefinedType[Any]):
    cache_ok = True

    def __init__(self, size: object = None) -> None:
        self.size = size

    def __repr__(self) -> str:
        return f"Odd({self.size!r})"


class Speechless(UserDefinedType[Any]):
    def __repr__(self) -> str:
        raise RuntimeError("no words")

    def get_col_spec(self, **_: object) -> str:
        raise RuntimeError("no words")


class Decorated(TypeDecorator[str]):
    impl = String(7)
    cache_ok = True


class Special(UserDefinedType[Any]):
    cache_ok = True


@compiles(Special, "postgresql")
def special(kind: Special, compiler: Any, **_: object) -> str:
    return SPECIAL[-1]


SPECIAL = ["special"]


DDLS: dict[str, Callable[[], str]] = {
    "nothing": of,
    "column": lambda: of(Column("a", Integer)),
    "name": lambda: of(Column("b", Integer)),
    "type": lambda: of(Column("a", String(3))),
    "length": lambda: of(Column("a", String(4))),
    "not null": lambda: of(Column("a", Integer, nullable=False)),
    "order": lambda: of(Column("a", Integer), Column("b", Integer)),
    "other order": lambda: of(Column("b", Integer), Column("a", Integer)),
    "default": lambda: of(Column("a", Integer, server_default="1")),
    "other default": lambda: of(Column("a", Integer, server_default=text("2"))),
    "function": lambda: of(Column("a", Integer, server_default=func.now())),
    "computed": lambda: of(Column("a", Integer, Computed("id + 1"))),
    "identity": lambda: of(Column("a", Integer, Identity(start=5))),
    "other identity": lambda: of(Column("a", Integer, Identity(start=6))),
    "index": lambda: of(Column("a", Integer, index=True)),
    "unique index": lambda: of(Column("a", Integer, index=True, unique=True)),
    "partial": lambda: of(Column("a", Integer), Index("i", "a", postgresql_where=text("a > 0"))),
    "unique": lambda: of(Column("a", Integer), UniqueConstraint("a")),
    "check": lambda: of(Column("a", Integer), CheckConstraint("a > 0")),
    "other check": lambda: of(Column("a", Integer), CheckConstraint("a > 1")),
    "comment": lambda: of(Column("a", Integer, comment="one")),
    "other comment": lambda: of(Column("a", Integer, comment="two")),
    "table comment": lambda: of(Column("a", Integer), comment="one"),
    "schema": lambda: of(Column("a", Integer), schema="other"),
    "partitions": lambda: of(Column("a", Integer), postgresql_partition_by="RANGE (a)"),
    "foreign key": lambda: of(Column("a", Integer, ForeignKey("thing.id"))),
    "cascade": lambda: of(Column("a", Integer, ForeignKey("thing.id", ondelete="CASCADE"))),
    "later": lambda: of(Column("a", Integer, ForeignKey("thing.id", name="f", use_alter=True))),
    "absent": lambda: of(Column("a", Integer, ForeignKey("absent.id"))),
    "absent, cascade": lambda: of(
        Column("a", Integer, ForeignKey("absent.id", ondelete="CASCADE"))
    ),
    "enum": lambda: of(Column("a", Enum("x", "y", name="e"))),
    "more values": lambda: of(Column("a", Enum("x", "y", "z", name="e"))),
    "values in order": lambda: of(Column("a", Enum("y", "x", name="e"))),
    "enums": lambda: of(Column("a", ARRAY(Enum("x", "y", name="e")))),
    "more enums": lambda: of(Column("a", ARRAY(Enum("x", "z", name="e")))),
    "variant": lambda: of(Column("a", String(3).with_variant(Enum("x", name="e"), "postgresql"))),
    "domain": lambda: of(Column("a", DOMAIN("d", Integer, check=text("VALUE > 0")))),
    "other domain": lambda: of(Column("a", DOMAIN("d", Integer, check=text("VALUE > 1")))),
    "sequence": lambda: of(Column("a", Integer, Sequence("s"))),
    "other start": lambda: of(Column("a", Integer, Sequence("s", start=3))),
    "decorated": lambda: of(Column("a", Decorated())),
    "special": lambda: of(Column("a", Special())),
    "odd": lambda: of(Column("a", Odd())),
    "odd 3": lambda: of(Column("a", Odd(3))),
    "odd default": lambda: of(Column("a", Odd(3), server_default=text("x"))),
    "odd, other default": lambda: of(Column("a", Odd(3), server_default=text("y"))),
    "odd check": lambda: of(Column("a", Odd(3)), CheckConstraint("a > 0")),
    "odd, other check": lambda: of(Column("a", Odd(3)), CheckConstraint("a > 1")),
    "speechless": lambda: of(Column("a", Speechless())),
}


def test_each_difference_of_the_ddl_is_another_fingerprint() -> None:
    found = {name: make() for name, make in DDLS.items()}
    assert len(set(found.values())) == len(DDLS)
    assert {name: make() for name, make in DDLS.items()} == found


def test_the_metadata_is_left_as_it_was() -> None:
    from sqlalchemy.dialects import postgresql
    from sqlalchemy.schema import CreateTable

    metadata = MetaData()
    Table("b", metadata, Column("id", Integer, primary_key=True))
    key = ForeignKey("b.id", name="f", use_alter=True)
    table = Table("a", metadata, Column("b", Integer, key), CheckConstraint("b > 0"))
    dialect = postgresql.dialect()  # type: ignore[no-untyped-call]
    before = str(CreateTable(table).compile(dialect=dialect))
    printed(metadata)
    assert str(CreateTable(table).compile(dialect=dialect)) == before
    assert set(metadata.tables) == {"a", "b"}


def test_a_type_that_compiles_otherwise_is_another_fingerprint(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    before = of(Column("a", Special()))
    monkeypatch.setattr(sys.modules[__name__], "SPECIAL", ["other"])
    assert of(Column("a", Special())) != before


def test_the_order_in_which_models_are_imported_does_not_matter() -> None:
    def one(metadata: MetaData) -> None:
        Table("one", metadata, Column("id", Integer, primary_key=True), Column("two", Integer))

    def two(metadata: MetaData) -> None:
        Table("two", metadata, Column("id", Integer, primary_key=True))
        Sequence("s", metadata=metadata)

    def constraints(metadata: MetaData, *names: str) -> None:
        for name in names:
            metadata.tables["one"].append_constraint(CheckConstraint(f"{name} > 0"))
            Index(f"i_{name}", metadata.tables["one"].c[name])

    first, second = MetaData(), MetaData()
    one(first)
    two(first)
    two(second)
    one(second)
    constraints(first, "id", "two")
    constraints(second, "two", "id")
    assert printed(first) == printed(second)
    assert printed(first, MetaData()) == printed(MetaData(), second)


def test_listeners_to_the_creation_count(project: Project) -> None:
    def metadata(*listeners: tuple[str, Any]) -> str:
        made = MetaData()
        table = Table("t", made, Column("id", Integer))
        for target, listener in listeners:
            event.listen(table if target == "table" else made, "after_create", listener)
        return project.print(models=Models(made))

    trigger = ddl("CREATE TRIGGER x AFTER INSERT ON %(table)s ...")
    other = ddl("CREATE TRIGGER x AFTER UPDATE ON %(table)s ...")
    prints = [
        metadata(),
        metadata(("table", trigger)),
        metadata(("table", other)),
        metadata(("table", trigger), ("table", other)),
        metadata(("metadata", ddl("CREATE EXTENSION a"))),
        metadata(("metadata", ddl("CREATE EXTENSION %(name)s", context={"name": "b"}))),
        metadata(("metadata", ddl("CREATE EXTENSION %(name)s", context={"name": "c"}))),
    ]
    assert len(set(prints)) == len(prints)
    assert metadata(("table", other), ("table", trigger)) == prints[3]
    file = project.write("app/events.py", "def listen(*a, **k):\n    pass\n")
    listener = project.function("listen", "app/events.py")
    before = metadata(("table", listener))
    file.write_text("def listen(*a, **k):\n    a\n")
    assert metadata(("table", listener)) != before
    conditional = ddl("X").execute_if(callable_=listener)
    before = metadata(("metadata", conditional))
    file.write_text("def listen(*a, **k):\n    k\n")
    assert metadata(("metadata", conditional)) != before


def test_an_enum_of_the_metadata_alone_counts() -> None:
    def enum(*values: str) -> str:
        metadata = MetaData()
        Enum(*values, name="e", metadata=metadata)
        return printed(metadata)

    assert enum("a") != enum("a", "b")


def test_the_server_and_the_versions_count(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = project.print()
    assert project.print(server="PostgreSQL 17") != before
    with monkeypatch.context() as patched:
        patched.setattr(module, "__version__", "99")
        assert project.print() != before
    with monkeypatch.context() as patched:
        patched.setattr(sqlalchemy, "__version__", "1.4.0")
        old = project.print()
        assert old != before
        patched.setattr(sqlalchemy, "__version__", "1.4.9")
        assert project.print() == old
    assert project.print() == before


def test_line_endings_do_not_matter_but_in_binary_files(project: Project) -> None:
    project.write("seed.sql", "a\nb\n")
    project.write("dump", b"\0a\nb")
    before = project.print("seed.sql", "dump")
    for ending in ("\r\n", "\r"):
        project.write("seed.sql", f"a{ending}b{ending}")
        project.write("tests/conftest.py", SETUP.replace("\n", ending))
        assert project.print("seed.sql", "dump") == before
    project.write("dump", b"\0a\r\nb")
    assert project.print("seed.sql", "dump") != before


IMPORTS = [
    ("import app.seeds", "app/seeds.py"),
    ("import app.seeds as s", "app/__init__.py"),
    ("from app import seeds", "app/seeds.py"),
    ("from app.seeds import rows", "app/seeds.py"),
    ("from app import *", "app/seeds.py"),
    ("from app.deep import thing", "app/deep/__init__.py"),
    ("from . import helper", "tests/helper.py"),
    ("from .helper import x", "tests/helper.py"),
    ("from .. import top", "top.py"),
    ("from ..app.seeds import x", "app/seeds.py"),
    ("import helper", "tests/helper.py"),
    ("import shop.models", "src/shop/models.py"),
    ("def setup(engine):\n    import app.seeds", "app/seeds.py"),
    ("def setup(engine):\n    from app.seeds import x", "app/seeds.py"),
    ("try:\n    import app.seeds\nexcept ImportError:\n    pass", "app/seeds.py"),
    ("import importlib\nimportlib.import_module('app.seeds')", "app/seeds.py"),
    ("from importlib import import_module\nimport_module(name='app.seeds')", "app/seeds.py"),
    ("import importlib\nimportlib.import_module('.seeds', 'app')", "app/seeds.py"),
    ("import importlib\nimportlib.import_module('.helper', __package__)", "tests/helper.py"),
    ("__import__('app.seeds')", "app/seeds.py"),
    ("import app.chain", "app/end.py"),
    ("import app.loop", "app/pool.py"),
    ("pass", "tests/__init__.py"),
    ('x = "\\d"  # of which Python warns\nimport app.seeds', "app/seeds.py"),
]


@pytest.fixture
def application(project: Project) -> Project:
    for name in ("top", "app/__init__", "app/seeds", "app/end", "app/deep/__init__"):
        project.write(f"{name}.py")
    for name in (
        "tests/__init__",
        "tests/helper",
        "src/shop/__init__",
        "src/shop/models",
        "app/unused",
    ):
        project.write(f"{name}.py")
    project.write("app/chain.py", "from .middle import f")
    project.write("app/middle.py", "def f():\n    from app import end")
    project.write("app/loop.py", "import app.pool")
    project.write("app/pool.py", "import app.loop")
    return project


@pytest.mark.parametrize(("line", "file"), IMPORTS)
def test_what_the_setup_imports_counts(application: Project, line: str, file: str) -> None:
    setup = application.function()
    application.write("tests/conftest.py", f"{line}\n{SETUP}")
    before = application.print(setup=setup)
    (application.root / file).write_text("changed = True")
    assert application.print(setup=setup) != before


def test_what_it_does_not_import_does_not(application: Project) -> None:
    setup = application.function()
    text = "import app.seeds, os, json, no_such_thing\nfrom .... import x\nfrom . import end\n"
    application.write("tests/conftest.py", text + SETUP)
    before = application.print(setup=setup)
    for name in ("app/unused.py", "app/end.py", "end.py", "json.txt", "sqlalchemy.pyc"):
        application.write(name, "changed")
    assert application.print(setup=setup) == before


@pytest.mark.parametrize("place", [".venv/lib/python3.12", "env/lib/python3.12", "node_modules"])
def test_installed_packages_are_never_read(
    project: Project, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in (place, f"{place}/site-packages"):
        file = project.write(f"{directory}/installed.py", "a = 1")
        monkeypatch.syspath_prepend(str(file.parent))
        setup = project.function()
        project.write("tests/conftest.py", f"import installed\n{SETUP}")
        before = project.print(setup=setup)
        file.write_text("a = 2")
        assert project.print(setup=setup) == before


def test_a_directory_that_python_looks_in_is_searched(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = project.write("libraries/core/seeds.py", "a = 1")
    setup = project.function()
    project.write("tests/conftest.py", f"import seeds\n{SETUP}")
    monkeypatch.syspath_prepend(str(file.parent))
    before = project.print(setup=setup)
    file.write_text("a = 2")
    assert project.print(setup=setup) != before


def test_a_file_that_is_no_python_counts_by_its_content(project: Project) -> None:
    setup = project.function()
    seen = set()
    for source in ("def broken(:", "print 'old'", "\0", "(" * 10_000):
        project.write("tests/conftest.py", source)
        seen.add(project.print(setup=setup))
    assert len(seen) == 4


WRAPPERS = {
    "wraps": "import functools\ndef deco(f):\n    @functools.wraps(f)\n    def g(*a): f(*a)\n"
    "    return g\n",
    "closure": "def deco(f):\n    def g(*a): f(*a)\n    return g\n",
    "partial": "import functools\ndef deco(f):\n    return functools.partial(f, 1)\n",
    "cache": "import functools\ndeco = functools.lru_cache\n",
    "caches": "import functools\ndef deco(f):\n"
    "    return functools.lru_cache(functools.lru_cache(f))\n",
    "class": "class deco:\n    def __init__(self, f): self.f = f\n"
    "    def __call__(self, *a): self.f(*a)\n",
    "method": "class C:\n    def __init__(self, f): self.f = f\n    def m(self, *a): self.f(*a)\n"
    "def deco(f):\n    return C(f).m\n",
    "argument": "import functools\ndef run(g, *a): g(*a)\n"
    "def deco(f):\n    return functools.partial(run, f)\n",
}


@pytest.mark.parametrize("kind", sorted(WRAPPERS))
def test_the_files_of_a_wrapped_function_are_found(project: Project, kind: str) -> None:
    project.write("tools/deco.py", WRAPPERS[kind])
    setup = project.function("deco", "tools/deco.py")(project.function())
    before = project.print(setup=setup)
    file = project.write("tests/conftest.py", f"{SETUP}# more")
    wrapped = project.print(setup=setup)
    assert wrapped != before
    if kind not in ("partial", "cache", "caches"):  # which are all of the standard library
        file.write_text(SETUP)
        project.write("tools/deco.py", f"{WRAPPERS[kind]}# more")
        assert project.print(setup=setup) not in (before, wrapped)


def test_the_arguments_of_a_partial_count_but_for_places(project: Project) -> None:
    def partial(*arguments: object, **keywords: object) -> str:
        return project.print(setup=functools.partial(project.function(), *arguments, **keywords))

    prints = [partial(), partial(1), partial(2), partial("1"), partial(a=1), partial(b=1)]
    assert len(set(prints)) == len(prints)
    assert partial(a=1, b=2) == partial(b=2, a=1)
    assert partial("postgresql://localhost/gw0") == partial("postgresql://localhost/gw1")
    assert partial("/tmp/pytest-1/x") == partial("/tmp/pytest-2/x")
    assert partial(object()) == partial(object())


def test_a_proxy_that_stands_for_nothing_does_no_harm(project: Project) -> None:
    class Proxy:
        def __call__(self) -> None: ...

        @property
        def __dict__(self) -> Any:  # type: ignore[override]
            raise RuntimeError("outside of the application's context")

        def __eq__(self, other: object) -> bool:
            raise RuntimeError("outside of the application's context")

        __hash__ = None  # type: ignore[assignment]

    def made(proxy: object) -> Callable[..., object]:
        def setup(engine: object) -> object:
            return proxy

        return setup

    assert project.print(setup=made(Proxy()))


def test_the_makers_of_a_setup_count(project: Project) -> None:
    project.write("tests/tools.py", "def make(rows):\n    def setup(e): rows\n    return setup\n")
    setup = project.function("make", "tests/tools.py")(3)
    fixture = project.function()
    before, made = project.print(setup=setup), project.print(setup=setup, makers=[fixture])
    project.write("tests/conftest.py", f"{SETUP}# another number of rows")
    assert project.print(setup=setup) == before
    assert project.print(setup=setup, makers=[fixture]) != made


def test_a_setup_without_a_file_counts_by_its_code(project: Project) -> None:
    def typed(source: str) -> str:
        space: dict[str, Any] = {}
        exec(source, space)
        return project.print(setup=space["setup"])

    one = typed("def setup(e): return 1")
    assert typed("def setup(e): return 1") == one
    assert typed("\n\ndef setup(e): return 1") == one
    others = {
        typed("def setup(e): return 2"),
        typed("def setup(e): return e"),
        typed("def setup(e): e.run()"),
        typed("def setup(e): e.stop()"),
        typed("def setup(e): return (lambda: 1)"),
        typed("def setup(e): return (lambda: 2)"),
        typed("setup = lambda e: e + 1"),
    }
    assert len(others | {one}) == 8


def test_the_setup_of_a_package_counts_by_its_file(
    project: Project, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Project(tmp_path / "elsewhere")
    setup = other.function()
    before = project.print(setup=setup)
    other.write("tests/conftest.py", f"{SETUP}# more")
    assert project.print(setup=setup) != before


def test_files_directories_and_patterns_count(project: Project) -> None:
    for name in ("seed.sql", "data/a.csv", "data/deep/b.csv", "data/deep/c.txt", "x[1].sql"):
        project.write(name, name)
    project.write("seeds.py", "import more")
    project.write("more.py")
    assert project.counts("seed.sql", "seed.sql")
    assert project.counts("seed.sql", "./seed.sql")
    assert project.counts("seed.sql", "*.sql")
    assert project.counts("seed.sql", str(project.root / "seed.sql"))
    assert project.counts("data/deep/b.csv", "data")
    assert project.counts("data/deep/b.csv", "data/")
    assert project.counts("data/deep/b.csv", "data/*")
    assert project.counts("data/deep/b.csv", "data/**/*.csv")
    assert project.counts("data/deep/b.csv", str(project.root / "data/*/b.csv"))
    assert project.counts("x[1].sql", "x[1].sql")
    assert project.counts("more.py", "seeds.py")
    assert not project.counts("seed.sql")
    assert not project.counts("data/deep/c.txt", "data/**/*.csv")
    assert project.print("data", "seed.sql") == project.print("seed.sql", "data", "data/*.csv")
    before = project.print("data")
    project.write("data/new.csv")
    assert project.print("data") != before
    (project.root / "data/new.csv").unlink()
    assert project.print("data") == before
    (project.root / "data/a.csv").rename(project.root / "data/z.csv")
    assert project.print("data") != before


def test_a_root_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    project = Project(tmp_path / "project [1]*")
    project.write("seed.sql")
    assert project.counts("seed.sql", "*.sql")


def test_files_beside_the_project_may_be_named(project: Project) -> None:
    project.write("../shared/schema.sql")
    assert project.counts("../shared/schema.sql", "../shared")
    assert project.counts("../shared/schema.sql", "../shared/*.sql")


def test_leftovers_do_not_count(project: Project) -> None:
    project.write("data/a.sql")
    before = project.print("data", "data/*")
    for name in ("__pycache__/a.py", "a.pyc", "a.sql~", ".a.sql.swp", "#a.sql#", ".#a.sql"):
        project.write(f"data/{name}", "left")
    for name in (".DS_Store", "a.sql.orig", ".git/HEAD", ".venv/x.sql", ".mypy_cache/x"):
        project.write(f"data/{name}", "left")
    assert project.print("data", "data/*") == before


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("migration", "migrations"),
        ("migrations/seed.sq", "migrations/seed.sql"),
        ("migrations/*.sqll", None),
        ("zzzzzzzzzz", None),
        ("/no/such/thing", None),
        ("**.sql", None),
    ],
)
def test_a_name_that_matches_nothing_is_an_error(
    project: Project, name: str, near: str | None
) -> None:
    project.write("migrations/seed.sql")
    if name == "**.sql" and sys.version_info >= (3, 13):
        pytest.skip("a pattern like any other")
    with pytest.raises(errors.SettingsError) as raised:
        project.print(name)
    assert repr(name) in raised.value.what
    assert raised.value.cause
    if near:
        assert f"did you mean {near!r}?" in raised.value.what
        assert raised.value.remedy == f'fingerprint = ["{near}"]'
    assert raised.value.remedy.startswith("fingerprint = [")


def test_a_file_that_cannot_be_read_is_named(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = project.write("data/secret.sql")
    read = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    with pytest.raises(errors.SettingsError, match="Permission denied") as raised:
        project.print("data")
    assert str(secret) in raised.value.what
    assert raised.value.cause
    assert str(secret) in raised.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["data/secret.sql", "data"])
def test_what_permissions_forbid_is_named(project: Project, name: str) -> None:
    project.write("data/secret.sql")
    (project.root / name).chmod(0)
    try:
        with pytest.raises(errors.SettingsError, match="Permission denied"):
            project.print("data")
    finally:
        (project.root / name).chmod(0o755)


INIS = {
    "plain": "[alembic]\nscript_location = db\n",
    "here": "[alembic]\nscript_location = %(here)s/db\nfile_template = %%(rev)s\n",
    "resource": "[alembic]\nscript_location = pkg:db\n",
    "other section": "[other]\nscript_location = db\n",
    "default": "[DEFAULT]\nwhere = db\n[alembic]\nscript_location = %(where)s\n",
}


@pytest.mark.parametrize("kind", sorted(INIS))
def test_alembic_s_scripts_count_by_themselves(project: Project, kind: str) -> None:
    where = "pkg/db" if kind == "resource" else "db"
    project.write("alembic.ini", INIS[kind])
    for name in ("env.py", "versions/001_first.py", "versions/__pycache__/x.pyc"):
        project.write(f"{where}/{name}")
    project.write(f"{where}/versions/002_seed.py", "from app.seeds import rows")
    project.write("app/seeds.py")
    for name in ("alembic.ini", "app/seeds.py", f"{where}/env.py"):
        assert project.counts(name), name
    assert project.counts(f"{where}/versions/001_first.py")
    assert not project.counts(f"{where}/versions/__pycache__/x.pyc")
    before = project.print()
    project.write(f"{where}/versions/003_more.py")
    assert project.print() != before


@pytest.mark.parametrize(
    "locations",
    [
        "a/one b/two",
        "a/one, b/two",
        "%(here)s/a/one:%(here)s/b/two\nversion_path_separator = os",
        "a/one;b/two\npath_separator = ;",
        "a/one:b/two\npath_separator = :",
        "\n  a/one\n  b/two\npath_separator = newline",
        "a/one pkg:two\n",
    ],
)
def test_several_version_locations_count(project: Project, locations: str) -> None:
    text = f"[alembic]\nscript_location = db\nversion_locations = {locations}\n"
    project.write("alembic.ini", text)
    names = ["db/env.py", "a/one/1.py", "pkg/two/1.py" if "pkg" in locations else "b/two/1.py"]
    for name in names:
        project.write(name)
    assert all(project.counts(name) for name in names)


def test_alembic_s_settings_in_pyproject_count(project: Project) -> None:
    project.write(
        "pyproject.toml",
        '[project]\nname = "x"\n[tool.alembic]\nscript_location = "%(here)s/db"\n'
        'version_locations = ["db/versions", "%(here)s/more"]\n',
    )
    for name in ("db/env.py", "db/versions/1.py", "more/2.py"):
        project.write(name)
    for name in ("db/env.py", "db/versions/1.py", "more/2.py"):
        assert project.counts(name), name
    before = project.print()
    settings = project.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace('name = "x"', 'name = "y"'))
    assert project.print() == before
    settings.write_text(settings.read_text() + 'timezone = "UTC"\n')
    assert project.print() != before


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[alembic]\n", "[alembic]\nscript_location = %(x)s", "[alembic"]
)
def test_an_alembic_ini_without_scripts_counts_alone(project: Project, text: str) -> None:
    project.write("alembic.ini", text)
    project.write("pyproject.toml", "[tool")
    assert project.counts("alembic.ini")


def test_scripts_beside_their_ini_do_not_take_the_whole_project(project: Project) -> None:
    project.write("alembic.ini", "[alembic]\nscript_location = %(here)s\n")
    for name in ("env.py", "versions/1.py", "app.log"):
        project.write(name)
    assert project.counts("env.py")
    assert project.counts("versions/1.py")
    assert not project.counts("app.log")


def test_another_place_of_the_checkout_is_the_same_fingerprint(
    application: Project, tmp_path: Path
) -> None:
    application.write("tests/conftest.py", "def setup(e):\n    import app.seeds\n")
    application.write("alembic.ini", "[alembic]\nscript_location = %(here)s/db\n")
    application.write("db/env.py")
    before = application.print("app", "src/**/*.py")
    moved = Project(tmp_path / "deeper/in/another place")
    shutil.copytree(application.root, moved.root, dirs_exist_ok=True)
    assert moved.print("app", "src/**/*.py") == before
    link = tmp_path / "link"
    link.symlink_to(moved.root)
    linked = Project.__new__(Project)
    linked.root = link
    assert linked.print("app", "src/**/*.py") == before


SCRIPT = """
import json, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from sqlalchemy import *
from sqlalchemy.types import UserDefinedType
from cleaner.metadata import Models
from cleaner.provision.fingerprint import fingerprint

class Odd(UserDefinedType):
    def __init__(self, names): self.names = names
    def __repr__(self): return f"Odd({self.names!r}, {object()!r})"

metadata = MetaData()
Table("b", metadata, Column("id", Integer, primary_key=True), Column("e", Enum("x", "y", name="e")))
Table("a", metadata, Column("id", Integer, primary_key=True), Column("b", ForeignKey("b.id")),
      CheckConstraint("id > 0"), CheckConstraint("id < 9"), Index("i", "b"))
Table("o", metadata, Column("o", Odd({"one", "two", "three"})))
event.listen(metadata, "after_create", DDL("X %(y)s"))
space = {}
exec("def setup(e): return e in {'one', 'two', 'three', 'four'}", space)
from tests.conftest import setup
root = Path(sys.argv[1])
for function in (setup, space["setup"]):
    print(fingerprint(Models(metadata), function, ["app", "*.py"], root, "18"))
"""


def test_every_process_finds_the_same(application: Project, tmp_path: Path) -> None:
    application.write("tests/conftest.py", f"import app.seeds\nfrom app.middle import *\n{SETUP}")
    moved = tmp_path / "moved"
    shutil.copytree(application.root, moved)
    found = set()
    for seed, root in (("0", application.root), ("1", application.root), ("2", moved)):
        done = subprocess.run(
            [sys.executable, "-W", "error" if seed == "1" else "ignore", "-c", SCRIPT, str(root)],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
        )
        assert done.returncode == 0, done.stderr
        found.add(done.stdout)
    assert len(found) == 1
    assert [len(line) for line in done.stdout.split()] == [64, 64]


def test_nothing_is_imported(application: Project) -> None:
    setup = application.function()
    application.write("tests/conftest.py", f"import app.seeds\n{SETUP}")
    application.write("app/seeds.py", "raise SystemExit('imported')")
    before = set(sys.modules)
    application.print("app", setup=setup)
    assert not set(sys.modules) - before


def test_a_change_in_the_same_tick_of_the_clock_is_seen(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    stat = Path.stat

    def coarse(path: Path, **options: Any) -> Any:
        found = stat(path, **options)
        second = found.st_mtime_ns // 10**9 * 10**9
        return SimpleNamespace(
            st_mode=found.st_mode,
            st_mtime_ns=second,
            st_ctime_ns=second,
            st_size=found.st_size,
            st_ino=found.st_ino,
        )

    file = project.write("seed.sql", "0")
    setup = project.function()
    monkeypatch.setattr(Path, "stat", coarse)
    seen = set()
    for number in range(20):
        file.write_text(f"{number:03}")
        seen.add(project.print("seed.sql", setup=setup))
    assert len(seen) == 20


def test_a_change_that_keeps_the_time_and_size_is_seen(
    project: Project, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_SETTLED", -1)
    file = project.write("seed.sql", "a")
    past = time.time() - 3600
    os.utime(file, (past, past))
    before = project.print("seed.sql")
    time.sleep(0.02)
    file.write_text("b")
    os.utime(file, (past, past))
    assert project.print("seed.sql") != before


def test_a_name_is_the_same_however_its_accents_are_stored(tmp_path: Path) -> None:
    prints = set()
    for form in ("NFC", "NFD"):
        project = Project(tmp_path / form)
        project.write(f"data/{unicodedata.normalize(form, 'é')}.sql")
        prints.add(project.print("data"))
    assert len(prints) == 1


def test_a_second_look_at_five_hundred_files_is_quick(project: Project) -> None:
    imports = "import os, json, typing\nfrom app import m0\n"
    body = "\n".join(f"def f{i}(a, b):\n    return [a + b, {i}]" for i in range(60))
    project.write("app/__init__.py")
    for number in range(500):
        following = f"from app.m{(number + 1) % 500} import f1\nfrom .m{number // 2} import f2\n"
        project.write(f"app/m{number}.py", f"{imports}{following}# {number}\n{body}")
    setup = project.function()
    project.write("tests/conftest.py", f"import app.m0\n{SETUP}")
    first = project.print(setup=setup)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        assert project.print(setup=setup) == first
        times.append(time.perf_counter() - start)
    assert min(times) < 0.1, json.dumps(times)
