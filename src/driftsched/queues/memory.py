"""The order held in this process."""

from driftsched.core.lines import Lines
from driftsched.core.model import Ticket, Why


class MemoryQueue:
    """`Lines` behind the `Queue` protocol, with a limit on the tickets in flight.

    No method ever suspends, so each is atomic on one event loop and can be stepped without any loop at all.
    """

    def __init__(self, max_inflight: int) -> None:
        """`max_inflight`: slots, >= 0. Raises `ValueError` if negative."""
        self._lines = Lines()
        self._max_inflight = _checked(max_inflight)

    @property
    def num_waiting(self) -> int:
        return self._lines.num_waiting

    @property
    def max_inflight(self) -> int:
        """Slots."""
        return self._max_inflight

    @property
    def num_inflight(self) -> int:
        return self._lines.num_inflight

    def service(self, band: int, flow: str) -> float:
        """Weighted tokens served to a flow so far."""
        return self._lines.service(band, flow)

    async def push(self, ticket: Ticket) -> None:
        self._lines.push(ticket)

    async def pop(self, now: float) -> Ticket | None:
        if self._lines.num_inflight >= self._max_inflight:
            return None
        return self._lines.pop(now)

    async def why(self, ticket_id: str) -> Why | None:
        return self._lines.why(ticket_id)

    async def settle(self, ticket_id: str, charge: float, *, release: bool) -> bool:
        return self._lines.settle(ticket_id, charge, release=release)

    async def rerank(self, ticket_id: str, rank: float, charge: float) -> bool:
        return self._lines.rerank(ticket_id, rank, charge)

    async def move(self, ticket: Ticket) -> bool:
        return self._lines.move(ticket)

    async def restart_accounts(self) -> None:
        self._lines.restart_accounts()

    async def remove(self, ticket_id: str) -> bool:
        return self._lines.remove(ticket_id) is not None

    async def reap(self, now: float) -> list[Ticket]:
        return self._lines.expire(now)

    async def resize(self, max_inflight: int) -> None:
        self._max_inflight = _checked(max_inflight)


def _checked(max_inflight: int) -> int:
    if max_inflight < 0:
        raise ValueError(f"max_inflight must not be negative, but is {max_inflight}")
    return max_inflight
