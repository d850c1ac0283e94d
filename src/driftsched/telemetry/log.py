"""A listener that writes down what an operator may want to read afterwards."""

import logging

from driftsched.core.events import DriftDetected, Event, PolicyChanged

_logger = logging.getLogger(__name__)


def log_drift(event: Event) -> None:
    """One line for each shift of lengths: information, since predictions follow it by themselves."""
    if isinstance(event, DriftDetected):
        _logger.info(
            "drift detected: answers of model %r in category %r have become %.2f times as long as before",
            event.model,
            event.category,
            event.factor,
        )


def log_policy(event: Event, pool: str = "") -> None:
    """One line for each change of the policy, of the pool if it is named: the order is another from here on."""
    if isinstance(event, PolicyChanged):
        whose = f" of pool {pool}" if pool else ""
        _logger.info("policy%s changed from %s to %s: %s", whose, event.before, event.after, event.why)
