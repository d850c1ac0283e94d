"""API keys that `driftsched keys` made: in a file of their own, because the configuration is the operator's.

Only the SHA-256 of a key is written down. A key has 256 random bits, so nobody finds it by trying, and a slow hash
as for passwords would only slow down every call.
"""

import fcntl
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from secrets import token_urlsafe
from tempfile import mkstemp

import msgspec
import yaml

from driftsched.core.errors import ConfigError
from driftsched.yamls import read_yaml

PREFIX = "sk-ds-"
"""Of every key made here, so that scanners for leaked secrets can know it."""
KEY_BYTES = 32
SHOWN_DIGITS = 12
"""Of a digest, in lists: 48 bits tell keys apart, and say nothing of the key."""

_HEAD = (
    "# Written by `driftsched keys`, which replaces the whole file. Digests only: no key can be read out of it.\n"
)


class IssuedKey(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One API key."""

    sha256: str
    """Of the key, in 64 lower-case hex digits."""
    tenant: str
    created: str
    """UTC, as in `2026-01-31T12:00:00Z`."""
    trusted: bool = False
    """Whether it may speak for others than its tenant."""


class _KeysFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    keys: list[IssuedKey] = []


def hash_key(key: str) -> str:
    """What stands in files for an API key: its SHA-256, in hex."""
    return sha256(key.encode()).hexdigest()


def read_keys(path: Path) -> list[IssuedKey]:
    """The keys of a file, none if there is no file. Raises `ConfigError` naming the file."""
    if not path.exists():
        return []
    document = read_yaml(path)
    try:
        return msgspec.convert(document or {}, _KeysFile).keys
    except msgspec.ValidationError as error:
        raise ConfigError(f"{path}: {error}") from None


def create_key(path: Path, tenant: str, *, trusted: bool = False) -> str:
    """A new key of the tenant. It is returned, and its digest is in the file. Raises `ConfigError`."""
    key = PREFIX + token_urlsafe(KEY_BYTES)
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    issued = IssuedKey(hash_key(key), tenant, created, trusted)
    _change(path, lambda keys: [*keys, issued])
    return key


def revoke_key(path: Path, digest: str) -> IssuedKey:
    """Take the key whose digest begins so out of the file. Raises `ConfigError` unless that is exactly one."""
    revoked: list[IssuedKey] = []

    def without(keys: Sequence[IssuedKey]) -> list[IssuedKey]:
        revoked.extend(key for key in keys if key.sha256.startswith(digest))
        if len(revoked) != 1:
            raise ConfigError(f"{path}: {len(revoked)} keys have a digest that begins with {digest!r}, not one")
        return [key for key in keys if key not in revoked]

    _change(path, without)
    return revoked[0]


def _change(path: Path, change: Callable[[Sequence[IssuedKey]], Sequence[IssuedKey]]) -> None:
    """Read, change and replace the file, one process at a time. Who reads meanwhile sees it before or after."""
    path = path.resolve()  # a link stays one
    try:
        with _locked(path.parent):
            keys = change(read_keys(path))
            document = {"keys": [msgspec.to_builtins(key) for key in keys]}
            _replace(path, _HEAD + yaml.safe_dump(document, sort_keys=False))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from None


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """The folder is locked and not the file, because the file is replaced."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _replace(path: Path, text: str) -> None:
    """Atomic, and on disk before it counts. A new file is its owner's alone; another keeps its mode."""
    descriptor, name = mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            if path.exists():
                os.fchmod(descriptor, path.stat().st_mode & 0o777)
            file.write(text)
            file.flush()
            os.fsync(descriptor)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
