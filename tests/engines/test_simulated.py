import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from math import inf
from typing import Any

import msgspec
import pytest

from driftsched.core.errors import EngineError
from driftsched.core.model import Request, Tenant, Tier, Usage
from driftsched.core.protocols import Chunk, Engine, Saturation
from driftsched.engines.lengths import Drift, LengthLaw
from driftsched.engines.model import BatchModel, Mode
from driftsched.engines.payload import Payload
from driftsched.engines.presets import Hardware
from driftsched.engines.simulated import SimulatedEngine, answer_text

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
TICK = Hardware(
    name="tick",
    host_ms=0,
    floor_ms=1000,
    g0_ms=0,
    g_us_per_token=0,
    r_us_per_sequence=0,
    kv_ns_per_token=0,
    api_ms=0,
    kv_tokens=10_000,
    source="measured",
    note="every iteration takes one second",
)


class ManualClock:
    """A clock that stands still until it is set, and counts how often it is read."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.reads = 0

    def now(self) -> float:
        self.reads += 1
        return self.seconds


class Classifier:
    """Knows reports, and tells a test when the engine has taken calls in."""

    def __init__(self) -> None:
        self._asked = asyncio.Semaphore(0)

    def __call__(self, text: str) -> str:
        self._asked.release()
        return "report" if "report" in text else "short_qa"

    async def calls(self, count: int) -> None:
        """Wait for that many calls more."""
        for _ in range(count):
            await self._asked.acquire()


@asynccontextmanager
async def running(
    *,
    classifier: Classifier | None = None,
    mode: Mode = "continuous",
    max_num_seqs: int = 4,
    kv_tokens: int | None = None,
    speed: float = 20_000.0,
    clock: ManualClock | None = None,
    cv: float = 0.0,
    drifts: tuple[Drift, ...] = (),
    hardware: Hardware = TICK,
) -> AsyncIterator[SimulatedEngine]:
    """An engine whose answers have 5 tokens, or 50 if they are reports."""
    engine = SimulatedEngine(
        BatchModel(hardware, mode=mode, max_num_seqs=max_num_seqs, kv_tokens=kv_tokens),
        LengthLaw({"short_qa": 5, "report": 50}, cv, seed=1, drifts=drifts),
        classifier or Classifier(),
        model_name="tiny",
        speed=speed,
        clock=clock,
    )
    try:
        async with asyncio.timeout(30):
            yield engine
    finally:
        await engine.close()


def ask(prompt: Any = "hello", endpoint: str = CHAT, **fields: Any) -> Request:
    said: dict[str, object] = (
        {"messages": [{"role": "user", "content": prompt}]} if endpoint == CHAT else {"prompt": prompt}
    )
    return ask_raw(msgspec.json.encode({"model": "tiny", **said, **fields}), endpoint)


def ask_raw(body: bytes, endpoint: str = CHAT) -> Request:
    payload = Payload(endpoint, body, stream=True, wants_usage=True)
    return Request("r", Tenant("t"), Tier.STANDARD, "tiny", 0.0, payload=payload)


async def answer(engine: SimulatedEngine, request: Request) -> list[Chunk]:
    return [chunk async for chunk in engine.generate(request)]


async def length(engine: SimulatedEngine, request: Request) -> int:
    return (await answer(engine, request))[-1].completion_tokens


def events(chunks: list[Chunk]) -> list[Any]:
    """The JSON of every event, `[DONE]` as the list with that name in it."""
    lines = b"".join(chunk.data for chunk in chunks).decode().split("\n\n")
    assert lines.pop() == ""
    return [
        msgspec.json.decode(line.removeprefix("data: ")) if "[DONE]" not in line else "[DONE]" for line in lines
    ]


# The wire


async def test_a_chat_answer_is_a_stream_of_openai_chunks() -> None:
    async with running() as engine:
        first, *contents, finish, usage, done = events(await answer(engine, ask()))

    assert {"role": "assistant", "content": ""} == first["choices"][0]["delta"]
    assert answer_text(0, 5) == "".join(event["choices"][0]["delta"]["content"] for event in contents)
    assert 5 == len(contents)
    assert ({}, "stop") == (finish["choices"][0]["delta"], finish["choices"][0]["finish_reason"])
    assert [] == usage["choices"]
    assert {"prompt_tokens": 9, "completion_tokens": 5, "total_tokens": 14} == usage["usage"]
    assert "[DONE]" == done
    heads = {(e["id"], e["object"], e["model"], type(e["created"])) for e in (first, *contents, finish, usage)}
    assert {("chatcmpl-simulated-1", "chat.completion.chunk", "tiny", int)} == heads


async def test_a_text_completion_has_its_own_form() -> None:
    async with running() as engine:
        *contents, finish, usage, _ = events(await answer(engine, ask(endpoint=TEXT)))

    assert answer_text(0, 5) == "".join(event["choices"][0]["text"] for event in contents)
    assert "stop" == finish["choices"][0]["finish_reason"]
    assert {"text_completion"} == {event["object"] for event in (*contents, finish, usage)}


async def test_chunks_tell_what_the_gateway_needs_without_parsing() -> None:
    async with running() as engine:
        *contents, usage, done = await answer(engine, ask())

    assert [None] * (len(contents) - 1) + ["stop"] == [chunk.finish_reason for chunk in contents]
    assert 5 == contents[-1].completion_tokens
    assert (True, Usage(9, 5)) == (usage.usage_only, usage.usage)
    assert {(False, None)} == {(chunk.usage_only, chunk.usage) for chunk in (*contents, done)}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"max_tokens": 3}, (3, "length")),
        ({"max_completion_tokens": 2, "max_tokens": 4}, (2, "length")),
        ({"max_tokens": 5}, (5, "stop")),
        ({"max_tokens": 8, "ignore_eos": True}, (8, "length")),
        ({"max_tokens": 10_000, "ignore_eos": True}, (9_991, "length")),
    ],
)
async def test_the_clients_limit_and_the_context_bound_an_answer(
    fields: dict[str, Any], expected: tuple[int, str]
) -> None:
    async with running(speed=1e6) as engine:
        *_, finish, usage, _ = await answer(engine, ask(**fields))

    assert expected == (usage.completion_tokens, finish.finish_reason)


async def test_a_prompt_has_a_token_for_four_bytes_of_all_messages_and_eight_more() -> None:
    messages = [
        {"role": "system", "content": "x" * 40},
        {"role": "user", "content": [{"type": "text", "text": "y" * 20}, {"type": "image_url", "image_url": {}}]},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "é" * 10},
    ]
    async with running() as engine:
        usage = (await answer(engine, ask(messages=messages)))[-2].usage

    assert Usage(20 + 8, 5) == usage


async def test_a_prompt_of_token_numbers_is_counted() -> None:
    async with running() as engine:
        usage = (await answer(engine, ask(endpoint=TEXT, prompt=[1, 2, 3])))[-2].usage

    assert Usage(3, 5) == usage


@pytest.mark.parametrize(
    ("request_", "param"),
    [
        (ask_raw(b"{"), None),
        (ask_raw(b"[]"), None),
        (ask_raw(b'{"messages": "hi"}'), None),
        (ask_raw(b"{}"), "messages"),
        (ask(messages=[]), "messages"),
        (ask(n=2), "n"),
        (ask(max_tokens=0), "max_tokens"),
        (ask(max_completion_tokens=-1), "max_completion_tokens"),
        (ask("x" * 39_968), "messages"),
        (ask(endpoint=TEXT, prompt=None), "prompt"),
        (ask(endpoint=TEXT, prompt=["a", "b"]), "prompt"),
        (ask("x" * 39_968, endpoint=TEXT), "prompt"),
    ],
)
async def test_a_call_that_makes_no_sense_is_refused_with_the_field(request_: Request, param: str | None) -> None:
    async with running() as engine:
        with pytest.raises(EngineError) as caught:
            await answer(engine, request_)

    document = msgspec.json.decode(caught.value.body or b"")
    assert 400 == caught.value.status
    assert {
        "message": str(caught.value),
        "type": "invalid_request_error",
        "param": param,
        "code": None,
    } == document["error"]


async def test_a_request_without_a_payload_is_a_programming_error() -> None:
    async with running() as engine:
        with pytest.raises(TypeError, match="with a Payload, not NoneType"):
            await answer(engine, replace(ask(), payload=None))


# Lengths


async def test_only_the_last_user_message_tells_the_category() -> None:
    messages = [
        {"role": "user", "content": "a report please"},
        {"role": "assistant", "content": "here is your report"},
        {"role": "user", "content": "thanks"},
    ]
    async with running() as engine:
        assert 5 == await length(engine, ask(messages=messages))
        assert 50 == await length(engine, ask("another report"))


async def test_the_same_call_has_the_same_length_whenever_it_is_served() -> None:
    calls = [ask(f"report {index}") for index in range(5)]
    async with running(cv=0.5) as one, running(cv=0.5) as other:
        forwards = [await length(one, call) for call in calls]
        backwards = [await length(other, call) for call in reversed(calls)]

    assert forwards == backwards[::-1]
    assert 1 < len(set(forwards))


async def test_the_seed_of_a_call_changes_its_length() -> None:
    async with running(cv=0.5) as engine:
        lengths = {await length(engine, ask("report", seed=seed)) for seed in range(5)}

    assert 1 < len(lengths)


async def test_drifts_count_from_the_first_request_in_model_seconds() -> None:
    clock, classifier = ManualClock(), Classifier()
    drifts = (Drift(30.0, 2.0),)
    async with running(clock=clock, speed=1000.0, drifts=drifts, classifier=classifier) as engine:
        lengths = []
        for clock.seconds in (100.0, 100.029, 100.031):
            lengths.append(asyncio.ensure_future(length(engine, ask())))
            await classifier.calls(1)
        clock.seconds = 1e6

        assert [5, 5, 10] == await asyncio.gather(*lengths)


# Time


async def test_a_held_burst_arrives_at_one_instant_and_takes_what_the_model_takes() -> None:
    requests = [ask(f"{'report' if index % 3 else 'question'} {index}") for index in range(7)]
    model = BatchModel(TICK, max_num_seqs=4)
    for index in range(7):
        model.add(str(index), 10, 50 if index % 3 else 5, 0.0)
    while model.advance():
        pass

    clock, classifier = ManualClock(), Classifier()
    async with running(max_num_seqs=4, clock=clock, classifier=classifier) as engine, running() as other:
        engine.hold()
        answers = [asyncio.ensure_future(answer(engine, request)) for request in requests]
        await classifier.calls(7)
        clock.seconds = 1e6
        await answer(other, ask())
        assert (0, 7) == (engine.model.num_running, engine.model.num_waiting)
        engine.resume()
        clock.seconds = 2e6
        await asyncio.gather(*answers)

        assert pytest.approx(model.time) == engine.model.time


async def test_no_time_passes_while_the_engine_is_held() -> None:
    clock, classifier = ManualClock(), Classifier()
    async with running(clock=clock, drifts=(Drift(30.0, 2.0),), classifier=classifier) as engine:
        lengths = [asyncio.ensure_future(length(engine, ask()))]
        await classifier.calls(1)
        engine.hold()
        clock.seconds = 1e6
        engine.resume()
        lengths.append(asyncio.ensure_future(length(engine, ask())))
        await classifier.calls(1)
        clock.seconds = 2e6

        assert [5, 5] == await asyncio.gather(*lengths)


async def test_an_iteration_delivers_only_when_it_has_ended() -> None:
    clock = ManualClock()
    async with running(clock=clock, speed=1000.0) as engine, aclosing(engine.generate(ask())) as chunks:
        loop = asyncio.get_running_loop()
        asked_at = loop.time()
        await anext(chunks)

        assert loop.time() - asked_at >= 0.999e-3


async def test_an_engine_that_is_late_catches_up_and_sends_what_is_due_in_one_chunk() -> None:
    clock = ManualClock()
    async with running(clock=clock, speed=1000.0) as engine:
        chunks = engine.generate(ask(max_tokens=2000, ignore_eos=True))
        counts = [(await anext(chunks)).completion_tokens]
        clock.seconds = 1e6
        counts += [chunk.completion_tokens async for chunk in chunks]

        assert [1, 2000, 2000, 2000] == counts
        assert 2000.0 == engine.model.time


async def test_an_idle_engine_does_nothing() -> None:
    clock, classifier = ManualClock(), Classifier()
    async with running(clock=clock, classifier=classifier) as idle, running() as busy:
        answering = asyncio.ensure_future(answer(idle, ask()))
        await classifier.calls(1)
        clock.seconds = 1e6
        await answering
        reads = clock.reads
        await answer(busy, ask(max_tokens=500, ignore_eos=True))

        assert reads == clock.reads


async def test_a_static_batch_shows_its_tokens_at_its_end() -> None:
    classifier = Classifier()
    async with running(mode="static", max_num_seqs=2, classifier=classifier) as engine:
        engine.hold()
        answers = [asyncio.ensure_future(answer(engine, ask(prompt))) for prompt in ("question", "report")]
        await classifier.calls(2)
        engine.resume()
        counts = [[chunk.completion_tokens for chunk in await task] for task in answers]

        assert [[5, 5, 5], [50, 50, 50]] == counts


async def test_a_static_batch_waits_for_company() -> None:
    clock, classifier = ManualClock(), Classifier()
    async with running(mode="static", max_num_seqs=2, clock=clock, speed=1.0, classifier=classifier) as engine:
        alone = asyncio.ensure_future(answer(engine, ask()))
        await classifier.calls(1)
        clock.seconds = 0.004
        company = asyncio.ensure_future(answer(engine, ask()))
        await classifier.calls(1)
        clock.seconds = 1e6
        await asyncio.gather(alone, company)

        assert pytest.approx(5.004) == engine.model.time


# Seats


async def test_closing_an_answer_frees_its_seat_and_context() -> None:
    async with running() as engine:
        async with aclosing(engine.generate(ask(max_tokens=9000, ignore_eos=True))) as chunks:
            await anext(chunks)
            assert 1 == engine.model.num_running

        assert (0, 0) == (engine.model.num_running, engine.model.kv_used)
        assert 5 == await length(engine, ask())


async def test_cancelling_a_task_that_waits_for_its_turn_takes_it_out_of_the_line() -> None:
    classifier = Classifier()
    async with running(classifier=classifier) as engine:
        engine.hold()
        waiting = asyncio.ensure_future(answer(engine, ask()))
        await classifier.calls(1)
        assert 1 == engine.model.num_waiting
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting

        assert 0 == engine.model.num_waiting


async def test_an_engine_is_full_when_its_seats_are_asked_for() -> None:
    classifier = Classifier()
    async with running(max_num_seqs=4, classifier=classifier) as engine:
        engine.hold()
        fractions, answers = [], []
        for _ in range(6):
            fractions.append((await engine.saturation()).fraction)
            answers.append(asyncio.ensure_future(answer(engine, ask())))
            await classifier.calls(1)
        engine.resume()
        await asyncio.gather(*answers)

        assert [0.0, 0.25, 0.5, 0.75, 1.0, 1.0] == fractions


async def test_an_engine_is_as_full_as_its_memory() -> None:
    clock = ManualClock()  # stands still, so that there is no second iteration
    async with running(clock=clock, kv_tokens=100) as engine, aclosing(engine.generate(ask("x" * 300))) as chunks:
        await anext(chunks)

        assert Saturation((83 + 1) / 100) == await engine.saturation()


async def test_closing_the_engine_breaks_its_answers_off() -> None:
    async with running() as engine:
        chunks = engine.generate(ask(max_tokens=9000, ignore_eos=True))
        await anext(chunks)
        await engine.close()
        with pytest.raises(EngineError, match="closed before the answer was complete") as caught:
            async for _ in chunks:
                pass

    assert (503, "engine_closed") == (caught.value.status, caught.value.kind)


async def test_it_tells_its_model_and_seats() -> None:
    async with running(max_num_seqs=4) as engine:
        told = await engine.discover()
        as_engine: Engine = engine

    assert (("tiny",), 4, "simulated") == (told.models, told.slots, told.kind)
    assert "simulated" == as_engine.name


@pytest.mark.parametrize("speed", [0.0, -1.0, inf])
async def test_a_speed_that_is_not_positive_is_refused(speed: float) -> None:
    with pytest.raises(ValueError, match="speed must be positive"):
        async with running(speed=speed):
            pass
