"""Load against a scripted server: what is sent, what is made of the answers, and what is left of a broken run."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from math import isnan
from types import MappingProxyType
from typing import Any

import msgspec
import pytest
from aiohttp import web

from driftsched.bench.live import (
    BlockResult,
    Sending,
    Sent,
    Tally,
    is_late,
    live_figures,
    lost,
    measure_live,
    recording_of,
    request_extras,
    run_blocks,
)
from driftsched.bench.load import Hit, completions_url
from driftsched.bench.plan import Block, Setup, shots_of, with_warmup
from driftsched.sim.measures import Objective
from driftsched.sim.trace import Row

BLOCK = Block(Setup("sjf", "static"), 1)
Handle = Callable[[web.Request], Awaitable[web.StreamResponse]]
GATEWAY = {
    "x-driftsched-policy": "sjf",
    "x-driftsched-queue-seconds": "0.25",
    "x-driftsched-predicted-tokens": "30",
}


@asynccontextmanager
async def server(handle: Handle) -> AsyncIterator[str]:
    async def answer(request: web.Request) -> web.StreamResponse:
        return await handle(request)

    app = web.Application()
    app.router.add_post("/v1/chat/completions", answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        host, port = runner.addresses[0][:2]
        yield f"http://{host}:{port}"
    finally:
        await runner.cleanup()


async def stream(
    request: web.Request, *events: object, headers: Mapping[str, str] = MappingProxyType({})
) -> web.StreamResponse:
    response = web.StreamResponse(headers=headers)
    await response.prepare(request)
    for event in events:
        await response.write(b"data: " + msgspec.json.encode(event) + b"\n\n")
    await response.write(b"data: [DONE]\n\n")
    return response


TEXT = {"choices": [{"index": 0, "delta": {"content": "Well"}, "finish_reason": None}]}
END = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
USAGE = {"choices": [], "usage": {"prompt_tokens": 17, "completion_tokens": 21}}


async def drive(
    handle: Handle,
    rows: Sequence[Row],
    sending: Sending | None = None,
    on_change: Callable[[Tally], None] = lambda _: None,
    results: list[BlockResult] | None = None,
) -> BlockResult:
    results = [] if results is None else results
    async with server(handle) as url:

        @asynccontextmanager
        async def serve(block: Block) -> AsyncIterator[str]:
            yield url

        await run_blocks([BLOCK], lambda _: rows, serve, sending or Sending("m"), results, on_change)
    return results[0]


def at_once(requests: int) -> list[Row]:
    return [Row(0.0, 10, 5, tenant=f"t{number % 2}") for number in range(requests)]


async def test_requests_are_sent_at_their_instants_even_if_nothing_is_answered() -> None:
    """Nobody is answered before all have come: a client that waited for answers would never end."""
    came = 0
    all_came = asyncio.Event()

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal came
        came += 1
        if came == 40:
            all_came.set()
        await all_came.wait()
        return await stream(request, TEXT, END, USAGE)

    async with asyncio.timeout(30):
        result = await drive(handle, at_once(40))
    assert ["finished"] * 40 == [sent.outcome for sent in result.sent]
    assert lost(result) is None


async def test_what_is_asked_for_is_what_was_planned() -> None:
    bodies: list[dict[str, Any]] = []
    headers: list[str | None] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        headers.append(request.headers.get("authorization"))
        return await stream(request, TEXT, END, USAGE)

    await drive(handle, at_once(1), Sending("tiny", api_key="secret", impose_lengths=True, temperature=0.0))
    (body,) = bodies
    assert ["Bearer secret"] == headers
    assert ("tiny", 5, True, "t0") == (body["model"], body["max_tokens"], body["ignore_eos"], body["user"])
    assert ({"include_usage": True}, True, 0.0) == (body["stream_options"], body["stream"], body["temperature"])
    assert "secret" not in repr(Sending("tiny", api_key="secret"))


async def test_what_nobody_set_is_not_sent() -> None:
    bodies: list[dict[str, Any]] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        bodies.append(await request.json())
        return await stream(request, TEXT, END, USAGE)

    await drive(handle, at_once(1))
    assert set() == {"max_tokens", "ignore_eos", "temperature"} & bodies[0].keys()


async def test_the_gateways_word_gives_queue_time_and_prediction() -> None:
    result = await drive(lambda request: stream(request, TEXT, END, USAGE, headers=GATEWAY), at_once(3))
    recording = recording_of(result.sent, BLOCK, slots=4)
    for began, sent in zip(recording.dispatched_at, result.sent, strict=True):
        assert began == pytest.approx(sent.offset + (sent.hit.sent_at or 0) + 0.25)
    assert [30.0] * 3 == list(recording.predicted_tokens)
    assert [(17, 21)] * 3 == list(zip(recording.prompt_tokens, recording.completion_tokens, strict=True))
    assert ["short"] * 3 == list(recording.runtime_class)
    assert 3 == recording.max_queue_depth
    assert {"sjf"} == {sent.hit.policy for sent in result.sent}


async def test_a_server_that_says_nothing_has_no_queue_figures() -> None:
    result = await drive(lambda request: stream(request, TEXT, END, USAGE), at_once(30))
    recording = recording_of(result.sent, BLOCK, slots=4)
    run = measure_live(result, recording, None)
    assert all(map(isnan, recording.dispatched_at))
    assert (None, None) == (run.queue_seconds.mean, run.queue_seconds.p50)
    assert {None} == {group.queue_seconds.mean for group in run.by_tenant.values()}
    assert (None, None, None) == (run.slot_utilisation, run.service_gap_tokens, run.prediction.mae_tokens)
    assert run.e2e_seconds.p50 is not None
    assert b"NaN" not in msgspec.json.encode(run)


async def test_a_whole_answer_has_tokens_but_no_first_one() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        body = await request.json()
        assert "stream_options" not in body
        choice = {"message": {"content": "Well"}, "finish_reason": "length"}
        return web.json_response({"choices": [choice], "usage": USAGE["usage"]})

    result = await drive(handle, at_once(1), Sending("m", stream=False))
    hit = result.sent[0].hit
    assert (True, "length", 21, None) == (hit.ok, hit.finish_reason, hit.completion_tokens, hit.first_token_at)
    assert hit.tpot_seconds is None


async def test_what_a_model_thinks_counts_as_its_first_token() -> None:
    thought = {"choices": [{"index": 0, "delta": {"reasoning_content": "Hm"}, "finish_reason": None}]}
    result = await drive(lambda request: stream(request, thought, END, USAGE), at_once(1))
    assert result.sent[0].hit.first_token_at is not None


async def test_every_failure_is_counted_by_its_kind_and_none_is_lost() -> None:
    async def handle(request: web.Request) -> web.StreamResponse:
        kind = (await request.json())["seed"]
        if kind == 0:
            return web.json_response({"error": {"message": "wait"}}, status=429)
        if kind == 1:
            return web.json_response({"error": {"message": "broken"}}, status=500)
        if kind == 2:
            return await stream(request, TEXT)  # and no end
        if kind == 3:
            return await stream(request, TEXT, {"error": {"message": "engine died"}})
        if kind == 4:
            response = web.StreamResponse()
            await response.prepare(request)
            await response.write(b"data: {nonsense\n\n")
            return response
        if kind == 5:
            assert request.transport is not None
            request.transport.abort()
            return web.Response()
        if kind == 6:
            return await stream(request, TEXT, END)  # and no usage
        return await stream(request, TEXT, END, USAGE)

    result = await drive(handle, at_once(8))
    figures = live_figures(result, 0)
    assert ["rejected", *["failed"] * 5, "finished", "finished"] == [sent.outcome for sent in result.sent]
    assert (8, 2, 6, 1) == (figures.sent, figures.answered, figures.failed, figures.without_usage)
    assert {"http_429": 1, "http_500": 1, "broken_stream": 1, "stream_error": 1, "DecodeError": 1}.items() <= (
        figures.errors.items()
    )
    assert lost(result) is None


async def test_an_interrupted_block_keeps_what_it_has() -> None:
    answered = asyncio.Event()
    results: list[BlockResult] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        if (await request.json())["seed"] > 1:
            await asyncio.Event().wait()
        return await stream(request, TEXT, END, USAGE)

    def watch(tally: Tally) -> None:
        if (tally.sent, tally.done) == (4, 2):
            answered.set()

    rows = [*at_once(4), Row(3600.0, 10, 5)]
    run = asyncio.create_task(drive(handle, rows, on_change=watch, results=results))
    async with asyncio.timeout(30):
        await answered.wait()
        run.cancel()
        with suppress(asyncio.CancelledError):
            await run
    (result,) = results
    assert not result.complete
    assert ["finished", "finished", "unfinished", "unfinished"] == [sent.outcome for sent in result.sent]
    figures = live_figures(result, 0)
    assert (4, 2, 0, False) == (figures.sent, figures.answered, figures.failed, figures.complete)
    assert "2 of 4 requests were neither answered nor refused" == lost(result)


async def test_rows_after_a_drain_are_not_sent_before_all_others_have_ended() -> None:
    open_now, most_open = 0, []

    async def handle(request: web.Request) -> web.StreamResponse:
        nonlocal open_now
        most_open.append(open_now)
        open_now += 1
        response = await stream(request, TEXT, END, USAGE)
        open_now -= 1
        return response

    rows = [Row(0.0, 10, 5), Row(0.05, 10, 5, after_drain=True), Row(0.05, 10, 5, after_drain=True)]
    tallies: list[Tally] = []
    result = await drive(handle, rows, on_change=tallies.append)
    assert [0, 0, 0] == most_open
    arrivals, ends = [s.arrived_at for s in result.sent], [s.at(s.hit.finished_at) for s in result.sent]
    assert arrivals[1] >= ends[0] + 0.04
    assert arrivals[2] >= ends[1]
    assert (3, 3, 3, 0) == (tallies[-1].total, tallies[-1].sent, tallies[-1].done, tallies[-1].errors)


def answered(rows: Sequence[Row], *, lag: float = 0.0, ttft: float = 0.5, e2e: float = 2.5) -> BlockResult:
    """All answered with 21 tokens."""
    hits = []
    for shot in shots_of(rows, 1):
        times = (shot.at + lag, shot.at + ttft, shot.at + e2e)
        hits.append(Hit(shot, *times, status=200, queue_seconds=0.1, predicted_tokens=30, completion_tokens=21))
    return BlockResult(BLOCK, rows, [(0.0, hits)], complete=True)


def test_times_count_from_the_intended_instant_so_that_a_late_client_cannot_hide() -> None:
    result = answered([Row(float(n), 10, 5) for n in range(10)], lag=0.4)
    recording = recording_of(result.sent, BLOCK, slots=4)
    run = measure_live(result, recording, Objective(ttft_seconds=0.4))
    figures = live_figures(result, 0)
    assert run.e2e_seconds.p50 == pytest.approx(2.5)
    assert run.ttft_seconds.p50 == pytest.approx(0.5)
    assert run.queue_seconds.p50 == pytest.approx(0.5)  # the lag and what the gateway says
    assert run.slo is not None
    assert 0 == run.slo.attained
    assert figures.send_lag_seconds.max == pytest.approx(0.4)
    assert figures.client_late
    assert figures.tpot_seconds.mean == pytest.approx(0.1)


def test_rates_are_those_of_the_instants() -> None:
    figures = live_figures(answered([Row(n / 4, 10, 5) for n in range(41)], e2e=10.0), 0)
    assert figures.requested_rate == pytest.approx(4.0)
    assert figures.sent_rate == pytest.approx(4.0)
    assert figures.answered_rate == pytest.approx(41 / 20)


def test_a_client_is_late_by_ten_milliseconds_or_a_hundredth_of_the_median() -> None:
    assert not is_late([0.001] * 300, [1.0] * 300)
    assert is_late([0.001] * 290 + [0.011] * 10, [5.0] * 300)
    assert not is_late([0.001] * 298 + [0.5] * 2, [5.0] * 300)
    assert is_late([0.002] * 300, [0.1] * 300)
    assert not is_late([0.0, 9.0], [1.0, 1.0])
    assert is_late([0.0, 0.1, 9.0], [100.0] * 3)
    assert not is_late([9.0], [1.0])


def test_warm_up_is_kept_and_told_apart_but_not_counted() -> None:
    rows = with_warmup([Row(float(n), 10, 5, phase="steady") for n in range(10)], 4)
    result = answered(rows)
    recording = recording_of(result.sent, BLOCK, slots=4)
    run = measure_live(result, recording, None)
    figures = live_figures(result, 0)
    assert (10, 6) == (len(recording), run.requests)
    assert {"warmup": 4, "steady": 6} == {phase: group.requests for phase, group in run.by_phase.items()}
    assert (4, 6, 6) == (figures.warmup_requests, figures.sent, figures.answered)


def test_extras_are_one_for_each_request() -> None:
    result = answered([Row(0.0, 10, 5)], lag=0.002)
    assert [{"send_lag_seconds": 0.002, "tpot_seconds": pytest.approx(0.1), "http_status": 200}] == list(
        request_extras(result.sent)
    )


def test_a_request_that_was_never_sent_is_missed() -> None:
    result = answered(at_once(3))
    result.stretches[0][1].pop()
    assert lost(result) == "3 requests were to be sent, but 2 were"


@pytest.mark.parametrize("url", ["http://h:1", "http://h:1/", "http://h:1/v1", "http://h:1/v1/"])
def test_a_url_may_end_in_v1(url: str) -> None:
    assert "http://h:1/v1/chat/completions" == completions_url(url)


def test_a_row_is_paired_with_its_own_hit() -> None:
    rows = [Row(float(n), 10, 5, tenant=f"t{n}") for n in range(3)]
    pairs: list[Sent] = answered(rows).sent
    assert [("t0", "t0"), ("t1", "t1"), ("t2", "t2")] == [(p.row.tenant, p.hit.shot.tenant) for p in pairs]
