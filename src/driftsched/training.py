"""The composition of a training: the data, the gateway's describer, trees, a file."""

import sys
from pathlib import Path

from driftsched import evaluating
from driftsched.core.errors import ConfigError
from driftsched.estimators import DEFAULT_CLASSIFIER, pretrained
from driftsched.evaluation.document import table
from driftsched.evaluation.rows import read_rows
from driftsched.evaluation.stream import Pace
from driftsched.evaluation.training import Settings, Trained, examples_of, train


def run_train(
    path: Path,
    out: Path,
    *,
    holdout: float = 0.2,
    settings: Settings | None = None,
    classifier: str = DEFAULT_CLASSIFIER,
) -> None:
    """Train on a file of recorded requests, print what it brings, write the scorer. Raises `ConfigError`."""
    rows = read_rows(path, lambda line: print(line, file=sys.stderr, flush=True))
    times, requests = evaluating.prepare(rows, Pace(), classifier)
    examples = examples_of(rows, requests, times)
    trained = train(examples, holdout, settings or Settings())
    left_out = f"{examples.num_cut} cut short, {examples.num_early} too early"
    sys.stdout.write(f"{path.name}: {len(rows)} rows, left out {left_out}.\n{text(trained)}")
    try:
        out.write_bytes(pretrained.dump(0.0, trained.trees))
    except OSError as error:
        raise ConfigError(f"--out {out}: {error.strerror or error}") from None
    sys.stdout.write(f"{out}: {len(trained.trees)} trees, trained on all {trained.num_examples}.\n")


def text(trained: Trained) -> str:
    """The errors on what was held out, and what to make of them."""
    lines = [["on the last, held out", "MAE", "log MAE", "tau"]]
    for name, found in (("median of the model", trained.median), ("with the trees", trained.scored)):
        tau = found["kendall_tau"]
        lines.append([name, f"{found['mae']:.1f}", f"{found['log_mae']:.3f}", "-" if tau is None else f"{tau:.3f}"])
    advice = "" if trained.helps else "No better than the median: there is nothing to be gained by using it.\n"
    return f"Trained without the last {trained.num_held_out} of {trained.num_examples}:\n{table(lines)}{advice}"
