"""The rest of the HTTP face: routes, probes, bodies, and what the gateway refuses."""

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest

from driftsched.config import LimitSettings, Settings, TenantSettings, hash_key
from driftsched.core.events import Admitted, Failed, Rejected
from driftsched.core.model import Request
from driftsched.gateway.catalogue import Catalogue
from support.faulty_upstream import FaultyUpstream, answer
from support.servers import House, chat, http_engine, live_gateway, simulated, unasked, until

CHAT = "/v1/chat/completions"


@pytest.fixture
async def house() -> AsyncIterator[House]:
    async with live_gateway(simulated()) as house:
        yield house


async def error_of(response: aiohttp.ClientResponse) -> dict[str, Any]:
    error: dict[str, Any] = (await response.json())["error"]
    assert {"message", "type", "param", "code"} == error.keys()
    assert error["message"]
    return error


@pytest.mark.parametrize("path", ["/health", "/healthz"])
@pytest.mark.parametrize("method", ["GET", "HEAD"])
async def test_the_process_says_that_it_lives(
    house: House, http: aiohttp.ClientSession, path: str, method: str
) -> None:
    async with http.request(method, house.url + path) as response:
        body = await response.read()
    assert (200, b'{"status":"ok"}' if method == "GET" else b"") == (response.status, body)


async def test_metrics_are_exported_in_prometheus_text_format(house: House, http: aiohttp.ClientSession) -> None:
    async with http.post(house.url + CHAT, json=chat()) as response:
        await response.read()
    async with http.get(f"{house.url}/metrics") as response:
        text = await response.text()
    assert "text/plain; version=0.0.4; charset=utf-8" == response.headers["content-type"]
    assert 'driftsched_requests_finished_total{tier="standard"} 1.0' in text
    assert "driftsched_inflight_requests 0.0" in text


async def test_metrics_can_be_probed_without_their_text(house: House, http: aiohttp.ClientSession) -> None:
    async with http.head(f"{house.url}/metrics") as response:
        assert (200, b"") == (response.status, await response.read())


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/files", "/apply-template", "/v1/chat/completions/", "/metrics/x"]
)
async def test_what_is_not_here_is_not_found(house: House, http: aiohttp.ClientSession, path: str) -> None:
    async with http.post(house.url + path, json=chat()) as response:
        assert (404, "unknown_url") == (response.status, (await error_of(response))["code"])


@pytest.mark.parametrize(
    ("method", "path", "allow"),
    [
        ("GET", CHAT, "POST"),
        ("DELETE", "/v1/completions", "POST"),
        ("POST", "/metrics", "GET"),
        ("PUT", "/health", "GET"),
    ],
)
async def test_a_method_that_does_not_fit_is_refused_with_the_one_that_does(
    house: House, http: aiohttp.ClientSession, method: str, path: str, allow: str
) -> None:
    async with http.request(method, house.url + path) as response:
        error = await error_of(response)
    assert (405, "method_not_allowed", allow) == (response.status, error["code"], response.headers["allow"])


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"model":"simulated"}', b"[" * 100_000])
async def test_a_body_that_makes_no_sense_is_refused(
    house: House, http: aiohttp.ClientSession, body: bytes
) -> None:
    async with http.post(house.url + CHAT, data=body) as response:
        await error_of(response)
    assert 400 == response.status
    assert [] == house.events


async def test_a_compressed_body_is_refused(house: House, http: aiohttp.ClientSession) -> None:
    async with http.post(house.url + CHAT, data=b"x", headers={"content-encoding": "gzip"}) as response:
        error = await error_of(response)
    assert (415, "unsupported_content_encoding") == (response.status, error["code"])


SMALL = Settings(limits=LimitSettings(max_body_bytes=1000, max_stall_seconds=0.05))


async def test_a_body_of_just_the_largest_size_is_read(http: aiohttp.ClientSession) -> None:
    async with live_gateway(simulated(), settings=SMALL) as house:
        body = json.dumps(chat()).encode().ljust(1000)
        async with http.post(house.url + CHAT, data=body) as response:
            await response.read()
    assert 200 == response.status


@pytest.mark.parametrize("announced", [True, False])
async def test_a_body_that_is_too_large_is_refused(http: aiohttp.ClientSession, announced: bool) -> None:
    body = json.dumps(chat()).encode().ljust(1001)

    async def pieces() -> AsyncIterator[bytes]:
        yield body

    async with live_gateway(simulated(), settings=SMALL) as house:
        async with http.post(house.url + CHAT, data=body if announced else pieces()) as response:
            error = await error_of(response)
        assert [] == house.events
    assert (413, "body_too_large", "close") == (response.status, error["code"], response.headers["connection"])


async def test_an_endless_body_is_refused_before_it_fills_the_memory(http: aiohttp.ClientSession) -> None:
    settings = Settings(limits=LimitSettings(max_body_bytes=100_000))
    async with live_gateway(simulated(), settings=settings) as house:
        reader, writer = await connection(house)
        writer.write(head(b"Transfer-Encoding: chunked"))
        piece = b"8000\r\n" + b"x" * 0x8000 + b"\r\n"
        for _ in range(5):
            writer.write(piece)
        assert (await reader.readline()).startswith(b"HTTP/1.1 413")
        writer.close()


@pytest.mark.parametrize("sent", [b"", b"{"])
async def test_a_body_that_does_not_arrive_is_not_waited_for_for_ever(sent: bytes) -> None:
    async with live_gateway(simulated(), settings=SMALL) as house:
        reader, writer = await connection(house)
        writer.write(head(b"Content-Length: 100") + sent)
        answer = await reader.read()
        writer.close()
        assert [] == house.events
    assert answer.startswith(b"HTTP/1.1 408")
    assert b'"code":"body_timeout"' in answer


async def test_a_client_is_told_to_go_on_before_it_sends_a_large_body() -> None:
    body = json.dumps(chat()).encode()
    async with live_gateway(simulated()) as house:
        reader, writer = await connection(house)
        writer.write(head(b"Content-Length: %d\r\nExpect: 100-continue\r\nConnection: close" % len(body)))
        assert (await reader.readline()).startswith(b"HTTP/1.1 100")
        writer.write(body)
        await reader.readline()
        assert (await reader.readline()).startswith(b"HTTP/1.1 200")
        await reader.read()
        writer.close()


async def test_a_connection_serves_one_call_after_the_other(house: House) -> None:
    body = json.dumps(chat(stream=True)).encode()
    reader, writer = await connection(house)
    for _ in range(3):
        writer.write(head(b"Content-Length: %d" % len(body)) + body)
        answer = await reader.readuntil(b"0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert b"[DONE]" in answer
    writer.close()


async def test_calls_sent_ahead_on_one_connection_are_answered_in_turn(house: House) -> None:
    body = json.dumps(chat(stream=True, max_tokens=3)).encode()
    reader, writer = await connection(house)
    writer.write((head(b"Content-Length: %d" % len(body)) + body) * 3)
    for _ in range(3):
        assert b"[DONE]" in await reader.readuntil(b"0\r\n\r\n")
    writer.close()


async def test_a_gateway_is_ready_while_its_engine_answers(http: aiohttp.ClientSession) -> None:
    models = {"/v1/models": answer(b'{"data":[{"id":"m"}]}')}
    async with FaultyUpstream(routes=models) as upstream:
        port = int(upstream.url.rsplit(":", 1)[1])
        engine = http_engine(upstream.url)
        async with live_gateway(engine) as house:
            statuses = [await status_of(http, f"{house.url}/readyz")]
            await upstream.__aexit__(None, None, None)
            statuses.append(await status_of(http, f"{house.url}/readyz"))
            async with FaultyUpstream(routes=models, port=port):
                statuses.append(await status_of(http, f"{house.url}/readyz"))
    assert [200, 503, 200] == statuses


async def test_until_an_engine_has_told_its_models_none_are_listed_and_none_refused(
    http: aiohttp.ClientSession,
) -> None:
    async with FaultyUpstream() as upstream, live_gateway(http_engine(upstream.url), catalogue=unasked()) as house:
        async with http.get(f"{house.url}/v1/models") as response:
            assert {"object": "list", "data": []} == await response.json()
        async with http.post(house.url + CHAT, json={**chat(), "model": "whatever"}) as response:
            assert 200 == response.status


class BrokenEngine:
    """Raises what no engine should."""

    name = "broken"

    def generate(self, request: Request) -> Any:
        raise ZeroDivisionError("secret detail")

    async def close(self) -> None: ...


async def test_a_fault_of_the_gateway_itself_is_told_without_its_details(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async with live_gateway(BrokenEngine(), catalogue=unasked()) as house:
        async with http.post(house.url + CHAT, json=chat()) as response:
            error = await error_of(response)
        (failed,) = house.of(Failed)
    assert (500, "internal_error", "internal_error") == (response.status, error["code"], failed.error)
    assert "secret" not in str(error)
    assert "ZeroDivisionError: secret detail" in caplog.text


class BrokenCatalogue(Catalogue):
    async def ready(self) -> bool:
        raise ZeroDivisionError("secret detail")


async def test_a_fault_outside_a_generation_is_told_without_its_details(
    http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture
) -> None:
    async def ignore(engine: str, slots: int) -> None: ...

    async with (
        live_gateway(simulated(), catalogue=BrokenCatalogue([], on_slots=ignore)) as house,
        http.get(f"{house.url}/readyz") as response,
    ):
        error = await error_of(response)
    assert (500, "internal_error") == (response.status, error["code"])
    assert "secret" not in str(error)


async def test_a_full_queue_says_when_to_come_back(http: aiohttp.ClientSession) -> None:
    engine = simulated(slots=1)
    engine.hold()
    async with live_gateway(engine, slots=1, settings=Settings(limits=LimitSettings(max_waiting=1))) as house:
        calls = [asyncio.create_task(status_of(http, house.url + CHAT, chat())) for _ in range(2)]
        await until(lambda: len(house.of(Admitted)) == 2)
        async with http.post(house.url + CHAT, json=chat()) as response:
            error = await error_of(response)
        engine.resume()
        assert [200, 200] == await asyncio.gather(*calls)
        (rejected,) = house.of(Rejected)
    assert (429, "queue_full", "rate_limit_error") == (response.status, error["code"], error["type"])
    assert float(response.headers["retry-after"]) >= rejected.retry_after_seconds >= 1
    assert round(rejected.retry_after_seconds * 1000) == int(response.headers["retry-after-ms"])


async def test_one_tenant_cannot_fill_the_queue_of_another(http: aiohttp.ClientSession) -> None:
    engine = simulated(slots=1)
    engine.hold()
    settings = Settings(limits=LimitSettings(max_waiting_per_tenant=1))
    async with live_gateway(engine, slots=1, settings=settings) as house:
        calls = [asyncio.create_task(status_of(http, house.url + CHAT, chat(user="a"))) for _ in range(2)]
        await until(lambda: len(house.of(Admitted)) == 2)
        async with http.post(house.url + CHAT, json=chat(user="a")) as response:
            error = await error_of(response)
        calls.append(asyncio.create_task(status_of(http, house.url + CHAT, chat(user="b"))))
        await until(lambda: len(house.of(Admitted)) == 3)
        engine.resume()
        assert [200, 200, 200] == await asyncio.gather(*calls)
    assert (429, "tenant_queue_full") == (response.status, error["code"])


async def test_a_request_that_waits_too_long_is_sent_away(http: aiohttp.ClientSession) -> None:
    engine = simulated(slots=1)
    engine.hold()
    settings = Settings(limits=LimitSettings(max_queue_seconds=0.05))
    async with live_gateway(engine, slots=1, settings=settings) as house:
        served = asyncio.create_task(status_of(http, house.url + CHAT, chat()))
        await until(lambda: house.of(Admitted))
        async with http.post(house.url + CHAT, json=chat()) as response:
            error = await error_of(response)
        engine.resume()
        assert 200 == await served
    assert (429, "queue_timeout") == (response.status, error["code"])
    assert {"retry-after", "retry-after-ms", "x-request-id"} <= response.headers.keys()


async def test_keys_are_never_logged(http: aiohttp.ClientSession, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(tenants=[TenantSettings("alice", keys_sha256=[hash_key("sk-secret")])])
    with caplog.at_level(logging.DEBUG):
        async with live_gateway(simulated(), settings=settings) as house:
            for key, body in (("sk-secret", chat()), ("sk-wrong", chat()), ("sk-secret", {})):
                headers = {"authorization": f"Bearer {key}"}
                async with http.post(house.url + CHAT, json=body, headers=headers) as response:
                    await response.read()
            text = repr(house.events)
    assert "sk-" not in caplog.text
    assert "sk-" not in text


async def connection(house: House) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    host, port = house.url.removeprefix("http://").split(":")
    return await asyncio.open_connection(host, int(port))


def head(*lines: bytes) -> bytes:
    return b"\r\n".join((b"POST /v1/chat/completions HTTP/1.1", b"Host: x", *lines, b"", b""))


async def status_of(http: aiohttp.ClientSession, url: str, body: dict[str, Any] | None = None) -> int:
    async with http.request("POST" if body else "GET", url, json=body) as response:
        await response.read()
        return response.status


async def test_a_conversation_is_one_session_of_its_tenant_in_every_turn(
    house: House, http: aiohttp.ClientSession
) -> None:
    first = {"role": "user", "content": "hello there"}
    later = [first, {"role": "assistant", "content": "good day"}, {"role": "user", "content": "what now"}]
    for tenant, messages in (("ann", [first]), ("ann", later), ("bob", [first])):
        async with http.post(house.url + CHAT, json={**chat(), "messages": messages, "user": tenant}) as response:
            await response.read()
    ann, ann_later, bob = (event.ticket.request.traits for event in house.of(Admitted))
    assert (0, 0, 1, 8) == (ann.turn, ann.previous_bytes, ann_later.turn, ann_later.previous_bytes)
    assert ann.session == ann_later.session != bob.session
    assert ann.template == bob.template != ann_later.template


async def test_a_header_names_the_session(house: House, http: aiohttp.ClientSession) -> None:
    for text in ("hello", "something else"):
        body = {**chat(), "messages": [{"role": "user", "content": text}]}
        async with http.post(house.url + CHAT, json=body, headers={"x-session-id": "s1"}) as response:
            await response.read()
    assert 1 == len({event.ticket.request.traits.session for event in house.of(Admitted)})
