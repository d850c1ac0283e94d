"""A pure, iteration-level model of an inference engine: no clock, no I/O, only arithmetic.

The simulator steps it in virtual time and the simulated engine steps the same object on the wall clock, so the two
cannot disagree about the machine.

An iteration is one forward pass. It gives one token to every decoding sequence, and spends what is left of its
token budget on prompts, first come first served, cut into chunks (continuous batching as in Orca, Yu et al., OSDI
2022; chunked prefill as in Sarathi-Serve, Agrawal et al., OSDI 2024). The chunk that completes a prompt also
produces the first token. A sequence holds KV room for its prompt and all it generated; when the decoding sequences
cannot all grow, those admitted last go back to the head of the line, and later compute anew their prompt and what
they had generated.

While the composition of the batch stays the same, n iterations differ only by the context they read, which grows
by one token per sequence. Their total is n * first + kv * B * n * (n - 1) / 2, so a stretch of any length costs the
same to simulate; what a sequence has generated follows from the iteration in which it joined, and is never counted
up.
"""

from collections import deque
from heapq import heappop, heappush
from math import inf, sqrt
from typing import Literal, NamedTuple

from driftsched.engines.presets import Hardware

Mode = Literal["continuous", "static"]


class Step(NamedTuple):
    """One or more consecutive iterations over the same batch."""

    started_at: float
    ended_at: float
    num_steps: int
    """Iterations; 0 only when a static batch ended because its last running member was cancelled."""
    first_tokens: list[str]
    """Jobs whose first token came at `ended_at`."""
    finished: list[str]
    """Jobs whose last token came at `ended_at`; the model has forgotten them."""
    milestones: tuple[tuple[str, int], ...] = ()
    """Jobs that at `ended_at` had as many tokens as they are watched for, and how many these are."""


class _Job:
    """One sequence, from `add` to its end."""

    __slots__ = (
        "completion_tokens",
        "finish_step",
        "generated",
        "id",
        "joined_step",
        "milestone",
        "prefill_left",
        "prompt_tokens",
        "ready_at",
    )

    def __init__(self, job_id: str, prompt_tokens: int, completion_tokens: int, ready_at: float) -> None:
        self.id = job_id
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = completion_tokens
        self.ready_at = ready_at
        self.generated = 0  # when decoding: as of `joined_step`
        self.prefill_left = 0
        self.joined_step = -1  # -1: not decoding
        self.milestone = 0  # a token count at which a step is to end; 0: none, or passed
        self.finish_step = -1  # the step count at which its last token is there; -1: not decoding

    @property
    def prefill_tokens(self) -> int:
        """What must be computed before it can decode: the prompt, and after a preemption its own output too."""
        return self.prompt_tokens + self.generated


class BatchModel:
    """An engine that batches sequences, iteration by iteration.

    `continuous` admits a waiting job at any iteration boundary, as serving engines do. `static` is the closed
    micro-batch of the DriftSched paper (arXiv:2606.02982): a batch is collected until it has `max_num_seqs` members
    or `batch_wait_seconds` have passed since the engine was free and somebody waited; nobody is admitted until its
    longest member is done; and all of it is reported at that moment, so that first token and end coincide. Inside
    the batch the same iterations are run, and a member that is done leaves the computation.

    Time is the caller's, in seconds. A job added at `now` may take part in the first iteration that begins at or
    after `now + api`, `api` being the hardware's time per request outside the batch. An iteration under way is
    never changed: what arrives during it waits for its end.
    """

    def __init__(
        self,
        hardware: Hardware,
        *,
        mode: Mode = "continuous",
        max_num_seqs: int = 32,
        max_num_batched_tokens: int = 2048,
        kv_tokens: int | None = None,
        batch_wait_seconds: float = 0.01,
    ) -> None:
        """Limits: `max_num_seqs` sequences at once (>= 1), `max_num_batched_tokens` per iteration (no fewer than
        sequences), `kv_tokens` of context held (>= 2; None: what the hardware has). `batch_wait_seconds` (>= 0)
        matters to `static` only. Raises `ValueError` naming the argument that is out of range.
        """
        if mode not in ("continuous", "static"):
            raise ValueError(f"mode must be 'continuous' or 'static', not {mode!r}")
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        if max_num_batched_tokens < max_num_seqs:
            raise ValueError(
                f"max_num_batched_tokens must be at least max_num_seqs ({max_num_seqs}) so that every sequence can "
                f"decode, not {max_num_batched_tokens}"
            )
        if kv_tokens is not None and kv_tokens < 2:
            raise ValueError(f"kv_tokens must be at least 2, not {kv_tokens}")
        if batch_wait_seconds < 0:
            raise ValueError(f"batch_wait_seconds must not be negative, but is {batch_wait_seconds}")
        self.hardware = hardware
        self.mode: Mode = mode
        self.max_num_seqs = max_num_seqs
        self.kv_tokens = hardware.kv_tokens if kv_tokens is None else kv_tokens
        self._static = mode == "static"
        self._max_num_batched_tokens = max_num_batched_tokens
        self._batch_wait_seconds = batch_wait_seconds
        self._api_seconds = hardware.api_ms * 1e-3
        self._kv_seconds = hardware.kv_ns_per_token * 1e-9
        self._time = 0.0
        self._step = 0  # iterations so far
        self._jobs: dict[str, _Job] = {}
        self._waiting: deque[_Job] = deque()
        # Who may be admitted now: everybody, or what is left outside of a static batch that has begun.
        self._line: deque[_Job] = deque() if self._static else self._waiting
        self._running: dict[str, _Job] = {}  # holds a seat; in order of admission
        self._prefilling: _Job | None = None  # the one running job with a part of its prompt to go, admitted last
        self._num_decoding = 0
        self._context_tokens = 0  # KV held by decoding jobs: prompt and all generated
        self._reserved_tokens = 0  # KV held by jobs in prefill: theirs, and room for the token it will produce
        self._finishes: list[
            tuple[int, int, _Job]
        ] = []  # (finish step, when it joined, job); stale ones are skipped
        self._milestones: list[tuple[int, int, _Job]] = []  # the same of milestones
        self._num_joined = 0
        self.num_preemptions = 0  # times that a job lost its seat for want of KV room
        self._done: list[str] = []  # static: finished members of a batch that still runs

    @property
    def time(self) -> float:
        """The end of the last iteration, seconds."""
        return self._time

    @property
    def num_running(self) -> int:
        """Jobs that hold one of the `max_num_seqs` seats."""
        return len(self._running)

    @property
    def num_waiting(self) -> int:
        """Jobs without a seat, preempted ones included."""
        return len(self._waiting) + (len(self._line) if self._static else 0)

    @property
    def kv_used(self) -> int:
        """Context tokens held, never more than `kv_tokens`."""
        return self._context_tokens + self._reserved_tokens

    @property
    def next_step_at(self) -> float:
        """When the next iteration begins if nothing else is added, seconds; infinity while idle."""
        if self._running or self._done or (self._static and self._line):
            return self._time
        if not self._waiting:
            return inf
        opens_at = max(self._time, self._waiting[0].ready_at)
        return self._batch_closes_at(opens_at) if self._static else opens_at

    def resize(self, max_num_seqs: int) -> None:
        """Change the number of seats, >= 1. Who sits on one too many keeps it to the end."""
        if max_num_seqs < 1:
            raise ValueError(f"max_num_seqs must be at least 1, not {max_num_seqs}")
        self.max_num_seqs = max_num_seqs
        self._max_num_batched_tokens = max(self._max_num_batched_tokens, max_num_seqs)

    def retime(self, hardware: Hardware) -> None:
        """Take as long as `hardware` says from the next iteration on. The room for context stays what it was."""
        self.hardware = hardware
        self._api_seconds = hardware.api_ms * 1e-3
        self._kv_seconds = hardware.kv_ns_per_token * 1e-9

    def add(self, job_id: str, prompt_tokens: int, completion_tokens: int, now: float) -> None:
        """Let a job wait that will generate exactly `completion_tokens`; both counts >= 1.

        Raises `ValueError` if a count is out of range, if the id is in use, or if prompt and completion together
        exceed `kv_tokens`: such a job could never finish, even alone.
        """
        if prompt_tokens < 1 or completion_tokens < 1:
            raise ValueError(
                "prompt_tokens and completion_tokens must be at least 1, "
                f"not {prompt_tokens} and {completion_tokens}"
            )
        if prompt_tokens + completion_tokens > self.kv_tokens:
            raise ValueError(
                f"prompt_tokens + completion_tokens must not exceed kv_tokens ({self.kv_tokens}), "
                f"but are {prompt_tokens} + {completion_tokens}"
            )
        if job_id in self._jobs:
            raise ValueError(f"job_id {job_id!r} is in use: give every job its own")
        job = _Job(job_id, prompt_tokens, completion_tokens, now + self._api_seconds)
        self._jobs[job_id] = job
        self._waiting.append(job)

    def watch(self, job_id: str, tokens: int) -> None:
        """End a step where a job, just added, has generated `tokens` >= 2, and tell it then.

        Of a static batch it is told at its end, as all else is. Raises `KeyError` if the job is unknown.
        """
        self._jobs[job_id].milestone = tokens

    def cancel(self, job_id: str) -> int | None:
        """Forget a job and free its seat and KV room at once; the tokens it has generated, None if unknown."""
        job = self._jobs.pop(job_id, None)
        if job is None:
            return None
        generated = self._count(job)
        if self._running.pop(job_id, None):
            self._release(job)
        elif job_id in self._done:
            self._done.remove(job_id)
        elif self._static and job in self._line:
            self._line.remove(job)
        else:
            self._waiting.remove(job)
        return generated

    def generated(self, job_id: str) -> int:
        """Tokens a job has generated by `time`. Raises `KeyError` if it is unknown, finished or cancelled."""
        return self._count(self._jobs[job_id])

    def advance(self, until: float = inf, max_steps: int | None = None) -> Step | None:
        """Run the next iterations over one and the same batch.

        That is a single one if it computes (a part of) a prompt; else as many as there are until a job finishes, a
        job could be admitted or KV room runs out, none of them beginning at or after `until`, and at most
        `max_steps` (>= 1). None if nothing can begin before `until`: the model is idle, or its time has come that
        far. So call it until it returns None, then add what arrives at `until`.
        """
        started_at = self.next_step_at
        if started_at >= until:
            return None
        self._time = started_at
        if self._static:
            self._open_batch()
        self._make_room()
        decoding = self._num_decoding
        prefill_tokens, prefilled, num_prefills = self._schedule_prefills()
        seconds = self.hardware.step_seconds(
            decoding + prefill_tokens, decoding + num_prefills, self._context_tokens
        )
        growth = self._kv_seconds * decoding
        num_steps = 1 if num_prefills else self._num_alike(seconds, growth, until, max_steps)
        self._time += _total(num_steps, seconds, growth)
        self._step += num_steps
        self._context_tokens += num_steps * decoding
        first_tokens = self._start_decoding(prefilled)
        milestones = self._pop_milestones() if self._milestones else ()
        finished = self._pop_finished()
        if self._static:
            first_tokens = finished = self._withhold(finished)
            milestones = tuple((i, self._jobs[i].milestone) for i in finished if self._jobs[i].milestone)
        for job_id in finished:
            del self._jobs[job_id]
        return Step(started_at, self._time, num_steps, first_tokens, finished, milestones)

    def _batch_closes_at(self, opens_at: float) -> float:
        """When a static batch begins to run that is open for members since `opens_at`."""
        closes_at = opens_at + self._batch_wait_seconds
        if len(self._waiting) < self.max_num_seqs:
            return closes_at
        full_at = max(opens_at, self._waiting[self.max_num_seqs - 1].ready_at)
        return min(closes_at, full_at)

    def _open_batch(self) -> None:
        """Unless a static batch runs, choose the members of the next."""
        if self._running or self._line or self._done:
            return
        while self._waiting and len(self._line) < self.max_num_seqs and self._waiting[0].ready_at <= self._time:
            self._line.append(self._waiting.popleft())

    def _make_room(self) -> None:
        """Preempt until every decoding job can grow by a token. One job alone always can: see `add`."""
        while self._context_tokens + self._reserved_tokens + self._num_decoding > self.kv_tokens:
            _, job = self._running.popitem()
            self.num_preemptions += 1
            self._release(job)
            self._line.appendleft(job)

    def _release(self, job: _Job) -> None:
        """Take back the KV room of a job that has just lost its seat."""
        if job is self._prefilling:
            self._prefilling = None
            self._reserved_tokens -= job.prefill_tokens + 1
            return
        job.generated = self._count(job)
        job.joined_step = job.finish_step = -1
        self._num_decoding -= 1
        self._context_tokens -= job.prefill_tokens

    def _schedule_prefills(self) -> tuple[int, list[_Job], int]:
        """Spend what decoding leaves of the token budget: tokens computed, prompts completed, prompts worked on."""
        budget = left = self._max_num_batched_tokens - self._num_decoding
        prefilled: list[_Job] = []
        while left and (job := self._prefilling or self._admit()):
            chunk = min(left, job.prefill_left)
            left -= chunk
            job.prefill_left -= chunk
            self._prefilling = job if job.prefill_left else None
            if not job.prefill_left:
                prefilled.append(job)
        return budget - left, prefilled, len(prefilled) + (self._prefilling is not None)

    def _admit(self) -> _Job | None:
        """Give the head of the line a seat, if there is one and its KV room beside this iteration's growth."""
        if not self._line or len(self._running) >= self.max_num_seqs:
            return None
        job = self._line[0]
        held = self._context_tokens + self._reserved_tokens + self._num_decoding
        if job.ready_at > self._time or held + job.prefill_tokens + 1 > self.kv_tokens:
            return None
        self._line.popleft()
        self._running[job.id] = job
        job.prefill_left = job.prefill_tokens
        self._reserved_tokens += job.prefill_left + 1
        return job

    def _num_alike(self, seconds: float, growth: float, until: float, max_steps: int | None) -> int:
        """How many iterations of pure decoding can be run before the batch may change."""
        if not self._num_decoding:
            return 0
        most = self._next_finish() - self._step
        if self._milestones:
            most = min(most, self._next_milestone() - self._step)
        most = min(most, (self.kv_tokens - self._context_tokens) // self._num_decoding)
        if max_steps is not None:
            most = min(most, max_steps)
        if self._line and len(self._running) < self.max_num_seqs:
            head_at = self._line[0].ready_at
            if head_at > self._time:  # else it waits for KV room, which only a finish can give
                until = min(until, head_at)
        return _num_begun(until - self._time, seconds, growth, most)

    def _next_finish(self) -> int:
        """The step count at which the next of the decoding jobs, of which there is one, finishes."""
        while self._finishes[0][2].finish_step != self._finishes[0][0]:
            heappop(self._finishes)
        return self._finishes[0][0]

    def _next_milestone(self) -> int:
        """The step count at which the next decoding job passes its milestone, or one beyond every finish."""
        while self._milestones and not _passes(self._milestones[0]):
            heappop(self._milestones)
        return self._milestones[0][0] if self._milestones else self._next_finish()

    def _pop_milestones(self) -> tuple[tuple[str, int], ...]:
        """The jobs that have just passed theirs."""
        passed = []
        while self._milestones and self._milestones[0][0] <= self._step:
            entry = heappop(self._milestones)
            if _passes(entry):
                job = entry[2]
                passed.append((job.id, job.milestone))
                job.milestone = 0
        return tuple(passed)

    def _start_decoding(self, prefilled: list[_Job]) -> list[str]:
        """Give each job whose prompt is computed its token; the ids of those for which it is the first."""
        first_tokens = []
        for job in prefilled:
            self._reserved_tokens -= job.prefill_tokens + 1
            job.generated += 1
            if job.generated == 1:
                first_tokens.append(job.id)
            job.joined_step = self._step
            job.finish_step = self._step + job.completion_tokens - job.generated
            self._num_decoding += 1
            self._context_tokens += job.prefill_tokens
            self._num_joined += 1
            heappush(self._finishes, (job.finish_step, self._num_joined, job))
            if job.milestone >= job.generated and not self._static:
                marked_step = self._step + job.milestone - job.generated
                heappush(self._milestones, (marked_step, self._num_joined, job))
        return first_tokens

    def _pop_finished(self) -> list[str]:
        """Free what the jobs held that have all their tokens; their ids, in the order in which they joined."""
        finished = []
        while self._finishes and self._finishes[0][0] <= self._step:
            finish_step, _, job = heappop(self._finishes)
            if job.finish_step == finish_step:  # else it was preempted or cancelled meanwhile
                del self._running[job.id]
                self._release(job)
                finished.append(job.id)
        return finished

    def _withhold(self, finished: list[str]) -> list[str]:
        """Keep back what a static batch finished until all of it is done."""
        self._done += finished
        if self._running or self._line:
            return []
        done, self._done = self._done, []
        return done

    def _count(self, job: _Job) -> int:
        return job.generated + (self._step - job.joined_step if job.joined_step >= 0 else 0)


def _passes(entry: tuple[int, int, _Job]) -> bool:
    """The job decodes, and will have as many tokens at this step: else it was preempted, cancelled or told."""
    step, _, job = entry
    return job.milestone > 0 and job.joined_step >= 0 and job.generated + step - job.joined_step == job.milestone


def _total(num_steps: int, seconds: float, growth: float) -> float:
    """Duration of iterations of which the first takes `seconds` and each `growth` more than the one before."""
    return num_steps * seconds + growth * (num_steps * (num_steps - 1) // 2)


def _num_begun(horizon: float, seconds: float, growth: float, most: int) -> int:
    """How many such iterations, 1 to `most`, begin less than `horizon` (> 0) seconds after the first."""
    if _total(most - 1, seconds, growth) < horizon:
        return most
    slope = seconds - growth / 2
    root = (sqrt(slope * slope + 2 * growth * horizon) - slope) / growth if growth > 0 else horizon / seconds
    begun = max(1, int(root) + 1)
    while begun > 1 and _total(begun - 1, seconds, growth) >= horizon:  # the root is rounded: settle it exactly
        begun -= 1
    while begun < most and _total(begun, seconds, growth) < horizon:
        begun += 1
    return begun
