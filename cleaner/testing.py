"""The contract that every strategy has to keep, ours and third parties', as tests for pytest.

    from cleaner.testing import StrategyContract

    class TestMyStrategy(StrategyContract):
        strategy = MyStrategy()        # or the name under which it is registered

The tests make tables ``contract_*`` in the database of the fixture ``cleaner_url`` and drop them
again. They use nothing but SQLAlchemy, so they run on every database that it knows. A strategy
that can't serve a case passes by refusing it with an error that says what to write instead, or
where sequences can't be put back by a warning of the plan.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import pytest
from sqlalchemy import (
    Column,
    Engine,
    ForeignKey,
    ForeignKeyConstraint,
    Integer,
    MetaData,
    String,
    Table,
    create_engine,
    func,
    inspect,
    select,
)

from cleaner.api import Cleaner
from cleaner.errors import CleanerError, ExcludedTableError, StrategyRefusedError
from cleaner.spi import Strategy

__all__ = ["StrategyContract"]


class StrategyContract:
    """Subclass it, set ``strategy``, and pytest collects the tests."""

    strategy: ClassVar[Strategy | str]
    cycles: ClassVar[bool] = True
    """Whether the database can have foreign keys in a cycle."""

    # -- what the tests work with ----------------------------------------------------------

    def numbered(self, table: str) -> Column[int]:
        """The key of ``table``, which the database numbers; override it where that takes more than
        an integer.
        """
        return Column("id", Integer, primary_key=True)

    def metadata(self) -> MetaData:
        """A chain, a self-reference, a composite key, a cycle, and a name to be quoted."""
        metadata = MetaData()
        Table(
            "contract_owner",
            metadata,
            self.numbered("contract_owner"),
            Column("boss_id", Integer, ForeignKey("contract_owner.id")),
            Column("name", String(50)),
        )
        Table(
            "contract_order",
            metadata,
            self.numbered("contract_order"),
            Column("owner_id", Integer, ForeignKey("contract_owner.id"), nullable=False),
        )
        Table(
            "contract_line",
            metadata,
            Column("order_id", Integer, ForeignKey("contract_order.id"), primary_key=True),
            Column("number", Integer, primary_key=True, autoincrement=False),
        )
        Table(
            "contract_note",
            metadata,
            self.numbered("contract_note"),
            Column("order_id", Integer),
            Column("number", Integer),
            ForeignKeyConstraint(
                ["order_id", "number"], ["contract_line.order_id", "contract_line.number"]
            ),
        )
        back = ForeignKey("contract_hen.id", use_alter=True, name="contract_egg_hen")
        Table(
            "contract_egg",
            metadata,
            self.numbered("contract_egg"),
            Column("hen_id", Integer, *([back] if self.cycles else [])),
        )
        Table(
            "contract_hen",
            metadata,
            self.numbered("contract_hen"),
            Column(
                "egg_id",
                Integer,
                ForeignKey("contract_egg.id", use_alter=self.cycles, name="contract_hen_egg"),
            ),
        )
        Table("contract Mixed.Case", metadata, self.numbered("contract Mixed.Case"))
        return metadata

    def outsider(self) -> Table:
        """The table that no metadata knows."""
        return Table("contract_outsider", MetaData(), self.numbered("contract_outsider"))

    @pytest.fixture
    def engine(self, cleaner_url: str) -> Iterator[Engine]:
        """The database; override it to run the contract elsewhere."""
        engine = create_engine(cleaner_url)
        yield engine
        engine.dispose()

    @pytest.fixture
    def tables(self, engine: Engine) -> Iterator[MetaData]:
        """The contract's tables, made anew."""
        metadata, outsider = self.metadata(), self.outsider().metadata
        with engine.begin() as connection:
            for each in (metadata, outsider):
                each.drop_all(connection)
                each.create_all(connection)
        yield metadata
        for each in (outsider, metadata):
            each.drop_all(engine)

    @pytest.fixture
    def cleaner(self, engine: Engine, tables: MetaData) -> Iterator[Cleaner]:
        """A cleaner of those tables by the strategy; skips where it refuses altogether."""
        with Cleaner(engine, tables, strategy=self.strategy, lock_timeout=1.0) as cleaner:
            try:
                cleaner.plan()
            except StrategyRefusedError as refusal:
                pytest.skip(f"refused: {refusal.what}")
            yield cleaner

    def fill(self, engine: Engine, metadata: MetaData) -> None:
        """Put rows into every table, with keys that the database makes where it does."""
        tables = metadata.tables
        with engine.begin() as connection:

            def insert(name: str, /, **values: object) -> object:
                key = connection.execute(tables[name].insert().values(**values))
                return key.inserted_primary_key[0]  # type: ignore[index]

            boss = insert("contract_owner", name="boss")
            owner = insert("contract_owner", name="owner", boss_id=boss)
            order = insert("contract_order", owner_id=owner)
            insert("contract_line", order_id=order, number=1)
            insert("contract_note", order_id=order, number=1)
            hen = insert("contract_hen")
            egg = insert("contract_egg", hen_id=hen)
            connection.execute(tables["contract_hen"].update().values(egg_id=egg))
            insert("contract Mixed.Case")

    def counts(self, engine: Engine, tables: MetaData) -> dict[str, int]:
        """The number of rows of every table, counted without the cleaner."""
        with engine.connect() as connection:
            return {
                name: connection.execute(select(func.count()).select_from(table)).scalar_one()
                for name, table in tables.tables.items()
            }

    def schema(self, engine: Engine, tables: MetaData) -> object:
        """What the tables are like; override it where SQLAlchemy's Inspector can't tell."""
        inspector = inspect(engine)
        return [
            (
                name,
                [(c["name"], str(c["type"]), c["nullable"]) for c in inspector.get_columns(name)],
                inspector.get_pk_constraint(name)["constrained_columns"],
                sorted(str(key["name"]) for key in inspector.get_foreign_keys(name)),
            )
            for name in sorted(tables.tables)
        ]

    # -- the contract ----------------------------------------------------------------------

    def test_every_table_is_emptied(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        self.fill(engine, tables)
        report = cleaner.clean()
        assert set(self.counts(engine, tables).values()) == {0}
        assert set(report.tables) == set(tables.tables)
        cleaner.verify()

    def test_a_second_clean_finds_nothing_wrong(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        for _ in range(2):
            self.fill(engine, tables)
            cleaner.clean()
            cleaner.clean()
            assert set(self.counts(engine, tables).values()) == {0}

    @pytest.mark.parametrize("deleted", [False, True], ids=["kept", "deleted by the test itself"])
    def test_generated_keys_start_anew(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData, deleted: bool
    ) -> None:
        if any(warning.startswith("sequence") for warning in cleaner.plan().warnings):
            pytest.skip("the database's sequences go on, which the plan says")
        mixed = tables.tables["contract Mixed.Case"]
        first = []
        for _ in range(2):
            with engine.begin() as connection:
                key = connection.execute(mixed.insert()).inserted_primary_key
                assert key is not None
                first.append(key[0])
                if deleted:
                    connection.execute(mixed.delete())
            cleaner.clean()
        assert first[0] == first[1]

    def test_a_table_outside_the_metadata_is_left_alone(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        outsider = self.outsider()
        with engine.begin() as connection:
            connection.execute(outsider.insert().values(id=7))
        self.fill(engine, tables)
        cleaner.clean()
        with engine.connect() as connection:
            assert connection.execute(select(outsider.c.id)).scalars().all() == [7]

    @pytest.mark.parametrize("excluded", ["contract_note", "contract_owner"])
    def test_an_excluded_table_keeps_its_rows(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData, excluded: str
    ) -> None:
        self.fill(engine, tables)
        before = self.counts(engine, tables)
        refused = None
        try:
            cleaner.using(exclude=[excluded]).clean()
        except (ExcludedTableError, StrategyRefusedError) as error:
            refused = error
        if refused is not None:
            assert refused.remedy
            assert self.counts(engine, tables) == before
        assert self.counts(engine, tables)[excluded] == before[excluded]

    def test_only_the_named_tables_are_cleaned(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        self.fill(engine, tables)
        before = self.counts(engine, tables)
        cleaner.using(only=["contract_note", "contract Mixed.Case"]).clean()
        after = self.counts(engine, tables)
        assert after == {**before, "contract_note": 0, "contract Mixed.Case": 0}

    def test_captured_rows_come_back(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        owner, note = tables.tables["contract_owner"], tables.tables["contract_note"]
        self.fill(engine, tables)
        with engine.connect() as connection:
            before = {
                name: sorted(map(tuple, connection.execute(select(table))), key=repr)
                for name, table in tables.tables.items()
            }
        try:
            cleaner.capture()
        except StrategyRefusedError as refusal:
            pytest.skip(f"refused: {refusal.what}")
        for _ in range(2):
            with engine.begin() as connection:
                connection.execute(owner.update().values(name="changed"))
                connection.execute(note.delete())
                connection.execute(owner.insert().values(name="added"))
            assert cleaner.diff()
            cleaner.clean()
            cleaner.verify()
            with engine.connect() as connection:
                for name, table in tables.tables.items():
                    rows = sorted(map(tuple, connection.execute(select(table))), key=repr)
                    assert rows == before[name], name
        cleaner.release()
        cleaner.clean()
        assert set(self.counts(engine, tables).values()) == {0}

    def test_planning_changes_nothing_and_gives_the_same_each_time(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        self.fill(engine, tables)
        before = self.counts(engine, tables)
        assert cleaner.plan() == cleaner.plan()
        assert self.counts(engine, tables) == before
        assert set(cleaner.plan().tables) == set(tables.tables)

    def test_the_schema_is_the_same_afterwards(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        before = self.schema(engine, tables)
        self.fill(engine, tables)
        cleaner.clean()
        assert self.schema(engine, tables) == before

    def test_a_table_that_comes_later_is_cleaned_too(
        self, cleaner: Cleaner, engine: Engine, tables: MetaData
    ) -> None:
        cleaner.clean()
        late = Table("contract_late", tables, self.numbered("contract_late"))
        late.create(engine)
        with engine.begin() as connection:
            connection.execute(late.insert())
        cleaner.clean()
        assert self.counts(engine, tables)["contract_late"] == 0

    def test_an_error_names_a_remedy(self, engine: Engine, tables: MetaData) -> None:
        with pytest.raises(CleanerError) as raised:
            Cleaner(engine, tables, strategy=self.strategy, only=["contract_odrer"]).clean()
        assert raised.value.remedy
