"""What a scorer trained beforehand is worth to `adaptive`, on the public sets of `benchmarks/estimation.py`.

    python benchmarks/pretrained.py [--data DIR] [--set NAME ...] [--json FILE]

For each set `driftsched train` grows trees on the first half; the second half is judged, labels delayed as in
service. *New*: `adaptive` begins with nothing. *Kept*: it has learnt the first half, without the scorer. Both are
run without and with the scorer from the second half on. *Score us* is what the trees alone take for one request,
median. Needs the extra `pretrained`; the data are no part of this repository.
"""

import argparse
import json
import runpy
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any

from driftsched.core.model import Estimate, Request, Usage
from driftsched.estimators import pretrained
from driftsched.estimators.adaptive import Adaptive
from driftsched.evaluating import prepare
from driftsched.evaluation import scores
from driftsched.evaluation.document import said_of, table
from driftsched.evaluation.rows import Row
from driftsched.evaluation.stream import Pace, run
from driftsched.evaluation.training import Examples, Settings, examples_of, train

ESTIMATION = runpy.run_path(str(Path(__file__).with_name("estimation.py")))
SETS = ("alpaca", "arena", "codegen", "gsm8k", "all text", "hh, told", "mooncake, told", "azure", "vtc arena")


class Restarted:
    """`adaptive` that is saved, and restored with other options, when a certain request comes."""

    def __init__(self, number: int, scorer: str) -> None:
        """`number`: of the request; `scorer`: file of a scorer from then on, none if empty."""
        self._number = number
        self._scorer = scorer
        self._now = Adaptive()

    def predict(self, request: Request) -> Estimate:
        if int(request.id) == self._number:
            restored = Adaptive(pretrained=self._scorer)
            restored.restore(self._now.snapshot())
            self._now = restored
        return self._now.predict(request)

    def revise(self, request: Request, estimate: Estimate) -> Estimate:
        return self._now.revise(request, estimate)

    def learn(self, request: Request, usage: Usage, *, finished: bool, estimate: Estimate | None = None) -> None:
        self._now.learn(request, usage, finished=finished, estimate=estimate)

    def bias(self, request: Request) -> float:
        return self._now.bias(request)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=ESTIMATION["DATA"], help="directory of the public data")
    parser.add_argument("--set", action="append", help=f"may be repeated; default: {', '.join(SETS)}")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"{options.data}: no such directory: say with --data where the public data are")
    sets = ESTIMATION["load_sets"](options.data)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in options.set or SETS:
            print(name, file=sys.stderr, flush=True)
            found[name] = measure(sets[name], Path(folder) / "scorer.json")
    print(text(found), end="")
    if options.json is not None:
        options.json.write_text(json.dumps(found, indent=1) + "\n")


def measure(rows: Sequence[Row], scorer: Path) -> dict[str, Any]:
    """Scores of the second half: by the trees alone, and of `adaptive` new and kept, without and with them."""
    half = len(rows) // 2
    times, requests = prepare(rows[:half], Pace())
    examples = examples_of(rows[:half], requests, times)
    trained = train(examples, 0.2, Settings())
    scorer.write_bytes(pretrained.dump(0.0, trained.trees))
    return {
        "rows": len(rows) - half,
        "trees": len(trained.trees),
        "score_us": microseconds(pretrained.load(scorer), examples),
        "held_out": {"median": trained.median, "with trees": trained.scored},
        **{
            f"{name}{'+' * bool(file)}": judge(estimator, rows[first:], half - first)
            for file in ("", str(scorer))
            for name, estimator, first in (
                ("new", Adaptive(pretrained=file), half),
                ("kept", Restarted(half, file), 0),
            )
        },
    }


def microseconds(scorer: pretrained.Scorer, examples: Examples) -> float:
    taken = []
    for figures in examples.figures:
        start = perf_counter_ns()
        scorer.score(figures)
        taken.append(perf_counter_ns() - start)
    return median(taken) / 1000


def judge(estimator: Any, rows: Sequence[Row], warmup: int) -> dict[str, object]:
    times, requests = prepare(rows, Pace())
    return scores.errors(said_of(run(estimator, rows, requests, times), rows, warmup))


def text(found: dict[str, dict[str, Any]]) -> str:
    head = [
        "set",
        "rows",
        "trees",
        "score us",
        "new MAE",
        "with it",
        "",
        "tau",
        "with it",
        "kept MAE",
        "with it",
        "",
        "tau",
        "with it",
    ]
    body = []
    for name, of in found.items():
        line = [name, str(of["rows"]), str(of["trees"]), f"{of['score_us']:.1f}"]
        for start in ("new", "kept"):
            without, with_it = of[start], of[f"{start}+"]
            line += [
                f"{without['mae']:.1f}",
                f"{with_it['mae']:.1f}",
                f"{with_it['mae'] / without['mae'] - 1:+.1%}",
                f"{without['kendall_tau']:.3f}",
                f"{with_it['kendall_tau']:.3f}",
            ]
        body.append(line)
    return table([head, *body])


if __name__ == "__main__":
    main()
