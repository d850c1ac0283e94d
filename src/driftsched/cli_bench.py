"""The command that loads live servers."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from driftsched.core.errors import ConfigError

if TYPE_CHECKING:
    from driftsched.sim.measures import Objective


def bench(
    url: Annotated[
        str | None, typer.Option(help="OpenAI server to load as it is: a gateway, or an engine itself.")
    ] = None,
    engine: Annotated[
        str | None, typer.Option(help="Engine to compare --policies on: a gateway is run in front of it for each.")
    ] = None,
    policies: Annotated[
        str,
        typer.Option(
            help="With --engine: separated by commas; the first is what others are compared with. "
            "One may bring its own estimator: sjf+ema."
        ),
    ] = "fifo,sjf,fair",
    estimator: Annotated[
        str, typer.Option(help="With --engine: how lengths are predicted, see `driftsched estimators`.")
    ] = "adaptive",
    model: Annotated[str | None, typer.Option(help="Model to ask for. Default: the first one listed.")] = None,
    key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the server's API key.")
    ] = None,
    slots: Annotated[
        int | None, typer.Option(min=1, help="Requests the server serves at once. Default: what it says, else 32.")
    ] = None,
    workload: Annotated[
        str,
        typer.Option(
            help="paper, poisson, gamma, diurnal, flood, drift, verbosity-shift, mix-shift, model-swap, or YAML."
        ),
    ] = "poisson",
    option: Annotated[
        list[str] | None, typer.Option("--set", help="Option of the workload, as name=value. May be repeated.")
    ] = None,
    trace: Annotated[Path | None, typer.Option(help="Send the requests of a trace instead; .gz too.")] = None,
    rate: Annotated[
        float | None, typer.Option(min=0.001, help="Requests per second; stretches a trace's time.")
    ] = None,
    rho: Annotated[float | None, typer.Option(min=0.01, help="Instead: a share of --capacity, e.g. 0.8.")] = None,
    capacity: Annotated[
        float | None,
        typer.Option(min=0.001, help="With --rho: such requests per second that the server can serve."),
    ] = None,
    requests: Annotated[int, typer.Option(min=1, help="Requests in each block, without warm-up.")] = 300,
    warmup_requests: Annotated[
        int, typer.Option(min=0, help="Requests before those, sent and recorded but not counted.")
    ] = 0,
    seeds: Annotated[int, typer.Option(min=1, max=1000, help="Blocks driven for each policy.")] = 5,
    max_tokens: Annotated[int | None, typer.Option(min=1, help="No request asks for a longer answer.")] = None,
    ignore_eos: Annotated[
        bool, typer.Option("--ignore-eos", help="Ask for answers exactly as long as the workload says.")
    ] = False,
    temperature: Annotated[
        float | None,
        typer.Option(min=0, max=2, help="Of sampling; 0: always the likeliest token. Default: the server's."),
    ] = None,
    stream: Annotated[bool, typer.Option(help="Stream answers: without, no time to first token.")] = True,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds that an answer may take.")] = 600.0,
    slo: Annotated[
        str | None, typer.Option(help="What counts as well served, in seconds, e.g. ttft=1,e2e=10.")
    ] = None,
    max_error_rate: Annotated[
        float, typer.Option(min=0, max=1, help="Exit with 4 if a larger share of requests failed.")
    ] = 0.01,
    out: Annotated[
        Path | None,
        typer.Option(help="Directory for summary.json, summary.csv, blocks.csv, requests.jsonl and report.html."),
    ] = None,
    json: Annotated[Path | None, typer.Option(help="File for the summary alone.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
) -> None:
    """Load a live OpenAI server, or compare policies on a live engine.

    Open loop: every request is sent at an instant fixed before the run, and all times count from that instant.
    With --engine each policy gets a fresh gateway for each block. Blocks of all policies come in random order, and
    blocks with the same seed send the same requests, so that policies are compared pair by pair.

    Exit status: 2 wrong use, 3 server not reached, 4 too many errors, 130 interrupted (what was done is reported).

    **Examples**

        driftsched bench --url http://127.0.0.1:8080 --rate 4 --slo ttft=1,e2e=10

        driftsched bench --engine http://127.0.0.1:8000 --policies fifo,sjf,fair --rate 4 --seeds 10 --out results
    """
    from driftsched import benching
    from driftsched.bench.live import Sending
    from driftsched.bench.plan import parse_setup
    from driftsched.simulating import parse_options

    if (url is None) == (engine is None):
        raise ConfigError("give --url for a server to load as it is, or --engine for one to compare --policies on")
    if (rho is None) != (capacity is None) or (rho is not None and rate is not None):
        raise ConfigError("give --rate, or --rho and --capacity together")
    chosen = tuple(parse_setup(name, estimator) for name in policies.split(",") if name.strip())
    if engine is not None and not chosen:
        raise ConfigError("--policies: give at least one")
    demand = benching.LiveDemand(
        workload=workload,
        options=tuple(parse_options(option or []).items()),
        trace=trace,
        requests=requests,
        warmup_requests=warmup_requests,
        rate=rho * capacity if rho is not None and capacity is not None else rate,
    )
    target = benching.Target(
        url or engine or "",
        setups=chosen if engine is not None else (),
        key_env=key_env,
        slots=slots,
    )
    sending = Sending(
        model or "",
        stream=stream,
        impose_lengths=ignore_eos,
        max_tokens=max_tokens,
        temperature=temperature,
        timeout_seconds=timeout,
    )
    output = benching.LiveOutput(
        out=out, json=json, quiet=quiet, objective=parse_objective(slo), max_error_rate=max_error_rate
    )
    status = benching.run_bench(demand, target, sending, seeds=seeds, output=output)
    if status:
        raise typer.Exit(status)


def parse_objective(text: str | None) -> "Objective | None":
    """`ttft=1,e2e=10` as an objective; None for None. Raises `ConfigError`."""
    from driftsched.sim.measures import Objective

    if text is None:
        return None
    bounds: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.strip().partition("=")
        try:
            seconds = float(value)
        except ValueError:
            seconds = 0.0
        if name not in {"ttft", "e2e"} or name in bounds or not seconds > 0:
            raise ConfigError(f"--slo {part!r}: write ttft=SECONDS, e2e=SECONDS or both with a comma between")
        bounds[name] = seconds
    return Objective(ttft_seconds=bounds.get("ttft"), e2e_seconds=bounds.get("e2e"))
