"""The dispatcher in front of the simulated engine serves as `simulate` says, while requests come, end and teach.

Both are given the same requests, in virtual time. Several slots, arrivals over time at about twice what the engine
serves, an estimator that learns: drain times are not 0, and those who wait are placed anew.
"""

import asyncio
from collections.abc import Callable
from dataclasses import replace

import msgspec
import pytest

from driftsched.core.events import Admitted, Event, Finished, Reranked
from driftsched.core.protocols import Estimator
from driftsched.engines.lengths import LengthLaw
from driftsched.engines.model import BatchModel
from driftsched.engines.payload import Payload
from driftsched.engines.presets import get_hardware
from driftsched.engines.simulated import SimulatedEngine
from driftsched.estimators import create_estimator
from driftsched.gateway.dispatcher import Dispatcher
from driftsched.sim.driver import Arrival, simulate
from driftsched.sim.oracle import Oracle
from support.scheduling import dispatch_order, scheduler_of, workload
from support.virtual import LoopClock, VirtualLoop

SLOTS = 4
HARDWARE = get_hardware("l4-qwen1.5-1.8b")
TEMPLATE_TOKENS = 8  # what the simulated engine adds to a prompt
BY_ARRIVAL_OR_LENGTH = ["fifo", "slack", "boost", "gittins", "edf"]
BY_ACCOUNT = ["vtc", "fair", "lag", "composite"]
ARRIVALS = [
    replace(a, request=replace(a.request, prompt_tokens=max(20, a.request.prompt_tokens)))
    for a in workload(3, num_requests=80)
]


class Written(LengthLaw):
    """An answer is as long as is written for its prompt, which is taken for its category."""

    def __init__(self, lengths: dict[str, int]) -> None:
        self._lengths = lengths

    def draw(
        self,
        category: str,
        at: float,
        max_tokens: int | None = None,
        *,
        ignore_eos: bool = False,
        key: str | None = None,
    ) -> tuple[int, str]:
        return self._lengths[category], "stop"


def simulated(policy: str, estimator: Estimator) -> list[Event]:
    events: list[Event] = []
    scheduler = scheduler_of(policy, slots=SLOTS, estimator=estimator, listeners=[events.append])
    simulate(ARRIVALS, scheduler, BatchModel(HARDWARE, max_num_seqs=SLOTS))
    return events


def live(policy: str, estimator: Estimator) -> list[Event]:
    events: list[Event] = []
    lengths = {prompt_of(arrival): arrival.completion_tokens for arrival in ARRIVALS}

    async def serve_all() -> None:
        scheduler = scheduler_of(policy, slots=SLOTS, estimator=estimator, listeners=[events.append])
        engine = SimulatedEngine(
            BatchModel(HARDWARE, max_num_seqs=SLOTS), Written(lengths), lambda prompt: prompt, clock=LoopClock()
        )
        dispatcher = Dispatcher(scheduler, engine, LoopClock())
        await asyncio.gather(*(serve(dispatcher, arrival) for arrival in ARRIVALS))
        await dispatcher.close()
        await engine.close()

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        runner.run(serve_all())
    return events


async def serve(dispatcher: Dispatcher, arrival: Arrival) -> None:
    """Come when it is time, wait in line, and read the answer."""
    body = msgspec.json.encode({"messages": [{"role": "user", "content": prompt_of(arrival)}]})
    payload = Payload("/v1/chat/completions", body, stream=True, wants_usage=True)
    await asyncio.sleep(arrival.request.arrived_at)
    async with dispatcher.turn(replace(arrival.request, payload=payload), lambda: False) as turn:
        async for _ in turn.answer():
            pass


def prompt_of(arrival: Arrival) -> str:
    """Unique, and of the length that it must have: 4 bytes are a token."""
    return arrival.request.id.ljust(4 * (arrival.request.prompt_tokens - TEMPLATE_TOKENS))


def learning() -> Estimator:
    return create_estimator("calibrated")


def knowing() -> Estimator:
    return Oracle({arrival.request.id: arrival.completion_tokens for arrival in ARRIVALS})


def percentiles(events: list[Event]) -> dict[float, float]:
    """End-to-end seconds."""
    seconds = sorted(e.at - e.ticket.request.arrived_at for e in events if isinstance(e, Finished))
    assert len(ARRIVALS) == len(seconds)
    return {share: seconds[int(share * len(seconds))] for share in (0.5, 0.9, 0.95, 0.99)}


@pytest.mark.parametrize(
    ("policy", "estimator"),
    [*((policy, learning) for policy in BY_ARRIVAL_OR_LENGTH), *((policy, knowing) for policy in BY_ACCOUNT)],
)
def test_the_order_is_the_same_to_the_last_request(policy: str, estimator: Callable[[], Estimator]) -> None:
    expected = dispatch_order(simulated(policy, estimator()))
    assert expected == dispatch_order(live(policy, estimator()))
    assert (policy == "fifo") == (expected == [arrival.request.id for arrival in ARRIVALS])


@pytest.mark.parametrize("policy", BY_ACCOUNT)
def test_where_answers_outgrow_what_was_expected_the_median_and_above_are_within_5_percent(policy: str) -> None:
    """The gateway charges them as they grow, `simulate` at their end, so that turns differ now and then."""
    events = simulated(policy, learning())
    assert pytest.approx(percentiles(events), rel=0.05) == percentiles(live(policy, learning()))
    assert any(isinstance(event, Reranked) for event in events)
    drains = [event.load.usual_drain_seconds for event in events if isinstance(event, Admitted) and event.load]
    assert max(drains) > 1
