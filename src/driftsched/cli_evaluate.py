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
    inflight: Annotated[
        float, typer.Option(min=0.001, help="Requests served at once, for data without arrived_at.")
    ] = 32,
    seconds_per_token: Annotated[
        float, typer.Option(min=0, help="An answer takes so long per token: its length is learnt when it ends.")
    ] = 0.03,
    first_token_seconds: Annotated[float, typer.Option(min=0.001, help="And so long until its first token.")] = 0.2,
    json: Annotated[Path | None, typer.Option(help="File for the results.")] = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="No progress on standard error.")] = False,
) -> None:
    """Judge estimators on recorded requests: each predicted when it comes, learnt when it would have finished.

    Columns: model, completion_tokens, and where known prompt or messages, prompt_tokens, max_tokens, finish_reason,
    tenant, session, arrived_at. Prints errors in tokens, order (Kendall tau), quantiles and their coverage, and the
    cost of each call.

    **Example**

        driftsched evaluate requests.jsonl.gz --warmup 500 --json scores.json
    """
    from driftsched import evaluating
    from driftsched.evaluation.stream import Pace

    evaluating.run_evaluate(
        data,
        estimator,
        warmup=warmup,
        pace=Pace(first_token_seconds, seconds_per_token, inflight),
        json=json,
        quiet=quiet,
    )
