"""What `gateway.py` measures: how driftsched and other gateways are started for it, and its clients' key."""

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

from driftsched.keys import hash_key
from driftsched.local.weights import cache_dir

MODEL = "mock"
KEY = "sk-benchmark"
MAX_INFLIGHT = 256
"""Of driftsched: the paced streams all run, and 2,000 of 2,256 wait."""
LITELLM = "1.103.0"
"""No other: 1.82.7, 1.82.8 and 1.107.0 were compromised releases."""


class UnavailableError(Exception):
    """This peer cannot be measured here; the message says why."""


Command = Callable[[Path, str, int], tuple[list[str], dict[str, str] | None]]
"""Of a folder for its files, the upstream's URL and the port to listen on: what to run, and its environment."""


def driftsched(estimator: str, *, stream_whole_answers: bool = True) -> Command:
    """With everything on that is used in production: keys, prediction, journal, kept state, metrics by tenant."""

    def command(folder: Path, upstream: str, port: int) -> tuple[list[str], None]:
        files = folder / f"driftsched-{estimator}-{stream_whole_answers}"
        engine = {"url": upstream, "max_inflight": MAX_INFLIGHT, "stream_whole_answers": stream_whole_answers}
        settings: dict[str, Any] = {
            "engines": [engine],
            "port": port,
            "estimator": {"name": estimator},
            "tenants": [{"id": "benchmark", "keys_sha256": [hash_key(KEY)]}],
            "journal": {"path": f"{files}.journal"},
            "state": {"path": f"{files}.state"},
        }
        config = files.with_suffix(".yaml")
        config.write_text(json.dumps(settings))  # JSON is YAML
        return [sys.executable, "-m", "driftsched", "serve", "--config", str(config)], None

    return command


def nginx(folder: Path, upstream: str, port: int) -> tuple[list[str], None]:
    """One worker, connections kept alive on both sides, nothing buffered, logged or looked into."""
    program = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
    if program is None:
        raise UnavailableError("nginx is not installed (apt-get install nginx-light)")
    paths = "".join(
        f"{kind}_temp_path {folder}/nginx-{kind};\n"
        for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    config = folder / "nginx.conf"
    config.write_text(
        f"""
        {"user root;" if os.geteuid() == 0 else ""}
        daemon off; worker_processes 1; pid {folder}/nginx.pid; error_log stderr crit;
        events {{ worker_connections 8192; }}
        http {{
            {paths} access_log off; tcp_nodelay on; keepalive_requests 100000000;
            client_max_body_size 1m; client_body_buffer_size 128k;
            upstream engine {{
                server {upstream.removeprefix("http://")}; keepalive 256; keepalive_requests 100000000;
            }}
            server {{
                listen 127.0.0.1:{port} backlog=4096;
                location / {{
                    proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
                    proxy_buffering off; proxy_read_timeout 600s;
                }}
            }}
        }}
        """
    )
    return [program, "-c", str(config), "-e", "stderr"], None


def litellm(folder: Path, upstream: str, port: int) -> tuple[list[str], dict[str, str]]:
    """LiteLLM's proxy with its defaults, without keys; installed at first use, and run with a bare environment."""
    program = _install_litellm(cache_dir() / f"litellm-{LITELLM}")
    config = folder / "litellm.yaml"
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{upstream}/v1", "api_key": "sk-none"}
    config.write_text(json.dumps({"model_list": [{"model_name": MODEL, "litellm_params": parameters}]}))
    command = [str(program), "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
    environment = {"PATH": os.defpath, "HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    return [*command, "--num_workers", "1", "--telemetry", "False"], environment


def _install_litellm(folder: Path) -> Path:
    """The program of exactly one version, in a virtual environment of its own. Raises `UnavailableError`."""
    program, finished = folder / "bin" / "litellm", folder / "finished"
    if finished.exists():
        return program
    print(f"installing LiteLLM {LITELLM} into {folder}: about two minutes, this once", file=sys.stderr, flush=True)
    venv.create(folder, clear=True, with_pip=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "-q", "--disable-pip-version-check", "--no-input"]
    # Wheels only: nothing that is built runs code while it is installed.
    pip += ["install", "--only-binary=:all:", f"litellm[proxy]=={LITELLM}"]
    done = subprocess.run(pip, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise UnavailableError(f"LiteLLM {LITELLM} cannot be installed: {done.stderr.strip()[-300:]}")
    started_by_python = [path.name for path in folder.glob("lib/*/site-packages/*.pth")]
    if unknown := set(started_by_python) - {"distutils-precedence.pth"}:  # pip's own setuptools has that one
        raise UnavailableError(f"{folder} holds {', '.join(sorted(unknown))}, run at every start: not trusted")
    finished.touch()
    return program


def production_stack(program: Path) -> Command:
    """The vLLM production stack's router, round robin. No package index has it: it is installed from its source."""

    def command(_: Path, upstream: str, port: int) -> tuple[list[str], None]:
        if not program.exists():
            raise UnavailableError(f"there is no {program}")
        options = ["--host", "127.0.0.1", "--port", str(port), "--service-discovery", "static"]
        options += ["--static-backends", upstream, "--static-models", MODEL, "--routing-logic", "roundrobin"]
        return [str(program), *options], None

    return command
