"""How long the engine takes, learnt as it serves: the coefficients of an iteration from each answer's own times.

Between its first and its last token an answer of n tokens saw n - 1 iterations. Their mean time is a linear
equation in the coefficients of the engine model, and so is the time to the first token:

    base + r * sequences + kv * context tokens + g * tokens computed (+ api, once, to the first token)

What the engine held meanwhile is known from the others: sums over time are kept, so that a span costs one
subtraction. The equations are kept as their sum, the past forgotten, and solved for coefficients that are not
negative. Unlike `fit`, which reads a finished run several times over, this costs some 20 us a request, and takes
the engine for linear: the knee below which reading the weights hides the arithmetic is not told.
"""

from dataclasses import dataclass
from math import sqrt

from driftsched.engines.presets import Hardware

MIN_ANSWERS = 30
"""Fewer say nothing."""
MEMORY = 2000
"""Answers after which one counts for 1 / e."""
UNSURE_ANSWERS = 200
MIN_GAP_SECONDS = 0.005
"""Between two answers that are learnt from: of a faster gateway, a sample is enough."""
MAX_FACTOR = 5.0
"""An iteration that took so many times the usual one, or that part of it, is counted as if it had not taken longer,
or less: a client that reads slowly, or an engine that stalled, is no property of the engine."""
RIDGE = 1e-4
"""By which share of its own weight each coefficient is drawn to 0: where the load hardly changes, several explain
the same, and then they share it."""
SWEEPS = 200
"""Of each solution, which goes on where the last one ended: below 2 ms."""

_SIZE = 5  # base, r, kv, g, api
_ROOM = 1 << 40  # context tokens: that requests wait for memory inside of the engine is not told


@dataclass(frozen=True, slots=True)
class _Mark:
    """What the sums were when an answer began its first or second part."""

    at: float
    sequences: float
    context: float
    prompts: float
    busy: bool


class Pace:
    """Told of each dispatch, first token and end, in order of time; tells what the engine is like.

    Several engines that share the requests look like one that serves them all: what is fitted is the time of an
    iteration by what all of them hold.
    """

    def __init__(self) -> None:
        self.num_answers = 0
        """That something was learnt from."""
        self._at = 0.0
        self._num_decoding = 0
        self._prompt_context = 0.0  # prompt tokens of what decodes
        self._began = 0.0  # sum of the instants at which those that decode began to
        # integrals over time, and a count
        self._sequences = 0.0
        self._context = 0.0
        self._prompts = 0.0  # prompt tokens computed so far
        self._dispatched: dict[str, _Mark] = {}
        self._decoding: dict[str, tuple[_Mark, int]] = {}
        self._iteration = 0.0  # usual seconds; 0 until one is known
        self._matrix = [[0.0] * _SIZE for _ in range(_SIZE)]
        self._vector = [0.0] * _SIZE
        self._growth = 1.0
        self._learnt_at = -MIN_GAP_SECONDS
        self._num_unsure = 0
        self._solution = [0.0] * _SIZE

    def dispatched(self, request_id: str, at: float) -> None:
        """The engine was given the request."""
        self._dispatched[request_id] = self._mark(at)

    def first_token(self, request_id: str, prompt_tokens: int, at: float) -> None:
        """Its answer began."""
        before = self._dispatched.pop(request_id, None)
        self._prompts += prompt_tokens
        mark = self._mark(at)
        if before is not None and self._iteration and at - self._learnt_at >= MIN_GAP_SECONDS:
            self._learn_start(before, mark)
        self._decoding[request_id] = mark, prompt_tokens
        self._num_decoding += 1
        self._prompt_context += prompt_tokens
        self._began += at

    def ended(self, request_id: str, completion_tokens: int, at: float, *, finished: bool) -> None:
        """Its answer ended, or it left; only one that `finished` teaches."""
        self._dispatched.pop(request_id, None)
        mark = self._mark(at)
        began, prompt_tokens = self._decoding.pop(request_id, (None, 0))
        if began is None:
            return
        self._num_decoding -= 1
        self._prompt_context -= prompt_tokens
        self._began = self._began - began.at if self._num_decoding else 0.0
        self._num_unsure = max(0, self._num_unsure - 1)
        is_due = at - self._learnt_at >= MIN_GAP_SECONDS and not self._num_unsure
        if is_due and finished and completion_tokens > 1 and at > began.at:
            self._learnt_at = at
            self._learn_answer(began, mark, completion_tokens - 1)

    def begin_again(self) -> None:
        """Something was missed: what the engine holds is not known until `UNSURE_ANSWERS` more have ended."""
        self._dispatched.clear()
        self._decoding.clear()
        self._num_decoding = 0
        self._prompt_context = self._began = 0.0
        self._num_unsure = UNSURE_ANSWERS

    def hardware(self) -> Hardware | None:
        """The engine as far as it is known; None before `MIN_ANSWERS` answers."""
        if self.num_answers < MIN_ANSWERS:
            return None
        self._forget()
        self._solve()
        base, r, kv, g, api = self._solution
        return Hardware(
            name="as measured",
            host_ms=0.0,
            floor_ms=base * 1e3,
            g0_ms=base * 1e3,
            g_us_per_token=g * 1e6,
            r_us_per_sequence=r * 1e6,
            kv_ns_per_token=kv * 1e9,
            api_ms=api * 1e3,
            kv_tokens=_ROOM,
            source="measured",
            note="from the times of the answers served last",
        )

    def _mark(self, at: float) -> _Mark:
        """Let time come to `at`, and say what the sums are."""
        passed = max(0.0, at - self._at)
        self._at = max(at, self._at)
        if self._num_decoding:
            generated = 0.0
            if self._iteration:  # each of those that decode has had one token an iteration; at half of the time
                generated = (self._num_decoding * (self._at - passed / 2) - self._began) / self._iteration
            self._sequences += passed * self._num_decoding
            self._context += passed * (self._prompt_context + generated)
        return _Mark(self._at, self._sequences, self._context, self._prompts, self._num_decoding > 0)

    def _learn_start(self, before: _Mark, after: _Mark) -> None:
        """From dispatch to first token: half of the iteration under way, and its own."""
        seconds = after.at - before.at
        iterations = 1.5 if before.busy else 1.0
        share = iterations / seconds if seconds > 0 else 0.0
        sequences = (after.sequences - before.sequences) * share
        context = (after.context - before.context) * share
        prompts = after.prompts - before.prompts
        self._add((iterations, sequences, context, prompts + sequences, 1.0), seconds, weight=1.0)

    def _learn_answer(self, before: _Mark, after: _Mark, iterations: int) -> None:
        seconds = after.at - before.at
        mean = seconds / iterations
        if self._iteration:
            mean = min(max(mean, self._iteration / MAX_FACTOR), self._iteration * MAX_FACTOR)
        self.num_answers += 1
        self._iteration += (mean - self._iteration) / min(self.num_answers, 100)
        sequences = (after.sequences - before.sequences) / seconds
        context = (after.context - before.context) / seconds
        prompts = (after.prompts - before.prompts) / iterations
        self._growth *= 1 + 1 / MEMORY
        self._add((1.0, sequences, context, prompts + sequences, 0.0), mean, weight=sqrt(iterations))

    def _add(self, features: tuple[float, ...], seconds: float, weight: float) -> None:
        weight *= self._growth
        a, b, c, d, e = features
        for row, one, place in zip(self._matrix, features, range(_SIZE), strict=True):
            scaled = weight * one
            row[0] += scaled * a
            row[1] += scaled * b
            row[2] += scaled * c
            row[3] += scaled * d
            row[4] += scaled * e
            self._vector[place] += scaled * seconds

    def _forget(self) -> None:
        """Equations weigh more and more as they come; now the last one shall weigh 1."""
        self._matrix = [[value / self._growth for value in row] for row in self._matrix]
        self._vector = [value / self._growth for value in self._vector]
        self._growth = 1.0

    def _solve(self) -> None:
        """Least squares, nothing below 0: one coefficient after the other, begun where the last solution ended."""
        solution = self._solution
        for _ in range(SWEEPS):
            for place, row in enumerate(self._matrix):
                if row[place] <= 0.0:
                    continue
                rest = self._vector[place] - sum(a * b for a, b in zip(row, solution, strict=True))
                own = row[place]
                solution[place] = max(0.0, (rest + own * solution[place]) / (own * (1 + RIDGE)))
