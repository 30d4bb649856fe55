import pytest
from support.database import Database, STRATEGIES


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_it(database: Database, strategy: str) -> None:
    database.execute("create table a(id serial primary key); insert into a default values")
    with database.cleaner(strategy=strategy) as cleaner:
        assert cleaner.clean().tables == ("a",)
        cleaner.verify()
    assert database.count("a") == 0
