"""What a live run sends: rows of a trace made into requests with words in them, and the order of the blocks."""

from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import NamedTuple

from msgspec.structs import replace

from driftsched.bench.load import Shot
from driftsched.bench.prompts import TEMPLATES, TOPICS, draw_prompt
from driftsched.sim.trace import Row
from driftsched.sim.workloads import PROMPT_TOKENS_PER_WORD

WARMUP = "warmup"
"""Phase of the requests that are sent but not counted."""

_PADDING = (
    "A note on {topic}: the figures of last year were lower than expected, and nobody could say why.",
    "As for {topic}, two towns went their own way and came back to the old rules within a decade.",
    "People who work with {topic} say that winters are the hard part and that spring brings relief.",
    "The budget for {topic} was cut once, restored a year later, and has grown slowly ever since.",
    "Visitors often ask about {topic}, and the answer depends on whom they happen to meet first.",
)
"""Sentences without the words by which kinds of request are told apart."""


class Setup(NamedTuple):
    """What a server is run with: what is compared."""

    policy: str
    estimator: str = "unknown"
    variant: str = "base"
    """A word for what else differs, as in `driftsched.sim.summary.Arm`."""


@dataclass(frozen=True, slots=True)
class Block:
    """One stretch of load on one setup."""

    setup: Setup
    seed: int
    """Blocks of the same seed send the same requests."""


def parse_setup(text: str, estimator: str) -> Setup:
    """`sjf+ema` is a policy with an estimator of its own; `sjf` alone takes `estimator`."""
    policy, plus, own = text.partition("+")
    return Setup(policy.strip(), own.strip() if plus else estimator)


def interleaved(setups: Sequence[Setup], seeds: Sequence[int], order_seed: int) -> list[Block]:
    """Every setup once for each seed, in random order within the seed.

    A machine that grows slower over the hours then slows all setups alike, and a difference between two of them in
    one seed is taken at about the same time.
    """
    random = Random(f"{order_seed}:blocks")
    blocks = []
    for seed in seeds:
        order = list(setups)
        random.shuffle(order)
        blocks += [Block(setup, seed) for setup in order]
    return blocks


def with_warmup(rows: Sequence[Row], requests: int) -> list[Row]:
    """The rows, the first `requests` of them labelled as warm-up."""
    return [replace(row, phase=WARMUP) if number < requests else row for number, row in enumerate(rows)]


def shots_of(
    rows: Sequence[Row], seed: int, *, impose_lengths: bool = False, max_tokens: int | None = None
) -> list[Shot]:
    """Requests with prompts of about the length that the rows say.

    With `impose_lengths` each asks for as many tokens as its row has (to be sent with `ignore_eos`); else the row's
    own limit holds. No request asks for more than `max_tokens`.
    """
    random = Random(f"{seed}:prompts")
    return [_shot(row, number, random, impose_lengths, max_tokens) for number, row in enumerate(rows)]


def _shot(row: Row, number: int, random: Random, impose_lengths: bool, most: int | None) -> Shot:
    limits = [limit for limit in (row.completion_tokens if impose_lengths else row.max_tokens, most) if limit]
    prompt = row.prompt or padded_prompt(row.category, row.prompt_tokens, random)
    messages = ({"role": "user", "content": prompt},)
    return Shot(row.at, row.tenant, row.tier.label, row.category, messages, min(limits, default=None), seed=number)


def padded_prompt(category: str, prompt_tokens: int, random: Random) -> str:
    """A question of that category, followed by as much to read as makes it about `prompt_tokens` long.

    The question comes first, and no two prompts share a long beginning: an engine's prefix cache finds nothing that
    the workload did not mean it to find. A category without wording of its own asks like `short_qa`.
    """
    words = draw_prompt(category if category in TEMPLATES else "short_qa", random).split()
    wanted = round(prompt_tokens / PROMPT_TOKENS_PER_WORD)
    asked = len(words)
    while len(words) < wanted:
        words += random.choice(_PADDING).format(topic=random.choice(TOPICS)).split()
    return " ".join(words[: max(asked, wanted)])
