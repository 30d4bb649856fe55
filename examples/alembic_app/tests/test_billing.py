from decimal import Decimal

import pytest
from sqlalchemy.exc import IntegrityError, NoResultFound

from billing import income, offer, prices, raise_prices, subscribe, withdraw

SEEDED = {"free": Decimal(0), "team": Decimal(20)}


def test_there_are_two_plans_and_no_income_at_first() -> None:
    assert prices() == SEEDED
    assert income() == 0


@pytest.mark.parametrize("name", ["company", "family"])
def test_a_new_plan_comes_after_those_of_the_migration(name: str) -> None:
    assert offer(name, Decimal("9.90")) == 3
    assert prices() == {**SEEDED, name: Decimal("9.90")}


def test_a_plan_is_offered_once() -> None:
    with pytest.raises(IntegrityError):
        offer("team", Decimal(1))


@pytest.mark.parametrize("by", ["0.50", "1"])
def test_prices_are_raised(by: str) -> None:
    raise_prices(Decimal(by))
    assert prices() == {name: price + Decimal(by) for name, price in SEEDED.items()}


@pytest.mark.parametrize("name", ["free", "team"])
def test_a_plan_of_the_migration_is_withdrawn(name: str) -> None:
    subscribe("ann@example.org", name)
    withdraw(name)
    assert prices() == {other: SEEDED[other] for other in SEEDED if other != name}
    assert income() == 0


@pytest.mark.parametrize("email", ["ann@example.org", "bob@example.org"])
def test_the_first_subscription_has_number_one(email: str) -> None:
    assert subscribe(email, "team") == 1
    assert income() == 20


def test_one_subscribes_once() -> None:
    subscribe("ann@example.org", "free")
    with pytest.raises(IntegrityError):
        subscribe("ann@example.org", "team")
    assert income() == 0


def test_there_is_no_subscription_without_a_plan() -> None:
    with pytest.raises(NoResultFound):
        subscribe("ann@example.org", "company")
