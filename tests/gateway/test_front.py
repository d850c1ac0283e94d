"""Several pools behind one face: each call reaches the engines of its model, and no pool waits for another."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import msgspec
import pytest

from driftsched.config import AdminSettings, PartSettings, QuotaSettings, Settings, TenantSettings, hash_key
from driftsched.engines.openai import OpenAIEngine
from driftsched.gateway.catalogue import Catalogue
from driftsched.gateway.errors import HttpError
from driftsched.gateway.front import Front, Pool
from driftsched.gateway.holding import Places
from driftsched.gateway.roster import Row
from driftsched.queues.memory import MemoryQueue
from driftsched.serving import build_gateway
from driftsched.telemetry.joining import join_pages
from support.faulty_upstream import Behaviour, FaultyUpstream, answer, hang_before_headers, stream
from support.processes import running
from support.servers import chat, http_engine, serving, until

CHAT = "/v1/chat/completions"
ADMIN_KEY = "operators-only"


@dataclass
class Street:
    """Two pools, `small` and `large`, behind one face."""

    url: str
    small: FaultyUpstream
    large: FaultyUpstream
    queues: dict[str, MemoryQueue]


class Names:
    """A roster of names."""

    def __init__(self) -> None:
        self._names: list[str] = []

    def rows(self) -> list[Row]:
        return [{"name": name} for name in self._names]

    async def add(self, document: bytes) -> Row:
        self._names.append(document.decode())
        return {"name": document.decode()}

    def drain(self, name: str) -> Row:
        return {"name": name}

    async def remove(self, name: str) -> Row:
        if name not in self._names:
            raise HttpError(404, "not here", code="unknown_engine")
        self._names.remove(name)
        return {"name": name}


async def _ignore(engine: str, slots: int) -> None:
    pass


@asynccontextmanager
async def street(
    small: Behaviour | None = None,
    large: Behaviour | None = None,
    *,
    asks: bool = False,
    silent: bool = False,
    tenants: Sequence[TenantSettings] = (),
) -> AsyncIterator[Street]:
    """`asks`: the pools serve what their engines say; else what the operator says. `silent`: they say nothing."""
    async with AsyncExitStack() as stack:
        upstreams, pools, queues = {}, [], {}
        places = Places()
        for name, behaviour in (("small", small), ("large", large)):
            listing = answer(msgspec.json.encode({"data": [{"id": f"{name}-1"}]}))
            upstream = FaultyUpstream(behaviour or stream(), routes={"/v1/models": listing})
            upstreams[name] = await stack.enter_async_context(upstream)
            engine: OpenAIEngine = http_engine(upstream.url)
            stack.push_async_callback(engine.close)
            catalogue = Catalogue([engine] if asks and not silent else [], on_slots=_ignore)
            await catalogue.start()
            stack.push_async_callback(catalogue.close)
            queues[name] = MemoryQueue(2)
            settings = Settings(
                policy=PartSettings("fifo"),
                estimator=PartSettings("static"),
                admin=AdminSettings([hash_key(ADMIN_KEY)]),
                tenants=list(tenants),
            )
            gateway = build_gateway(
                settings,
                engine=engine,
                queue=queues[name],
                catalogue=catalogue,
                pool=name,
                roster=Names(),
                places=places,
            )
            models = [] if asks else [f"{name}-1"]
            pools.append(Pool(name, gateway, catalogue, models, {f"gpt-{name}": f"{name}-1"}))
        url = await stack.enter_async_context(serving(Front(pools, join_metrics=join_pages)))
        yield Street(url, upstreams["small"], upstreams["large"], queues)


async def post(http: aiohttp.ClientSession, url: str, **fields: Any) -> tuple[int, Any]:
    async with http.post(url + CHAT, json=chat(**fields)) as response:
        return response.status, await response.json()


async def get(http: aiohttp.ClientSession, url: str, **headers: str) -> tuple[int, bytes]:
    async with http.get(url, headers=headers) as response:
        return response.status, await response.read()


@pytest.mark.parametrize("asks", [False, True])
async def test_a_call_reaches_the_engines_of_its_model(http: aiohttp.ClientSession, asks: bool) -> None:
    async with street(asks=asks) as there:
        assert [200, 200, 200] == [
            (await post(http, there.url, model=name))[0] for name in ("large-1", "small-1", "large-1")
        ]
        asked = [[seen.path for seen in each.requests].count(CHAT) for each in (there.small, there.large)]
        assert [1, 2] == asked


async def test_an_alias_reaches_the_engine_under_its_real_name_and_all_else_as_it_was(
    http: aiohttp.ClientSession,
) -> None:
    async with street() as there:
        await post(http, there.url, model="gpt-large", unknown={"deep": [1, 2.50]}, temperature=0.3)
        (seen,) = there.large.requests
        assert b'"unknown":{"deep": [1, 2.5]}' in seen.body
        fields = msgspec.json.decode(seen.body)
        assert ("large-1", 0.3) == (fields["model"], fields["temperature"])


async def test_a_model_that_nobody_serves_is_not_found(http: aiohttp.ClientSession) -> None:
    async with street() as there:
        status, document = await post(http, there.url, model="huge-1")
    assert (404, "model_not_found", "model") == (
        status,
        document["error"]["code"],
        document["error"]["param"],
    )
    assert "small-1, gpt-small, large-1, gpt-large" in document["error"]["message"]


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"messages":[]}', b'{"model":1}', b"\xff"])
async def test_a_body_that_makes_no_sense_is_refused_as_by_one_gateway(
    http: aiohttp.ClientSession, body: bytes
) -> None:
    async with street() as there, http.post(there.url + CHAT, data=body) as response:
        assert (400, "invalid_request_error") == (response.status, (await response.json())["error"]["type"])


async def test_a_pool_whose_engine_hangs_is_in_nobodys_way_at_another(http: aiohttp.ClientSession) -> None:
    async with street(small=hang_before_headers()) as there:
        hung = [asyncio.create_task(post(http, there.url, model="small-1")) for _ in range(6)]
        await until(lambda: there.queues["small"].num_waiting == 4)
        async with asyncio.timeout(10):
            answers = await asyncio.gather(*(post(http, there.url, model="large-1") for _ in range(20)))
        assert {200} == {status for status, _ in answers}
        assert (2, 4) == (there.queues["small"].num_inflight, there.queues["small"].num_waiting)
        for task in hung:
            task.cancel()
        await asyncio.gather(*hung, return_exceptions=True)
        await until(lambda: there.queues["small"].num_inflight == 0)


async def test_a_client_that_leaves_gives_back_what_it_held(http: aiohttp.ClientSession) -> None:
    async with street(large=hang_before_headers()) as there:
        call = asyncio.create_task(post(http, there.url, model="large-1"))
        await until(lambda: there.queues["large"].num_inflight == 1)
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
        await until(lambda: there.queues["large"].num_inflight == 0)


async def test_all_models_and_aliases_are_listed(http: aiohttp.ClientSession) -> None:
    async with street() as there:
        _, listing = await get(http, f"{there.url}/v1/models")
    names = [model["id"] for model in msgspec.json.decode(listing)["data"]]
    assert ["small-1", "gpt-small", "large-1", "gpt-large"] == names


async def test_a_tenant_sees_and_uses_only_the_models_that_it_may_under_any_name(
    http: aiohttp.ClientSession,
) -> None:
    ann = TenantSettings("ann", models=["large-1"], keys_sha256=[hash_key("ann-key")])
    async with street(tenants=[ann]) as there:
        http.headers["authorization"] = "Bearer ann-key"
        _, listing = await get(http, f"{there.url}/v1/models")
        names = ("small-1", "gpt-small", "large-1", "gpt-large")
        statuses = [(await post(http, there.url, model=name))[0] for name in names]
    assert ["large-1", "gpt-large"] == [model["id"] for model in msgspec.json.decode(listing)["data"]]
    assert [404, 404, 200, 200] == statuses


async def test_metrics_and_state_are_told_of_each_pool(http: aiohttp.ClientSession) -> None:
    async with street() as there:
        await post(http, there.url, model="large-1")
        _, page = await get(http, f"{there.url}/metrics")
        refused, told = await get(http, f"{there.url}/admin/state")
        status, state = await get(http, f"{there.url}/admin/state", authorization=f"Bearer {ADMIN_KEY}")
    assert b'driftsched_requests_finished_total{pool="large",tier="standard"} 1.0' in page
    assert b'driftsched_requests_finished_total{pool="small",tier="standard"} 0.0' in page
    assert (401, 200, ["small", "large"]) == (refused, status, list(msgspec.json.decode(state)["pools"]))
    assert ["error"] == list(msgspec.json.decode(told))


@pytest.mark.parametrize(("query", "expected"), [("", "small"), ("?pool=small", "small"), ("?pool=large", "large")])
async def test_an_engine_is_added_to_the_pool_that_is_named(
    http: aiohttp.ClientSession, query: str, expected: str
) -> None:
    async with street() as there:
        url = f"{there.url}/admin/engines"
        key = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with http.post(url + query, data=b"gpu-9", headers=key) as response:
            assert 201 == response.status
        _, listing = await get(http, url, **key)
        async with http.delete(f"{url}/gpu-9", headers=key) as response:
            assert (200, {"name": "gpu-9"}) == (response.status, await response.json())
        _, emptied = await get(http, url, **key)
        async with http.delete(url, headers=key) as response:
            assert 405 == response.status
    assert [{"pool": expected, "name": "gpu-9"}] == msgspec.json.decode(listing)["data"]
    assert [] == msgspec.json.decode(emptied)["data"]


async def test_nobody_but_operators_learns_of_pools_and_engines(http: aiohttp.ClientSession) -> None:
    async with street() as there:
        for query in ("", "?pool=large", "?pool=none"):
            async with http.post(f"{there.url}/admin/engines{query}", data=b"gpu-9") as response:
                assert 401 == response.status
            async with http.get(f"{there.url}/admin/engines{query}") as response:
                assert 401 == response.status
        key = {"authorization": f"Bearer {ADMIN_KEY}"}
        async with http.post(f"{there.url}/admin/engines?pool=none", data=b"gpu-9", headers=key) as response:
            assert 404 == response.status


async def test_a_request_is_found_wherever_it_waits(http: aiohttp.ClientSession) -> None:
    async with street(large=hang_before_headers()) as there:
        headers = {"x-request-id": "mine"}
        call = asyncio.create_task(
            http.post(there.url + CHAT, json=chat(model="large-1"), headers=headers).__aenter__()
        )
        await until(lambda: there.queues["large"].num_inflight == 1)
        status, found = await get(http, f"{there.url}/v1/queue/mine")
        unknown, _ = await get(http, f"{there.url}/v1/queue/other")
        explained, _ = await get(http, f"{there.url}/admin/requests/mine", authorization=f"Bearer {ADMIN_KEY}")
        call.cancel()
        await asyncio.gather(call, return_exceptions=True)
    assert (200, "running", 404, 200) == (status, msgspec.json.decode(found)["status"], unknown, explained)


@pytest.mark.e2e
async def test_pools_of_a_configuration_file(http: aiohttp.ClientSession, tmp_path: Path) -> None:
    config = tmp_path / "driftsched.yaml"
    async with (
        running("mock", "--slots", "4", "--speed", "100") as (_, first),
        running("mock", "--slots", "4", "--speed", "100") as (_, second),
    ):
        config.write_text(
            f"""
pools:
  - name: chat
    models: [simulated]
    engines: [{{url: "{first}"}}]
    tuning: {{goal: p50 while p99 <= 1.2 x fifo}}
  - name: code
    aliases: {{gpt-4o: simulated}}
    policy: {{name: fifo}}
    engines: [{{url: "{second}", max_inflight: 2}}]
journal: {{path: "{tmp_path}/requests.sqlite"}}
shadow: [sjf]
""",
            encoding="utf-8",
        )
        async with running("serve", "--no-state", "--config", str(config)) as (process, url):
            for model in ("simulated", "gpt-4o", "gpt-4o"):
                assert 200 == (await post(http, url, model=model, max_tokens=5))[0]
            _, page = await get(http, f"{url}/metrics")
            process.terminate()
            await process.wait()
    assert b'driftsched_requests_finished_total{pool="chat",tier="standard"} 1.0' in page
    assert b'driftsched_requests_finished_total{pool="code",tier="standard"} 2.0' in page
    for pool in (b"chat", b"code"):
        assert b'driftsched_shadow_lag_seconds{pool="' + pool + b'"}' in page
    assert b'policy="fair:slack=0"' in page
    assert ["requests.chat.sqlite", "requests.code.sqlite"] == databases_in(tmp_path)


def databases_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.sqlite"))


async def test_what_is_passed_through_reaches_the_pool_of_its_model(http: aiohttp.ClientSession) -> None:
    async with street() as here:
        for path in ("/v1/embeddings", "/tokenize", "/v1/responses"):
            body = {"model": "gpt-large", "input": "x", "content": "x"}
            async with http.post(here.url + path, json=body) as response:
                await response.read()
        paths = [seen.path for seen in here.large.requests if seen.method == "POST"]
        models = [msgspec.json.decode(seen.body)["model"] for seen in here.large.requests if seen.method == "POST"]
    assert ["/v1/embeddings", "/tokenize", "/v1/responses"] == paths
    assert ["large-1"] * 3 == models


@pytest.mark.parametrize("model", ["large-1", "small-1", "gpt-large"])
async def test_a_form_is_asked_of_the_pool_of_its_model_under_its_real_name(
    http: aiohttp.ClientSession, model: str
) -> None:
    async with street() as here:
        form = aiohttp.FormData({"model": model, "prompt": "gpt-large"})
        form.add_field("file", b"gpt-large\r\n\0", filename="a.wav")
        async with http.post(f"{here.url}/v1/embeddings", data=form) as response:
            assert 200 == response.status
        large = [seen.body for seen in here.large.requests if seen.method == "POST"]
        small = [seen.body for seen in here.small.requests if seen.method == "POST"]
    (body,) = large if model.endswith("large-1") or model == "gpt-large" else small
    assert 1 == len(large) + len(small)
    assert [2, 1] == [body.count(b"gpt-large"), body.count(model.replace("gpt-large", "large-1").encode())]


async def test_a_tenant_asks_for_its_model_under_an_alias_in_a_form_too(http: aiohttp.ClientSession) -> None:
    ann = TenantSettings("ann", models=["large-1"], keys_sha256=[hash_key("ann-key")])
    async with street(tenants=[ann], asks=True) as here:
        http.headers["authorization"] = "Bearer ann-key"
        for model, expected in (("gpt-large", 200), ("gpt-small", 404)):
            form = aiohttp.FormData({"model": model})
            form.add_field("file", b"x", filename="a.wav")
            async with http.post(f"{here.url}/v1/embeddings", data=form) as response:
                assert expected == response.status
        assert [] == [seen for seen in here.small.requests if seen.method == "POST"]


@pytest.mark.parametrize(
    ("content_type", "body", "code"),
    [
        ("application/json", b'{"content":"x"}', "missing_model"),
        ("application/json", b'{"model":"large-1","model":"small-1"}', "unclear_model"),
        ("application/json", b'{"model":"large-1","Model":"small-1"}', "unclear_model"),
        ("text/plain", b'{"model":"large-1"}', "unclear_model"),
        ("multipart/form-data; boundary=x; boundary=y", b"--x--", "unclear_model"),
        ("multipart/form-data; boundary=x", b"--x--", "missing_model"),
    ],
)
async def test_what_names_no_model_beyond_doubt_reaches_no_pool(
    http: aiohttp.ClientSession, content_type: str, body: bytes, code: str
) -> None:
    async with street() as here:
        headers = {"content-type": content_type}
        async with http.post(f"{here.url}/v1/embeddings", data=body, headers=headers) as response:
            assert (400, code) == (response.status, (await response.json())["error"]["code"])
        assert [] == [seen.body for each in (here.small, here.large) for seen in each.requests]


async def test_a_tenant_is_told_of_no_model_that_it_may_not_use_nor_what_an_alias_stands_for(
    http: aiohttp.ClientSession,
) -> None:
    ann = TenantSettings("ann", models=["large-1"], keys_sha256=[hash_key("ann-key")])
    async with street(tenants=[ann]) as there:
        http.headers["authorization"] = "Bearer ann-key"
        messages = {
            (await post(http, there.url, model=name))[1]["error"]["message"] for name in ("gpt-small", "gpt-none")
        }
    assert {
        "The model 'gpt-small' is not served here: use one of large-1, gpt-large.",
        "The model 'gpt-none' is not served here: use one of large-1, gpt-large.",
    } == messages


async def test_a_tenant_without_a_model_here_is_told_of_none(http: aiohttp.ClientSession) -> None:
    ann = TenantSettings("ann", models=["huge-1"], keys_sha256=[hash_key("ann-key")])
    async with street(tenants=[ann]) as there:
        http.headers["authorization"] = "Bearer ann-key"
        status, document = await post(http, there.url, model="small-1")
    assert (404, "The model 'small-1' is not served here.") == (status, document["error"]["message"])


@pytest.mark.parametrize(("model", "expected"), [("large-1", 503), ("small-1", 404)])
async def test_that_a_model_is_not_known_yet_is_told_to_whom_may_use_it(
    http: aiohttp.ClientSession, model: str, expected: int
) -> None:
    ann = TenantSettings("ann", models=["large-1"], keys_sha256=[hash_key("ann-key")])
    async with street(tenants=[ann], asks=True, silent=True) as there:
        http.headers["authorization"] = "Bearer ann-key"
        assert expected == (await post(http, there.url, model=model))[0]


async def test_a_refusal_at_the_face_has_the_id_of_its_request(http: aiohttp.ClientSession) -> None:
    async with street() as there:
        headers = {"x-request-id": "mine"}
        async with http.post(there.url + CHAT, json=chat(model="huge-1"), headers=headers) as response:
            assert (404, "mine") == (response.status, response.headers["x-request-id"])


async def test_the_requests_that_a_tenant_may_have_at_a_time_are_counted_over_all_pools(
    http: aiohttp.ClientSession,
) -> None:
    quota = QuotaSettings(max_inflight=1)
    ann = TenantSettings("ann", quota=quota, keys_sha256=[hash_key("ann-key")])
    async with street(small=hang_before_headers(), tenants=[ann]) as there:
        http.headers["authorization"] = "Bearer ann-key"
        first = asyncio.create_task(post(http, there.url, model="small-1"))
        await until(lambda: there.queues["small"].num_inflight == 1)
        second = asyncio.create_task(
            http.post(there.url + CHAT, json=chat(model="large-1"), headers={"x-request-id": "2nd"}).__aenter__()
        )
        while (await get(http, f"{there.url}/v1/queue/2nd"))[0] == 404:
            pass
        _, found = await get(http, f"{there.url}/v1/queue/2nd")
        assert "held" == msgspec.json.decode(found)["status"]
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        response = await second
        assert 200 == response.status
        await response.read()
