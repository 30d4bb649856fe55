import asyncio

import pytest
from httpx import AsyncClient
from sqlalchemy import select

from cinema import Mail, Show, new_session


async def test_there_are_no_shows_at_first(client: AsyncClient) -> None:
    assert (await client.get("/shows")).json() == {}


@pytest.mark.parametrize("title", ["Alien", "Brazil", "Casablanca"])
async def test_the_first_show_has_number_one(client: AsyncClient, title: str) -> None:
    answer = await client.post("/shows", json={"title": title})
    assert (answer.status_code, answer.json()) == (201, {"id": 1})
    assert (await client.get("/shows")).json() == {title: 0}


async def test_a_show_is_announced_once(client: AsyncClient, show: int) -> None:
    assert (await client.post("/shows", json={"title": "Alien"})).status_code == 409


@pytest.mark.parametrize("seat", [1, 7])
async def test_a_seat_is_booked(client: AsyncClient, show: int, seat: int) -> None:
    answer = await client.post(f"/shows/{show}/bookings", json={"seat": seat})
    assert (answer.status_code, answer.json()) == (201, {"id": 1})
    assert (await client.get("/shows")).json() == {"Alien": 1}


async def test_of_ten_guests_at_once_one_gets_the_seat(client: AsyncClient, show: int) -> None:
    book = [client.post(f"/shows/{show}/bookings", json={"seat": 1}) for _ in range(10)]
    answers = [answer.status_code for answer in await asyncio.gather(*book)]
    assert sorted(answers) == [201] + 9 * [409]
    assert (await client.get("/shows")).json() == {"Alien": 1}


async def test_there_is_no_seat_without_a_show(client: AsyncClient) -> None:
    assert (await client.post("/shows/1/bookings", json={"seat": 1})).status_code == 409


async def test_a_guest_gets_one_mail(client: AsyncClient, show: int) -> None:
    await client.post(f"/shows/{show}/bookings", json={"seat": 3})
    async with new_session() as database:
        assert (await database.scalars(select(Mail.text))).all() == ["Seat 3 is yours."]


async def test_the_tests_own_sessions_commit_too(client: AsyncClient) -> None:
    async with new_session.begin() as database:
        database.add_all([Show(title="Alien"), Show(title="Brazil")])
    assert (await client.get("/shows")).json() == {"Alien": 0, "Brazil": 0}
