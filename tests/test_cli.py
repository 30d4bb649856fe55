"""The command line: what it promises to whoever types it, and to whoever reads its JSON."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL
from support.database import STRATEGIES, Database

from cleaner import Cleaner, __version__, demo, registry
from cleaner.cli import main
from cleaner.console import Console
from cleaner.spi import Plan, Strategy, Target

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


Run = Callable[..., Result]


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
def run(here: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command here, in this process."""

    def run(*arguments: object) -> Result:
        code = main([written(argument) for argument in arguments])
        return Result(code, *capsys.readouterr())

    return run


@pytest.fixture
def shop(database: Database) -> Database:
    database.execute(SCHEMA)
    return database


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


class TestUsage:
    @pytest.mark.parametrize("arguments", [[], ["wash"], ["plan", "--colour"], ["bench"]])
    def test_wrong_usage_exits_with_2(self, arguments: list[str]) -> None:
        with pytest.raises(SystemExit) as exit_:
            main(arguments)
        assert exit_.value.code == 2

    @pytest.mark.parametrize(
        "command", ["", "demo", "plan", "clean", "diff", "capture", "release", "doctor"]
    )
    def test_help_teaches_by_an_example(
        self, command: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit) as exit_:
            main([*command.split(), "--help"])
        assert exit_.value.code == 0
        assert f"example: cleaner {command or 'demo'}" in capsys.readouterr().out

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit):
            main(["--version"])
        assert capsys.readouterr().out == f"cleaner {__version__}\n"

    def test_it_runs_as_a_module_and_a_broken_pipe_is_quiet(self) -> None:
        process = subprocess.Popen(
            [sys.executable, "-m", "cleaner", "doctor"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()  # long before the first line is written
        with process.stderr:
            assert process.stderr.read() == b""
        assert process.wait() == 141

    def test_an_interrupt_ends_quietly(self, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(_: Cleaner) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Cleaner, "clean", interrupted)
        result = run("clean", "--url", "postgresql://localhost/app_test")
        assert (result.code, result.out, result.err) == (130, "", "")

    def test_colours_are_for_terminals_that_want_them(
        self, run: Run, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "\x1b" not in run("doctor").out
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[1mSettings\x1b[0m" in run("doctor").out
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in run("doctor").out


class TestPlan:
    def test_plan_runs_nothing(self, run: Run, shop: Database) -> None:
        result = run("plan", "--url", shop.url)
        assert result.code == 0
        assert shop.count("purchase") == 1
        assert shop.scalar("SELECT last_value FROM purchase_id_seq") == 1

    def test_plan_prints_a_script_that_does_what_clean_does(self, run: Run, shop: Database) -> None:
        result = run("plan", "--url", shop.url, "--exclude", "country")
        with shop.connect() as connection:
            connection.execute(result.out.encode())
        assert (shop.count("purchase"), shop.count("customer")) == (0, 0)
        assert shop.count("country") == 1

    def test_plan_names_the_tables_in_order_the_sequences_and_the_warnings(
        self, run: Run, shop: Database
    ) -> None:
        result = run("plan", "--url", shop.url, "--exclude", "country", "--exclude", "contry")
        assert result.out.splitlines()[:8] == [
            "-- strategy: auto",
            "-- 2 tables, in this order:",
            "--     purchase",
            "--     customer",
            "-- 2 sequences, back to START:",
            "--     customer_id_seq",
            "--     purchase_id_seq",
            "-- warning: exclude names 'contry', which matches nothing; did you mean 'country'?",
        ]

    def test_a_line_break_in_a_name_stays_in_the_comment(self, run: Run, shop: Database) -> None:
        shop.execute('CREATE TABLE "a\nSELECT 1/0" (id int)')
        result = run("plan", "--url", shop.url)
        assert "--     a SELECT 1/0\n" in result.out

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_plan_as_json(self, run: Run, shop: Database, strategy: str) -> None:
        plan = run(
            "plan", "--url", shop.url, "--strategy", strategy, "--only", "purchase", "--json"
        ).json
        assert plan.keys() == {"strategy", "tables", "sequences", "warnings", "sql", "captured"}
        assert plan["strategy"] == strategy
        assert (plan["tables"], plan["sequences"]) == (["purchase"], ["purchase_id_seq"])
        assert "purchase" in plan["sql"]


class TestClean:
    def test_clean_prints_the_report(self, run: Run, shop: Database) -> None:
        result = run("clean", "--url", shop.url, "--exclude", "country")
        assert result.code == 0
        assert result.out.startswith("auto: 2 tables (purchase, customer), 2 sequences")
        assert (shop.count("purchase"), shop.count("country")) == (0, 1)

    def test_clean_as_json(self, run: Run, shop: Database) -> None:
        report = run("clean", "--url", shop.url, "--strategy", "delete", "--json").json
        assert report["strategy"] == "delete"
        assert report["tables"] == ["purchase", "customer", "country"]
        assert report["attempts"] == 1

    def test_options_are_stronger_than_the_environment_and_that_than_pyproject(
        self, run: Run, shop: Database, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "pyproject.toml").write_text('[tool.cleaner]\nexclude = ["c*"]\nstrategy = "?"')
        monkeypatch.setenv("CLEANER_STRATEGY", "truncate")
        monkeypatch.setenv("CLEANER_URL", "postgresql://nowhere.invalid/test")
        report = run("clean", "--url", shop.url, "--json").json
        assert (report["strategy"], report["tables"]) == ("truncate", ["purchase"])

    def test_metadata_is_found_in_the_working_directory(
        self, run: Run, shop: Database, here: Path
    ) -> None:
        (here / "app_models.py").write_text(MODELS)
        try:
            report = run("clean", "--url", shop.url, "--metadata", "app_models:metadata", "--json")
        finally:
            sys.modules.pop("app_models", None)
        assert report.json["tables"] == ["purchase", "customer"]

    def test_a_further_database_is_named(self, run: Run, shop: Database, here: Path) -> None:
        (here / "pyproject.toml").write_text(
            '[tool.cleaner]\nurl = "postgresql://nowhere.invalid/test"\n'
            "[tool.cleaner.databases.reports]\n"
            f'url = "{written(shop.url)}"\nonly = ["purchase"]\n'
        )
        assert run("clean", "--database", "reports", "--json").json["tables"] == ["purchase"]
        result = run("clean", "--database", "report")
        assert result.code == 1
        assert "[tool.cleaner.databases.reports]" in result.err


class TestBaseline:
    def test_what_was_captured_is_what_clean_puts_back_until_it_is_released(
        self, run: Run, shop: Database
    ) -> None:
        result = run("capture", "--url", shop.url)
        assert (result.code, result.out) == (0, "baseline: 3 captured rows in 3 tables\n")
        shop.execute("DELETE FROM purchase; INSERT INTO country DEFAULT VALUES")
        assert run("clean", "--url", shop.url).code == 0
        assert (shop.count("purchase"), shop.count("country")) == (1, 1)
        result = run("release", "--url", shop.url)
        assert (result.code, result.out) == (0, "baseline: no rows\n")
        assert run("clean", "--url", shop.url).code == 0
        assert (shop.count("purchase"), shop.count("country")) == (0, 0)

    def test_tables_are_captured_by_name_or_pattern(self, run: Run, shop: Database) -> None:
        arguments = ["--table", "country", "--table", "cust*", "--json"]
        found = run("capture", "--url", shop.url, *arguments).json
        assert found == {"captured": {"customer": 1, "country": 1}}
        assert run("release", "--url", shop.url, "--json").json == {"captured": {}}
        result = run("capture", "--url", shop.url, "--table", "contry")
        assert result.code == 1
        assert "did you mean 'country'?" in result.err

    def test_diff_says_what_differs_and_exits_with_1_if_anything_does(
        self, run: Run, shop: Database
    ) -> None:
        run("capture", "--url", shop.url)
        result = run("diff", "--url", shop.url)
        assert result.code == 0
        assert result.out == "Nothing that is committed differs from the baseline.\n"
        shop.execute("UPDATE purchase SET customer = NULL; DELETE FROM customer")
        result = run("diff", "--url", shop.url)
        assert (result.code, result.err) == (1, "")
        assert result.out.splitlines() == [
            "purchase: 1 row changed",
            "  ~ id=1: customer: 1 -> NULL",
            "customer: 1 row gone",
            "  - id=1, country=1",
        ]

    def test_diff_as_json(self, run: Run, shop: Database) -> None:
        run("capture", "--url", shop.url)
        assert run("diff", "--url", shop.url, "--json").json == {
            "tables": [],
            "sequences": [],
            "lost": [],
        }
        shop.execute("DELETE FROM purchase; INSERT INTO country DEFAULT VALUES")
        result = run("diff", "--url", shop.url, "--json")
        assert result.code == 1
        purchase, country = result.json["tables"]
        assert (purchase["table"], purchase["gone"], purchase["baseline"]) == ("purchase", 1, 1)
        assert (country["table"], country["added"]) == ("country", 1)
        assert [value for _, value in country["rows"][0]["values"]] == [
            {"text": "2", "length": 0, "skipped": 0, "unit": "characters"}
        ]
        assert result.json["sequences"] == [
            {
                "sequence": "country_id_seq",
                "baseline": {"last": 1, "called": True},
                "now": {"last": 2, "called": True},
            }
        ]

    def test_plan_and_doctor_mention_the_captured_rows(self, run: Run, shop: Database) -> None:
        assert "baseline              no rows" in run("doctor", "--url", shop.url).out
        run("capture", "--url", shop.url, "--table", "country")
        out = run("plan", "--url", shop.url).out.splitlines()
        assert "--     country, back to 1 captured row" in out
        assert "--     purchase" in out
        assert run("plan", "--url", shop.url, "--json").json["captured"] == {"country": 1}
        found = run("doctor", "--url", shop.url, "--json").json
        assert found["captured"] == {"tables": 1, "rows": 1}
        text = run("doctor", "--url", shop.url).out
        assert "baseline              1 captured row in 1 table" in text

    def test_doctor_names_what_was_captured_and_is_lost(self, run: Run, shop: Database) -> None:
        run("capture", "--url", shop.url)
        shop.execute("DROP TABLE purchase")
        found = run("doctor", "--url", shop.url, "--json")
        assert found.code == 1
        (problem,) = found.json["problems"]
        assert problem["error"] == "SchemaChangedError"
        assert "public.purchase, 1 rows of which were captured" in problem["what"]


class TestRefusals:
    def test_a_refusal_exits_with_1_and_says_what_to_write(
        self, run: Run, shop: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLEANER_ALLOW_DATABASES", "another")
        for command in ("clean", "plan"):
            result = run(command, "--url", shop.url)
            assert (result.code, result.out) == (1, "")
            what, cause, remedy = result.err.splitlines()
            assert what.startswith(f"Refused to clean the database {shop.name!r}")
            assert cause.startswith("Likely cause: ")
            assert remedy.startswith("Remedy: ")
            assert f'allow_databases = ["{shop.name}"]' in remedy
        assert shop.count("purchase") == 1

    def test_a_refusal_as_json_has_its_three_parts(self, run: Run, shop: Database) -> None:
        result = run("clean", "--url", shop.url, "--strategy", "autoo", "--json")
        assert (result.code, result.err) == (1, "")
        assert result.json["error"] == "UnknownStrategyError"
        assert result.json["remedy"] == 'strategy = "auto"'
        assert result.json.keys() == {"error", "what", "cause", "remedy"}

    def test_without_a_url_it_says_where_to_write_it(self, run: Run) -> None:
        result = run("clean")
        assert result.code == 1
        assert "--url postgresql" in result.err

    def test_a_role_without_temporary_functions_is_told_the_grant(
        self, run: Run, shop: Database
    ) -> None:
        shop.give_away()
        shop.execute(f'REVOKE TEMPORARY ON DATABASE "{shop.name}" FROM PUBLIC')
        try:
            url = shop.url.set(username=shop.role)
            grant = f'GRANT TEMPORARY ON DATABASE "{shop.name}" TO "{shop.role}"'
            assert f"Remedy: {grant}" in run("clean", "--url", url).err
            found = run("doctor", "--url", url, "--json")
        finally:
            shop.execute(f'GRANT TEMPORARY ON DATABASE "{shop.name}" TO PUBLIC')
        assert found.code == 1
        assert [problem["remedy"] for problem in found.json["problems"]] == [grant]
        assert grant in found.json["no_fast_path"]


class TestDoctor:
    def test_a_sound_database_has_no_problems(self, run: Run, shop: Database) -> None:
        found = run("doctor", "--url", shop.url, "--exclude", "country", "--json").json
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
        self, run: Run, shop: Database, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        pyproject = here / "pyproject.toml"
        pyproject.write_text('[tool.cleaner]\nexclude = ["country"]\nstrategy = "delete"')
        monkeypatch.setenv("CLEANER_RETRIES", "7")
        arguments = ["doctor", "--url", shop.url, "--strategy", "truncate"]
        settings = run(*arguments, "--json").json["settings"]
        assert settings["exclude"] == {"value": ["country"], "origin": str(pyproject)}
        assert settings["retries"] == {"value": 7, "origin": "environment variable CLEANER_RETRIES"}
        assert settings["strategy"] == {"value": "truncate", "origin": "option"}
        assert settings["lock_timeout"] == {"value": 5.0, "origin": "default"}
        lines = {line.split()[0]: line for line in run(*arguments).out.splitlines() if line}
        assert lines["exclude"].endswith(str(pyproject))
        assert lines["strategy"].split() == ["strategy", '"truncate"', "option"]

    def test_it_cleans_nothing(self, run: Run, shop: Database) -> None:
        assert run("doctor", "--url", shop.url).code == 0
        assert shop.count("purchase") == 1

    def test_an_unsafe_database_is_looked_at_all_the_same(
        self, run: Run, shop: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLEANER_ALLOW_DATABASES", "another")
        result = run("doctor", "--url", shop.url)
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
        self, run: Run, arguments: list[str], error: str
    ) -> None:
        result = run("doctor", *arguments, "--json")
        assert result.code == 1
        assert [problem["error"] for problem in result.json["problems"]] == [error]
        assert all(problem["remedy"] for problem in result.json["problems"])
        assert set(STRATEGIES) <= result.json["strategies"].keys()
        assert run("doctor", *arguments).out.splitlines()[2].startswith("!! write")

    def test_several_problems_are_named_at_once(self, run: Run) -> None:
        problems = run("doctor", "--strategy", "autoo", "--json").json["problems"]
        assert [problem["error"] for problem in problems] == [
            "UnknownStrategyError",
            "SettingsError",
        ]

    def test_models_that_fail_at_import_are_a_problem_like_any_other(
        self, run: Run, shop: Database, here: Path
    ) -> None:
        (here / "app_broken.py").write_text("raise KeyError('DATABASE_URL')")
        result = run("doctor", "--url", shop.url, "--metadata", "app_broken:Base", "--json")
        (problem,) = result.json["problems"]
        assert "KeyError('DATABASE_URL')" in problem["what"]
        assert result.json["server"].startswith("postgresql ")

    def test_tables_that_one_side_alone_knows_are_named(
        self, run: Run, shop: Database, here: Path
    ) -> None:
        (here / "app_models.py").write_text(MODELS)
        shop.execute("CREATE TABLE alembic_version (version_num text)")
        try:
            arguments = ["doctor", "--url", shop.url, "--metadata", "app_models:metadata"]
            found, text = run(*arguments, "--json").json, run(*arguments).out
        finally:
            sys.modules.pop("app_models", None)
        assert found["only_in_metadata"] == ["forgotten"]
        assert found["only_in_database"] == ["country"]
        assert "only in the metadata  forgotten" in text

    def test_a_strategy_that_refuses_gives_its_reason_and_the_grant(
        self, run: Run, shop: Database
    ) -> None:
        shop.give_away()
        url = shop.url.set(username=shop.role)
        found = run("doctor", "--url", url, "--json")
        assert found.code == 0
        assert found.json["role"] == {"name": shop.role, "superuser": False, "owner": False}
        assert found.json["strategies"]["auto"] == {"serves": True, "refusal": None}
        replica = found.json["strategies"]["replica"]
        assert replica["serves"] is False
        assert any(line in replica["refusal"] for line in ("GRANT SET ON", "ALTER ROLE"))
        chosen = run("doctor", "--url", url, "--strategy", "replica", "--json")
        assert chosen.code == 1
        (problem,) = chosen.json["problems"]
        assert problem["remedy"].startswith('strategy = "auto"')

    def test_a_broken_plug_in_is_shown_as_such(
        self, run: Run, shop: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        install(monkeypatch, Broken)
        found = run("doctor", "--url", shop.url, "--json")
        assert found.code == 0
        assert "out of order" in found.json["strategies"]["broken"]["refusal"]

    def test_sessions_idle_in_transaction_are_named(self, run: Run, shop: Database) -> None:
        with shop.connect(autocommit=False, application_name="leaky") as connection:
            connection.execute("INSERT INTO country DEFAULT VALUES")
            pid = connection.info.backend_pid
            found = run("doctor", "--url", shop.url, "--json").json
            text = run("doctor", "--url", shop.url).out
            as_plain = run("doctor", "--url", shop.url.set(username=shop.role), "--json").json
        (idle,) = found["idle_in_transaction"]
        assert (idle["pid"], idle["user"]) == (pid, "postgres")
        assert (idle["application"], idle["state"]) == ("leaky", "idle in transaction")
        assert idle["query"] == "INSERT INTO country DEFAULT VALUES"
        assert idle["age"] > 0
        assert f"idle in transaction   pid {pid} (postgres, leaky)" in text
        # What a plain role may not see is not passed over.
        assert as_plain["idle_in_transaction"] == []
        assert f'GRANT pg_read_all_stats TO "{shop.role}"' in as_plain["sessions_unseen"]


class TestSecrets:
    @pytest.mark.parametrize(
        "url",
        [
            "postgresql://app:hunter2@127.0.0.1:1/test",
            "postgresql://app@127.0.0.1:1/test?password=hunter2",
            "postgresql://app:hun@hunter2@127.0.0.1:1/test",
            "postgresql:/app:hunter2@127.0.0.1/test",
            "postgresql://app:hunter2@127.0.0.1:port/test",
            "host=127.0.0.1 password=hunter2",
            "oracle://app:hunter2@127.0.0.1/test",
        ],
    )
    def test_passwords_are_never_shown(self, run: Run, here: Path, url: str) -> None:
        (here / "pyproject.toml").write_text(f'[tool.cleaner.databases.other]\nurl = "{url}"')
        for command in ("plan", "clean", "diff", "capture", "release", "doctor"):
            for arguments in (["--url", url], ["--database", "other"]):
                for as_json in ([], ["--json"]):
                    result = run(command, *arguments, *as_json)
                    assert result.code == 1
                    assert "hunter2" not in result.out + result.err


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


class TestDemo:
    def test_the_demo_proves_every_strategy(
        self, demonstration: tuple[dict[str, Any], str]
    ) -> None:
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

    def test_the_demo_shows_what_is_refused(
        self, demonstration: tuple[dict[str, Any], str]
    ) -> None:
        figures, text = demonstration
        assert "GRANT chocolate" in figures["strategies"]["moody"]["refused"]
        assert "moody refused: " in text
        assert figures["safety"]["guard"]["error"] == "UnsafeDatabaseError"
        assert "'shop_production'" in text
        assert figures["safety"]["privilege"]["error"] == "StrategyRefusedError"
        assert "GRANT SET ON PARAMETER" in text
        (blocker,) = figures["safety"]["blocked"]["blockers"]
        assert blocker["application"] == "checkout-worker"

    def test_the_demo_is_readable_without_colour(
        self, demonstration: tuple[dict[str, Any], str]
    ) -> None:
        _, text = demonstration
        assert "\x1b" not in text
        assert text.count("  yes\n") == len(STRATEGIES) + 1
        assert max(map(len, text.splitlines())) <= 100

    @pytest.mark.parametrize("proved", [True, False])
    def test_a_strategy_that_left_something_is_a_failure(
        self, run: Run, monkeypatch: pytest.MonkeyPatch, proved: bool
    ) -> None:
        monkeypatch.setattr(demo, "run", lambda console: {"proved": proved})
        result = run("demo", "--json")
        assert result.json == {"proved": proved}
        assert result.code == (0 if proved else 1)
