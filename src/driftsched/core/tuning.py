"""Which of a few policies serves an operator's goal best, by what each would have given; slowly, with hysteresis.

The candidates are in order, the most careful first. Those of one policy are a grid: it is gone along by one step at
a time. Figures that differ by less than a margin count as equal, in the goal and in its bounds:

    up        to a candidate better by the margin, and within every bound by the margin, in three windows in a row
    down      at once, if the candidate in force is beyond a bound by the margin
    to first  at once, if predictions are worth nothing; nothing goes up until they are

Why the margin is on both sides: figures that are off by up to half of it then never look different in both
directions, so that noise moves nothing to and fro.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import inf

from driftsched.core.errors import ConfigError
from driftsched.core.evidence import Evidence
from driftsched.core.goals import Goal
from driftsched.core.specs import parse_spec

MARGIN = 0.06
"""Above what two figures differ by when each is off by 3 % the other way."""
PATIENCE = 3
"""Windows in a row that must agree before anything goes up, and that pass before it may go on."""
LONG_REST = 12
"""Windows that pass after a bound was broken, so that waves of load do not move it to and fro."""


@dataclass(frozen=True, slots=True)
class Choice:
    """Another candidate is to serve."""

    policy: str
    """As `core.specs` writes it."""
    why: str


class Tuner:
    """Judges one window after the other. Holds what is in force, so every choice must be carried out."""

    def __init__(
        self,
        goal: Goal,
        candidates: Sequence[str],
        current: str,
        *,
        change_policy: bool = False,
        every_seconds: float = 300.0,
        min_requests: int = 300,
    ) -> None:
        """`candidates`: as `core.specs` writes them, the most careful first; `current`, the one in force, is among
        them. With `change_policy` they may be of several policies. `every_seconds`: from one window looked at to
        the next; `min_requests`: a window of fewer is passed over.

        Raises `ConfigError` for fewer than two candidates, one given twice, or several policies without leave.
        """
        self._goal = goal
        self._candidates = tuple(candidates)
        self._grids = {spec: parse_spec(spec)[0] for spec in self._candidates}
        if len(self._candidates) < 2 or len(self._grids) < len(self._candidates):
            raise ConfigError("candidates: give at least two, and none twice")
        if len(set(self._grids.values())) > 1 and not change_policy:
            raise ConfigError("candidates: are of several policies: set change_policy, or leave the others out")
        self.current = current
        self._every_seconds = every_seconds
        self._min_requests = min_requests
        self._next_at = -inf
        self._favourite: str | None = None
        self._num_windows = 0  # in a row that were for the favourite
        self._rest = 0  # windows in which nothing goes up

    def observe(self, evidence: Evidence, *, useful: bool) -> Choice | None:
        """What is to be changed after this window. `useful`: predictions are worth something."""
        if evidence.ended_at < self._next_at or evidence.live.times.requests < self._min_requests:
            return None
        self._next_at = evidence.ended_at + self._every_seconds
        self._rest = max(0, self._rest - 1)
        if not useful:
            return self._fall_back()
        return self._back_off(evidence) or self._go_up(evidence)

    def _fall_back(self) -> Choice | None:
        self._favourite = None
        return self._choose(self._candidates[0], "predictions do not tell long answers from short ones", PATIENCE)

    def _back_off(self, evidence: Evidence) -> Choice | None:
        """Down the grid, to the best one that holds what is promised; to the first if none does."""
        share = self._share(self.current, evidence)
        if share is None or share <= 1 + MARGIN:
            return None
        lower = self._candidates[: self._candidates.index(self.current)]
        holding = [spec for spec in lower if self._holds(spec, evidence)]
        best = min(holding, key=self._ordering(evidence), default=self._candidates[0])
        beyond = ", ".join(str(bound) for bound in self._goal.bounds)
        return self._choose(best, f"{100 * (share - 1):.0f} % beyond {beyond}", LONG_REST)

    def _go_up(self, evidence: Evidence) -> Choice | None:
        step = self._step(evidence)
        self._num_windows = self._num_windows + 1 if step == self._favourite else 1
        self._favourite = step
        if step is None or self._num_windows < PATIENCE or self._rest:
            return None
        now, then = (self._value(spec, evidence) for spec in (self.current, step))
        why = f"{self._goal.figure} would be {then:.2f} s, not {now:.2f} s, and what must hold does"
        return self._choose(step, why, PATIENCE)

    def _step(self, evidence: Evidence) -> str | None:
        """The next candidate on the way to the best one that there is a way to; None to stay."""
        now = self._value(self.current, evidence)
        if now is None:
            return None
        for target in sorted(self._known(evidence), key=self._ordering(evidence)):
            value, step = self._value(target, evidence), self._next_to(target)
            if value is None or value > (1 - MARGIN) * now:
                return None  # nor is any that follows better
            on_the_way = self._value(step, evidence)
            if on_the_way is None or on_the_way > now:
                continue
            if self._holds(target, evidence) and self._holds(step, evidence):
                return step
        return None

    def _next_to(self, target: str) -> str:
        """The neighbour of the current one towards a target of the same grid; a target of another one itself."""
        if self._grids[target] != self._grids[self.current]:
            return target
        grid = [spec for spec in self._candidates if self._grids[spec] == self._grids[target]]
        here, there = grid.index(self.current), grid.index(target)
        return grid[here + (there > here) - (there < here)]

    def _choose(self, spec: str, why: str, rest: int) -> Choice | None:
        if spec == self.current:
            return None
        self.current = spec
        self._rest = rest
        return Choice(spec, why)

    def _known(self, evidence: Evidence) -> Iterable[str]:
        return [spec for spec in self._candidates if self._value(spec, evidence) is not None]

    def _ordering(self, evidence: Evidence) -> Callable[[str], tuple[float, int]]:
        """Best first; of equals, the more careful."""
        return lambda spec: (self._value(spec, evidence) or 0.0, self._candidates.index(spec))

    def _value(self, spec: str, evidence: Evidence) -> float | None:
        found = evidence.of(spec)
        return self._goal.figure.of(found) if found else None

    def _share(self, spec: str, evidence: Evidence) -> float | None:
        found = evidence.of(spec)
        return self._goal.share(found, evidence) if found else None

    def _holds(self, spec: str, evidence: Evidence) -> bool:
        """Within every bound, by the margin."""
        share = self._share(spec, evidence)
        return share is not None and share <= 1 - MARGIN
