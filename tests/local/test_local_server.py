import asyncio
import os
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from driftsched.bench.processes import running
from driftsched.core.errors import ConfigError
from driftsched.local.server import LocalServer

QUESTION = {
    "messages": [{"role": "user", "content": "Say hello."}],
    "max_tokens": 16,
    "temperature": 0,
}
LONG = {**QUESTION, "max_tokens": 1500, "ignore_eos": True, "stream": True}

needs_xllamacpp = pytest.mark.skipif(
    find_spec("xllamacpp") is None and not os.environ.get("CI"),
    reason="needs `pip install 'driftsched[local]'`",
)


@pytest.fixture
async def engine() -> AsyncIterator[str]:
    """The URL of a real model in a process of its own, two slots."""
    async with running("local", "--port", "0", "--slots", "2", "--threads", "1", start_seconds=240) as url:
        yield url


@needs_xllamacpp
@pytest.mark.e2e
async def test_a_real_model_answers_a_chat(engine: str) -> None:
    async with aiohttp.ClientSession(engine) as http:
        async with http.get("/v1/models") as response:
            assert ["smollm2-135m"] == [model["id"] for model in (await response.json())["data"]]
        async with http.get("/props") as response:
            props = await response.json()
            assert (2, 2048) == (props["total_slots"], props["default_generation_settings"]["n_ctx"])
        async with http.post("/v1/chat/completions", json=QUESTION) as response:
            answer = await response.json()

    assert "Hello" in answer["choices"][0]["message"]["content"]
    assert 0 < answer["usage"]["completion_tokens"] <= 16


@needs_xllamacpp
@pytest.mark.e2e
async def test_a_prompt_costs_the_same_the_second_time(engine: str) -> None:
    evaluated = []
    async with aiohttp.ClientSession(engine) as http:
        for _ in range(3):
            async with http.post("/v1/chat/completions", json=QUESTION) as response:
                evaluated.append((await response.json())["timings"]["prompt_n"])

    assert [evaluated[0]] * 3 == evaluated
    assert evaluated[0] > 1


@needs_xllamacpp
@pytest.mark.e2e
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_stops_it_even_while_it_generates(number: signal.Signals) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "driftsched", "local", "--port", "0", "--slots", "1", "--threads", "1"),
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stderr is not None
    try:
        async with asyncio.timeout(240):
            said = (await process.stderr.readuntil(b" listens on ") + await process.stderr.readline()).decode()
        url = said.split(" listens on ")[1].split()[0]
        async with aiohttp.ClientSession(url) as http, http.post("/v1/chat/completions", json=LONG) as response:
            assert (await response.content.readline()).startswith(b"data: ")
            process.send_signal(number)
            async with asyncio.timeout(5):
                assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@needs_xllamacpp
@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"PK\x03\x04 a zip file", r"is not a GGUF file: it begins with b'PK\\x03\\x04'"),
        (b"GGUF\x03\x00\x00\x00 and no more", r"llama\.cpp could not start with model"),
    ],
)
def test_a_file_that_is_no_model_is_refused(tmp_path: Path, content: bytes, reason: str) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(content)

    with pytest.raises(ConfigError, match=reason):
        LocalServer(model, port=0)


@needs_xllamacpp
def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.gguf cannot be read \(No such file or directory\)"):
        LocalServer(tmp_path / "nowhere.gguf", port=0)


@needs_xllamacpp
def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]

        with pytest.raises(ConfigError, match=rf"cannot listen on 127\.0\.0\.1:{port} .*choose another"):
            LocalServer(model, port=port)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"slots": 0}, "slots is 0; give a number from 1 to 256"),
        ({"threads": 0}, "threads is 0; give a number from 1 to 1024"),
        ({"ctx_per_slot": 1}, "ctx_per_slot is 1; give a number from 16 to 1048576"),
        ({"port": 65536}, "port is 65536; give a number from 0 to 65535"),
    ],
)
def test_a_number_out_of_range_is_named(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        LocalServer(Path("model.gguf"), **settings)


def test_without_the_extra_the_remedy_is_named() -> None:
    program = """
import sys
from pathlib import Path
sys.modules["xllamacpp"] = None  # as if it were not installed
from driftsched.core.errors import ConfigError
from driftsched.local.server import LocalServer
try:
    LocalServer(Path("model.gguf"), port=0)
except ConfigError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout

    assert said.endswith("run: pip install 'driftsched[local]'\n")
