"""A gateway whose log nobody reads."""

import asyncio
import fcntl
import os
import signal
import sys
from asyncio.subprocess import DEVNULL
from pathlib import Path

import aiohttp
import pytest
import yaml

from driftsched.engines.mock import MockServer
from support.processes import LISTENS
from support.servers import chat, serving, simulated

pytestmark = pytest.mark.e2e

PIPE_BYTES = 4096


async def test_a_log_that_nobody_reads_holds_nobody_up(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    config = tmp_path / "driftsched.yaml"
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
    async with serving(MockServer(simulated())) as engine_url:
        config.write_text(yaml.safe_dump({"engines": [{"url": engine_url}], "state": {"path": None}}))
        serve = (sys.executable, "-m", "driftsched", "serve", "--config", str(config), "--port", "0")
        process = await asyncio.create_subprocess_exec(*serve, stdin=DEVNULL, stdout=DEVNULL, stderr=writing)
        os.close(writing)
        try:
            said = b""
            while (match := LISTENS.search(said)) is None:
                said += await asyncio.to_thread(os.read, reading, PIPE_BYTES)
            url = match[1].decode()
            config.write_text("engines: 5\n")
            for _ in range(30):  # more lines than the pipe holds, of either log
                process.send_signal(signal.SIGHUP)
                call = http.post(f"{url}/v1/chat/completions", json=chat())
                async with asyncio.timeout(10), call as response:
                    assert 200 == response.status
                    await response.read()
            process.terminate()
            assert 0 == await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
            os.close(reading)
