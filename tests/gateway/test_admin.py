"""What operators may ask, and nobody else."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from driftsched.config import AdminSettings, MetricsSettings, Settings, TenantSettings, hash_key
from driftsched.core.events import Admitted, Finished
from driftsched.engines.simulated import SimulatedEngine
from driftsched.telemetry.journal import Journal, read_journal
from support.servers import House, chat, live_gateway, simulated, until

CHAT = "/v1/chat/completions"
OPERATOR = {"authorization": "Bearer operator-key"}
PATHS = ["/admin/state", "/admin/requests/some-id"]
SETTINGS = Settings(
    tenants=[
        TenantSettings("ann", keys_sha256=[hash_key("ann-key")]),
        TenantSettings("bob", tier="batch", keys_sha256=[hash_key("bob-key")]),
    ],
    admin=AdminSettings(keys_sha256=[hash_key("operator-key"), hash_key("another-key")]),
)


@pytest.fixture
def engine() -> SimulatedEngine:
    return simulated(1)


@pytest.fixture
async def house(engine: SimulatedEngine) -> AsyncIterator[House]:
    async with live_gateway(engine, slots=1, settings=SETTINGS) as house:
        yield house


async def get(
    http: aiohttp.ClientSession, house: House, path: str, headers: dict[str, str] = OPERATOR
) -> tuple[int, dict[str, Any]]:
    async with http.get(house.url + path, headers=headers) as response:
        return response.status, await response.json()


async def call(http: aiohttp.ClientSession, house: House, tenant: str, request_id: str) -> str:
    """Have an answer; its id."""
    headers = {"authorization": f"Bearer {tenant}-key", "x-request-id": request_id}
    async with http.post(house.url + CHAT, json=chat(), headers=headers) as response:
        await response.read()
        return response.headers["x-request-id"]


@pytest.mark.parametrize("path", PATHS)
async def test_without_an_admin_key_in_the_settings_there_is_no_such_path(
    path: str, http: aiohttp.ClientSession
) -> None:
    async with live_gateway(simulated()) as house:
        status, body = await get(http, house, path)
    assert (404, "unknown_url") == (status, body["error"]["code"])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ({}, "missing_api_key"),
        ({"authorization": "Bearer ann-key"}, "invalid_api_key"),
        ({"authorization": f"Bearer {hash_key('operator-key')}"}, "invalid_api_key"),
        ({"authorization": "Basic operator-key"}, "missing_api_key"),
    ],
)
async def test_only_an_admin_key_opens_them(
    house: House, http: aiohttp.ClientSession, path: str, headers: dict[str, str], code: str
) -> None:
    status, body = await get(http, house, path, headers)
    assert (401, code) == (status, body["error"]["code"])


async def test_an_admin_key_is_no_tenants_key(house: House, http: aiohttp.ClientSession) -> None:
    async with http.post(house.url + CHAT, json=chat(), headers=OPERATOR) as response:
        assert 401 == response.status


async def test_a_path_that_is_not_there_and_a_method_that_is_not_taken_are_named(
    house: House, http: aiohttp.ClientSession
) -> None:
    status, body = await get(http, house, "/admin/secrets")
    assert (404, "unknown_url") == (status, body["error"]["code"])
    async with http.delete(f"{house.url}/admin/state", headers=OPERATOR) as response:
        assert (405, "GET") == (response.status, response.headers["allow"])


async def test_a_decision_is_found_by_our_id_and_by_the_clients(house: House, http: aiohttp.ClientSession) -> None:
    assert "report/7 a" == await call(http, house, "ann", "report/7 a")
    (finished,) = house.of(Finished)
    _, by_ours = await get(http, house, f"/admin/requests/{finished.ticket.id}")
    status, by_theirs = await get(http, house, "/admin/requests/report%2F7%20a")
    assert (200, "report/7 a", finished.ticket.id) == (status, by_theirs.pop("asked"), by_ours.pop("asked"))
    by_ours.pop("arrived_at")
    by_theirs.pop("arrived_at")  # counted back from the wall clock of each question
    assert by_ours == by_theirs
    assert ("finished", "ann", "only_waiting") == (
        by_ours["status"],
        by_ours["tenant"],
        by_ours["served"]["because"],
    )
    assert by_ours["used"]["completion_tokens"] > 0


async def test_of_several_requests_with_one_id_the_latest_is_told(
    house: House, http: aiohttp.ClientSession
) -> None:
    for tenant in ("ann", "bob"):
        await call(http, house, tenant, "same")
    _, told = await get(http, house, "/admin/requests/same")
    assert "bob" == told["tenant"]


async def test_an_id_that_nobody_had_is_not_found(house: House, http: aiohttp.ClientSession) -> None:
    status, body = await get(http, house, "/admin/requests/never-was")
    assert (404, "unknown_request") == (status, body["error"]["code"])


async def test_the_state_says_what_runs_who_waits_and_how_the_engines_are(
    house: House, engine: SimulatedEngine, http: aiohttp.ClientSession
) -> None:
    await call(http, house, "ann", "warm")
    engine.hold()
    calls = []
    for number, tenant in enumerate(("ann", "bob", "bob"), start=2):
        calls.append(asyncio.create_task(call(http, house, tenant, f"{number}")))
        await until(lambda number=number: len(house.of(Admitted)) == number)  # type: ignore[misc]
    status, state = await get(http, house, "/admin/state")
    waiting = await get(http, house, "/admin/requests/4")
    engine.resume()
    await asyncio.gather(*calls)
    assert (200, "admin.state", "fair", "adaptive") == (
        status,
        state["object"],
        state["policy"],
        state["estimator"]["name"],
    )
    assert (2, 1) == (state["load"]["num_waiting"], state["load"]["num_inflight"])
    assert [("bob", 2, 0), ("ann", 0, 1)] == [
        (row["tenant"], row["waiting"], row["inflight"]) for row in state["tenants"]
    ]
    assert (0, 1, 2) == (
        state["tiers"]["premium"]["waiting"],
        state["tiers"]["standard"]["inflight"],
        state["tiers"]["batch"]["waiting"],
    )
    assert [(engine.name, True)] == [(row["name"], row["healthy"]) for row in state["engines"]]
    assert {"simulated"} == {row["model"] for row in state["calibration"]}
    assert state["uptime_seconds"] > 0
    assert 10_000 == state["limits"]["max_waiting"]
    assert ("waiting", 2, None) == (
        waiting[1]["status"],
        waiting[1]["found"]["position"],
        waiting[1]["served"],
    )


async def test_no_key_and_no_digest_of_one_is_in_the_state(house: House, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{house.url}/admin/state", headers=OPERATOR) as response:
        text = await response.text()
    assert not [key for key in ("ann-key", "operator-key") if key in text or hash_key(key) in text]


async def test_the_journal_has_the_reasons_although_nobody_may_ask_for_them(
    tmp_path: Path, http: aiohttp.ClientSession
) -> None:
    journal = Journal(tmp_path / "j.db", policy="fair", estimator="calibrated", flush_seconds=0.005)
    try:
        async with (
            live_gateway(simulated(), journal=journal) as house,
            http.post(house.url + CHAT, json=chat()) as r,
        ):
            await r.read()
    finally:
        journal.close()
    (row,) = read_journal(tmp_path / "j.db")
    assert ("only_waiting", 1, 0, 0) == (row.served_because, row.position, row.overtook, row.overtaken)


@pytest.mark.parametrize(
    ("headers", "expected"), [(OPERATOR, 200), ({}, 401), ({"authorization": "Bearer ann-key"}, 401)]
)
async def test_metrics_can_be_kept_for_operators(
    headers: dict[str, str], expected: int, http: aiohttp.ClientSession
) -> None:
    settings = msgspec.structs.replace(SETTINGS, metrics=MetricsSettings(require_admin_key=True))
    async with (
        live_gateway(simulated(), settings=settings) as house,
        http.get(f"{house.url}/metrics", headers=headers) as response,
    ):
        assert expected == response.status
        assert (b"driftsched_info" in await response.read()) == (expected == 200)


async def test_metrics_are_for_everybody_unless_they_are_kept(house: House, http: aiohttp.ClientSession) -> None:
    async with http.get(f"{house.url}/metrics") as response:
        assert 200 == response.status
