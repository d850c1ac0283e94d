"""Ways round the models that a tenant may use: bodies that the gateway reads so, and an engine otherwise."""

from collections.abc import AsyncIterator

import aiohttp
import pytest
from openai import AsyncOpenAI, NotFoundError

from driftsched.config import Settings, TenantSettings, hash_key
from support.faulty_upstream import FaultyUpstream, Seen, answer, stream
from support.servers import House, chat, http_engine, live_gateway

FORM_PATH = "/v1/audio/transcriptions"
DEPLOYMENT = "/v1/engines/secret/embeddings"
PASSED = (FORM_PATH, "/v1/embeddings", "/tokenize", DEPLOYMENT)
CHAT = "/v1/chat/completions"
HELLO = b'"messages":[{"role":"user","content":"Hi"}]'
JSON = "application/json"
FORM = "multipart/form-data; boundary=xyz"


def part(head: bytes, content: bytes) -> bytes:
    return b"--xyz\r\n" + head + b"\r\n\r\n" + content + b"\r\n"


def named(name: bytes, content: bytes) -> bytes:
    return part(b"Content-Disposition: form-data; name=" + name, content)


END = b"--xyz--\r\n"
FILE = part(b'Content-Disposition: form-data; name="file"; filename="a.wav"\r\nContent-Type: audio/wav', b"\0\xff")
OPEN = named(b'"model"', b"open")
SECRET = named(b'"model"', b"secret")

READ_IN_TWO_WAYS = {
    "two fields": (CHAT, JSON, b'{"model":"secret","model":"open",' + HELLO + b"}"),
    "a field in other letters, which Go takes for the same": (
        CHAT,
        JSON,
        b'{"model":"open","Model":"secret",' + HELLO + b"}",
    ),
    "the same, escaped": (CHAT, JSON, b'{"model":"open","\\u004dodel":"secret",' + HELLO + b"}"),
    "two fields of what is passed": ("/v1/embeddings", JSON, b'{"model":"secret","input":"","model":"open"}'),
    "two fields, one of them escaped": ("/v1/embeddings", JSON, b'{"mod\\u0065l":"secret","model":"open"}'),
    "other letters in what is passed": ("/v1/embeddings", JSON, b'{"model":"open","MODEL":"secret"}'),
    "JSON that is said to be text": ("/v1/embeddings", "text/plain", b'{"model":"secret"}'),
    "JSON that is said to be a form": ("/v1/embeddings", FORM, b'{"model":"secret"}'),
    "JSON before a form": ("/v1/embeddings", FORM, b'{"model":"secret"}\r\n' + OPEN + END),
    "JSON in another charset": (
        "/v1/embeddings",
        "application/json; charset=utf-7",
        b'{"model":"open","+AG0AbwBkAGUAbA-":"secret"}',
    ),
    "JSON under the name of another": ("/v1/embeddings", "application/x+json", b'{"model":"secret"}'),
    "a form in an address": (FORM_PATH, "application/x-www-form-urlencoded", b"model=secret"),
    "no boundary": (FORM_PATH, "multipart/form-data", SECRET + END),
    "two boundaries": (
        FORM_PATH,
        "multipart/form-data; boundary=xyz; boundary=abc",
        OPEN + b"--abc\r\n" + SECRET[7:] + b"--abc--\r\n" + END,
    ),
    "a charset": (
        FORM_PATH,
        "multipart/form-data; charset=utf-7; boundary=xyz",
        OPEN + named(b'"+AG0AbwBkAGUAbA-"', b"secret") + END,
    ),
    "two parts": (FORM_PATH, FORM, OPEN + SECRET + END),
    "a part with an encoded name": (
        FORM_PATH,
        FORM,
        OPEN + part(b"Content-Disposition: form-data; name*=utf-8''mod%65l", b"secret") + END,
    ),
    "a name with a backslash": (FORM_PATH, FORM, OPEN + named(rb'"mo\del"', b"secret") + END),
    "a name in other letters": (FORM_PATH, FORM, OPEN + named(b'"Model"', b"secret") + END),
    "a name with a space": (FORM_PATH, FORM, OPEN + named(b'" model"', b"secret") + END),
    "a name in percents": (FORM_PATH, FORM, OPEN + named(b'"mod%65l"', b"secret") + END),
    "a name as of a list": (FORM_PATH, FORM, OPEN + named(b'"model[]"', b"secret") + END),
    "a name in single quotes": (FORM_PATH, FORM, OPEN + named(b"'model'", b"secret") + END),
    "a model that is a file": (FORM_PATH, FORM, named(b'"model"; filename="open"', b"open") + END),
    "a name inside of a file name": (
        FORM_PATH,
        FORM,
        OPEN + named(b'"file"; filename="\\"; name=\\"model"', b"secret") + END,
    ),
    "a space before the colon": (
        FORM_PATH,
        FORM,
        OPEN + part(b'Content-Disposition : form-data; name="model"', b"secret") + END,
    ),
    "a folded line": (
        FORM_PATH,
        FORM,
        OPEN + part(b'Content-Disposition: form-data;\r\n name="model"', b"secret") + END,
    ),
    "two dispositions": (
        FORM_PATH,
        FORM,
        part(b'Content-Disposition: form-data; name="model"\r\nContent-Disposition: form-data; name="x"', b"open")
        + END,
    ),
    "lines that end with a line feed only": (
        FORM_PATH,
        FORM,
        OPEN
        + named(b'"file"', b'\n--xyz\nContent-Disposition: form-data; name="model"\n\nsecret\n--xyz--\n')
        + END,
    ),
    "something behind the end": (FORM_PATH, FORM, OPEN + END + SECRET + END),
    "no end": (FORM_PATH, FORM, OPEN + SECRET[:-2]),
    "a head that is long": (FORM_PATH, FORM, OPEN + part(b"X-A: " + b"a" * 2000 + SECRET[5:-10], b"secret") + END),
    "a content in another coding": (
        FORM_PATH,
        FORM,
        part(b'Content-Disposition: form-data; name="model"\r\nContent-Transfer-Encoding: base64', b"open") + END,
    ),
    "no model at all": (FORM_PATH, FORM, FILE + END),
    "no field at all": ("/tokenize", JSON, b'{"content":"x"}'),
    "a path that names it": (DEPLOYMENT, JSON, b'{"model":"open"}'),
}


@pytest.fixture
async def upstream() -> AsyncIterator[FaultyUpstream]:
    routes = {path: answer(b"{}") for path in PASSED}
    routes["/v1/models"] = answer(b'{"data":[{"id":"open"},{"id":"secret"}]}')
    async with FaultyUpstream(stream(), routes=routes) as upstream:
        yield upstream


@pytest.fixture
async def house(upstream: FaultyUpstream) -> AsyncIterator[House]:
    """Behind it two models, of which the one tenant may use the first."""
    ann = TenantSettings("ann", models=["open"], keys_sha256=[hash_key("sk-ann")])
    everyone = TenantSettings("all", keys_sha256=[hash_key("sk-all")])
    settings = Settings(tenants=[ann, everyone], passthrough=PASSED)
    async with live_gateway(http_engine(upstream.url), settings=settings) as house:
        yield house


def asked(upstream: FaultyUpstream) -> list[Seen]:
    return [seen for seen in upstream.requests if seen.method == "POST"]


async def send(
    http: aiohttp.ClientSession, url: str, content_type: str, body: bytes, key: str = "sk-ann"
) -> tuple[int, str]:
    """Status and code of the answer."""
    headers = {"content-type": content_type, "authorization": f"Bearer {key}"}
    async with http.post(url, data=body, headers=headers) as response:
        document = await response.json(content_type=None) if response.status >= 400 else {}
        return response.status, document.get("error", {}).get("code", "")


@pytest.mark.parametrize("case", READ_IN_TWO_WAYS.values(), ids=READ_IN_TWO_WAYS.keys())
async def test_what_two_may_read_in_two_ways_reaches_no_engine(
    upstream: FaultyUpstream, house: House, http: aiohttp.ClientSession, case: tuple[str, str, bytes]
) -> None:
    path, content_type, body = case
    status, code = await send(http, house.url + path, content_type, body)
    assert 400 == status
    assert code in ("unclear_model", "missing_model", "invalid_value")
    assert [] == asked(upstream)


@pytest.mark.parametrize(
    "case",
    [
        (FORM_PATH, FORM, FILE + OPEN + END),
        (FORM_PATH, FORM, OPEN + FILE + END[:-2]),
        (FORM_PATH, 'Multipart/Form-Data; boundary="xyz"; charset=utf-8', OPEN + FILE + END),
        (
            FORM_PATH,
            FORM,
            OPEN.replace(b'"\r\n\r\n', b'"\r\nContent-Type: text/plain; charset=utf-8\r\n\r\n') + END,
        ),
        (
            FORM_PATH,
            FORM,
            OPEN + named(b'"file"; filename="\xc3\xa4.wav"; filename*=utf-8\'\'%c3%a4.wav', b"") + END,
        ),
        ("/v1/embeddings", "application/json; charset=UTF-8", b'{"mod\\u0065l":"open","input":{"model":"x"}}'),
        ("/v1/embeddings", "", b'{"model":"open"}'),
        (CHAT, JSON, b'{"model":"open","tools":[{"model":1,"Model":2}],' + HELLO + b"}"),
        (CHAT, "text/plain", b'{"model":"open",' + HELLO + b"}"),  # the engine is told that it is JSON
        (f"{CHAT}?model=secret", JSON, b'{"model":"open",' + HELLO + b"}"),
    ],
)
async def test_what_can_be_read_in_one_way_only_goes_on_as_it_came(
    upstream: FaultyUpstream, house: House, http: aiohttp.ClientSession, case: tuple[str, str, bytes]
) -> None:
    path, content_type, body = case
    assert (200, "") == await send(http, house.url + path, content_type, body)
    (seen,) = asked(upstream)
    assert seen.body == body if path != CHAT and "?" not in path else b'"model":"open"' in seen.body
    assert b"secret" not in seen.body
    assert "?" not in seen.path


async def test_a_form_of_a_common_client_can_be_read(
    upstream: FaultyUpstream, house: House, http: aiohttp.ClientSession
) -> None:
    form = aiohttp.FormData({"model": "open", "language": "en"})
    form.add_field("file", b"\0" * 999, filename='a "b" \u00e4.wav', content_type="audio/wav")
    headers = {"authorization": "Bearer sk-ann"}
    async with http.post(house.url + FORM_PATH, data=form, headers=headers) as response:
        assert 200 == response.status
    client = AsyncOpenAI(base_url=f"{house.url}/v1", api_key="sk-ann", max_retries=0)
    async with client:
        await client.audio.transcriptions.create(model="open", file=("a.wav", b"x"), language="en")
        with pytest.raises(NotFoundError):
            await client.audio.transcriptions.create(model="secret", file=("a.wav", b"x"))
    assert 2 == len(asked(upstream))


@pytest.mark.parametrize(
    "case", ["no model at all", "a charset", "JSON that is said to be text", "no field at all"]
)
async def test_whoever_may_use_all_models_is_asked_nothing(
    upstream: FaultyUpstream, house: House, http: aiohttp.ClientSession, case: str
) -> None:
    path, content_type, body = READ_IN_TWO_WAYS[case]
    assert (200, "") == await send(http, house.url + path, content_type, body, key="sk-all")
    assert [body] == [seen.body for seen in asked(upstream)]


async def test_where_one_model_is_served_nobody_need_name_it(http: aiohttp.ClientSession) -> None:
    routes = {"/tokenize": answer(b"{}"), "/v1/models": answer(b'{"data":[{"id":"open"}]}')}
    tenants = [TenantSettings(name, models=[name], keys_sha256=[hash_key(name)]) for name in ("open", "other")]
    async with (
        FaultyUpstream(routes=routes) as upstream,
        live_gateway(http_engine(upstream.url), settings=Settings(tenants=tenants)) as house,
    ):
        statuses = [
            (await send(http, f"{house.url}/tokenize", JSON, b'{"content":"x"}', key))[0]
            for key in ("open", "other")
        ]
    assert [200, 404] == statuses


@pytest.mark.parametrize(
    "case", ["a charset", "a name with a space", "JSON that is said to be text", "no boundary"]
)
async def test_what_is_unclear_is_refused_where_one_model_is_served_as_well(
    http: aiohttp.ClientSession, case: str
) -> None:
    path, content_type, body = READ_IN_TWO_WAYS[case]
    routes = {path: answer(b"{}"), "/v1/models": answer(b'{"data":[{"id":"open"}]}')}
    tenants = [TenantSettings("open", models=["open"], keys_sha256=[hash_key("sk-ann")])]
    async with (
        FaultyUpstream(routes=routes) as upstream,
        live_gateway(http_engine(upstream.url), settings=Settings(tenants=tenants, passthrough=PASSED)) as house,
    ):
        assert (400, "unclear_model") == await send(http, house.url + path, content_type, body)


async def test_a_tenant_is_not_told_of_models_that_it_may_not_use(
    house: House, http: aiohttp.ClientSession
) -> None:
    headers = {"authorization": "Bearer sk-ann"}
    async with http.post(house.url + CHAT, json=chat(model="what"), headers=headers) as response:
        message = (await response.json())["error"]["message"]
    assert "The model 'what' is not served here: use one of open." == message
