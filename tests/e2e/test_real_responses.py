"""The Responses API, and what is passed through, on a real model: llama.cpp on the CPU behind the gateway."""

import os
from importlib.util import find_spec

import aiohttp
import pytest
from openai import AsyncOpenAI

from driftsched.bench.processes import running

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        find_spec("xllamacpp") is None and not os.environ.get("CI"),
        reason="needs `pip install 'driftsched[local]'`",
    ),
]


async def test_a_real_model_responds_and_counts_tokens_through_the_gateway() -> None:
    async with (
        running("local", "--slots", "2", "--port", "0", start_seconds=240) as engine_url,
        running("serve", "--no-state", "--engine", engine_url, "--port", "0") as url,
        aiohttp.ClientSession() as http,
        AsyncOpenAI(base_url=f"{url}/v1", api_key="unused", max_retries=0, timeout=120) as client,
    ):
        model = (await client.models.list()).data[0].id
        question = "In one sentence: what is a lighthouse for?"
        whole = await client.responses.create(
            model=model, instructions="Be brief.", input=question, max_output_tokens=16, temperature=0
        )
        stream = await client.responses.create(
            model=model, instructions="Be brief.", input=question, max_output_tokens=16, temperature=0, stream=True
        )
        events = [event async for event in stream]
        async with client.responses.stream(model=model, input=question, max_output_tokens=4) as helped:
            kinds = [event.type async for event in helped]
        async with http.post(f"{url}/tokenize", json={"content": question}) as response:
            tokens = (await response.json())["tokens"]
    assert whole.output_text
    assert whole.usage is not None
    assert 0 < whole.usage.output_tokens <= 16
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert whole.output_text == text
    assert events[0].type == "response.created"
    assert events[-1].type in ("response.completed", "response.incomplete")
    assert kinds.count("response.output_text.delta") == 4
    assert kinds[-1] == "response.incomplete"
    assert len(tokens) > 5
