"""The command line: what it promises to whoever types it, and to whoever reads its JSON."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import MODELS, Command, written
from support.database import STRATEGIES, Database

from cleaner import Cleaner, __version__
from cleaner.cli import main


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

    def test_an_interrupt_ends_quietly(self, cli: Command, monkeypatch: pytest.MonkeyPatch) -> None:
        def interrupted(_: Cleaner) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Cleaner, "clean", interrupted)
        result = cli("clean", "--url", "postgresql://localhost/app_test")
        assert (result.code, result.out, result.err) == (130, "", "")

    def test_colours_are_for_terminals_that_want_them(
        self, cli: Command, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        assert "\x1b" not in cli("doctor").out
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.delenv("NO_COLOR", raising=False)
        assert "\x1b[1mSettings\x1b[0m" in cli("doctor").out
        monkeypatch.setenv("NO_COLOR", "1")
        assert "\x1b" not in cli("doctor").out


class TestPlan:
    def test_plan_runs_nothing(self, cli: Command, shop: Database) -> None:
        result = cli("plan", "--url", shop.url)
        assert result.code == 0
        assert shop.count("purchase") == 1
        assert shop.scalar("SELECT last_value FROM purchase_id_seq") == 1

    def test_plan_prints_a_script_that_does_what_clean_does(
        self, cli: Command, shop: Database
    ) -> None:
        result = cli("plan", "--url", shop.url, "--exclude", "country")
        with shop.connect() as connection:
            connection.execute(result.out.encode())
        assert (shop.count("purchase"), shop.count("customer")) == (0, 0)
        assert shop.count("country") == 1

    def test_plan_names_the_tables_in_order_the_sequences_and_the_warnings(
        self, cli: Command, shop: Database
    ) -> None:
        result = cli("plan", "--url", shop.url, "--exclude", "country", "--exclude", "contry")
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

    def test_a_line_break_in_a_name_stays_in_the_comment(
        self, cli: Command, shop: Database
    ) -> None:
        shop.execute('CREATE TABLE "a\nSELECT 1/0" (id int)')
        result = cli("plan", "--url", shop.url)
        assert "--     a SELECT 1/0\n" in result.out

    @pytest.mark.parametrize("strategy", STRATEGIES)
    def test_plan_as_json(self, cli: Command, shop: Database, strategy: str) -> None:
        plan = cli(
            "plan", "--url", shop.url, "--strategy", strategy, "--only", "purchase", "--json"
        ).json
        assert plan.keys() == {"strategy", "tables", "sequences", "warnings", "sql", "captured"}
        assert plan["strategy"] == strategy
        assert (plan["tables"], plan["sequences"]) == (["purchase"], ["purchase_id_seq"])
        assert "purchase" in plan["sql"]


class TestClean:
    def test_clean_prints_the_report(self, cli: Command, shop: Database) -> None:
        result = cli("clean", "--url", shop.url, "--exclude", "country")
        assert result.code == 0
        assert result.out.startswith("auto: 2 tables (purchase, customer), 2 sequences")
        assert (shop.count("purchase"), shop.count("country")) == (0, 1)

    def test_clean_as_json(self, cli: Command, shop: Database) -> None:
        report = cli("clean", "--url", shop.url, "--strategy", "delete", "--json").json
        assert report["strategy"] == "delete"
        assert report["tables"] == ["purchase", "customer", "country"]
        assert report["attempts"] == 1

    def test_options_are_stronger_than_the_environment_and_that_than_pyproject(
        self, cli: Command, shop: Database, here: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (here / "pyproject.toml").write_text('[tool.cleaner]\nexclude = ["c*"]\nstrategy = "?"')
        monkeypatch.setenv("CLEANER_STRATEGY", "truncate")
        monkeypatch.setenv("CLEANER_URL", "postgresql://nowhere.invalid/test")
        report = cli("clean", "--url", shop.url, "--json").json
        assert (report["strategy"], report["tables"]) == ("truncate", ["purchase"])

    def test_metadata_is_found_in_the_working_directory(
        self, cli: Command, shop: Database, here: Path
    ) -> None:
        (here / "app_models.py").write_text(MODELS)
        try:
            report = cli("clean", "--url", shop.url, "--metadata", "app_models:metadata", "--json")
        finally:
            sys.modules.pop("app_models", None)
        assert report.json["tables"] == ["purchase", "customer"]

    def test_a_further_database_is_named(self, cli: Command, shop: Database, here: Path) -> None:
        (here / "pyproject.toml").write_text(
            '[tool.cleaner]\nurl = "postgresql://nowhere.invalid/test"\n'
            "[tool.cleaner.databases.reports]\n"
            f'url = "{written(shop.url)}"\nonly = ["purchase"]\n'
        )
        assert cli("clean", "--database", "reports", "--json").json["tables"] == ["purchase"]
        result = cli("clean", "--database", "report")
        assert result.code == 1
        assert "[tool.cleaner.databases.reports]" in result.err


class TestBaseline:
    def test_what_was_captured_is_what_clean_puts_back_until_it_is_released(
        self, cli: Command, shop: Database
    ) -> None:
        result = cli("capture", "--url", shop.url)
        assert (result.code, result.out) == (0, "baseline: 3 captured rows in 3 tables\n")
        shop.execute("DELETE FROM purchase; INSERT INTO country DEFAULT VALUES")
        assert cli("clean", "--url", shop.url).code == 0
        assert (shop.count("purchase"), shop.count("country")) == (1, 1)
        result = cli("release", "--url", shop.url)
        assert (result.code, result.out) == (0, "baseline: no rows\n")
        assert cli("clean", "--url", shop.url).code == 0
        assert (shop.count("purchase"), shop.count("country")) == (0, 0)

    def test_tables_are_captured_by_name_or_pattern(self, cli: Command, shop: Database) -> None:
        arguments = ["--table", "country", "--table", "cust*", "--json"]
        found = cli("capture", "--url", shop.url, *arguments).json
        assert found == {"captured": {"customer": 1, "country": 1}}
        assert cli("release", "--url", shop.url, "--json").json == {"captured": {}}
        result = cli("capture", "--url", shop.url, "--table", "contry")
        assert result.code == 1
        assert "did you mean 'country'?" in result.err

    def test_diff_says_what_differs_and_exits_with_1_if_anything_does(
        self, cli: Command, shop: Database
    ) -> None:
        cli("capture", "--url", shop.url)
        result = cli("diff", "--url", shop.url)
        assert result.code == 0
        assert result.out == "Nothing that is committed differs from the baseline.\n"
        shop.execute("UPDATE purchase SET customer = NULL; DELETE FROM customer")
        result = cli("diff", "--url", shop.url)
        assert (result.code, result.err) == (1, "")
        assert result.out.splitlines() == [
            "purchase: 1 row changed",
            "  ~ id=1: customer: 1 -> NULL",
            "customer: 1 row gone",
            "  - id=1, country=1",
        ]

    def test_diff_as_json(self, cli: Command, shop: Database) -> None:
        cli("capture", "--url", shop.url)
        assert cli("diff", "--url", shop.url, "--json").json == {
            "tables": [],
            "sequences": [],
            "lost": [],
        }
        shop.execute("DELETE FROM purchase; INSERT INTO country DEFAULT VALUES")
        result = cli("diff", "--url", shop.url, "--json")
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

    def test_plan_and_doctor_mention_the_captured_rows(self, cli: Command, shop: Database) -> None:
        assert "baseline              no rows" in cli("doctor", "--url", shop.url).out
        cli("capture", "--url", shop.url, "--table", "country")
        out = cli("plan", "--url", shop.url).out.splitlines()
        assert "--     country, back to 1 captured row" in out
        assert "--     purchase" in out
        assert cli("plan", "--url", shop.url, "--json").json["captured"] == {"country": 1}
        found = cli("doctor", "--url", shop.url, "--json").json
        assert found["captured"] == {"tables": 1, "rows": 1}
        text = cli("doctor", "--url", shop.url).out
        assert "baseline              1 captured row in 1 table" in text

    def test_doctor_names_what_was_captured_and_is_lost(self, cli: Command, shop: Database) -> None:
        cli("capture", "--url", shop.url)
        shop.execute("DROP TABLE purchase")
        found = cli("doctor", "--url", shop.url, "--json")
        assert found.code == 1
        (problem,) = found.json["problems"]
        assert problem["error"] == "SchemaChangedError"
        assert "public.purchase, 1 rows of which were captured" in problem["what"]


class TestRefusals:
    def test_a_refusal_exits_with_1_and_says_what_to_write(
        self, cli: Command, shop: Database, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("CLEANER_ALLOW_DATABASES", "another")
        for command in ("clean", "plan"):
            result = cli(command, "--url", shop.url)
            assert (result.code, result.out) == (1, "")
            what, cause, remedy = result.err.splitlines()
            assert what.startswith(f"Refused to clean the database {shop.name!r}")
            assert cause.startswith("Likely cause: ")
            assert remedy.startswith("Remedy: ")
            assert f'allow_databases = ["{shop.name}"]' in remedy
        assert shop.count("purchase") == 1

    def test_a_refusal_as_json_has_its_three_parts(self, cli: Command, shop: Database) -> None:
        result = cli("clean", "--url", shop.url, "--strategy", "autoo", "--json")
        assert (result.code, result.err) == (1, "")
        assert result.json["error"] == "UnknownStrategyError"
        assert result.json["remedy"] == 'strategy = "auto"'
        assert result.json.keys() == {"error", "what", "cause", "remedy"}

    def test_without_a_url_it_says_where_to_write_it(self, cli: Command) -> None:
        result = cli("clean")
        assert result.code == 1
        assert "--url postgresql" in result.err

    def test_a_role_without_temporary_functions_is_told_the_grant(
        self, cli: Command, shop: Database
    ) -> None:
        shop.give_away()
        shop.execute(f'REVOKE TEMPORARY ON DATABASE "{shop.name}" FROM PUBLIC')
        try:
            url = shop.url.set(username=shop.role)
            grant = f'GRANT TEMPORARY ON DATABASE "{shop.name}" TO "{shop.role}"'
            assert f"Remedy: {grant}" in cli("clean", "--url", url).err
            found = cli("doctor", "--url", url, "--json")
        finally:
            shop.execute(f'GRANT TEMPORARY ON DATABASE "{shop.name}" TO PUBLIC')
        assert found.code == 1
        assert [problem["remedy"] for problem in found.json["problems"]] == [grant]
        assert grant in found.json["no_fast_path"]


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
    def test_passwords_are_never_shown(self, cli: Command, here: Path, url: str) -> None:
        (here / "pyproject.toml").write_text(f'[tool.cleaner.databases.other]\nurl = "{url}"')
        for command in ("plan", "clean", "diff", "capture", "release", "doctor"):
            for arguments in (["--url", url], ["--database", "other"]):
                for as_json in ([], ["--json"]):
                    result = cli(command, *arguments, *as_json)
                    assert result.code == 1
                    assert "hunter2" not in result.out + result.err
