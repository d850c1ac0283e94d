"""Real servers inside a test's event loop, and a gateway that is audited when it is closed."""

import asyncio
import socket
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from openai import AsyncOpenAI

from driftsched.config import PartSettings, Settings
from driftsched.core.events import Admitted, Event, Evicted, Failed, Finished, Rejected
from driftsched.core.protocols import Listener
from driftsched.core.tracing import Span
from driftsched.engines.openai import OpenAIEngine
from driftsched.engines.simulated import SimulatedEngine
from driftsched.gateway.app import Gateway
from driftsched.gateway.catalogue import Catalogue
from driftsched.gateway.edge import EdgeLimits, edge_protocol
from driftsched.queues.memory import MemoryQueue
from driftsched.selftuning import SelfTuning
from driftsched.serving import build_gateway
from driftsched.shadowing import Shadowing
from driftsched.simulation import simulated_engine
from driftsched.telemetry.journal import Journal
from support.faulty_upstream import Behaviour, FaultyUpstream


async def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Let the loop run until `condition()` is true. Raises `TimeoutError`."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0)


@asynccontextmanager
async def serving(app: Any, edge: EdgeLimits | None = None, *, port: int = 0) -> AsyncIterator[str]:
    """Serve an ASGI application on a port of the loopback interface, 0 for a free one; give its URL."""
    config = uvicorn.Config(
        app,
        http=edge_protocol(edge or EdgeLimits()),
        ws="none",
        loop="none",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=5,
    )
    config.load()
    server = uvicorn.Server(config)
    server.lifespan = config.lifespan_class(config)
    with socket.create_server(("127.0.0.1", port)) as listener:
        await server.startup(sockets=[listener])
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            await server.shutdown(sockets=[listener])


@dataclass
class House:
    """A gateway on a real socket, and what lies behind it."""

    url: str
    gateway: Gateway
    queue: MemoryQueue
    catalogue: Catalogue
    events: list[Event] = field(default_factory=list)

    def of(self, *kinds: type[Event]) -> list[Any]:
        """The events of these kinds, in order."""
        return [event for event in self.events if isinstance(event, kinds)]

    @property
    def idle(self) -> bool:
        """Nothing waits and nothing is in flight."""
        return self.queue.num_waiting == 0 and self.queue.num_inflight == 0

    async def settled(self) -> None:
        """Wait until the gateway is idle, then check that every request left in exactly one way."""
        await until(lambda: self.idle)
        asked = [e.ticket.id for e in self.of(Admitted)] + [e.request.id for e in self.of(Rejected)]
        left = [e.ticket.id for e in self.of(Finished, Evicted, Failed)]
        left += [e.request.id for e in self.of(Rejected)]
        assert sorted(asked) == sorted(left)
        assert {} == self.gateway.dispatcher._parked


@asynccontextmanager
async def live_gateway(
    engine: Any,
    *,
    slots: int = 4,
    policy: str = "fair",
    estimator: str = "calibrated",
    settings: Settings | None = None,
    catalogue: Catalogue | None = None,
    journal: Journal | None = None,
    shadow: Shadowing | None = None,
    tuning: SelfTuning | None = None,
    edge: EdgeLimits | None = None,
    listeners: Sequence[Listener] = (),
    trace: Callable[[str], Span] | None = None,
) -> AsyncIterator[House]:
    """A gateway in front of `engine`, which it closes and, unless there is a catalogue, asks for its models.

    On the way out it is audited: all that was asked was accounted for once, and no task is left behind.
    """
    tasks_before = asyncio.all_tasks()
    queue = MemoryQueue(slots)
    if catalogue is None:
        catalogue = Catalogue([engine], on_slots=_ignore_slots, retry_seconds=0.01, ready_seconds=0.0)
        await catalogue.start()
    events: list[Event] = []
    gateway = build_gateway(
        settings or Settings(policy=PartSettings(policy), estimator=PartSettings(estimator)),
        engine=engine,
        queue=queue,
        catalogue=catalogue,
        journal=journal,
        shadow=shadow,
        tuning=tuning,
        listeners=[events.append, *listeners],
        trace=trace,
    )
    try:
        async with serving(gateway, edge) as url:
            house = House(url, gateway, queue, catalogue, events)
            yield house
            await house.settled()
    finally:
        await catalogue.close()
        await engine.close()
    try:
        await until(lambda: asyncio.all_tasks() - {asyncio.current_task()} <= tasks_before)
    except TimeoutError:
        raise AssertionError(f"left behind: {asyncio.all_tasks() - tasks_before}") from None


@asynccontextmanager
async def gateway_before(
    *script: Behaviour, routes: Mapping[str, Behaviour] | None = None, **options: Any
) -> AsyncIterator[tuple[FaultyUpstream, House]]:
    """An engine that behaves to order, and a gateway in front of it that has not asked for its models."""
    async with (
        FaultyUpstream(*script, routes=routes) as upstream,
        live_gateway(http_engine(upstream.url), **{"catalogue": unasked(), **options}) as house,
    ):
        yield upstream, house


def unasked() -> Catalogue:
    """What a gateway knows whose engines have not told anything yet."""
    return Catalogue([], on_slots=_ignore_slots)


async def _ignore_slots(engine: str, slots: int) -> None:
    """Tests say themselves how many slots there are."""


def simulated(
    slots: int = 4, *, speed: float = 500.0, drifts: Sequence[str] = (), seed: int = 1
) -> SimulatedEngine:
    """An engine whose short answers take a few milliseconds."""
    return simulated_engine(slots=slots, speed=speed, drifts=drifts, seed=seed)


def http_engine(url: str, **options: Any) -> OpenAIEngine:
    """The HTTP adapter with time limits that suit a test."""
    return OpenAIEngine(url, **{"connect_timeout_seconds": 2.0, **options})


def chat(content: Any = "What is a queue?", **fields: Any) -> dict[str, Any]:
    """The body of a chat completion."""
    return {"model": "simulated", "messages": [{"role": "user", "content": content}], **fields}


Connect = Callable[[House], AsyncOpenAI]
"""Makes an official client of a gateway."""
