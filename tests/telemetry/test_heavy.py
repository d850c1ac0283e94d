from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from driftsched.telemetry.heavy import HeavyHitters

STREAMS = st.lists(st.tuples(st.integers(0, 30), st.integers(0, 1000)), max_size=300)


@given(STREAMS, st.integers(1, 8))
def test_no_sum_is_ever_too_much_or_too_little_by_more_than_the_bound(
    stream: list[tuple[int, int]], size: int
) -> None:
    heavy: HeavyHitters[int] = HeavyHitters(size)
    truth: Counter[int] = Counter()
    for key, amount in stream:
        said = heavy.add(key, amount)
        truth[key] += amount
        slack = truth.total() / (size + 1)
        assert said == heavy[key]
        assert all(truth[k] - slack - 1e-6 <= heavy[k] <= truth[k] for k in truth)


@given(STREAMS, st.integers(1, 8))
def test_it_never_holds_more_than_twice_its_size(stream: list[tuple[int, int]], size: int) -> None:
    heavy: HeavyHitters[int] = HeavyHitters(size)
    for key, amount in stream:
        heavy.add(key, amount)
        assert len(heavy) <= 2 * size


def test_the_past_can_be_made_to_count_for_less() -> None:
    heavy: HeavyHitters[str] = HeavyHitters(2)
    heavy.add("old", 80)
    heavy.decay(0.25)
    heavy.add("new", 30)
    assert (20, 30) == (heavy["old"], heavy["new"])


def test_whoever_is_forgotten_again_and_again_is_noticed_in_the_end() -> None:
    heavy: HeavyHitters[str] = HeavyHitters(1)
    for n in range(9):
        for key, amount in ("large", 5 if n == 0 else 0), ("steady", 4), (f"small-{n}", 1):
            heavy.add(key, amount)
    assert heavy["steady"] > heavy["large"]
