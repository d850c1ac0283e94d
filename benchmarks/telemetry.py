"""What telemetry costs: microseconds of processor time per request, for each listener by itself.

    python benchmarks/telemetry.py [--tenants 10,1000] [--blocks 100] [--json FILE]

The four events of a request (admitted, dispatched, first token, finished) are made beforehand and told in turn, of
tenants that take turns. Of the access log the making of the line, which a thread does, is told apart. OpenTelemetry
is measured if it is installed, with nobody to send to. Blocks are of 500 requests: the fastest, which nothing
disturbed, and the median one.
"""

import argparse
import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import thread_time

from driftsched.core.events import Admitted, Dispatched, Event, Finished, FirstToken
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Usage
from driftsched.core.protocols import Listener
from driftsched.core.tracing import Span
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit
from driftsched.telemetry.access import AccessLog
from driftsched.telemetry.lines import LINES
from driftsched.telemetry.prometheus import PrometheusListener

BLOCK = 500
SPAN = Span("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", "00f067aa0ba902b7", True)
Figure = dict[str, str | float]


def main() -> None:
    arguments = _arguments()
    figures = [*_metrics(arguments), *_access_log(arguments), *_otel(arguments)]
    for figure in figures:
        print(f"{figure['what']:<36} {figure['fastest_us']:6.1f} us undisturbed, {figure['median_us']:6.1f} median")
    conditions = {"commit": source_commit(), **capture_environment(), **capture_conditions()}
    print(json.dumps(conditions))
    if arguments.json:
        arguments.json.write_text(json.dumps({"conditions": conditions, "costs": figures}, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tenants", default="10,1000")
    parser.add_argument("--blocks", type=int, default=100)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _metrics(arguments: argparse.Namespace) -> Iterator[Figure]:
    for tenants in map(int, arguments.tenants.split(",")):
        listener = PrometheusListener(policy="fair", estimator="adaptive", version="1")
        told = _telling(listener, _events(tenants))
        yield _figure(f"metrics, {tenants} tenants", told, arguments.blocks)


def _access_log(arguments: argparse.Namespace) -> Iterator[Figure]:
    events = _events(10)
    for line_format, line in LINES.items():
        log = AccessLog(lambda _: None, line)
        tell = _telling(log, events)
        yield _figure(f"access log, {line_format}: noting", tell, arguments.blocks, between=log.flush)
        yield _figure(f"access log, {line_format}: the line", log.flush, arguments.blocks, between=tell)


def _otel(arguments: argparse.Namespace) -> Iterator[Figure]:
    if find_spec("opentelemetry") is None:
        print("OpenTelemetry is not installed, and not measured")
        return
    from driftsched.telemetry.otel import open_telemetry

    otel = open_telemetry("http://127.0.0.1:9", operation=lambda _: "chat", version="1")
    yield _figure("OpenTelemetry, not recorded", _telling(otel, _events(10)), arguments.blocks)
    yield _figure("OpenTelemetry, recorded", _telling(otel, _events(10, SPAN)), arguments.blocks)
    otel.close(0.1)


def _figure(
    what: str, work: Callable[[], None], num_blocks: int, between: Callable[[], None] = lambda: None
) -> Figure:
    """`work` does what is to be measured for `BLOCK` requests, `between` what is not."""
    gc.collect()
    gc.freeze()  # as the gateway does: what has been made so far is not looked at again
    blocks = []
    between()
    for _ in range(num_blocks):
        started_at = thread_time()
        work()
        blocks.append((thread_time() - started_at) / BLOCK * 1e6)
        between()
    return {"what": what, "fastest_us": min(blocks), "median_us": median(blocks)}


def _telling(listener: Listener, events: Sequence[Event]) -> Callable[[], None]:
    def tell() -> None:
        for event in events:
            listener(event)

    return tell


def _events(num_tenants: int, span: Span | None = None) -> list[Event]:
    return [event for number in range(BLOCK) for event in _way(number, f"tenant-{number % num_tenants}", span)]


def _way(number: int, tenant: str, span: Span | None) -> Iterator[Event]:
    request = Request(f"r-{number}", Tenant(tenant), Tier.STANDARD, "model", 10.0, category="summary")
    request = replace(request, span=span)
    ticket = Ticket(request, Estimate(100, 90, 150, 200), seq=number, band=0, flow=tenant, rank=0.0, charge=1.0)
    yield Admitted(10.0, ticket, position=1)
    yield Dispatched(12.0 + number / BLOCK, ticket, "least_served")
    yield FirstToken(12.5 + number / BLOCK, ticket)
    yield Finished(14.0 + number / BLOCK, ticket, Usage(40, 130), "stop", 12.0, 12.5, 1.0)


if __name__ == "__main__":
    main()
