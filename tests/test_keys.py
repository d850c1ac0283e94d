"""Keys: shown once, kept as digests, revoked for good."""

import stat
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from driftsched.cli import app
from driftsched.config import Settings, load_settings
from driftsched.core.errors import ConfigError
from driftsched.keys import KEY_BYTES, PREFIX, create_key, read_keys, revoke_key

CONFIG = """# a comment of the operator's
keys_file: keys.yaml
engines: [{url: "http://127.0.0.1:1"}]
tenants:
  - {id: search, tier: premium}
  - {id: nightly}
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "driftsched.yaml"
    path.write_text(CONFIG)
    return path


def keys(*arguments: str, config: Path) -> Result:
    return CliRunner().invoke(app, ["keys", *arguments, "--config", str(config)])


def test_a_key_is_printed_alone_and_only_its_digest_is_kept(config: Path) -> None:
    made = keys("create", "search", config=config)
    key = made.stdout.strip()
    assert (0, True) == (made.exit_code, key.startswith(PREFIX))
    assert f"{key}\n" == made.stdout
    text = (config.parent / "keys.yaml").read_text()
    assert (False, True) == (key in text, sha256(key.encode()).hexdigest() in text)


def test_the_operators_file_is_left_as_it_is(config: Path) -> None:
    keys("create", "search", config=config)
    assert CONFIG == config.read_text()


def test_a_key_has_256_random_bits(tmp_path: Path) -> None:
    made = {create_key(tmp_path / "keys.yaml", "t") for _ in range(20)}
    assert 20 == len(made)
    assert {len(PREFIX) + KEY_BYTES * 4 // 3 + 1} == {len(key) for key in made}
    assert 256 <= KEY_BYTES * 8


def test_a_key_made_is_one_that_the_gateway_knows(config: Path) -> None:
    plain = keys("create", "search", config=config).stdout.strip()
    trusted = keys("create", "nightly", "--trusted", config=config).stdout.strip()
    settings = load_settings(config)
    settings.check()
    digests = {sha256(key.encode()).hexdigest(): name for key, name in ((plain, "search"), (trusted, "nightly"))}
    assert digests == {digest: tenant.id for digest, tenant in settings.key_digests()}
    assert [[], [sha256(trusted.encode()).hexdigest()]] == [t.trusted_keys_sha256 for t in settings.tenants]


def test_a_revoked_key_is_no_longer_known_and_the_others_are(config: Path) -> None:
    gone, stays = (keys("create", "search", config=config).stdout.strip() for _ in range(2))
    assert 0 == keys("revoke", sha256(gone.encode()).hexdigest()[:12], config=config).exit_code
    known = [digest for digest, _ in load_settings(config).key_digests()]
    assert [sha256(stays.encode()).hexdigest()] == known


def test_the_list_tells_keys_apart_and_nothing_of_them(config: Path) -> None:
    keys("create", "search", config=config)
    keys("create", "nightly", "--trusted", config=config)
    first, second = (line.split() for line in keys("list", config=config).stdout.splitlines())
    kept = read_keys(config.parent / "keys.yaml")
    assert [kept[0].sha256[:12], kept[0].created, "search"] == first
    assert [kept[1].sha256[:12], kept[1].created, "nightly", "trusted"] == second


def test_the_file_is_its_owners_alone_and_keeps_another_mode(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    create_key(path, "t")
    assert 0o600 == stat.S_IMODE(path.stat().st_mode)
    path.chmod(0o640)
    create_key(path, "t")
    assert 0o640 == stat.S_IMODE(path.stat().st_mode)
    assert ["keys.yaml"] == [each.name for each in tmp_path.iterdir()]


def test_a_link_to_the_file_stays_one(tmp_path: Path) -> None:
    link = tmp_path / "keys.yaml"
    (tmp_path / "elsewhere").mkdir()
    link.symlink_to(tmp_path / "elsewhere" / "keys.yaml")
    create_key(link, "t")
    assert (True, 1) == (link.is_symlink(), len(read_keys(link)))


def test_keys_made_at_the_same_time_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "keys.yaml"
    with ThreadPoolExecutor(8) as threads:
        made = set(threads.map(lambda _: create_key(path, "t"), range(24)))
    assert {sha256(key.encode()).hexdigest() for key in made} == {key.sha256 for key in read_keys(path)}


@pytest.mark.parametrize("begins", ["", "ffff"])
def test_only_one_key_is_revoked_at_a_time(tmp_path: Path, begins: str) -> None:
    path = tmp_path / "keys.yaml"
    path.write_text(
        "keys: [{sha256: aa, tenant: t, created: '2026-01-01T00:00:00Z'},"
        "{sha256: ab, tenant: t, created: '2026-01-01T00:00:00Z'}]"
    )
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="not one"):
        revoke_key(path, begins)
    assert before == path.read_bytes()


def test_with_a_keys_file_calls_need_a_key_although_there_is_none_yet(config: Path) -> None:
    assert load_settings(config).keyed
    assert not Settings().keyed


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("keys: [{sha256: a", "not valid YAML"),
        ("keys: [{sha256: aa, tenant: nobody, created: x}]", "nobody"),
        ("keys: [{tenant: search, created: x}]", "sha256"),
        ("keys: [{sha256: aa, tenant: search, created: x, admin: true}]", "admin"),
    ],
)
def test_a_wrong_keys_file_is_refused_with_its_name(config: Path, text: str, named: str) -> None:
    (config.parent / "keys.yaml").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_settings(config)
    assert ("keys.yaml" in str(caught.value), named in str(caught.value)) == (True, True)


def test_no_key_is_made_for_a_tenant_that_is_not_configured(config: Path) -> None:
    made = keys("create", "serach", config=config)
    assert isinstance(made.exception, ConfigError)
    assert "search, nightly" in str(made.exception)
    assert not (config.parent / "keys.yaml").exists()


def test_without_a_place_for_keys_it_is_said_how_to_name_one(config: Path) -> None:
    config.write_text("tenants: [{id: search}]")
    assert "keys_file: keys.yaml" in str(keys("create", "search", config=config).exception)
