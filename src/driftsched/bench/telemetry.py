"""What the GPUs of this machine do during a run, as `nvidia-smi` tells it; nothing where there is none."""

import asyncio
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from statistics import fmean
from time import monotonic

PERIOD_MS = 500
_FIELDS = ("index", "utilization.gpu", "memory.used", "power.draw", "temperature.gpu", "clocks.sm")


@dataclass(frozen=True, slots=True)
class GpuSample:
    """One GPU at one moment. None: this GPU does not say."""

    at: float
    """Monotonic seconds at which the line was read."""
    gpu: int
    utilisation_percent: float | None
    memory_mib: float | None
    power_watts: float | None
    temperature_celsius: float | None
    sm_clock_mhz: float | None


@asynccontextmanager
async def gpu_samples(program: str = "nvidia-smi") -> AsyncIterator[list[GpuSample]]:
    """A list that grows while the context is open; it stays empty if there is no such program."""
    samples: list[GpuSample] = []
    path = shutil.which(program)
    if path is None:
        yield samples
        return
    query = (f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits", f"--loop-ms={PERIOD_MS}")
    process = await asyncio.create_subprocess_exec(path, *query, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL)
    assert process.stdout is not None  # noqa: S101 - a pipe was asked for
    reading = asyncio.create_task(_read(process.stdout, samples))
    try:
        yield samples
    finally:
        with suppress(ProcessLookupError):  # it may have ended by itself, e.g. without a driver
            process.terminate()
        await process.wait()
        await reading


async def _read(lines: asyncio.StreamReader, samples: list[GpuSample]) -> None:
    async for line in lines:
        sample = parse_sample(line.decode(errors="replace"), monotonic())
        if sample is not None:
            samples.append(sample)


def parse_sample(line: str, at: float) -> GpuSample | None:
    """One line of nvidia-smi; None if it is no sample, as when it complains that it finds no driver."""
    fields = [field.strip() for field in line.split(",")]
    if len(fields) != len(_FIELDS) or not fields[0].isdigit():
        return None
    return GpuSample(at, int(fields[0]), *map(_number, fields[1:]))


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:  # "[N/A]"
        return None


def gpu_summary(samples: Sequence[GpuSample]) -> dict[str, float]:
    """Means over time and GPUs, and the largest memory in use; empty without samples, or of what no GPU says."""
    columns = {
        "gpu_utilisation_percent": [sample.utilisation_percent for sample in samples],
        "gpu_power_watts": [sample.power_watts for sample in samples],
        "gpu_temperature_celsius": [sample.temperature_celsius for sample in samples],
        "gpu_sm_clock_mhz": [sample.sm_clock_mhz for sample in samples],
    }
    told = {name: [value for value in values if value is not None] for name, values in columns.items()}
    means = {name: fmean(values) for name, values in told.items() if values}
    memory = [sample.memory_mib for sample in samples if sample.memory_mib is not None]
    return means | ({"gpu_memory_mib_max": max(memory)} if memory else {})
