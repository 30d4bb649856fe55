"""Which files change the fingerprint: those that the user names, and Alembic's."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest
from support.checkouts import SETUP, Checkout

from cleaner import errors


def test_line_endings_do_not_matter_but_in_binary_files(checkout: Checkout) -> None:
    checkout.write("seed.sql", "a\nb\n")
    checkout.write("dump", b"\0a\nb")
    before = checkout.print("seed.sql", "dump")
    for ending in ("\r\n", "\r"):
        checkout.write("seed.sql", f"a{ending}b{ending}")
        checkout.write("tests/conftest.py", SETUP.replace("\n", ending))
        assert checkout.print("seed.sql", "dump") == before
    checkout.write("dump", b"\0a\r\nb")
    assert checkout.print("seed.sql", "dump") != before


def test_files_directories_and_patterns_count(checkout: Checkout) -> None:
    for name in ("seed.sql", "data/a.csv", "data/deep/b.csv", "data/deep/c.txt", "x[1].sql"):
        checkout.write(name, name)
    checkout.write("seeds.py", "import more")
    checkout.write("more.py")
    assert checkout.counts("seed.sql", "seed.sql")
    assert checkout.counts("seed.sql", "./seed.sql")
    assert checkout.counts("seed.sql", "*.sql")
    assert checkout.counts("seed.sql", str(checkout.root / "seed.sql"))
    assert checkout.counts("data/deep/b.csv", "data")
    assert checkout.counts("data/deep/b.csv", "data/")
    assert checkout.counts("data/deep/b.csv", "data/*")
    assert checkout.counts("data/deep/b.csv", "data/**/*.csv")
    assert checkout.counts("data/deep/b.csv", str(checkout.root / "data/*/b.csv"))
    assert checkout.counts("x[1].sql", "x[1].sql")
    assert checkout.counts("more.py", "seeds.py")
    assert not checkout.counts("seed.sql")
    assert not checkout.counts("data/deep/c.txt", "data/**/*.csv")
    assert checkout.print("data", "seed.sql") == checkout.print("seed.sql", "data", "data/*.csv")
    before = checkout.print("data")
    checkout.write("data/new.csv")
    assert checkout.print("data") != before
    (checkout.root / "data/new.csv").unlink()
    assert checkout.print("data") == before
    (checkout.root / "data/a.csv").rename(checkout.root / "data/z.csv")
    assert checkout.print("data") != before


def test_a_root_whose_name_looks_like_a_pattern(tmp_path: Path) -> None:
    checkout = Checkout(tmp_path / "project [1]*")
    checkout.write("seed.sql")
    assert checkout.counts("seed.sql", "*.sql")


def test_files_beside_the_project_may_be_named(checkout: Checkout) -> None:
    checkout.write("../shared/schema.sql")
    assert checkout.counts("../shared/schema.sql", "../shared")
    assert checkout.counts("../shared/schema.sql", "../shared/*.sql")


def test_leftovers_do_not_count(checkout: Checkout) -> None:
    checkout.write("data/a.sql")
    before = checkout.print("data", "data/*")
    for name in ("__pycache__/a.py", "a.pyc", "a.sql~", ".a.sql.swp", "#a.sql#", ".#a.sql"):
        checkout.write(f"data/{name}", "left")
    for name in (".DS_Store", "a.sql.orig", ".git/HEAD", ".venv/x.sql", ".mypy_cache/x"):
        checkout.write(f"data/{name}", "left")
    assert checkout.print("data", "data/*") == before


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("migration", "migrations"),
        ("migrations/seed.sq", "migrations/seed.sql"),
        ("migrations/*.sqll", None),
        ("zzzzzzzzzz", None),
        ("/no/such/thing", None),
        ("**.sql", None),
    ],
)
def test_a_name_that_matches_nothing_is_an_error(
    checkout: Checkout, name: str, near: str | None
) -> None:
    checkout.write("migrations/seed.sql")
    if name == "**.sql" and sys.version_info >= (3, 13):
        pytest.skip("a pattern like any other")
    with pytest.raises(errors.SettingsError) as raised:
        checkout.print(name)
    assert repr(name) in raised.value.what
    assert raised.value.cause
    if near:
        assert f"did you mean {near!r}?" in raised.value.what
        assert raised.value.remedy == f'fingerprint = ["{near}"]'
    assert raised.value.remedy.startswith("fingerprint = [")


def test_a_file_that_cannot_be_read_is_named(
    checkout: Checkout, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = checkout.write("data/secret.sql")
    read = Path.read_bytes

    def refusing(path: Path) -> bytes:
        if path == secret:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", refusing)
    with pytest.raises(errors.SettingsError, match="Permission denied") as raised:
        checkout.print("data")
    assert str(secret) in raised.value.what
    assert raised.value.cause
    assert str(secret) in raised.value.remedy


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
@pytest.mark.parametrize("name", ["data/secret.sql", "data"])
def test_what_permissions_forbid_is_named(checkout: Checkout, name: str) -> None:
    checkout.write("data/secret.sql")
    (checkout.root / name).chmod(0)
    try:
        with pytest.raises(errors.SettingsError, match="Permission denied"):
            checkout.print("data")
    finally:
        (checkout.root / name).chmod(0o755)


INIS = {
    "plain": "[alembic]\nscript_location = db\n",
    "here": "[alembic]\nscript_location = %(here)s/db\nfile_template = %%(rev)s\n",
    "resource": "[alembic]\nscript_location = pkg:db\n",
    "other section": "[other]\nscript_location = db\n",
    "default": "[DEFAULT]\nwhere = db\n[alembic]\nscript_location = %(where)s\n",
}


@pytest.mark.parametrize("kind", sorted(INIS))
def test_alembic_s_scripts_count_by_themselves(checkout: Checkout, kind: str) -> None:
    where = "pkg/db" if kind == "resource" else "db"
    checkout.write("alembic.ini", INIS[kind])
    for name in ("env.py", "versions/001_first.py", "versions/__pycache__/x.pyc"):
        checkout.write(f"{where}/{name}")
    checkout.write(f"{where}/versions/002_seed.py", "from app.seeds import rows")
    checkout.write("app/seeds.py")
    for name in ("alembic.ini", "app/seeds.py", f"{where}/env.py"):
        assert checkout.counts(name), name
    assert checkout.counts(f"{where}/versions/001_first.py")
    assert not checkout.counts(f"{where}/versions/__pycache__/x.pyc")
    before = checkout.print()
    checkout.write(f"{where}/versions/003_more.py")
    assert checkout.print() != before


@pytest.mark.parametrize(
    "locations",
    [
        "a/one b/two",
        "a/one, b/two",
        "%(here)s/a/one:%(here)s/b/two\nversion_path_separator = os",
        "a/one;b/two\npath_separator = ;",
        "a/one:b/two\npath_separator = :",
        "\n  a/one\n  b/two\npath_separator = newline",
        "a/one pkg:two\n",
    ],
)
def test_several_version_locations_count(checkout: Checkout, locations: str) -> None:
    text = f"[alembic]\nscript_location = db\nversion_locations = {locations}\n"
    checkout.write("alembic.ini", text)
    names = ["db/env.py", "a/one/1.py", "pkg/two/1.py" if "pkg" in locations else "b/two/1.py"]
    for name in names:
        checkout.write(name)
    assert all(checkout.counts(name) for name in names)


def test_alembic_s_settings_in_pyproject_count(checkout: Checkout) -> None:
    checkout.write(
        "pyproject.toml",
        '[project]\nname = "x"\n[tool.alembic]\nscript_location = "%(here)s/db"\n'
        'version_locations = ["db/versions", "%(here)s/more"]\n',
    )
    for name in ("db/env.py", "db/versions/1.py", "more/2.py"):
        checkout.write(name)
    for name in ("db/env.py", "db/versions/1.py", "more/2.py"):
        assert checkout.counts(name), name
    before = checkout.print()
    settings = checkout.root / "pyproject.toml"
    settings.write_text(settings.read_text().replace('name = "x"', 'name = "y"'))
    assert checkout.print() == before
    settings.write_text(settings.read_text() + 'timezone = "UTC"\n')
    assert checkout.print() != before


@pytest.mark.parametrize(
    "text", ["", "nonsense", "[alembic]\n", "[alembic]\nscript_location = %(x)s", "[alembic"]
)
def test_an_alembic_ini_without_scripts_counts_alone(checkout: Checkout, text: str) -> None:
    checkout.write("alembic.ini", text)
    checkout.write("pyproject.toml", "[tool")
    assert checkout.counts("alembic.ini")


def test_scripts_beside_their_ini_do_not_take_the_whole_project(checkout: Checkout) -> None:
    checkout.write("alembic.ini", "[alembic]\nscript_location = %(here)s\n")
    for name in ("env.py", "versions/1.py", "app.log"):
        checkout.write(name)
    assert checkout.counts("env.py")
    assert checkout.counts("versions/1.py")
    assert not checkout.counts("app.log")


def test_a_name_is_the_same_however_its_accents_are_stored(tmp_path: Path) -> None:
    prints = set()
    for form in ("NFC", "NFD"):
        checkout = Checkout(tmp_path / form)
        checkout.write(f"data/{unicodedata.normalize(form, 'é')}.sql")
        prints.add(checkout.print("data"))
    assert len(prints) == 1
