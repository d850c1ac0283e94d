"""`driftsched serve --shadow`: the composition of the shadow, policies and queues, and the thread it works in."""

import logging
from collections.abc import Callable, Iterator, Sequence
from threading import Event as Signal
from threading import Thread
from time import perf_counter

from driftsched.core.events import Event
from driftsched.core.evidence import Evidence, EvidenceListener
from driftsched.core.protocols import Policy
from driftsched.core.specs import parse_spec
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.dominance import MARGIN, Dominance
from driftsched.sim.shadow import Shadow, ShadowParts, Terms

_logger = logging.getLogger(__name__)

SLICE_SECONDS = 0.001
"""Worked without a break: so long the event loop may have to wait for the interpreter."""
REST_SECONDS = 0.009
"""Between two slices, so that the shadow takes a tenth of a core at most."""
IDLE_SECONDS = 0.05
"""Between two looks at what has come, once all is done."""


class Shadowing:
    """A shadow that works in a thread of its own. A listener; start it, and close it."""

    def __init__(
        self,
        live: str,
        policies: Sequence[str],
        *,
        slots: Callable[[], int],
        terms: Terms | None = None,
        listeners: Sequence[EvidenceListener] = (),
        pool: str = "",
        num_beside: int = 0,
    ) -> None:
        """Arguments as of `Shadow`; `pool` is told in the log if there are several.

        `num_beside`: shadows that work beside this one: all together take no more time than one.
        Raises `ConfigError` for a policy that cannot be made.
        """
        self._dominance = Dominance()
        self._name = f"shadow of pool {pool}" if pool else "shadow"
        self._rest_seconds = REST_SECONDS + num_beside * (REST_SECONDS + SLICE_SECONDS)
        self._shadow = Shadow(
            live,
            policies,
            slots=slots,
            parts=ShadowParts(policy_of, MemoryQueue),
            terms=terms,
            listeners=(self._judge, *listeners),
        )
        self._closing = Signal()
        self._thread = Thread(target=self._work, name="shadow", daemon=True)

    def __call__(self, event: Event) -> None:
        self._shadow(event)

    @property
    def evidence(self) -> Evidence | None:
        return self._shadow.evidence

    @property
    def dominated_by(self) -> str | None:
        return self._dominance.by

    @property
    def lag_seconds(self) -> float:
        return self._shadow.lag_seconds

    @property
    def num_simulated(self) -> int:
        return self._shadow.num_simulated

    @property
    def num_dropped(self) -> int:
        return self._shadow.num_dropped

    def follow(self, live: str) -> None:
        """The gateway serves under another policy from now on."""
        self._shadow.follow(live)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        """Stop working; what was not simulated yet never is."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()

    def _work(self) -> None:
        try:
            while not self._closing.is_set():
                self._work_in_slices(self._shadow.steps())
                self._closing.wait(IDLE_SECONDS)
        except Exception:  # of a plug-in, most likely: whoever serves goes on without a shadow
            _logger.exception("%s: stopped", self._name)
        finally:
            self._shadow.close()

    def _work_in_slices(self, steps: Iterator[None]) -> None:
        until = perf_counter() + SLICE_SECONDS
        for _ in steps:
            if perf_counter() >= until:
                if self._closing.wait(self._rest_seconds):
                    return
                until = perf_counter() + SLICE_SECONDS

    def _judge(self, evidence: Evidence) -> None:
        if not self._dominance.observe(evidence):
            return
        better = evidence.of(self._dominance.by) if self._dominance.by else None
        live = evidence.live
        if better is None:
            _logger.info("%s: no other policy is better than %s in every respect any more", self._name, live.policy)
            return
        _logger.warning(
            "%s: %s is better than %s by more than %.0f %% in every respect: E2E P50 %.2f s, not %.2f s, "
            "and P99 %.2f s, not %.2f s, simulated on %d requests",
            self._name,
            better.policy,
            live.policy,
            100 * MARGIN,
            better.times.p50,
            live.times.p50,
            better.times.p99,
            live.times.p99,
            live.times.requests,
        )


def policy_of(text: str) -> Policy:
    """The policy that `text` means, as in `slack:beta=2`. Raises `ConfigError`."""
    name, options = parse_spec(text)
    return create_policy(name, **options)
