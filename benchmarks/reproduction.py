"""How far the reproduction of the DriftSched paper hangs on constants that the paper does not print.

    python benchmarks/reproduction.py [--seeds 5]

The paper's experiment (`driftsched reproduce`) with one constant changed at a time. For each: how many of the 65
times of tables III to VI come out within 10 % and 20 % of the published ones, how far three of them are off, and
the median of the full micro-batches. Takes a few minutes; the figures are the same on every machine.
"""

import argparse
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from driftsched.engines.presets import Hardware, get_hardware
from driftsched.estimators import create_estimator
from driftsched.estimators.categories import KeywordClassifier
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim import trials
from driftsched.sim.reproduce import beside_batch_seconds, beside_times, num_within, run_all
from driftsched.sim.workloads import PaperAnswers

PARTS = trials.PaperParts(create_policy, create_estimator, MemoryQueue, KeywordClassifier().classify)
HARDWARE = get_hardware(trials.HARDWARE)
SHOWN = (("fifo", "e2e_seconds.p50"), ("fifo", "e2e_seconds.p99"), ("sjf", "e2e_seconds.p99"))


def machine(**terms: float) -> Mapping[str, object]:
    changed: Hardware = replace(HARDWARE, **terms)  # type: ignore[arg-type]
    return {"get_hardware": lambda _name: changed}


def answers(
    cap_share: float = trials.CAP_SHARE.value, words: float = trials.WORDS_PER_TOKEN.value
) -> dict[str, object]:
    spread = trials.WORDS_SPREAD.value / words
    return {"_ANSWERS": PaperAnswers(cap_share=cap_share, words_per_token=words, words_cv=spread)}


CHANGES: Mapping[str, Mapping[str, object]] = {
    "nothing": {},
    "host 1 ms": machine(host_ms=1.0),
    "host 3 ms": machine(host_ms=3.0),
    "floor 12.5 ms": machine(floor_ms=12.5),
    "floor 15.5 ms": machine(floor_ms=15.5),
    "kv 750 ns": machine(kv_ns_per_token=750.0),
    "kv 950 ns": machine(kv_ns_per_token=950.0),
    "cap_share 0.9": answers(cap_share=0.9),
    "cap_share 0.7": answers(cap_share=0.7),
    "words_per_token 0.79": answers(words=0.79),
    "words_per_token 0.84": answers(words=0.84),
    "no scan": {"SCAN": replace(trials.SCAN, value=0.0)},
    "every step 20.1 ms": machine(
        host_ms=20.1, floor_ms=0.0, g0_ms=0.0, g_us_per_token=0.0, r_us_per_sequence=0.0, kv_ns_per_token=0.0
    ),
}
"""What is put in the place of constants of `driftsched.sim.trials`, by description."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    seeds = range(1, parser.parse_args().seeds + 1)
    print(f"{'changed':22}  <10 %  <20 %  fifo P50  fifo P99   sjf P99  batch P50")
    for description, constants in CHANGES.items():
        with _replaced(constants):
            results = run_all(seeds, 1, PARTS, variants=[trials.VARIANTS[0]])
        times = beside_times(results)
        off = {(row.policy, row.metric): row.ratio - 1 for row in times}
        shown = "".join(f"{off[figure]:+10.1%}" for figure in SHOWN)
        counts = f"{num_within(times, 0.1):7}{num_within(times, 0.2):7}"
        print(f"{description:22}{counts}{shown}{beside_batch_seconds(results).p50:9.1f} s", flush=True)


@contextmanager
def _replaced(constants: Mapping[str, object]) -> Iterator[None]:
    """Runs in this process see `constants` instead of the module's own."""
    own = {name: getattr(trials, name) for name in constants}
    try:
        _put(constants)
        yield
    finally:
        _put(own)


def _put(constants: Mapping[str, object]) -> None:
    for name, value in constants.items():
        setattr(trials, name, value)
    trials.trace_of.cache_clear()


if __name__ == "__main__":
    main()
