from dataclasses import replace
from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.model import Estimate, Ticket, Tier
from driftsched.core.urgency import urgency
from support.scheduling import request_at


def ticket(tier: Tier = Tier.STANDARD, band: int = 0, overdue_at: float = inf) -> Ticket:
    request = request_at(tier=tier)
    return Ticket(request, Estimate(10, 10, 10, 10), 0, band, "flow", 0.0, 1.0, overdue_at=overdue_at)


@pytest.mark.parametrize(
    ("tier", "band", "expected"),
    [
        (Tier.PREMIUM, 0, -16),
        (Tier.STANDARD, 0, 0),
        (Tier.BATCH, 0, 16),
        (Tier.PREMIUM, 1, 48),
        (Tier.BATCH, 3, 208),
        (Tier.BATCH, 1000, 208),
        (Tier.PREMIUM, -5, -16),
    ],
)
def test_a_better_tier_is_more_urgent_and_an_earlier_band_more_than_any_tier(
    tier: Tier, band: int, expected: int
) -> None:
    assert expected == urgency(ticket(tier, band), 0.0)


def test_an_overdue_ticket_is_more_urgent_than_all_others() -> None:
    late = ticket(Tier.BATCH, band=2, overdue_at=5.0)
    assert [144, -32, -32] == [urgency(late, now) for now in (4.9, 5.0, 6.0)]


@given(st.sampled_from(Tier), st.integers(-(2**40), 2**40), st.floats(allow_nan=False), st.floats(0, 1e9))
def test_urgency_is_bounded(tier: Tier, band: int, overdue_at: float, now: float) -> None:
    assert -32 <= urgency(replace(ticket(tier, band), overdue_at=overdue_at), now) <= 208
