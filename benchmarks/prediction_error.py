"""How far predictions are off: mean absolute error of every estimator, in tokens, on five laws of answer lengths.

    python benchmarks/prediction_error.py

2,000 requests in the mix of the DriftSched paper's calibration phase (40 % short questions, 25 % summaries, 25 %
technical answers, 10 % reports), tiers drawn evenly, prompts of 15 to 30 tokens; each answer is learnt 32 requests
after its prediction. Mean of the seeds 0 to 4, and beside it the share of the error of `static` that is gone. No
time is measured: the figures are the same on every machine.
"""

from collections import deque
from collections.abc import Callable
from math import log
from random import Random
from statistics import fmean

from driftsched.core.model import Request, Tenant, Tier, Usage
from driftsched.core.protocols import Estimator
from driftsched.estimators import create_estimator
from driftsched.estimators.categories import BASE_TOKENS, CATEGORIES

ESTIMATORS = ("static", "ema", "calibrated", "adaptive")
MIX = (40, 25, 25, 10)
NUM_REQUESTS = 2000
DELAY = 32
SEEDS = range(5)

Law = Callable[[Random, float], float]
"""The true length of an answer whose category has this base length."""


def normal(spread: float) -> Law:
    return lambda random, base: base * random.gauss(0.81, 0.81 * spread)


def lognormal(random: Random, base: float) -> float:
    sigma = 0.8
    return base * random.lognormvariate(log(0.81) - sigma**2 / 2, sigma)


def mostly_longer(random: Random, base: float) -> float:
    return base * (2 if random.random() < 0.9 else random.uniform(0.2, 1))


LAWS: dict[str, tuple[Law, bool]] = {
    "0.81 x base, normal, 5 %": (normal(0.05), False),
    "0.81 x base, normal, 10 %": (normal(0.10), False),
    "0.81 x base, normal, 15 %": (normal(0.15), False),
    "mean 0.81 x base, lognormal, sigma 0.8": (lognormal, False),
    "90 % cut off at max_tokens = base": (mostly_longer, True),
}
"""By description: the law, and whether `max_tokens` is the base length."""


def mean_absolute_error(estimator: Estimator, law: Law, capped: bool, seed: int) -> float:
    random = Random(seed)
    unlearnt: deque[tuple[Request, Usage, bool]] = deque()
    errors = []
    for _ in range(NUM_REQUESTS):
        category = random.choices(CATEGORIES, weights=MIX)[0]
        tier = random.choice(list(Tier))
        prompt_tokens = random.randint(15, 30)
        limit = BASE_TOKENS[category] if capped else None
        request = Request(
            "request", Tenant("tenant", tier), tier, "model", 0.0,
            category=category, prompt_tokens=prompt_tokens, max_tokens=limit,
        )  # fmt: skip
        length = max(1, round(law(random, BASE_TOKENS[category])))
        served = min(length, limit or length)
        errors.append(abs(estimator.predict(request).completion_tokens - served))
        unlearnt.append((request, Usage(prompt_tokens, served), limit is None or length < limit))
        if len(unlearnt) > DELAY:
            answered, usage, finished = unlearnt.popleft()
            estimator.learn(answered, usage, finished=finished)
    return fmean(errors)


def main() -> None:
    print(f"{'true length':40}" + "".join(f"{name:>18}" for name in ESTIMATORS))
    for description, (law, capped) in LAWS.items():
        errors = [
            fmean(mean_absolute_error(create_estimator(name), law, capped, seed) for seed in SEEDS)
            for name in ESTIMATORS
        ]
        shares = (f"{error:9.1f} ({1 - error / errors[0]:5.0%})" for error in errors)
        print(f"{description:40}" + "".join(f"{text:>18}" for text in shares))


if __name__ == "__main__":
    main()
