"""Servers of this package as processes of their own, for demonstrations, benchmarks and tests."""

import asyncio
import re
import signal
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from driftsched.core.errors import DriftschedError

_LISTENS = re.compile(rb' listens on (http://[^\s"]+)')


class StartError(DriftschedError):
    """A server did not come up; the message holds what it said."""


@asynccontextmanager
async def running(*arguments: str, start_seconds: float = 60.0) -> AsyncIterator[str]:
    """Run `driftsched ARGUMENTS`, give the URL it listens on, and stop it in the end. Raises `StartError`."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "driftsched", *arguments, stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )
    assert process.stderr is not None  # noqa: S101 - a pipe was asked for
    drain: asyncio.Task[None] | None = None
    try:
        try:
            async with asyncio.timeout(start_seconds):
                url = await _listening_url(process.stderr, arguments)
        except TimeoutError:
            raise StartError(f"driftsched {arguments[0]} did not start within {start_seconds:g} seconds") from None
        drain = asyncio.create_task(_discard(process.stderr))
        yield url
    finally:
        await _stop(process)
        if drain is not None:
            await drain


async def _listening_url(stderr: asyncio.StreamReader, arguments: tuple[str, ...]) -> str:
    said = b""
    async for line in stderr:
        said += line
        if match := _LISTENS.search(line):
            return match[1].decode()
    raise StartError(f"driftsched {arguments[0]} ended at once:\n{said.decode(errors='replace').strip()}")


async def _discard(stderr: asyncio.StreamReader) -> None:
    """A full pipe would block the server."""
    while await stderr.read(1 << 16):
        pass


async def _stop(process: Process) -> None:
    if process.returncode is None:
        process.send_signal(signal.SIGTERM)
        try:
            async with asyncio.timeout(10):
                await process.wait()
        except TimeoutError:
            process.kill()
            await process.wait()
