"""Only test databases are cleaned, judged on the live connection."""

from __future__ import annotations

import pytest
from support.database import Database

from cleaner import errors
from cleaner.guard import check


@pytest.mark.parametrize(
    "name",
    [
        "test",
        "TEST",
        "test_app",
        "app_test",
        "app-test-gw3",
        "App.Test",
        "test2",
        "my test",
        "ütest_1"[1:],
    ],
)
def test_the_word_test_makes_a_database_safe(name: str) -> None:
    check(name, None)


@pytest.mark.parametrize(
    "name",
    [
        "latest",
        "contest",
        "attestation",
        "testing",
        "tests",
        "production",
        "",
        "prod",
        "postgres",
        "étest",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(errors.UnsafeDatabaseError) as raised:
        check(name, None)
    assert f'allow_databases = ["{name}"]' in raised.value.remedy


def test_a_list_takes_the_place_of_the_word() -> None:
    check("scratch_7", ["scratch_*"])
    check("scratch", ("scratch",))
    with pytest.raises(errors.UnsafeDatabaseError, match="allow_databases"):
        check("app_test", ["scratch_*"])
    with pytest.raises(errors.UnsafeDatabaseError):
        check("app_test", [])


def test_nothing_happens_to_a_database_that_is_refused(database: Database) -> None:
    database.execute("CREATE TABLE a (id int); INSERT INTO a VALUES (1)")
    for method in ("clean", "plan", "diff", "verify"):
        with (
            database.cleaner(allow_databases=["other"]) as cleaner,
            pytest.raises(errors.UnsafeDatabaseError, match=database.name),
        ):
            getattr(cleaner, method)()
    assert database.count("a") == 1
