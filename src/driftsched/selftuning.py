"""`driftsched serve --tune`: the evidence of the shadow, the tuner that judges it, and the gateway that follows."""

import asyncio
import logging

import msgspec

from driftsched.config import PartSettings, Settings
from driftsched.core.errors import ConfigError
from driftsched.core.events import Event, PolicyChanged
from driftsched.core.evidence import Evidence
from driftsched.core.goals import parse_goal
from driftsched.core.protocols import Clock
from driftsched.core.specs import parse_spec, spec_text
from driftsched.core.tuning import Tuner
from driftsched.core.worth import Worth
from driftsched.gateway.app import Gateway
from driftsched.gateway.dispatcher import MonotonicClock
from driftsched.shadowing import Shadowing, policy_of

_logger = logging.getLogger(__name__)

STEPS = (0, 2, 4, 8)
"""Candidates where none are given: values of the option by which a policy lets short requests overtake."""
OPTIONS = {"fair": "slack", "slack": "beta", "lag": "beta"}
"""That option, by policy."""


class SelfTuning:
    """A listener, for how much predictions are worth, that changes what serves. Start it, and close it."""

    def __init__(self, tuner: Tuner, clock: Clock | None = None) -> None:
        """`clock`: the gateway's."""
        self._tuner = tuner
        self._clock = clock or MonotonicClock()
        self._worth = Worth()
        self._heard: asyncio.Queue[Evidence] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def __call__(self, event: Event) -> None:
        self._worth(event)

    def start(self, gateway: Gateway, shadow: Shadowing) -> None:
        """Follow what `shadow` finds from here on. Call inside the gateway's loop, once."""
        self._loop = asyncio.get_running_loop()
        self._task = self._loop.create_task(self._follow(gateway, shadow))

    def hear(self, evidence: Evidence) -> None:
        """From any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._heard.put_nowait, evidence)

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _follow(self, gateway: Gateway, shadow: Shadowing) -> None:
        while True:
            evidence = await self._heard.get()
            before = self._tuner.current
            choice = self._tuner.observe(evidence, useful=self._worth.judge())
            if choice is None:
                continue
            change = PolicyChanged(self._clock.now(), before, choice.policy, choice.why)
            try:
                await gateway.adopt(policy_of(choice.policy), change)
            except Exception:  # a plug-in that cannot take over: the one before goes on
                _logger.exception("tuning: %s stays, %s could not take over", before, choice.policy)
                self._tuner.current = before
            else:
                shadow.follow(choice.policy)


def tuned(settings: Settings) -> Settings:
    """The settings with all that tuning needs: a candidate that serves, and shadows of all that it compares.

    Raises `ConfigError` for a policy that has no candidates of its own.
    """
    if settings.tuning.goal is None:
        return settings
    candidates = candidates_of(settings)
    live = settings.policy.spec
    live = live if live in candidates else candidates[0]
    shadows = dict.fromkeys([*settings.shadow, *candidates, *parse_goal(settings.tuning.goal).policies])
    return msgspec.structs.replace(settings, policy=PartSettings(*parse_spec(live)), shadow=list(shadows))


def tuned_by_pool(settings: Settings, only: str) -> list[tuple[str, Settings]]:
    """The name of each pool and what holds for it, tuning and all. Where there are no pools, `only` is the name.

    Raises `ConfigError` naming the pool.
    """
    if not settings.pools:
        own = tuned(settings)
        own.check()  # the policies that tuning compares are shadows as well, and may be too many
        return [(only, own)]
    by_pool = []
    for number, pool in enumerate(settings.pools):
        try:
            own = tuned(settings.of_pool(pool))
            own.check()
        except ConfigError as error:
            raise ConfigError(f"pools[{number}]: {error}") from None
        by_pool.append((pool.name, own))
    return by_pool


def make_tuning(settings: Settings) -> SelfTuning | None:
    """What changes the policy as `settings`, made by `tuned`, ask for. Raises `ConfigError`."""
    tuning = settings.tuning
    if tuning.goal is None:
        return None
    try:
        tuner = Tuner(
            parse_goal(tuning.goal),
            candidates_of(settings),
            settings.policy_text,
            change_policy=tuning.change_policy,
            every_seconds=tuning.every_seconds,
            min_requests=tuning.min_requests,
        )
    except ConfigError as error:
        raise ConfigError(f"tuning.{error}") from None
    return SelfTuning(tuner)


def candidates_of(settings: Settings) -> list[str]:
    """As given, or of the policy's own; the most careful first. Raises `ConfigError` if it has none."""
    given = [spec_text(*parse_spec(text)) for text in settings.tuning.candidates]
    if given:
        return given
    name = settings.policy.name
    option = OPTIONS.get(name)
    if option is None:
        raise ConfigError(f"tuning.candidates: give them: {name} has none of its own, as {', '.join(OPTIONS)} have")
    return [spec_text(name, {**settings.policy.options, option: step}) for step in STEPS]
