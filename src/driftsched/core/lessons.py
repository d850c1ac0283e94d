"""What is taught: the estimator and the describer hear what really happened, and it is told what that changed."""

import logging
from collections.abc import Callable, Iterator
from math import floor, inf, isfinite

from driftsched.core.events import DriftDetected, Recalibrated
from driftsched.core.model import Request, Ticket, Usage
from driftsched.core.protocols import Describer, Estimator, Outliving
from driftsched.core.revision import Revisions

_logger = logging.getLogger(__name__)

Change = Recalibrated | DriftDetected


class Lessons:
    """Teaches, and lets `revisions` know for which kinds of requests the correction has moved."""

    def __init__(self, estimator: Estimator, describer: Describer, revisions: Revisions) -> None:
        self._estimator = estimator
        self._outliving = estimator if isinstance(estimator, Outliving) else None
        self._describer = describer
        self._revisions = revisions

    def milestone(self, ticket: Ticket) -> float:
        """The count of completion tokens from which on `outlive` is to be called; infinite: never."""
        if self._outliving is None or not isfinite(ticket.estimate.q90):
            return inf
        return floor(ticket.estimate.q90) + 1

    def learn(self, ticket: Ticket, usage: Usage, now: float, *, finished: bool) -> Iterator[Change]:
        """What the ticket's request used; what that changed."""
        request, estimate = ticket.request, ticket.estimate
        if not finished and usage.completion_tokens == 0:
            return  # a lower bound of nothing teaches nothing

        def lesson() -> float | None:
            self._describer.learn(request, usage)
            return self._estimator.learn(request, usage, finished=finished, estimate=estimate)

        yield from self._teach(lesson, request, usage, now)

    def outlive(self, ticket: Ticket, usage: Usage, now: float) -> Iterator[Change]:
        """The answer has become longer than was promised, and goes on; what that changed."""
        outliving = self._outliving
        if outliving is None:
            return

        def lesson() -> float | None:
            return outliving.outlive(ticket.request, ticket.estimate, usage.completion_tokens)

        yield from self._teach(lesson, ticket.request, usage, now)

    def _teach(
        self, lesson: Callable[[], float | None], request: Request, usage: Usage, now: float
    ) -> Iterator[Change]:
        try:
            before = self._estimator.bias(request)
            factor = lesson()
            after = self._estimator.bias(request)
            self._revisions.recalibrated(request, before, after)
        except Exception:  # a plug-in that cannot learn must not keep what happened from being told
            _logger.exception("estimator could not learn %s of request %s", usage, request.id)
            return
        if after != before:
            yield Recalibrated(now, request.model, request.category, before, after)
        if factor is not None:
            yield DriftDetected(now, request.model, request.category, factor)
