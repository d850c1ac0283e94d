from collections.abc import AsyncIterator

import aiohttp
import pytest
from openai import AsyncOpenAI

from support.servers import Connect, House


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    """A plain HTTP client."""
    async with aiohttp.ClientSession() as session:
        yield session


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Makes official clients that neither retry nor wait for ever."""
    clients: list[AsyncOpenAI] = []

    def made(house: House) -> AsyncOpenAI:
        clients.append(AsyncOpenAI(base_url=f"{house.url}/v1", api_key="sk-test", max_retries=0, timeout=20))
        return clients[-1]

    yield made
    for client in clients:
        await client.close()
