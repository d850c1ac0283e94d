"""What the real model on the CPU does: tokens per second by number of streams, and lengths of its answers.

    python benchmarks/local_model.py [--threads 1] [--repeats 3] [--topics 16] [--json FILE]

Starts `driftsched local` (the extra `local`; the weights are fetched once) with eight slots. Speed: 1, 2, 4 and 8
answers of exactly 96 tokens at the same time, to prompts of some 40 tokens; tokens per second of all together, and
of each while it is decoded, as llama-server states it: medians over the repeats, in which the numbers of streams
take turns. Lengths: four kinds of prompt about each topic, temperature 0.7, at most 512 tokens, with fixed
seeds, four at a time. Speeds are elapsed times: whatever else runs on the machine is in them.
"""

import argparse
import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Any, NamedTuple

import aiohttp

from driftsched.bench.processes import running
from driftsched.bench.prompts import TOPICS
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit

SLOTS = 8
STREAMS = (1, 2, 4, 8)
SPEED_TOKENS = 96
MAX_TOKENS = 512
LENGTH_STREAMS = 4
SPEED_PROMPT = (
    "Write a story about {topic}. Begin with the weather of the day, then tell who was there and what they "
    "wanted, and let it end well for everybody who deserves it."
)
KINDS = {
    "one sentence": "In one sentence, what is {topic}?",
    "summary": "Summarize the key ideas of {topic}.",
    "question": "What is {topic} and why is it important?",
    "report": "Write a detailed report on {topic}.",
}


class Speed(NamedTuple):
    streams: int
    tokens_per_second: float
    """Of all streams together, from the first request to the last answer."""
    tokens_per_second_each: float
    """Of one stream while it is decoded."""


class Lengths(NamedTuple):
    kind: str
    answers: int
    mean_tokens: float
    median_tokens: float
    cut_off: float
    """Share of the answers that ran into the limit, 0 .. 1."""


class Model:
    """The chats of a local model."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = f"{url}/v1/chat/completions"

    async def answer(self, prompt: str, seed: int, **options: object) -> dict[str, Any]:
        body = {"messages": [{"role": "user", "content": prompt}], "temperature": 0.7, "seed": seed, **options}
        async with self._session.post(self._url, json=body, raise_for_status=True) as response:
            document: dict[str, Any] = await response.json()
            return document


async def measure(threads: int, repeats: int, topics: Sequence[str]) -> tuple[list[Speed], list[Lengths]]:
    server = ("local", "--port", "0", "--slots", str(SLOTS), "--threads", str(threads))
    timeout = aiohttp.ClientTimeout(total=None)
    async with running(*server, start_seconds=600) as url, aiohttp.ClientSession(timeout=timeout) as session:
        model = Model(session, url)
        await _speed(model, 1)  # the first answer reads the weights
        rounds = [[await _speed(model, streams) for streams in STREAMS] for _ in range(repeats)]
        speeds = [
            Speed(streams, *(median(column) for column in zip(*figures, strict=True)))
            for streams, figures in zip(STREAMS, zip(*rounds, strict=True), strict=True)
        ]
        return speeds, [await _lengths(model, kind, topics) for kind in KINDS]


async def _speed(model: Model, streams: int) -> tuple[float, float]:
    prompts = [SPEED_PROMPT.format(topic=topic) for topic in TOPICS[:streams]]
    started_at = perf_counter()
    answers = await asyncio.gather(
        *(
            model.answer(prompt, seed, max_tokens=SPEED_TOKENS, ignore_eos=True)
            for seed, prompt in enumerate(prompts)
        )
    )
    seconds = perf_counter() - started_at
    tokens = sum(answer["usage"]["completion_tokens"] for answer in answers)
    return tokens / seconds, mean(answer["timings"]["predicted_per_second"] for answer in answers)


async def _lengths(model: Model, kind: str, topics: Sequence[str]) -> Lengths:
    room = asyncio.Semaphore(LENGTH_STREAMS)

    async def choice(seed: int, topic: str) -> tuple[int, bool]:
        async with room:
            answer = await model.answer(KINDS[kind].format(topic=topic), seed, max_tokens=MAX_TOKENS)
        return answer["usage"]["completion_tokens"], answer["choices"][0]["finish_reason"] == "length"

    answers = await asyncio.gather(*(choice(seed, topic) for seed, topic in enumerate(topics)))
    tokens, cut = zip(*answers, strict=True)
    return Lengths(kind, len(tokens), mean(tokens), median(tokens), mean(cut))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--topics", type=int, default=16, choices=range(1, len(TOPICS) + 1), metavar="N")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    before = capture_conditions()
    speeds, lengths = asyncio.run(measure(arguments.threads, arguments.repeats, TOPICS[: arguments.topics]))
    print("streams   tokens/s together   of each")
    for speed in speeds:
        print(f"{speed.streams:7}{speed.tokens_per_second:20.0f}{speed.tokens_per_second_each:10.0f}")
    print("kind            answers   mean   median   cut off")
    for kind in lengths:
        lengths_text = f"{kind.mean_tokens:7.0f}{kind.median_tokens:9.0f}{kind.cut_off:10.0%}"
        print(f"{kind.kind:16}{kind.answers:7}{lengths_text}")
    conditions = {"commit": source_commit(), **capture_environment(), **before}
    conditions |= {"threads": arguments.threads, "repeats": arguments.repeats, "topics": arguments.topics}
    print(json.dumps(conditions))
    if arguments.json:
        results = {"speeds": [row._asdict() for row in speeds], "lengths": [row._asdict() for row in lengths]}
        arguments.json.write_text(json.dumps({"conditions": conditions, **results}, indent=1) + "\n")


if __name__ == "__main__":
    main()
