"""The commands that need no server: what policies would do, in virtual time."""

import os
from enum import StrEnum
from math import inf
from pathlib import Path
from typing import Annotated

import typer

from driftsched.core.errors import ConfigError


class ExecutorName(StrEnum):
    """Where the runs of an experiment take place."""

    PROCESSES = "processes"
    RAY = "ray"


class EngineMode(StrEnum):
    """How the simulated engine forms batches."""

    CONTINUOUS = "continuous"
    STATIC = "static"


trace_app = typer.Typer(
    no_args_is_help=True, help="Make, convert and describe traces.", rich_markup_mode="markdown"
)


def simulate(
    workload: Annotated[
        str,
        typer.Option(
            help="paper, poisson, gamma, diurnal, flood, drift, verbosity-shift, mix-shift, model-swap, or YAML."
        ),
    ] = "poisson",
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the workload, as name=value. May be repeated.")
    ] = None,
    trace: Annotated[
        Path | None,
        typer.Option(help="Replay a trace instead: own JSONL or CSV, Azure, Mooncake, BurstGPT, ...; .gz too."),
    ] = None,
    trace_format: Annotated[
        str | None, typer.Option(help="Format of the trace, if its columns do not tell.")
    ] = None,
    sort: Annotated[bool, typer.Option(help="Sort the trace by time instead of refusing an unsorted one.")] = False,
    max_requests: Annotated[
        int | None, typer.Option(min=1, help="Use the first so many requests of the trace.")
    ] = None,
    tenants: Annotated[
        int | None, typer.Option(min=1, help="Give the trace's requests so many tenants, by a Zipf law.")
    ] = None,
    tiers: Annotated[
        str | None,
        typer.Option(help="Give the trace's tenants tiers in shares, e.g. premium=1,standard=2,batch=1."),
    ] = None,
    rho: Annotated[
        float | None,
        typer.Option(min=0.01, max=100, help="Utilisation to offer, e.g. 0.9; stretches a trace's time."),
    ] = None,
    policies: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas; the first is what others are compared with. Default: all, of drift two."
        ),
    ] = None,
    estimators: Annotated[
        str | None,
        typer.Option(help="Separated by commas; also `oracle`, which knows. Default: that of `serve`."),
    ] = None,
    feedback: Annotated[
        str | None,
        typer.Option(
            help="Separated by commas: off (nothing is learnt), frozen (who waits keeps its place), reranked. "
            "Default: reranked; of drift all."
        ),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Traces drawn; every policy runs on each.")] = 10,
    hardware: Annotated[str, typer.Option(help="Machine whose step times are simulated.")] = "l4-qwen1.5-1.8b",
    fit: Annotated[
        Path | None,
        typer.Option(help="requests.jsonl of a run to fit the machine to; what it does not tell is --hardware's."),
    ] = None,
    mode: Annotated[EngineMode, typer.Option(help="Batching: vLLM-like, or closed micro-batches.")] = (
        EngineMode.CONTINUOUS
    ),
    slots: Annotated[int, typer.Option(min=1, help="Sequences in one batch.")] = 32,
    inflight: Annotated[
        str | None,
        typer.Option(
            help="Requests in flight: numbers separated by commas, or adaptive:N, which starts at N and follows "
            "the engine. Default: as many as --slots."
        ),
    ] = None,
    max_inflight_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens in flight, prompts and predicted answers. Default: no limit."),
    ] = None,
    sensitivity: Annotated[
        bool, typer.Option("--sensitivity", help="Also with the least known coefficients 20 % lower and higher.")
    ] = False,
    out: Annotated[
        Path | None, typer.Option(help="Directory for summary.json, summary.csv, requests.jsonl and report.html.")
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the summary alone.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Seeds simulated at the same time. Default: one per core.")
    ] = None,
    executor: Annotated[
        ExecutorName,
        typer.Option(help="Where seeds run: processes here, or a Ray cluster (extra `ray`, RAY_ADDRESS)."),
    ] = ExecutorName.PROCESSES,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
) -> None:
    """Compare policies in virtual time: every policy on the very same requests, with intervals over seeds.

    The policies, estimators and scheduler are those that serve; the engine is a model of one (its coefficients say
    whether they were measured, fitted or extrapolated). The same seeds always give the same bytes.

    **Examples**

        driftsched simulate --workload poisson --rho 0.9 --policies fifo,sjf,fair

        driftsched simulate --workload drift --rho 0.9

        driftsched simulate --trace azure.csv.gz --rho 0.95 --tenants 8 --out results

        driftsched simulate --rho 0.9 --policies fifo,slack,fair --inflight 28,32,64,adaptive:64

        driftsched simulate --fit results/requests.jsonl --hardware a100-llama3-8b --rho 0.8
    """
    from driftsched import simulating
    from driftsched.sim.workloads import WORKLOADS

    if trace is None:
        for name, value in (("tenants", tenants), ("tiers", tiers), ("max-requests", max_requests)):
            if value is not None:
                raise ConfigError(f"--{name}: reshapes a trace; with a workload use --set ({', '.join(WORKLOADS)})")
    demand = simulating.Demand(
        workload=workload,
        options=tuple(simulating.parse_options(option or []).items()),
        trace=trace,
        trace_format=trace_format,
        sort=sort,
        max_requests=max_requests,
        tenants=tenants,
        tier_shares=_shares(tiers),
        rho=rho,
    )
    usual = simulating.default_arms(demand)
    arms = simulating.Arms(
        usual.policies if policies is None else _names(policies),
        usual.estimators if estimators is None else _names(estimators),
        usual.feedbacks if feedback is None else simulating.parse_feedbacks(_names(feedback)),
    )
    simulating.run_simulate(
        demand,
        arms,
        num_seeds=seeds,
        hardware=hardware,
        mode=mode.value,
        slots=slots,
        limits=_names(inflight or ""),
        max_inflight_tokens=max_inflight_tokens,
        recorded=fit,
        sensitivity=sensitivity,
        processes=processes or os.cpu_count() or 1,
        executor=executor.value,
        output=simulating.Output(out, json, quiet),
    )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _shares(text: str | None) -> tuple[tuple[str, float], ...]:
    """`premium=1,batch=2` as pairs. Raises `ConfigError`."""
    shares = []
    for part in _names(text or ""):
        label, _, share = part.partition("=")
        try:
            shares.append((label, float(share)))
        except ValueError:
            raise ConfigError(f"--tiers {part!r}: write tier=share, e.g. premium=1,standard=2,batch=1") from None
    return tuple(shares)


@trace_app.command("gen")
def trace_gen(
    workload: Annotated[str, typer.Argument(help="Name of a workload, or a YAML scenario.")],
    target: Annotated[Path, typer.Argument(help="File to write; .gz compresses.")],
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the workload, as name=value. May be repeated.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which of the traces the workload describes.")] = 1,
    capacity: Annotated[
        float | None,
        typer.Option(min=0, help="Requests per second at utilisation 1: a load given as rho needs it."),
    ] = None,
    format: Annotated[str, typer.Option(help="jsonl (own), csv (own), mooncake, azure or burstgpt.")] = "jsonl",
) -> None:
    """Write the trace of a workload.

    **Example**

        driftsched trace gen gamma burst.jsonl --set rate=2 --set cv=3
    """
    from driftsched.sim import commands
    from driftsched.simulating import parse_options

    options = parse_options(option or [])
    typer.echo(commands.trace_gen(workload, target, options=options, seed=seed, capacity=capacity, format=format))


@trace_app.command("export")
def trace_export(
    source: Annotated[Path, typer.Argument(help="Trace to read.")],
    target: Annotated[Path, typer.Argument(help="File to write; .gz compresses.")],
    source_format: Annotated[
        str | None, typer.Option(help="Format of the source, if its columns do not tell.")
    ] = None,
    format: Annotated[str, typer.Option(help="jsonl (own), csv (own), mooncake, azure or burstgpt.")] = "jsonl",
    sort: Annotated[bool, typer.Option(help="Sort by time instead of refusing an unsorted trace.")] = False,
    skip_empty: Annotated[
        bool | None,
        typer.Option(help="Leave out rows without tokens. Default: refuse them; of BurstGPT, leave out."),
    ] = None,
    start: Annotated[float, typer.Option(min=0, help="Leave out what arrives before, in seconds.")] = 0.0,
    end: Annotated[
        float | None, typer.Option(min=0, help="Leave out what arrives from then on, in seconds.")
    ] = None,
    max_requests: Annotated[int | None, typer.Option(min=1, help="Keep the first so many requests.")] = None,
    rate: Annotated[float | None, typer.Option(min=0, help="Stretch time to so many requests per second.")] = None,
    tenants: Annotated[int | None, typer.Option(min=1, help="Draw so many tenants, by a Zipf law.")] = None,
    tiers: Annotated[str | None, typer.Option(help="Shares, e.g. premium=1,standard=2,batch=1.")] = None,
    seed: Annotated[int, typer.Option(help="Of the tenants drawn.")] = 1,
) -> None:
    """Write a trace in another format, or reshaped."""
    from driftsched.core.model import Tier
    from driftsched.sim import commands

    typer.echo(
        commands.trace_export(
            source,
            target,
            source_format=source_format,
            format=format,
            sort=sort,
            skip_empty=skip_empty,
            start=start,
            end=inf if end is None else end,
            max_requests=max_requests,
            rate=rate,
            tenants=tenants,
            tiers={Tier.parse(label): share for label, share in _shares(tiers)} or None,
            seed=seed,
        )
    )


@trace_app.command("info")
def trace_info(
    path: Annotated[Path, typer.Argument(help="Trace to read.")],
    format: Annotated[str | None, typer.Option(help="Its format, if its columns do not tell.")] = None,
    sort: Annotated[bool, typer.Option(help="Sort by time instead of refusing an unsorted trace.")] = False,
    skip_empty: Annotated[
        bool | None,
        typer.Option(help="Leave out rows without tokens. Default: refuse them; of BurstGPT, leave out."),
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="As JSON.")] = False,
) -> None:
    """Say what a trace is like: rate, burstiness, lengths, tenants."""
    from driftsched.sim import commands

    typer.echo(commands.trace_info(path, format=format, sort=sort, skip_empty=skip_empty, as_json=json))


def compare(
    before: Annotated[Path, typer.Argument(help="Results directory or summary.json to compare with.")],
    after: Annotated[Path, typer.Argument(help="Results directory or summary.json.")],
    fail_if: Annotated[
        list[str] | None,
        typer.Option(help="Gate such as 'p99_e2e>+10%'; exit status 5 if it holds. May be repeated."),
    ] = None,
    allow_different_traces: Annotated[
        bool, typer.Option("--allow-different-traces", help="Compare although the requests were not the same.")
    ] = False,
) -> None:
    """Compare the results of two runs, and fail if one got worse than it may.

    **Example**

        driftsched compare results-main results-branch --fail-if 'p99_e2e>+10%'
    """
    from driftsched.sim.compare import run_compare

    text, status = run_compare(before, after, fail_if=fail_if or [], allow_different_traces=allow_different_traces)
    typer.echo(text, nl=False)
    raise SystemExit(status)


def reproduce(
    seeds: Annotated[int, typer.Option(min=2, max=1000, help="Traces drawn; every policy runs on each.")] = 10,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for summary.json, summary.csv, reproduction.json, reproduction.txt."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the summary alone.")] = None,
    processes: Annotated[
        int | None, typer.Option(min=1, help="Runs simulated at the same time. Default: one per core.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
) -> None:
    """Reproduce the DriftSched paper's tables, each published figure beside ours, and what they leave out.

    3000 requests in two phases, five policies, run-to-completion micro-batches of 32; then static against
    continuous batching, feedback off and on and an oracle, margins, words against tokens, the label in the prompt,
    and a sweep over the load.
    """
    from driftsched.simulating import run_reproduce

    run_reproduce(num_seeds=seeds, processes=processes or os.cpu_count() or 1, out=out, json=json, quiet=quiet)
