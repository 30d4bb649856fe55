"""What changes the fingerprint of a template, and what doesn't: the set-up, versions, places."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from support.checkouts import SETUP, Checkout

from cleaner.provision import fingerprint as module


def test_the_server_and_the_versions_count(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkout.print()
    assert checkout.print(server="PostgreSQL 17") != before
    with monkeypatch.context() as patched:
        patched.setattr(module, "__version__", "99")
        assert checkout.print() != before
    with monkeypatch.context() as patched:
        patched.setattr(sqlalchemy, "__version__", "1.4.0")
        old = checkout.print()
        assert old != before
        patched.setattr(sqlalchemy, "__version__", "1.4.9")
        assert checkout.print() == old
    assert checkout.print() == before


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
def test_the_files_of_a_wrapped_function_are_found(checkout: Checkout, kind: str) -> None:
    checkout.write("tools/deco.py", WRAPPERS[kind])
    setup = checkout.function("deco", "tools/deco.py")(checkout.function())
    before = checkout.print(setup=setup)
    file = checkout.write("tests/conftest.py", f"{SETUP}# more")
    wrapped = checkout.print(setup=setup)
    assert wrapped != before
    if kind not in ("partial", "cache", "caches"):  # which are all of the standard library
        file.write_text(SETUP)
        checkout.write("tools/deco.py", f"{WRAPPERS[kind]}# more")
        assert checkout.print(setup=setup) not in (before, wrapped)


def test_the_arguments_of_a_partial_count_but_for_places(checkout: Checkout) -> None:
    def partial(*arguments: object, **keywords: object) -> str:
        return checkout.print(setup=functools.partial(checkout.function(), *arguments, **keywords))

    prints = [partial(), partial(1), partial(2), partial("1"), partial(a=1), partial(b=1)]
    assert len(set(prints)) == len(prints)
    assert partial(a=1, b=2) == partial(b=2, a=1)
    assert partial("postgresql://localhost/gw0") == partial("postgresql://localhost/gw1")
    assert partial("/tmp/pytest-1/x") == partial("/tmp/pytest-2/x")
    assert partial(object()) == partial(object())


def test_a_proxy_that_stands_for_nothing_does_no_harm(checkout: Checkout) -> None:
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

    assert checkout.print(setup=made(Proxy()))


def test_the_makers_of_a_setup_count(checkout: Checkout) -> None:
    checkout.write("tests/tools.py", "def make(rows):\n    def setup(e): rows\n    return setup\n")
    setup = checkout.function("make", "tests/tools.py")(3)
    fixture = checkout.function()
    before, made = checkout.print(setup=setup), checkout.print(setup=setup, makers=[fixture])
    checkout.write("tests/conftest.py", f"{SETUP}# another number of rows")
    assert checkout.print(setup=setup) == before
    assert checkout.print(setup=setup, makers=[fixture]) != made


def test_a_setup_without_a_file_counts_by_its_code(checkout: Checkout) -> None:
    def typed(source: str) -> str:
        space: dict[str, Any] = {}
        exec(source, space)
        return checkout.print(setup=space["setup"])

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
    checkout: Checkout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Checkout(tmp_path / "elsewhere")
    setup = other.function()
    before = checkout.print(setup=setup)
    other.write("tests/conftest.py", f"{SETUP}# more")
    assert checkout.print(setup=setup) != before


def test_another_place_of_the_checkout_is_the_same_fingerprint(
    application: Checkout, tmp_path: Path
) -> None:
    application.write("tests/conftest.py", "def setup(e):\n    import app.seeds\n")
    application.write("alembic.ini", "[alembic]\nscript_location = %(here)s/db\n")
    application.write("db/env.py")
    before = application.print("app", "src/**/*.py")
    moved = Checkout(tmp_path / "deeper/in/another place")
    shutil.copytree(application.root, moved.root, dirs_exist_ok=True)
    assert moved.print("app", "src/**/*.py") == before
    link = tmp_path / "link"
    link.symlink_to(moved.root)
    linked = Checkout.__new__(Checkout)
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


def test_every_process_finds_the_same(application: Checkout, tmp_path: Path) -> None:
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


def test_nothing_is_imported(application: Checkout) -> None:
    setup = application.function()
    application.write("tests/conftest.py", f"import app.seeds\n{SETUP}")
    application.write("app/seeds.py", "raise SystemExit('imported')")
    before = set(sys.modules)
    application.print("app", setup=setup)
    assert not set(sys.modules) - before


def test_a_change_that_keeps_the_time_and_size_is_seen(checkout: Checkout) -> None:
    file = checkout.write("seed.sql", "a")
    past = time.time() - 3600
    os.utime(file, (past, past))
    before = checkout.print("seed.sql")
    file.write_text("b")
    os.utime(file, (past, past))
    assert checkout.print("seed.sql") != before
