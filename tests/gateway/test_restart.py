"""What was learnt outlives the process that learnt it."""

import asyncio
import sqlite3
from contextlib import closing
from pathlib import Path

import aiohttp
import msgspec
import pytest
import yaml

from driftsched.engines.mock import MockServer
from support.processes import running
from support.servers import chat, serving, simulated, until

pytestmark = pytest.mark.e2e

QUESTION = "Summarize why people keep bees."
NUM_ANSWERS = 12
SPEED = 40.0
"""Of the engine: slow enough that a client can leave an answer half-read."""


async def learn(url: str) -> None:
    """Let the gateway see whole answers, shorter than it expects at first."""
    async with aiohttp.ClientSession() as http:

        async def ask(number: int) -> None:
            body = chat(f"{QUESTION} {number}", max_tokens=600)
            async with http.post(f"{url}/v1/chat/completions", json=body) as response:
                assert 200 == response.status
                await response.read()

        await asyncio.gather(*(ask(number) for number in range(NUM_ANSWERS)))


async def predicted(url: str) -> int:
    """Completion tokens expected for the question, of whose answer too little is read to teach anything."""
    async with (
        aiohttp.ClientSession() as http,
        http.post(f"{url}/v1/chat/completions", json=chat(QUESTION, stream=True)) as response,
    ):
        return int(response.headers["x-driftsched-predicted-tokens"])


def num_learnt(path: Path) -> int:
    """Answers that the estimator of the file knows of."""
    if not path.exists():
        return 0
    with closing(sqlite3.connect(path)) as connection:
        try:
            rows = connection.execute("SELECT state FROM states WHERE name = 'estimator calibrated'").fetchall()
        except sqlite3.OperationalError:  # it is being made
            return 0
    return sum(row[2] for (state,) in rows for row in msgspec.msgpack.decode(state)["rows"])


async def test_a_prediction_is_the_same_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "new" / "state.sqlite"
    async with serving(MockServer(simulated(speed=SPEED))) as engine_url:
        serve = ("serve", "--estimator", "calibrated", "--engine", engine_url)
        async with running(*serve, "--state", str(path)) as (process, url):
            untaught = await predicted(url)
            await learn(url)
            taught = await predicted(url)
            process.terminate()
            assert 0 == await process.wait()
        assert NUM_ANSWERS == num_learnt(path)
        async with running(*serve, "--state", str(path)) as (_, url):
            assert taught == await predicted(url) != untaught
        config = tmp_path / "driftsched.yaml"
        config.write_text(yaml.safe_dump({"state": {"path": str(path)}}))
        async with running(*serve, "--config", str(config), "--no-state") as (_, url):
            assert untaught == await predicted(url)


async def test_a_kill_loses_nothing_that_was_saved(tmp_path: Path) -> None:
    path, config = tmp_path / "state.sqlite", tmp_path / "driftsched.yaml"
    async with serving(MockServer(simulated(speed=SPEED))) as engine_url:
        settings = {"estimator": {"name": "calibrated"}, "state": {"path": str(path), "save_seconds": 0.05}}
        config.write_text(yaml.safe_dump({"engines": [{"url": engine_url}], **settings}))
        async with running("serve", "--config", str(config)) as (process, url):
            await learn(url)
            taught = await predicted(url)
            await until(lambda: num_learnt(path) == NUM_ANSWERS)
            process.kill()
            await process.wait()
        async with running("serve", "--config", str(config)) as (_, url):
            assert taught == await predicted(url)


async def test_a_gateway_serves_although_it_can_keep_nothing(tmp_path: Path) -> None:
    (tmp_path / "in the way").touch()
    async with (
        serving(MockServer(simulated(speed=SPEED))) as engine_url,
        running("serve", "--engine", engine_url, "--state", str(tmp_path / "in the way" / "state")) as (
            process,
            url,
        ),
    ):
        assert 0 < await predicted(url)
        process.terminate()
        assert 0 == await process.wait()
