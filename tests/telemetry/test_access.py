"""The access log: a line for each end, no text of anybody's unless asked for, and no harm to serving."""

import json
from dataclasses import replace
from threading import Event as Signal
from typing import Any

import pytest

from driftsched.core.events import Admitted, Event, Evicted, Failed, Finished, Rejected
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.tracing import Span
from driftsched.telemetry.access import MAX_NAME_CHARS, MAX_PROMPT_CHARS, AccessLog
from driftsched.telemetry.lines import json_line

AT = 1_764_104_405.25
REQUEST = Request(
    "own-1", Tenant("ann"), Tier.BATCH, "m", 10.0, prompt="My secret is 42", category="fact", public_id="c-7"
)


def ticket(request: Request = REQUEST) -> Ticket:
    return Ticket(request, Estimate(100, 90, 150, 200), seq=0, band=0, flow="", rank=0.0, charge=0.0)


def finished(request: Request = REQUEST) -> Finished:
    return Finished(14.0, ticket(request), Usage(7, 130), "stop", 12.0, 12.5, 1.0)


def logged(*events: Event, prompts: bool = False, max_queued: int = 100) -> list[dict[str, Any]]:
    """What was written, line by line."""
    written: list[bytes] = []
    log = AccessLog(written.append, json_line, prompts=prompts, wall_clock=lambda: AT, max_queued=max_queued)
    for event in events:
        log(event)
    log.flush()
    return [json.loads(line) for line in b"".join(written).splitlines()]


def test_the_line_of_an_answer_tells_who_asked_and_how_it_went() -> None:
    assert [
        {
            "time": "2025-11-25T21:00:05.250Z",
            "level": "info",
            "logger": "driftsched.access",
            "message": "request",
            "request_id": "c-7",
            "own_id": "own-1",
            "tenant": "ann",
            "tier": "batch",
            "model": "m",
            "category": "fact",
            "outcome": "finished",
            "reason": "stop",
            "seconds": 4.0,
            "queue_seconds": 2.0,
            "ttft_seconds": 2.5,
            "predicted_tokens": 100.0,
            "prompt_tokens": 7,
            "completion_tokens": 130,
        }
    ] == logged(finished())


@pytest.mark.parametrize(
    ("event", "outcome", "reason"),
    [
        (Rejected(10.0, REQUEST, "queue_full", 1.0), "rejected", "queue_full"),
        (Evicted(11.0, ticket(), "cancelled", Usage(), None, 0.0), "evicted", "cancelled"),
        (Failed(11.0, ticket(), "broken_stream", Usage(5, 8), 10.5, 1.0), "failed", "broken_stream"),
    ],
)
def test_every_way_out_has_its_line(event: Event, outcome: str, reason: str) -> None:
    [line] = logged(event)
    assert (outcome, reason) == (line["outcome"], line["reason"])


def test_whoever_has_not_ended_has_no_line() -> None:
    assert [] == logged(Admitted(10.0, ticket(), position=1))


def test_no_word_of_a_prompt_is_logged() -> None:
    assert "secret" not in json.dumps(logged(finished()))


def test_prompts_are_logged_in_part_if_they_are_asked_for() -> None:
    [line] = logged(finished(replace(REQUEST, prompt="x" * 9999)), prompts=True)
    assert "x" * MAX_PROMPT_CHARS == line["prompt"]


def test_names_that_clients_make_up_are_cut() -> None:
    [line] = logged(finished(replace(REQUEST, tenant=Tenant("t" * 9999), model="m" * 9999)))
    assert (MAX_NAME_CHARS, MAX_NAME_CHARS) == (len(line["tenant"]), len(line["model"]))


def test_a_request_that_is_traced_tells_its_trace() -> None:
    [line] = logged(finished(replace(REQUEST, span=Span("a" * 32, "b" * 16, "", True))))
    assert "a" * 32 == line["trace_id"]


def test_what_nobody_reads_is_dropped_and_the_loss_is_told() -> None:
    lines = logged(*[finished()] * 5, max_queued=3)
    assert ["request"] * 3 + ["2 lines lost: nobody read"] == [line["message"] for line in lines]


def test_closing_writes_what_is_left() -> None:
    written: list[bytes] = []
    log = AccessLog(written.append, json_line)
    log.start()
    log(finished())
    log.close()
    assert 1 == b"".join(written).count(b"\n")


def test_a_log_that_cannot_be_written_is_no_ones_trouble() -> None:
    tried = Signal()

    def broken(_: bytes) -> None:
        tried.set()
        raise OSError("no space left")

    log = AccessLog(broken, json_line)
    log.start()
    log(finished())
    assert tried.wait(10)
    log.close()
    assert not log._thread.is_alive()
