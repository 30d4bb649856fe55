"""Imports run one way: from the ground up to the doors."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import cleaner

ROOT = Path(cleaner.__file__).parent

# Each floor may import what is on a floor before it, and its own package's modules.
FLOORS = [
    {"difference"},
    {"errors", "waits"},
    {"spi"},
    {"graph", "guard", "metadata", "pools", "registry", "settings"},
    {"retry"},
    {"selection"},
    {"dialects"},
    {"attempts", "provision"},
    {"api"},
    {"aio"},
    {"console", "shop"},
    {
        "demo",
        "doctor",
        "pool_cli",
        "pytest_build",
        "pytest_kept",
        "pytest_report",
        "pytest_schema",
        "pytest_variables",
        "testcase",
        "testing",
    },
    {"pytest_leased", "pytest_own"},
    {"pytest_database"},
    {"pytest_header"},
    {"pytest_run"},
    {"cli", "pytest_plugin"},
    {"__main__"},
]
FLOOR = {room: number for number, floor in enumerate(FLOORS) for room in floor}


def modules() -> list[Path]:
    return sorted(ROOT.rglob("*.py"))


def room(module: Path) -> str:
    return module.relative_to(ROOT).with_suffix("").parts[0]


def imported(module: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(module.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module]
            if node.module == "cleaner":
                names = [f"cleaner.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            continue
        found |= {name.split(".")[1] for name in names if name.startswith("cleaner.")}
    return found


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_from_the_floors_below(module: Path) -> None:
    here = room(module)
    if here == "__init__":
        return
    upward = {there for there in imported(module) - {here} if FLOOR.get(there, -1) >= FLOOR[here]}
    assert not upward, f"{here} imports {upward}"


def test_every_module_has_a_floor() -> None:
    assert {room(module) for module in modules()} - {"__init__", "strategies"} <= set(FLOOR)


@pytest.mark.parametrize("module", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_nobody_imports_a_strategy(module: Path) -> None:
    assert "strategies" not in imported(module)


def test_strategies_import_nothing_but_the_spi_and_the_errors() -> None:
    for module in (ROOT.parent / "strategies").glob("*.py"):
        assert imported(module) <= {"spi", "errors"}, module.name


def test_only_the_dialects_know_the_dialects_names() -> None:
    for module in modules():
        if room(module) != "dialects":
            text = module.read_text(encoding="utf-8")
            assert "dialect.name" not in text, module
            assert "get_backend_name" not in text, module


@pytest.mark.parametrize("absent", ["psycopg", "pytest", "asyncio", "cleaner.strategies.auto"])
def test_importing_cleaner_does_not_import(absent: str) -> None:
    # Compared with SQLAlchemy, which may import some of them itself.
    script = (
        "import sys, sqlalchemy; before = set(sys.modules); import cleaner;"
        f"print({absent!r} in set(sys.modules) - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "False"


def test_the_built_in_strategies_can_only_be_imported_as_part_of_cleaner() -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import strategies"],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT.parent,
    )
    assert "cleaner.strategies" in done.stderr
