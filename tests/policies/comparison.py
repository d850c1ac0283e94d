"""Queue times of one overloaded workload under every policy: the table in docs/policies/index.md.

PYTHONPATH=tests python tests/policies/comparison.py
"""

from collections.abc import Callable
from dataclasses import dataclass
from statistics import mean, median, quantiles

from driftsched.core.events import Dispatched
from driftsched.core.model import Request, Tier
from support.scheduling import simulated_events, workload

SEEDS = range(5)
POLICIES = (
    *("fifo", "priority", "aging", "edf", "weighted", "composite"),
    *("sjf", "gittins", "boost", "slack", "vtc", "lag", "fair"),
)


@dataclass(frozen=True)
class Waits:
    """Queue times of all requests under one policy."""

    dispatched: list[Dispatched]

    @property
    def median(self) -> float:
        return median(self._seconds())

    @property
    def p99(self) -> float:
        return quantiles(self._seconds(), n=100)[98]

    def mean_of(self, tier: Tier) -> float:
        return mean(self._seconds(lambda request: request.tier is tier))

    def mean_of_category(self, category: str) -> float:
        return mean(self._seconds(lambda request: request.category == category))

    def _seconds(self, chosen: Callable[[Request], bool] = lambda _: True) -> list[float]:
        return [event.queue_seconds for event in self.dispatched if chosen(event.ticket.request)]


def waits_under(policy: str) -> Waits:
    events = (event for seed in SEEDS for event in simulated_events(policy, workload(seed)))
    return Waits([event for event in events if isinstance(event, Dispatched)])


def main() -> None:
    print("| policy | median | P99 | premium | standard | batch | short answers | reports |")
    print("|---|---|---|---|---|---|---|---|")
    for policy in POLICIES:
        waits = waits_under(policy)
        figures = [
            waits.median,
            waits.p99,
            *(waits.mean_of(tier) for tier in Tier),
            *(waits.mean_of_category(category) for category in ("short_qa", "report")),
        ]
        print(f"| `{policy}` | {' | '.join(f'{figure:.0f}' for figure in figures)} |")


if __name__ == "__main__":
    main()
