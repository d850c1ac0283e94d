"""The reference system's machinery, where it differs from ours and shows in the published figures.

DriftSched (arXiv:2606.02982) has one worker that pops a micro-batch, lets the engine run it to the end, and only
then looks at the queue again; and it counts an answer by its words while the engine generates tokens.
"""

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from driftsched.core.model import Ticket, Usage
from driftsched.core.scheduler import Scheduler
from driftsched.engines.model import BatchModel, Mode
from driftsched.engines.presets import Hardware
from driftsched.sim.driver import Arrival, run_now

POLL_SECONDS = 1.0
"""How long the worker sleeps when the queue is empty."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, from the call of the engine to its return."""

    started_at: float
    ended_at: float
    size: int

    @property
    def seconds(self) -> float:
        return self.ended_at - self.started_at


class WordCountedEngine(BatchModel):
    """An engine whose clients count words: what it is asked to generate is looked up in tokens.

    So accounts, predictions and feedback are in words, as the reference's are, and the engine's time is not.
    """

    def __init__(
        self, hardware: Hardware, tokens: Mapping[str, tuple[int, int]], *, mode: Mode, max_num_seqs: int
    ) -> None:
        """`tokens`: prompt and completion tokens, each >= 1, by request id."""
        super().__init__(hardware, mode=mode, max_num_seqs=max_num_seqs)
        self._tokens = tokens

    def add(self, job_id: str, prompt_tokens: int, completion_tokens: int, now: float) -> None:  # noqa: ARG002
        """As `BatchModel.add`, but with the tokens known for `job_id`. Raises `KeyError` if there are none."""
        super().add(job_id, *self._tokens[job_id], now)


class Worker:
    """The reference's worker: one micro-batch after the other, in virtual time.

    A popped request has a slot until its whole batch is done, and nobody is popped meanwhile: the scheduler's queue
    must have as many slots as a batch has members.
    """

    def __init__(self, scheduler: Scheduler, engine: BatchModel, *, scan_seconds: float = 0.0) -> None:
        """`scan_seconds`: time to look at one waiting request, for a policy that looks at all of them per pop."""
        self._scheduler = scheduler
        self._engine = engine
        self._scan_seconds = scan_seconds
        self._arriving: deque[Arrival] = deque()
        self._truth: dict[str, Arrival] = {}
        self.batches: list[Batch] = []

    def serve(self, arrivals: Iterable[Arrival], now: float) -> float:
        """Serve `arrivals`, sorted by time, with a worker that wakes at `now`; when the last batch ended, seconds.

        May be called again with later arrivals.
        """
        self._arriving.extend(arrivals)
        ended_at = now
        while True:
            self._submit(now)
            now += self._scan_seconds * self._num_scanned()
            batch = self._pop(now)
            if batch:
                ended_at = now = self._run(batch, now)
            elif self._arriving:
                now += POLL_SECONDS
            else:
                return ended_at

    def _submit(self, now: float) -> None:
        """All that arrived by `now`."""
        while self._arriving and self._arriving[0].request.arrived_at <= now:
            arrival = self._arriving.popleft()
            self._truth[arrival.request.id] = arrival
            run_now(self._scheduler.submit(arrival.request, arrival.request.arrived_at))

    def _num_scanned(self) -> int:
        """Requests looked at while a batch is popped: all that wait, then all but one, and so on."""
        waiting = self._scheduler.load.num_waiting
        popped = min(waiting, self._engine.max_num_seqs)
        return popped * waiting - popped * (popped - 1) // 2

    def _pop(self, now: float) -> list[Ticket]:
        batch = []
        while ticket := run_now(self._scheduler.dispatch(now)):
            batch.append(ticket)
        return batch

    def _run(self, batch: list[Ticket], now: float) -> float:
        for ticket in batch:
            truth = self._truth[ticket.id]
            self._engine.add(ticket.id, ticket.request.prompt_tokens, truth.completion_tokens, now)
        step = None
        while step is None or not step.finished:
            step = self._engine.advance()
        self._submit(step.ended_at)  # what arrived meanwhile was predicted before anybody learnt from this batch
        for ticket in batch:
            truth = self._truth.pop(ticket.id)
            usage = Usage(ticket.request.prompt_tokens, truth.completion_tokens)
            run_now(self._scheduler.progress(ticket.id, usage, step.ended_at))  # an answer comes in one piece
            run_now(self._scheduler.finish(ticket.id, usage, truth.finish_reason, step.ended_at))
        self.batches.append(Batch(now, step.ended_at, len(batch)))
        return step.ended_at
