"""`driftsched train`: trees for the estimator `adaptive`, from recorded requests."""

from pathlib import Path
from typing import Annotated

import typer


def train(
    data: Annotated[Path, typer.Argument(help="Recorded requests: JSONL or CSV, also .gz.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="File for the scorer.")],
    holdout: Annotated[
        float, typer.Option(help="Share of the requests, the last, that the printed errors are measured on.")
    ] = 0.2,
    trees: Annotated[int, typer.Option(min=1, help="Trees, at most; fewer if more bring nothing.")] = 200,
    leaves: Annotated[int, typer.Option(min=2, max=255, help="Leaves of each tree, at most.")] = 15,
    seed: Annotated[int, typer.Option(min=0, help="Of the figures that each tree may look at.")] = 1,
    classifier: Annotated[
        str, typer.Option(help="Who tells the categories of prompts: the one that the gateway has.")
    ] = "rules",
) -> None:
    """Train the scorer that `adaptive` takes as one more expert, with its option `pretrained`.

    Reads what `driftsched evaluate` reads. The texts of the prompts must be in it: a journal has none. Needs
    `pip install 'driftsched[pretrained]'`; serving with what was trained does not.

    **Example**

        driftsched train requests.jsonl.gz -o scorer.json
    """
    from driftsched import training
    from driftsched.evaluation.training import Settings

    training.run_train(data, out, holdout=holdout, settings=Settings(trees, leaves, seed), classifier=classifier)
