from driftsched.core.evidence import Evidence, PolicyTimes, Times


def test_times_are_mean_nearest_rank_percentiles_and_maximum() -> None:
    assert Times(requests=200, mean=100.5, p50=100, p99=198, max=200) == Times.of(range(200, 0, -1))


def test_no_requests_have_no_times() -> None:
    assert Times(0, 0.0, 0.0, 0.0, 0.0) == Times.of([])


def test_a_policy_is_found_by_its_text_live_or_shadow() -> None:
    live, shadow, measured = (PolicyTimes(name, Times.of([1.0]), {}) for name in ("fair", "sjf", "fair"))
    evidence = Evidence(0.0, 1.0, live, (shadow,), measured)
    assert [live, shadow, None] == [evidence.of(name) for name in ("fair", "sjf", "fifo")]
