"""`driftsched replay`: what other policies would have done with the traffic of the journal."""

import os
import sys
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from driftsched.cli_sim import EngineMode


def replay(
    journal: Annotated[Path, typer.Argument(help="What `driftsched serve --journal` wrote.")],
    policies: Annotated[
        str | None, typer.Option(help="Separated by commas. Default: all; what served is always among them.")
    ] = None,
    estimators: Annotated[
        str | None,
        typer.Option(help="Separated by commas; also `oracle`, which knows. Default: the one that served."),
    ] = None,
    since: Annotated[
        str | None, typer.Option(help="Leave out what arrived before: 2026-01-31T22:00, UTC unless it has a zone.")
    ] = None,
    until: Annotated[str | None, typer.Option(help="Leave out what arrived from then on.")] = None,
    max_requests: Annotated[int, typer.Option(min=1, help="Replay the latest so many requests.")] = 20_000,
    hardware: Annotated[
        str | None, typer.Option(help="Preset to scale to the journal. Default: the one that fits it best.")
    ] = None,
    mode: Annotated[EngineMode, typer.Option(help="Batching: vLLM-like, or closed micro-batches.")] = (
        EngineMode.CONTINUOUS
    ),
    slots: Annotated[
        int | None, typer.Option(min=1, help="Requests in flight. Default: the most that ever were.")
    ] = None,
    blocks: Annotated[
        int, typer.Option(min=10, max=1000, help="Stretches of time that policies are compared on.")
    ] = 10,
    out: Annotated[
        Path | None, typer.Option(help="Directory for replay.json, replay.txt and the trace, trace.jsonl.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the results alone.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Simulations at the same time. Default: one per core.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
) -> None:
    """Say what each policy would have given on the traffic that a journal holds, and whether to switch.

    A model of the engine is scaled until the policy that served gives the median end-to-end time that was
    measured; how far off it is otherwise is printed. Recommends only what is better beyond chance, by 5 % or more,
    also on a faster or slower engine; often that is nothing.

    **Example**

        driftsched replay journal.db --since 2026-01-31T22:00 --until 2026-02-01T06:00
    """
    from driftsched import replaying

    def show(done: int, total: int) -> None:
        print(f"{done} of {total} done", file=sys.stderr, flush=True)

    replaying.run_replay(
        journal,
        policies=_names(policies),
        estimators=_names(estimators),
        hardware=hardware,
        mode=mode.value,
        slots=slots,
        window=replaying.Window(
            -inf if since is None else replaying.parse_instant(since, "since"),
            inf if until is None else replaying.parse_instant(until, "until"),
            max_requests,
        ),
        num_blocks=blocks,
        out=out,
        json=json,
        processes=processes or os.cpu_count() or 1,
        **({} if quiet else {"progress": show}),
    )


def _names(text: str | None) -> list[str]:
    return [name.strip() for name in (text or "").split(",") if name.strip()]
