"""The queues under test: a new backend is one more way to make one here."""

from collections.abc import Callable

import pytest

from driftsched.queues.memory import MemoryQueue
from support.queues import Accounts

BACKENDS: dict[str, Callable[[int], Accounts]] = {"memory": MemoryQueue}


@pytest.fixture(params=sorted(BACKENDS))
def make_queue(request: pytest.FixtureRequest) -> Callable[[int], Accounts]:
    """Makes an empty queue with so many slots."""
    return BACKENDS[request.param]
