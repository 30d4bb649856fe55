"""Several databases under one suite: chosen by marker, by the settings, or used in one test."""

from __future__ import annotations

import pytest
from support.projects import builds

CONFTEST = """
import pathlib
import pytest
from sqlalchemy import create_engine


@pytest.fixture
def name(cleaner_engine):
    return cleaner_engine.dialect.name


@pytest.fixture
def add(cleaner_engine):
    from models import Item
    from sqlalchemy.orm import Session

    def add(engine=cleaner_engine):
        with Session(engine) as session, session.begin():
            session.add(item := Item(name="x"))
            session.flush()
            return item.id
    return add
"""
MODELS = """
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

class Base(DeclarativeBase): ...

class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
"""
SETTINGS = """
[tool.cleaner]
metadata = "models:Base"

[tool.cleaner.databases.unit]
url = "sqlite://"
metadata = "models:Base"
tests = ["tests/unit"]

[tool.cleaner.databases.reports]
metadata = "models:Base"

[tool.pytest.ini_options]
pythonpath = ["."]
"""


@pytest.fixture
def suite(project: pytest.Pytester) -> pytest.Pytester:
    project.makepyprojecttoml(SETTINGS)
    project.makeconftest(CONFTEST)
    project.makepyfile(models=MODELS)
    write(project, "tests/unit/__init__.py", "")
    return project


def write(suite: pytest.Pytester, path: str, text: str) -> None:
    file = suite.path / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def test_each_test_has_the_database_that_its_marker_or_its_place_chooses(
    suite: pytest.Pytester,
) -> None:
    write(
        suite,
        "tests/unit/test_unit.py",
        """
def test_placed(clean_database, add, name):
    assert (name, add()) == ("sqlite", 1)

def test_placed_too(clean_database, add, name):
    assert (name, add()) == ("sqlite", 1)
""",
    )
    write(
        suite,
        "tests/test_integration.py",
        """
import pytest

def test_not_marked(clean_database, add, name):
    assert (name, add()) == ("postgresql", 1)

@pytest.mark.cleaner(database="unit")
def test_marked(add, name):
    assert (name, add()) == ("sqlite", 1)

@pytest.mark.cleaner(database=["main", "unit"])
def test_on_both(add, name):
    assert add() == 1

@pytest.mark.cleaner(database="reports")
def test_on_another_of_the_same_server(add, cleaner_url):
    assert "/test_reports_" in cleaner_url
    assert add() == 1

def test_not_marked_either(clean_database, add, name):
    assert (name, add()) == ("postgresql", 1)
""",
    )
    result = suite.runpytest_subprocess("-v")
    result.assert_outcomes(passed=8)
    result.stdout.fnmatch_lines_random(
        [
            "cleaner: auto on postgresql * (embedded), database test_main",
            "cleaner: unit: auto on sqlite*, database in memory",
            "cleaner: reports: auto on postgresql * (embedded), database test_reports_main",
            "*test_on_both[[]main[]]*",
            "*test_on_both[[]unit[]]*",
        ]
    )


def test_one_test_may_use_them_all_and_finds_each_clean(suite: pytest.Pytester) -> None:
    suite.makepyfile(
        """
        def counts(cleaners):
            return {name: len(cleaner.diff().tables) for name, cleaner in cleaners.items()}

        def test_first(clean_databases, cleaner_engines, add):
            for name, engine in cleaner_engines.items():
                assert add(engine) == 1, name
            assert counts(clean_databases) == {"main": 1, "unit": 1, "reports": 1}

        def test_second(clean_databases, cleaner_engines, add):
            assert counts(clean_databases) == {"main": 0, "unit": 0, "reports": 0}
            test_first(clean_databases, cleaner_engines, add)
        """
    )
    suite.runpytest_subprocess("-n", "2").assert_outcomes(passed=2)


def test_a_name_that_the_settings_do_not_have_is_an_error_that_names_those_they_have(
    suite: pytest.Pytester,
) -> None:
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.cleaner(database="unti")
        def test(clean_database): ...
        """
    )
    result = suite.runpytest_subprocess()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*There is no database 'unti' in the settings; there are *unit*"])


def test_setups_can_be_given_by_name(suite: pytest.Pytester) -> None:
    suite.makeconftest(
        CONFTEST
        + """

@pytest.fixture(scope="session")
def cleaner_setup():
    def count(engine):
        with pathlib.Path(__file__).with_name("builds").open("a") as file:
            file.write(f"{engine.dialect.name}\\n")

    def unit(engine):
        count(engine)
        from models import Base, Item
        Base.metadata.create_all(engine)
        with engine.begin() as connection:
            connection.execute(Item.__table__.insert(), [{"name": "seed"}])

    return {"unit": unit}
"""
    )
    suite.makepyfile(
        """
        import pytest

        @pytest.mark.cleaner(database="unit")
        @pytest.mark.parametrize("turn", [1, 2])
        def test_unit(add, turn, cleaner):
            assert add() == 2
            assert cleaner.captured == {"item": 1}

        def test_main(clean_database, add):
            assert add() == 1
        """
    )
    suite.runpytest_subprocess().assert_outcomes(passed=3)
    assert builds(suite.path) == 1
