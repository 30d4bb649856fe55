"""The pytest plug-in: its settings and its header line, and its manners where it has no part."""

from __future__ import annotations

import pytest
from support.database import Database
from support.projects import Run, lines

on_embedded = pytest.mark.parametrize("worker_database", ["embedded"], indirect=True)


@on_embedded
def test_the_header_names_strategy_server_and_database(run: Run, database: Database) -> None:
    result = run("--cleaner-strategy", "delete")
    version = database.scalar("SHOW server_version")
    assert (
        f"cleaner: delete on postgresql {version}, database {database.name}_main" in result.outlines
    )


@on_embedded
def test_each_source_of_settings_is_stronger_than_the_one_before(
    project: pytest.Pytester, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def header(*arguments: str) -> str:
        (line,) = lines(project.runpytest("--co", *arguments), "^cleaner: ")
        return str(line)

    project.makepyprojecttoml(f'[tool.cleaner]\nurl = "{url}"\nstrategy = "replica"')
    assert header().startswith("cleaner: replica on ")
    monkeypatch.setenv("CLEANER_STRATEGY", "truncate")
    assert header().startswith("cleaner: truncate on ")
    assert header("--cleaner-strategy=delete").startswith("cleaner: delete on ")
    nowhere = "postgresql+psycopg://127.0.0.1:1/nowhere_test"
    assert header(f"--cleaner-url={nowhere}").endswith("database nowhere_test_main")


def test_a_wrong_setting_is_a_usage_error_that_suggests_the_right_one(
    project: pytest.Pytester,
) -> None:
    project.makepyprojecttoml('[tool.cleaner]\nstratgy = "auto"')
    project.makepyfile("def test(): pass")
    result = project.runpytest()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert "did you mean 'strategy'?" in result.stderr.str()
    assert "Traceback" not in result.stderr.str()


@on_embedded
def test_an_unknown_strategy_is_named_with_those_installed(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile("def test(clean_database): pass")
    result = run("--cleaner-strategy=trunkate")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        ["*There is no strategy 'trunkate'; installed are auto, *truncate*"]
    )


@on_embedded
def test_a_database_that_is_no_test_database_is_refused_before_the_setup_runs(
    project: pytest.Pytester, database: Database
) -> None:
    project.makeconftest(
        "import pytest\n\n@pytest.fixture(scope='session')\ndef cleaner_setup():\n"
        "    def setup(engine):\n        print('THE SETUP RAN')\n    return setup"
    )
    project.makepyfile("def test(clean_database): pass")
    production = database.url.set(database="postgres").render_as_string(hide_password=False)
    result = project.runpytest("-s", f"--cleaner-url={production}")
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(["*UnsafeDatabaseError*'postgres'*"])
    assert "THE SETUP RAN" not in result.stdout.str()


# -- manners --------------------------------------------------------------------------------


def test_a_suite_that_uses_none_of_it_pays_nothing(project: pytest.Pytester) -> None:
    project.makeconftest("")
    project.makepyfile(
        """
        import sys

        def test():
            import cleaner
            heavy = {"sqlalchemy", "psycopg", "tenacity", "cleaner.api", "cleaner.settings"}
            assert heavy.isdisjoint(sys.modules)
        """
    )
    result = project.runpytest_subprocess("-n0")
    result.assert_outcomes(passed=1)
    assert not lines(result, "^cleaner: ")


def test_it_can_be_switched_off(project: pytest.Pytester) -> None:
    project.makeconftest("")
    project.makepyfile(
        "def test(request): assert not request.config.pluginmanager.hasplugin('cleaner')"
    )
    project.runpytest("-p", "no:cleaner").assert_outcomes(passed=1)


@on_embedded
def test_a_package_strategies_of_the_users_own_is_not_shadowed(
    project: pytest.Pytester, run: Run
) -> None:
    project.makepyfile(
        **{
            "strategies/__init__": "MINE = True",
            "test_it": "import cleaner\nimport strategies\n\n"
            "def test(clean_database):\n    assert strategies.MINE\n"
            "    assert clean_database.clean().strategy == 'auto'",
        }
    )
    run().assert_outcomes(passed=1)
