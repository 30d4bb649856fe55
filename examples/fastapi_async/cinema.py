"""A cinema, in which a seat can be booked once."""

import os
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import BackgroundTasks, Depends, FastAPI, HTTPException
from pydantic import BaseModel
from sqlalchemy import ForeignKey, UniqueConstraint, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

engine = create_async_engine(os.environ["DATABASE_URL"])
new_session = async_sessionmaker(engine, expire_on_commit=False)
app = FastAPI()


class Base(DeclarativeBase): ...


class Show(Base):
    __tablename__ = "show"
    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(unique=True)


class Booking(Base):
    __tablename__ = "booking"
    __table_args__ = (UniqueConstraint("show_id", "seat"),)
    id: Mapped[int] = mapped_column(primary_key=True)
    show_id: Mapped[int] = mapped_column(ForeignKey(Show.id))
    seat: Mapped[int]


class Mail(Base):
    __tablename__ = "mail"
    id: Mapped[int] = mapped_column(primary_key=True)
    text: Mapped[str]


class NewShow(BaseModel):
    title: str


class NewBooking(BaseModel):
    seat: int


async def session() -> AsyncIterator[AsyncSession]:
    async with new_session() as session:
        yield session


Database = Annotated[AsyncSession, Depends(session)]


async def commit(database: AsyncSession, row: Show | Booking) -> dict[str, int]:
    database.add(row)
    try:
        await database.commit()
    except IntegrityError as error:
        raise HTTPException(409) from error
    return {"id": row.id}


async def send_mail(text: str) -> None:
    async with new_session.begin() as database:
        database.add(Mail(text=text))


@app.post("/shows", status_code=201)
async def announce(new: NewShow, database: Database) -> dict[str, int]:
    return await commit(database, Show(title=new.title))


@app.post("/shows/{show_id}/bookings", status_code=201)
async def book(
    show_id: int, new: NewBooking, database: Database, later: BackgroundTasks
) -> dict[str, int]:
    later.add_task(send_mail, f"Seat {new.seat} is yours.")
    return await commit(database, Booking(show_id=show_id, seat=new.seat))


@app.get("/shows")
async def shows(database: Database) -> dict[str, int]:
    booked = select(Show.title, func.count(Booking.id)).outerjoin(Booking).group_by(Show.title)
    return dict((await database.execute(booked)).all())
