"""A gateway with other policies beside the one that serves, over real HTTP."""

import asyncio
import logging
import threading

import aiohttp
import pytest

from driftsched.config import PartSettings, Settings
from driftsched.core.errors import ConfigError
from driftsched.core.events import Finished
from driftsched.core.evidence import Evidence, PolicyTimes, Times
from driftsched.serving import open_shadow
from driftsched.shadowing import Shadowing
from driftsched.sim.dominance import WINDOWS
from support.servers import House, chat, live_gateway, simulated

PROMPTS = ("What is it?", "Summarize it", "A detailed and comprehensive report")
SLOTS = 4
NUM = 150
WAVE = 50


async def ask(http: aiohttp.ClientSession, house: House, number: int) -> int:
    body = chat(PROMPTS[number % 3], user=f"t{number % 2}", seed=number)
    async with http.post(f"{house.url}/v1/chat/completions", json=body) as response:
        await response.read()
        return response.status


async def exported(http: aiohttp.ClientSession, house: House, metric: str) -> dict[str, float]:
    """Labels as written -> value."""
    async with http.get(f"{house.url}/metrics") as response:
        lines = (await response.text()).splitlines()
    found = [
        line.removeprefix(metric).rpartition(" ") for line in lines if line.startswith((metric + "{", metric + " "))
    ]
    return {labels: float(value) for labels, _, value in found}


async def test_a_gateway_exports_what_other_policies_would_have_given(http: aiohttp.ClientSession) -> None:
    settings = Settings(
        policy=PartSettings("fifo"), estimator=PartSettings("calibrated"), shadow=["sjf", "fair:slack=2.0"]
    )
    shadow = open_shadow(settings, lambda: SLOTS)
    assert shadow is not None
    shadow.start()
    try:
        async with live_gateway(
            simulated(SLOTS, speed=50.0), slots=SLOTS, settings=settings, shadow=shadow
        ) as house:
            for first in range(0, NUM, WAVE):
                calls = [ask(http, house, number) for number in range(first, first + WAVE)]
                assert {200} == set(await asyncio.gather(*calls))
            while shadow.evidence is None:  # time goes on for the shadow with what happens
                assert 200 == await ask(http, house, 0)
            assert shadow.num_simulated <= len(house.of(Finished))
            times = await exported(http, house, "driftsched_shadow_e2e_seconds")
            measured = await exported(http, house, "driftsched_shadow_measured_seconds")
            dropped = await exported(http, house, "driftsched_shadow_dropped_total")
    finally:
        shadow.close()

    def median(policy: str, role: str) -> float:
        return times[f'{{policy="{policy}",quantile="0.5",role="{role}",tier="all"}}']

    assert median("sjf", "shadow") < median("fifo", "live")
    assert median("fair:slack=2", "shadow") > 0
    assert measured['{quantile="0.5",tier="all"}'] > 0
    assert {"": 0.0} == dropped


async def test_without_a_shadow_there_is_no_metric_of_one(http: aiohttp.ClientSession) -> None:
    assert open_shadow(Settings(), lambda: 1) is None
    async with live_gateway(simulated()) as house:
        assert {} == await exported(http, house, "driftsched_shadow_lag_seconds")


def test_a_policy_that_cannot_be_made_is_refused_at_the_start() -> None:
    with pytest.raises(ConfigError, match="has no option 'alpha'"):
        open_shadow(Settings(shadow=["slack:alpha=2"]), lambda: 1)


def test_closing_ends_the_thread() -> None:
    shadow = Shadowing("fifo", ["sjf"], slots=lambda: 4)
    shadow.start()
    assert "shadow" in [thread.name for thread in threading.enumerate()]
    shadow.close()
    assert "shadow" not in [thread.name for thread in threading.enumerate()]


def times(policy: str, p50: float, p99: float) -> PolicyTimes:
    return PolicyTimes(policy, Times(400, p50, p50, p99, p99), {})


def test_that_the_live_policy_is_dominated_is_logged_once_and_so_is_its_end(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    shadow, live = Shadowing("fifo", ["sjf"], slots=lambda: 4), times("fifo", 10.0, 100.0)
    for better in (times("sjf", 5.0, 60.0), times("sjf", 10.0, 100.0)):
        for _ in range(3 * WINDOWS):
            shadow._judge(Evidence(0.0, 1.0, live, (better,), live))
    assert [
        (
            "WARNING",
            "shadow: sjf is better than fifo by more than 10 % in every respect: E2E P50 5.00 s, not 10.00 s, "
            "and P99 60.00 s, not 100.00 s, simulated on 400 requests",
        ),
        ("INFO", "shadow: no other policy is better than fifo in every respect any more"),
    ] == [(record.levelname, record.getMessage()) for record in caplog.records]
