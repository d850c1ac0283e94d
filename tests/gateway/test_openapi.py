"""Our own OpenAPI document: as committed, complete, and true of a gateway that is put to the test with it."""

import asyncio
import os
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable

from driftsched import __version__
from driftsched.config import AdminSettings, Settings, hash_key
from driftsched.gateway.catalogue import Catalogue
from driftsched.gateway.openapi import encoded, openapi_document
from support.faulty_upstream import DONE, FaultyUpstream, answer, stream
from support.servers import House, http_engine, live_gateway, simulated

COMMITTED = Path(__file__).parents[2] / "docs" / "openapi.json"
DOCUMENT = openapi_document(__version__, Settings().passthrough)
TEXT = (
    b'data: {"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":'
    b'[{"index":0,"text":"Hello","logprobs":null,"finish_reason":"stop"}]}\n\n',
    DONE,
)
RESPONSE = b'{"id":"resp_1","object":"response","status":"completed","output":[]}'
OPERATORS_KEY = "operators-only"


def test_the_committed_document_is_that_of_the_code() -> None:
    """To write it anew: run this test with DRIFTSCHED_WRITE_OPENAPI=1."""
    if os.environ.get("DRIFTSCHED_WRITE_OPENAPI"):
        COMMITTED.write_bytes(encoded(DOCUMENT))
    assert encoded(DOCUMENT) == COMMITTED.read_bytes()


async def test_a_gateway_serves_its_document(http: aiohttp.ClientSession) -> None:
    async with (
        live_gateway(simulated(), settings=Settings(passthrough=("/v1/audio/speech",))) as house,
        http.get(f"{house.url}/openapi.json") as response,
    ):
        served = await response.json()
    assert "/v1/audio/speech" in served["paths"]
    assert "/v1/embeddings" not in served["paths"]
    assert DOCUMENT["components"] == served["components"]


async def test_every_path_of_a_gateway_is_in_its_document() -> None:
    async with live_gateway(simulated()) as house:
        paths = {path: sorted(method.lower() for method in methods) for path, methods in routes(house).items()}
    documented = {
        path: [method for method in ("get", "post") if method in item] for path, item in DOCUMENT["paths"].items()
    }
    of_prefixes = {path for path in documented if path.startswith(("/admin/", "/v1/queue/"))}
    assert paths == {path: methods for path, methods in documented.items() if path not in of_prefixes}


def routes(house: House) -> dict[str, Any]:
    return house.gateway._routes


def operations() -> list[tuple[str, str]]:
    return [
        (method, path)
        for path, item in DOCUMENT["paths"].items()
        for method in ("get", "post", "delete")
        if method in item
    ]


class AnyModel(Catalogue):
    """Knows of an engine that answers, and not which models it has."""

    def __init__(self) -> None:
        super().__init__([], on_slots=_ignore)

    async def ready(self) -> bool:
        return True


async def _ignore(engine: str, slots: int) -> None:
    """There is nobody who would say."""


@pytest.mark.parametrize("mode", ["POSITIVE", "NEGATIVE"])
async def test_a_gateway_does_what_its_document_says(mode: str) -> None:
    """Whatever may be sent is accepted, whatever may not is refused, and every answer is of a form that is told."""
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    document = answer(b'{"object":"list","usage":{"prompt_tokens":5,"total_tokens":5}}')
    engine = FaultyUpstream(
        stream(),
        routes={
            "/v1/responses": answer(RESPONSE),
            "/v1/completions": stream(TEXT),
            **dict.fromkeys(Settings().passthrough, document),
        },
    )
    options = Settings(admin=AdminSettings([hash_key(OPERATORS_KEY)]))
    async with engine, live_gateway(http_engine(engine.url), settings=options, catalogue=AnyModel()) as house:
        await asyncio.to_thread(put_to_the_test, schemathesis, house.url, mode)


def put_to_the_test(schemathesis: Any, url: str, mode: str) -> None:
    schema = schemathesis.openapi.from_dict(DOCUMENT)
    headers = {"authorization": f"Bearer {OPERATORS_KEY}"}
    # It takes the key for one that it has made up itself; tests of its own see to keys.
    excluded = [import_module("schemathesis.specs.openapi.checks").ignored_auth]
    num_operations = 0
    for result in schema.get_all_operations():
        operation = result.ok()
        num_operations += 1

        @settings(
            max_examples=8,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        @given(case=operation.as_strategy(generation_mode=schemathesis.GenerationMode[mode]))
        def check(case: Any) -> None:
            case.call_and_validate(base_url=url, headers=headers, excluded_checks=excluded)

        with suppress(Unsatisfiable):  # there is nothing that could be wrong with a call without parameters
            check()
    assert len(operations()) == num_operations
