"""Virtual tables: indexes of text, of boxes, and those that only show what is elsewhere."""

from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import Column, Engine, Integer, MetaData, String, Table
from support.lite import count, lite, run

from cleaner import Cleaner
from cleaner.dialects.sqlite import catalog
from cleaner.errors import CleanerError, StrategyRefusedError

STRATEGIES = ["auto", "delete", "truncate", "replica"]
# An index of the rows of docs, by its module.
INDEXES = {
    "fts5": "CREATE VIRTUAL TABLE found USING fts5(body, content = 'docs', content_rowid = id)",
    "fts4": "CREATE VIRTUAL TABLE found USING fts4(content='docs', body)",
}
SEARCH = "SELECT rowid FROM found WHERE found MATCH '{}'"


@pytest.fixture
def models() -> MetaData:
    models = MetaData()
    Table("docs", models, Column("id", Integer, primary_key=True), Column("body", String))
    return models


def filled(engine: Engine, index: str) -> None:
    run(
        engine,
        "CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT)",
        index,
        "CREATE TRIGGER i AFTER INSERT ON docs BEGIN"
        " INSERT INTO found (rowid, body) VALUES (new.id, new.body); END",
        "INSERT INTO docs VALUES (1, 'tea')",
    )


def test_an_index_for_text_search_is_emptied_by_its_own_means(engine: Engine) -> None:
    run(
        engine,
        "CREATE VIRTUAL TABLE own USING fts5(body, content_of)",
        "CREATE VIRTUAL TABLE old USING fts4(body)",
        "CREATE VIRTUAL TABLE bare USING fts5(body, content = '')",
        "CREATE TABLE docs (id INTEGER PRIMARY KEY, body)",
        "CREATE VIRTUAL TABLE found USING fts5(body, content='docs', content_rowid='id')",
        "CREATE TRIGGER i AFTER INSERT ON docs BEGIN"
        " INSERT INTO found (rowid, body) VALUES (new.id, new.body); END",
        "CREATE TRIGGER d AFTER DELETE ON docs BEGIN INSERT INTO found (found, rowid, body)"
        " VALUES ('delete', old.id, old.body); END",
        "CREATE VIRTUAL TABLE box USING rtree(id, a, b)",
    )
    search = "SELECT rowid FROM found WHERE found MATCH 'needle'"
    with Cleaner(engine) as cleaner:
        for _ in range(2):
            run(
                engine,
                "INSERT INTO own VALUES ('one', 'x'), ('two', 'y')",
                "INSERT INTO old VALUES ('one'), ('two')",
                "INSERT INTO bare (rowid, body) VALUES (1, 'one')",
                "INSERT INTO docs VALUES (1, 'needle'), (2, 'hay')",
                "INSERT INTO box VALUES (1, 2, 3), (2, 3, 4)",
            )
            assert run(engine, search) == [(1,)]
            report = cleaner.clean()
            assert set(report.tables) == {"own", "old", "bare", "docs", "box"}
            assert report.refreshed == ("found",)
            cleaner.verify()
            assert run(engine, search) == []
            run(engine, "INSERT INTO found (found) VALUES ('integrity-check')")
        report = cleaner.clean()
        assert (report.tables, report.refreshed) == ((), ())


def test_a_module_that_is_not_loaded_is_refused_by_name(tmp_path: Path) -> None:
    engine = lite("delete", tmp_path)
    run(
        engine,
        "CREATE TABLE t (a)",
        "PRAGMA writable_schema = ON",
        "INSERT INTO sqlite_master VALUES"
        " ('table', 'v', 'v', 0, 'CREATE VIRTUAL TABLE v USING nobody(a)')",
    )
    engine.dispose()
    with (
        Cleaner(engine.url) as cleaner,
        pytest.raises(StrategyRefusedError, match="no such module: nobody"),
    ):
        cleaner.clean()
    with Cleaner(engine.url, exclude=["v"]) as cleaner:
        cleaner.clean()


def test_an_older_sqlite_tells_shadow_tables_by_their_names(tmp_path: Path) -> None:
    engine = lite("memory", tmp_path)
    run(
        engine,
        "CREATE VIRTUAL TABLE f USING fts5(a)",
        "CREATE VIRTUAL TABLE g USING fts4(a)",
        "CREATE VIRTUAL TABLE r USING rtree(id, a, b)",
        "CREATE TABLE f_mine (a)",
    )

    def tables(version: str) -> list[str]:
        def ask(sql: str) -> list[tuple[object, ...]]:
            return [(version,)] if "sqlite_version" in sql else run(engine, sql)

        found = catalog.discover(ask, "test", 1)
        return [relation.name for relation in found.database.relations]

    assert tables("3.35.0") == tables("3.40.1") == ["f", "f_mine", "g", "r"]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("module", INDEXES)
def test_an_index_outside_the_metadata_finds_nothing_of_a_test_before(
    engine: Engine, models: MetaData, module: str, strategy: str
) -> None:
    filled(engine, INDEXES[module])
    with Cleaner(engine, models, strategy=strategy) as cleaner:
        assert "'rebuild'" in str(cleaner.plan())
        assert cleaner.plan().warnings == ()
        report = cleaner.clean()
        assert (report.tables, report.refreshed) == (("docs",), ("found",))
        cleaner.verify()
        run(engine, "INSERT INTO docs VALUES (1, 'milk')")
        assert run(engine, SEARCH.format("tea")) == []
        assert run(engine, SEARCH.format("milk")) == [(1,)]
        run(engine, "INSERT INTO found (found) VALUES ('integrity-check')")


@pytest.mark.parametrize("module", INDEXES)
def test_an_index_of_captured_rows_finds_them_again_and_no_others(
    engine: Engine, models: MetaData, module: str
) -> None:
    filled(engine, INDEXES[module])
    with Cleaner(engine, models) as cleaner:
        cleaner.capture()
        assert cleaner.clean().refreshed == ()
        for write in (
            "DELETE FROM docs",
            "INSERT INTO docs VALUES (2, 'milk')",
            "INSERT INTO found (rowid, body) VALUES (3, 'milk')",
        ):
            run(engine, write)
            assert cleaner.clean().refreshed == ("found",), write
            assert run(engine, SEARCH.format("tea")) == [(1,)]
            assert run(engine, SEARCH.format("milk")) == []
        assert cleaner.clean().refreshed == ()


def test_entries_that_a_test_left_in_an_index_are_seen_and_removed(
    engine: Engine, models: MetaData
) -> None:
    filled(engine, INDEXES["fts5"])
    with Cleaner(engine, models) as cleaner:
        cleaner.clean()
        run(engine, "INSERT INTO found (rowid, body) VALUES (7, 'tea')")
        assert [table.table for table in cleaner.diff().tables] == ["found"]
        assert cleaner.clean().refreshed == ("found",)
        cleaner.verify()


def test_an_index_of_a_view_is_made_anew_from_it(engine: Engine, models: MetaData) -> None:
    run(
        engine,
        "CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT)",
        "CREATE VIEW texts AS SELECT id, body || ' leaf' AS body FROM docs",
        "CREATE VIRTUAL TABLE found USING fts5(body, content = 'texts', content_rowid = id)",
        "INSERT INTO docs VALUES (1, 'tea')",
        "INSERT INTO found (found) VALUES ('rebuild')",
    )
    with Cleaner(engine, models) as cleaner:
        assert cleaner.clean().refreshed == ("found",)
        assert run(engine, SEARCH.format("leaf")) == []


def test_an_index_that_is_excluded_or_of_rows_that_are_is_left_alone(engine: Engine) -> None:
    filled(engine, INDEXES["fts5"])
    for excluded in ("docs", "found"):
        with Cleaner(engine, exclude=[excluded]) as cleaner:
            assert cleaner.clean().refreshed == ()
        assert run(engine, "SELECT count(*) FROM found_idx") == [(1,)]


def test_an_empty_index_in_a_file_that_can_only_be_read_is_nothing_to_clean(
    tmp_path: Path,
) -> None:
    engine = lite("delete", tmp_path)
    filled(engine, INDEXES["fts5"])
    Cleaner(engine).clean()
    engine.dispose()
    with Cleaner(f"sqlite:///file:{engine.url.database}?mode=ro&uri=true") as cleaner:
        assert cleaner.clean().refreshed == ()
        cleaner.verify()


def test_an_index_that_can_not_be_made_anew_is_named(engine: Engine, models: MetaData) -> None:
    run(
        engine,
        "CREATE TABLE docs (id INTEGER PRIMARY KEY, body TEXT)",
        "CREATE VIRTUAL TABLE found USING fts5(no_such_column, content = 'docs')",
        "INSERT INTO docs VALUES (1, 'tea')",
        "INSERT INTO found (rowid, no_such_column) VALUES (1, 'tea')",
    )
    with Cleaner(engine, models) as cleaner, pytest.raises(CleanerError, match="found") as raised:
        cleaner.clean()
    assert raised.value.remedy == 'exclude = ["found"]'
    assert count(engine, "docs") == 1


@pytest.mark.parametrize(
    "shows",
    [
        "CREATE VIRTUAL TABLE shows USING fts5vocab('words', 'row')",
        "CREATE VIRTUAL TABLE shows USING fts4aux(old)",
        "CREATE VIRTUAL TABLE shows USING fts5vocab('nothing', 'row')",
    ],
)
def test_a_virtual_table_that_only_shows_what_is_elsewhere_is_a_view(
    engine: Engine, shows: str
) -> None:
    run(
        engine,
        "CREATE VIRTUAL TABLE words USING fts5(body)",
        "CREATE VIRTUAL TABLE old USING fts4(body)",
        shows,
    )
    with Cleaner(engine) as cleaner:
        cleaner.capture()
        run(engine, "INSERT INTO words VALUES ('tea')", "INSERT INTO old VALUES ('tea')")
        assert set(cleaner.clean().tables) == {"words", "old"}
        cleaner.verify()


def test_an_ordinary_table_that_is_called_like_a_shadow_is_cleaned(engine: Engine) -> None:
    tables = ("docs_content", "bare_content", "plain_docsize", "old_docsize", "older_docsize")
    run(
        engine,
        "CREATE TABLE docs_content (id INTEGER PRIMARY KEY, body TEXT)",
        "CREATE VIRTUAL TABLE docs USING fts5(body, content='docs_content', content_rowid='id')",
        "CREATE VIRTUAL TABLE bare USING fts5(body, content='')",
        "CREATE VIRTUAL TABLE plain USING fts5(body, columnsize=0)",
        "CREATE VIRTUAL TABLE old USING fts4(body, matchinfo=fts3)",
        "CREATE VIRTUAL TABLE older USING fts3(body)",
        *(f"CREATE TABLE {table} (a)" for table in tables[1:]),
        *(f"INSERT INTO {table} VALUES (1)" for table in tables[1:]),
        "INSERT INTO docs_content VALUES (1, 'tea')",
        "INSERT INTO plain VALUES ('tea')",
        "INSERT INTO old VALUES ('tea')",
    )
    with Cleaner(engine) as cleaner:
        assert set(cleaner.clean().tables) == {*tables, "plain", "old"}
        cleaner.verify()
    assert count(engine, *tables, "plain", "old") == 0
