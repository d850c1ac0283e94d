"""A simulated engine from plain settings: the composition behind `driftsched mock`."""

from collections.abc import Sequence

from driftsched.engines.lengths import LengthLaw, get_length_profile, parse_drift
from driftsched.engines.model import BatchModel, Mode
from driftsched.engines.presets import get_hardware
from driftsched.engines.simulated import SimulatedEngine
from driftsched.estimators.categories import KeywordClassifier


def simulated_engine(
    *,
    profile: str = "demo",
    hardware: str = "l4-qwen1.5-1.8b",
    mode: Mode = "continuous",
    slots: int = 32,
    speed: float = 1.0,
    drifts: Sequence[str] = (),
    seed: int = 1,
) -> SimulatedEngine:
    """An engine on the wall clock, `speed` simulated seconds a second. Raises `ConfigError`."""
    law = get_length_profile(profile)
    lengths = LengthLaw(law.means, law.cv, seed, [parse_drift(text) for text in drifts])
    model = BatchModel(get_hardware(hardware), mode=mode, max_num_seqs=slots)
    return SimulatedEngine(model, lengths, KeywordClassifier().classify, speed=speed)
