"""``cleaner doctor``: what it names, and that it changes nothing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.commands import MODELS, Broken, Command, install
from support.database import STRATEGIES, Database


def test_a_sound_database_has_no_problems(cli: Command, shop: Database) -> None:
    found = cli("doctor", "--url", shop.url, "--exclude", "country", "--json").json
    assert found["problems"] == []
    assert found["versions"].keys() == {"cleaner", "python", "sqlalchemy", "driver"}
    assert found["versions"]["driver"].startswith("psycopg 3")
    assert found["server"].startswith("postgresql ")
    assert (found["database"], found["safe"]) == (shop.name, True)
    assert found["role"] == {"name": "postgres", "superuser": True, "owner": True}
    assert (found["tables"], found["sequences"]) == (2, 2)
    assert found["embedded"]["binaries"]
    assert {name: found["strategies"][name]["serves"] for name in STRATEGIES} == dict.fromkeys(
        STRATEGIES, True
    )


def test_doctor_names_where_each_setting_came_from(
    cli: Command, shop: Database, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pyproject = here / "pyproject.toml"
    pyproject.write_text('[tool.cleaner]\nexclude = ["country"]\nstrategy = "delete"')
    monkeypatch.setenv("CLEANER_RETRIES", "7")
    arguments = ["doctor", "--url", shop.url, "--strategy", "truncate"]
    settings = cli(*arguments, "--json").json["settings"]
    assert settings["exclude"] == {"value": ["country"], "origin": str(pyproject)}
    assert settings["retries"] == {"value": 7, "origin": "environment variable CLEANER_RETRIES"}
    assert settings["strategy"] == {"value": "truncate", "origin": "option"}
    assert settings["lock_timeout"] == {"value": 5.0, "origin": "default"}
    lines = {line.split()[0]: line for line in cli(*arguments).out.splitlines() if line}
    assert lines["exclude"].endswith(str(pyproject))
    assert lines["strategy"].split() == ["strategy", '"truncate"', "option"]


def test_it_cleans_nothing(cli: Command, shop: Database) -> None:
    assert cli("doctor", "--url", shop.url).code == 0
    assert shop.count("purchase") == 1


def test_an_unsafe_database_is_looked_at_all_the_same(
    cli: Command, shop: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLEANER_ALLOW_DATABASES", "another")
    result = cli("doctor", "--url", shop.url)
    assert result.code == 1
    first = result.out.splitlines()[2]
    assert first.startswith("!! write")
    assert f'allow_databases = ["{shop.name}"]' in first
    assert "3 tables, 3 sequences" in result.out


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ([], "SettingsError"),
        (["--url", "postgresql://127.0.0.1:1/test"], "ProvisionError"),
        (["--url", "oracle://localhost/test"], "SettingsError"),
        (["--database", "reports"], "SettingsError"),
    ],
)
def test_where_it_gets_no_further_it_says_what_it_knows(
    cli: Command, arguments: list[str], error: str
) -> None:
    result = cli("doctor", *arguments, "--json")
    assert result.code == 1
    assert [problem["error"] for problem in result.json["problems"]] == [error]
    assert all(problem["remedy"] for problem in result.json["problems"])
    assert set(STRATEGIES) <= result.json["strategies"].keys()
    assert cli("doctor", *arguments).out.splitlines()[2].startswith("!! write")


def test_several_problems_are_named_at_once(cli: Command) -> None:
    problems = cli("doctor", "--strategy", "autoo", "--json").json["problems"]
    assert [problem["error"] for problem in problems] == [
        "UnknownStrategyError",
        "SettingsError",
    ]


def test_models_that_fail_at_import_are_a_problem_like_any_other(
    cli: Command, shop: Database, here: Path
) -> None:
    (here / "app_broken.py").write_text("raise KeyError('DATABASE_URL')")
    result = cli("doctor", "--url", shop.url, "--metadata", "app_broken:Base", "--json")
    (problem,) = result.json["problems"]
    assert "KeyError('DATABASE_URL')" in problem["what"]
    assert result.json["server"].startswith("postgresql ")


def test_tables_that_one_side_alone_knows_are_named(
    cli: Command, shop: Database, here: Path
) -> None:
    (here / "app_models.py").write_text(MODELS)
    shop.execute("CREATE TABLE alembic_version (version_num text)")
    try:
        arguments = ["doctor", "--url", shop.url, "--metadata", "app_models:metadata"]
        found, text = cli(*arguments, "--json").json, cli(*arguments).out
    finally:
        sys.modules.pop("app_models", None)
    assert found["only_in_metadata"] == ["forgotten"]
    assert found["only_in_database"] == ["country"]
    assert "only in the metadata  forgotten" in text


def test_a_strategy_that_refuses_gives_its_reason_and_the_grant(
    cli: Command, shop: Database
) -> None:
    shop.give_away()
    url = shop.url.set(username=shop.role)
    found = cli("doctor", "--url", url, "--json")
    assert found.code == 0
    assert found.json["role"] == {"name": shop.role, "superuser": False, "owner": False}
    assert found.json["strategies"]["auto"] == {"serves": True, "refusal": None}
    replica = found.json["strategies"]["replica"]
    assert replica["serves"] is False
    assert any(line in replica["refusal"] for line in ("GRANT SET ON", "ALTER ROLE"))
    chosen = cli("doctor", "--url", url, "--strategy", "replica", "--json")
    assert chosen.code == 1
    (problem,) = chosen.json["problems"]
    assert problem["remedy"].startswith('strategy = "auto"')


def test_a_broken_plug_in_is_shown_as_such(
    cli: Command, shop: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(monkeypatch, Broken)
    found = cli("doctor", "--url", shop.url, "--json")
    assert found.code == 0
    assert "out of order" in found.json["strategies"]["broken"]["refusal"]


def test_sessions_idle_in_transaction_are_named(cli: Command, shop: Database) -> None:
    with shop.connect(autocommit=False, application_name="leaky") as connection:
        connection.execute("INSERT INTO country DEFAULT VALUES")
        pid = connection.info.backend_pid
        found = cli("doctor", "--url", shop.url, "--json").json
        text = cli("doctor", "--url", shop.url).out
        as_plain = cli("doctor", "--url", shop.url.set(username=shop.role), "--json").json
    (idle,) = found["idle_in_transaction"]
    assert (idle["pid"], idle["user"]) == (pid, "postgres")
    assert (idle["application"], idle["state"]) == ("leaky", "idle in transaction")
    assert idle["query"] == "INSERT INTO country DEFAULT VALUES"
    assert idle["age"] > 0
    assert f"idle in transaction   pid {pid} (postgres, leaky)" in text
    # What a plain role may not see is not passed over.
    assert as_plain["idle_in_transaction"] == []
    assert f'GRANT pg_read_all_stats TO "{shop.role}"' in as_plain["sessions_unseen"]
