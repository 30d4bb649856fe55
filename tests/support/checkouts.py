"""Projects of a few files, whose fingerprint is looked at."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cleaner.metadata import Models
from cleaner.provision.fingerprint import fingerprint

SETUP = "def setup(engine):\n    pass\n"


class Checkout:
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
def checkout(tmp_path: Path) -> Checkout:
    return Checkout(tmp_path / "project")


@pytest.fixture
def application(checkout: Checkout) -> Checkout:
    for name in ("top", "app/__init__", "app/seeds", "app/end", "app/deep/__init__"):
        checkout.write(f"{name}.py")
    for name in (
        "tests/__init__",
        "tests/helper",
        "src/shop/__init__",
        "src/shop/models",
        "app/unused",
    ):
        checkout.write(f"{name}.py")
    checkout.write("app/chain.py", "from .middle import f")
    checkout.write("app/middle.py", "def f():\n    from app import end")
    checkout.write("app/loop.py", "import app.pool")
    checkout.write("app/pool.py", "import app.loop")
    return checkout
