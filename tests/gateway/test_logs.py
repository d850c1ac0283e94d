"""What the gateway puts into its log about a call."""

import asyncio
import json
import sys
from asyncio.subprocess import PIPE

import aiohttp
import pytest

from driftsched.config import LogSettings, OtelSettings
from driftsched.core.events import Finished
from driftsched.core.model import Request, Tenant, Tier
from driftsched.engines.payload import Payload
from driftsched.observing import log_format, open_access_log, open_otel, operation
from driftsched.telemetry.access import AccessLog
from driftsched.telemetry.lines import text_line
from support.servers import chat, live_gateway, simulated


@pytest.mark.parametrize("theirs", ["req-7", None])
async def test_a_line_names_the_request_as_its_client_knows_it(
    theirs: str | None, http: aiohttp.ClientSession
) -> None:
    headers = {"x-request-id": theirs} if theirs else {}
    async with live_gateway(simulated()) as house:
        async with http.post(f"{house.url}/v1/chat/completions", json=chat(), headers=headers) as response:
            await response.read()
        await house.settled()
        [end] = house.of(Finished)
        assert response.headers["x-request-id"] == end.ticket.request.public_id
        assert theirs in (end.ticket.request.public_id, None)


@pytest.mark.parametrize("asked", ["json", "text"])
def test_the_form_is_what_was_asked_for(asked: str) -> None:
    assert asked == log_format(LogSettings(format=asked))  # type: ignore[arg-type]  # a literal, by the list above


@pytest.mark.parametrize(("terminal", "expected"), [(True, "text"), (False, "json")])
def test_people_are_told_in_text_and_programs_in_json_unless_they_ask(terminal: bool, expected: str) -> None:
    assert expected == log_format(LogSettings(), terminal)


def test_there_is_no_access_log_unless_it_is_wanted() -> None:
    assert open_access_log(LogSettings(access=False)) is None
    assert open_access_log(LogSettings()) is not None


async def test_every_line_that_a_program_reads_is_json() -> None:
    serve = "serve", "--engine", "http://127.0.0.1:9", "--no-state", "--port", "0"
    process = await asyncio.create_subprocess_exec(sys.executable, "-m", "driftsched", *serve, stderr=PIPE)
    assert process.stderr is not None
    said = await process.stderr.readuntil(b" listens on ") + await process.stderr.readline()
    process.terminate()
    said += await process.stderr.read()
    assert 0 == await process.wait()
    messages = [json.loads(line)["message"] for line in said.splitlines()]
    assert any(message.startswith("driftsched listens on http://127.0.0.1:") for message in messages)


def test_without_an_endpoint_nothing_is_sent_anywhere() -> None:
    assert open_otel(OtelSettings(), {}) is None


def test_the_environment_can_forbid_what_the_settings_ask_for() -> None:
    assert open_otel(OtelSettings(endpoint="http://127.0.0.1:9"), {"OTEL_SDK_DISABLED": "true"}) is None


async def test_no_client_can_forge_a_line(http: aiohttp.ClientSession) -> None:
    written: list[bytes] = []
    log = AccessLog(written.append, text_line, prompts=True)
    forged = "x\n2026-01-01T00:00:00.000Z info driftsched.access: request outcome=finished\x1b[2J"
    async with live_gateway(simulated(), listeners=[log]) as house:
        url, body = f"{house.url}/v1/chat/completions", chat(forged, user=forged)
        async with http.post(url, json=body, headers={"x-request-id": "a b=c"}) as response:
            assert 200 == response.status
        await house.settled()
    log.flush()
    [line] = b"".join(written).decode().splitlines()
    assert line.isprintable()
    assert 1 == line.count(" outcome=finished ")
    assert ' request_id="a b=c" ' in line


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("/v1/chat/completions", "chat"),
        ("/v1/completions", "text_completion"),
        ("/v1/made/up/by/a/client", "other"),
    ],
)
def test_operations_are_a_bounded_set(endpoint: str, expected: str) -> None:
    payload = Payload(endpoint, b"{}", stream=False, wants_usage=False)
    assert expected == operation(Request("r", Tenant("t"), Tier.BATCH, "m", 0.0, payload=payload))
