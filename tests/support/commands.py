"""The command line as its callers see it, run in this process."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from cleaner import registry
from cleaner.cli import main
from cleaner.spi import Plan, Strategy, Target
from support.database import Database

SCHEMA = """
CREATE TABLE country (id serial PRIMARY KEY);
CREATE TABLE customer (id serial PRIMARY KEY, country int REFERENCES country);
CREATE TABLE purchase (id serial PRIMARY KEY, customer int REFERENCES customer);
INSERT INTO country DEFAULT VALUES;
INSERT INTO customer (country) VALUES (1);
INSERT INTO purchase (customer) VALUES (1);
"""
MODELS = """
from sqlalchemy import Column, Integer, MetaData, Table
metadata = MetaData()
for name in ("customer", "purchase", "forgotten"):
    Table(name, metadata, Column("id", Integer, primary_key=True))
"""


class Result:
    """What a command did, as its caller sees it."""

    def __init__(self, code: int, out: str, err: str) -> None:
        self.code, self.out, self.err = code, out, err

    @property
    def json(self) -> Any:
        return json.loads(self.out)


Command = Callable[..., Result]


class Moody(Strategy):
    """A plug-in that never serves."""

    name = "moody"

    def refusal(self, target: Target) -> str | None:
        return "not today: GRANT chocolate TO moody"

    def plan(self, target: Target) -> Plan:
        raise NotImplementedError


class Broken(Moody):
    name = "broken"

    def refusal(self, target: Target) -> str | None:
        raise RuntimeError("out of order")


def written(argument: object) -> str:
    if isinstance(argument, URL):
        return argument.render_as_string(hide_password=False)
    return str(argument)


def install(monkeypatch: pytest.MonkeyPatch, *classes: type[Strategy]) -> None:
    """Have strategies installed that a package of somebody else's brings."""
    entries = dict(registry._entry_points())
    for each in classes:
        setattr(sys.modules[__name__], each.__name__, each)
        entries[each.name] = EntryPoint(each.name, f"{__name__}:{each.__name__}", registry.GROUP)
    monkeypatch.setattr(registry, "_entry_points", lambda: entries)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory; nothing of the environment has a say."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    for variable in [name for name in os.environ if name.startswith("CLEANER_")]:
        monkeypatch.delenv(variable)
    (tmp_path / "pyproject.toml").write_text("[tool.cleaner]\n")
    return tmp_path


@pytest.fixture
def cli(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run ``cleaner`` here, in this process."""

    def cli(*arguments: object) -> Result:
        code = main([written(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return cli


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(SCHEMA)
    return database
