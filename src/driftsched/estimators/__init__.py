"""How long an answer and a prompt will be: predicted at admission, learnt at completion.

A third party adds an estimator, a token counter or a classifier by an entry point, in the group
`driftsched.estimators`, `driftsched.counters` or `driftsched.classifiers`, that names a class; its constructor's
keyword arguments are its options.
"""

from driftsched.core.protocols import Estimator
from driftsched.core.registry import Registry
from driftsched.estimators.describe import Classifier
from driftsched.estimators.tokens import TokenCounter

ESTIMATORS: Registry[Estimator] = Registry(
    "estimator",
    {
        "static": "driftsched.estimators.static:Static",
        "ema": "driftsched.estimators.ema:Ema",
        "calibrated": "driftsched.estimators.calibrated:Calibrated",
        "adaptive": "driftsched.estimators.adaptive:Adaptive",
    },
    entry_point_group="driftsched.estimators",
)

COUNTERS: Registry[TokenCounter] = Registry(
    "token counter",
    {
        "whitespace": "driftsched.estimators.tokens:WhitespaceCounter",
        "bytes": "driftsched.estimators.tokens:BytesCounter",
        "tokenizer": "driftsched.estimators.tokens:TokenizerCounter",
    },
    entry_point_group="driftsched.counters",
)

CLASSIFIERS: Registry[Classifier] = Registry(
    "classifier",
    {
        "keywords": "driftsched.estimators.categories:KeywordClassifier",
        "rules": "driftsched.estimators.rules:Rules",
    },
    entry_point_group="driftsched.classifiers",
)

DEFAULT_ESTIMATOR = "adaptive"
DEFAULT_COUNTER = "bytes"
DEFAULT_CLASSIFIER = "rules"


def create_estimator(name: str, **options: object) -> Estimator:
    """The estimator called `name`. Raises `ConfigError` for an unknown name or option, naming the known ones."""
    return ESTIMATORS.create(name, **options)


def create_counter(name: str, **options: object) -> TokenCounter:
    """The counter called `name`. Raises `ConfigError` for an unknown name or option, naming the known ones."""
    return COUNTERS.create(name, **options)


def create_classifier(name: str, **options: object) -> Classifier:
    """The classifier called `name`. Raises `ConfigError` for an unknown name or option, naming the known ones."""
    return CLASSIFIERS.create(name, **options)
