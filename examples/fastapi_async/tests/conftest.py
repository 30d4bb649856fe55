from collections.abc import AsyncIterator

import pytest
from httpx import ASGITransport, AsyncClient

from cinema import app


@pytest.fixture
async def client() -> AsyncIterator[AsyncClient]:
    async with AsyncClient(transport=ASGITransport(app), base_url="http://cinema") as client:
        yield client


@pytest.fixture
async def show(client: AsyncClient) -> int:
    return (await client.post("/shows", json={"title": "Alien"})).json()["id"]
