"""``cleaner demo``: what it proves of each strategy."""

from __future__ import annotations

import json
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import pytest
from support.commands import Command, Moody, install
from support.database import STRATEGIES

from cleaner import demo
from cleaner.console import Console


@pytest.fixture(scope="module")
def demonstration(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str]:
    """The demo's figures and its text, of one run beside settings that have no say in it."""
    directory = tmp_path_factory.mktemp("demo")
    (directory / "pyproject.toml").write_text('[tool.cleaner]\nonly = ["nothing"]')
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(StringIO()) as text:
        patch.chdir(directory)
        install(patch, Moody)
        figures = demo.run(Console())
    return json.loads(json.dumps(figures)), text.getvalue()


def test_the_demo_proves_every_strategy(demonstration: tuple[dict[str, Any], str]) -> None:
    figures, _ = demonstration
    assert figures["proved"] is True
    assert figures["strategies"].keys() == {*STRATEGIES, "recreate", "moody"}
    assert figures["strategies"]["recreate"]["verified"] is True
    for name in STRATEGIES:
        row = figures["strategies"][name]
        assert row["verified"] is True
        assert row["tables"] == len(figures["plan"]["tables"]) == 25
        assert row["sequences"] == len(figures["plan"]["sequences"]) == 27
        assert row["round_trips"] == 1
    assert figures["strategies"]["auto"]["times_auto"] == 1
    assert "legacy_import" in " ".join(figures["plan"]["warnings"])


def test_the_demo_shows_what_is_refused(demonstration: tuple[dict[str, Any], str]) -> None:
    figures, text = demonstration
    assert "GRANT chocolate" in figures["strategies"]["moody"]["refused"]
    assert "moody refused: " in text
    assert figures["safety"]["guard"]["error"] == "UnsafeDatabaseError"
    assert "'shop_production'" in text
    assert figures["safety"]["privilege"]["error"] == "StrategyRefusedError"
    assert "GRANT SET ON PARAMETER" in text
    (blocker,) = figures["safety"]["blocked"]["blockers"]
    assert blocker["application"] == "checkout-worker"


def test_the_demo_is_readable_without_colour(demonstration: tuple[dict[str, Any], str]) -> None:
    _, text = demonstration
    assert "\x1b" not in text
    assert text.count("  yes\n") == len(STRATEGIES) + 1
    assert max(map(len, text.splitlines())) <= 100


@pytest.mark.parametrize("proved", [True, False])
def test_a_strategy_that_left_something_is_a_failure(
    cli: Command, monkeypatch: pytest.MonkeyPatch, proved: bool
) -> None:
    monkeypatch.setattr(demo, "run", lambda console: {"proved": proved})
    result = cli("demo", "--json")
    assert result.json == {"proved": proved}
    assert result.code == (0 if proved else 1)
