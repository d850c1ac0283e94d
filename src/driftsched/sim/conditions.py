"""What figures depend on beside the experiment itself: software, machine, and the constants of the engine model."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

from driftsched.engines.presets import Hardware


def capture_environment() -> dict[str, Any]:
    """What the figures may depend on beside the experiment itself, and does not change from run to run."""
    return {
        "driftsched": version("driftsched"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "cores": os.cpu_count() or 0,
    }


def capture_conditions() -> dict[str, Any]:
    """What a live run also depends on: how busy and how fast the machine is at this moment."""
    governor = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    return {
        "load_average": list(os.getloadavg()),
        "governor": governor.read_text().strip() if governor.exists() else "unknown",
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return platform.processor() or "unknown"
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def source_commit() -> str:
    """The commit of the source tree this runs from, with `-dirty` if files differ from it; empty of an installed
    package."""
    root = Path(__file__).resolve().parents[3]
    git = shutil.which("git")
    if git is None or not (root / ".git").exists():
        return ""
    command = [git, "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 (no user input)
    return answer.stdout.strip()


def coefficients(hardware: Hardware) -> list[dict[str, Any]]:
    """The constants of an engine model with unit and source, for `scenario["coefficients"]`."""
    values = (
        ("host", hardware.host_ms, "ms"),
        ("floor", hardware.floor_ms, "ms"),
        ("g0", hardware.g0_ms, "ms"),
        ("g", hardware.g_us_per_token, "us/token"),
        ("r", hardware.r_us_per_sequence, "us/sequence"),
        ("kv", hardware.kv_ns_per_token, "ns/token"),
        ("api", hardware.api_ms, "ms/request"),
        ("kv_tokens", hardware.kv_tokens, "tokens"),
    )
    return [{"name": name, "value": value, "unit": unit, "source": hardware.source} for name, value, unit in values]
