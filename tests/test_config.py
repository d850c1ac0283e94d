import re
from pathlib import Path
from typing import Any

import msgspec
import pytest

from driftsched.config import (
    AdminSettings,
    EngineSettings,
    JournalSettings,
    LimitSettings,
    MetricsSettings,
    OtelSettings,
    PerTierSettings,
    PoolSettings,
    QuotaSettings,
    Settings,
    StateSettings,
    TenantSettings,
    hash_key,
    load_settings,
)
from driftsched.core.admission import Bounds
from driftsched.core.errors import ConfigError
from driftsched.core.model import Tenant, Tier

ENGINES = [EngineSettings("http://127.0.0.1:8000")]
KEY = hash_key("key")


def loaded(folder: Path, text: str) -> Settings:
    path = folder / "driftsched.yaml"
    path.write_text(text, encoding="utf-8")
    return load_settings(path)


def test_everything_can_be_set_in_a_file(tmp_path: Path) -> None:
    settings = loaded(
        tmp_path,
        f"""
        engines:
          - {{url: "http://gpu-1:8000", name: one, max_inflight: 64, api_key_env: GPU_KEY}}
        host: 0.0.0.0
        port: 9000
        policy: {{name: aging, options: {{tiers_per_second: 0.1}}}}
        estimator: {{name: static}}
        token_counter: {{name: bytes}}
        classifier: {{name: rules, options: {{reassign: false}}}}
        tenants:
          - {{id: alice, tier: premium, weight: 2, keys_sha256: ["{KEY}"]}}
        limits:
          max_body_bytes: 1000
          max_wait_seconds: {{premium: 1, standard: 2.5, batch: 3}}
          drain_seconds: 5
        journal: {{path: journal.db, max_rows: 1000, max_bytes: 5000000, max_days: 7}}
        state: {{path: learnt.sqlite, save_seconds: 5}}
        """,
    )
    settings.check()
    assert EngineSettings("http://gpu-1:8000", "one", 64, "GPU_KEY") == settings.engines[0]
    assert ("0.0.0.0", 9000) == (settings.host, settings.port)
    assert ("aging", {"tiers_per_second": 0.1}) == (settings.policy.name, settings.policy.options)
    assert ("rules", {"reassign": False}) == (settings.classifier.name, settings.classifier.options)
    assert [(KEY, Tenant("alice", Tier.PREMIUM, 2.0))] == settings.key_digests()
    assert {Tier.PREMIUM: 1.0, Tier.STANDARD: 2.5, Tier.BATCH: 3.0} == settings.max_wait_by_tier()
    assert JournalSettings("journal.db", 1000, 5_000_000, 7.0) == settings.journal
    assert StateSettings("learnt.sqlite", 5.0) == settings.state


def test_an_empty_file_leaves_every_default(tmp_path: Path) -> None:
    assert Settings() == loaded(tmp_path, "")


def test_defaults_serve_this_machine_only_and_without_keys() -> None:
    settings = Settings(engines=ENGINES)
    settings.check()
    assert (True, False) == (settings.on_loopback, settings.keyed)
    assert Bounds() == settings.limits.bounds()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("engine: []", "`engine`"),
        ("engines: [{address: x}]", r"engines\[0\].*`address`"),
        ("engines: [{name: x}]", r"engines\[0\].*`url`"),
        ("engines: [5]", r"engines\[0\]"),
        ("engines: [{url: x, max_inflight: many}]", r"engines\[0\].max_inflight"),
        ("engines: [{url: x, kind: tgi}]", r"engines\[0\].kind"),
        ("port: http", "port"),
        ("host: 5", "host"),
        ("policy: fair", "policy"),
        ("policy: {options: {}}", "policy.*`name`"),
        ("estimator: {name: x, options: []}", "estimator.options"),
        ("token_counter: {name: 5}", "token_counter.name"),
        ("tenants: [{tier: batch}]", r"tenants\[0\].*`id`"),
        ("tenants: [{id: a, weight: heavy}]", r"tenants\[0\].weight"),
        ("tenants: [{id: a, keys_sha256: abc}]", r"tenants\[0\].keys_sha256"),
        ("allow_anonymous: maybe", "allow_anonymous"),
        ("limits: {max_waiting: 1.5}", "limits.max_waiting"),
        ("limits: {max_wait_seconds: {gold: 1}}", "limits.max_wait_seconds.*`gold`"),
        ("[1, 2]", "object"),
        ("a: [", "not valid YAML"),
        ("a: !!python/object:os.system {}", "not valid YAML"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_file_and_field(tmp_path: Path, text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as caught:
        loaded(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "driftsched.yaml"))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere\.yaml: No such file"):
        load_settings(tmp_path / "nowhere.yaml")


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.yaml"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load_settings(path)


NAN, INF = float("nan"), float("inf")
ALICE = TenantSettings("alice", keys_sha256=[KEY])


def limits(**values: Any) -> dict[str, Any]:
    return {"limits": LimitSettings(**values)}


def test_a_field_that_is_renamed_to_itself_makes_sense() -> None:
    engine = EngineSettings("http://a", drop_fields=["store"], rename_fields={"max_tokens": "max_tokens"})
    Settings(engines=[engine]).check()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"engines": []}, "engines: name at least one"),
        ({"port": 65536}, "port: .*65536"),
        ({"port": -1}, "port: .*-1"),
        ({"admin": AdminSettings(keys_sha256=["secret"])}, "admin.keys_sha256: not the SHA-256"),
        ({"admin": AdminSettings(keys_sha256=[KEY]), "tenants": [ALICE]}, "admin.keys_sha256: a tenant has"),
        ({"admin": AdminSettings(max_decisions=0)}, "admin.max_decisions: .*0"),
        ({"otel": OtelSettings(endpoint="collector:4318")}, "otel.endpoint: .*'collector:4318'"),
        ({"otel": OtelSettings(sample_ratio=1.1)}, "otel.sample_ratio: .*1.1"),
        ({"otel": OtelSettings(export_seconds=0.5)}, "otel.export_seconds: .*0.5"),
        ({"metrics": MetricsSettings(max_tenants=1001)}, "metrics.max_tenants: .*1001"),
        ({"metrics": MetricsSettings(require_admin_key=True)}, "metrics.require_admin_key: there is no admin key"),
        ({"engines": [EngineSettings("http://a", max_inflight=0)]}, r"engines\[0\]\.max_inflight: .*0"),
        ({"engines": [EngineSettings("http://a", min_inflight=0)]}, r"engines\[0\]\.min_inflight: .*0"),
        (
            {"engines": [EngineSettings("http://a", max_inflight=4, min_inflight=5)]},
            r"engines\[0\]\.min_inflight: .*4",
        ),
        ({"engines": [EngineSettings("http://a", scrape_seconds=0)]}, r"engines\[0\]\.scrape_seconds: .*0"),
        (
            {"engines": [EngineSettings("http://a", adaptive=True, scrape_seconds=None)]},
            r"engines\[0\]\.adaptive: ",
        ),
        ({"engines": [EngineSettings("http://a", drop_fields=["model"])]}, r"engines\[0\]\.drop_fields: .*'model'"),
        ({"engines": [EngineSettings("http://a", drop_fields=[""])]}, r"engines\[0\]\.drop_fields: must name"),
        (
            {"engines": [EngineSettings("http://a", drop_fields=["a", "a"])]},
            r"engines\[0\]\.drop_fields: 'a' is there twice",
        ),
        (
            {"engines": [EngineSettings("http://a", rename_fields={"max_tokens": "prompt"})]},
            r"engines\[0\]\.rename_fields: .*'prompt'",
        ),
        (
            {"engines": [EngineSettings("http://a", rename_fields={"a": "b", "b": "c"})]},
            r"engines\[0\]\.rename_fields: 'b' is there twice",
        ),
        (
            {"engines": [EngineSettings("http://a", drop_fields=["a"], rename_fields={"b": "a"})]},
            r"engines\[0\]\.drop_fields: 'a' is there twice",
        ),
        ({"tenants": [TenantSettings("")]}, r"tenants\[0\]\.id"),
        ({"tenants": [ALICE, TenantSettings("alice")]}, r"tenants\[1\]\.id: .*'alice'"),
        ({"tenants": [TenantSettings("a", tier="gold")]}, r"tenants\[0\]\.tier: .*gold.*premium"),
        (
            {"tenants": [TenantSettings("a", quota=QuotaSettings(max_inflight=0))]},
            r"tenants\[0\]\.quota\.max_inflight: .*at least 1",
        ),
        ({"tenants": [TenantSettings("a", weight=0)]}, r"tenants\[0\]\.weight"),
        ({"tenants": [TenantSettings("a", weight=NAN)]}, r"tenants\[0\]\.weight"),
        ({"tenants": [TenantSettings("a", weight=INF)]}, r"tenants\[0\]\.weight"),
        ({"tenants": [TenantSettings("a", keys_sha256=["sk-plain"])]}, r"tenants\[0\]\.keys_sha256: .*SHA-256"),
        ({"tenants": [TenantSettings("a", keys_sha256=[KEY.upper()])]}, r"tenants\[0\]\.keys_sha256: .*lower-case"),
        ({"tenants": [ALICE, TenantSettings("b", keys_sha256=[KEY])]}, r"tenants\[1\]\.keys_sha256: .*same key"),
        (limits(max_body_bytes=0), "limits.max_body_bytes"),
        (limits(max_waiting=0), "limits.max_waiting:"),
        (limits(max_waiting_per_tenant=-1), "limits.max_waiting_per_tenant"),
        (limits(max_waiting_bytes=0), "limits.max_waiting_bytes"),
        (limits(max_waiting_tokens=0), "limits.max_waiting_tokens:"),
        (limits(max_waiting_tokens_per_tenant=-5), "limits.max_waiting_tokens_per_tenant: .*-5"),
        (limits(max_queue_seconds=NAN), "limits.max_queue_seconds"),
        (limits(max_stall_seconds=0), "limits.max_stall_seconds"),
        (limits(keep_alive_seconds=0), "limits.keep_alive_seconds"),
        (limits(keep_alive_seconds=NAN), "limits.keep_alive_seconds"),
        (limits(max_reranks=-1), "limits.max_reranks: .*-1"),
        (limits(drain_seconds=-1), "limits.drain_seconds"),
        (limits(drain_seconds=NAN), "limits.drain_seconds"),
        (limits(drain_seconds=INF), "limits.drain_seconds"),
        ({"journal": JournalSettings("")}, "journal.path"),
        ({"state": StateSettings("")}, "state.path"),
        ({"state": StateSettings(save_seconds=0)}, "state.save_seconds: .*0"),
        ({"state": StateSettings(save_seconds=NAN)}, "state.save_seconds: .*nan"),
        ({"state": StateSettings(save_seconds=INF)}, "state.save_seconds: .*inf"),
        ({"journal": JournalSettings("j", max_rows=0)}, "journal.max_rows: .*0"),
        ({"journal": JournalSettings("j", max_bytes=-1)}, "journal.max_bytes"),
        ({"journal": JournalSettings("j", max_days=NAN)}, "journal.max_days"),
        ({"host": "0.0.0.0"}, "host: .*allow_anonymous"),
        ({"host": "example.org", "tenants": [TenantSettings("a")]}, "host: .*keys_sha256"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused_by_name(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        msgspec.structs.replace(Settings(engines=ENGINES), **changes).check()


@pytest.mark.parametrize(
    ("shadow", "complaint"),
    [
        (["sjf", "slack:beta"], r"shadow\[1\]: 'slack:beta': write NAME"),
        (["sjf"] * 17, "shadow: at most 16 policies, not 17"),
    ],
)
def test_shadows_that_make_no_sense_are_refused_by_name(shadow: list[str], complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        Settings(engines=[EngineSettings("http://127.0.0.1:1")], shadow=shadow).check()


def test_bounds_of_tiers_and_tenants_reach_the_scheduler(tmp_path: Path) -> None:
    text = """
        limits:
          max_waiting_bytes_per_tenant: 5000
          max_waiting_per_tier: {premium: 20, batch: 5}
          max_waiting_tokens_per_tier: {standard: 1000}
          max_waiting_bytes_per_tier: {batch: 300}
        """
    assert loaded(tmp_path, text).limits.bounds() == Bounds(
        max_waiting_bytes_per_tenant=5000,
        max_waiting_per_tier={Tier.PREMIUM: 20, Tier.BATCH: 5},
        max_waiting_tokens_per_tier={Tier.STANDARD: 1000},
        max_waiting_bytes_per_tier={Tier.BATCH: 300},
    )


@pytest.mark.parametrize("name", [f"max_waiting{what}_per_tier" for what in ("", "_tokens", "_bytes")])
def test_a_bound_of_a_tier_that_makes_no_sense_is_refused_by_name(name: str) -> None:
    with pytest.raises(ConfigError, match=f"limits.{name}.batch: .*0"):
        Settings(engines=ENGINES, **limits(**{name: PerTierSettings(batch=0)})).check()


@pytest.mark.parametrize("label", ["premium", "standard", "batch"])
@pytest.mark.parametrize("seconds", [0, -1.0, NAN])
def test_a_maximum_wait_that_makes_no_sense_is_refused_by_name(label: str, seconds: float) -> None:
    waits = msgspec.structs.replace(LimitSettings().max_wait_seconds, **{label: seconds})
    with pytest.raises(ConfigError, match=f"limits.max_wait_seconds.{label}"):
        Settings(engines=ENGINES, limits=LimitSettings(max_wait_seconds=waits)).check()


def test_a_plain_key_in_the_settings_is_not_repeated_in_the_complaint() -> None:
    with pytest.raises(ConfigError) as caught:
        Settings(engines=ENGINES, tenants=[TenantSettings("a", keys_sha256=["sk-plain"])]).check()
    assert "sk-plain" not in str(caught.value)


@pytest.mark.parametrize(
    ("path", "told", "file"),
    [
        (StateSettings().path, "/var/state", "/var/state/driftsched/state.sqlite"),
        (StateSettings().path, "", "/home/op/.local/state/driftsched/state.sqlite"),
        (StateSettings().path, "not/absolute", "/home/op/.local/state/driftsched/state.sqlite"),
        ("~/learnt.sqlite", "/var/state", "/home/op/learnt.sqlite"),
        ("/srv/$XDG_STATE_HOME", "/var/state", "/srv/$XDG_STATE_HOME"),
        ("learnt.sqlite", "/var/state", "learnt.sqlite"),
    ],
)
def test_the_state_is_kept_where_the_path_says(
    path: str, told: str, file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/op")
    monkeypatch.setenv("XDG_STATE_HOME", told)
    assert Path(file) == StateSettings(path).file()


def test_without_a_path_no_state_is_kept(tmp_path: Path) -> None:
    assert loaded(tmp_path, "state: {path: null}").state.file() is None


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "::1", "localhost"])
def test_loopback_needs_no_keys(host: str) -> None:
    Settings(engines=ENGINES, host=host).check()


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "10.0.0.1", "example.org"])
def test_others_are_let_in_with_keys_or_on_purpose(host: str) -> None:
    Settings(engines=ENGINES, host=host, tenants=[ALICE]).check()
    Settings(engines=ENGINES, host=host, allow_anonymous=True).check()


DOCUMENT = Path(__file__).parents[1] / "docs" / "configuration.md"


def described() -> dict[str, str]:
    """Setting -> default, as the document has it."""
    rows = re.findall(r"^\| `([a-z0-9_.\[\]]+)` \| ([^|]+) \|", DOCUMENT.read_text(encoding="utf-8"), re.MULTILINE)
    assert len(rows) == len(dict(rows))
    return {name: default.strip().strip("`") for name, default in rows}


def defined(made: msgspec.Struct | type[msgspec.Struct], prefix: str = "") -> dict[str, str]:
    """Setting -> default, as the code has it: of a struct made by default, or of one that must be given."""
    settings: dict[str, str] = {}
    for field in msgspec.structs.fields(made):
        if isinstance(made, msgspec.Struct):
            default = getattr(made, field.name)
        else:
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
        if isinstance(default, msgspec.Struct):
            settings |= defined(default, f"{prefix}{field.name}.")
        elif default is msgspec.NODEFAULT:
            settings[prefix + field.name] = "required"
        else:
            settings[prefix + field.name] = msgspec.json.encode(default).decode().strip('"')
    return settings


POOLS = """
policy: {name: fair}
limits: {max_waiting: 50}
journal: {path: here/requests.sqlite}
pools:
  - {name: chat, engines: [{url: "http://a"}], models: [llama-3], aliases: {gpt-4o: llama-3}}
  - {name: code, engines: [{url: "http://b"}], policy: {name: fifo}, limits: {max_waiting: 5}}
"""


def test_a_pool_has_what_is_its_own_and_for_the_rest_what_holds_for_all(tmp_path: Path) -> None:
    settings = loaded(tmp_path, POOLS)
    settings.check()
    chat, code = (settings.of_pool(pool) for pool in settings.pools)
    assert [("fair", 50), ("fifo", 5)] == [(own.policy.name, own.limits.max_waiting) for own in (chat, code)]
    assert ["here/requests.chat.sqlite", "here/requests.code.sqlite"] == [own.journal.path for own in (chat, code)]
    assert [["http://a"], ["http://b"]] == [[engine.url for engine in own.engines] for own in (chat, code)]


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("engines: [{url: 'http://c'}]", "pools: engines belong into a pool"),
        ("shadow: ['slack:beta']", r"pools\[0\]: shadow\[0\]"),
        ("pools: [{name: a, engines: []}]", r"pools\[0\]: engines: name at least one"),
        ("pools: [{name: 'a b', engines: [{url: x}]}]", r"pools\[0\].name"),
        ("pools: [{name: a, engines: [{url: x}]}, {name: a, engines: [{url: x}]}]", r"pools\[1\].name"),
        ("pools: [{name: a, engines: [{url: x, min_inflight: 0}]}]", r"pools\[0\]: engines\[0\].min_inflight"),
        ("pools: [{name: a, engines: [{url: x}], models: [m, m]}]", "'m' is served already"),
        ("pools: [{name: a, engines: [{url: x}], models: [m], aliases: {n: o}}]", r"pools\[0\].aliases: 'o'"),
        ("pools: [{name: a, engines: [{url: x}], limits: {drain_seconds: 5}}]", r"pools\[0\].limits.drain_seconds"),
    ],
)
def test_pools_that_make_no_sense_are_refused_by_name(tmp_path: Path, text: str, complaint: str) -> None:
    settings = loaded(tmp_path, text if text.startswith("pools") else f"{POOLS}\n{text}")
    with pytest.raises(ConfigError, match=complaint):
        settings.check()


def test_every_setting_is_documented_with_its_default() -> None:
    expected = defined(Settings())
    expected |= defined(EngineSettings, "engines[].") | defined(TenantSettings, "tenants[].")
    expected |= defined(QuotaSettings, "tenants[].quota.")
    expected |= defined(PoolSettings, "pools[].")
    assert expected == described()


def test_the_example_in_the_document_is_accepted(tmp_path: Path) -> None:
    example = re.search(r"```yaml\n(.*?)```", DOCUMENT.read_text(encoding="utf-8"), re.DOTALL)
    assert example is not None
    loaded(tmp_path, example[1]).check()


@pytest.mark.parametrize(
    ("max_inflight", "adaptive", "expected"),
    [(None, None, True), (32, None, False), (32, True, True), (None, False, False)],
)
def test_a_limit_adapts_unless_the_operator_gave_one_or_says_otherwise(
    max_inflight: int | None, adaptive: bool | None, expected: bool
) -> None:
    assert expected == EngineSettings("http://a", max_inflight=max_inflight, adaptive=adaptive).adapts
