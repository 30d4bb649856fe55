"""Subscriptions to plans, of which migrations bring the first ones."""

import os
from decimal import Decimal

from sqlalchemy import ForeignKey, Numeric, create_engine, delete, func, select
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, sessionmaker

engine = create_engine(os.environ["DATABASE_URL"])
new_session = sessionmaker(engine)


class Base(DeclarativeBase): ...


class Plan(Base):
    __tablename__ = "plan"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    price: Mapped[Decimal] = mapped_column(Numeric(8, 2))


class Subscription(Base):
    __tablename__ = "subscription"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(unique=True)
    plan_id: Mapped[int] = mapped_column(ForeignKey(Plan.id))


def prices() -> dict[str, Decimal]:
    with new_session() as session:
        return dict(session.execute(select(Plan.name, Plan.price)).all())


def offer(name: str, price: Decimal) -> int:
    with new_session.begin() as session:
        plan = Plan(name=name, price=price)
        session.add(plan)
        session.flush()
        return plan.id


def raise_prices(by: Decimal) -> None:
    with new_session.begin() as session:
        for plan in session.scalars(select(Plan)):
            plan.price += by


def withdraw(name: str) -> None:
    """Its subscribers leave with it."""
    with new_session.begin() as session:
        plan = session.scalars(select(Plan).where(Plan.name == name)).one()
        session.execute(delete(Subscription).where(Subscription.plan_id == plan.id))
        session.delete(plan)


def subscribe(email: str, name: str) -> int:
    with new_session.begin() as session:
        plan = session.scalars(select(Plan).where(Plan.name == name)).one()
        subscription = Subscription(email=email, plan_id=plan.id)
        session.add(subscription)
        session.flush()
        return subscription.id


def income() -> Decimal:
    joined = select(func.coalesce(func.sum(Plan.price), 0)).join(Subscription)
    with new_session() as session:
        return session.scalars(joined).one()
