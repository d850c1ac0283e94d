"""Step-time coefficients of real machines, each saying how it is known.

One iteration of an engine that processes T tokens (one per decoding sequence, plus prompt chunks) for B sequences,
whose decoding members attend to L context tokens in all, takes

    host + max(floor, g0 + g * T) + r * B + kv * L

`floor` is reading the weights once, `g` the arithmetic of a token, `kv` reading the context of the sequences, `r`
and `host` what is done per sequence and per step outside the kernels. Near saturation an error of 15 % in one term
can become tens of percent of end-to-end time, so compare policies under one preset rather than trust absolute
seconds.
"""

from dataclasses import dataclass
from typing import Literal

from driftsched.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Hardware:
    """One model on one machine: what an iteration costs, and how much context fits."""

    name: str
    host_ms: float
    """Scheduling and launching, per iteration."""
    floor_ms: float
    """The shortest forward pass: reading all weights."""
    g0_ms: float
    g_us_per_token: float
    """Forward pass of a large batch of T tokens: g0 + g * T."""
    r_us_per_sequence: float
    """Sampling and bookkeeping, per sequence and iteration."""
    kv_ns_per_token: float
    """Reading one context token of a decoding sequence."""
    api_ms: float
    """Once per request, before it can be scheduled: HTTP, tokenising, first flush."""
    kv_tokens: int
    """Context tokens that fit in the memory left beside the weights."""
    source: Literal["measured", "fitted", "extrapolated"]
    """How the weakest of the main terms is known."""
    note: str
    """Where each term comes from, and how far to trust it."""

    def step_seconds(self, num_tokens: int, num_seqs: int, context_tokens: int) -> float:
        """Seconds of one iteration over T `num_tokens`, B `num_seqs` and L `context_tokens`, each >= 0."""
        forward_ms = max(self.floor_ms, self.g0_ms + self.g_us_per_token * num_tokens * 1e-3)
        per_sequence_ms = self.r_us_per_sequence * num_seqs * 1e-3
        context_ms = self.kv_ns_per_token * context_tokens * 1e-6
        return (self.host_ms + forward_ms + per_sequence_ms + context_ms) * 1e-3


_L4_NOTE = (
    "floor, r and kv: kernel timings of an L40S scaled by memory bandwidth (864 to 300 GB/s); plausible floor "
    "12.5-15.5 ms, kv 750-950 ns. g: from 55 TFLOPS measured on an L4; plausible 38-52 us. "
)

HARDWARE: dict[str, Hardware] = {
    hardware.name: hardware
    for hardware in (
        Hardware(
            name="l4-qwen1.5-1.8b",
            host_ms=1.0,
            floor_ms=13.6,
            g0_ms=11.0,
            g_us_per_token=44.0,
            r_us_per_sequence=10.0,
            kv_ns_per_token=830.0,
            api_ms=11.0,
            kv_tokens=82_000,
            source="extrapolated",
            note=_L4_NOTE
            + "host: assumed, CUDA graphs. api: fitted on an H100. kv_tokens: computed, 192 KiB a token at 0.90 of "
            "24 GB.",
        ),
        Hardware(
            name="l4-qwen1.5-1.8b-eager",
            host_ms=2.0,
            floor_ms=13.6,
            g0_ms=11.0,
            g_us_per_token=44.0,
            r_us_per_sequence=10.0,
            kv_ns_per_token=830.0,
            api_ms=11.0,
            kv_tokens=57_000,
            source="extrapolated",
            note=_L4_NOTE
            + "host: assumed, without CUDA graphs. api: fitted on an H100. kv_tokens: computed, 192 KiB a token at "
            "0.70 of 24 GB. Nothing was fitted to the DriftSched paper (arXiv:2606.02982), whose micro-batches of "
            "32 last about 10.5 s at the median; this preset gives the same.",
        ),
        Hardware(
            name="a10g-llama3-8b",
            host_ms=1.0,
            floor_ms=32.0,
            g0_ms=16.0,
            g_us_per_token=290.0,
            r_us_per_sequence=15.0,
            kv_ns_per_token=280.0,
            api_ms=11.0,
            kv_tokens=28_600,
            source="extrapolated",
            note="floor, g0, g, r and kv: from kernel timings of an A40 and an L40S, scaled to 600 GB/s and 70 "
            "TFLOPS. host: assumed. api: fitted on an H100. kv_tokens: computed at 0.90 of 24 GB. Not checked "
            "against a run.",
        ),
        Hardware(
            name="a100-llama3-8b",
            host_ms=0.3,
            floor_ms=11.5,
            g0_ms=8.5,
            g_us_per_token=52.7,
            r_us_per_sequence=36.0,
            kv_ns_per_token=75.0,
            api_ms=11.0,
            kv_tokens=446_000,
            source="fitted",
            note="floor, g0, g, r and kv: fitted to published vLLM kernel timings of an A100 80 GB (2-7 % mean "
            "error in decode, 2-5 % in prefill); an independent profile has floor 9.8 ms without the output layer "
            "and g 67 us. host and api: fitted on an H100. kv_tokens: computed at 0.90 of 80 GB.",
        ),
        Hardware(
            name="h100-llama3-8b",
            host_ms=0.3,
            floor_ms=6.3,
            g0_ms=4.0,
            g_us_per_token=16.7,
            r_us_per_sequence=12.0,
            kv_ns_per_token=43.0,
            api_ms=11.0,
            kv_tokens=446_000,
            source="fitted",
            note="floor, g0, g, r and kv: fitted to published vLLM kernel timings (2-7 % mean error in decode, "
            "2-5 % in prefill). host and api: fitted to two public vLLM runs; scaled to Llama-2-7B the same terms "
            "predicted end-to-end time of three other runs within 1 % at moderate load and 42 % too high near "
            "saturation. kv_tokens: computed at 0.90 of 80 GB.",
        ),
    )
}
"""Every preset by its name."""


def get_hardware(name: str) -> Hardware:
    """The preset called `name`. Raises `ConfigError` listing the names if there is none."""
    try:
        return HARDWARE[name]
    except KeyError:
        raise ConfigError(f"unknown hardware {name!r}: use one of {', '.join(HARDWARE)}") from None
