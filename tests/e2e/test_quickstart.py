"""The quickstart as a newcomer types it: its five commands and its two questions, taken from the page.

Only ports and the folder of the configuration are others, so that it disturbs nothing on the machine.
"""

import asyncio
import os
import re
import shlex
import signal
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import aiohttp
import pytest

ROOT = Path(__file__).parent.parent.parent
PAGE = ROOT / "docs" / "quickstart.md"
CONFIG = "examples/quickstart.yaml"
PORTS = ("8080", "8081")


def bootstrapped() -> bool:
    """Whether the first command would install nothing: a test must not change what is installed."""
    vouched = "cat requirements/all.txt pyproject.toml script/bootstrap | cksum"
    wanted = subprocess.run(vouched, shell=True, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    stamp = ROOT / ".venv" / ".installed-all"
    return stamp.exists() and stamp.read_text().strip() == wanted.strip()


def blocks() -> list[list[str]]:
    """The page's shell commands, by block; continued lines are one."""
    found = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text(), flags=re.MULTILINE | re.DOTALL)
    return [block.replace("\\\n", " ").splitlines() for block in found]


def free_ports(count: int) -> list[str]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


class Newcomer:
    """Has typed the five commands, and holds two keys."""

    def __init__(self, moved: dict[str, str], keys: dict[str, str]) -> None:
        self._moved = moved
        self._keys = keys

    async def ask(self, command: str, *, with_key: bool = True) -> tuple[int, str | None, dict[str, Any]]:
        """Status, tier and document of what a line of the page with `curl` asks."""
        for variable, value in {**self._moved, **self._keys}.items():
            command = command.replace(variable, value)
        program, url, _, header, _, body = shlex.split(command)
        assert "curl" == program
        name, _, value = header.partition(": ")
        headers = {"content-type": "application/x-www-form-urlencoded"}  # which is what curl -d says of JSON
        async with (
            aiohttp.ClientSession() as http,
            http.post(url, data=body, headers={**headers, name: value} if with_key else headers) as answer,
        ):
            return answer.status, answer.headers.get("x-driftsched-tier"), await answer.json()


@asynccontextmanager
async def newcomer(folder: Path) -> AsyncIterator[Newcomer]:
    moved = dict(zip(PORTS, free_ports(2), strict=True)) | {CONFIG: str(folder / "quickstart.yaml")}
    config, commands = (ROOT / CONFIG).read_text(), "\n".join(blocks()[0])
    for here, there in moved.items():
        assert here in config + commands
        config, commands = config.replace(here, there), commands.replace(here, there)
    (folder / "quickstart.yaml").write_text(config)
    shell = await asyncio.create_subprocess_exec(
        *("sh", "-c", f'{commands}\necho "$SEARCH"; echo "$NIGHTLY"; wait'),
        cwd=ROOT,
        env={**os.environ, "XDG_STATE_HOME": str(folder)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        start_new_session=True,
    )
    assert shell.stdout is not None
    try:
        async with asyncio.timeout(300):  # the model may have to be downloaded
            search, nightly = [(await shell.stdout.readline()).decode().strip() for _ in range(2)]
            assert search
            assert nightly
            visitor = Newcomer(moved, {"$SEARCH": search, "$NIGHTLY": nightly})
            await until_served(visitor)
        yield visitor
    finally:
        with suppress(ProcessLookupError):  # all have ended
            os.killpg(shell.pid, signal.SIGTERM)
        await shell.stdout.read()  # ends with the last of the servers
        await shell.wait()


async def until_served(visitor: Newcomer) -> None:
    while True:
        try:
            if (await visitor.ask(blocks()[1][0]))[0] == 200:
                return
        except aiohttp.ClientError:
            pass
        await asyncio.sleep(0.1)


def test_the_quickstart_has_five_commands() -> None:
    assert 5 == len(blocks()[0])


@pytest.mark.e2e
@pytest.mark.skipif(not os.environ.get("CI") and not bootstrapped(), reason="needs `script/bootstrap all`")
async def test_the_commands_of_the_quickstart_end_in_two_tenants_with_keys_before_a_real_model(
    tmp_path: Path,
) -> None:
    as_search, as_nightly = blocks()[1]
    async with newcomer(tmp_path) as visitor:
        for command, expected in ((as_search, "premium"), (as_nightly, "batch")):
            status, tier, document = await visitor.ask(command)
            assert (200, expected) == (status, tier)
            assert document["choices"][0]["message"]["content"]
        status, tier, document = await visitor.ask(as_search, with_key=False)
        assert (401, None) == (status, tier)
        assert "API key" in document["error"]["message"]
