"""What records of decisions cost: microseconds per request and bytes per record kept.

    python benchmarks/decisions.py [--waiting 1,100,10000,100000] [--blocks 100] [--json FILE]

The four events of a request (admitted, dispatched, first token, finished) are made beforehand and told in turn,
with so many others waiting; whoever is served is drawn among all of them, so that there is much overtaking. Times
are processor time over blocks of 500 requests: the fastest block, which nothing disturbed, and the median one.
Memory is what `tracemalloc` counts for 10,000 records, with numbers that share nothing.
"""

import argparse
import gc
import json
import tracemalloc
from pathlib import Path
from random import Random
from statistics import median
from time import thread_time

from driftsched.core.events import Admitted, Dispatched, Event, Finished, FirstToken
from driftsched.core.model import Estimate, Load, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.waits import Eta
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit
from driftsched.telemetry.decisions import MAX_ENDED, Decisions

BLOCK = 500
TENANT = Tenant("tenant")


def main() -> None:
    arguments = _arguments()
    figures = [_cost(int(waiting), arguments.blocks) for waiting in arguments.waiting.split(",")]
    for figure in figures:
        print(
            "{waiting:>8} waiting: {fastest_us:5.1f} us a request undisturbed, {median_us:5.1f} median".format(
                **figure
            )
        )
    record_bytes = _record_bytes()
    print(f"a record: {record_bytes:.0f} bytes")
    conditions = {"commit": source_commit(), **capture_environment(), **capture_conditions()}
    print(json.dumps(conditions))
    if arguments.json:
        document = {"conditions": conditions, "costs": figures, "record_bytes": record_bytes}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--waiting", default="1,100,10000,100000")
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _cost(num_waiting: int, num_blocks: int) -> dict[str, float]:
    rng = Random(1)
    decisions = Decisions("fair")
    waiting = [_ticket(number, rng) for number in range(num_waiting)]
    for ticket in waiting:
        decisions(_admitted(ticket, rng))
    gc.collect()
    gc.freeze()  # as the gateway does: what has been made so far is not looked at again
    blocks = []
    for block in range(num_blocks):
        events = _events(waiting, num_waiting + block * BLOCK, rng)
        started_at = thread_time()
        for event in events:
            decisions(event)
        blocks.append((thread_time() - started_at) / BLOCK * 1e6)
    return {"waiting": num_waiting, "fastest_us": min(blocks), "median_us": median(blocks)}


def _events(waiting: list[Ticket], first: int, rng: Random) -> list[Event]:
    """One comes, and one of those that wait is served, `BLOCK` times."""
    events: list[Event] = []
    for number in range(first, first + BLOCK):
        place = rng.randrange(len(waiting))
        served, waiting[place] = waiting[place], _ticket(number, rng)
        events += (_admitted(waiting[place], rng), *_service(served, rng))
    return events


def _ticket(number: int, rng: Random) -> Ticket:
    request = Request(
        f"request-{number}", TENANT, Tier.STANDARD, "model", rng.random(), prompt_tokens=1000 + number
    )
    estimate = Estimate(rng.random(), rng.random(), rng.random(), rng.random())
    return Ticket(request, estimate, number, 0, TENANT.id, rng.random(), rng.random())


def _admitted(ticket: Ticket, rng: Random) -> Admitted:
    load = Load(1000 + ticket.seq, 32, rng.random(), rng.random(), rng.random(), rng.random())
    return Admitted(rng.random(), ticket, 1001 + ticket.seq, load, Eta(*(rng.random() for _ in range(3))))


def _service(ticket: Ticket, rng: Random) -> tuple[Event, ...]:
    at, first, last = (rng.random() for _ in range(3))
    finished = Finished(last, ticket, Usage(1000 + ticket.seq, 1000 + ticket.seq), "stop", at, first, rng.random())
    return Dispatched(at, ticket, "least_served"), FirstToken(first, ticket), finished


def _record_bytes() -> float:
    rng = Random(1)
    decisions = Decisions("fair")
    tracemalloc.start()
    before, _ = tracemalloc.get_traced_memory()
    for number in range(MAX_ENDED):
        ticket = _ticket(number, rng)
        for event in (_admitted(ticket, rng), *_service(ticket, rng)):
            decisions(event)
    after, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return (after - before) / MAX_ENDED


if __name__ == "__main__":
    main()
