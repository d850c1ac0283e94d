"""Bytes on a socket, for what no HTTP client would send."""

import asyncio
import json
from dataclasses import dataclass
from typing import Any

CHAT = "/v1/chat/completions"


@dataclass
class Reply:
    """One response, as far as it came."""

    status: int
    """0 if nothing came."""
    headers: dict[str, str]
    body: bytes

    @property
    def error(self) -> dict[str, Any]:
        """The error document. Fails unless it has OpenAI's form."""
        error: dict[str, Any] = json.loads(self.body)["error"]
        assert {"message", "type", "param", "code"} == error.keys()
        assert error["message"]
        return error


def head_of(
    body: bytes, *lines: str, method: str = "POST", path: str = CHAT, length: str | None = None, close: bool = True
) -> bytes:
    """A request's head. `length` replaces the true one; empty: no such header."""
    length = str(len(body)) if length is None else length
    headers = [
        "Host: x",
        *([f"Content-Length: {length}"] if length else []),
        *(["Connection: close"] if close else []),
        *lines,
    ]
    return "\r\n".join([f"{method} {path} HTTP/1.1", *headers, "", ""]).encode("latin-1")


async def connected_to(url: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


async def exchanged(url: str, *pieces: bytes, seconds: float = 10.0) -> bytes:
    """All that the server sends until it closes, when it is sent these pieces. Raises `TimeoutError`."""
    reader, writer = await connected_to(url)
    try:
        async with asyncio.timeout(seconds):
            for piece in pieces:
                writer.write(piece)
                await writer.drain()
            return await reader.read(-1)
    except ConnectionError:
        return b""
    finally:
        writer.transport.abort()


async def asked(url: str, *pieces: bytes, seconds: float = 10.0) -> Reply:
    """The reply to a request that ends with the connection."""
    return parsed(await exchanged(url, *pieces, seconds=seconds))


def parsed(data: bytes) -> Reply:
    """The first reply in `data`; others may follow."""
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    if not first:
        return Reply(0, {}, b"")
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    length = headers.get("content-length")
    return Reply(int(first.split()[1]), headers, body if length is None else body[: int(length)])
