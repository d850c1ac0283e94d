"""How honest the classifiers are: confusion matrices on labelled prompts, and what categories tell of real lengths.

    python benchmarks/classification.py [--data DIR] [--json FILE]

Labelled prompts: 200 of our own in `tests/data/labelled_prompts.tsv`, 40 of each category, in English, German,
Spanish, French and a few others. The first of each pair of lines was in sight while the rules were made; the second
was held out. No classifier learns meanwhile.

Real prompts, if the folder is there: for each set and model the share of the variance of log answer lengths that
lies between categories (eta squared, corrected for the number of categories as epsilon squared: 0 if they tell
nothing), and the share of prompts that were told no category. A classifier that learns is asked about every prompt
before it has learnt from it, in an order drawn with seed 1. No time is measured: figures are the same everywhere.
"""

import argparse
import csv
import gzip
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from math import log
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any, NamedTuple

from driftsched.estimators import create_classifier
from driftsched.estimators.categories import CATEGORIES, OTHER

ROOT = Path(__file__).parent.parent
LABELLED = ROOT / "tests" / "data" / "labelled_prompts.tsv"
DATA = ROOT.parent / "shared" / "data" / "text"
ARMS: Mapping[str, tuple[str, dict[str, object]]] = {
    "keywords": ("keywords", {}),
    "rules, no reassignment": ("rules", {"reassign": False}),
    "rules": ("rules", {}),
}
"""What is compared: classifier and options."""
SHOWN = (*CATEGORIES, OTHER)
HEAD_CHARS = 4096
"""What the gateway keeps of a prompt."""


class Labelled(NamedTuple):
    category: str
    prompt: str


class Answer(NamedTuple):
    """How long a model's answer to a prompt was."""

    of: str
    """Set and model."""
    prompt_id: tuple[str, str]
    log_tokens: float


def main() -> None:
    arguments = _arguments()
    found: dict[str, Any] = {"labelled": {}, "real": {}}
    pairs = read_labelled(LABELLED)
    for half, rows in (("seen while the rules were made", pairs[0::2]), ("held out", pairs[1::2])):
        for name in ("keywords", "rules"):
            matrix = confusion(name, rows)
            right = sum(matrix[category, category] for category in SHOWN)
            print(f"\n{name}, {half}: {right} of {len(rows)}\n{_table(matrix)}")
            cells = {f"{label} as {given}": count for (label, given), count in sorted(matrix.items())}
            found["labelled"][f"{name}, {half}"] = {"right": right, "of": len(rows), **cells}
    if arguments.data.is_dir():
        found["real"] = _real(arguments.data)
    else:
        print(f"\nno real prompts: {arguments.data} is not there")
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=DATA, help="folder with prompts_*.jsonl.gz and lengths_*.csv.gz"
    )
    parser.add_argument("--json", type=Path)
    return parser.parse_args()


def read_labelled(path: Path) -> list[Labelled]:
    lines = path.read_text(encoding="utf-8").splitlines()
    pairs = (line.split("\t") for line in lines)
    return [Labelled(category, prompt.replace("\\n", "\n")) for category, prompt in pairs]


def confusion(name: str, rows: Iterable[Labelled]) -> Counter[tuple[str, str]]:
    """How many prompts of each label (first) were taken for which category (second)."""
    classifier = create_classifier(name)
    return Counter((label, classifier.classify(prompt)) for label, prompt in rows)


def _table(matrix: Mapping[tuple[str, str], int]) -> str:
    lines = ["| is \\ taken for | " + " | ".join(SHOWN) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for label in SHOWN:
        cells = (str(matrix[label, given] or "") for given in SHOWN)
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _real(folder: Path) -> dict[str, Any]:
    prompts = dict(_read_prompts(folder))
    answers = list(_read_answers(folder))
    categories = {arm: _classify_all(arm, prompts) for arm in ARMS}
    found: dict[str, Any] = {"eta_squared": {}, "untold": {}}
    print("\nshare of the variance of log lengths between categories\n| set, model | " + " | ".join(ARMS) + " |")
    print("|---" * (len(ARMS) + 1) + "|")
    for of in dict.fromkeys(answer.of for answer in answers):
        mine = [answer for answer in answers if answer.of == of]
        shares = {arm: explained(mine, categories[arm]) for arm in ARMS}
        found["eta_squared"][of] = shares
        print(f"| {of} | " + " | ".join(f"{share:.3f}" for share in shares.values()) + " |")
    print("\nshare of prompts that were told no category\n| set | " + " | ".join(ARMS) + " |")
    for name in dict.fromkeys(prompt_id[0] for prompt_id in prompts):
        ids = [prompt_id for prompt_id in prompts if prompt_id[0] == name]
        untold = {arm: fmean(categories[arm][each] == OTHER for each in ids) for arm in ARMS}
        found["untold"][name] = untold
        print(f"| {name}, {len(ids)} | " + " | ".join(f"{share:.0%}" for share in untold.values()) + " |")
    return found


def _read_prompts(folder: Path) -> Iterator[tuple[tuple[str, str], str]]:
    for path in sorted(folder.glob("prompts_*.jsonl.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for line in lines:
                row = json.loads(line)
                yield (row["set"], row["prompt_id"]), row["prompt"][:HEAD_CHARS]


def _read_answers(folder: Path) -> Iterator[Answer]:
    for path in sorted(folder.glob("lengths_*.csv.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as lines:
            for row in csv.DictReader(lines):
                tokens = max(1, int(row["output_tokens"]))
                yield Answer(f"{row['set']}, {row['model']}", (row["set"], row["prompt_id"]), log(tokens))


def _classify_all(arm: str, prompts: Mapping[tuple[str, str], str]) -> dict[tuple[str, str], str]:
    """The category of every prompt, each set by itself."""
    found = {}
    for name in dict.fromkeys(prompt_id[0] for prompt_id in prompts):
        ids = [prompt_id for prompt_id in prompts if prompt_id[0] == name]
        Random(1).shuffle(ids)
        kind, options = ARMS[arm]
        classifier = create_classifier(kind, **options)
        for prompt_id in ids:
            found[prompt_id] = classifier.classify(prompts[prompt_id])
            classifier.learn(prompts[prompt_id])
    return found


def explained(answers: Sequence[Answer], categories: Mapping[tuple[str, str], str]) -> float:
    """Epsilon squared: the share of the variance that lies between categories, less what chance would put there."""
    groups: defaultdict[str, list[float]] = defaultdict(list)
    for answer in answers:
        groups[categories[answer.prompt_id]].append(answer.log_tokens)
    total = _squares([answer.log_tokens for answer in answers])
    within = sum(map(_squares, groups.values()))
    by_chance = (len(groups) - 1) * within / (len(answers) - len(groups))
    return (total - within - by_chance) / total


def _squares(values: Sequence[float]) -> float:
    mean = fmean(values)
    return sum((value - mean) ** 2 for value in values)


if __name__ == "__main__":
    main()
