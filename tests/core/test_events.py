from dataclasses import FrozenInstanceError, fields, is_dataclass
from typing import get_args

import pytest

from driftsched.core.events import Dispatched, Event, Rejected
from driftsched.core.model import Estimate, Ticket
from support.scheduling import request_at

KINDS = get_args(Event)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_every_event_says_when_it_happened_first_and_is_documented(kind: type) -> None:
    assert is_dataclass(kind)
    assert "at" == fields(kind)[0].name
    assert kind.__doc__


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
def test_no_listener_can_put_more_into_an_event_than_it_says(kind: type) -> None:
    assert is_dataclass(kind)
    assert tuple(field.name for field in fields(kind)) == kind.__slots__  # type: ignore[attr-defined]


def test_no_listener_can_change_what_the_next_one_sees() -> None:
    event = Rejected(1.0, request_at(), "queue_full", 1.0)
    with pytest.raises(FrozenInstanceError):
        event.reason = "other"  # type: ignore[misc]


def test_the_queue_time_is_from_arrival_to_dispatch() -> None:
    ticket = Ticket(request_at(2.0), Estimate(1, 1, 1, 1), seq=0, band=0, flow="f", rank=0.0, charge=0.0)
    assert 3.5 == Dispatched(5.5, ticket, why="smallest_rank").queue_seconds
