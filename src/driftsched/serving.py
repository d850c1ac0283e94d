"""Everything wired together and served: the composition behind `driftsched serve`."""

import asyncio
import gc
import logging
import resource
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from math import ceil, inf
from pathlib import Path
from typing import TYPE_CHECKING

import uvicorn
import uvloop

from driftsched import __version__
from driftsched.config import LimitSettings, Settings
from driftsched.core.errors import ConfigError
from driftsched.core.protocols import Accountable, Engine, Listener
from driftsched.core.quotas import Quotas
from driftsched.core.scheduler import Scheduler
from driftsched.core.specs import parse_spec, spec_text
from driftsched.core.tracing import Span
from driftsched.engines.control import DispatchControl
from driftsched.engines.pool import EnginePool
from driftsched.estimators import create_classifier, create_counter, create_estimator
from driftsched.estimators.describe import PromptDescriber
from driftsched.gateway.app import Gateway, Readiness
from driftsched.gateway.dispatcher import MonotonicClock
from driftsched.gateway.edge import EdgeLimits, edge_protocol
from driftsched.gateway.front import Front, Pool
from driftsched.gateway.holding import Holding, Places
from driftsched.gateway.openapi import encoded, openapi_document
from driftsched.gateway.roster import Roster
from driftsched.gateway.tenants import KeyedTenants, OpenTenants
from driftsched.observing import log_format, open_access_log, open_otel
from driftsched.operating import make_admin, make_decisions
from driftsched.policies import create_policy
from driftsched.pooling import Fleet
from driftsched.queues.memory import MemoryQueue
from driftsched.reloading import Reloader, Source
from driftsched.selftuning import SelfTuning, make_tuning, tuned_by_pool
from driftsched.shadowing import Shadowing
from driftsched.sim.shadow import Terms
from driftsched.telemetry.access import AccessLog
from driftsched.telemetry.joining import join_pages
from driftsched.telemetry.journal import Journal
from driftsched.telemetry.log import log_drift, log_policy
from driftsched.telemetry.prometheus import PrometheusListener
from driftsched.telemetry.reloads import Reloads
from driftsched.telemetry.shadow import ShadowMetrics
from driftsched.telemetry.state import StateKeeper, StateStore

if TYPE_CHECKING:
    from driftsched.telemetry.otel import OpenTelemetry

_logger = logging.getLogger(__name__)

GC_THRESHOLD = 20_000
"""Objects made, less those freed, between two looks of the collector: a request makes hundreds and no cycles, and
the default of 700 would have it look several times a request for nothing."""
DEFAULT_POOL = "default"
"""What the pool is called where there is only one."""
BACKLOG = 4096
"""Connections the kernel may hold before they are accepted."""
MAX_OPEN_FILES = 65_536
"""Enough for any load of one process; an unlimited number would only hide a leak."""


def build_gateway(
    settings: Settings,
    *,
    engine: Engine,
    queue: MemoryQueue,
    catalogue: Readiness,
    journal: Journal | None = None,
    state: StateKeeper | None = None,
    control: DispatchControl | None = None,
    shadow: Shadowing | None = None,
    tuning: SelfTuning | None = None,
    listeners: Sequence[Listener] = (),
    pool: str = DEFAULT_POOL,
    quotas: Quotas | None = None,
    places: Places | None = None,
    trace: Callable[[str], Span] | None = None,
    reloads: Reloads | None = None,
    roster: Roster | None = None,
) -> Gateway:
    """A gateway with the policy, estimator and limits of `settings`. Raises `ConfigError`.

    `pool` tells what its estimator learnt from what those of others did; `quotas` and `places`
    may be shared with them, and so may `reloads`, which are exported.
    `roster`: what operators may change of the engines.

    Whoever made `journal`, `state` and `shadow` closes them, once the gateway has come to rest, and starts the last
    two before.
    """
    policy, estimator = settings.policy, settings.estimator
    counter, classifier = settings.token_counter, settings.classifier
    made_estimator = create_estimator(estimator.name, **estimator.options)
    made_counter = create_counter(counter.name, **counter.options)
    made_classifier = create_classifier(classifier.name, **classifier.options)
    if state is not None:
        whose = "" if pool == DEFAULT_POOL else f"pool {pool}: "
        state.keep(f"{whose}estimator {estimator.name}", made_estimator)
        state.keep(f"{whose}token_counter {counter.name}", made_counter)
        state.keep(f"{whose}classifier {classifier.name}", made_classifier)
    decisions = make_decisions(settings, journal)
    metrics = PrometheusListener(
        policy=settings.policy_text,
        estimator=estimator.name,
        version=__version__,
        max_tenants=settings.metrics.max_tenants,
    )
    quotas = quotas or Quotas()
    scheduler = Scheduler(
        policy=create_policy(policy.name, **policy.options),
        estimator=made_estimator,
        describer=PromptDescriber(made_classifier, made_counter),
        queue=queue,
        bounds=settings.limits.bounds(),
        max_wait_seconds=settings.max_wait_by_tier(),
        max_inflight_tokens=settings.limits.max_inflight_tokens or inf,
        max_reranks=settings.limits.max_reranks,
        rejects_unattainable=settings.limits.reject_unattainable,
        sheds=settings.limits.shed,
        quotas=quotas,
        listeners=(
            metrics,
            log_drift,
            log_policy if pool == DEFAULT_POOL else partial(log_policy, pool=pool),
            *(part for part in (decisions, journal, shadow, tuning) if part),
            *listeners,
        ),
    )
    clock = MonotonicClock()
    holding = Holding(
        scheduler,
        clock,
        max_held=settings.limits.max_waiting_per_tenant,
        max_held_bytes=settings.limits.max_waiting_bytes,
        keep_alive_seconds=settings.limits.keep_alive_seconds,
        places=places,
    )
    metrics.watch(
        lambda: scheduler.load,
        lambda: journal.dropped if journal else 0,
        made_estimator.calibration if isinstance(made_estimator, Accountable) else tuple,
        lambda: holding.num_held,
    )
    if control is not None:
        metrics.watch_engines(control.states)
    if isinstance(engine, EnginePool):
        engine.expect(scheduler.expected_tokens_of)
        engine.on_return(lambda: scheduler.resumed(clock.now()))
        metrics.watch_away(lambda: engine.away_seconds)
    if shadow is not None:
        metrics.registry.register(ShadowMetrics(shadow))
    if reloads is not None:
        metrics.registry.register(reloads)
    admin = make_admin(
        settings,
        scheduler=scheduler,
        estimator=made_estimator,
        engine=engine,
        control=control,
        decisions=decisions,
        journal=journal,
        clock=clock,
        roster=roster,
    )
    return Gateway(
        scheduler=scheduler,
        engine=engine,
        catalogue=catalogue,
        tenants=make_tenants(settings),
        clock=clock,
        policy_name=settings.policy_text,
        metrics=metrics.export,
        max_body_bytes=settings.limits.max_body_bytes,
        max_queue_seconds=settings.limits.max_queue_seconds,
        max_stall_seconds=settings.limits.max_stall_seconds,
        keep_alive_seconds=settings.limits.keep_alive_seconds,
        admin=admin,
        private_metrics=settings.metrics.require_admin_key,
        trace=trace,
        quotas=quotas,
        holding=holding,
        passthrough=settings.passthrough,
        openapi=encoded(openapi_document(__version__, settings.passthrough)),
    )


def make_tenants(settings: Settings) -> KeyedTenants | OpenTenants:
    """What tells who is calling."""
    known = settings.known_tenants()
    if not settings.keyed:
        return OpenTenants(known)
    return KeyedTenants(settings.key_digests(), trusted=settings.trusted_digests(), known=known)


def put_in_force(settings: Settings, gateway: Gateway) -> None:
    """Let a running gateway serve under what of `settings` may change while it does."""
    limits = settings.limits
    gateway.use(
        make_tenants(settings),
        limits.bounds(),
        admin_keys_sha256=settings.admin.keys_sha256,
        max_body_bytes=limits.max_body_bytes,
        max_queue_seconds=limits.max_queue_seconds,
        max_stall_seconds=limits.max_stall_seconds,
    )


def open_journal(settings: Settings) -> Journal | None:
    """The journal that `settings` asks for; to be closed. Raises `ConfigError` for a file of something else."""
    journal = settings.journal
    if journal.path is None:
        return None
    return Journal(
        Path(journal.path),
        policy=settings.policy_text,
        estimator=settings.estimator.name,
        max_rows=journal.max_rows,
        max_bytes=journal.max_bytes,
        max_days=journal.max_days,
    )


def open_shadow(
    settings: Settings,
    slots: Callable[[], int],
    tuning: SelfTuning | None = None,
    *,
    pool: str = DEFAULT_POOL,
    num_beside: int = 0,
) -> Shadowing | None:
    """The shadow that `settings` asks for; to be started and closed. Raises `ConfigError`.

    `slots`: requests that may be in flight now. `tuning` is told what the shadow finds. `num_beside`:
    shadows of other pools.
    """
    if not settings.shadow:
        return None
    return Shadowing(
        settings.policy.spec,
        [spec_text(*parse_spec(text)) for text in settings.shadow],
        slots=slots,
        terms=Terms(
            settings.max_wait_by_tier(),
            settings.limits.max_inflight_tokens or inf,
            settings.limits.reject_unattainable,
        ),
        listeners=(tuning.hear,) if tuning else (),
        pool="" if pool == DEFAULT_POOL else pool,
        num_beside=num_beside,
    )


def open_state(settings: Settings) -> StateKeeper | None:
    """What keeps the state that `settings` asks for; to be started and closed."""
    try:
        path = settings.state.file()
    except RuntimeError:
        _logger.warning("state: there is no home directory to keep it in: set state.path, or null for none")
        return None
    return StateKeeper(StateStore(path), save_seconds=settings.state.save_seconds) if path else None


def serve(settings: Settings, source: Source | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then let what was admitted finish. Raises `ConfigError`.

    `source`: where they came from, to be read anew when it changes.
    """
    settings.check()
    by_pool = tuned_by_pool(settings, DEFAULT_POOL)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_serve(settings, by_pool, source))


@dataclass(frozen=True, slots=True)
class _Shared:
    """What all pools have in common."""

    num_shadows: int
    state: StateKeeper | None
    quotas: Quotas
    places: Places
    reloads: Reloads
    access_log: AccessLog | None
    otel: "OpenTelemetry | None"

    def start(self) -> None:
        if self.access_log is not None:
            self.access_log.start()
        if self.otel is not None:
            self.otel.start()
        if self.state is not None:
            self.state.start()


@dataclass(frozen=True, slots=True)
class _House:
    """One pool of engines and the gateway in front of it."""

    name: str
    gateway: Gateway
    fleet: Fleet
    shadow: Shadowing | None
    tuning: SelfTuning | None

    async def start(self) -> None:
        if self.tuning is not None and self.shadow is not None:
            self.tuning.start(self.gateway, self.shadow)
        if self.shadow is not None:
            self.shadow.start()
        await self.fleet.start(self.gateway.dispatcher.dispatch)


async def _serve(settings: Settings, by_pool: list[tuple[str, Settings]], source: Source | None) -> None:
    async with AsyncExitStack() as closings:
        shared = _share(settings, sum(bool(own.shadow) for _, own in by_pool), closings)
        houses = [_open_house(name, own, shared, closings) for name, own in by_pool]
        with closing(listen(settings.host, settings.port)) as listener:
            shared.start()
            for house in houses:
                await house.start()
            if source is not None:
                _follow(source, settings, houses, shared.reloads, closings)
            gc.set_threshold(GC_THRESHOLD)
            gc.collect()
            gc.freeze()  # what lives since the start lives to the end: the collector need not look at it again
            limits = settings.limits
            await run_app(
                _face(settings, houses),
                listener,
                "driftsched",
                edge=_edge(limits),
                drain_seconds=limits.drain_seconds,
                say=_logger.info if log_format(settings.log) == "json" else say,
            )


def _follow(
    source: Source, loaded: Settings, houses: Sequence[_House], reloads: Reloads, closings: AsyncExitStack
) -> None:
    """Read the configuration anew when its files change, and on SIGHUP, until `closings` are closed."""

    def use(settings: Settings) -> None:
        pools = [settings.of_pool(pool) for pool in settings.pools] or [settings]
        for own, house in zip(pools, houses, strict=True):
            put_in_force(own, house.gateway)

    reloader = Reloader(source, loaded, use, reloads)
    loop = asyncio.get_running_loop()
    following = loop.create_task(reloader.run())
    loop.add_signal_handler(signal.SIGHUP, reloader.wake)
    closings.callback(following.cancel)
    closings.callback(_stop_following, loop)


def _stop_following(loop: asyncio.AbstractEventLoop) -> None:
    """SIGHUP no longer means anything; nor may it end the process, which has yet to write down what it knows."""
    loop.remove_signal_handler(signal.SIGHUP)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)


def _share(settings: Settings, num_shadows: int, closings: AsyncExitStack) -> _Shared:
    """`closings` is told of everything that is to be closed, as it is opened."""
    access_log = open_access_log(settings.log)
    if access_log is not None:
        closings.callback(access_log.close)
    otel = open_otel(settings.otel)
    if otel is not None:
        closings.callback(otel.close)
    state = open_state(settings)
    if state is not None:
        closings.callback(state.close)
    return _Shared(num_shadows, state, Quotas(), Places(), Reloads(), access_log, otel)


def _open_house(name: str, settings: Settings, shared: _Shared, closings: AsyncExitStack) -> _House:
    journal = open_journal(settings)
    if journal is not None:
        closings.callback(journal.close)
    fleet = Fleet(
        settings.engines,
        affinity=settings.affinity,
        retries=settings.retries,
        away_seconds=settings.limits.engines_away_seconds,
    )
    closings.push_async_callback(fleet.close)
    tuning = make_tuning(settings)
    shadow = open_shadow(
        settings,
        lambda: fleet.queue.max_inflight,
        tuning,
        pool=name,
        num_beside=shared.num_shadows - 1,
    )
    if shadow is not None:
        closings.callback(shadow.close)
    if tuning is not None:
        closings.push_async_callback(tuning.close)
    gateway = build_gateway(
        settings,
        engine=fleet.pool,
        queue=fleet.queue,
        catalogue=fleet.catalogue,
        journal=journal,
        state=shared.state,
        control=fleet.control,
        shadow=shadow,
        tuning=tuning,
        listeners=[part for part in (shared.access_log, shared.otel) if part],
        trace=shared.otel.span if shared.otel else None,
        pool=name,
        quotas=shared.quotas,
        places=shared.places,
        reloads=shared.reloads,
        roster=fleet,
    )
    return _House(name, gateway, fleet, shadow, tuning)


def _face(settings: Settings, houses: Sequence[_House]) -> Gateway | Front:
    """What clients see of it all."""
    if not settings.pools:
        return houses[0].gateway
    pools = [
        Pool(house.name, house.gateway, house.fleet.catalogue, pool.models, pool.aliases)
        for house, pool in zip(houses, settings.pools, strict=True)
    ]
    return Front(pools, join_metrics=join_pages)


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises `ConfigError` if the address cannot be had."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=BACKLOG)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot listen on {host} port {port}: {error}") from None


def raise_open_files() -> int:
    """Let this process open as many files as it may, up to `MAX_OPEN_FILES`; how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MAX_OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, MAX_OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        soft = wanted
    return wanted if soft == resource.RLIM_INFINITY else soft


def _edge(limits: LimitSettings) -> EdgeLimits:
    """Half of all files are left to engines and the like: were clients to take all, nobody could be served."""
    return EdgeLimits(min(limits.max_connections, raise_open_files() // 2), limits.max_stall_seconds)


def say(message: str) -> None:
    """On standard error, to whoever started this."""
    print(message, file=sys.stderr, flush=True)


async def run_app(
    app: object,
    listener: socket.socket,
    what: str,
    *,
    edge: EdgeLimits | None = None,
    drain_seconds: float = 5.0,
    say: Callable[[str], None] = say,
) -> None:
    """Serve an ASGI application on `listener` until a signal, and say when it is ready."""
    config = uvicorn.Config(
        app,  # type: ignore[arg-type]  # uvicorn's own types want a narrower scope than ASGI defines
        http=edge_protocol(edge or EdgeLimits()),
        ws="none",
        loop="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # nobody's word on where a request came from is used
        timeout_keep_alive=75,
        backlog=BACKLOG,
        timeout_graceful_shutdown=ceil(drain_seconds),
    )
    await _Server(config, what, say).serve(sockets=[listener])


class _Server(uvicorn.Server):
    """uvicorn, telling where it listens once it does, and ending with status 0 when it was asked to stop."""

    def __init__(self, config: uvicorn.Config, what: str, say: Callable[[str], None]) -> None:
        super().__init__(config)
        self._what = what
        self._say = say

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM start the drain, a second one cuts it short.

        uvicorn's own method raises them once more at the end, which would end the process before it has cleaned up,
        and let it look killed.
        """
        loop = asyncio.get_running_loop()
        signals = (signal.SIGINT, signal.SIGTERM)
        for number in signals:
            loop.add_signal_handler(number, self._stop)
        try:
            yield
        finally:
            for number in signals:
                loop.remove_signal_handler(number)

    def _stop(self) -> None:
        self.force_exit = self.should_exit
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets=sockets)
        if sockets and self.started:
            host, port = sockets[0].getsockname()[:2]
            url = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
            self._say(f"{self._what} listens on {url}")
