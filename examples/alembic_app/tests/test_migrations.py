from decimal import Decimal

import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import inspect, text

from billing import engine, offer, prices

pytestmark = pytest.mark.cleaner(strategy="recreate")  # these tests change the schema


def test_the_models_are_what_the_migrations_make(alembic: Config) -> None:
    command.check(alembic)


def test_the_migrations_go_down_and_up_again(alembic: Config) -> None:
    command.downgrade(alembic, "base")
    assert inspect(engine).get_table_names() == ["alembic_version"]
    command.upgrade(alembic, "head")
    assert prices() == {"free": 0, "team": 20}


def test_prices_survive_that_they_have_cents(alembic: Config) -> None:
    offer("company", Decimal(99))
    command.downgrade(alembic, "002")
    with engine.connect() as connection:
        assert connection.scalars(text("SELECT price FROM plan ORDER BY id")).all() == [0, 20, 99]
    command.upgrade(alembic, "head")
    assert prices() == {"free": 0, "team": 20, "company": 99}
