"""`driftsched evaluate`: how good predictions are on recorded requests."""

from pathlib import Path
from typing import Annotated

import typer


def evaluate(
    data: Annotated[Path, typer.Argument(help="Recorded requests: JSONL or CSV, also .gz.")],
    estimator: Annotated[
        list[str] | None,
        typer.Option(
            help="Name, or name:option=value,...; also `median`, `category_mean` and `oracle`. May be repeated."
        ),
    ] = None,
    warmup: Annotated[int, typer.Option(min=0, help="Leave the first so many rows out of the scores.")] = 0,
    classifier: Annotated[
        str, typer.Option(help="Who tells the category of a prompt: rules, or keywords as in the paper.")
    ] = "rules",
    inflight: Annotated[
        float, typer.Option(min=0.001, help="Requests served at once, for data without arrived_at.")
    ] = 32,
    seconds_per_token: Annotated[
        float, typer.Option(min=0, help="An answer takes so long per token: its length is learnt when it ends.")
    ] = 0.03,
    first_token_seconds: Annotated[float, typer.Option(min=0.001, help="And so long until its first token.")] = 0.2,
    drift: Annotated[
        list[str] | None,
        typer.Option(
            help="AT:FACTOR[:CATEGORY|:model=NAME]: from that share of the rows on lengths change. May be repeated."
        ),
    ] = None,
    ablation: Annotated[
        bool, typer.Option("--ablation", help="Each estimator also with its feedback frozen after the warm-up.")
    ] = False,
    json: Annotated[Path | None, typer.Option(help="File for the results.")] = None,
    html: Annotated[
        Path | None, typer.Option(help="File for a page with plots of calibration and of error over time.")
    ] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
) -> None:
    """Judge estimators on recorded requests: each predicted when it comes, learnt when it would have finished.

    Columns: model, completion_tokens, and where known prompt or messages, prompt_tokens, max_tokens, finish_reason,
    tenant, session, arrived_at. Prints errors in tokens, order (Kendall tau), quantiles and their coverage, and the
    cost of each call.

    **Examples**

        driftsched evaluate requests.jsonl.gz --warmup 500 --json scores.json

        driftsched evaluate requests.jsonl.gz --estimator median --estimator adaptive --drift 0.5:1.6:summary
    """
    from driftsched import evaluating
    from driftsched.evaluation.drift import parse_drift
    from driftsched.evaluation.stream import Pace

    evaluating.run_evaluate(
        data,
        estimator,
        warmup=warmup,
        pace=Pace(first_token_seconds, seconds_per_token, inflight),
        classifier=classifier,
        drifts=[parse_drift(text) for text in drift or []],
        ablation=ablation,
        json=json,
        html=html,
        quiet=quiet,
    )
