"""Whether predictions tell long answers from short ones: if not, no order made of them is worth anything."""

from bisect import bisect_right, insort
from collections import Counter, deque
from math import sqrt

from driftsched.core.events import Event, Finished

MEMORY = 500
"""Answers looked at: those that ended last."""
MIN_ANSWERS = 100
"""Of fewer nothing can be told, and predictions are trusted."""
WORTHLESS, WORTH = 0.05, 0.10
"""Kendall's tau of predictions and lengths: certainly below the first they are trusted no more, from the second on
they are again. In between nothing changes, so that one chance answer changes nothing."""
CERTAIN = 1.28
"""Standard errors above what was found: nine times of ten, tau is below that."""


class Worth:
    """A listener that remembers what was predicted of the last answers, and how long they became.

    The prediction is the one that its last place in line was made of.
    """

    def __init__(self) -> None:
        self.useful = True
        """What `judge` said last."""
        self.tau = 0.0
        """Kendall's tau-b when it last judged, -1 .. 1; 0 if predictions or lengths were all the same."""
        self._answers: deque[tuple[float, int]] = deque(maxlen=MEMORY)

    def __call__(self, event: Event) -> None:
        if isinstance(event, Finished) and event.finish_reason != "length":  # else its length is not known
            self._answers.append((event.ticket.estimate.completion_tokens, event.usage.completion_tokens))

    def judge(self) -> bool:
        """Whether predictions are worth anything now. O(n log n) comparisons: under a millisecond."""
        number = len(self._answers)
        if number < MIN_ANSWERS:
            return self.useful
        self.tau = kendall_tau(self._answers)
        if self.tau + CERTAIN * _standard_error(number) < WORTHLESS:
            self.useful = False
        elif self.tau > WORTH:
            self.useful = True
        return self.useful


def kendall_tau(pairs: "deque[tuple[float, int]]") -> float:
    """Kendall's tau-b, -1 .. 1; 0 if all the first or all the second are equal.

    Of the pairs in the order of the first, the discordant ones are inversions (Knight, 1966).
    """
    total = _pairs(len(pairs))
    tied_first, tied_second, tied_both = (
        sum(map(_pairs, Counter(values).values()))
        for values in ((a for a, _ in pairs), (b for _, b in pairs), pairs)
    )
    if total in (tied_first, tied_second):
        return 0.0
    inversions, seen = 0, list[int]()
    for _, second in sorted(pairs):
        inversions += len(seen) - bisect_right(seen, second)
        insort(seen, second)
    surplus = total - tied_first - tied_second + tied_both - 2 * inversions
    return surplus / sqrt((total - tied_first) * (total - tied_second))


def _pairs(number: int) -> int:
    return number * (number - 1) // 2


def _standard_error(number: int) -> float:
    """That of tau where nothing depends on anything (Kendall, 1938)."""
    return sqrt(2 * (2 * number + 5) / (9 * number * (number - 1)))
