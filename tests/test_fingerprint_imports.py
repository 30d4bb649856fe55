"""What the set-up imports changes the fingerprint, and what it doesn't import does not."""

from __future__ import annotations

import ast
import asyncio
import json
import warnings
from pathlib import Path

import pytest
from support.checkouts import SETUP, Checkout

import cleaner
from cleaner.provision import sources

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
    ("from app import (\n    deep,  # (not this)\n    seeds as s,\n)", "app/seeds.py"),
    ("from app import (deep, # from x import (\nseeds)", "app/seeds.py"),
    ("from app.deep import \\\n    thing, other\nimport app.seeds", "app/deep/__init__.py"),
    ("from \\\n    app import deep, \\\n    seeds", "app/seeds.py"),
    ("from app \\\n    import \\\n    (seeds)", "app/seeds.py"),
    ("import os,app . seeds", "app/seeds.py"),
    ("from.import helper", "tests/helper.py"),
    ("from app import*", "app/seeds.py"),
    ("if True: import app.seeds", "app/seeds.py"),
    ("x = '#'; from app import seeds", "app/seeds.py"),
    ("import os; import app.seeds", "app/seeds.py"),
    ("import os; x = [\n]; import app.seeds", "app/seeds.py"),
    ("if True: \\\n  import app.seeds", "app/seeds.py"),
    ("\ufeffimport app.seeds", "app/seeds.py"),
    ("\fimport app.seeds", "app/seeds.py"),
    ("import app.seeds  # \\", "app/seeds.py"),
    ("def setup(engine):\n\tfrom app import (\nseeds)", "app/seeds.py"),
    ('# one """\nimport app.seeds', "app/seeds.py"),
    ('"""\'\'\'"""\nimport app.seeds', "app/seeds.py"),
    ('"""Of this:\n\nimport os\n"""\nimport app.seeds', "app/seeds.py"),
    ("lazy import app.seeds", "app/seeds.py"),
    ("lazy from app import seeds", "app/seeds.py"),
]


@pytest.mark.parametrize(("line", "file"), IMPORTS)
def test_what_the_setup_imports_counts(application: Checkout, line: str, file: str) -> None:
    setup = application.function()
    application.write("tests/conftest.py", f"{line}\n{SETUP}")
    before = application.print(setup=setup)
    (application.root / file).write_text("changed = True")
    assert application.print(setup=setup) != before


def test_what_it_does_not_import_does_not(application: Checkout) -> None:
    setup = application.function()
    text = "import app.seeds, os, json, no_such_thing\nfrom .... import x\nfrom . import end\n"
    application.write("tests/conftest.py", text + SETUP)
    before = application.print(setup=setup)
    for name in ("app/unused.py", "app/end.py", "end.py", "json.txt", "sqlalchemy.pyc"):
        application.write(name, "changed")
    assert application.print(setup=setup) == before


def test_what_a_text_or_a_comment_shows_does_not(application: Checkout) -> None:
    setup = application.function()
    for shown in ("import app.seeds", "    from app import seeds", ">>> x; import app.seeds"):
        for text in (f'"""How:\n\n{shown}\n"""', f"x = '''\n{shown}\n'''", f"# so: {shown}"):
            application.write("tests/conftest.py", f"import os\n{text}\n{SETUP}")
            before = application.print(setup=setup)
            application.write("app/seeds.py", f"# {shown} {text}")
            assert application.print(setup=setup) == before, text


def test_the_imports_of_real_programs_are_those_that_python_finds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(path: Path) -> set[sources.Need]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return set(sources.read(str(path))[1])

    packages = (asyncio, json, cleaner)
    files = [file for each in packages for file in Path(each.__path__[0]).rglob("*.py")]
    seen = {file: found(file) for file in files}
    monkeypatch.setattr(sources, "_plain", lambda source: None)
    for file in files:
        assert seen[file] == found(file), file


def test_of_plain_files_only_the_imports_are_parsed(
    application: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    parsed: list[bytes] = []
    parse = ast.parse

    def seen(text: bytes) -> ast.Module:
        parsed.append(text)
        return parse(text)

    monkeypatch.setattr(ast, "parse", seen)
    setup = application.function()
    body = '"""What it is for: to import seeds."""\n\nimport os  # why\nfrom app import seeds\n'
    application.write("tests/conftest.py", f"{body}\n\n# an import\n{SETUP}")
    application.print(setup=setup)
    assert b"import os  # why\nfrom app import seeds" in parsed
    assert not any(b"def " in text for text in parsed)


@pytest.mark.parametrize("place", [".venv/lib/python3.12", "env/lib/python3.12", "node_modules"])
def test_installed_packages_are_never_read(
    checkout: Checkout, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for directory in (place, f"{place}/site-packages"):
        file = checkout.write(f"{directory}/installed.py", "a = 1")
        monkeypatch.syspath_prepend(str(file.parent))
        setup = checkout.function()
        checkout.write("tests/conftest.py", f"import installed\n{SETUP}")
        before = checkout.print(setup=setup)
        file.write_text("a = 2")
        assert checkout.print(setup=setup) == before


def test_a_directory_that_python_looks_in_is_searched(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = checkout.write("libraries/core/seeds.py", "a = 1")
    setup = checkout.function()
    checkout.write("tests/conftest.py", f"import seeds\n{SETUP}")
    monkeypatch.syspath_prepend(str(file.parent))
    before = checkout.print(setup=setup)
    file.write_text("a = 2")
    assert checkout.print(setup=setup) != before


def test_a_file_that_is_no_python_counts_by_its_content(checkout: Checkout) -> None:
    setup = checkout.function()
    seen = set()
    for source in ("def broken(:", "print 'old'", "\0", "(" * 10_000):
        checkout.write("tests/conftest.py", source)
        seen.add(checkout.print(setup=setup))
    assert len(seen) == 4
