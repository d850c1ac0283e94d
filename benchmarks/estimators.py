"""What prediction costs on the way of a request: microseconds per call of estimators, counters and classifiers.

    python benchmarks/estimators.py [--repeats 15] [--tokenizer FILE] [--json FILE]

`predict` and `learn` of every estimator; for prompts of 250 bytes, 1 kB and 4 kB `count` and `learn` of every token
counter, `classify` and `learn` of every classifier, and `describe`, which classifies and counts (by default) as the
gateway does. 200 different prompts of each size take turns. Each figure is the median over the repeats, in
processor time; what the loop around the calls takes is in it.

The tokenizer is `FILE`, a `tokenizer.json`, or one of 8,000 byte-level pieces made from this project's own pages.
Without the extra `tokenizer` it is left out.

`state` is the memory of `calibrated` when it remembers as many pairs of model and category as it ever does, as
`tracemalloc` counts it; the names of the models are in it.
"""

import argparse
import json
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from importlib.util import find_spec
from itertools import starmap
from pathlib import Path
from random import Random
from statistics import median
from time import process_time
from typing import NamedTuple

from driftsched.bench.prompts import draw_prompt
from driftsched.core.model import Request, Tenant, Tier, Usage
from driftsched.estimators import (
    CLASSIFIERS,
    COUNTERS,
    DEFAULT_CLASSIFIER,
    DEFAULT_COUNTER,
    ESTIMATORS,
    create_classifier,
    create_counter,
    create_estimator,
)
from driftsched.estimators.calibrated import MAX_KEYS
from driftsched.estimators.categories import CATEGORIES
from driftsched.estimators.describe import PromptDescriber
from driftsched.sim.conditions import capture_conditions, capture_environment, source_commit

PAGES = Path(__file__).parent.parent / "docs"
PROMPT_BYTES = (250, 1000, 4000)
NUM_PROMPTS = 200
ROUNDS = 2
VOCABULARY = 8000


class Figure(NamedTuple):
    call: str
    of: str
    prompt_bytes: int
    """0 where the prompt's size does not matter."""
    microseconds: float


def main() -> None:
    arguments = _arguments()
    figures = [*_estimators(arguments.repeats), *_counters(arguments), *_describers(arguments.repeats)]
    state_bytes = _calibrated_bytes()
    for figure in figures:
        print(f"{figure.call:10}{figure.of:12}{figure.prompt_bytes or '':>6}{figure.microseconds:9.2f} us")
    print(f"state     calibrated  {state_bytes / 1e3:15.0f} kB")
    conditions = {"commit": source_commit(), **capture_environment(), **capture_conditions()}
    conditions |= {"repeats": arguments.repeats, "tokenizer": str(arguments.tokenizer or "own")}
    print(json.dumps(conditions))
    if arguments.json:
        results = [figure._asdict() for figure in figures]
        document = {"conditions": conditions, "results": results, "calibrated_state_bytes": state_bytes}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--tokenizer", type=Path)
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def _requests(prompt_bytes: int) -> list[Request]:
    """Undescribed requests with different prompts of that many bytes."""
    random = Random(prompt_bytes)
    prompts = (_prompt(prompt_bytes, random) for _ in range(NUM_PROMPTS))
    tiers = (Tier(number % len(Tier)) for number in range(NUM_PROMPTS))
    return [
        Request("request", Tenant("tenant", tier), tier, "model", 0.0, prompt, prompt_bytes)
        for tier, prompt in zip(tiers, prompts, strict=True)
    ]


def _prompt(num_bytes: int, random: Random) -> str:
    text = ""
    while len(text) < num_bytes:
        text += draw_prompt(random.choice(CATEGORIES), random) + " "
    return text[:num_bytes]  # ASCII: a character is a byte


def _answered(requests: Sequence[Request]) -> list[tuple[Request, Usage]]:
    """Each described at random, with what it used."""
    random = Random(1)
    described = (
        replace(request, category=random.choice(CATEGORIES), prompt_tokens=request.prompt_bytes // 4)
        for request in requests
    )
    return [(request, Usage(request.prompt_tokens, random.randrange(20, 800))) for request in described]


def _estimators(repeats: int) -> Iterator[Figure]:
    answered = _answered(_requests(PROMPT_BYTES[0]))
    for name in ESTIMATORS.names():
        estimator = create_estimator(name)

        def learn(request: Request, usage: Usage, learn: Callable[..., object] = estimator.learn) -> None:
            learn(request, usage, finished=True)

        learning = _microseconds(learn, answered, repeats)  # first, so that there is something to predict from
        predicting = _microseconds(estimator.predict, [(request,) for request, _ in answered], repeats)
        yield Figure("predict", name, 0, predicting)
        yield Figure("learn", name, 0, learning)


def _counters(arguments: argparse.Namespace) -> Iterator[Figure]:
    with tempfile.TemporaryDirectory() as folder:
        for name in COUNTERS.names():
            options: dict[str, object] = {}
            if name == "tokenizer":
                if find_spec("tokenizers") is None:
                    continue
                options["path"] = str(arguments.tokenizer or _own_tokenizer(Path(folder)))
            counter = create_counter(name, **options)
            for size in PROMPT_BYTES:
                answered = _answered(_requests(size))
                learning = _microseconds(counter.learn, answered, arguments.repeats)
                counting = _microseconds(counter.count, [(request,) for request, _ in answered], arguments.repeats)
                yield Figure("count", name, size, counting)
                yield Figure("learn", name, size, learning)


def _own_tokenizer(folder: Path) -> Path:
    """A byte-level vocabulary made from the pages of this project."""
    from tokenizers import ByteLevelBPETokenizer

    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train([str(page) for page in sorted(PAGES.rglob("*.md"))], vocab_size=VOCABULARY, show_progress=False)
    path = folder / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def _describers(repeats: int) -> Iterator[Figure]:
    describer = PromptDescriber(create_classifier(DEFAULT_CLASSIFIER), create_counter(DEFAULT_COUNTER))
    for size in PROMPT_BYTES:
        requests = _requests(size)
        prompts = [(request.prompt,) for request in requests]
        for name in CLASSIFIERS.names():
            classifier = create_classifier(name)
            learning = _microseconds(classifier.learn, prompts, repeats)  # first: a guess needs something to go by
            yield Figure("classify", name, size, _microseconds(classifier.classify, prompts, repeats))
            yield Figure("learn", name, size, learning)
        describing = _microseconds(describer.describe, [(request,) for request in requests], repeats)
        yield Figure("describe", DEFAULT_COUNTER, size, describing)


def _microseconds(call: Callable[..., object], arguments: Sequence[tuple[object, ...]], repeats: int) -> float:
    """Processor time of one call with `arguments`: the median over `repeats`."""
    calls = list(arguments) * ROUNDS
    times = []
    for _ in range(repeats):
        started_at = process_time()
        for _ in starmap(call, calls):
            pass
        times.append((process_time() - started_at) / len(calls))
    return median(times) * 1e6


def _calibrated_bytes() -> int:
    estimator = create_estimator("calibrated")
    request, usage = _answered(_requests(PROMPT_BYTES[0]))[0]
    tracemalloc.start()
    for number in range(MAX_KEYS):
        estimator.learn(replace(request, model=f"model-{number}"), usage, finished=True)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return held


if __name__ == "__main__":
    main()
