"""What strangers may send: it is answered in OpenAI's form or closed, and others are served meanwhile."""

import asyncio
import gzip
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import msgspec
import pytest
import uvicorn
from uvicorn.server import ServerState

from driftsched.config import AdminSettings, LimitSettings, Settings, TenantSettings, hash_key
from driftsched.core.events import Admitted, Evicted
from driftsched.core.model import Tenant
from driftsched.gateway.edge import MAX_HEAD_BYTES, MAX_PIPELINED, EdgeLimits, edge_protocol
from driftsched.gateway.errors import HttpError
from driftsched.gateway.tenants import KeyedTenants
from support.faulty_upstream import EVENTS, FaultyUpstream, hang_mid_stream, stream
from support.raw import CHAT, Reply, asked, connected_to, exchanged, head_of
from support.servers import House, chat, gateway_before, http_engine, live_gateway, simulated, unasked, until

BODY = json.dumps(chat()).encode()
HASTY = EdgeLimits(max_stall_seconds=0.1)


@pytest.fixture
async def house() -> AsyncIterator[House]:
    """A gateway in front of an engine that answers at once; at the end it must still serve."""
    async with live_gateway(simulated()) as made:
        yield made
        assert 200 == (await asked(made.url, head_of(BODY) + BODY)).status


def chunked(body: bytes, *lines: str) -> bytes:
    return head_of(b"", "Transfer-Encoding: chunked", *lines, length="") + b"%x\r\n%b\r\n0\r\n\r\n" % (
        len(body),
        body,
    )


READ_TWO_WAYS = {
    "a length and chunks": head_of(BODY, "Transfer-Encoding: chunked") + BODY,
    "two lengths that differ": head_of(BODY, "Content-Length: 1") + BODY,
    "two lengths in one": head_of(BODY, length="5, 6") + BODY,
    "a signed length": head_of(BODY, length="+5") + BODY,
    "a length beyond all numbers": head_of(BODY, length="9" * 30) + BODY,
    "an unknown coding": head_of(BODY, "Transfer-Encoding: xchunked", length="") + BODY,
    "a coding that is not the last": head_of(BODY, "Transfer-Encoding: chunked, gzip", length="") + BODY,
    "a folded line": head_of(BODY, "X-A: b\r\n c: d") + BODY,
    "a space before the colon": head_of(BODY, "Content-Length : 3") + BODY,
    "line feeds alone": (head_of(BODY) + BODY).replace(b"\r\n", b"\n"),
    "a carriage return alone": head_of(BODY, "X-A: b\rX-C: d") + BODY,
    "a NUL in a value": head_of(BODY, "X-A: b\0c") + BODY,
    "a NUL in a name": head_of(BODY, "X\0A: b") + BODY,
    "a chunk of a negative size": head_of(b"", "Transfer-Encoding: chunked", length="") + b"-5\r\nhello\r\n",
    "a chunk larger than all numbers": head_of(b"", "Transfer-Encoding: chunked", length="") + b"f" * 40 + b"\r\n",
    "a chunk with a wrong end": head_of(b"", "Transfer-Encoding: chunked", length="") + b"2\r\n{}XX0\r\n\r\n",
    "another protocol": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "TLS": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 50,
    "a proxy's request": b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n",
    "no version": b"GET /health\r\n\r\n",
}


@pytest.mark.parametrize("request_bytes", READ_TWO_WAYS.values(), ids=READ_TWO_WAYS.keys())
async def test_what_could_be_read_in_two_ways_is_refused_and_its_connection_closed(
    house: House, request_bytes: bytes
) -> None:
    reply = await asked(house.url, request_bytes)
    assert (400, "invalid_http", "close") == (reply.status, reply.error["code"], reply.headers["connection"])
    assert [] == house.of(Admitted)


async def test_a_trailer_is_no_header(house: House) -> None:
    trailer = chunked(BODY).removesuffix(b"\r\n") + b"X-Request-Id: of-the-trailer\r\n\r\n"
    reply = await asked(house.url, trailer)
    assert (200, True) == (reply.status, reply.headers["x-request-id"] != "of-the-trailer")


@pytest.mark.parametrize("name", ["Authorization", "X-LLM-D-Inference-Fairness-Id", "X-SMG-Priority", "Host"])
async def test_who_calls_may_be_said_once(house: House, name: str) -> None:
    reply = await asked(house.url, head_of(BODY, f"{name}: a", f"{name}: b") + BODY)
    assert (400, "repeated_header") == (reply.status, reply.error["code"])
    assert [] == house.of(Admitted)


async def test_an_offer_to_upgrade_is_not_taken_up(house: House) -> None:
    upgrade = head_of(b"", "Upgrade: websocket", method="GET", path="/health", close=False).replace(
        b"Host: x", b"Host: x\r\nConnection: upgrade, close"
    )
    assert 200 == (await asked(house.url, upgrade)).status


# Size


@pytest.mark.parametrize(
    "endless",
    [
        b"GET /" + b"a" * (MAX_HEAD_BYTES + 9),
        b"GET / HTTP/1.1\r\nX: " + b"a" * (MAX_HEAD_BYTES + 9),
        b"\r\n" * (MAX_HEAD_BYTES // 2 + 9),
    ],
)
async def test_a_head_without_end_is_refused(house: House, endless: bytes) -> None:
    reply = await asked(house.url, endless)
    assert (431, "head_too_large") == (reply.status, reply.error["code"])


async def test_a_chunk_extension_without_end_is_refused(house: House) -> None:
    request = head_of(b"", "Transfer-Encoding: chunked", length="") + b"5;" + b"a" * (20 * MAX_HEAD_BYTES)
    assert (await asked(house.url, request)).status in (0, 431)  # 0: the reset overtook the reply
    assert [] == house.of(Admitted)


async def test_a_large_body_is_no_large_head(house: House) -> None:
    body = json.dumps(chat("x" * 300_000)).encode()
    assert 200 == (await asked(house.url, head_of(body) + body)).status
    assert 200 == (await asked(house.url, chunked(body))).status


@pytest.mark.parametrize("declared", [True, False])
async def test_a_body_that_is_too_large_is_refused_and_not_read(declared: bool) -> None:
    settings = Settings(limits=LimitSettings(max_body_bytes=1000))
    async with live_gateway(simulated(), settings=settings) as house:
        body = b"x" * 2000
        request = head_of(b"", length="1000000000000") if declared else chunked(body)
        reply = await asked(house.url, request)
    assert (413, "body_too_large", "close") == (reply.status, reply.error["code"], reply.headers["connection"])


@pytest.mark.parametrize("coding", ["gzip", "deflate", "br", "zstd", "identity, gzip", "GZIP"])
async def test_a_compressed_body_is_refused_before_it_is_read(house: House, coding: str) -> None:
    bomb = gzip.compress(b"0" * 1_000_000)
    reply = await asked(house.url, head_of(bomb, f"Content-Encoding: {coding}") + bomb)
    assert (415, "unsupported_content_encoding") == (reply.status, reply.error["code"])


async def test_a_body_compressed_on_the_way_is_never_unpacked(house: House) -> None:
    bomb = gzip.compress(BODY)
    reply = await asked(house.url, chunked(bomb).replace(b"chunked", b"gzip, chunked"))
    assert 400 == reply.status


WEIRD_JSON = {
    "nothing": b"",
    "deep lists": b"[" * 100_000,
    "deep objects in an unknown field": b'{"model":"m","x":' + b'{"a":' * 100_000 + b"1" + b"}" * 100_001,
    "deep content": b'{"model":"m","messages":[{"role":"user","content":' + b"[" * 50_000 + b"]" * 50_000 + b"}]}",
    "a number of a million digits": b'{"model":"simulated","messages":[],"max_tokens":' + b"9" * 1_000_000 + b"}",
    "a number beyond all": b'{"model":"simulated","messages":[{"role":"user","content":"a"}],"max_tokens":1e999}',
    "no number": b'{"model":"simulated","messages":[{"role":"user","content":"a"}],"max_tokens":NaN}',
    "half a surrogate": b'{"model":"\\ud800","messages":[{"role":"user","content":"a"}]}',
    "bytes that are no text": b'{"model":"\xff\xfe","messages":[]}',
    "a byte order mark": b"\xef\xbb\xbf" + BODY,
    "another encoding": BODY.decode().encode("utf-16"),
    "two documents": BODY + BODY,
    "a string": b'"model"',
}


@pytest.mark.parametrize("body", WEIRD_JSON.values(), ids=WEIRD_JSON.keys())
async def test_json_that_makes_no_sense_is_refused_with_400(house: House, body: bytes) -> None:
    reply = await asked(house.url, head_of(body) + body)
    assert 400 == reply.status
    assert reply.error["code"] in ("invalid_json", "invalid_value")
    assert [] == house.of(Admitted)


@pytest.mark.parametrize("max_tokens", [2**31, 2**63, 2**64, 10**40])
async def test_a_limit_beyond_all_reason_is_a_limit(house: House, max_tokens: int) -> None:
    body = json.dumps(chat(max_tokens=max_tokens)).encode()
    assert (await asked(house.url, head_of(body) + body)).status in (200, 400)


async def test_of_a_field_said_twice_engine_and_gateway_read_the_same() -> None:
    twice = b'{"model":"a","model":"b","priority":1,"prio\\u0072ity":2,"messages":[{"role":"user","content":"x"}]}'
    async with (
        FaultyUpstream(stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        assert 200 == (await asked(house.url, head_of(twice) + twice)).status
        (admitted,) = house.of(Admitted)
    sent = upstream.requests[0].body
    assert (b"b", 1) == (admitted.ticket.request.model.encode(), sent.count(b'"model"'))
    assert "b" == json.loads(sent)["model"]
    assert "priority" not in json.loads(sent)


# Time


@pytest.mark.parametrize("start", [b"", b"\r\n", b"POST ", b"POST / HTTP/1.1\r\nHost: x\r\nX-A: "])
async def test_a_connection_that_never_completes_a_head_is_closed(start: bytes) -> None:
    async with live_gateway(simulated(), edge=HASTY) as house:
        assert b"" == await exchanged(house.url, start)


async def test_a_kept_connection_must_complete_its_next_head_as_well() -> None:
    async with live_gateway(simulated(), edge=HASTY) as house:
        whole = head_of(b"", method="GET", path="/health", close=False)
        data = await exchanged(house.url, whole + b"POST / HTTP/1.1\r\nHost: x\r\n")
    assert data.endswith(b'{"status":"ok"}')


async def test_who_sends_its_head_slowly_all_the_time_is_closed_all_the_same() -> None:
    async with live_gateway(simulated(), edge=HASTY) as house:
        reader, writer = await connected_to(house.url)
        writer.write(b"POST / HTTP/1.1\r\n")
        closed = asyncio.create_task(reader.read(-1))
        while not closed.done():
            writer.write(b"X-A: b\r\n")
            await asyncio.wait((closed,), timeout=0.01)
        writer.transport.abort()
    assert isinstance(closed.exception(), ConnectionError) or b"" == closed.result()


async def test_a_body_that_never_comes_is_told_so_and_closed() -> None:
    settings = Settings(limits=LimitSettings(max_stall_seconds=0.1))
    async with live_gateway(simulated(), settings=settings) as house:
        reply = await asked(house.url, head_of(BODY, length="100", close=False) + b"{")
    assert (408, "body_timeout") == (reply.status, reply.error["code"])


async def test_an_answer_that_lasts_is_not_cut_for_that() -> None:
    engine = simulated(slots=1)
    engine.hold()
    async with live_gateway(engine, slots=1, edge=HASTY) as house:
        call = asyncio.create_task(asked(house.url, head_of(BODY) + BODY))
        await until(lambda: house.of(Admitted))
        assert b"" == await exchanged(house.url)  # as long as the edge is patient, and as long again
        assert b"" == await exchanged(house.url)
        engine.resume()
        assert 200 == (await call).status


async def test_a_connection_too_many_is_told_so() -> None:
    async with live_gateway(simulated(), edge=EdgeLimits(max_connections=1)) as house:
        _, first = await connected_to(house.url)
        first.write(head_of(b"", method="GET", path="/health", close=False))
        reply = await until_refused(house)
        first.transport.abort()
    assert (503, "too_many_connections") == (reply.status, reply.error["code"])


async def until_refused(house: House) -> Reply:
    """The first reply that is no 200: until the other connection is accepted there is room."""
    while (reply := await asked(house.url, head_of(b"", method="GET", path="/health"))).status == 200:
        pass
    return reply


class Pipe(asyncio.Transport):
    """A client's end that takes what it is told to take."""

    def __init__(self, unsent: list[int]) -> None:
        super().__init__()
        self._unsent = unsent
        self._closing = False
        self.aborted = False

    def write(self, data: Any) -> None: ...

    def get_write_buffer_size(self) -> int:
        return self._unsent.pop(0) if len(self._unsent) > 1 else self._unsent[0]

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        self._closing = True

    def abort(self) -> None:
        self.aborted = True

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...


@pytest.mark.parametrize("unsent", [[900], [900, 800, 700, 600, 600]])
@pytest.mark.parametrize("given_up", [False, True])
async def test_an_answer_of_which_nothing_more_is_taken_is_broken_off(unsent: list[int], given_up: bool) -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        if not given_up:  # else uvicorn closes the connection, which waits for what is unsent
            await send({"type": "http.response.body", "body": b"ok"})

    unsent = [*unsent]
    config = uvicorn.Config(app, http=edge_protocol(EdgeLimits(max_stall_seconds=0.01)), log_config=None, ws="none")
    config.load()
    loop = asyncio.get_running_loop()
    made: Any = config.http_protocol_class
    protocol = made(config=config, server_state=ServerState(), app_state={}, _loop=loop)
    pipe = Pipe(unsent)
    protocol.connection_made(pipe)
    protocol.data_received(head_of(b"", method="GET", close=False))
    await until(lambda: pipe.aborted)
    protocol.connection_lost(None)
    assert 1 == len(unsent)  # as long as something was taken it went on


@pytest.mark.parametrize("streams", [False, True])
async def test_who_speaks_http_1_0_gets_no_chunks(streams: bool) -> None:
    body = json.dumps(chat(stream=streams, stream_options={"include_usage": True})).encode()
    old = (head_of(body, close=False) + body).replace(b"HTTP/1.1", b"HTTP/1.0")
    async with gateway_before(stream()) as (_, house):
        reply = await asked(house.url, old)
    assert (200, False) == (reply.status, "transfer-encoding" in reply.headers)
    assert (b"".join(EVENTS) if streams else b"Hello world") in reply.body


# Several requests on one connection


async def test_who_leaves_after_sending_more_requests_ahead_has_left_the_first_too() -> None:
    async with (
        FaultyUpstream(hang_mid_stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked(), slots=1) as house,
    ):
        _, writer = await connected_to(house.url)
        writer.write((head_of(BODY, close=False) + BODY) * 2)
        await upstream.wait_for_requests(1)
        writer.transport.abort()
        await upstream.requests[0].client_gone.wait()
        await until(lambda: house.idle)
        assert ["cancelled"] == [event.reason for event in house.of(Evicted)]


async def test_requests_sent_ahead_are_answered_in_order(house: House) -> None:
    ahead = b"".join(
        head_of(b"", f"X-Request-Id: n{n}", method="GET", path="/nowhere", close=n == 4) for n in range(5)
    )
    data = await exchanged(house.url, ahead)
    places = [data.find(b"x-request-id: n%d\r\n" % n) for n in range(5)]
    assert -1 not in places
    assert sorted(places) == places


async def test_thousands_of_requests_sent_ahead_are_not_kept(house: House) -> None:
    flood = head_of(BODY, close=False) + BODY + head_of(b"", method="GET", path="/", close=False) * 1000
    data = await exchanged(house.url, flood)
    assert data.count(b"HTTP/1.1 ") <= MAX_PIPELINED
    await until(lambda: house.idle)


# Names


@pytest.mark.parametrize(
    "path",
    [
        "/v1/queue/../../admin/state",
        "/v1/queue/..%2f..%2fetc%2fpasswd",
        "/v1/queue/%00",
        "/v1/queue/%0d%0aSet-Cookie:%20a=b",
        "/v1/../metrics/../admin/state",
        "//v1/models",
        "/admin/state",
        "/v1/queue/" + "a" * 10_000,
        "/v1/queue/%ff%fe%ed%a0%80",
        "http://example.com/v1/admin",
    ],
)
async def test_a_path_leads_nowhere_but_to_what_there_is(house: House, path: str) -> None:
    reply = await asked(house.url, head_of(b"", method="GET", path=path))
    assert 404 == reply.status
    assert reply.error["code"] in ("unknown_request", "unknown_url")
    assert "set-cookie" not in reply.headers


@pytest.mark.parametrize(
    "model", ["http://127.0.0.1:1/v1", "../../admin", "simulated\r\nX: y", "\0", "m" * 100_000, "%2e%2e", "🦆"]
)
async def test_a_model_is_a_name_and_no_address(house: House, model: str) -> None:
    body = json.dumps(chat(model=model)).encode()
    reply = await asked(house.url, head_of(body) + body)
    assert (404, "model_not_found") == (reply.status, reply.error["code"])


async def test_no_name_of_a_clients_reaches_the_address_line_or_the_headers_for_the_engine() -> None:
    body = json.dumps(chat(model="http://evil/\r\nX-Evil: 1", user="../..\r\nX-Evil: 1")).encode()
    lines = (
        "X-LLM-D-Inference-Fairness-Id: ../evil",
        "X-Request-Id: ../evil",
        "Cookie: a=b",
        "X-Forwarded-Host: evil",
        "Proxy-Authorization: x",
        "X-Session-Id: evil",
        "Traceparent: 00-evil",
    )
    async with (
        FaultyUpstream(stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        assert 200 == (await asked(house.url, head_of(body, *lines) + body)).status
    (seen,) = upstream.requests
    assert CHAT == seen.path
    names = {"host", "accept", "accept-encoding", "content-type", "content-length", "user-agent"}
    assert names | {"traceparent", "x-request-id"} == seen.headers.keys()
    assert "../evil" != seen.headers["x-request-id"]


@pytest.mark.parametrize("value", ["a\x80b", "é", "a\tb", "\t", ""])
async def test_whatever_a_trace_header_may_hold_the_engine_gets_one_line(value: str) -> None:
    async with (
        FaultyUpstream(stream()) as upstream,
        live_gateway(http_engine(upstream.url), catalogue=unasked()) as house,
    ):
        reply = await asked(house.url, head_of(BODY, f"Traceparent: {value}") + BODY)
    assert 200 == reply.status
    assert value.strip() == upstream.requests[0].headers["traceparent"]


@pytest.mark.parametrize("value", ["x" * 129, "é", "a\tb", "a\x80"])
async def test_an_id_that_is_not_fit_to_be_sent_back_is_replaced(house: House, value: str) -> None:
    reply = await asked(house.url, head_of(BODY, f"X-Request-Id: {value}") + BODY)
    assert 200 == reply.status
    assert value != reply.headers["x-request-id"]


async def test_nobody_can_write_lines_into_the_log(house: House, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "driftsched")
    evil = chat(model="m\nCRITICAL forged", user="u\nCRITICAL forged", service_tier="t\nCRITICAL forged")
    body = json.dumps(evil).encode()
    lines = ("X-Request-Id: a CRITICAL", "X-Session-Id: b")
    await asked(house.url, head_of(body, *lines) + body)
    await asked(house.url, head_of(b"", method="GET", path="/x%0aCRITICAL%20forged"))
    assert [] == [record for record in caplog.records if "\n" in record.getMessage()]


# Keys

KEYED = Settings(tenants=[TenantSettings("ann", keys_sha256=[hash_key("sk-ann")])])


@pytest.mark.parametrize(
    "line",
    [
        "Authorization: Bearer sk-ANN",
        "Authorization: Bearer sk-an",
        "Authorization: Bearer sk-ann2",
        f"Authorization: Bearer {hash_key('sk-ann')}",
        "Authorization: Bearer",
        "Authorization: Basic c2stYW5u",
        "Authorization: sk-ann",
        "X-Api-Key: sk-ann",
        "Cookie: authorization=Bearer sk-ann",
        "X-LLM-D-Inference-Fairness-Id: ann",
    ],
)
async def test_nothing_but_the_key_itself_opens(line: str) -> None:
    async with live_gateway(simulated(), settings=KEYED) as house:
        reply = await asked(house.url, head_of(BODY, line, length="999999") + b"never read")
        assert [] == house.of(Admitted)
    assert (401, "authentication_error") == (reply.status, reply.error["type"])


async def test_a_key_of_a_tenant_is_none_of_an_operator() -> None:
    settings = msgspec.structs.replace(KEYED, admin=AdminSettings(keys_sha256=[hash_key("sk-admin")]))
    engine = json.dumps({"url": "http://127.0.0.1:1", "name": "evil"}).encode()
    async with live_gateway(simulated(), settings=settings) as house:
        for method, path, body in (
            ("GET", "/admin/state", b""),
            ("GET", "/admin/requests/1", b""),
            ("POST", "/admin/engines", engine),
            ("POST", "/admin/engines/simulated/drain", b""),
            ("DELETE", "/admin/engines/simulated", b""),
        ):
            for line in ("Authorization: Bearer sk-ann", "X-A: b"):
                reply = await asked(house.url, head_of(body, line, method=method, path=path) + body)
                assert reply.status in (401, 404), path
                assert reply.error["code"]
        theirs = head_of(BODY, "Authorization: Bearer sk-admin") + BODY
        assert 401 == (await asked(house.url, theirs)).status


def test_no_key_is_held_and_none_can_be_found_by_its_beginning() -> None:
    tenants = KeyedTenants([(hash_key("sk-ann"), Tenant("ann"))])
    assert "sk-ann" not in repr(vars(tenants))
    assert Tenant("ann") == tenants.resolve({b"authorization": b"Bearer sk-ann"}, None)
    for key in (b"s", b"sk-an", b"sk-ann\0", hash_key("sk-ann").encode(), bytes.fromhex(hash_key("sk-ann"))):
        with pytest.raises(HttpError):
            tenants.resolve({b"authorization": b"Bearer " + key}, None)


async def test_a_query_holds_no_key() -> None:
    async with live_gateway(simulated(), settings=KEYED) as house:
        path = f"{CHAT}?authorization=Bearer%20sk-ann&api_key=sk-ann"
        assert 401 == (await asked(house.url, head_of(BODY, path=path) + BODY)).status
