"""Servers of this package as processes that a test may signal."""

import asyncio
import os
import re
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

LISTENS = re.compile(rb' listens on (http://[^\s"]+)')


@asynccontextmanager
async def running(*arguments: str) -> AsyncIterator[tuple[Process, str]]:
    """`driftsched ARGUMENTS` as a process, and its URL."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "driftsched", *arguments, "--port", "0", stdin=DEVNULL, stdout=DEVNULL, stderr=PIPE
    )
    assert process.stderr is not None
    try:
        async for line in process.stderr:
            if match := LISTENS.search(line):
                break
        else:
            raise AssertionError(f"driftsched {arguments} ended before it listened")
        draining = asyncio.create_task(process.stderr.read())
        yield process, match[1].decode()
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
    await draining


def signal_if_alive(process: Process, number: int) -> None:
    """`Process.send_signal` would reap a process that has just ended before asyncio does, and lose its status."""
    with suppress(ProcessLookupError):
        os.kill(process.pid, number)
