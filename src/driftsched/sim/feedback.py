"""How far the order follows what finished requests teach."""

from typing import Literal

from driftsched.core.model import Estimate, Request, Usage
from driftsched.core.protocols import Estimator
from driftsched.core.revision import MAX_RERANKS

Feedback = Literal["off", "frozen", "reranked"]
"""`off`: nothing is learnt. `frozen`: it is, and a request keeps the place of its admission. `reranked`: whoever
waits is placed anew as well, which is how requests are served."""

FEEDBACKS: tuple[Feedback, ...] = ("off", "frozen", "reranked")


def max_reranks(feedback: Feedback) -> int:
    """Waiting tickets placed anew at a settlement at most."""
    return MAX_RERANKS if feedback == "reranked" else 0


def arm_name(estimator: str, feedback: Feedback) -> str:
    """What an estimator is called in results: by its name alone if it is used as it is when it serves."""
    return estimator if feedback == "reranked" else f"{estimator}-{feedback}"


class Untaught:
    """Another estimator, as it was before it learnt anything."""

    def __init__(self, estimator: Estimator) -> None:
        self._estimator = estimator

    def predict(self, request: Request) -> Estimate:
        return self._estimator.predict(request)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        return self._estimator.revise(request, estimate)

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        """Learns nothing."""

    def bias(self, request: Request) -> float:
        return self._estimator.bias(request)
