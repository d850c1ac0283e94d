import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.errors import EngineError
from driftsched.engines.retries import RetryBudget, may_go_elsewhere


@given(
    share=st.floats(0.0, 1.0),
    burst=st.floats(0.0, 20.0),
    wishes=st.lists(st.integers(0, 3), max_size=100),
)
def test_retries_are_never_more_than_their_share_and_what_was_saved(
    share: float, burst: float, wishes: list[int]
) -> None:
    budget = RetryBudget(share, burst)
    num_retries = 0
    for num_requests, wish in enumerate(wishes, start=1):
        budget.deposit()
        num_retries += sum(budget.withdraw() for _ in range(wish))
        assert num_retries <= burst + share * num_requests + 1e-9


def test_what_is_not_used_is_saved_up_to_a_bound() -> None:
    budget = RetryBudget(share=0.5, burst=2.0)
    for _ in range(100):
        budget.deposit()
    assert [True, True, False] == [budget.withdraw() for _ in range(3)]


@pytest.mark.parametrize(
    ("kind", "num_broken", "expected"),
    [
        ("engine_unreachable", 0, True),
        ("engine_busy", 0, True),
        ("engine_unreachable", 5, True),
        ("broken_stream", 1, True),
        ("broken_stream", 2, False),
        ("engine_timeout", 0, False),
        ("engine_rejected", 0, False),
        ("engine_error", 0, False),
        ("garbage", 0, False),
    ],
)
def test_what_an_engine_may_have_died_of_is_sent_to_one_other_and_no_more(
    kind: str, num_broken: int, expected: bool
) -> None:
    assert expected == may_go_elsewhere(EngineError(503, kind, "no"), num_broken)
