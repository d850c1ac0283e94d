"""How well estimators predict real answers: `driftsched evaluate` on public prompts, conversations and traces.

    python benchmarks/estimation.py [--data DIR] [--set TEXT ...] [--estimator NAME ...] [--even]
        [--drift AT:FACTOR[:CATEGORY] ...] [--json FILE]

The data are no part of this repository: DIR holds `text/`, `chat/` and `traces/`, described by its own README.md.
Labels come when an answer would have ended, at 30 ms a token. Traces keep their times; texts, the conversations and
the paper's workload have none, so 32 requests are being served at any time, as for everything with `--even`. The
first half of each stream is the warm-up, the second is scored. What the sets are, each with a fixed seed:

- `alpaca`: 372 prompts to 8 models, interleaved; `alpaca, one at a time: MODEL`: each model's by themselves.
- `arena`: 750 prompts of people to one model. `codegen`, `toolformer`, `gsm8k`: made prompts, of a few templates.
- `all text`: 4,000 of all these, mixed.
- `concise to verbose`: one model whose system prompt changes at half of the stream, unseen. `model swap`: one name
  behind which another model answers from there on.
- `hh`: conversations of several turns without their text, of which only the session is known; `hh, told`: turn and
  length of the last answer as well, as a client tells that repeats the conversation. `mooncake` likewise.
- The other traces have prompt lengths, some have tenants.
- `paper`: the DriftSched paper's workload, answers counted in words as there.
"""

import argparse
import csv
import gzip
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.messages import PROMPT_HEAD_CHARS
from driftsched.core.model import Traits
from driftsched.core.traits import read_traits
from driftsched.evaluating import evaluate, names
from driftsched.evaluation.document import table
from driftsched.evaluation.drift import Drift, parse_drift
from driftsched.evaluation.rows import BYTES_PER_TOKEN, Row
from driftsched.sim.workloads import answer_words, generate, paper

DATA = Path(__file__).parent.parent.parent / "shared" / "data"
SEED = 1
ALPACA_MODELS = (
    "Meta-Llama-3-8B-Instruct",
    "Mixtral-8x7B-Instruct-v0.1",
    "Qwen1.5-7B-Chat",
    "claude-2.1",
    "falcon-7b-instruct",
    "gpt-3.5-turbo-1106",
    "gpt4_1106_preview",
    "vicuna-13b-v1.5",
)
SWAPS = {
    "concise to verbose": ("gpt-3.5-turbo-1106_concise", "gpt-3.5-turbo-1106_verbose"),
    "model swap": ("Meta-Llama-3-8B-Instruct", "falcon-7b-instruct"),
}
TRACES = {
    "azure": "azure2023_conv_first_half",
    "mooncake": "mooncake_conversation_first_half",
    "mooncake synthetic": "mooncake_synthetic",
    "vtc arena": "vtc_arena_first_half",
    "servegen m-small": "servegen_m_small_days2-4",
    "servegen m-large": "servegen_m_large_days1-3",
}
NUM_ALL_TEXT = 4000
ESTIMATORS = ("median", "static", "category_mean", "ema", "calibrated", "adaptive")
ONE_AT_A_TIME = "alpaca, one at a time"


def load_sets(directory: Path = DATA) -> dict[str, list[Row]]:
    """Every set by name, its rows in the order in which they come."""
    texts = _texts(directory / "text")
    alpaca = {model: texts[("alpaca_eval", model)] for _, model in sorted(texts) if ("alpaca_eval", model) in texts}
    sets = {"alpaca": _shuffled(row for model in ALPACA_MODELS for row in alpaca[model])}
    sets |= {f"{ONE_AT_A_TIME}: {model}": _shuffled(alpaca[model]) for model in ALPACA_MODELS}
    for name, of in (("arena", "arena_hard_v20"), ("gsm8k", "gsm8k")):
        sets[name] = _shuffled(row for (part, _), rows in texts.items() if part == of for row in rows)
    sets |= {name: _shuffled(texts[(f"gpteacher {name}", "gpt-4")]) for name in ("codegen", "toolformer")}
    variants = {model for swap in SWAPS.values() for model in swap if model not in ALPACA_MODELS}
    everything = (row for (_, model), rows in texts.items() if model not in variants for row in rows)
    sets["all text"] = _shuffled(everything)[:NUM_ALL_TEXT]
    for name, (before, after) in SWAPS.items():
        rows = _shuffled(alpaca[before], SEED) + _shuffled(alpaca[after], SEED + 1)
        sets[name] = [replace(row, model="model") for row in rows]
    sets |= _conversations(directory / "chat" / "hh_multiturn_lengths.csv.gz")
    for name, stem in TRACES.items():
        sets[name] = _trace(directory / "traces" / f"{stem}.csv.gz")
    sets["mooncake, told"] = _trace(directory / "traces" / f"{TRACES['mooncake']}.csv.gz", told=True)
    sets["paper"] = _paper()
    return sets


def _shuffled(rows: Iterable[Row], seed: int = SEED) -> list[Row]:
    made = list(rows)
    Random(seed).shuffle(made)
    return made


def _texts(directory: Path) -> dict[tuple[str, str], list[Row]]:
    """Rows by set and model; GPTeacher's two kinds of prompt are two sets."""
    made: dict[tuple[str, str], list[Row]] = {}
    for licence in ("cc_by_nc", "open"):
        with gzip.open(directory / f"prompts_{licence}.jsonl.gz", "rt", encoding="utf-8") as lines:
            prompts = {(line["set"], line["prompt_id"]): line for line in map(json.loads, lines)}
        for row in _table(directory / f"lengths_{licence}.csv.gz"):
            prompt = prompts[(row["set"], row["prompt_id"])]
            name = f"gpteacher {row['source']}" if row["set"] == "gpteacher" else row["set"]
            made.setdefault((name, row["model"]), []).append(
                Row(
                    int(row["output_tokens"]),
                    model=row["model"],
                    prompt=prompt["prompt"][:PROMPT_HEAD_CHARS],
                    prompt_bytes=len(prompt["prompt"].encode()),
                    prompt_tokens=prompt["prompt_tokens"],
                    traits=read_traits([("user", prompt["prompt"])], tenant="default"),
                )
            )
    return made


def _conversations(path: Path) -> dict[str, list[Row]]:
    """Each conversation's turns in order, 64 conversations at a time; of the last turn one of the two answers."""
    conversations: dict[str, list[dict[str, str]]] = {}
    for line in _table(path):
        if line["kind"] != "rejected":
            conversations.setdefault(line["conv"], []).append(line)
    waiting = list(conversations.values())
    dice = Random(SEED)
    dice.shuffle(waiting)
    open_now: list[list[dict[str, str]]] = []
    lines: list[dict[str, str]] = []
    while waiting or open_now:
        while waiting and len(open_now) < 64:
            open_now.append(waiting.pop())
        turns = dice.choice(open_now)
        lines.append(turns.pop(0))
        if not turns:
            open_now.remove(turns)
    told = [
        Row(
            int(line["output_tokens"]),
            prompt_tokens=int(line["history_tokens"]) + int(line["prompt_tokens"]),
            prompt_bytes=BYTES_PER_TOKEN * int(line["history_tokens"]) + int(line["prompt_chars"]),
            traits=_turn(line["conv"], line["turn"], line["prev_output_tokens"]),
        )
        for line in lines
    ]
    return {"hh": [replace(row, traits=Traits(session=row.traits.session)) for row in told], "hh, told": told}


def _trace(path: Path, *, told: bool = False) -> list[Row]:
    """`told`: with what a client tells that repeats the conversation, as the trace derives it."""
    return [
        Row(
            int(line["output_tokens"]),
            arrived_at=float(line["arrival_s"]),
            tenant=line.get("tenant") or "default",
            prompt_tokens=int(line["input_tokens"]),
            prompt_bytes=BYTES_PER_TOKEN * int(line["input_tokens"]),
            traits=_turn(line["session"], line["turn"], line["prev_output_tokens"])
            if told
            else Traits(session=line.get("session", "")),
        )
        for line in _table(path)
    ]


def _turn(session: str, turn: str, previous_tokens: str) -> Traits:
    return Traits(session=session, turn=int(turn), previous_bytes=BYTES_PER_TOKEN * max(0, int(previous_tokens)))


def _paper() -> list[Row]:
    """As in the paper's first version answers are counted in words; limits, which are in tokens, are left out."""
    rows = generate(paper(), SEED)
    return [
        Row(
            words,
            tenant=row.tenant,
            model=row.model,
            prompt=row.prompt,
            prompt_bytes=len(row.prompt),
            prompt_tokens=row.prompt_tokens,
            category=row.category,
            traits=read_traits([("user", row.prompt)], tenant=row.tenant),
        )
        for row, words in zip(rows, answer_words(rows, SEED), strict=True)
    ]


def _table(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines))


def even(rows: Sequence[Row]) -> list[Row]:
    """Without their times: 32 are then being served on average."""
    return [replace(row, arrived_at=None) for row in rows]


@dataclass(frozen=True, slots=True)
class Line:
    """What one estimator reached on one set, or on average over several."""

    name: str
    estimator: str
    rows: int
    found: Mapping[str, Any]


_FIGURES = ("mae", "rmse", "log_mae", "bias", "kendall_tau", "pair_accuracy_2x", "predict_us", "learn_us")


def measure(name: str, rows: Sequence[Row], estimators: Sequence[str], drifts: Sequence[Drift] = ()) -> list[Line]:
    """What each estimator reaches on a set. Raises `ConfigError` if none of its rows would drift."""
    document = evaluate(rows, estimators, warmup=len(rows) // 2 if not drifts else 0, drifts=drifts, data=name)
    return [Line(name, estimator, document["rows"], found) for estimator, found in document["estimators"].items()]


def averaged(lines: Sequence[Line]) -> list[Line]:
    """Sets called `name: part` become one: the mean of each figure, the widest range of coverage."""
    groups: dict[tuple[str, str], list[Line]] = {}
    for line in lines:
        groups.setdefault((line.name.partition(":")[0], line.estimator), []).append(line)
    return [
        Line(name, estimator, sum(part.rows for part in parts), _mean([part.found for part in parts]))
        for (name, estimator), parts in groups.items()
    ]


def _mean(parts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for figure in _FIGURES:
        values = [part[figure] for part in parts if part[figure] is not None]
        made[figure] = fmean(values) if values else None
    for figure in ("pinball", "coverage"):
        made[figure] = {name: fmean(part[figure][name] for part in parts) for name in parts[0][figure]}
    made["coverage_range"] = {
        name: {
            "min": min(part["coverage_range"][name]["min"] for part in parts),
            "max": max(part["coverage_range"][name]["max"] for part in parts),
        }
        for name in parts[0]["coverage_range"]
    }
    return made


def text(lines: Sequence[Line]) -> str:
    """The table; errors also beside the running median's, where it was measured."""
    medians = {line.name: line.found["mae"] for line in lines if line.estimator == "median"}
    head = ["set", "rows", "estimator", "MAE", "to median", "RMSE", "tau", "q50", "q80", "lowest..highest"]
    head += ["q90", "lowest..highest", "pinball q90", "predict us", "learn us"]
    body, last = [], ""
    for line in lines:
        found, median = line.found, medians.get(line.name)
        body.append(
            [
                *(("", "") if line.name == last else (line.name, str(line.rows))),
                line.estimator,
                f"{found['mae']:.1f}",
                "-" if not median else f"{found['mae'] / median - 1:+.1%}",
                f"{found['rmse']:.1f}",
                _figure(found["kendall_tau"], 3),
                f"{found['coverage']['q50']:.1%}",
                *(cell for name in ("q80", "q90") for cell in _coverage(found, name)),
                f"{found['pinball']['q90']:.1f}",
                _figure(found["predict_us"], 1),
                _figure(found["learn_us"], 1),
            ]
        )
        last = line.name
    return table([head, *body])


def recoveries(lines: Sequence[Line]) -> str:
    """How each estimator followed each drift on each set: mean absolute log error of what drifted."""
    head = [
        "set",
        "drift",
        "estimator",
        "before",
        "first 30",
        "after 60 finished",
        "without",
        "change",
        "back after",
    ]
    body = []
    for line in lines:
        for found in line.found["drift"]:
            without, after, back = found["without"], found["after"], found["recovered_after"]
            body.append(
                [
                    *(line.name, found["drift"], line.estimator),
                    *(_figure(found[key], 3) for key in ("before", "first", "after", "without")),
                    f"{after / without - 1:+.1%}" if without and after else "-",
                    "-" if back is None else str(back),
                ]
            )
    return table([head, *body])


def _figure(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _coverage(found: Mapping[str, Any], name: str) -> tuple[str, str]:
    seen = found["coverage_range"][name]
    return f"{found['coverage'][name]:.1%}", f"{100 * seen['min']:.1f}..{100 * seen['max']:.1f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=DATA, help="directory of the public data")
    parser.add_argument("--set", action="append", help="only sets whose name contains this; may be repeated")
    parser.add_argument("--estimator", action="append", help="name, or name:option=value; may be repeated")
    parser.add_argument("--even", action="store_true", help="ignore the times of the traces")
    parser.add_argument("--drift", action="append", help="as of `driftsched evaluate`; then nothing is a warm-up")
    parser.add_argument("--json", type=Path, help="file for all figures")
    options = parser.parse_args()
    if not options.data.is_dir():
        sys.exit(f"{options.data}: no such directory: say with --data where the public data are")
    estimators = options.estimator or [name for name in ESTIMATORS if name in names()]
    drifts = [parse_drift(text) for text in options.drift or ()]
    lines = []
    for name, rows in load_sets(options.data).items():
        if not options.set or any(part in name for part in options.set):
            print(name, file=sys.stderr, flush=True)
            try:
                lines += measure(name, even(rows) if options.even else rows, estimators, drifts)
            except ConfigError as error:
                print(f"{name}: {error}", file=sys.stderr)
    print(text(averaged(lines)), end="")
    if drifts:
        print(f"\n{recoveries(lines)}", end="")
    if options.json is not None:
        figures = [
            {"set": line.name, "estimator": line.estimator, "rows": line.rows, **line.found} for line in lines
        ]
        options.json.write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    main()
