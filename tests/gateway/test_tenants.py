from hashlib import sha256

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.config import hash_key
from driftsched.core.model import Quota, Tenant, Tier
from driftsched.gateway.errors import HttpError
from driftsched.gateway.tenants import (
    ANONYMOUS,
    MAX_NAME_CHARS,
    MAX_SPOKEN_FOR,
    OBJECTIVE_HEADERS,
    TENANT_HEADER,
    TENANT_HEADERS,
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


GATE = Tenant("gate", Tier.STANDARD, 2.0, Quota("gate", max_inflight=9))
TRUSTED = {b"authorization": b"Bearer key-g"}
PLAIN = {b"authorization": b"Bearer key-b"}


def with_trusted() -> KeyedTenants:
    digests = [(hash_key("key-g"), GATE), (hash_key("key-b"), BOB)]
    return KeyedTenants(digests, trusted=[hash_key("key-g")], known=[ALICE, BOB, GATE])


@pytest.mark.parametrize("header", TENANT_HEADERS)
def test_a_trusted_key_speaks_for_whom_it_names(header: bytes) -> None:
    tenants = with_trusted()
    assert ALICE == tenants.resolve({**TRUSTED, header: b"alice"}, None)
    assert GATE == tenants.resolve(TRUSTED, "alice")
    assert GATE == tenants.resolve({**TRUSTED, header: b""}, None)


def test_whom_nobody_configured_has_what_the_trusted_key_has_and_shares_its_quota() -> None:
    made = with_trusted().resolve({**TRUSTED, TENANT_HEADER: b"carol"}, None)
    assert Tenant("gate/carol", GATE.tier, GATE.weight, GATE.quota) == made


@pytest.mark.parametrize("header", [*TENANT_HEADERS, *OBJECTIVE_HEADERS])
def test_headers_of_others_say_nothing(header: bytes) -> None:
    tenants, headers = with_trusted(), {**PLAIN, header: b"premium"}
    assert (BOB, None) == (tenants.resolve(headers, None), tenants.asked_tier(headers))


@pytest.mark.parametrize("header", OBJECTIVE_HEADERS)
@pytest.mark.parametrize(
    ("said", "asked"),
    [
        (b"premium", Tier.PREMIUM),
        (b"standard", Tier.STANDARD),
        (b" Batch ", Tier.BATCH),
        (b"system", Tier.PREMIUM),
        (b"interactive", Tier.PREMIUM),
        (b"default", None),
        (b"bulk", Tier.BATCH),
        (b"my-objective", None),
        (b"\xff", None),
        (b"", None),
    ],
)
def test_a_trusted_key_asks_for_a_tier_by_header(header: bytes, said: bytes, asked: Tier | None) -> None:
    assert asked == with_trusted().asked_tier({**TRUSTED, header: said})
    assert asked == OpenTenants().asked_tier({header: said})


def test_of_two_tiers_asked_for_the_lower_one_counts_and_never_one_above_the_tenants() -> None:
    assert Tier.BATCH == effective_tier(GATE, Tier.PREMIUM, Tier.BATCH)
    assert Tier.STANDARD == effective_tier(GATE, Tier.PREMIUM, Tier.PREMIUM)
    assert Tier.BATCH == effective_tier(BOB, None, Tier.PREMIUM)
    assert Tier.BATCH == effective_tier(ALICE, Tier.STANDARD, Tier.BATCH)


def test_the_names_that_trusted_callers_make_up_are_bounded() -> None:
    tenants = with_trusted()
    often = tenants.resolve({**TRUSTED, TENANT_HEADER: b"0"}, None)
    for number in range(MAX_SPOKEN_FOR + 50):
        tenants.resolve({**TRUSTED, TENANT_HEADER: b"%d" % number}, None)
        tenants.resolve({**TRUSTED, TENANT_HEADER: b"0"}, None)
    assert often is tenants.resolve({**TRUSTED, TENANT_HEADER: b"0"}, None)
    held = tenants._spoken_for
    assert (MAX_SPOKEN_FOR, True, False) == (len(held), ("gate", "0") in held, ("gate", "1") in held)
    assert len("gate/") + MAX_NAME_CHARS == len(tenants.resolve({**TRUSTED, TENANT_HEADER: b"x" * 999}, None).id)
