from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.config import hash_key
from driftsched.core.model import Tenant, Tier
from driftsched.gateway.errors import HttpError
from driftsched.gateway.tenants import (
    ANONYMOUS,
    MAX_NAME_CHARS,
    TENANT_HEADER,
    KeyedTenants,
    OpenTenants,
    effective_tier,
)

ALICE, BOB = Tenant("alice", Tier.PREMIUM), Tenant("bob", Tier.BATCH)


def keyed() -> KeyedTenants:
    return KeyedTenants([(hash_key("key-a1"), ALICE), (hash_key("key-a2"), ALICE), (hash_key("key-b"), BOB)])


@pytest.mark.parametrize(("key", "tenant"), [("key-a1", ALICE), ("key-a2", ALICE), ("key-b", BOB)])
@pytest.mark.parametrize("form", ["Bearer {}", "bearer {}", "BEARER  {} "])
def test_a_key_tells_the_tenant(form: str, key: str, tenant: Tenant) -> None:
    assert tenant == keyed().resolve({b"authorization": form.format(key).encode()}, None)


@pytest.mark.parametrize(
    ("authorization", "code"),
    [
        (None, "missing_api_key"),
        (b"", "missing_api_key"),
        (b"Bearer", "missing_api_key"),
        (b"Bearer ", "missing_api_key"),
        (b"Basic a2V5LWI=", "missing_api_key"),
        (b"key-b", "missing_api_key"),
        (b"Bearer key-c", "invalid_api_key"),
        (b"Bearer KEY-B", "invalid_api_key"),
        (b"Bearer key-b2", "invalid_api_key"),
        (b"Bearer \xff\x00", "invalid_api_key"),
        (b"Bearer " + hash_key("key-b").encode(), "invalid_api_key"),
    ],
)
def test_a_call_without_a_known_key_is_refused(authorization: bytes | None, code: str) -> None:
    headers = {} if authorization is None else {b"authorization": authorization}
    with pytest.raises(HttpError) as caught:
        keyed().resolve(headers, None)
    assert 401 == caught.value.status
    error = msgspec.json.decode(caught.value.body)["error"]
    assert (code, "authentication_error") == (error["code"], error["type"])


def test_a_refusal_does_not_repeat_the_key() -> None:
    with pytest.raises(HttpError) as caught:
        keyed().resolve({b"authorization": b"Bearer sk-wrong"}, None)
    assert b"sk-wrong" not in caught.value.body
    assert "sk-wrong" not in str(caught.value)


def test_with_keys_nobody_is_who_he_says_he_is() -> None:
    headers = {b"authorization": b"Bearer key-b", TENANT_HEADER: b"alice"}
    assert BOB == keyed().resolve(headers, "alice")


def test_keys_are_looked_up_by_digest_only() -> None:
    tenants = keyed()
    held = repr(vars(tenants)).encode()
    assert b"key-b" not in held
    assert repr(sha256(b"key-b").digest()).encode() in held


def test_a_caller_of_an_open_server_is_who_it_says() -> None:
    tenants = OpenTenants([ALICE])
    assert ALICE == tenants.resolve({TENANT_HEADER: b"alice"}, "bob")
    assert ALICE == tenants.resolve({}, "alice")
    assert Tenant("bob", Tier.STANDARD) == tenants.resolve({}, "bob")
    assert Tenant(ANONYMOUS, Tier.STANDARD) == tenants.resolve({}, None)
    assert Tenant(ANONYMOUS, Tier.STANDARD) == tenants.resolve({TENANT_HEADER: b""}, "")


def test_a_name_that_a_caller_makes_up_is_bounded() -> None:
    assert MAX_NAME_CHARS == len(OpenTenants().resolve({}, "x" * 100_000).id)


@given(has=st.sampled_from(Tier), asked=st.none() | st.sampled_from(Tier))
def test_a_client_never_gets_better_than_its_tenant_has(has: Tier, asked: Tier | None) -> None:
    given = effective_tier(Tenant("t", has), asked)
    assert given >= has
    assert given == (has if asked is None or asked < has else asked)


def test_a_caller_without_a_key_is_turned_away_whatever_its_body_says() -> None:
    with pytest.raises(HttpError) as refused:
        keyed().check({})
    assert 401 == refused.value.status
    OpenTenants().check({})
