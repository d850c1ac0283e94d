"""Whether the policy that serves is worse than another in every respect, and has been for a while."""

from driftsched.core.evidence import Evidence

MARGIN = 0.10
"""By this share both the median and P99 of the other must be lower."""
WINDOWS = 4
"""In so many windows in a row; as a quarter of each is new, this takes one whole window of new requests."""


class Dominance:
    """Judges window by window. Both ways it takes `WINDOWS` of them to change its mind."""

    def __init__(self) -> None:
        self.by: str | None = None
        """The policy that dominates the one that serves; None if none does."""
        self._candidate: str | None = None
        self._num_windows = 0

    def observe(self, evidence: Evidence) -> bool:
        """Whether this changed `by`."""
        found = _dominating(evidence, self._candidate)
        self._num_windows = self._num_windows + 1 if found == self._candidate else 1
        self._candidate = found
        if found == self.by or self._num_windows < WINDOWS:
            return False
        self.by = found
        return True


def _dominating(evidence: Evidence, preferred: str | None) -> str | None:
    """The policy with the lowest median of those that are better by the margin; `preferred` if it still is."""
    better = [
        shadow
        for shadow in evidence.shadows
        if shadow.times.p50 < (1 - MARGIN) * evidence.live.times.p50
        and shadow.times.p99 < (1 - MARGIN) * evidence.live.times.p99
    ]
    if preferred in [shadow.policy for shadow in better]:
        return preferred
    return min(better, key=lambda shadow: shadow.times.p50).policy if better else None
