"""Faults planted in the queue, each a change of one piece of source. The model-based test must catch them all."""

import inspect
from types import ModuleType
from typing import NamedTuple

from driftsched.core import heaps, lines
from driftsched.queues import memory
from driftsched.queues.memory import MemoryQueue


class Mutant(NamedTuple):
    """A fault by name: in `module`, `sound` stands exactly once and becomes `faulty`."""

    name: str
    module: ModuleType
    sound: str
    faulty: str


MUTANTS = [
    Mutant("a flow is never lifted", lines, "max(flow.service, self.floor)", "flow.service"),
    Mutant("a flow is lifted past others", lines, "max(flow.service, self.floor)", "flow.service + self.floor"),
    Mutant(
        "no lift after the queue went empty",
        lines,
        "            band.raise_floor(flow.service)\n",
        "            pass\n",
    ),
    Mutant(
        "no lift after the last ticket was removed",
        lines,
        "            self.raise_floor(flow.service)\n",
        "            pass\n",
    ),
    Mutant(
        "the floor stands while others wait",
        lines,
        "            self.raise_floor(first.service)\n",
        "            pass\n",
    ),
    Mutant("the floor falls", lines, "self.floor = max(self.floor, service)", "self.floor = service"),
    Mutant("a flow ahead of the floor is forgotten", lines, "if flow.service <= self.floor:", "if True:"),
    Mutant("a flow in flight is forgotten", lines, "        if not flow.idle:\n            return\n", ""),
    Mutant(
        "a flow is taken for idle while it is popped",
        lines,
        "        flow.num_inflight += 1  #",
        "        flow.num_inflight += 0  #",
    ),
    Mutant("a flow passed by the floor is kept", lines, "and entry[0] <= self.floor:", "and False:"),
    Mutant("a flow at the floor is kept", lines, "if flow.service <= self.floor:", "if flow.service < self.floor:"),
    Mutant("no charge at pop", lines, "        band.add_service(flow, ticket.charge)\n", ""),
    Mutant(
        "a flow that waits keeps its old turn after a charge",
        lines,
        "        if flow.num_waiting:\n",
        "        if False:\n",
    ),
    Mutant("a refund is not paid", lines, "        if amount == 0.0:\n", "        if amount <= 0.0:\n"),
    Mutant("settled to the sum of charges", lines, "charge - charged", "charge"),
    Mutant(
        "settled part-way, the charge is not remembered",
        lines,
        "None if charged is None else charge, why)\n",
        "charged, why)\n",
    ),
    Mutant("settled twice", lines, "            del self._inflight[ticket_id]\n", "            pass\n"),
    Mutant("settled part-way, the slot is given back", lines, "        if release:\n", "        if True:\n"),
    Mutant(
        "bands are ignored",
        lines,
        "        for number in self._band_numbers:",
        "        for number in reversed(self._band_numbers):",
    ),
    Mutant("bands in order of first use", lines, "sorted(self._bands)", "list(self._bands)"),
    Mutant("ties by id", lines, "(ticket.rank, ticket.seq, ticket.id)", "(ticket.rank, ticket.id, ticket.id)"),
    Mutant(
        "ties by latest", lines, "(ticket.rank, ticket.seq, ticket.id)", "(ticket.rank, -ticket.seq, ticket.id)"
    ),
    Mutant("ranks are ignored", lines, "(ticket.rank, ticket.seq, ticket.id)", "(0.0, ticket.seq, ticket.id)"),
    Mutant("leads are ignored", lines, "self._first_within_lead(band, least) or ", ""),
    Mutant("leads have no limit", lines, " <= ticket.lead else None", " <= inf else None"),
    Mutant("a lead is used up a moment early", lines, "service <= ticket.lead", "service < ticket.lead"),
    Mutant("a lead is counted from nothing", lines, ".service - least.service <=", ".service <="),
    Mutant(
        "a lead is lost by being reranked",
        lines,
        "            band.ranked.push(place.entry)\n            band.ranked.sweep(",
        "            band.ranked.sweep(",
    ),
    Mutant(
        "all tickets have a lead",
        lines,
        "        if ticket.lead:\n            band.num_leading += 1",
        "        if True:\n            band.num_leading += 1",
    ),
    Mutant(
        "dead ranks are never swept",
        lines,
        "            band.num_leading -= 1\n            band.ranked.sweep(band.num_leading)\n",
        "            band.num_leading -= 1\n",
    ),
    Mutant("a lead that is no number is let in", lines, "    _check_numbers(0.0, ticket.lead)\n", ""),
    Mutant("overdue tickets wait on", lines, "overdue = self._longest_overdue(now)", "overdue = None"),
    Mutant("why is told of a flow's rank only", lines, "band.num_backlogged > 1", "band.num_backlogged > 2"),
    Mutant("a lead is told as the least service", lines, "band.least_served() is flow", "True"),
    Mutant("the only one of a band is not told", lines, "if flow.num_waiting == 1 else", "if False else"),
    Mutant("overdue a moment late", lines, "if entry and entry[0] <= now", "if entry and entry[0] < now"),
    Mutant(
        "any overdue ticket goes first",
        lines,
        "(ticket.overdue_at, ticket.seq, ticket.id)",
        "(-ticket.overdue_at, ticket.seq, ticket.id)",
    ),
    Mutant("a dead overdue ticket is served", lines, "place.ticket.seq == entry[1]", "True"),
    Mutant(
        "expired a moment late",
        lines,
        "(entry := self._expiring.first()) and entry[0] <= now",
        "(entry := self._expiring.first()) and entry[0] < now",
    ),
    Mutant(
        "expired tickets stay",
        lines,
        "            expired.append(ticket)\n",
        "            expired.append(ticket)\n            break\n",
    ),
    Mutant(
        "the old place of a reranked ticket is served",
        lines,
        "place is not None and place.entry is entry",
        "place is not None",
    ),
    Mutant("reranked at the old charge", lines, "rank=rank, charge=charge)", "rank=rank)"),
    Mutant("reranked at the old rank", lines, "rank=rank, charge=charge)", "charge=charge)"),
    Mutant("a number no order can hold is let in", lines, "    _check_numbers(ticket.rank, ticket.charge)\n", ""),
    Mutant("a rank no order can hold is let in later", lines, "        _check_numbers(rank, charge)\n", ""),
    Mutant("a place no order can hold is let in", lines, "    _check_names(ticket.band, ticket.flow)\n", ""),
    Mutant("an account is spoilt at settlement", lines, "        _check_numbers(0.0, charge)\n", ""),
    Mutant(
        "a refused ticket leaves its flow behind",
        lines,
        "        _check_place(ticket)\n        self._enter_flow(",
        "        made = _Flow(ticket.flow, LazyHeap(self._still_ranked))\n"
        "        self._band(ticket.band).flows.setdefault(ticket.flow, made)\n"
        "        _check_place(ticket)\n        self._enter_flow(",
    ),
    Mutant("moved to the old flow", lines, "self._enter_flow(ticket)  #", "self._enter_flow(before)  #"),
    Mutant("moved in the old lead", lines, "ticket.lead) == (before.band", "before.lead) == (before.band"),
    Mutant("moved in the old band", lines, "if (ticket.band, ticket.flow,", "if (before.band, ticket.flow,"),
    Mutant(
        "moved to no place",
        lines,
        "        _check_place(ticket)\n        self._leave_flow(",
        "        self._leave_flow(",
    ),
    Mutant(
        "who is moved expires twice",
        lines,
        "        self._leave_flow(before)\n        self._enter_flow(ticket)  #",
        "        self._leave_flow(before)\n        self.push(ticket)  #",
    ),
    Mutant("accounts begin anew above zero", lines, "self.floor = 0.0\n        self.flows = {n", "self.flows = {n"),
    Mutant("accounts that begin anew keep the idle", lines, "items() if not flow.idle}", "items()}"),
    Mutant("accounts that begin anew lose who flies", lines, "if not flow.idle}", "if flow.num_waiting}"),
    Mutant(
        "accounts that begin anew are settled at prices of before",
        lines,
        "(band, flow, None, why) for ticket_id, (band, flow, _, why)",
        "(band, flow, charge, why) for ticket_id, (band, flow, charge, why)",
    ),
    Mutant(
        "accounts that begin anew are charged part-way",
        lines,
        "None if charged is None else charge, why)",
        "charge, why)",
    ),
    Mutant("an id in flight may wait again", lines, " or ticket.id in self._inflight", ""),
    Mutant("an id that waits may wait again", lines, "ticket.id in self._waiting or ", ""),
    Mutant(
        "dead tickets are never swept",
        lines,
        "        flow.tickets.sweep(flow.num_waiting)\n        if ticket.lead:\n            band.num_leading -= 1",
        "        if ticket.lead:\n            band.num_leading -= 1",
    ),
    Mutant("dead overdue entries are never swept", lines, "        self._overdue.sweep(len(self._waiting))\n", ""),
    Mutant("dead expiry entries are never swept", lines, "        self._expiring.sweep(len(self._waiting))\n", ""),
    Mutant(
        "dead turns are never swept",
        lines,
        "            self.waiting.push(flow.new_entry())\n            self.waiting.sweep(self.num_backlogged)\n",
        "            self.waiting.push(flow.new_entry())\n",
    ),
    Mutant(
        "the old places of reranked tickets are never swept",
        lines,
        "        flow.tickets.sweep(flow.num_waiting)\n        if ticket.lead:\n            band.ranked.push",
        "        if ticket.lead:\n            band.ranked.push",
    ),
    Mutant(
        "the living are swept",
        heaps,
        "            if self._is_live(entry):\n                heappush",
        "            if not self._is_live(entry):\n                heappush",
    ),
    Mutant(
        "a sweep hides what it has not reached",
        heaps,
        "        if not self._unswept:\n            return first\n",
        "        return first\n",
    ),
    Mutant(
        "a sweep serves what it has not reached first",
        heaps,
        "return unswept if first is None or (unswept is not None and unswept < first) else first",
        "return unswept or first",
    ),
    Mutant("a sweep has no end", heaps, "SWEEP_LENGTH = 8", "SWEEP_LENGTH = 1"),
    Mutant(
        "one slot too many",
        memory,
        "if self._lines.num_inflight >= self._max_inflight:",
        "if self._lines.num_inflight > self._max_inflight:",
    ),
    Mutant(
        "slots never grow",
        memory,
        "        self._max_inflight = _checked(max_inflight)\n\n\n",
        "        self._max_inflight = min(self._max_inflight, _checked(max_inflight))\n\n\n",
    ),
    Mutant("a removed ticket is said to be gone already", memory, "is not None", "is None"),
]


def build(mutant: Mutant | None) -> type[MemoryQueue]:
    """The memory queue on top of modules compiled anew, one of them with the fault; None plants none."""
    made = {module: _compile(module, mutant) for module in (heaps, lines, memory)}
    vars(made[lines])["LazyHeap"] = made[heaps].LazyHeap
    vars(made[memory])["Lines"] = made[lines].Lines
    queue: type[MemoryQueue] = made[memory].MemoryQueue
    return queue


def _compile(module: ModuleType, mutant: Mutant | None) -> ModuleType:
    source = inspect.getsource(module)
    if mutant is not None and mutant.module is module:
        if source.count(mutant.sound) != 1:
            raise ValueError(f"{mutant.name!r} wants {mutant.sound!r} once in {module.__name__}: mend the mutant")
        source = source.replace(mutant.sound, mutant.faulty)
    made = ModuleType(module.__name__)
    exec(compile(source, f"<{mutant.name if mutant else 'sound'}>", "exec"), vars(made))  # our own source
    return made
