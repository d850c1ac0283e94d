"""How often a request may be tried again elsewhere: a share of all requests, so that retries cannot storm."""

from dataclasses import dataclass, field

from driftsched.core.errors import EngineError

MAX_ATTEMPTS = 3
"""Engines that one request is sent to."""

_DID_NOTHING = frozenset({"engine_unreachable", "engine_busy"})
"""Kinds of failure after which the engine has done nothing for the request."""


@dataclass(slots=True)
class RetryBudget:
    """Each request pays in `share` of a retry, each retry takes one out.

    `share` >= 0: over any run of requests no more than so many of them, plus `burst`, are repeated. `burst` >= 1 is
    what may be saved up, and is there at the start: an engine that dies lets go of all its requests at once.
    """

    share: float = 0.2
    burst: float = 100.0
    balance: float = field(init=False)

    def __post_init__(self) -> None:
        self.balance = self.burst

    def deposit(self) -> None:
        """A request came."""
        self.balance = min(self.burst, self.balance + self.share)

    def withdraw(self) -> bool:
        """Whether there is enough for one retry, which is then spent."""
        if self.balance < 1.0:
            return False
        self.balance -= 1.0
        return True


def may_go_elsewhere(error: EngineError, num_broken: int) -> bool:
    """Whether a request of whose answer its client has nothing may be sent to another engine after this failure.

    `num_broken`: engines that closed the connection on it, this one included. The first may have died of something
    else; a request that two engines broke off is no longer trusted with a third.
    """
    return error.kind in _DID_NOTHING or (error.kind == "broken_stream" and num_broken < 2)
