"""A gateway that finds out how much its engine holds, as a process of its own."""

import asyncio
from pathlib import Path

import aiohttp
import pytest

from support.processes import running
from support.servers import chat

pytestmark = pytest.mark.e2e

BATCH = 4
LIMIT = "driftsched_engine_limit_requests"


async def limit_of(http: aiohttp.ClientSession, url: str) -> float:
    async with http.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return float(next(line for line in lines if line.startswith(LIMIT)).split()[-1])


async def ask(http: aiohttp.ClientSession, url: str) -> int:
    async with http.post(f"{url}/v1/chat/completions", json=chat(max_tokens=300, ignore_eos=True)) as response:
        await response.read()
        return response.status


async def test_the_limit_comes_down_to_the_batch_under_load(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    config = tmp_path / "driftsched.yaml"
    async with running("mock", "--slots", str(BATCH), "--speed", "40") as (_, engine_url):
        config.write_text(f"engines: [{{url: '{engine_url}', kind: vllm, scrape_seconds: 0.1}}]", encoding="utf-8")
        async with running("serve", "--no-state", "--config", str(config)) as (_, url), asyncio.timeout(60):
            assert 32 == await limit_of(http, url)
            while await limit_of(http, url) > BATCH + 2:
                assert {200} == set(await asyncio.gather(*(ask(http, url) for _ in range(40))))
            assert await limit_of(http, url) >= BATCH


async def test_an_engine_that_says_how_much_it_serves_is_given_so_much(http: aiohttp.ClientSession) -> None:
    async with (
        running("mock", "--slots", str(BATCH)) as (_, engine_url),
        running("serve", "--no-state", "--engine", engine_url) as (_, url),
    ):
        assert BATCH == await limit_of(http, url)
