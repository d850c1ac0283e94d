"""A gateway in virtual time with a shadow beside it: scheduler, engine model and shadow, no socket and no clock."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from random import Random

from driftsched.core.events import Event, Finished
from driftsched.core.evidence import Evidence, PolicyTimes, Times
from driftsched.core.model import Request, Tenant, Tier
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel
from driftsched.engines.presets import get_hardware
from driftsched.estimators import create_estimator
from driftsched.queues.memory import MemoryQueue
from driftsched.shadowing import policy_of
from driftsched.sim.driver import Arrival, Simulation
from driftsched.sim.experiment import TraceDescriber
from driftsched.sim.shadow import Shadow, ShadowParts, Terms

PARTS = ShadowParts(policy_of, MemoryQueue)


def arrivals(num: int, rate: float, seed: int = 1) -> Iterator[Arrival]:
    """Poisson arrivals of three tenants; a category tells short answers from long ones."""
    random, at = Random(seed), 0.0
    for number in range(num):
        at += random.expovariate(rate)
        kind = random.choice(("short", "long"))
        request = Request(
            id=str(number),
            tenant=Tenant(f"t{random.randrange(3)}"),
            tier=random.choice(list(Tier)),
            model="m",
            arrived_at=at,
            prompt="never to be seen",
            prompt_tokens=1 + int(random.lognormvariate(5, 0.7)),
            category=kind,
            payload=b"never to be held",
        )
        yield Arrival(request, 1 + int(random.lognormvariate(3.5 if kind == "short" else 6, 0.5)))


@dataclass
class Live:
    """What the gateway does, with the shadow listening."""

    policy: str
    shadows: Sequence[str]
    slots: int = 16
    hardware: str = "l4-qwen1.5-1.8b"
    steps_every: int = 100
    """Events between two times that the shadow works; 0: it never does by itself."""
    terms: Terms = field(default_factory=Terms)
    events: list[Event] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.told: list[object] = []
        self.shadow = Shadow(
            self.policy,
            self.shadows,
            slots=lambda: self.slots,
            parts=PARTS,
            terms=self.terms,
            listeners=[self.told.append],
        )
        self.engine = BatchModel(get_hardware(self.hardware), max_num_seqs=self.slots)
        self.scheduler = Scheduler(
            policy=policy_of(self.policy),
            estimator=create_estimator("calibrated"),
            describer=TraceDescriber(),
            queue=MemoryQueue(self.slots),
            max_wait_seconds=self.terms.max_wait_seconds,
            max_inflight_tokens=self.terms.max_inflight_tokens,
            rejects_unattainable=self.terms.rejects_unattainable,
            listeners=[self.events.append, self.shadow, self._let_work],
        )
        self.simulation = Simulation(self.scheduler, self.engine)

    def serve(self, requests: Iterator[Arrival]) -> "Live":
        """Serve them all, and let the shadow do what it can."""
        for arrival in requests:
            self.simulation.arrive(arrival, arrival.request.arrived_at)
        self.simulation.finish()
        self.let_work()
        return self

    def let_work(self) -> None:
        for _ in self.shadow.steps():
            pass

    @property
    def measured(self) -> list[float]:
        """End-to-end seconds of what was answered."""
        return [e.at - e.ticket.request.arrived_at for e in self.events if isinstance(e, Finished)]

    def _let_work(self, event: Event) -> None:
        if self.steps_every and len(self.events) % self.steps_every == 0:
            self.let_work()


@dataclass
class Found:
    """What a shadow may tell."""

    evidence: Evidence | None = None
    dominated_by: str | None = None
    lag_seconds: float = 2.5
    num_simulated: int = 700
    num_dropped: int = 30


def times_under(name: str, p50: float, p99: float) -> PolicyTimes:
    times = Times(200, p50, p50, p99, p99)
    return PolicyTimes(name, times, {Tier.BATCH: Times(80, p50 + 1, p50 + 1, p99 + 1, p99 + 1)})


FOUND = Found(
    Evidence(
        0.0,
        9.0,
        times_under("fifo", 9.0, 88.0),
        (times_under("slack:beta=2", 4.0, 60.0),),
        times_under("fifo", 10.0, 80.0),
    ),
    dominated_by="slack:beta=2",
)
