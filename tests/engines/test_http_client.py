"""The HTTP client against raw servers, which send what they are told, byte for byte."""

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvloop

from driftsched.engines.http import READ_BUFFER_BYTES, ConnectError, HttpClient, HttpResponse
from driftsched.engines.http_answer import HttpError, NotHttpError

HELLO = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"
BYE = b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbye"
CHUNKED_HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Peer:
    """The server's end of one connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number
        """0 for the first connection the server accepted."""

    async def request(self) -> tuple[list[bytes], bytes]:
        """Lines of the head and the body of the next request; raises `IncompleteReadError` if none comes."""
        lines = (await self.reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[:-2]
        lengths = [int(line[15:]) for line in lines if line.startswith(b"Content-Length:")]
        return lines, await self.reader.readexactly(sum(lengths))

    async def send(self, *pieces: bytes) -> None:
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    async def gone(self) -> None:
        """Return when the client has closed the connection."""
        try:
            while await self.reader.read(65536):
                pass
        except ConnectionError:
            pass

    def reset(self) -> None:
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()


Behaviour = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def listening(
    behave: Behaviour, *, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[int]:
    """The port of a server that behaves so on each connection, which it then closes."""
    peers: list[Peer] = []
    tasks: list[asyncio.Task[None]] = []

    async def serve(peer: Peer) -> None:
        try:
            await behave(peer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            peer.writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peers.append(Peer(reader, writer, len(peers)))
        tasks.append(asyncio.ensure_future(serve(peers[-1])))

    server = await asyncio.start_server(accept, host, 0, ssl=tls)
    try:
        async with asyncio.timeout(20):  # a fault that makes somebody wait for ever is a failure
            yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


@asynccontextmanager
async def client_of(
    behave: Behaviour, *, keepalive_seconds: float = 60.0, stale_seconds: float = 60.0
) -> AsyncIterator[HttpClient]:
    async with listening(behave) as port:
        client = HttpClient(
            f"http://127.0.0.1:{port}",
            connect_seconds=5.0,
            keepalive_seconds=keepalive_seconds,
            stale_seconds=stale_seconds,
        )
        try:
            yield client
        finally:
            await client.close()


def always(*pieces: bytes) -> Behaviour:
    """Answer every request with `pieces`, each its own write."""

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.send(*pieces)

    return behave


def once(*pieces: bytes) -> Behaviour:
    """Answer the first request with `pieces` and close the connection."""

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(*pieces)

    return behave


async def body_of(response: HttpResponse) -> bytes:
    blocks = []
    try:
        while block := await response.read():
            blocks.append(block)
    finally:
        response.close()
    return b"".join(blocks)


async def ask(client: HttpClient, body: bytes | None = b"{}") -> bytes:
    return await body_of(await client.request("POST", "/v1/x", body))


async def test_a_request_is_sent_with_its_own_host_and_length_and_nothing_else() -> None:
    requests = []

    async def behave(peer: Peer) -> None:
        requests.append(await peer.request())
        await peer.send(HELLO)

    async with listening(behave) as port:
        client = HttpClient(f"http://127.0.0.1:{port}/base/", connect_seconds=5.0, headers=[("X-Fixed", "1")])
        response = await client.request("POST", "/v1/x?y=z", b"{}", [("X-More", "caf\xe9")])
        assert (200, "b", b"hello") == (response.status, response.headers["x-a"], await body_of(response))
        await client.close()
    head = [
        b"POST /base/v1/x?y=z HTTP/1.1",
        b"Host: 127.0.0.1:%d" % port,
        b"X-Fixed: 1",
        b"X-More: caf\xe9",
        b"Content-Length: 2",
    ]
    assert [(head, b"{}")] == requests


async def test_a_request_without_a_body_has_no_length_and_an_empty_body_has_one() -> None:
    heads = []

    async def behave(peer: Peer) -> None:
        while True:
            heads.append((await peer.request())[0][2:])
            await peer.send(HELLO)

    async with client_of(behave) as client:
        await body_of(await client.request("GET", "/"))
        await body_of(await client.request("POST", "/", b""))
    assert [[], [b"Content-Length: 0"]] == heads


@pytest.mark.parametrize(
    ("method", "path", "headers"),
    [
        ("GET", "/ HTTP/1.1\r\nX: y", []),
        ("GET", "/a b", []),
        ("GET", "x", []),
        ("HEAD", "/", []),
        ("GET /", "/", []),
        ("GET\r\n", "/", []),
        ("GET", "/", [("X", "a\r\nY: b")]),
        ("GET", "/", [("X", "a\nY: b")]),
        ("GET", "/", [("X", "a\r")]),
        ("GET", "/", [("X", "a\x00")]),
        ("GET", "/", [("X", "\u20ac")]),
        ("GET", "/", [("X: y\r\nZ", "a")]),
        ("GET", "/", [("Transfer-Encoding : x", "a")]),
        ("GET", "/", [("", "a")]),
        ("GET", "/", [("content-length", "7")]),
        ("GET", "/", [("Transfer-Encoding", "chunked")]),
    ],
)
async def test_nothing_can_be_smuggled_into_a_head(method: str, path: str, headers: list[tuple[str, str]]) -> None:
    client = HttpClient("http://127.0.0.1:9", connect_seconds=5.0)
    with pytest.raises(ValueError, match=r"no line of a request|no header can carry|client's own"):
        await client.request(method, path, None, headers)


def test_a_header_that_cannot_be_sent_is_refused_before_the_first_request() -> None:
    with pytest.raises(ValueError, match="no header can carry"):
        HttpClient("http://h", connect_seconds=5.0, headers=[("Authorization", "Bearer a\r\nb")])


async def test_an_answer_is_the_same_wherever_the_network_splits_it() -> None:
    sent = CHUNKED_HEAD + b"3\r\nhel\r\n2;a=b\r\nlo\r\n0\r\nX-Sum: 1\r\n\r\n"

    async def behave(peer: Peer) -> None:
        for at in range(1, len(sent)):
            await peer.request()
            await peer.send(sent[:at])
            await asyncio.sleep(0)  # the client reads in the meantime
            await peer.send(sent[at:])

    async with client_of(behave) as client:
        bodies = [await ask(client) for _ in range(1, len(sent))]
    assert {b"hello"} == set(bodies)


async def test_what_piled_up_is_read_in_one_piece_and_without_waiting() -> None:
    pieces = [b"%x\r\n%b\r\n" % (len(text), text) for text in (b"one ", b"two ", b"three")]

    async with client_of(always(CHUNKED_HEAD, *pieces, b"0\r\n\r\n")) as client:
        response = await client.request("GET", "/")
        while not response.ended:
            await asyncio.sleep(0)
        reading = response.read()
        with pytest.raises(StopIteration) as caught:
            reading.send(None)
    assert b"one two three" == caught.value.value


async def test_a_connection_is_used_again() -> None:
    numbers = []

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            numbers.append(peer.number)
            await peer.send(HELLO)

    async with client_of(behave) as client:
        assert [b"hello"] * 3 == [await ask(client) for _ in range(3)]
    assert [0, 0, 0] == numbers


async def test_a_connection_is_free_as_soon_as_its_answer_has_come_whether_read_or_not() -> None:
    async with client_of(always(HELLO)) as client:
        unread = await client.request("GET", "/")
        assert b"hello" == await ask(client)
        assert b"hello" == await body_of(unread)


async def test_requests_in_lockstep_do_not_wake_each_others_waiters() -> None:
    async with client_of(always(HELLO)) as client:

        async def several() -> set[bytes]:
            return {await ask(client) for _ in range(10)}

        assert [{b"hello"}] * 8 == await asyncio.gather(*(several() for _ in range(8)))


async def test_cancelling_a_request_that_is_answered_leaves_its_connection_to_the_next() -> None:
    peers: list[Peer] = []
    both_asked = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        peers.append(peer)
        if len(peers) == 2:
            both_asked.set()
        await both_asked.wait()
        if peer is peers[0]:  # both answers are there when the client looks next
            for other in peers:
                other.writer.write(HELLO)
        await peer.request()
        await peer.send(BYE)

    async with client_of(behave) as client:
        others: list[asyncio.Task[bytes]] = []

        async def first() -> list[bytes]:
            answers = [await ask(client)]
            others[0].cancel()
            return [*answers, *await asyncio.gather(ask(client), ask(client))]

        asking = asyncio.create_task(first())
        others.append(asyncio.create_task(ask(client)))
        assert [b"hello", b"bye", b"bye"] == await asking


@pytest.mark.parametrize(
    "sent",
    [
        HELLO.replace(b"X-A: b", b"Connection: close"),
        HELLO.replace(b"1.1", b"1.0"),
        HELLO + b"junk",
        HELLO + HELLO,
        HELLO + b"HTTP/1.1",
    ],
    ids=["close", "1.0", "junk", "another answer", "half an answer"],
)
async def test_a_connection_that_is_not_clean_is_not_used_again(sent: bytes) -> None:
    numbers = []

    async def behave(peer: Peer) -> None:
        while True:
            await peer.request()
            numbers.append(peer.number)
            await peer.send(sent)

    async with client_of(behave) as client:
        assert [b"hello"] * 2 == [await ask(client) for _ in range(2)]
    assert [0, 1] == numbers


async def test_an_idle_connection_on_which_something_comes_is_closed() -> None:
    closed = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO)
        if peer.number == 0:
            await idle.wait()
            await peer.send(HELLO)
            await peer.gone()
            closed.set()

    idle = asyncio.Event()
    async with client_of(behave) as client:
        await ask(client)
        idle.set()
        await closed.wait()
        assert b"hello" == await ask(client)


async def test_an_idle_connection_is_closed_in_time() -> None:
    closed = asyncio.Queue[int]()

    async def behave(peer: Peer) -> None:
        for _ in range(2):
            await peer.request()
            await peer.send(HELLO)
        await peer.gone()
        closed.put_nowait(peer.number)

    async with client_of(behave, keepalive_seconds=0.02) as client:
        for number in range(2):
            for _ in range(2):
                await ask(client)
            assert number == await closed.get()


async def test_a_kept_connection_closed_before_the_answer_is_tried_again_on_a_fresh_one() -> None:
    seen = []

    async def behave(peer: Peer) -> None:
        seen.append((peer.number, await peer.request()))
        await peer.send(HELLO)
        if peer.number == 0:
            seen.append((peer.number, await peer.request()))

    async with client_of(behave) as client:
        assert [b"hello"] * 2 == [await ask(client, b'{"n":1}') for _ in range(2)]
    assert [0, 0, 1] == [number for number, _ in seen]
    assert seen[1][1] == seen[2][1]


async def test_a_kept_connection_that_lived_on_and_died_at_last_is_an_error() -> None:
    numbers = []

    async def behave(peer: Peer) -> None:
        for sent in (HELLO, b""):
            await peer.request()
            numbers.append(peer.number)
            await peer.send(sent)

    async with client_of(behave, stale_seconds=0.0) as client:
        await ask(client)
        with pytest.raises(HttpError, match="closed the connection"):
            await ask(client)
    assert [0, 0] == numbers


@pytest.mark.parametrize("begun", [b"H", b"HTTP/1.1 200 OK\r\nConte", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_request_is_not_sent_again_once_an_answer_has_begun(begun: bytes) -> None:
    numbers = []

    async def behave(peer: Peer) -> None:
        for sent in (HELLO, begun):
            await peer.request()
            numbers.append(peer.number)
            await peer.send(sent)

    async with client_of(behave) as client:
        await ask(client)
        with pytest.raises(HttpError, match="closed the connection"):
            await ask(client)
    assert [0, 0] == numbers


@pytest.mark.parametrize("sent", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
async def test_a_fresh_connection_closed_before_the_answer_is_an_error(sent: bytes) -> None:
    async with client_of(once(sent)) as client:
        with pytest.raises(HttpError, match="closed the connection") as caught:
            await ask(client)
    assert HttpError is type(caught.value)


async def test_a_reset_is_an_error_after_what_came_before() -> None:
    taken = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(HELLO[:-1])
        await taken.wait()
        peer.reset()

    async with client_of(behave) as client:
        response = await client.request("GET", "/")
        assert b"hell" == await response.read()
        taken.set()
        for _ in range(2):
            with pytest.raises(HttpError):
                await response.read()


async def test_a_body_without_length_lasts_until_the_server_closes() -> None:
    async with client_of(once(b"HTTP/1.1 200 OK\r\n\r\n", b"hel", b"lo")) as client:
        assert [b"hello"] * 2 == [await ask(client) for _ in range(2)]


async def test_a_body_without_length_that_is_reset_or_left_has_not_ended() -> None:
    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n\r\nhello")
        await peer.reader.read(1)
        peer.reset()

    async with client_of(behave) as client:
        response = await client.request("GET", "/")
        assert b"hello" == await response.read()
        reading = asyncio.create_task(response.read())
        await asyncio.sleep(0)
        response.close()
        with pytest.raises(HttpError, match="closed by the client"):
            await reading
        assert not response.ended


async def test_what_is_not_http_is_told_apart() -> None:
    async with client_of(once(b"SSH-2.0-OpenSSH_9.6\r\n")) as client:
        with pytest.raises(NotHttpError, match="Expected HTTP/"):
            await ask(client)


async def test_a_head_without_end_closes_the_connection() -> None:
    closed = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\n")
        try:
            while True:
                await peer.send(b"X-A: %b\r\n" % (b"b" * 1000))
        finally:
            closed.set()

    async with client_of(behave) as client:
        with pytest.raises(NotHttpError, match="bytes of head"):
            await ask(client)
        await closed.wait()


async def test_an_answer_may_come_before_the_request_was_taken() -> None:
    numbers = []

    async def behave(peer: Peer) -> None:
        numbers.append(peer.number)
        await peer.reader.readuntil(b"\r\n\r\n")
        await peer.send(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig")
        await peer.gone()

    async with client_of(behave) as client:
        for _ in range(2):  # what is left of a request would be taken for the next one
            response = await client.request("POST", "/", b"x" * 20_000_000)
            assert (413, b"big") == (response.status, await body_of(response))
    assert [0, 1] == numbers


async def test_a_large_body_does_not_hold_up_the_loop() -> None:
    may_read = asyncio.Event()
    sizes = []

    async def behave(peer: Peer) -> None:
        await may_read.wait()
        sizes.append(len((await peer.request())[1]))
        await peer.send(HELLO)

    async with client_of(behave) as client:
        asking = asyncio.create_task(ask(client, b"x" * 20_000_000))
        await asyncio.sleep(0)
        may_read.set()
        assert b"hello" == await asking
    assert [20_000_000] == sizes


async def test_a_server_whose_answer_nobody_reads_has_to_wait() -> None:
    size, sent = 200 * READ_BUFFER_BYTES, []

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        for _ in range(200):
            await peer.send(b"x" * READ_BUFFER_BYTES)
            sent.append(READ_BUFFER_BYTES)
        await peer.request()
        await peer.send(BYE)

    async with client_of(behave) as client:
        response = await client.request("GET", "/")
        for _ in range(500):
            await asyncio.sleep(0)
        assert sum(sent) < size / 2
        longest = total = 0
        while block := await response.read():
            longest, total = max(longest, len(block)), total + len(block)
        assert size == total
        assert longest <= 3 * READ_BUFFER_BYTES
        assert b"bye" == await ask(client)


async def test_closing_an_answer_closes_the_connection_at_once() -> None:
    gone = asyncio.Event()

    async def behave(peer: Peer) -> None:
        await peer.request()
        await peer.send(CHUNKED_HEAD, b"2\r\nhi\r\n")
        await peer.gone()
        gone.set()

    async with client_of(behave) as client:
        response = await client.request("GET", "/")
        assert b"hi" == await response.read()
        response.close()
        await gone.wait()
        with pytest.raises(HttpError, match="closed by the client"):
            await response.read()


async def test_closing_the_client_breaks_off_answers_and_sends_no_more() -> None:
    async with client_of(always(CHUNKED_HEAD)) as client:
        response = await client.request("GET", "/")
        await client.close()
        with pytest.raises(HttpError, match="closed by the client"):
            await response.read()
        with pytest.raises(ConnectError, match="closed"):
            await client.request("GET", "/")


async def test_a_refused_connection_cannot_be_made() -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        client = HttpClient(f"http://127.0.0.1:{bound.getsockname()[1]}", connect_seconds=5.0)
        with pytest.raises(ConnectError, match=r"refused|failed"):
            await ask(client)


async def test_ipv6_is_spoken() -> None:
    heads = []

    async def behave(peer: Peer) -> None:
        heads.append((await peer.request())[0])
        await peer.send(HELLO)

    try:
        async with listening(behave, host="::1") as port:
            client = HttpClient(f"http://[::1]:{port}", connect_seconds=5.0)
            assert b"hello" == await ask(client)
            await client.close()
    except OSError:
        pytest.skip("no IPv6 on this machine")
    assert b"Host: [::1]:%d" % port == heads[0][1]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 signed by itself, and its key."""
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the certificate, is not installed")
    folder = tmp_path_factory.mktemp("tls")
    made, key = folder / "certificate.pem", folder / "key.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    subprocess.run(
        ["openssl", "req", "-x509", *kind, *subject, "-keyout", key, "-out", made], check=True, capture_output=True
    )
    return made, key


def test_tls_is_spoken_under_both_loops(certificate: tuple[Path, Path]) -> None:
    made, key = certificate
    served = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    served.load_cert_chain(made, key)
    trusting = ssl.create_default_context(cafile=str(made))

    async def behave(peer: Peer) -> None:
        _, body = await peer.request()
        await peer.send(HELLO)
        _, body = await peer.request()
        await peer.send(CHUNKED_HEAD, b"%x\r\n%b\r\n" % (len(body), body), b"0\r\n\r\n")
        await peer.request()
        await peer.send(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhello")

    async def converse() -> tuple[bytes, bool, str]:
        async with listening(behave, tls=served) as port:
            client = HttpClient(f"https://127.0.0.1:{port}", connect_seconds=5.0, tls=trusting)
            first = await ask(client)
            second = await ask(client, b"x" * 3_000_000)
            with pytest.raises(HttpError) as caught:
                await ask(client)
            await client.close()
            stranger = HttpClient(f"https://127.0.0.1:{port}", connect_seconds=5.0)
            with pytest.raises(ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
                await ask(stranger)
            return first, second == b"x" * 3_000_000, type(caught.value).__name__

    for loop_factory in (asyncio.new_event_loop, uvloop.new_event_loop):
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            assert (b"hello", True, "HttpError") == runner.run(converse())


def test_uvloop_keeps_cancels_and_holds_back_as_well() -> None:
    async def converse() -> None:
        await test_requests_in_lockstep_do_not_wake_each_others_waiters()
        await test_cancelling_a_request_that_is_answered_leaves_its_connection_to_the_next()
        await test_a_server_whose_answer_nobody_reads_has_to_wait()
        await test_a_reset_is_an_error_after_what_came_before()
        await test_a_body_without_length_that_is_reset_or_left_has_not_ended()
        await test_an_answer_may_come_before_the_request_was_taken()
        await test_an_idle_connection_is_closed_in_time()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(converse())


@pytest.mark.parametrize(
    "sent",
    [
        HELLO,
        HELLO.replace(b"200 OK", b"200"),
        HELLO.replace(b"200 OK", b"500 Some Reason"),
        HELLO.replace(b"200 OK", b"301 Moved").replace(b"X-A", b"Location"),
        HELLO.replace(b"1.1", b"1.0"),
        HELLO.replace(b"X-A: b", b"X-A:b\r\nX-Empty:\r\nSet-Cookie: a=b"),
        HELLO[:-1],
        CHUNKED_HEAD + b"5;a=b\r\nhello\r\n0\r\nX-Sum: 1\r\n\r\n",
        CHUNKED_HEAD + b"5\r\nhello\r\n",
        CHUNKED_HEAD + b"5\r\nhelloworld\r\n0\r\n\r\n",
        b"HTTP/1.1 204 No Content\r\n\r\n",
        b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n\r\nuntil close",
        b"HTTP/1.1 100 Continue\r\n\r\n" + HELLO,
        b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + HELLO,
        b"HTTP/1.1 200 OK\r\nContent-Length: 5, 6\r\n\r\nhello",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\nhello",
        b"hello",
        b"",
    ],
)
async def test_aiohttp_understands_the_same(sent: bytes) -> None:
    async def by_aiohttp(port: int) -> object:
        async with (
            aiohttp.ClientSession(f"http://127.0.0.1:{port}") as session,
            session.post("/v1/x", data=b"{}", allow_redirects=False) as response,
        ):
            headers = {name.lower(): value for name, value in response.headers.items()}
            return response.status, headers, await response.read()

    async def by_us(port: int) -> object:
        client = HttpClient(f"http://127.0.0.1:{port}", connect_seconds=5.0)
        try:
            response = await client.request("POST", "/v1/x", b"{}")
            return response.status, response.headers, await body_of(response)
        finally:
            await client.close()

    async def outcome(asking: Awaitable[object]) -> object:
        try:
            return await asking
        except (HttpError, aiohttp.ClientError):
            return "no answer"

    async with listening(once(sent)) as port:
        assert await outcome(by_aiohttp(port)) == await outcome(by_us(port))
