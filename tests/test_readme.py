"""Every snippet of the README runs, and what it says of the settings and errors is true."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from support.database import Database

from cleaner import Settings, cli, errors, guard

README = Path(__file__).parent.parent / "README.md"
TEXT = README.read_text(encoding="utf-8")
MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase): ...


class Order(Base):
    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    item: Mapped[str]


class Role(Base):
    __tablename__ = "role"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    level: Mapped[int]
"""


def section(title: str) -> str:
    return TEXT.partition(f"\n## {title}\n")[2].partition("\n## ")[0]


def snippets(language: str, text: str = TEXT) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def is_file(snippet: str) -> bool:
    return snippet.startswith("# tests/")


def suite(pytester: pytest.Pytester, title: str) -> None:
    """Write the files of that section, with the settings and models that the first steps name."""
    settings = next(text for text in snippets("toml") if 'Base"\n' in text)
    pytester.makepyprojecttoml(settings + '[tool.pytest.ini_options]\npythonpath = ["."]\n')
    pytester.mkdir("shop").joinpath("models.py").write_text(MODELS)
    tests = pytester.mkdir("tests")
    for snippet in filter(is_file, snippets("python", section(title))):
        (tests / snippet.split("\n")[0].rpartition("/")[2]).write_text(snippet)


def test_the_snippets_run_one_after_the_other(tmp_path: Path) -> None:
    script = tmp_path / "readme.py"
    script.write_text("\n".join(s for s in snippets("python") if not is_file(s)))
    done = subprocess.run(
        [sys.executable, "-W", "error", script], capture_output=True, text=True, check=False,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    printed = done.stdout.splitlines()
    assert len(printed) == 2
    assert all(
        line.startswith("auto: 1 table (users), 1 sequence (users_id_seq), ") for line in printed
    )
    assert printed[1].endswith("1 round trip")


def test_the_three_steps_make_a_suite_that_passes(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CLEANER_URL", raising=False)  # of the run that this one is a test of
    suite(pytester, "pytest in three steps")
    result = pytester.runpytest_subprocess("--strict-markers", "-v")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["cleaner: auto on postgresql * (embedded), database test_main"])


def test_what_a_failed_test_left_is_printed_in_the_words_of_the_readme(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable in [name for name in os.environ if name.startswith(("PYTEST_", "CLEANER_"))]:
        monkeypatch.delenv(variable)
    monkeypatch.setenv("COLUMNS", "80")
    suite(pytester, "What did my test leave?")
    result = pytester.runpytest_subprocess("-p", "no:randomly")
    result.assert_outcomes(failed=1)
    (words,) = snippets("text", section("What did my test leave?"))
    before, _, after = result.stdout.str().partition(words)
    assert before.endswith("AssertionError\n")
    assert after.startswith("=========================== short test summary info ")


def test_every_toml_snippet_is_accepted(tmp_path: Path) -> None:
    for snippet in snippets("toml"):
        (tmp_path / "pyproject.toml").write_text(snippet)
        settings = Settings.load(tmp_path)
        for name in settings.databases:
            settings.database(name)


def test_every_setting_has_its_line() -> None:
    table = TEXT[TEXT.index("| setting |") : TEXT.index("```toml", TEXT.index("| setting |"))]
    rows = [row for row in table.splitlines() if row.startswith("| `")]
    documented = set(re.findall(r"`(\w+)`", "".join(row.split("|")[1] for row in rows)))
    assert documented == {each.name for each in fields(Settings)} - {"origins"}


def test_every_command_is_one_that_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    commands = re.findall(r"^cleaner (\w+)", TEXT, re.MULTILINE)
    assert commands
    for command in commands:
        with pytest.raises(SystemExit) as stopped:
            cli.main([command, "--help"])
        assert stopped.value.code == 0
    capsys.readouterr()


def headings() -> list[str]:
    section = TEXT[TEXT.index("## Troubleshooting") : TEXT.index("## Limits")]
    return re.findall(r"^\*\*`(.*?)`\*\*", section, re.MULTILINE)


def provoked(database: Database) -> Iterator[errors.CleanerError]:
    """One error for each heading, in their order."""

    def raised(**settings: Any) -> errors.CleanerError:
        with pytest.raises(errors.CleanerError) as caught, database.cleaner(**settings) as cleaner:
            cleaner.clean()
        return caught.value

    database.execute(
        """CREATE TABLE city (id int PRIMARY KEY);
        CREATE TABLE country (id int, city int REFERENCES city);
        CREATE TABLE audit_log (id int);
        INSERT INTO city VALUES (1); INSERT INTO country VALUES (1, 1);"""
    )
    with pytest.raises(errors.UnsafeDatabaseError) as refused:
        guard.check("shop", None)
    yield refused.value
    with database.transaction() as connection:
        connection.execute("INSERT INTO city VALUES (2)")
        yield raised(lock_timeout=0.2)
    yield raised(exclude=["country"])
    yield raised(exclude=["country"], strategy="truncate")
    yield raised(strategy="replica", role=database.role)
    database.execute(
        f"""DELETE FROM country; INSERT INTO audit_log VALUES (1);
        CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER keep BEFORE DELETE ON audit_log FOR EACH ROW EXECUTE FUNCTION keep();
        GRANT ALL ON ALL TABLES IN SCHEMA public TO {database.role}"""
    )
    yield raised(strategy="delete", role=database.role)


def test_the_headings_of_the_troubleshooting_are_what_is_raised(database: Database) -> None:
    for heading, error in zip(headings(), provoked(database), strict=False):
        filled_in = r"'[^']*'|\d+(?:\.\d+)?|\([^)]*\)|(?<=role )\w+|app_test|\.\.\."
        literal = re.split(filled_in, heading)
        assert re.match(".*?".join(map(re.escape, literal)), str(error)), (heading, str(error))
        assert error.remedy
