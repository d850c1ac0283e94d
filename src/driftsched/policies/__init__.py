"""Who is next: one discipline per file, each citing its source.

A third party adds one by an entry point in the group `driftsched.policies` that names a class with the four methods
of `driftsched.core.protocols.Policy`; its constructor's keyword arguments are its options.
"""

from driftsched.core.protocols import Policy
from driftsched.core.registry import Registry

POLICIES: Registry[Policy] = Registry(
    "policy",
    {
        "fifo": "driftsched.policies.fifo:Fifo",
        "priority": "driftsched.policies.priority:Priority",
        "weighted": "driftsched.policies.weighted:Weighted",
        "sjf": "driftsched.policies.sjf:Sjf",
        "aging": "driftsched.policies.aging:Aging",
        "slack": "driftsched.policies.slack:Slack",
        "composite": "driftsched.policies.composite:Composite",
        "edf": "driftsched.policies.edf:Edf",
        "boost": "driftsched.policies.boost:Boost",
        "gittins": "driftsched.policies.gittins:Gittins",
        "vtc": "driftsched.policies.vtc:Vtc",
        "lag": "driftsched.policies.lag:Lag",
        "fair": "driftsched.policies.fair:Fair",
    },
    entry_point_group="driftsched.policies",
)

DEFAULT_POLICY = "fair"


def create_policy(name: str, **options: object) -> Policy:
    """The policy called `name`. Raises `ConfigError` for an unknown name or option, naming the known ones."""
    return POLICIES.create(name, **options)
