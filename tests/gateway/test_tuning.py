"""A gateway that changes its policy by evidence, over real HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import aiohttp
import pytest

from driftsched.config import (
    AdminSettings,
    EngineSettings,
    PartSettings,
    PoolSettings,
    Settings,
    TuningSettings,
    hash_key,
)
from driftsched.core.errors import ConfigError
from driftsched.core.events import Finished, PolicyChanged
from driftsched.core.evidence import Evidence, PolicyTimes, Times
from driftsched.selftuning import SelfTuning, candidates_of, make_tuning, tuned, tuned_by_pool
from driftsched.serving import open_shadow
from driftsched.shadowing import Shadowing
from driftsched.telemetry.journal import Journal, read_journal
from support.servers import House, chat, live_gateway, simulated, until

GOAL = "p50 while p99 <= 1.2 x fifo"
GRID = ["fair:slack=0", "fair:slack=2", "fair:slack=4", "fair:slack=8"]


def settings_of(policy: str = "fair", **options: object) -> Settings:
    made = Settings(
        engines=[EngineSettings("http://127.0.0.1:1")],
        policy=PartSettings(policy),
        estimator=PartSettings("calibrated"),
        tuning=TuningSettings(goal=GOAL, every_seconds=0.001, **options),  # type: ignore[arg-type]
        admin=AdminSettings([hash_key("operators-only")]),
    )
    made.check()
    return tuned(made)


@dataclass
class Tuned:
    house: House
    tuning: SelfTuning
    shadow: Shadowing


@asynccontextmanager
async def tuned_gateway(journal: Journal | None = None) -> AsyncIterator[Tuned]:
    """Its shadow finds nothing by itself: the test says what it found."""
    settings = settings_of()
    tuning = make_tuning(settings)
    assert tuning is not None
    shadow = open_shadow(settings, lambda: 1, tuning)
    assert shadow is not None
    async with live_gateway(
        simulated(1, speed=100.0), slots=1, settings=settings, journal=journal, shadow=shadow, tuning=tuning
    ) as house:
        tuning.start(house.gateway, shadow)
        try:
            yield Tuned(house, tuning, shadow)
        finally:
            await tuning.close()
            shadow.close()


def times(policy: str, p50: float, p99: float) -> PolicyTimes:
    return PolicyTimes(policy, Times(500, p50, p50, p99, p99), {})


def find(made: Tuned, live: str, better: str, *, number: int = 3) -> None:
    """In a thread, as the shadow does: in so many windows `better` was better than all else."""
    found = {spec: times(spec, 5.0 if spec == better else 10.0, 10.0) for spec in (*GRID, "fifo")}
    others = tuple(one for one in found.values() if one.policy != live)

    def tell() -> None:
        for at in range(number):
            made.tuning.hear(Evidence(float(at), 10.0 + at, found[live], others, found[live]))

    thread = Thread(target=tell)
    thread.start()
    thread.join()


async def ask(http: aiohttp.ClientSession, house: House, number: int = 0) -> str:
    """The policy that the answer names."""
    body = chat("What is it?", user=f"t{number % 3}", seed=number)
    async with http.post(f"{house.url}/v1/chat/completions", json=body) as response:
        assert response.status == 200
        await response.read()
        return response.headers["x-driftsched-policy"]


async def test_headers_metrics_journal_and_state_tell_the_policy_in_force(
    http: aiohttp.ClientSession, tmp_path: Path
) -> None:
    journal = Journal(tmp_path / "j.db", policy="fair:slack=0", estimator="calibrated")
    try:
        async with tuned_gateway(journal) as made:
            assert "fair:slack=0" == await ask(http, made.house)
            find(made, live="fair:slack=0", better="fair:slack=2")
            await until(lambda: made.house.of(PolicyChanged) != [])
            assert "fair:slack=2" == await ask(http, made.house)
            key = {"authorization": "Bearer operators-only"}
            async with http.get(f"{made.house.url}/admin/state", headers=key) as response:
                assert "fair:slack=2" == (await response.json())["policy"]
            async with http.get(f"{made.house.url}/metrics") as response:
                exported = await response.text()
            [change] = made.house.of(PolicyChanged)
    finally:
        journal.close()
    assert ("fair:slack=0", "fair:slack=2") == (change.before, change.after)
    assert "p50 would be 5.00 s, not 10.00 s, and what must hold does" == change.why
    assert 'policy="fair:slack=2"' in exported
    assert "driftsched_policy_changes_total 1.0" in exported
    assert ["fair:slack=0", "fair:slack=2"] == [row.policy for row in read_journal(tmp_path / "j.db")]


async def test_the_policy_changes_under_a_queue_and_everybody_is_served_once(http: aiohttp.ClientSession) -> None:
    async with tuned_gateway() as made:
        calls = [asyncio.create_task(ask(http, made.house, number)) for number in range(90)]
        await until(lambda: made.house.queue.num_waiting > 60)
        find(made, live="fair:slack=0", better="fair:slack=2")
        await asyncio.gather(*calls)
        assert 1 == len(made.house.of(PolicyChanged))
        assert 90 == len(made.house.of(Finished))


async def test_too_few_windows_change_nothing(http: aiohttp.ClientSession) -> None:
    async with tuned_gateway() as made:
        find(made, live="fair:slack=0", better="fair:slack=2", number=2)
        await until(lambda: made.tuning._heard.empty())
        assert "fair:slack=0" == await ask(http, made.house)
        assert [] == made.house.of(PolicyChanged)


def test_what_tuning_compares_is_simulated() -> None:
    settings = settings_of()
    assert [*GRID, "fifo"] == settings.shadow
    assert ("fair:slack=0", "fair:slack=0") == (settings.policy_text, candidates_of(settings)[0])


def test_a_policy_that_is_a_candidate_begins_and_options_that_are_not_tuned_stay() -> None:
    listed = Settings(policy=PartSettings("lag", {"beta": 4.0, "tokens": 5000}), tuning=TuningSettings(goal="mean"))
    assert "lag:beta=4,tokens=5000" == tuned(listed).policy_text
    assert ["lag:beta=0,tokens=5000", "lag:beta=2,tokens=5000"] == candidates_of(listed)[:2]


def test_without_a_goal_nothing_is_tuned() -> None:
    settings = Settings(policy=PartSettings("fair", {"slack": 2}))
    assert settings is tuned(settings)
    assert make_tuning(settings) is None
    assert "fair" == settings.policy_text


@pytest.mark.parametrize(
    ("policy", "options", "complaint"),
    [
        ("fair", {"candidates": ["fair:slack"]}, r"tuning.candidates\[0\]: 'fair:slack': write NAME"),
        ("sjf", {}, "tuning.candidates: give them: sjf has none of its own"),
        ("fair", {"candidates": ["fair"]}, "tuning.candidates: give at least two"),
        ("fair", {"candidates": ["fair", "sjf"]}, "tuning.candidates: are of several policies"),
        ("fair", {"min_requests": 0}, "tuning.min_requests: must be at least 1, not 0"),
    ],
)
def test_tuning_that_makes_no_sense_is_refused_by_name(
    policy: str, options: dict[str, object], complaint: str
) -> None:
    with pytest.raises(ConfigError, match=complaint):
        make_tuning(settings_of(policy, **options))


def test_a_goal_or_time_that_makes_no_sense_is_refused_by_name() -> None:
    engines = [EngineSettings("http://127.0.0.1:1")]
    with pytest.raises(ConfigError, match=r"tuning.goal: 'p95': write p50, p99, mean or max"):
        Settings(engines=engines, tuning=TuningSettings(goal="p95")).check()
    with pytest.raises(ConfigError, match=r"tuning.every_seconds: must be a number greater than 0, not 0"):
        Settings(engines=engines, tuning=TuningSettings(every_seconds=0.0)).check()


def pools_of(**of_second: object) -> Settings:
    engines = [EngineSettings("http://127.0.0.1:1")]
    second = PoolSettings("b", engines, policy=PartSettings("sjf"), **of_second)  # type: ignore[arg-type]
    return Settings(pools=[PoolSettings("a", engines), second], tuning=TuningSettings(goal=GOAL), shadow=["edf"])


def test_each_pool_is_tuned_and_shadowed_by_what_holds_for_it() -> None:
    settings = pools_of(tuning=TuningSettings(), shadow=[])
    settings.check()
    (first, a), (second, b) = tuned_by_pool(settings, "default")
    assert [("a", "fair:slack=0", ["edf", *GRID, "fifo"]), ("b", "sjf", [])] == [
        (first, a.policy_text, a.shadow),
        (second, b.policy_text, b.shadow),
    ]
    assert (True, False) == (make_tuning(a) is not None, make_tuning(b) is not None)


def test_a_pool_that_cannot_be_tuned_is_refused_by_its_place() -> None:
    with pytest.raises(ConfigError, match=r"pools\[1\]: tuning.candidates: give them: sjf has none"):
        tuned_by_pool(pools_of(), "default")
