"""How fast a server is, from the answers to requests that were all sent at once."""

import pytest

from driftsched.bench.capacity import CapacityError, busy_rate, measure_capacity
from driftsched.bench.live import Sending
from driftsched.bench.load import Hit, Shot
from driftsched.bench.processes import running

SHOT = Shot(0.0, "a", "standard", "short_qa", ({"role": "user", "content": "Why?"},), 8, seed=1)


def answer(first: float, last: float) -> Hit:
    return Hit(SHOT, 0.0, first, last, status=200)


def test_answers_one_after_the_other_are_counted_while_there_is_another() -> None:
    one_slot = [answer(number, number + 1.0) for number in range(10)]
    assert busy_rate(one_slot, slots=1) == pytest.approx(1.0)


def test_the_end_when_slots_fall_empty_does_not_count() -> None:
    two_slots = [answer(0.0, 1.0), answer(0.0, 1.0), answer(1.0, 2.0), answer(1.0, 9.0)]
    assert busy_rate(two_slots, slots=2) == pytest.approx((3 + 1 / 8) / 2.0)


def test_what_has_not_begun_by_the_end_counts_nothing() -> None:
    two_slots = [answer(0.0, 2.0), answer(0.0, 2.0), answer(2.0, 4.0), answer(5.0, 6.0)]
    assert busy_rate(two_slots, slots=2) == pytest.approx(3 / 4.0)


def test_fewer_requests_than_slots_tell_nothing() -> None:
    with pytest.raises(ValueError, match="2 requests do not keep 2 slots busy"):
        busy_rate([answer(0.0, 1.0)] * 2, slots=2)


@pytest.mark.e2e
async def test_a_server_is_asked_for_as_much_as_it_can_do() -> None:
    async with running("mock", "--slots", "2", "--speed", "50", "--port", "0") as url:
        sending = Sending("simulated", temperature=0.0)
        assert await measure_capacity(url, [SHOT] * 12, sending, slots=2) > 0
        with pytest.raises(CapacityError, match="http_404"):
            await measure_capacity(url, [SHOT] * 3, Sending("nobody"), slots=2)
