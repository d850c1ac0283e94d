"""Record anew the figures of the paper's reproduction, after a change that is meant to alter them:

PYTHONPATH=tests python tests/golden/regenerate_reproduction.py
"""

import json
from pathlib import Path

from driftsched.estimators import create_estimator
from driftsched.estimators.categories import KeywordClassifier
from driftsched.policies import create_policy
from driftsched.queues.memory import MemoryQueue
from driftsched.sim.reproduce import Reproduction, reproduce
from driftsched.sim.trials import PaperParts

SEED = 1
PATH = Path(__file__).parent / "reproduce-seed-1.json"
PARTS = PaperParts(create_policy, create_estimator, MemoryQueue, KeywordClassifier().classify)


def figures(reproduction: Reproduction) -> dict[str, float]:
    """Every figure of the report, by a name that says which."""
    return {
        **{f"{row.table} {row.policy} {row.metric}": row.ours.mean for row in reproduction.published},
        "batch p50": reproduction.batch_seconds.p50,
        "batch p99": reproduction.batch_seconds.p99,
        **{f"{row.variant} {row.policy} {row.metric}": row.after.mean for row in reproduction.changes},
        **{f"rho {row.rho} fifo {row.metric}": row.fifo.mean for row in reproduction.loads},
        **{f"rho {row.rho} sjf {row.estimator} {row.metric}": row.sjf.mean for row in reproduction.loads},
    }


if __name__ == "__main__":
    recorded = {name: round(value, 6) for name, value in figures(reproduce([SEED], 1, PARTS)).items()}
    PATH.write_text(json.dumps(recorded, indent=1) + "\n")
