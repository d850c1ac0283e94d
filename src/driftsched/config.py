"""Settings: YAML into frozen structs. What is unknown or wrong is refused, with the path of the field."""

import os
import re
from ipaddress import ip_address
from math import inf, isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from driftsched.core.admission import Bounds
from driftsched.core.errors import ConfigError
from driftsched.core.goals import parse_goal
from driftsched.core.model import Quota, Tenant, Tier
from driftsched.core.protocols import EngineKind
from driftsched.core.revision import MAX_RERANKS
from driftsched.core.specs import parse_spec, spec_text
from driftsched.keys import hash_key as hash_key
from driftsched.keys import read_keys
from driftsched.yamls import read_yaml

T = TypeVar("T")

MAX_TENANT_SERIES = 1_000
Affinity = Literal["none", "session", "prefix"]

MAX_SHADOWS = 16
"""Each of them costs time for every request."""


class TimeoutSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How long an engine may take, in seconds."""

    connect_seconds: float = 5.0
    first_token_seconds: float = 600.0
    """From the call to the first byte of the answer, the engine's own queue and the prompt included."""
    between_tokens_seconds: float = 120.0
    """Silence in the middle of an answer."""
    total_seconds: float | None = None
    """From the call to the end of the answer; None: as long as tokens come."""


class RetrySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How often requests may be tried again at another engine."""

    share: float = 0.2
    """Of all requests."""
    burst: float = 100.0
    """Retries that may be saved up."""


class EngineSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model server."""

    url: str
    """Its root, with or without `/v1`."""
    name: str | None = None
    """Label for logs and metrics; host and port if left out."""
    max_inflight: int | None = None
    """Requests it serves at once: about what fills its batch. Asked of the engine if left out, else 32."""
    api_key_env: str | None = None
    """Name of the environment variable that holds the key this engine wants."""
    kind: EngineKind | None = None
    """Which server it is; found out if left out."""
    adaptive: bool | None = None
    """Whether the limit follows what the engine says of itself; None: unless `max_inflight` is given."""
    min_inflight: int = 1
    """The least that an adaptive limit comes down to."""
    priority: bool | Literal["client"] = False
    """Whether it is told how urgent a request is; "client": what the client says of it is passed on."""
    drop_fields: list[str] = []
    """Fields of a call that it does not get, besides those known of its kind."""
    rename_fields: dict[str, str] = {}
    """Fields that it knows by another name: what the client says, and what it gets."""
    stream_whole_answers: bool = True
    """Whether it is asked to stream also what a client wants whole: so it is seen to grow."""
    scrape_seconds: float | None = 1.0
    """Between two looks at the engine's metrics; None: it is never asked."""
    check_seconds: float | None = 2.0
    """Between two questions whether it is well; None: only requests find out."""
    timeouts: TimeoutSettings = TimeoutSettings()

    @property
    def adapts(self) -> bool:
        return self.max_inflight is None if self.adaptive is None else self.adaptive


class PartSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A policy, an estimator, a token counter or a classifier: its name and its options."""

    name: str
    options: dict[str, Any] = {}

    @property
    def spec(self) -> str:
        """As on the command line: `slack:beta=2`."""
        return spec_text(self.name, self.options)


class QuotaSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a tenant may ask for; None: no such limit."""

    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None
    """Prompt and completion tokens: as predicted at admission, as used in the end."""
    max_inflight: int | None = None
    """Requests at the engines."""
    max_waiting: int | None = None
    """Requests that have not come to the engines yet."""


class TenantSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who may call."""

    id: str
    tier: str = "standard"
    weight: float = 1.0
    """Share of the engines relative to other tenants."""
    models: list[str] | None = None
    """Those that it may use; None: all."""
    quota: QuotaSettings | None = None
    """None: it shares what there is with the others, and nothing else limits it."""
    keys_sha256: list[str] = []
    """SHA-256 of each of its API keys, in hex. Keys themselves are never written down."""
    trusted_keys_sha256: list[str] = []
    """The same of keys that may speak for others: those of gateways in front of this one."""

    @property
    def digests(self) -> list[str]:
        return [*self.keys_sha256, *self.trusted_keys_sha256]


class MaxWaitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seconds after which a waiting request is served next, whatever the policy says, by tier."""

    premium: float = 60.0
    standard: float = 180.0
    batch: float = 600.0


class PerTierSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A bound for each tier; None: the tier has none of its own."""

    premium: int | None = None
    standard: int | None = None
    batch: int | None = None

    def by_tier(self) -> dict[Tier, float]:
        """Of the tiers that have one."""
        return {
            Tier.parse(label): bound for label, bound in msgspec.structs.asdict(self).items() if bound is not None
        }


class LimitSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes and times. Every one is a bound: nothing here may grow or wait for ever."""

    max_connections: int = 16_384
    """Connections of clients; one more is told 503 and closed. At most half of the files the process may open."""
    max_body_bytes: int = 8 << 20
    max_waiting: int = 10_000
    max_waiting_per_tenant: int = 10_000
    max_waiting_bytes: int = 1 << 30
    max_waiting_tokens: int | None = None
    """Predicted completion tokens of all that waits; None: bounded by the number of requests only."""
    max_waiting_tokens_per_tenant: int | None = None
    max_waiting_bytes_per_tenant: int | None = None
    max_waiting_per_tier: PerTierSettings = PerTierSettings()
    max_waiting_tokens_per_tier: PerTierSettings = PerTierSettings()
    max_waiting_bytes_per_tier: PerTierSettings = PerTierSettings()
    max_inflight_tokens: int | None = None
    """Prompt and predicted completion tokens at the engines, all together; None: bounded by requests only."""
    max_queue_seconds: float = 600.0
    """A request that waited so long is sent away with 429."""
    reject_unattainable: bool = True
    """Send a request away at once if it is all but certain to be sent away later."""
    shed: bool = True
    """Give the places of waiting requests in a full queue to others of better value."""
    engines_away_seconds: float = 30.0
    """While no engine can be reached, how long requests wait for one to come back; 0: they are refused at once."""
    max_wait_seconds: MaxWaitSettings = MaxWaitSettings()
    max_reranks: int = MAX_RERANKS
    """Waiting requests predicted and placed anew at each end of a request; 0: they keep the place of admission."""
    max_stall_seconds: float = 60.0
    """How long a client may take to send its head, its body, or to accept the next piece of its answer."""
    keep_alive_seconds: float | None = None
    """Between two comments in a stream that still waits; None: nothing is sent before the answer begins."""
    drain_seconds: float = 60.0
    """On SIGTERM, how long requests already admitted may take to finish."""

    def bounds(self) -> Bounds:
        return Bounds(
            self.max_waiting,
            self.max_waiting_per_tenant,
            self.max_waiting_bytes,
            inf if self.max_waiting_tokens is None else self.max_waiting_tokens,
            inf if self.max_waiting_tokens_per_tenant is None else self.max_waiting_tokens_per_tenant,
            inf if self.max_waiting_bytes_per_tenant is None else self.max_waiting_bytes_per_tenant,
            self.max_waiting_per_tier.by_tier(),
            self.max_waiting_tokens_per_tier.by_tier(),
            self.max_waiting_bytes_per_tier.by_tier(),
        )


class JournalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The journal of requests that ended; off unless it has a path."""

    path: str | None = None
    max_rows: int = 1_000_000
    max_bytes: int = 1 << 30
    max_days: float = 30.0


class AdminSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What operators may ask a running gateway; nothing unless there is a key."""

    keys_sha256: list[str] = []
    """SHA-256 of each admin key, in hex. No tenant may have the same key."""
    max_decisions: int = 10_000
    """Records of requests kept after their end, 1.2 kB each, and as many of what was rejected."""


class MetricsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What `/metrics` shows, and to whom."""

    max_tenants: int = 20
    """Tenants with series of their own, those served most; 0: no series by tenant."""
    require_admin_key: bool = False
    """Only operators may read it."""


class LogSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is written to standard error."""

    format: Literal["auto", "json", "text"] = "auto"
    """auto: text if standard error is a terminal, else JSON."""
    access: bool = True
    """One line for each request that ended."""
    prompts: bool = False
    """The head of each prompt goes into its line."""


class OtelSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """OpenTelemetry; off unless there is an endpoint, here or in the environment."""

    endpoint: str | None = None
    """Root of a collector that takes OTLP over HTTP; None: what OTEL_EXPORTER_OTLP_ENDPOINT says."""
    sample_ratio: float = 1.0
    """Of the requests whose callers do not say whether their trace is recorded."""
    export_seconds: float = 10.0
    """Between two times that metrics are sent."""


class StateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What was learnt, kept over a restart; `path: null` keeps nothing."""

    path: str | None = "$XDG_STATE_HOME/driftsched/state.sqlite"
    save_seconds: float = 60.0
    """Between two saves: what a kill loses at most."""

    def file(self) -> Path | None:
        """The path with `~` and a leading `$XDG_STATE_HOME` replaced. Raises `RuntimeError` if there is no home.

        Source: XDG Base Directory Specification 0.8. The variable counts if it is an absolute path.
        """
        if self.path is None:
            return None
        first, _, rest = self.path.partition("/")
        if first != "$XDG_STATE_HOME":
            return Path(self.path).expanduser()
        told = Path(os.environ.get("XDG_STATE_HOME", ""))
        return (told if told.is_absolute() else Path("~/.local/state").expanduser()) / rest


class TuningSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Self-tuning; off unless it has a goal."""

    goal: str | None = None
    """As `core.goals` has it."""
    candidates: list[str] = []
    """Policies that may serve, each as in `fair:slack=2`, the most careful first; if none, some of the policy."""
    change_policy: bool = False
    """Candidates may be of several policies."""
    every_seconds: float = 300.0
    """Between two windows that are judged."""
    min_requests: int = 300
    """A window of fewer is passed over."""


class PoolSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Engines that serve the same models, with a queue of their own."""

    name: str
    """Label in metrics, logs and the admin API."""
    engines: list[EngineSettings]
    models: list[str] = []
    """Models that are asked of it; none: those that its engines say they serve."""
    aliases: dict[str, str] = {}
    """Other names for them: what a client asks for, and the model it gets."""
    affinity: Affinity | None = None
    """Of this and the following, None: as for all."""
    retries: RetrySettings | None = None
    policy: PartSettings | None = None
    estimator: PartSettings | None = None
    limits: LimitSettings | None = None
    shadow: list[str] | None = None
    tuning: TuningSettings | None = None


class Settings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything `driftsched serve` can be told."""

    pools: list[PoolSettings] = []
    """Several sets of engines; none: `engines` are the only one."""
    engines: list[EngineSettings] = []
    affinity: Affinity = "none"
    """Which requests should meet at one engine."""
    retries: RetrySettings = RetrySettings()
    host: str = "127.0.0.1"
    port: int = 8080
    policy: PartSettings = PartSettings("fair")
    estimator: PartSettings = PartSettings("adaptive")
    token_counter: PartSettings = PartSettings("bytes")
    classifier: PartSettings = PartSettings("rules")
    tenants: list[TenantSettings] = []
    keys_file: str | None = None
    """File of the keys that `driftsched keys` made, beside the configuration; with it every call needs a key."""
    passthrough: tuple[str, ...] = ("/v1/embeddings", "/v1/rerank", "/v1/score", "/tokenize", "/detokenize")
    """Paths whose calls are scheduled, and go through unchanged both ways: nothing is generated there."""
    allow_anonymous: bool = False
    """Serve callers without a key although others than this machine can connect."""
    limits: LimitSettings = LimitSettings()
    journal: JournalSettings = JournalSettings()
    state: StateSettings = StateSettings()
    shadow: list[str] = []
    """Policies that are simulated beside the one that serves, each as in `slack:beta=2`."""
    admin: AdminSettings = AdminSettings()
    metrics: MetricsSettings = MetricsSettings()
    log: LogSettings = LogSettings()
    otel: OtelSettings = OtelSettings()
    tuning: TuningSettings = TuningSettings()

    @property
    def policy_text(self) -> str:
        """What the policy is called: with its options if it may change while serving."""
        return self.policy.name if self.tuning.goal is None else self.policy.spec

    @property
    def on_loopback(self) -> bool:
        """Only this machine can connect."""
        if self.host == "localhost":
            return True
        try:
            return ip_address(self.host).is_loopback
        except ValueError:
            return False

    @property
    def keyed(self) -> bool:
        """Calls must carry an API key."""
        return self.keys_file is not None or any(tenant.digests for tenant in self.tenants)

    @property
    def num_keys(self) -> int:
        return sum(len(tenant.digests) for tenant in self.tenants)

    def keys_path(self, config: Path) -> Path | None:
        """Where `keys_file` is, for settings that were read from `config`."""
        return None if self.keys_file is None else config.parent / Path(self.keys_file).expanduser()

    def known_tenants(self) -> list[Tenant]:
        return [_tenant(settings) for settings in self.tenants]

    def key_digests(self) -> list[tuple[str, Tenant]]:
        """(SHA-256 in hex, tenant) of every key."""
        return [(digest, _tenant(settings)) for settings in self.tenants for digest in settings.digests]

    def trusted_digests(self) -> list[str]:
        """SHA-256 in hex of every key that may speak for others."""
        return [digest for settings in self.tenants for digest in settings.trusted_keys_sha256]

    def max_wait_by_tier(self) -> dict[Tier, float]:
        return {tier: getattr(self.limits.max_wait_seconds, tier.label) for tier in Tier}

    def of_pool(self, pool: PoolSettings) -> "Settings":
        """What holds for one of the pools, as if it were the only one. Its journal is a file of its own."""
        journal = self.journal
        if journal.path is not None:
            path = Path(journal.path)
            beside = path.with_name(f"{path.stem}.{pool.name}{path.suffix}")
            journal = msgspec.structs.replace(journal, path=str(beside))
        own = {name: getattr(pool, name) for name in _OVERRIDES if getattr(pool, name) is not None}
        return msgspec.structs.replace(self, pools=[], engines=pool.engines, journal=journal, **own)

    def _check_pools(self) -> None:
        if self.engines:
            raise ConfigError("pools: engines belong into a pool each: leave out the engines beside the pools")
        seen: set[str] = set()
        claimed: set[str] = set()
        for number, pool in enumerate(self.pools):
            where = f"pools[{number}]"
            if pool.name in seen or not _POOL_NAME.fullmatch(pool.name):
                raise ConfigError(
                    f"{where}.name: must be unlike the others, and of letters, digits, '.', '_' and '-', "
                    f"not {pool.name!r}"
                )
            seen.add(pool.name)
            for name in (*pool.models, *pool.aliases):
                if name in claimed:
                    raise ConfigError(
                        f"{where}: {name!r} is served already: a model and an alias belong to one pool"
                    )
                claimed.add(name)
            strays = sorted(set(pool.aliases.values()) - set(pool.models)) if pool.models else []
            if strays:
                raise ConfigError(f"{where}.aliases: {strays[0]!r} is none of its models")
            for name in _OF_ALL_POOLS:
                if pool.limits is not None and getattr(pool.limits, name) != getattr(LimitSettings(), name):
                    raise ConfigError(f"{where}.limits.{name}: holds for all pools together: set limits.{name}")
            try:
                self.of_pool(pool).check()
            except ConfigError as error:
                raise ConfigError(f"{where}: {error}") from None

    def check(self) -> None:
        """Raises `ConfigError` for values that fit their type and still make no sense."""
        if self.pools:
            self._check_pools()
        elif not self.engines:
            raise ConfigError("engines: name at least one, with --engine URL or in the configuration file")
        if not 0 <= self.port <= 65535:
            raise ConfigError(f"port: must be between 0 and 65535, not {self.port}")
        for number, engine in enumerate(self.engines):
            _check_engine(f"engines[{number}]", engine)
        _check_retries(self.retries)
        _check_passthrough(self.passthrough)
        _check_tenants(self.tenants)
        _check_admin(self.admin, self.tenants)
        _check_metrics(self.metrics, self.admin)
        _check_otel(self.otel)
        _check_limits(self.limits)
        _check_journal(self.journal)
        _check_state(self.state)
        _check_shadow(self.shadow)
        _check_tuning(self.tuning)
        if not (self.on_loopback or self.keyed or self.allow_anonymous):
            raise ConfigError(
                f"host: {self.host} can be reached by others, but no tenant has a key. Give tenants keys_sha256, "
                "bind to 127.0.0.1, or set allow_anonymous: true"
            )


_POOL_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_ENGINE_NAME = re.compile(r"[A-Za-z0-9.:_-]{1,100}")
_ESSENTIAL = frozenset({"model", "messages", "prompt", "input", "stream"})
_OF_ALL_POOLS = ("max_connections", "drain_seconds")
_OVERRIDES = ("affinity", "retries", "policy", "estimator", "limits", "shadow", "tuning")


def load_settings(path: Path) -> Settings:
    """The settings of a YAML file and its keys file, not yet checked. Raises `ConfigError` naming the field."""
    settings = read_settings(path)
    keys_path = settings.keys_path(path)
    return _with_keys(settings, keys_path) if keys_path else settings


def read_settings(path: Path) -> Settings:
    """The settings of a YAML file alone, not yet checked. Raises `ConfigError` naming file and field."""
    return _convert(read_yaml(path) or {}, Settings, str(path))


def _with_keys(settings: Settings, path: Path) -> Settings:
    """The keys of a keys file, given to the tenants that they belong to. Raises `ConfigError`."""
    plain: dict[str, list[str]] = {tenant.id: [] for tenant in settings.tenants}
    trusted: dict[str, list[str]] = {tenant.id: [] for tenant in settings.tenants}
    for number, key in enumerate(read_keys(path)):
        if key.tenant not in plain:
            raise ConfigError(f"{path}: keys[{number}].tenant: the configuration has no tenant {key.tenant!r}")
        (trusted if key.trusted else plain)[key.tenant].append(key.sha256)
    tenants = [
        msgspec.structs.replace(
            tenant,
            keys_sha256=[*tenant.keys_sha256, *plain[tenant.id]],
            trusted_keys_sha256=[*tenant.trusted_keys_sha256, *trusted[tenant.id]],
        )
        for tenant in settings.tenants
    ]
    return msgspec.structs.replace(settings, tenants=tenants)


def read_engine(document: bytes) -> EngineSettings:
    """The settings of one engine from JSON, checked. Raises `ConfigError` naming the field."""
    try:
        settings = msgspec.json.decode(document, type=EngineSettings)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"engine: {error}") from None
    if settings.name is not None and not _ENGINE_NAME.fullmatch(settings.name):
        raise ConfigError(f"engine.name: of letters, digits and '.:_-', not {settings.name!r}")
    _check_engine("engine", settings)
    return settings


def _convert(document: object, kind: type[T], where: str) -> T:
    try:
        return msgspec.convert(document, kind)
    except msgspec.ValidationError as error:
        problem, _, field = str(error).partition(" - at `$")
        field = field.rstrip("`").lstrip(".")
        raise ConfigError(f"{where}: {field}: {problem}" if field else f"{where}: {problem}") from None


def _tenant(settings: TenantSettings) -> Tenant:
    quota = None if settings.quota is None else Quota(settings.id, **msgspec.structs.asdict(settings.quota))
    models = None if settings.models is None else frozenset(settings.models)
    return Tenant(settings.id, Tier.parse(settings.tier), settings.weight, quota, models)


def _check_engine(where: str, engine: EngineSettings) -> None:
    if engine.max_inflight is not None and engine.max_inflight < 1:
        raise ConfigError(f"{where}.max_inflight: must be at least 1, not {engine.max_inflight}")
    if engine.min_inflight < 1:
        raise ConfigError(f"{where}.min_inflight: must be at least 1, not {engine.min_inflight}")
    if engine.max_inflight is not None and engine.min_inflight > engine.max_inflight:
        raise ConfigError(f"{where}.min_inflight: must not be above max_inflight, {engine.max_inflight}")
    if engine.scrape_seconds is not None and not 0.1 <= engine.scrape_seconds < inf:
        raise ConfigError(f"{where}.scrape_seconds: must be a number of 0.1 or more, not {engine.scrape_seconds}")
    if engine.check_seconds is not None and not 0.1 <= engine.check_seconds < inf:
        raise ConfigError(f"{where}.check_seconds: must be a number of 0.1 or more, not {engine.check_seconds}")
    for name, seconds in msgspec.structs.asdict(engine.timeouts).items():
        if seconds is not None and not 0 < seconds < inf:
            raise ConfigError(f"{where}.timeouts.{name}: must be a number greater than 0, not {seconds}")
    if engine.adaptive and engine.scrape_seconds is None:
        raise ConfigError(f"{where}.adaptive: without scrape_seconds nothing is known to adapt to")
    _check_fields(where, engine)


def _check_fields(where: str, engine: EngineSettings) -> None:
    """What a call cannot do without stays as it is, and no field is named twice: no order of doing it matters."""
    renames = engine.rename_fields
    names = [*engine.drop_fields, *(name for old, new in renames.items() for name in {old, new})]
    for name in names:
        setting = "drop_fields" if name in engine.drop_fields else "rename_fields"
        if not name or name in _ESSENTIAL:
            raise ConfigError(
                f"{where}.{setting}: must name a field, and none of {', '.join(sorted(_ESSENTIAL))}, not {name!r}"
            )
        if names.count(name) > 1:
            raise ConfigError(f"{where}.{setting}: {name!r} is there twice: drop it, or give it one other name")


def _check_retries(retries: RetrySettings) -> None:
    if not 0 <= retries.share <= 1:
        raise ConfigError(f"retries.share: must be between 0 and 1, not {retries.share}")
    if not 0 <= retries.burst < inf:
        raise ConfigError(f"retries.burst: must be a number of 0 or more, not {retries.burst}")


def _check_passthrough(paths: tuple[str, ...]) -> None:
    for number, path in enumerate(paths):
        if not re.fullmatch(r"(/[\w.-]+)+", path, re.ASCII) or ".." in path:
            raise ConfigError(f"passthrough[{number}]: not the path of an endpoint, as in /v1/embeddings: {path!r}")


def _check_tenants(tenants: list[TenantSettings]) -> None:
    seen_ids: set[str] = set()
    seen_keys: set[str] = set()
    for number, tenant in enumerate(tenants):
        where = f"tenants[{number}]"
        if not tenant.id or tenant.id in seen_ids:
            raise ConfigError(f"{where}.id: must be given and unlike the others, not {tenant.id!r}")
        if tenant.models == []:
            raise ConfigError(f"{where}.models: name at least one, or leave it out for all")
        if not (isfinite(tenant.weight) and tenant.weight > 0):
            raise ConfigError(f"{where}.weight: must be greater than 0, not {tenant.weight}")
        _check_tier(f"{where}.tier", tenant.tier)
        for name, value in msgspec.structs.asdict(tenant.quota or QuotaSettings()).items():
            if value is not None and value < 1:
                raise ConfigError(f"{where}.quota.{name}: must be at least 1, not {value}")
        for digest in tenant.digests:
            _check_digest(f"{where}.keys_sha256", digest)
            if digest in seen_keys:
                raise ConfigError(f"{where}.keys_sha256: the same key is there twice, or of two tenants")
            seen_keys.add(digest)
        seen_ids.add(tenant.id)


def _check_admin(admin: AdminSettings, tenants: list[TenantSettings]) -> None:
    of_tenants = {digest for tenant in tenants for digest in tenant.digests}
    for digest in admin.keys_sha256:
        _check_digest("admin.keys_sha256", digest)
        if digest in of_tenants:
            raise ConfigError("admin.keys_sha256: a tenant has the same key: operators need one of their own")
    if admin.max_decisions < 1:
        raise ConfigError(f"admin.max_decisions: must be at least 1, not {admin.max_decisions}")


def _check_metrics(metrics: MetricsSettings, admin: AdminSettings) -> None:
    if not 0 <= metrics.max_tenants <= MAX_TENANT_SERIES:
        raise ConfigError(
            f"metrics.max_tenants: must be between 0 and {MAX_TENANT_SERIES}, not {metrics.max_tenants}"
        )
    if metrics.require_admin_key and not admin.keys_sha256:
        raise ConfigError("metrics.require_admin_key: there is no admin key: set admin.keys_sha256")


def _check_otel(otel: OtelSettings) -> None:
    if otel.endpoint is not None and not otel.endpoint.startswith(("http://", "https://")):
        raise ConfigError(f"otel.endpoint: must begin with http:// or https://, not {otel.endpoint!r}")
    if not 0 <= otel.sample_ratio <= 1:
        raise ConfigError(f"otel.sample_ratio: must be between 0 and 1, not {otel.sample_ratio}")
    if not 1 <= otel.export_seconds < inf:
        raise ConfigError(f"otel.export_seconds: must be a number of 1 or more, not {otel.export_seconds}")


def _check_digest(where: str, digest: str) -> None:
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ConfigError(f"{where}: not the SHA-256 of a key in 64 lower-case hex digits")


def _check_limits(limits: LimitSettings) -> None:
    for name in (
        "max_connections",
        "max_body_bytes",
        "max_waiting",
        "max_waiting_per_tenant",
        "max_waiting_bytes",
        "max_waiting_tokens",
        "max_inflight_tokens",
        "max_waiting_tokens_per_tenant",
        "max_waiting_bytes_per_tenant",
        "max_queue_seconds",
        "max_stall_seconds",
        "keep_alive_seconds",
    ):
        value = getattr(limits, name)
        if value is not None and not value > 0:
            raise ConfigError(f"limits.{name}: must be greater than 0, not {value}")
    if limits.max_reranks < 0:
        raise ConfigError(f"limits.max_reranks: must be 0 or more, not {limits.max_reranks}")
    for name in ("engines_away_seconds", "drain_seconds"):
        if not 0 <= getattr(limits, name) < inf:
            raise ConfigError(f"limits.{name}: must be a number of 0 or more, not {getattr(limits, name)}")
    for name in (
        "max_wait_seconds",
        "max_waiting_per_tier",
        "max_waiting_tokens_per_tier",
        "max_waiting_bytes_per_tier",
    ):
        for label, value in msgspec.structs.asdict(getattr(limits, name)).items():
            if value is not None and not value > 0:
                raise ConfigError(f"limits.{name}.{label}: must be greater than 0, not {value}")


def _check_journal(journal: JournalSettings) -> None:
    if journal.path == "":
        raise ConfigError("journal.path: must name a file, or be left out")
    for name in ("max_rows", "max_bytes", "max_days"):
        if not getattr(journal, name) > 0:
            raise ConfigError(f"journal.{name}: must be greater than 0, not {getattr(journal, name)}")


def _check_state(state: StateSettings) -> None:
    if state.path == "":
        raise ConfigError("state.path: must name a file, or be null")
    if not 0 < state.save_seconds < inf:
        raise ConfigError(f"state.save_seconds: must be a number greater than 0, not {state.save_seconds}")


def _check_shadow(policies: list[str]) -> None:
    for number, text in enumerate(policies):
        try:
            parse_spec(text)
        except ConfigError as error:
            raise ConfigError(f"shadow[{number}]: {error}") from None
    if len(policies) > MAX_SHADOWS:
        raise ConfigError(f"shadow: at most {MAX_SHADOWS} policies, not {len(policies)}")


def _check_tuning(tuning: TuningSettings) -> None:
    try:
        if tuning.goal is not None:
            parse_goal(tuning.goal)
    except ConfigError as error:
        raise ConfigError(f"tuning.goal: {error}") from None
    for number, text in enumerate(tuning.candidates):
        try:
            parse_spec(text)
        except ConfigError as error:
            raise ConfigError(f"tuning.candidates[{number}]: {error}") from None
    if not 0 < tuning.every_seconds < inf:
        raise ConfigError(f"tuning.every_seconds: must be a number greater than 0, not {tuning.every_seconds}")
    if tuning.min_requests < 1:
        raise ConfigError(f"tuning.min_requests: must be at least 1, not {tuning.min_requests}")


def _check_tier(where: str, label: str) -> None:
    try:
        Tier.parse(label)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from None
