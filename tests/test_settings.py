"""Where settings come from, and what may be in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL

from cleaner import Cleaner, Settings, errors


@pytest.fixture(autouse=True)
def nothing_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No pyproject.toml but the test's, and no CLEANER_ variable."""
    monkeypatch.chdir(tmp_path)
    import os

    for name in os.environ:
        if name.startswith("CLEANER_"):
            monkeypatch.delenv(name)
    (tmp_path / "pyproject.toml").write_text("")


def configure(text: str) -> None:
    Path("pyproject.toml").write_text(f"[tool.cleaner]\n{text}\n")


def test_defaults_are_those_of_the_documentation() -> None:
    settings = Settings.load()
    assert settings == Settings()
    assert (settings.strategy, settings.lock_timeout, settings.retries) == ("auto", 5.0, 5)
    assert settings.reset_sequences
    assert settings.on_blocked == "raise"


def test_each_source_is_stronger_than_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    configure('strategy = "truncate"\nretries = 2\nlock_timeout = 1\nexclude = ["country"]')
    monkeypatch.setenv("CLEANER_STRATEGY", "delete")
    monkeypatch.setenv("CLEANER_RETRIES", "3")
    monkeypatch.setenv("CLEANER_LOCK_TIMEOUT", "2")
    settings = Settings.load(options={"strategy": "replica", "retries": 4}, strategy="auto")
    assert settings.strategy == "auto"
    assert settings.retries == 4
    assert settings.lock_timeout == 2.0
    assert settings.exclude == ("country",)
    assert settings.origins["strategy"] == "keyword"
    assert settings.origins["retries"] == "pytest option"
    assert settings.origins["lock_timeout"] == "environment variable CLEANER_LOCK_TIMEOUT"
    assert settings.origins["exclude"].endswith("pyproject.toml")
    assert "url" not in settings.origins


def test_pyproject_is_found_from_a_directory_below() -> None:
    configure('strategy = "delete"')
    below = Path("src/app")
    below.mkdir(parents=True)
    assert Settings.load(below).strategy == "delete"


def test_lists_come_separated_by_commas_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLEANER_EXCLUDE", "country, geo.*")
    monkeypatch.setenv("CLEANER_RESET_SEQUENCES", "false")
    monkeypatch.setenv("CLEANER_STRATEGY_OPTIONS", '{"a": 1}')
    settings = Settings.load()
    assert settings.exclude == ("country", "geo.*")
    assert settings.reset_sequences is False
    assert settings.strategy_options == {"a": 1}


@pytest.mark.parametrize("key", ["fingerprint", "export"])
def test_names_come_as_a_list_as_one_text_or_separated_by_commas(
    key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert getattr(Settings.load(), key) == ()
    configure(f'{key} = ["A", "B"]')
    assert getattr(Settings.load(), key) == ("A", "B")
    assert getattr(Settings.load(**{key: "C"}), key) == ("C",)  # type: ignore[arg-type]
    monkeypatch.setenv(f"CLEANER_{key.upper()}", "D, E/*.sql,")
    assert getattr(Settings.load(), key) == ("D", "E/*.sql")


@pytest.mark.parametrize("place", ["pyproject", "environment", "keyword", "databases"])
def test_an_unknown_key_is_an_error_that_suggests_the_nearest(
    place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    keywords: dict[str, Any] = {}
    if place == "pyproject":
        configure("stratgy = 'delete'")
    elif place == "environment":
        monkeypatch.setenv("CLEANER_STRATGY", "delete")
    elif place == "keyword":
        keywords = {"stratgy": "delete"}
    else:
        configure("[tool.cleaner.databases.reports]\nstratgy = 'delete'")
    with pytest.raises(errors.SettingsError, match="did you mean 'strategy'") as raised:
        Settings.load(**keywords)
    assert raised.value.remedy.startswith("strategy =")


def test_other_programs_variables_are_none_of_our_business(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("CLEANER_HOME", "/srv")
    assert Settings.load() == Settings()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("url", "not a url"),
        ("url", 7),
        ("strategy", ""),
        ("strategy", 7),
        ("strategy_options", "x"),
        ("only", 7),
        ("only", [7]),
        ("exclude", [""]),
        ("reset_sequences", "perhaps"),
        ("lock_timeout", 0),
        ("lock_timeout", -1),
        ("lock_timeout", "soon"),
        ("lock_timeout", True),
        ("lock_timeout", float("nan")),
        ("lock_timeout", float("inf")),
        ("retries", 0),
        ("retries", 2.5),
        ("retries", "often"),
        ("on_blocked", "kill"),
        ("databases", {"x": 1}),
        ("autouse", "perhaps"),
        ("fingerprint", 7),
        ("fingerprint", [""]),
        ("export", {"DATABASE_URL": "x"}),
    ],
)
def test_a_value_of_the_wrong_kind_is_named_with_what_to_write(key: str, value: object) -> None:
    with pytest.raises(errors.SettingsError) as raised:
        Settings.load(**{key: value})  # type: ignore[arg-type]
    assert key in raised.value.what
    assert raised.value.remedy


def test_a_broken_pyproject_is_named() -> None:
    Path("pyproject.toml").write_text("[tool.cleaner\n")
    with pytest.raises(errors.SettingsError, match=r"pyproject\.toml"):
        Settings.load()


def test_a_further_database_takes_everything_but_url_and_metadata() -> None:
    configure(
        'url = "postgresql://localhost/app_test"\nmetadata = "app:Base"\nretries = 2\n'
        '[tool.cleaner.databases.reports]\nurl = "postgresql://localhost/reports_test"'
    )
    reports = Settings.load().database("reports")
    assert isinstance(reports.url, URL)
    assert reports.url.database == "reports_test"
    assert reports.metadata is None
    assert reports.retries == 2
    with pytest.raises(errors.SettingsError, match="there are reports"):
        Settings.load().database("report")


def test_a_url_of_the_old_scheme_is_understood() -> None:
    url = Settings.load(url="postgres://u:p@h/app_test").url
    assert isinstance(url, URL)
    assert url.drivername == "postgresql"


def test_without_a_url_there_is_an_error_that_says_where_to_write_it() -> None:
    with pytest.raises(errors.SettingsError, match="url is not set") as raised:
        Cleaner()
    assert "Cleaner(" in raised.value.remedy


def test_an_unknown_strategy_lists_the_installed_ones() -> None:
    with pytest.raises(errors.UnknownStrategyError) as raised:
        Cleaner("postgresql://localhost/x_test", strategy="truncat")
    for name in ("auto", "delete", "replica", "truncate"):
        assert name in raised.value.what
    assert raised.value.remedy == 'strategy = "truncate"'


def test_an_option_that_the_strategy_does_not_take_is_named() -> None:
    with pytest.raises(errors.SettingsError, match="chunk"):
        Cleaner("postgresql://localhost/x_test", strategy_options={"chunk": 3})


@pytest.mark.parametrize("kind", [c for c in vars(errors).values() if isinstance(c, type)])
def test_every_error_survives_pickling(kind: type) -> None:
    if not issubclass(kind, errors.CleanerError):
        return
    blocker = errors.Blocker(1, "u", "app", "idle in transaction", 2.0, "SELECT 1")
    error = kind("what", "cause", "remedy")
    vars(error)["blockers"] = (blocker,)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) == "what\nLikely cause: cause\nRemedy: remedy"
    assert vars(again)["blockers"] == (blocker,)
