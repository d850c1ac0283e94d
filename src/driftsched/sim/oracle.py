"""The estimator that knows the future."""

from collections.abc import Mapping

from driftsched.core.model import Estimate, Request, Usage


class Oracle:
    """Predict the true length, to the token.

    Why: the bound that no estimator can beat, so the most that better predictions could gain. Only a simulator can
    build it, since only there the length is known before the request has finished.
    """

    def __init__(self, lengths: Mapping[str, int]) -> None:
        """`lengths`: completion tokens by request id."""
        self._lengths = lengths

    def predict(self, request: Request) -> Estimate:
        """Raises `KeyError` for a request whose length is not known."""
        length = float(self._lengths[request.id])
        return Estimate(length, q50=length, q80=length, q90=length)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:  # noqa: ARG002
        return self.predict(request)

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        """There is nothing left to learn."""

    def bias(self, request: Request) -> float:  # noqa: ARG002
        return 1.0
