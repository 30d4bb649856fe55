"""The pytest plug-in: whose tests are cleaned up after, how, and of which schema."""

from __future__ import annotations

import re

import pytest
from support.database import Database
from support.projects import CONFTEST, Run, lines

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


@on_embedded
def test_each_test_begins_and_ends_at_the_baseline(
    project: pytest.Pytester, run: Run, leased: Database
) -> None:
    project.makepyfile(
        """
        from sqlalchemy import Engine
        from cleaner import Cleaner

        def test_fixtures(clean_database, cleaner, cleaner_engine, cleaner_url):
            assert isinstance(clean_database, Cleaner)
            assert isinstance(cleaner_engine, Engine)
            assert cleaner_engine.url.render_as_string(hide_password=False) == cleaner_url
            assert cleaner.plan().tables == ("item", "kept")

        def test_unclean(add):
            add("left behind")

        def test_clean_from_the_start(add, rows, clean_database):
            assert rows() == []
            add()
            assert rows() == [(1, "x")]

        def test_ids_start_again(add, rows, clean_database):
            add()
            assert rows() == [(1, "x")]
        """
    )
    run().assert_outcomes(passed=4)
    assert leased.count("item") == 0


@on_embedded
def test_markers_of_module_class_and_function_are_merged_and_imply_the_fixture(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        test_marks="""
        import pytest
        pytestmark = pytest.mark.cleaner(strategy="delete", exclude=["kept"])
        seen = {}

        @pytest.fixture(autouse=True)
        def look(request):
            cleaner = request.getfixturevalue("clean_database")
            seen[request.node.name] = cleaner.settings.strategy, cleaner.settings.exclude

        class TestClass:
            pytestmark = pytest.mark.cleaner(strategy="truncate")

            def test_of_class(self): pass

            @pytest.mark.cleaner(strategy="replica", exclude=[])
            def test_of_function(self): pass

        def test_of_module(add):
            add()
            add("stays", "kept")

        def test_z(rows):
            assert rows() == []
            assert rows("kept") == [(1, "stays")]
            assert seen == {
                "test_of_class": ("truncate", ("kept",)),
                "test_of_function": ("replica", ()),
                "test_of_module": ("delete", ("kept",)),
                "test_z": ("delete", ("kept",)),
            }
        """,
        test_other="""
        def test_unmarked(request):
            assert "clean_database" not in request.fixturenames
        """,
    )
    run().assert_outcomes(passed=5)


@on_embedded
def test_a_marker_on_one_parameter_is_a_matter_of_that_parameter(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", [0, pytest.param(1, marks=pytest.mark.cleaner), 2])
        def test(n, request):
            assert ("clean_database" in request.fixturenames) == (n == 1)
        """
    )
    run().assert_outcomes(passed=3)


@on_embedded
def test_a_positional_argument_of_the_marker_is_an_error_that_shows_how_to_write_it(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        """
        import pytest

        @pytest.mark.cleaner("delete")
        def test(): pass

        @pytest.mark.cleaner(strateegy="delete")
        def test_misspelt(): pass

        def test_next(clean_database): pass
        """
    )
    result = run()
    result.assert_outcomes(errors=2, passed=1)
    result.stdout.fnmatch_lines(["*@pytest.mark.cleaner(strategy='delete')*"])
    result.stdout.fnmatch_lines(["*'strateegy'*did you mean 'strategy'?*"])


@on_embedded
def test_the_marker_is_a_known_one(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile("import pytest\n\n@pytest.mark.cleaner\ndef test(): pass")
    run("--strict-markers").assert_outcomes(passed=1)
    project.runpytest("--markers").stdout.fnmatch_lines(["@pytest.mark.cleaner(*"])


@on_embedded
def test_autouse_and_the_marker_serve_unittest_too(
    project: pytest.Pytester, url: str, leased: Database
) -> None:
    project.makepyprojecttoml(f'[tool.cleaner]\nurl = "{url}"\nautouse = true')
    project.makepyfile(
        """
        import unittest
        import pytest
        import sqlalchemy

        @pytest.fixture(autouse=True)
        def engine(request, cleaner_engine):
            if request.cls:
                request.cls.engine = cleaner_engine

        def test_plain(rows, add):
            assert rows() == []
            add()

        class TestCase(unittest.TestCase):
            def setUp(self):
                with self.engine.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO item (name) VALUES ('of setUp')")
                    found = connection.exec_driver_sql("SELECT id FROM item")
                    self.assertEqual(found.scalars().all(), [1])

            def test_one(self): pass

            @pytest.mark.cleaner(strategy="truncate")
            def test_two(self): pass

        class TestPlain:
            def setup_method(self):
                with self.engine.begin() as connection:
                    connection.exec_driver_sql("INSERT INTO item DEFAULT VALUES")

            def test_one(self, rows): assert rows() == [(1, None)]
            def test_two(self, rows): assert rows() == [(1, None)]
        """
    )
    result = project.runpytest("--cleaner-report")
    result.assert_outcomes(passed=5)
    result.stdout.fnmatch_lines(["10 cleans in *", "  auto: 8 cleans*", "  truncate: 2 cleans*"])
    assert leased.count("item") == 0


@on_embedded
def test_the_marker_serves_unittest_without_autouse(project: pytest.Pytester, run: Run) -> None:
    project.makepyfile(
        """
        import unittest
        import pytest

        class TestMarked(unittest.TestCase):
            @pytest.mark.cleaner
            def test_one(self): pass
            def test_two(self): pass
        """
    )
    result = run("--cleaner-report")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["2 cleans in *"])


@on_embedded
def test_a_setup_of_the_users_own_runs_once_for_all_runs(
    project: pytest.Pytester, run: Run, database: Database
) -> None:
    counted = project.path / "setups"
    project.makeconftest(
        "import pytest\n\n@pytest.fixture(scope='session')\ndef cleaner_setup():\n"
        "    def setup(engine):\n        with open('setups', 'a') as file: file.write('x')\n"
        "    return setup"
    )
    project.makepyfile(
        test_a="import pytest\npytestmark = pytest.mark.cleaner\n"
        "def test_a(): pass\ndef test_b(): pass",
        test_b="import pytest\npytestmark = pytest.mark.cleaner\ndef test_c(): pass",
    )
    for _ in range(2):
        run().assert_outcomes(passed=3)
    assert counted.read_text() == "x"


@on_embedded
def test_the_default_setup_creates_the_metadata_of_the_settings(
    project: pytest.Pytester, run: Run, leased: Database
) -> None:
    project.makeconftest("")
    project.makepyprojecttoml('[tool.cleaner]\nmetadata = "models:Base"')
    project.makepyfile(
        models="from sqlalchemy.orm import *\n\nclass Base(DeclarativeBase): pass\n\n"
        "class Thing(Base):\n    __tablename__ = 'thing'\n"
        "    id: Mapped[int] = mapped_column(primary_key=True)",
        test_it="def test(clean_database): assert clean_database.plan().tables == ('thing',)",
    )
    run().assert_outcomes(passed=1)
    assert leased.count("thing") == 0


# -- the schema -----------------------------------------------------------------------------


@on_embedded
def test_a_database_that_holds_its_schema_already_can_be_recreated(
    project: pytest.Pytester, run: Run, database: Database
) -> None:
    database.execute("CREATE TABLE item (id serial PRIMARY KEY); INSERT INTO item DEFAULT VALUES")
    database.close()  # it would be ended when the database is copied
    project.makeconftest("")
    project.makepyprojecttoml('[tool.cleaner]\nstrategy = "recreate"\nautouse = true')
    project.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("n", range(2))
        def test(n, cleaner_engine):
            with cleaner_engine.begin() as connection:
                insert = "INSERT INTO item DEFAULT VALUES RETURNING id"
                assert connection.exec_driver_sql(insert).scalars().all() == [1]
                connection.exec_driver_sql("ALTER TABLE item ADD another int")
        """
    )
    run().assert_outcomes(passed=2)


@on_embedded
def test_what_a_test_does_to_the_schema_is_undone_and_named(
    project: pytest.Pytester, run: Run
) -> None:
    changes = {
        "CREATE TABLE extra (id int)": "+ table public.extra",
        "DROP TABLE role": "- table public.role",
        "ALTER TABLE role ADD more int": "+ column public.role.more integer",
        "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'SELECT 1'": "+ function public.f()",
        "CREATE SCHEMA more": "+ schema more",
        "CREATE POLICY p ON role USING (id > 1)": "+ policy p on public.role",
        "ALTER TABLE role ENABLE ROW LEVEL SECURITY": "row level security",
        "GRANT SELECT ON role TO PUBLIC": "granted",
        "ALTER SEQUENCE item_id_seq INCREMENT 5": "+ public.item_id_seq counts from 1 by 5",
        # With it the captured row can't be put back.
        "DELETE FROM role; ALTER TABLE role ADD CONSTRAINT few CHECK (id > 1)": "+ constraint few",
        # The same words describe it, and the rows that were captured are lost with it.
        "ALTER TABLE role DROP name, ADD name text": "column name of public.role",
    }
    project.makeconftest(
        CONFTEST.replace(
            "    return setup",
            """        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE role (id int PRIMARY KEY)")
            connection.exec_driver_sql("ALTER TABLE role ADD name text")
            connection.exec_driver_sql("INSERT INTO role VALUES (1, 'admin')")
    return setup""",
        )
    )
    project.makepyfile(
        f"""
        import pytest

        CHANGES = {list(changes)!r}

        @pytest.mark.parametrize("number", range(len(CHANGES) * 2))
        def test_changes(clean_database, rows, cleaner_engine, number):
            assert rows("role") == [(1, "admin")]
            with cleaner_engine.begin() as connection:
                connection.exec_driver_sql(CHANGES[number // 2])

        def test_is_last(clean_database, rows, cleaner_engine):
            assert rows("role") == [(1, "admin")]
        """
    )
    result = run()
    result.assert_outcomes(passed=2 * len(changes) + 1, warnings=2 * len(changes))
    for number, named in enumerate(changes.values()):
        for turn in (0, 1):
            pattern = rf"test_changes\[{2 * number + turn}\] changed the schema, .*"
            assert lines(result, pattern + re.escape(named))
