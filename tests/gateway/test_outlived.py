"""What the gateway tells an estimator of answers that become longer than was promised."""

from collections.abc import AsyncGenerator

import pytest

from driftsched.core.model import Estimate, Request, Usage
from driftsched.core.protocols import Chunk, Saturation
from driftsched.gateway.dispatcher import Dispatcher, MonotonicClock
from support.scheduling import CategoryMeans, request_at, scheduler_of


class Listening(CategoryMeans):
    """Promises a length, and notes which answers became longer."""

    def __init__(self, promised: float) -> None:
        self._promised = promised
        self.outlived: list[int] = []

    def predict(self, request: Request) -> Estimate:
        return Estimate(1.0, q50=1.0, q80=1.0, q90=self._promised)

    def outlive(self, request: Request, estimate: Estimate, produced: int) -> float | None:
        self.outlived.append(produced)
        return None


class Streaming:
    """Answers with 100 tokens, so many in a chunk."""

    name = "streaming"

    def __init__(self, chunk_tokens: int) -> None:
        self._chunk_tokens = chunk_tokens

    async def generate(self, request: Request) -> AsyncGenerator[Chunk, None]:
        for tokens in range(self._chunk_tokens, 101, self._chunk_tokens):
            yield Chunk(b"", tokens)
        yield Chunk(b"", 100, Usage(10, 100), finish_reason="stop")

    async def saturation(self) -> Saturation:
        return Saturation(0.0)

    async def close(self) -> None:
        pass


@pytest.mark.parametrize(
    ("promised", "chunk_tokens", "told"),
    [
        (80.0, 1, [81]),
        (80.9, 1, [81]),
        (30.5, 1, [31]),
        (64.0, 1, [65]),
        (80.0, 7, [84]),
        (0.5, 1, [1]),
        (99.0, 1, [100]),
        (100.0, 1, []),
    ],
)
async def test_an_answer_is_told_by_the_first_chunk_that_exceeds_the_promise(
    promised: float, chunk_tokens: int, told: list[int]
) -> None:
    estimator = Listening(promised)
    dispatcher = Dispatcher(scheduler_of(estimator=estimator), Streaming(chunk_tokens), MonotonicClock())
    async with dispatcher.turn(request_at(0.0, "a"), lambda: False) as turn:
        async for _ in turn.answer():
            pass
    assert told == estimator.outlived
