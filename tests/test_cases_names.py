"""Names: whatever an identifier may hold, two tables of one name, and tables that are not there."""

from __future__ import annotations

import pytest
from sqlalchemy import Column, Integer, MetaData, Table
from support.cases import AS_SUPERUSER, AUTO, DELETE, REPLICA, TRUNCATE, Watched, Way, clean, ways
from support.database import Database

from cleaner.errors import SettingsError


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


ODD = [
    "MixedCase",
    "select",
    "with space",
    "with.dot",
    'a "quote"',
    "it's",
    "back\\slash\\n\\",
    "100%s %(x)s %%",
    ":colon ::text",
    "$cleaner$ $_$ $1",
    "?",
    "{0} {x}",
    "line\nbreak",
    "-- comment /*",
    "ünïcödé 表 🐘",
    "é" * 31 + "x",  # 63 bytes
    "[ab]*",
    ";",
]
# What the functions that clean call their own.
# fmt: off
VARIABLES = [
    "held", "done", "latest", "part", "u", "c", "l", "s", "m", "k", "o", "r", "q", "v", "t", "i",
    "d1", "wait", "known", "stamps", "seen", "found", "stamp", "print", "ignored", "here",
    "writers", "truncated", "survivors", "restarted", "refreshed", "pass", "chosen", "pages",
    "reached", "names", "switch", "referring", "every", "cleaner_stamp", "old", "new",
]
# fmt: on


def create(names: list[str], schema: str = "public") -> str:
    """A chain of tables, each of which refers to the one before by columns of odd names."""
    statements, before = [], None
    for name in names:
        table, column = f"{quoted(schema)}.{quoted(name)}", quoted(name)
        reference = f", ref int REFERENCES {before}" if before else ", ref int"
        statements += [
            f"CREATE TABLE {table} ({column} serial PRIMARY KEY{reference})",
            f"INSERT INTO {table} (ref) VALUES ({1 if before else 'NULL'})",
        ]
        before = table
    return ";".join(statements)


@pytest.mark.parametrize("names", [ODD, VARIABLES], ids=["odd", "variables"])
@ways(*AS_SUPERUSER, Way("auto", owner=True))
def test_every_name_is_served(database: Database, names: list[str], way: Way) -> None:
    database.execute(create(names))
    database.execute(
        f"""CREATE FUNCTION public.{quoted(names[0])}() RETURNS trigger LANGUAGE plpgsql
            AS 'BEGIN RAISE EXCEPTION ''fired''; END'"""
    )
    for name in names:  # triggers, rules and row-level security are switched by name, too
        database.execute(
            f"""CREATE TRIGGER {quoted(name)} BEFORE DELETE ON {quoted(name)}
                FOR EACH ROW EXECUTE FUNCTION {quoted(names[0])}();
            CREATE TRIGGER {quoted(name[:20] + "_")} BEFORE TRUNCATE ON {quoted(name)}
                EXECUTE FUNCTION {quoted(names[0])}();
            ALTER TABLE {quoted(name)} FORCE ROW LEVEL SECURITY, ENABLE ROW LEVEL SECURITY"""
        )
    report = clean(database, way)
    assert sorted(report.tables) == sorted(names)


@ways(*AS_SUPERUSER)
def test_every_schema_name_is_served(database: Database, way: Way) -> None:
    for schema in ODD:
        database.execute(f"CREATE SCHEMA {quoted(schema)}; {create(['t', 'u'], schema)}")
    clean(database, way)


@ways(AUTO, TRUNCATE)
def test_an_odd_name_may_be_excluded(database: Database, way: Way) -> None:
    for name in ODD:
        database.execute(
            f"CREATE TABLE {quoted(name)} (id int); INSERT INTO {quoted(name)} VALUES (1);"
        )
    kept = [database.scalar(f"SELECT format('%I.%I', 'public', $n${name}$n$)") for name in ODD[1:]]
    report = clean(database, way, exclude=ODD[1:], kept=kept)
    assert report.tables == ("MixedCase",)


@ways(*AS_SUPERUSER)
def test_one_name_in_two_schemas_means_the_first_on_the_search_path(
    database: Database, way: Way
) -> None:
    database.execute(
        f"CREATE SCHEMA first; {create(['t'], 'first')}; {create(['t'])};"
        f'ALTER DATABASE "{database.name}" SET search_path = first, public'
    )
    metadata = MetaData()
    Table("t", metadata, Column("t", Integer, primary_key=True))
    clean(database, way, metadata, kept=["public.t"], running=["public.t_t_seq"])
    Table("t", metadata, Column("t", Integer, primary_key=True), schema="public")
    clean(database, way, metadata)


@ways(*AS_SUPERUSER)
def test_one_name_in_several_schemas_of_the_metadata_means_each(
    database: Database, way: Way
) -> None:
    metadata = MetaData()
    for schema in ("one", "two", "three"):
        database.execute(f"CREATE SCHEMA {schema}; {create(['t'], schema)}")
        if schema != "three":
            Table("t", metadata, Column("t", Integer, primary_key=True), schema=schema)
    Table("t", metadata, Column("t", Integer, primary_key=True))
    database.execute(create(["t"]))
    clean(database, way, metadata, kept=["three.t"], running=["three.t_t_seq"])
    clean(database, way, only=["three.t"])


@ways(AUTO, DELETE)
def test_no_schema_on_the_search_path_is_no_obstacle(database: Database, way: Way) -> None:
    database.execute(create(["a", "b"]))
    database.execute(f"ALTER DATABASE \"{database.name}\" SET search_path = ''")
    assert set(clean(database, way).tables) == {"public.a", "public.b"}


@ways(*AS_SUPERUSER)
def test_migration_bookkeeping_stays_under_any_name(database: Database, way: Way) -> None:
    kept = []
    for table in (
        "public.alembic_version",
        "other.alembic_version",
        "other.billing_alembic_version",
        "public.my_own_books",
        "public.schema_migrations",
        "public.django_migrations",
    ):
        kept.append(table)
        database.execute(
            f"CREATE SCHEMA IF NOT EXISTS other; CREATE TABLE {table} (version_num text);"
            f"INSERT INTO {table} VALUES ('1a2b')"
        )
    database.execute(create(["a"]))
    clean(database, way, kept=kept)
    clean(database, way, exclude=["a"], kept=[*kept, "public.a"])


@ways(AUTO, TRUNCATE)
def test_a_table_in_one_of_metadata_and_database_only_is_no_surprise(
    database: Database, way: Way
) -> None:
    metadata = MetaData()
    for name in ("both", "missing"):
        Table(name, metadata, Column("both", Integer, primary_key=True))
    database.execute(create(["both"]) + ";" + create(["unknown"]))
    with Watched(
        database, way, metadata, kept=["public.unknown"], running=["public.unknown_unknown_seq"]
    ) as watched:
        warnings = "\n".join(watched.clean().warnings)
        assert "missing" in warnings
        assert "unknown" in warnings
        database.execute(create(["missing"]))
        watched.clean()


@ways(AUTO)
def test_a_misspelt_name_in_only_is_an_error_that_suggests(database: Database, way: Way) -> None:
    database.execute(create(["account"]))
    with (
        database.cleaner(strategy=way.strategy, only=["acount"]) as cleaner,
        pytest.raises(SettingsError, match=r"acount.*did you mean 'account'(.|\n)*Remedy"),
    ):
        cleaner.clean()


@ways(AUTO, DELETE, REPLICA, TRUNCATE)
def test_a_database_name_may_hold_quotes(database: Database, way: Way) -> None:
    name = f"""test it's "{database.name}" %s"""
    database.execute(f"CREATE DATABASE {quoted(name)}")
    try:
        other = Database(database.url.set(database=name), database.role)
        other.execute(create(["a", "b"]))
        clean(other, way)
        other.close()
    finally:
        database.execute(f"DROP DATABASE {quoted(name)} WITH (FORCE)")
