"""What an operator sees of a model whose answers change their length."""

import logging
from collections.abc import AsyncGenerator

import aiohttp
import pytest

from driftsched.core.events import DriftDetected
from driftsched.core.model import Request, Usage
from driftsched.core.protocols import Chunk, Saturation
from support.servers import chat, live_gateway, unasked


class Lengthening:
    """Answers with about 20 tokens thirty times, and with eight times as many from then on."""

    name = "lengthening"

    def __init__(self) -> None:
        self._num_answers = 0

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        self._num_answers += 1
        tokens = (20 + self._num_answers % 5) * (1 if self._num_answers <= 30 else 8)
        event = b'data: {"choices":[{"index":0,"delta":{"content":"x"},"finish_reason":"stop"}]}\n\n'
        yield Chunk(event, tokens, Usage(10, tokens), finish_reason="stop")

    async def saturation(self) -> Saturation:
        return Saturation(0.0)

    async def close(self) -> None:
        pass


async def test_a_model_whose_answers_become_longer_is_logged_and_exported(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with live_gateway(Lengthening(), estimator="adaptive", catalogue=unasked()) as house:
        for number in range(60):
            call = chat(f"What is a queue, in {number} ways?")
            async with http.post(f"{house.url}/v1/chat/completions", json=call) as response:
                assert 200 == response.status
                await response.read()
        detected = house.of(DriftDetected)
        async with http.get(f"{house.url}/metrics") as response:
            text = await response.text()
    kind = f'{{category="{detected[0].category}",model="simulated"}}'
    assert detected[0].factor > 2
    assert f"driftsched_drifts_detected_total{kind} {len(detected)}.0" in text
    assert f"driftsched_prediction_coverage_ratio{kind}" in text
    assert len(detected) == sum(message.startswith("drift detected") for message in caplog.messages)
