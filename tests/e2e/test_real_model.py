"""The main job on a real model: llama.cpp on the CPU behind the gateway, asked by the official client."""

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path

import aiohttp
import pytest
import yaml
from openai import AsyncOpenAI
from openai.types.chat import ChatCompletion, ChatCompletionChunk, ChatCompletionMessageParam

from driftsched.bench.processes import running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None and not os.environ.get("CI"),
        reason="needs `pip install 'driftsched[local]'`",
    ),
]

SLOTS = 4
TENANTS = {"acme": "premium", "globex": "standard", "initech": "batch"}
QUESTIONS = (
    ("In one sentence: what is a lighthouse for?", 24),
    ("Summarize why people keep bees.", 40),
    ("Write code that adds two numbers.", 56),
    ("Write a detailed report on night trains.", 72),
)
NUM_REQUESTS = 44


class Stack:
    """A real engine and a gateway in front of it, as processes of their own."""

    def __init__(self, engine_url: str, url: str, http: aiohttp.ClientSession, client: AsyncOpenAI) -> None:
        self.engine_url = engine_url
        self.url = url
        self._http = http
        self.client = client

    async def model(self) -> str:
        """The model that the engine serves."""
        return (await self.client.models.list()).data[0].id

    async def metric(self, name: str, url: str | None = None) -> float:
        """Sum of a metric over its labels."""
        text = await self._get(f"{url or self.url}/metrics")
        return sum(float(value) for value in re.findall(rf"^{name}(?:{{[^}}]*}})? (\S+)$", text, re.MULTILINE))

    async def busy_slots(self) -> int:
        """Slots in which the engine is generating."""
        async with self._http.get(f"{self.engine_url}/slots") as response:
            return sum(slot["is_processing"] for slot in await response.json())

    async def biases(self) -> list[float]:
        """Corrections in force, one for each category that was learnt."""
        text = await self._get(f"{self.url}/metrics")
        return [
            float(value)
            for value in re.findall(r"^driftsched_prediction_bias_ratio{.*} (\S+)$", text, re.MULTILINE)
        ]

    async def _get(self, url: str) -> str:
        async with self._http.get(url) as response:
            return await response.text()


@asynccontextmanager
async def stack(folder: Path) -> AsyncIterator[Stack]:
    async with running("local", "--slots", str(SLOTS), "--port", "0", start_seconds=240) as engine_url:
        settings = {
            "engines": [{"url": engine_url}],
            "tenants": [{"id": name, "tier": tier} for name, tier in TENANTS.items()],
        }
        path = folder / "driftsched.yaml"
        path.write_text(yaml.safe_dump(settings))
        async with (
            running("serve", "--no-state", "--config", str(path), "--port", "0") as url,
            aiohttp.ClientSession() as http,
            AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120) as client,
        ):
            yield Stack(engine_url, url, http, client)


async def until(condition: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    """Wait for something that another process does."""
    async with asyncio.timeout(seconds):
        while not await condition():
            await asyncio.sleep(0.02)


async def ask(client: AsyncOpenAI, model: str, number: int) -> ChatCompletion | list[ChatCompletionChunk]:
    """One request of the mix: every other one streams, tenants and questions take turns."""
    question, max_tokens = QUESTIONS[number % len(QUESTIONS)]
    messages: list[ChatCompletionMessageParam] = [{"role": "user", "content": question}]
    user = list(TENANTS)[number % len(TENANTS)]
    create = client.chat.completions.create
    if number % 2:
        return await create(model=model, messages=messages, max_tokens=max_tokens, user=user, seed=number)
    stream = await create(
        model=model,
        messages=messages,
        max_tokens=max_tokens,
        user=user,
        seed=number,
        stream=True,
        stream_options={"include_usage": True},
    )
    return [chunk async for chunk in stream]


def check_whole(answer: ChatCompletion) -> int:
    """A complete document whose usage is the engine's own count. Returns its completion tokens."""
    assert answer.object == "chat.completion"
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].message.content
    assert answer.choices[0].finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert engine_count(answer) == (answer.usage.prompt_tokens, answer.usage.completion_tokens)
    return answer.usage.completion_tokens


def check_stream(chunks: list[ChatCompletionChunk]) -> int:
    """A complete stream whose usage is the engine's own count. Returns its completion tokens."""
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] in ("stop", "length")
    last = chunks[-1]
    assert last.choices == []
    assert last.usage is not None
    assert engine_count(last) == (last.usage.prompt_tokens, last.usage.completion_tokens)
    return last.usage.completion_tokens


def engine_count(said: ChatCompletion | ChatCompletionChunk) -> tuple[int, int]:
    """llama.cpp's second account of the same answer, in its `timings`."""
    timings = (said.model_extra or {})["timings"]
    return timings["prompt_n"], timings["predicted_n"]


async def test_a_real_model_serves_three_tenants_through_the_gateway(tmp_path: Path) -> None:
    async with stack(tmp_path) as running_stack:
        model = await running_stack.model()
        before = await running_stack.metric("llamacpp:tokens_predicted_total", running_stack.engine_url)

        answers = await asyncio.gather(*(ask(running_stack.client, model, n) for n in range(NUM_REQUESTS)))

        counts = [check_stream(a) if isinstance(a, list) else check_whole(a) for a in answers]
        after = await running_stack.metric("llamacpp:tokens_predicted_total", running_stack.engine_url)
        assert after - before == sum(counts)
        assert await running_stack.metric("driftsched_completion_tokens_total") == sum(counts)
        assert await running_stack.metric("driftsched_requests_submitted_total") == NUM_REQUESTS
        assert await running_stack.metric("driftsched_requests_finished_total") == NUM_REQUESTS
        biases = await running_stack.biases()
        assert biases, "nothing was learnt"  # answers that were cut off say too little: not every category is there
        assert all(bias != 1.0 for bias in biases)
        assert await running_stack.metric("driftsched_inflight_requests") == 0
        assert await running_stack.metric("driftsched_waiting_requests") == 0
        assert await running_stack.busy_slots() == 0


async def test_a_client_that_leaves_mid_stream_frees_its_slot_in_the_engine(tmp_path: Path) -> None:
    async with stack(tmp_path) as running_stack:
        model = await running_stack.model()
        stream = await running_stack.client.chat.completions.create(
            model=model,
            messages=[{"role": "user", "content": "Count upwards from one, without an end."}],
            max_tokens=1500,
            stream=True,
            extra_body={"ignore_eos": True},
        )
        await anext(aiter(stream))
        assert await running_stack.busy_slots() == 1

        await stream.close()

        async def slot_is_free() -> bool:
            return await running_stack.busy_slots() == 0

        async def account_is_settled() -> bool:
            return await running_stack.metric("driftsched_requests_evicted_total") == 1

        await until(slot_is_free)
        await until(account_is_settled)
        assert await running_stack.metric("driftsched_inflight_requests") == 0


async def test_a_client_that_does_not_stream_and_leaves_frees_its_slot_too(tmp_path: Path) -> None:
    """The engine would not notice this one by itself while it serves others: the gateway streams for it."""
    async with stack(tmp_path) as running_stack:
        model = await running_stack.model()
        asking = asyncio.create_task(
            running_stack.client.chat.completions.create(
                model=model,
                messages=[{"role": "user", "content": "Count upwards from one, without an end."}],
                max_tokens=1500,
                extra_body={"ignore_eos": True},
            )
        )

        async def slot_is_busy() -> bool:
            return await running_stack.busy_slots() == 1

        async def slot_is_free() -> bool:
            return await running_stack.busy_slots() == 0

        await until(slot_is_busy)
        asking.cancel()
        await until(slot_is_free)
        await asyncio.gather(asking, return_exceptions=True)
