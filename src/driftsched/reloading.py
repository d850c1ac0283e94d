"""The configuration read anew while the gateway serves: on SIGHUP, and when its files have changed.

All of it is read and checked before any of it is used, and then used in one step of the event loop: a request sees
the settings before or after. Files that are wrong leave everything as it was.
"""

import asyncio
import logging
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import msgspec

from driftsched.config import Settings
from driftsched.core.errors import ConfigError
from driftsched.telemetry.reloads import Reloads

_logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.5
"""Between two looks at the files: a change is in force after two at most."""

LIVE_LIMITS = (
    "max_body_bytes",
    "max_waiting",
    "max_waiting_per_tenant",
    "max_waiting_bytes",
    "max_waiting_tokens",
    "max_waiting_tokens_per_tenant",
    "max_waiting_bytes_per_tenant",
    "max_waiting_per_tier",
    "max_waiting_tokens_per_tier",
    "max_waiting_bytes_per_tier",
    "max_queue_seconds",
    "max_stall_seconds",
)
"""What of the limits may change while serving; beside them, tenants and keys may."""

_Print = tuple[int, int, int] | None  # of a file: when and how long it was written, and which one it is


@dataclass(frozen=True, slots=True)
class Source:
    """Where the settings came from."""

    path: Path
    load: Callable[[], Settings]
    """Reads them anew, options of the command line included. Raises `ConfigError`."""


class Reloader:
    """Keeps a running gateway to its files."""

    def __init__(
        self, source: Source, settings: Settings, use: Callable[[Settings], None], reloads: Reloads
    ) -> None:
        """`settings` are those in force, as they were loaded; `use` puts others in force at once, or raises."""
        self._source = source
        self._settings = settings
        self._use = use
        self._reloads = reloads
        self._seen = self._prints()
        self._changing: list[_Print] | None = None
        self._woken = asyncio.Event()

    def wake(self) -> None:
        """Read the files anew, whether they changed or not."""
        self._woken.set()

    async def run(self) -> None:
        """Look at the files from time to time, for ever."""
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), LOOK_SECONDS)
            if self._woken.is_set():
                self._woken.clear()
                await self.reload()
            else:
                await self.look()

    async def look(self) -> None:
        """Read the files anew if they have changed.

        An editor may still be writing the configuration: it is read once it has stayed the same for one look. A
        keys file is replaced as a whole, and a revoked key should stop working soon.
        """
        now = self._prints()
        if now == self._seen:
            self._changing = None
        elif now[0] == self._seen[0] or now == self._changing:
            await self.reload()
        else:
            self._changing = now

    async def reload(self) -> None:
        """Read the files, and put in force what of them may change while serving."""
        self._changing, self._seen = None, self._prints()  # looked at before they are read, not after
        try:
            loaded = await asyncio.to_thread(self._source.load)
            settings, kept = changed(self._settings, loaded)
            self._use(settings)
        except ConfigError as error:
            self._reloads.refused()
            _logger.error("configuration not reloaded, what ran before goes on: %s", error)  # noqa: TRY400
            return
        except Exception:  # whatever a file may do to a parser, the gateway goes on, and looks at it again
            self._reloads.refused()
            _logger.exception("configuration not reloaded, what ran before goes on")
            return
        self._settings = settings
        self._reloads.applied()
        _logger.info("configuration reloaded: %d tenants, %d keys", len(settings.tenants), settings.num_keys)
        if kept:
            _logger.warning("configuration: only a restart changes %s", ", ".join(kept))

    def _files(self) -> list[Path]:
        keys = self._settings.keys_path(self._source.path)
        return [self._source.path, *([keys] if keys else [])]

    def _prints(self) -> list[_Print]:
        return [_print(path) for path in self._files()]


def changed(running: Settings, loaded: Settings) -> tuple[Settings, list[str]]:
    """`running` with what of `loaded` may change while serving, and the paths of what else differs.

    Raises `ConfigError` if `loaded` makes no sense, or would stop asking for keys.
    """
    loaded.check()
    if running.keyed and not loaded.keyed:
        raise ConfigError("tenants: no key is left: only a restart opens a gateway that has asked for keys")
    limits = {name: getattr(loaded.limits, name) for name in LIVE_LIMITS}
    admin = running.admin
    if admin.keys_sha256:  # else the paths of operators do not exist
        admin = msgspec.structs.replace(admin, keys_sha256=loaded.admin.keys_sha256)
    settings = msgspec.structs.replace(
        running,
        tenants=loaded.tenants,
        keys_file=loaded.keys_file,
        limits=msgspec.structs.replace(running.limits, **limits),
        admin=admin,
    )
    return settings, _differences(settings, loaded)


def _differences(one: msgspec.Struct, other: msgspec.Struct, prefix: str = "") -> list[str]:
    """Paths of the fields that differ."""
    paths = []
    for field in msgspec.structs.fields(one):
        mine, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(mine, msgspec.Struct) and isinstance(theirs, msgspec.Struct):
            paths += _differences(mine, theirs, f"{prefix}{field.name}.")
        elif mine != theirs:
            paths.append(prefix + field.name)
    return paths


def _print(path: Path) -> _Print:
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
