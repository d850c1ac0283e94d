"""A gateway that is told to stop, as a process of its own."""

import asyncio
import signal
from asyncio.subprocess import Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest

from support.processes import running, signal_if_alive
from support.servers import chat, until

pytestmark = pytest.mark.e2e

LONG = {"max_tokens": 400, "ignore_eos": True}


@asynccontextmanager
async def running_pair(speed: str) -> AsyncIterator[tuple[Process, str]]:
    """A gateway in front of a simulated engine, of which it uses one slot; the gateway's process and URL."""
    async with (
        running("mock", "--slots", "1", "--speed", speed) as (_, engine_url),
        running("serve", "--no-state", "--max-inflight", "1", "--engine", engine_url) as gateway,
    ):
        yield gateway


async def text_of(http: aiohttp.ClientSession, url: str, **fields: object) -> tuple[int, str]:
    async with http.post(f"{url}/v1/chat/completions", json=chat(**fields)) as response:
        return response.status, await response.text()


async def number_of(http: aiohttp.ClientSession, url: str, metric: str) -> int:
    async with http.get(f"{url}/metrics") as response:
        lines = (await response.text()).splitlines()
    return round(float(next(line for line in lines if line.startswith(f"{metric} ")).split()[1]))


async def saturated(http: aiohttp.ClientSession, url: str, *, waiting: int) -> None:
    """Wait until one request is served and `waiting` others wait."""
    async with asyncio.timeout(20):
        while (1, waiting) != (
            await number_of(http, url, "driftsched_inflight_requests"),
            await number_of(http, url, "driftsched_waiting_requests"),
        ):
            pass


async def refuses_connections(url: str) -> bool:
    host, port = url.removeprefix("http://").split(":")
    try:
        _, writer = await asyncio.open_connection(host, int(port))
    except ConnectionError:  # refused, or reset on its way into a queue that is being closed
        return True
    writer.close()
    return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_all_that_was_admitted_is_answered_before_the_process_ends(
    http: aiohttp.ClientSession, number: signal.Signals
) -> None:
    async with running_pair("20") as (gateway, url):
        calls = [asyncio.create_task(text_of(http, url, stream=n % 2 == 0, **LONG)) for n in range(4)]
        await saturated(http, url, waiting=3)
        gateway.send_signal(number)
        async with asyncio.timeout(10):
            while not await refuses_connections(url):
                pass
        assert not all(call.done() for call in calls)
        answers = await asyncio.gather(*calls)
        assert 0 == await gateway.wait()
    assert [200] * 4 == [status for status, _ in answers]
    for n, (_, text) in enumerate(answers):
        assert ("[DONE]" in text) == (n % 2 == 0)
        assert '"finish_reason":"length"' in text


async def test_whoever_cannot_be_answered_in_time_is_told(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    config = tmp_path / "driftsched.yaml"
    async with running("mock", "--slots", "1", "--speed", "0.1") as (_, engine_url):
        config.write_text(f"engines: [{{url: '{engine_url}', max_inflight: 1}}]\nlimits: {{drain_seconds: 0.5}}\n")
        async with running("serve", "--no-state", "--config", str(config)) as (gateway, url):
            calls = [asyncio.create_task(text_of(http, url, stream=False, **LONG)) for _ in range(3)]
            await saturated(http, url, waiting=2)
            gateway.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*calls)
            assert 0 == await gateway.wait()
    assert [503] * 3 == [status for status, _ in answers]
    assert all('"code":"shutting_down"' in text for _, text in answers)


async def test_a_second_signal_ends_the_wait(http: aiohttp.ClientSession) -> None:
    async with running_pair("0.1") as (gateway, url):
        call = asyncio.create_task(text_of(http, url, stream=True, **LONG))
        await saturated(http, url, waiting=0)
        gateway.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            while not await refuses_connections(url):
                pass
        gateway.send_signal(signal.SIGTERM)
        assert 0 == await gateway.wait()
        await until(call.done)
        assert call.exception() or call.result()


async def test_a_simulated_engine_stops_when_told(http: aiohttp.ClientSession) -> None:
    async with running("mock", "--speed", "100") as (engine, url):
        assert 200 == (await text_of(http, url))[0]
        engine.send_signal(signal.SIGTERM)
        assert 0 == await engine.wait()


async def test_a_gateway_that_stops_is_not_ended_by_a_wish_to_read_its_configuration_anew(tmp_path: Path) -> None:
    config = tmp_path / "driftsched.yaml"
    async with running("mock", "--slots", "1") as (_, engine_url):
        config.write_text(f"engines: [{{url: '{engine_url}'}}]\n")
        async with running("serve", "--no-state", "--config", str(config)) as (gateway, _):
            gateway.terminate()
            while gateway.returncode is None:
                signal_if_alive(gateway, signal.SIGHUP)
                await asyncio.sleep(0.001)
            assert 0 == gateway.returncode
