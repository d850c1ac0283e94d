"""How many requests a second a server can serve, measured: what a load of rho = 1 is on this machine, today."""

from collections.abc import Sequence
from dataclasses import replace

from driftsched.bench.live import Sending
from driftsched.bench.load import Hit, Shot, fire
from driftsched.core.errors import DriftschedError


class CapacityError(DriftschedError):
    """The server did not answer what would have told how fast it is."""


async def measure_capacity(url: str, shots: Sequence[Shot], sending: Sending, *, slots: int) -> float:
    """Such requests a second that the server at `url` serves while all its `slots` are taken.

    Sends all `shots`, more than `slots` of them, at once; the end, when slots fall empty, does not count. The
    server must be idle. Raises `CapacityError` if a request fails.
    """
    hits = await fire(
        url,
        [replace(shot, at=0.0) for shot in shots],
        model=sending.model,
        api_key=sending.api_key,
        temperature=sending.temperature,
        timeout_seconds=sending.timeout_seconds,
    )
    failed = next((hit for hit in hits if not hit.ok), None)
    if failed is not None:
        raise CapacityError(f"capacity: a request to {url} failed: {failed.error}")
    return busy_rate(hits, slots)


def busy_rate(hits: Sequence[Hit], slots: int) -> float:
    """Answers a second as long as `slots` of the answered `hits`, all sent at 0, were open.

    An answer under way at the end of that time counts as the share of it that was out by then.
    """
    if len(hits) <= slots:
        raise ValueError(f"{len(hits)} requests do not keep {slots} slots busy")
    ends = sorted(hit.finished_at or 0.0 for hit in hits)
    until = ends[len(hits) - slots]
    return sum(_share(hit, until) for hit in hits) / until


def _share(hit: Hit, until: float) -> float:
    first, last = hit.first_token_at or 0.0, hit.finished_at or 0.0
    if last <= until:
        return 1.0
    return max(0.0, (until - first) / (last - first))
