import asyncio
import os
from pathlib import Path

import pytest

from driftsched.bench.telemetry import GpuSample, gpu_samples, gpu_summary, parse_sample


def test_a_line_of_nvidia_smi_is_a_sample() -> None:
    sample = parse_sample("0, 87, 41234, 612.35, 61, 1980\n", 3.5)
    assert GpuSample(3.5, 0, 87.0, 41234.0, 612.35, 61.0, 1980.0) == sample


def test_what_a_gpu_does_not_say_is_none() -> None:
    sample = parse_sample("1, 12, [N/A], [N/A], 40, 300\n", 0.0)
    assert GpuSample(0.0, 1, 12.0, None, None, 40.0, 300.0) == sample


@pytest.mark.parametrize("line", ["", "NVIDIA-SMI has failed because it couldn't communicate, ...", "0, 1, 2"])
def test_a_complaint_is_no_sample(line: str) -> None:
    assert parse_sample(line, 0.0) is None


def test_the_summary_has_means_and_the_most_memory() -> None:
    samples = [
        GpuSample(0.0, 0, 50.0, 1000.0, 300.0, 60.0, None),
        GpuSample(0.5, 0, 100.0, 3000.0, 500.0, 70.0, None),
    ]
    assert {
        "gpu_utilisation_percent": 75.0,
        "gpu_power_watts": 400.0,
        "gpu_temperature_celsius": 65.0,
        "gpu_memory_mib_max": 3000.0,
    } == gpu_summary(samples)
    assert {} == gpu_summary([])


async def test_without_the_program_there_are_no_samples() -> None:
    async with gpu_samples("no-such-nvidia-smi") as samples:
        assert [] == samples


async def test_samples_come_while_the_program_runs_and_it_ends_with_the_context(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text('#!/bin/sh\necho "0, 5, 10, $$, 30, 210"\nexec sleep 600\n')
    program.chmod(0o755)
    async with asyncio.timeout(20), gpu_samples(str(program)) as samples:
        while not samples:
            await asyncio.sleep(0.01)
        process = int(samples[0].power_watts or 0)  # it gives its own number for the power
        os.kill(process, 0)
    assert [(0, 5.0)] == [(sample.gpu, sample.utilisation_percent) for sample in samples]
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


async def test_a_program_that_ends_at_once_does_no_harm(tmp_path: Path) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho No devices were found\nexit 6\n")
    program.chmod(0o755)
    async with gpu_samples(str(program)) as samples:
        pass
    assert [] == samples
