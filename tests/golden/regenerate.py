"""Record anew who is served when under each policy, after a change that is meant to alter it:

PYTHONPATH=tests python tests/golden/regenerate.py
"""

from pathlib import Path

from support.scheduling import dispatch_order, simulated_events, workload

SEED = 2606
POLICIES = (
    "aging",
    "boost",
    "composite",
    "edf",
    "fair",
    "fifo",
    "gittins",
    "lag",
    "priority",
    "sjf",
    "slack",
    "vtc",
    "weighted",
)


def golden_path(policy: str) -> Path:
    return Path(__file__).parent / f"{policy}.txt"


def golden_text(policy: str) -> str:
    """Ids in order of service, one a line, when the workload of `SEED` is served under the policy's defaults."""
    return "".join(f"{name}\n" for name in dispatch_order(simulated_events(policy, workload(SEED))))


if __name__ == "__main__":
    for each in POLICIES:
        golden_path(each).write_text(golden_text(each))
