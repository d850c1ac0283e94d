"""How soon an engine should take a request among those it holds already: a small number, smaller first.

The number has few values on purpose. Requests of one value are taken in the order in which they were dispatched,
which is what the policy decided with all that it knows, length and fairness included; a rank would bring the order
of one flow into the engine without the turns that flows take. What the number adds is what changes after a request
was dispatched: a better one may come.
"""

from driftsched.core.model import Ticket, Tier

OVERDUE = -32
"""Of a ticket that had waited its maximum: before all others, so that the promise holds inside the engine too."""
TIER_STEP = 16
"""Between two tiers. More than the 10 from which on SGLang interrupts a running request for another."""
BAND_STEP = 64
"""Between two bands: more than between the best and the worst tier of one."""
MAX_BAND = 3
"""Bands beyond count as this one."""


def urgency(ticket: Ticket, now: float) -> int:
    """-32 .. 208 for a ticket dispatched at `now`. 0 is a standard request of the first band.

    0 is also what vLLM takes a request for that names no priority, so that those who use the engine directly stand
    among the standard ones.
    """
    if ticket.overdue_at <= now:
        return OVERDUE
    band = min(max(ticket.band, 0), MAX_BAND)
    return BAND_STEP * band + TIER_STEP * (ticket.request.tier - Tier.STANDARD)
