"""The queue against a reference that is too plain to be wrong, through any interleaving of its verbs.

The same machine is run on queues with planted faults, and has to catch each of them.
"""

from dataclasses import replace
from math import inf, nan
from typing import Any, TypeVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from driftsched.core.model import Ticket
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.driver import run_now
from queues.mutants import MUTANTS, Mutant, build
from support.queues import ReferenceQueue, entries_held, flows_remembered, most_entries, ticket

NUMBERS = st.integers(0, 9)
BANDS = st.sampled_from([0, 0, 0, 0, 1, 2])
FLOWS = st.sampled_from(["a", "b", "c"])
RANKS = st.sampled_from([0, 0.0, 1.0, 1.0, 2.5, -3.0])
CHARGES = st.sampled_from([0.0, 0.1, 0.2, 0.7, 1.0, 3.0, 100.0])
WAITS = st.sampled_from([inf] * 4 + [0.0, 1.0, 2.0, 5.0])
LEADS = st.sampled_from([0.0, 0.0, 0.0, 1.0, 3.0])
STEPS = st.sampled_from([0.0, 0.0, 0.0, 1.0])
SLOTS = st.sampled_from([9, 8, 7, 6, 5, 3, 1, 0])
NO_NUMBERS = st.sampled_from([nan, inf, -inf])
REPEATS = st.integers(20, 60)
"""Enough deaths for a sweep to begin, or to go on, or to end."""


T = TypeVar("T")


class QueueMachine(RuleBasedStateMachine):
    """Every verb, answered alike by both, with the accounts equal to the last bit after each."""

    make_queue: type[MemoryQueue] = MemoryQueue

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.seq = 0
        self.flows: set[tuple[int, str]] = set()

    @initialize(slots=SLOTS)
    def start(self, slots: int) -> None:
        self.queue = self.make_queue(slots)
        self.reference = ReferenceQueue(slots)

    @rule(
        places=st.lists(st.tuples(NUMBERS, BANDS, FLOWS, RANKS, CHARGES, WAITS, WAITS), min_size=3, max_size=12),
        lead=LEADS,
    )
    def some_come(self, places: list[tuple[int, int, str, float, float, float, float]], lead: float) -> None:
        for number, band, flow, rank, charge, overdue, expires in places:
            times = (self.now + overdue, self.now + expires)
            self._push(self._ticket(f"request-{number}", band, flow, rank, charge, *times, lead))

    more_come = some_come

    @rule(pops=st.lists(STEPS, min_size=1, max_size=6))
    def some_are_served(self, pops: list[float]) -> None:
        for seconds in pops:
            self.now += seconds
            popped = self.reference.pop(self.now)
            assert popped == run_now(self.queue.pop(self.now))
            if popped is not None:
                assert self.reference.why(popped.id) == run_now(self.queue.why(popped.id))

    more_are_served = some_are_served

    @rule(ends=st.lists(st.tuples(NUMBERS, CHARGES, st.booleans()), min_size=1, max_size=4))
    def some_are_settled(self, ends: list[tuple[int, float, bool]]) -> None:
        for number, charge, release in ends:
            self._settle(self._one_in_flight(number), charge, release=release)

    @rule(charge=CHARGES)
    def all_are_settled(self, charge: float) -> None:
        for ticket_id in list(self.reference.inflight):
            self._settle(ticket_id, charge, release=True)

    @rule(changes=st.lists(st.tuples(NUMBERS, RANKS, CHARGES), min_size=1, max_size=4))
    def some_are_moved(self, changes: list[tuple[int, float, float]]) -> None:
        for number, rank, charge in changes:
            self._rerank(self._one_that_waits(number), rank, charge)

    @rule(changes=st.lists(st.tuples(NUMBERS, BANDS, FLOWS, RANKS, CHARGES), min_size=1, max_size=4), lead=LEADS)
    def some_are_placed_anew(self, changes: list[tuple[int, int, str, float, float]], lead: float) -> None:
        for number, band, flow, rank, charge in changes:
            found = self.reference.find(self._one_that_waits(number)) or ticket("unknown", seq=0)
            self.flows.add((band, flow))
            self._move(replace(found, band=band, flow=flow, rank=rank, charge=charge, lead=lead))

    @rule(seconds=STEPS)
    def accounts_begin_anew(self, seconds: float) -> None:
        self.now += seconds
        self.reference.restart_accounts()
        run_now(self.queue.restart_accounts())

    @rule(numbers=st.lists(NUMBERS, min_size=1, max_size=2))
    def some_leave(self, numbers: list[int]) -> None:
        for number in numbers:
            self._remove(self._one_that_waits(number))

    @rule(seconds=STEPS, slots=SLOTS)
    def time_passes(self, seconds: float, slots: int) -> None:
        self.now += seconds
        assert self.reference.reap(self.now) == run_now(self.queue.reap(self.now))
        self._resize(slots)

    @rule(number=NUMBERS, wrong=NO_NUMBERS, band=BANDS, flow=FLOWS)
    def no_number_is_let_in(self, number: int, wrong: float, band: int, flow: str) -> None:
        for rank, charge in ((wrong, 1.0), (0.0, wrong), (0.0, -1.0)):
            with pytest.raises(ValueError, match="must be finite"):
                run_now(self.queue.push(self._ticket("wrong", band, flow, rank, charge, inf, inf)))
            with pytest.raises(ValueError, match="must be finite"):
                run_now(self.queue.push(self._ticket("wrong", band, flow, 0.0, 1.0, inf, inf, lead=wrong)))
            if self.reference.waiting:
                with pytest.raises(ValueError, match="must be finite"):
                    run_now(self.queue.rerank(self._one_that_waits(number), rank, charge))
                found = self.reference.find(self._one_that_waits(number))
                assert found is not None
                with pytest.raises(ValueError, match="must be finite"):
                    run_now(self.queue.move(replace(found, flow=f"not {found.flow}", rank=rank, charge=charge)))
        if self.reference.inflight:
            for charge in (wrong, -1.0):
                with pytest.raises(ValueError, match="must be finite"):
                    run_now(self.queue.settle(self._one_in_flight(number), charge, release=True))

    @rule(band=st.sampled_from([None, "0", nan, 0.5]), flow=st.sampled_from([None, 5, b"a"]))
    def no_place_is_let_in(self, band: Any, flow: Any) -> None:
        for place in ((band, "a"), (0, flow)):
            with pytest.raises(TypeError, match="must be"):
                run_now(self.queue.push(ticket("wrong", seq=0, band=place[0], flow=place[1])))

    @rule(number=NUMBERS, charge=CHARGES)
    def an_id_answers_only_where_it_is(self, number: int, charge: float) -> None:
        ticket_id = f"request-{number}"
        self._settle(ticket_id, charge, release=False)
        self._rerank(ticket_id, charge, charge)
        self._remove(ticket_id)

    @rule(number=NUMBERS, repeats=REPEATS, place=st.tuples(BANDS, FLOWS), lasting=st.booleans())
    def many_changes_nobody_is_served_by(
        self, number: int, repeats: int, place: tuple[int, str], lasting: bool
    ) -> None:
        """Preferably in a flow that is remembered though nothing of it waits."""
        band, flow = self._one_of(self._flows_ahead(), number) or place
        for repeat in range(repeats):
            self._push(self._ticket(f"guest-{repeat}", band, flow, 5.0, 1.0, 1e6 + repeat, 1e6 + repeat, 1.0))
            self._rerank(self._one_that_waits(number), 7.0 + repeat % 2, 1.0)
            self._settle(self._one_in_flight(number), 7.0 + repeat % 2, release=False)
            if not lasting:
                self._remove(f"guest-{repeat}")
        for repeat in range(0, repeats, 1 + lasting):
            self._remove(f"guest-{repeat}")

    @rule(repeats=REPEATS)
    def one_is_placed_anew_over_and_over(self, repeats: int) -> None:
        guest = self._ticket("guest", 0, "a", 5.0, 1.0, 1e6, 1e6, 1.0)
        self._push(guest)
        for repeat in range(2 * repeats):
            self._move(replace(guest, lead=1.0 + repeat % 2))
        self.memory_is_bounded()
        self._remove("guest")

    @invariant()
    def accounts_agree(self) -> None:
        assert len(self.reference.waiting) == self.queue.num_waiting
        assert len(self.reference.inflight) == self.queue.num_inflight
        for band, flow in self.flows:
            assert self.reference.service(band, flow) == self.queue.service(band, flow), (band, flow)

    @invariant()
    def memory_is_bounded(self) -> None:
        for held, living in entries_held(self.queue):
            assert held <= most_entries(living)
        assert len(self.reference.services) == flows_remembered(self.queue)

    def teardown(self) -> None:
        """What is left is served in the same order."""
        self._resize(1000)
        while waiting := self.reference.pop(self.now):
            assert waiting == run_now(self.queue.pop(self.now))
        assert run_now(self.queue.pop(self.now)) is None
        self.all_are_settled(1.0)
        self.accounts_agree()

    def _push(self, new: Ticket) -> None:
        if self.reference.find(new.id) or new.id in self.reference.inflight:
            with pytest.raises(ValueError, match=new.id):
                run_now(self.queue.push(new))
        else:
            self.reference.push(new)
            run_now(self.queue.push(new))

    def _settle(self, ticket_id: str, charge: float, *, release: bool) -> None:
        expected = self.reference.settle(ticket_id, charge, release=release)
        assert expected == run_now(self.queue.settle(ticket_id, charge, release=release))

    def _rerank(self, ticket_id: str, rank: float, charge: float) -> None:
        assert self.reference.rerank(ticket_id, rank, charge) == run_now(self.queue.rerank(ticket_id, rank, charge))

    def _move(self, ticket: Ticket) -> None:
        assert self.reference.move(ticket) == run_now(self.queue.move(ticket))

    def _remove(self, ticket_id: str) -> None:
        assert self.reference.remove(ticket_id) == run_now(self.queue.remove(ticket_id))

    def _resize(self, slots: int) -> None:
        self.reference.resize(slots)
        run_now(self.queue.resize(slots))

    def _one_in_flight(self, number: int) -> str:
        return self._one_of(list(self.reference.inflight), number) or "unknown"

    def _one_that_waits(self, number: int) -> str:
        return self._one_of([waiting.id for waiting in self.reference.waiting], number) or "unknown"

    def _flows_ahead(self) -> list[tuple[int, str]]:
        waiting = {(waiting.band, waiting.flow) for waiting in self.reference.waiting}
        return [flow for flow in self.reference.services if flow not in waiting]

    def _one_of(self, choices: list[T], number: int) -> T | None:
        return choices[number % len(choices)] if choices else None

    def _ticket(
        self,
        ticket_id: str,
        band: int,
        flow: str,
        rank: float,
        charge: float,
        overdue_at: float,
        expires_at: float,
        lead: float = 0.0,
    ) -> Ticket:
        self.flows.add((band, flow))
        self.seq += 1
        return ticket(
            ticket_id,
            seq=self.seq,
            band=band,
            flow=flow,
            rank=rank,
            charge=charge,
            overdue_at=overdue_at,
            expires_at=expires_at,
            lead=lead,
        )


def _settings(max_examples: int, phases: tuple[Phase, ...]) -> settings:
    return settings(
        max_examples=max_examples,
        stateful_step_count=30,
        derandomize=True,
        deadline=None,
        database=None,
        phases=phases,
        suppress_health_check=list(HealthCheck),
    )


def test_the_queue_agrees_with_the_reference() -> None:
    run_state_machine_as_test(QueueMachine, settings=_settings(200, (Phase.generate, Phase.shrink)))


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_fault_is_caught(mutant: Mutant) -> None:
    class FaultyMachine(QueueMachine):
        make_queue = build(mutant)

    with pytest.raises(Exception):  # noqa: B017, PT011 - a faulty queue may fail in any way
        run_state_machine_as_test(FaultyMachine, settings=_settings(1500, (Phase.generate,)))


def test_modules_compiled_anew_without_a_fault_pass() -> None:
    class SoundMachine(QueueMachine):
        make_queue = build(None)

    run_state_machine_as_test(SoundMachine, settings=_settings(50, (Phase.generate,)))
