import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.evidence import Evidence, PolicyTimes, Times
from driftsched.core.goals import Bound, Figure, Goal, parse_goal
from driftsched.core.model import Tier


def times(policy: str, p50: float, p99: float, tier: Tier | None = None) -> PolicyTimes:
    made = Times(500, mean=2 * p50, p50=p50, p99=p99, max=2 * p99)
    return PolicyTimes(policy, made, {tier: made} if tier else {})


@pytest.mark.parametrize(
    ("text", "goal"),
    [
        ("p50", Goal(Figure("p50"))),
        ("p99 of premium", Goal(Figure("p99", Tier.PREMIUM))),
        ("p50 while p99 <= 1.2 x fifo", Goal(Figure("p50"), (Bound(Figure("p99"), 1.2, "fifo"),))),
        ("mean while max <= 30 s", Goal(Figure("mean"), (Bound(Figure("max"), 30.0),))),
        (
            "p50 of standard while p99 of batch <= 2 x slack:beta=1.0 and p99 <= 90 s",
            Goal(
                Figure("p50", Tier.STANDARD),
                (Bound(Figure("p99", Tier.BATCH), 2.0, "slack:beta=1"), Bound(Figure("p99"), 90.0)),
            ),
        ),
    ],
)
def test_a_goal_is_read_and_written_again(text: str, goal: Goal) -> None:
    assert goal == parse_goal(text)
    assert goal == parse_goal(str(goal))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "write p50, p99, mean or max"),
        ("p95", "'p95': write p50"),
        ("p50 of everybody", "'p50 of everybody': unknown tier 'everybody'"),
        ("p50 while", "write p50"),
        ("p50 while p99", "'p99': write FIGURE <= NUMBER x POLICY"),
        ("p50 while p99 < 1.2 x fifo", "write FIGURE <= NUMBER x POLICY"),
        ("p50 while p99 <= x fifo", "write FIGURE"),
        ("p50 while p99 <= 0 x fifo", "the number above 0"),
        ("p50 while p99 <= nan s", "the number above 0"),
        ("p50 while p99 <= inf s", "the number above 0"),
        ("p50 while p99 <= 1.2 x fifo:", "write NAME"),
        ("p50 while p99 <= 1 s and", "write FIGURE"),
    ],
)
def test_what_is_not_of_the_form_is_refused_with_the_part_that_is_not(text: str, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint):
        parse_goal(text)


def test_a_bound_is_taken_up_by_what_a_figure_comes_to_beside_another_policy() -> None:
    live, fifo, slack = times("fair", 1.0, 9.0), times("fifo", 2.0, 10.0), times("slack", 1.0, 15.0)
    evidence = Evidence(0.0, 1.0, live, (fifo, slack), measured=live)
    goal = parse_goal("p50 while p99 <= 1.2 x fifo")
    assert (9 / 12, 15 / 12) == (goal.share(live, evidence), goal.share(slack, evidence))
    assert ("fifo",) == goal.policies


def test_seconds_are_those_measured() -> None:
    live, slack = times("fair", 1.0, 10.0), times("slack", 1.0, 20.0)
    evidence = Evidence(0.0, 1.0, live, (slack,), measured=times("fair", 1.0, 15.0))
    assert 20 * 1.5 / 40 == parse_goal("p50 while p99 <= 40 s").share(slack, evidence)


def test_the_largest_share_counts_and_what_cannot_be_told_is_not_told() -> None:
    live = times("fair", 1.0, 10.0, Tier.BATCH)
    evidence = Evidence(0.0, 1.0, live, (), measured=live)
    assert 2.0 == parse_goal("p50 while p99 <= 10 s and p50 <= 0.5 s").share(live, evidence)
    assert 1.0 == parse_goal("p50 while p99 of batch <= 10 s").share(live, evidence)
    assert 0.0 == parse_goal("p50").share(live, evidence)
    for goal in ("p50 while p99 <= 1.2 x fifo", "p50 while p99 of premium <= 3 s"):
        assert parse_goal(goal).share(live, evidence) is None
