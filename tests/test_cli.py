"""The command line as a process of its own: what it prints, and how it ends."""

import socket
import sqlite3
import subprocess
import sys
from contextlib import closing
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner

from driftsched.cli import app
from driftsched.estimators import ESTIMATORS
from driftsched.policies import POLICIES

COMMANDS = ("serve", "mock", "demo", "local", "policies", "estimators", "hash-key")


def driftsched(*arguments: str, stdin: str = "") -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [sys.executable, "-m", "driftsched", *arguments], input=stdin, capture_output=True, text=True, timeout=60
    )


def complaint(*arguments: str, status: int = 2, stdin: str = "") -> str:
    """What a command that must fail says: one line, and no traceback."""
    done = driftsched(*arguments, stdin=stdin)
    assert (status, "") == (done.returncode, done.stdout)
    assert 1 == len(done.stderr.splitlines())
    assert done.stderr.startswith("driftsched: ")
    return done.stderr


def test_help_names_every_command() -> None:
    done = driftsched("--help")
    assert 0 == done.returncode
    for command in COMMANDS:
        assert f" {command} " in done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command: str) -> None:
    done = CliRunner().invoke(app, [command, "--help"])
    assert 0 == done.exit_code
    assert f" {command} [OPTIONS]" in done.stdout


def test_help_does_not_wait_for_what_only_a_server_needs() -> None:
    code = (
        "import sys; from driftsched.cli import app\n"
        "try: app(['--help'])\n"
        "except SystemExit: pass\n"
        "print(*sorted({'aiohttp', 'uvicorn', 'uvloop', 'yaml', 'prometheus_client'} & set(sys.modules)), 'end')"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "end" == done.stdout.splitlines()[-1].strip()


@pytest.mark.parametrize(
    ("command", "names", "default"),
    [("policies", POLICIES.names(), "fair"), ("estimators", ESTIMATORS.names(), "adaptive")],
)
def test_parts_are_listed_with_what_they_do(command: str, names: list[str], default: str) -> None:
    lines = CliRunner().invoke(app, [command]).stdout.splitlines()
    assert names == [line.split()[0] for line in lines]
    assert all(len(line.split()) > 2 for line in lines)
    assert [default] == [line.split()[0] for line in lines if line.endswith("(default)")]


def test_a_key_is_hashed_from_standard_input() -> None:
    done = CliRunner().invoke(app, ["hash-key"], input="sk-secret\n")
    assert sha256(b"sk-secret").hexdigest() == done.stdout.strip()


@pytest.mark.parametrize("stdin", ["", "\n", "   \n"])
def test_no_key_cannot_be_hashed(stdin: str) -> None:
    assert "no key" in complaint("hash-key", stdin=stdin)


def test_serving_without_an_engine_says_how_to_name_one() -> None:
    assert "--engine" in complaint("serve")


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--engine", "gpu-1"), "gpu-1"),
        (("--engine", "http://127.0.0.1:1", "--policy", "luck"), "luck"),
        (("--engine", "http://127.0.0.1:1", "--estimator", "luck"), "luck"),
        (("--engine", "http://127.0.0.1:1", "--host", "0.0.0.0"), "allow_anonymous"),
        (("--engine", "http://127.0.0.1:1", "--host", "192.0.2.1", "--config", "nowhere.yaml"), "nowhere.yaml"),
        (("--engine", "http://127.0.0.1:1", "--engine", "http://127.0.0.1:1/v1"), "same name"),
        (("--engine", "http://127.0.0.1:1", "--state", "state.sqlite", "--no-state"), "--no-state"),
    ],
)
def test_serving_with_a_wrong_setting_names_it(arguments: tuple[str, ...], named: str) -> None:
    assert named in complaint("serve", *arguments)


def test_a_missing_key_for_an_engine_is_named(tmp_path: Path) -> None:
    config = tmp_path / "driftsched.yaml"
    config.write_text("engines: [{url: 'http://127.0.0.1:1', api_key_env: DRIFTSCHED_TEST_NO_SUCH_KEY}]")
    assert "DRIFTSCHED_TEST_NO_SUCH_KEY" in complaint("serve", "--config", str(config))


def test_a_database_that_is_not_for_states_is_named_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "shop.sqlite"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE customers (name)")
    before = path.read_bytes()
    assert str(path) in complaint("serve", "--engine", "http://127.0.0.1:1", "--port", "0", "--state", str(path))
    assert before == path.read_bytes()


def test_an_address_that_is_taken_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in complaint("serve", "--engine", "http://127.0.0.1:1", "--port", str(port))


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("--hardware", "abacus"), "abacus"),
        (("--profile", "novel"), "novel"),
        (("--drift", "at=30s"), "factor"),
    ],
)
def test_a_simulated_engine_with_a_wrong_setting_names_it(arguments: tuple[str, ...], named: str) -> None:
    assert named in complaint("mock", *arguments)


def test_an_unknown_option_is_refused() -> None:
    done = driftsched("serve", "--polciy", "fair")
    assert 2 == done.returncode
    assert "--polciy" in done.stderr
