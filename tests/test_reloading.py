"""The configuration changes while the gateway serves: all of it or nothing, and only those concerned notice."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

import aiohttp
import msgspec
import pytest

from driftsched.config import LimitSettings, Settings, load_settings
from driftsched.core.errors import ConfigError
from driftsched.core.events import Admitted
from driftsched.keys import create_key, hash_key, revoke_key
from driftsched.reloading import LIVE_LIMITS, Reloader, Source, changed
from driftsched.serving import put_in_force
from driftsched.telemetry.reloads import Reloads
from support.processes import running
from support.servers import House, chat, live_gateway, simulated

CHAT = "/v1/chat/completions"
CONFIG = """
engines: [{url: "http://127.0.0.1:1"}]
keys_file: keys.yaml
estimator: {name: calibrated}
tenants:
  - {id: ann}
  - {id: bob, tier: batch}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "driftsched.yaml"
    path.write_text(CONFIG)
    return path


@pytest.fixture
async def http() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


def write(path: Path, text: str | None) -> None:
    """None takes the file away."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


class Used:
    """What was put in force."""

    def __init__(self) -> None:
        self.settings: list[Settings] = []

    def __call__(self, settings: Settings) -> None:
        self.settings.append(settings)


def reloader_of(
    config: Path, use: Callable[[Settings], None], reloads: Reloads | None = None, settings: Settings | None = None
) -> Reloader:
    source = Source(config, partial(load_settings, config))
    return Reloader(source, settings or load_settings(config), use, reloads or Reloads())


@asynccontextmanager
async def followed(config: Path) -> AsyncIterator[tuple[House, Reloader]]:
    """A gateway under the configuration, and what keeps it to that."""
    settings = load_settings(config)
    async with live_gateway(simulated(), settings=settings) as house:
        yield house, reloader_of(config, lambda changed: put_in_force(changed, house.gateway), settings=settings)


async def ask(http: aiohttp.ClientSession, house: House, key: str) -> int:
    headers = {"authorization": f"Bearer {key}"}
    async with http.post(house.url + CHAT, json=chat(), headers=headers) as response:
        await response.read()
        return response.status


def settings_of(text: str, tmp_path: Path) -> Settings:
    path = tmp_path / "other.yaml"
    write(path, text)
    return load_settings(path)


def test_what_may_change_while_serving_does_and_the_rest_is_named(config: Path, tmp_path: Path) -> None:
    loaded = settings_of(
        """
engines: [{url: "http://127.0.0.1:2"}]
port: 9000
keys_file: keys.yaml
tenants: [{id: cyd, quota: {max_inflight: 3}}]
limits: {max_waiting: 5, max_queue_seconds: 9, drain_seconds: 7, max_wait_seconds: {batch: 3}}
policy: {name: fifo}
estimator: {name: calibrated}
""",
        tmp_path,
    )
    before = load_settings(config)
    after, kept = changed(before, loaded)
    assert loaded.tenants == after.tenants
    assert (5, 9) == (after.limits.max_waiting, after.limits.max_queue_seconds)
    assert (before.port, before.limits.drain_seconds, before.policy) == (
        after.port,
        after.limits.drain_seconds,
        after.policy,
    )
    assert ["engines", "port", "policy.name", "limits.max_wait_seconds.batch", "limits.drain_seconds"] == kept


def test_a_gateway_that_asked_for_keys_does_not_open_by_a_reload(config: Path, tmp_path: Path) -> None:
    opened = settings_of(CONFIG.replace("keys_file: keys.yaml", ""), tmp_path)
    with pytest.raises(ConfigError, match="only a restart"):
        changed(load_settings(config), opened)


def test_admin_keys_change_where_there_are_some_and_else_need_a_restart(config: Path) -> None:
    one, other = (f"admin: {{keys_sha256: ['{hash_key(key)}']}}\n" for key in ("one", "other"))
    before = load_settings(config)
    write(config, CONFIG + one)
    with_one = load_settings(config)
    assert ["admin.keys_sha256"] == changed(before, with_one)[1]
    write(config, CONFIG + other)
    after, kept = changed(with_one, load_settings(config))
    assert ([hash_key("other")], []) == (after.admin.keys_sha256, kept)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tenants: [", "not valid YAML"),
        ("tenants: [{id: ann, colour: red}]", "colour"),
        (CONFIG.replace("batch", "gold"), "gold"),
        (CONFIG.replace("ann", "bob"), "'bob'"),
        ("", "engines"),
        (None, "No such file"),
    ],
)
async def test_a_bad_file_leaves_what_runs_and_is_told_once(
    config: Path, caplog: pytest.LogCaptureFixture, text: str | None, said: str
) -> None:
    used, reloads = Used(), Reloads()
    reloader = reloader_of(config, used, reloads)
    write(config, text)
    with caplog.at_level(logging.ERROR):
        for _ in range(5):
            await reloader.look()
    assert ([], 0, 1, False) == (used.settings, reloads.num_applied, reloads.num_refused, reloads.is_current)
    (record,) = caplog.records
    assert said in record.getMessage()
    write(config, CONFIG + "# mended\n")
    for _ in range(5):
        await reloader.look()
    assert (1, 1, 1, True) == (len(used.settings), reloads.num_applied, reloads.num_refused, reloads.is_current)


async def test_a_file_that_breaks_the_parser_does_not_end_the_looking(config: Path) -> None:
    used, reloads = Used(), Reloads()

    def load() -> Settings:
        raise RecursionError

    reloader = Reloader(Source(config, load), load_settings(config), used, reloads)
    await reloader.reload()
    assert ([], 1) == (used.settings, reloads.num_refused)


async def test_files_that_stay_as_they_are_are_not_read(config: Path) -> None:
    used = Used()
    reloader = reloader_of(config, used)
    for _ in range(5):
        await reloader.look()
    assert [] == used.settings


async def test_a_configuration_is_read_once_nobody_writes_it_any_more(config: Path) -> None:
    used = Used()
    reloader = reloader_of(config, used)
    for size in range(1, 4):
        write(config, CONFIG + "#" * size)
        await reloader.look()
    assert [] == used.settings
    await reloader.look()
    await reloader.look()
    assert 1 == len(used.settings)


async def test_a_keys_file_counts_at_the_next_look(config: Path) -> None:
    used = Used()
    reloader = reloader_of(config, used)
    key = create_key(config.parent / "keys.yaml", "ann")
    await reloader.look()
    assert [hash_key(key)] == used.settings[-1].tenants[0].keys_sha256
    revoke_key(config.parent / "keys.yaml", hash_key(key))
    await reloader.look()
    assert [] == used.settings[-1].tenants[0].keys_sha256


async def test_who_is_woken_reads_the_files_at_once(config: Path) -> None:
    used = Used()
    reloader = reloader_of(config, used)
    following = asyncio.create_task(reloader.run())
    reloader.wake()
    async with asyncio.timeout(5):
        while not used.settings:
            await asyncio.sleep(0)
    following.cancel()
    await asyncio.gather(following, return_exceptions=True)
    assert 1 == len(used.settings)


async def test_no_request_fails_while_the_configuration_changes_fifty_times(
    config: Path, http: aiohttp.ClientSession
) -> None:
    key = create_key(config.parent / "keys.yaml", "ann")
    statuses: list[int] = []
    over = False

    async def load(house: House) -> None:
        while not over:
            statuses.append(await ask(http, house, key))

    async with followed(config) as (house, reloader):
        callers = [asyncio.create_task(load(house)) for _ in range(6)]
        for number in range(50):
            if number % 10 == 9:
                write(config, "tenants: [")
            elif number % 2:
                write(config, CONFIG + f"limits: {{max_waiting: {1000 + number}}}\n")
            else:
                write(
                    config, CONFIG.replace("{id: ann}", f"{{id: ann, quota: {{max_inflight: {2 + number % 3}}}}}")
                )
            await reloader.reload()
        over = True
        await asyncio.gather(*callers)
        assert house.gateway._holding is not None
        assert {} == house.gateway._holding._accounts
    assert {200} == set(statuses)
    assert 10 < len(statuses)


async def test_a_revoked_key_stops_at_the_next_request_and_a_new_one_works(
    config: Path, http: aiohttp.ClientSession
) -> None:
    keys = config.parent / "keys.yaml"
    old = create_key(keys, "ann")
    async with followed(config) as (house, reloader):
        assert 200 == await ask(http, house, old)
        new = create_key(keys, "ann")
        assert 401 == await ask(http, house, new)
        revoke_key(keys, hash_key(old))
        await reloader.look()
        assert [401, 200] == [await ask(http, house, key) for key in (old, new)]


async def test_what_was_used_of_a_quota_stays_used(config: Path, http: aiohttp.ClientSession) -> None:
    key = create_key(config.parent / "keys.yaml", "ann")
    write(config, CONFIG.replace("{id: ann}", "{id: ann, quota: {requests_per_minute: 2}}"))
    async with followed(config) as (house, reloader):
        assert [200, 200, 429] == [await ask(http, house, key) for _ in range(3)]
        await reloader.reload()
        assert 429 == await ask(http, house, key)
        write(config, CONFIG.replace("{id: ann}", "{id: ann, quota: {requests_per_minute: 4}}"))
        await reloader.reload()
        assert [200, 200, 429] == [await ask(http, house, key) for _ in range(3)]


async def test_tier_and_limits_are_those_of_the_last_reload(config: Path, http: aiohttp.ClientSession) -> None:
    key = create_key(config.parent / "keys.yaml", "bob")
    async with followed(config) as (house, reloader):
        await ask(http, house, key)
        write(config, CONFIG.replace("batch", "premium") + "limits: {max_body_bytes: 100}\n")
        await reloader.reload()
        long = chat("x" * 200)
        async with http.post(house.url + CHAT, json=long, headers={"authorization": f"Bearer {key}"}) as response:
            assert 413 == response.status
        write(config, CONFIG.replace("batch", "premium"))
        await reloader.reload()
        await ask(http, house, key)
        assert ["batch", "premium"] == [event.ticket.request.tier.label for event in house.of(Admitted)]


async def test_a_running_server_follows_its_keys_and_sighup(tmp_path: Path, http: aiohttp.ClientSession) -> None:
    config, keys = tmp_path / "driftsched.yaml", tmp_path / "keys.yaml"
    async with running("mock", "--speed", "100") as (_, engine):
        write(
            config,
            f"engines: [{{url: '{engine}'}}]\n"
            + "keys_file: keys.yaml\nstate: {path: null}\ntenants: [{id: ann}]\n",
        )
        async with running("serve", "--config", str(config)) as (process, url):
            key = create_key(keys, "ann")
            process.send_signal(signal.SIGHUP)

            async def status() -> int:
                async with http.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}) as response:
                    return response.status

            async with asyncio.timeout(20):
                while await status() != 200:
                    await asyncio.sleep(0.02)
                revoke_key(keys, hash_key(key))
                while await status() != 401:
                    await asyncio.sleep(0.02)
            async with http.get(f"{url}/metrics") as response:
                page = await response.text()
            assert 'driftsched_config_reloads_total{outcome="refused"} 0.0' in page
            assert "driftsched_config_current 1.0" in page
            assert process.returncode is None


def test_every_limit_that_may_change_while_serving_is_one() -> None:
    assert set() == set(LIVE_LIMITS) - {field.name for field in msgspec.structs.fields(LimitSettings)}
