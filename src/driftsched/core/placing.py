"""The policy in force: where it places a request, and what it charges."""

import logging
from collections.abc import Iterable
from math import isfinite

from driftsched.core.model import Estimate, Load, Request, Ticket, Usage
from driftsched.core.protocols import Lenient, Policy, Triage

_logger = logging.getLogger(__name__)


class Placing:
    """Asks the policy, and stands in for one that cannot price what was served."""

    def __init__(self, policy: Policy) -> None:
        self.use(policy)

    def use(self, policy: Policy) -> None:
        """Ask `policy` from here on."""
        self._policy = policy
        self._lead = policy.lead if isinstance(policy, Lenient) else 0.0
        self._triage = policy if isinstance(policy, Triage) else None

    @property
    def triages(self) -> bool:
        """Bands depend on how busy the pool is."""
        return self._triage is not None

    def place(self, request: Request, estimate: Estimate, load: Load, *, overdue_at: float, seq: int) -> Ticket:
        """A place in line for `request`, under the `load` it finds."""
        return Ticket(
            request=request,
            estimate=estimate,
            seq=seq,
            band=self._triage.triage(request, estimate, load) if self._triage else self._policy.band(request),
            flow=self._policy.flow(request),
            rank=self._policy.rank(request, estimate, load),
            charge=self._policy.charge(request, expected_usage(request, estimate)),
            overdue_at=overdue_at,
            lead=self._lead,
        )

    def rank_and_charge(self, request: Request, estimate: Estimate, load: Load) -> tuple[float, float]:
        """What a new estimate makes of a request that waits; `load` is that of its admission."""
        rank = self._policy.rank(request, estimate, load)
        return rank, self._policy.charge(request, expected_usage(request, estimate))

    def price(self, ticket: Ticket, usage: Usage) -> float:
        """What `usage` costs; the expected charge if the policy has no price for it, so that no slot is lost."""
        try:
            charge = self._policy.charge(ticket.request, usage)
            if isfinite(charge) and charge >= 0:
                return charge
            _logger.error(
                "policy priced %s of request %s at %s: charging what was expected", usage, ticket.id, charge
            )
        except Exception:  # a plug-in that cannot price must not keep its ticket in flight for ever
            _logger.exception(
                "policy could not price %s of request %s: charging what was expected", usage, ticket.id
            )
        return ticket.charge


def prices_alike(policy: Policy, tickets: Iterable[Ticket]) -> bool:
    """Whether `policy` would name and price each of the `tickets` as it is."""
    return all(
        (policy.flow(t.request), policy.charge(t.request, expected_usage(t.request, t.estimate)))
        == (t.flow, t.charge)
        for t in tickets
    )


def expected_usage(request: Request, estimate: Estimate) -> Usage:
    """What serving `request` should come to."""
    return Usage(request.prompt_tokens, round(estimate.expected_tokens))
