import gc
from dataclasses import replace
from functools import cache
from math import inf

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.events import Admitted, Event, Evicted, Finished, PolicyChanged, Rejected
from driftsched.core.evidence import Evidence
from driftsched.core.model import Estimate, Request, Tenant, Ticket, Tier, Usage
from driftsched.sim import shadow as module
from driftsched.sim.pace import UNSURE_ANSWERS
from driftsched.sim.shadow import MAX_OPEN_SECONDS, MAX_READY, WARM_UP, Shadow, Terms
from support.shadows import PARTS, Live, arrivals

NUM = 600
BUSY = 3.5
"""Requests per second that are more than the engine can serve."""


@cache
def saturated() -> Live:
    """Served in order of arrival, with more than the engine can do."""
    return Live("fifo", ["sjf", "fair", "slack:beta=0"]).serve(arrivals(NUM, BUSY))


def evidence_of(live: Live) -> Evidence:
    assert live.shadow.evidence is not None
    return live.shadow.evidence


def of(evidence: Evidence, policy: str) -> float:
    found = evidence.of(policy)
    assert found is not None
    return found.times.p50


def test_shortest_first_would_have_given_a_lower_median_than_order_of_arrival() -> None:
    evidence = evidence_of(saturated())
    assert of(evidence, "sjf") < 0.7 * of(evidence, "fifo")


def test_the_live_policy_simulated_is_within_15_percent_of_what_was_measured() -> None:
    evidence = evidence_of(saturated())
    assert pytest.approx(evidence.measured.times.p50, rel=0.15) == evidence.live.times.p50
    assert pytest.approx(evidence.measured.times.p99, rel=0.15) == evidence.live.times.p99


@pytest.mark.parametrize(
    ("hardware", "rate"), [("a100-llama3-8b", 1.5), ("a100-llama3-8b", 4.0), ("a10g-llama3-8b", 1.0)]
)
def test_the_model_follows_engines_that_it_was_told_nothing_of(hardware: str, rate: float) -> None:
    live = Live("fifo", [], hardware=hardware).serve(arrivals(NUM, rate))
    evidence = evidence_of(live)
    assert pytest.approx(evidence.measured.times.p50, rel=0.15) == evidence.live.times.p50


def test_a_shadow_in_the_same_order_as_the_live_policy_has_the_very_same_figures() -> None:
    evidence = evidence_of(saturated())
    same = evidence.of("slack:beta=0")
    assert same is not None
    assert (same.times, same.by_tier) == (evidence.live.times, evidence.live.by_tier)


def test_every_request_is_simulated_once_under_each_policy_and_nothing_is_left() -> None:
    live = saturated()
    assert (NUM, 0) == (live.shadow.num_simulated, live.shadow.num_dropped)
    assert {0} == {arm.simulation.num_open for arm in live.shadow._arms}
    assert ([], {}) == (list(live.shadow._pasts), live.shadow._open)


def test_all_policies_are_compared_on_the_same_requests() -> None:
    evidence = evidence_of(saturated())
    each = [evidence.measured, evidence.live, *evidence.shadows]
    assert 1 == len({(one.times.requests, *((t, x.requests) for t, x in one.by_tier.items())) for one in each})


def test_what_was_measured_is_what_really_happened() -> None:
    live = Live("fifo", ["sjf"], steps_every=0).serve(arrivals(250, 1.0))
    evidence = evidence_of(live)
    assert sorted(live.measured) == sorted(row.measured for row in live.shadow._window.rows)
    assert (250, max(live.measured)) == (evidence.measured.times.requests, evidence.measured.times.max)


def test_it_does_not_matter_how_often_the_shadow_works() -> None:
    often, seldom = (Live("fifo", ["sjf"], steps_every=every).serve(arrivals(300, BUSY)) for every in (7, 500))
    for live in (often, seldom):  # the engine is fitted at other moments, and the order is the same
        assert 300 == len(live.shadow._window.rows)
    assert pytest.approx(of(evidence_of(often), "sjf"), rel=0.2) == of(evidence_of(seldom), "sjf")


def test_the_shadow_never_runs_ahead_of_a_request_whose_length_is_not_known() -> None:
    live = Live("fifo", ["sjf"], steps_every=1)
    furthest: list[bool] = []
    oldest = {}

    def watch(event: Event) -> None:
        if isinstance(event, Admitted):
            oldest[event.ticket.id] = event.at
        elif isinstance(event, Finished):
            del oldest[event.ticket.id]
        if oldest and live.shadow._arms:
            furthest.append(all(arm.simulation._now <= min(oldest.values()) for arm in live.shadow._arms))

    live.scheduler._listeners = (*live.scheduler._listeners, watch)
    live.serve(arrivals(150, BUSY))
    assert {True} == set(furthest)


def test_no_text_and_no_payload_of_a_request_is_held() -> None:
    live = Live("fifo", ["sjf"])
    for arrival in arrivals(80, 50.0):
        live.simulation.arrive(arrival, arrival.request.arrived_at)
    live.let_work()
    held = [past.request for past in live.shadow._pasts]
    assert 80 == len(held)
    assert [("", 0)] * 80 == [(request.prompt, request.payload_bytes) for request in held]
    assert b"never to be held" not in [request.payload for request in held]


def test_the_live_policy_among_the_shadows_is_simulated_once() -> None:
    live = Live("fifo", ["fifo", "sjf", "sjf"]).serve(arrivals(150, 1.0))
    assert ("fifo", ["sjf"]) == (evidence_of(live).live.policy, [s.policy for s in evidence_of(live).shadows])


def test_nothing_is_told_before_there_are_enough_answers() -> None:
    live = Live("fifo", ["sjf"]).serve(arrivals(99, 1.0))
    assert (None, []) == (live.shadow.evidence, live.told)


def test_listeners_are_told_of_each_window_and_one_that_fails_harms_nobody() -> None:
    live = Live("fifo", ["sjf"])

    def fail(evidence: Evidence) -> None:
        raise RuntimeError

    live.shadow._listeners = (fail, *live.shadow._listeners)
    live.serve(arrivals(300, 1.0))
    assert live.told
    assert live.told[-1] is live.shadow.evidence


def test_a_policy_that_does_not_exist_is_refused_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown policy 'fastest'"):
        Shadow("fifo", ["fastest"], slots=lambda: 1, parts=PARTS)


def test_fewer_slots_hold_back_the_simulations_too() -> None:
    live = Live("fifo", [])
    for arrival in arrivals(200, 1.0):
        live.simulation.arrive(arrival, arrival.request.arrived_at)
    live.slots = 3
    live.let_work()
    assert ({3}, {3}) == (
        {arm._engine.max_num_seqs for arm in live.shadow._arms},
        {arm._queue.max_inflight for arm in live.shadow._arms},  # type: ignore[attr-defined]
    )


def test_a_change_of_the_live_policy_starts_new_figures() -> None:
    live = Live("fifo", ["sjf"]).serve(arrivals(150, 1.0))
    live.shadow(PolicyChanged(200.0, "fifo", "fair", "because"))
    live.let_work()
    later = (
        replace(a, request=replace(a.request, id=f"x{a.request.id}", arrived_at=a.request.arrived_at + 1000))
        for a in arrivals(150 + WARM_UP, 1.0)
    )
    live.serve(later)
    evidence = evidence_of(live)
    assert ("fair", {"fifo", "sjf"}) == (evidence.live.policy, {s.policy for s in evidence.shadows})
    assert evidence.started_at > 1000


def test_a_change_of_the_live_policy_is_heard_while_nothing_else_is() -> None:
    live = Live("fifo", ["sjf"])
    live.shadow._deaf = True
    live.shadow(PolicyChanged(200.0, "fifo", "slack:beta=2.0", "because"))
    live.let_work()
    live.let_work()
    assert "slack:beta=2" == live.shadow.live


@pytest.mark.parametrize(
    "terms",
    [Terms(dict.fromkeys(Tier, 60.0), rejects_unattainable=True), Terms(max_inflight_tokens=4000)],
    ids=["promises", "a limit in tokens"],
)
def test_what_else_holds_for_the_gateway_holds_for_the_simulations(terms: Terms) -> None:
    evidence = evidence_of(Live("sjf", ["fifo"], terms=terms).serve(arrivals(NUM, BUSY)))
    assert pytest.approx(evidence.measured.times.p50, rel=0.15) == evidence.live.times.p50
    assert pytest.approx(evidence.measured.times.p99, rel=0.15) == evidence.live.times.p99


# What did not end well


def told(shadow: Shadow, *events: Event) -> None:
    for event in events:
        shadow(event)
    for _ in shadow.steps():
        pass


def ticket(number: int, at: float, max_tokens: int | None = None) -> Ticket:
    request = Request(
        f"r{number}", Tenant("t"), Tier.BATCH, "m", arrived_at=at, prompt_tokens=9, max_tokens=max_tokens
    )
    return Ticket(request, Estimate(70.0, 70.0, 90.0, 100.0), seq=number, band=0, flow="all", rank=at, charge=0.0)


def admitted(one: Ticket) -> Admitted:
    return Admitted(one.request.arrived_at, one, position=1)


def shadow_of_nothing() -> Shadow:
    return Shadow("fifo", ["sjf"], slots=lambda: 4, parts=PARTS)


def test_a_client_that_left_while_its_answer_came_counts_with_what_was_produced() -> None:
    shadow, one = shadow_of_nothing(), ticket(1, 10.0)
    told(shadow, admitted(one), Evicted(14.0, one, "cancelled", Usage(9, 33), dispatched_at=11.0, charge=0.0))
    (past,) = shadow._pasts
    assert (33, inf, 0.0) == (past.tokens, past.request.expires_at, past.account.measured)


@pytest.mark.parametrize(("max_tokens", "expected"), [(None, 70), (20, 20)])
def test_a_client_that_left_while_it_waited_waits_as_long_and_else_gets_the_predicted_length(
    max_tokens: int | None, expected: int
) -> None:
    shadow, one = shadow_of_nothing(), ticket(1, 10.0, max_tokens)
    told(shadow, admitted(one), Evicted(14.0, one, "cancelled", Usage(), dispatched_at=None, charge=0.0))
    (past,) = shadow._pasts
    assert (expected, 14.0) == (past.tokens, past.request.expires_at)


def test_what_was_not_answered_in_full_loads_the_engines_and_is_not_counted() -> None:
    live, at = Live("fifo", ["sjf"]), 0.0
    for number in range(50):
        one = ticket(1000 + number, at := 2.0 * number)
        told(live.shadow, admitted(one), Evicted(at, one, "cancelled", Usage(9, 40), at, charge=0.0))
    later = (
        replace(a, request=replace(a.request, arrived_at=a.request.arrived_at + at)) for a in arrivals(120, 1.0)
    )
    live.serve(later)
    assert (170, 120) == (live.shadow.num_simulated, len(live.shadow._window.rows))


def test_nobody_waits_for_longer_than_its_tier_may_in_the_simulations_either() -> None:
    at_once = dict.fromkeys(Tier, 0.001)  # everybody is overdue on arrival, so that all are served as they came
    live = Live("fifo", ["sjf"], terms=Terms(at_once)).serve(arrivals(200, BUSY))
    sjf = evidence_of(live).of("sjf")
    assert sjf is not None
    assert sjf.times == evidence_of(live).live.times


def test_a_request_that_does_not_end_holds_nobody_up_for_ever() -> None:
    live = Live("fifo", ["sjf"])
    endless = ticket(0, 0.0)
    live.shadow(admitted(endless))
    live.serve(arrivals(100, 1.0))
    assert 0 == live.shadow.num_simulated
    told(live.shadow, admitted(ticket(1, MAX_OPEN_SECONDS + 1.0)))
    assert 101 == live.shadow.num_simulated
    told(live.shadow, Evicted(MAX_OPEN_SECONDS + 2.0, endless, "cancelled", Usage(9, 3), 1.0, charge=0.0))
    assert ({"r1"}, 0) == (set(live.shadow._open), live.shadow._num_ready)


def test_a_shadow_that_cannot_keep_up_leaves_out_whole_stretches_and_says_how_much() -> None:
    shadow = shadow_of_nothing()
    num = MAX_READY + 500
    for number in range(num):
        one = ticket(number, float(number))
        shadow(admitted(one))
        shadow(Evicted(number + 0.5, one, "cancelled", Usage(9, 3), dispatched_at=number + 0.1, charge=0.0))
    told(shadow)
    assert (0, num) == (shadow.num_simulated, shadow.num_dropped)  # no engine is known
    told(shadow, admitted(ticket(num, float(num))))
    assert 1 == len(shadow._pasts)  # it listens again


def test_events_that_nobody_looks_at_do_not_pile_up() -> None:
    shadow = shadow_of_nothing()
    for number in range(module.MAX_EVENTS + 100):
        shadow(admitted(ticket(number, float(number))))
    assert (module.MAX_EVENTS, 100) == (len(shadow._events), shadow.num_dropped)
    told(shadow)
    assert (0, 0, module.MAX_EVENTS + 100) == (len(shadow._events), len(shadow._open), shadow.num_dropped)


def test_after_a_gap_requests_are_counted_once_queues_have_built_up_again() -> None:
    live = Live("fifo", ["sjf"]).serve(arrivals(150, 1.0))
    before = len(live.shadow._window.rows)
    live.shadow._listen_again()
    unsure = live.shadow._pace._num_unsure
    for a in arrivals(WARM_UP + 50, 1.0):
        request = replace(a.request, id=f"x{a.request.id}", arrived_at=a.request.arrived_at + 1000)
        live.simulation.arrive(replace(a, request=request), request.arrived_at)
    live.simulation.finish()
    live.let_work()
    counted = [row for row in live.shadow._window.rows if row.arrived_at > 1000]
    assert 51 >= len(counted) >= 45
    assert (True, UNSURE_ANSWERS) == (before > 0, unsure)


def test_a_closed_shadow_holds_and_hears_nothing() -> None:
    shadow = shadow_of_nothing()
    shadow(admitted(ticket(1, 1.0)))
    shadow.close()
    shadow(admitted(ticket(2, 2.0)))
    assert 0 == len(shadow._events)


def rejected(number: int, at: float, reason: str) -> Rejected:
    return Rejected(at, replace(ticket(number, at).request, payload=b"never to be held"), reason, 1.0)


def test_who_is_turned_away_comes_in_the_simulations_with_the_length_of_the_last_of_its_kind() -> None:
    shadow, one = shadow_of_nothing(), ticket(1, 10.0)
    told(shadow, admitted(one), Finished(14.0, one, Usage(12, 33), "stop", 11.0, 11.5, charge=0.0))
    told(shadow, rejected(2, 15.0, "max_wait_unattainable"), rejected(3, 16.0, "deadline_unattainable"))
    _, *turned_away = shadow._pasts
    assert [("r2", 33, 15.0), ("r3", 33, 16.0)] == [(p.request.id, p.tokens, p.submitted_at) for p in turned_away]
    assert {(False, one.estimate.q90)} == {(p.account.counts, p.account.estimate.q90) for p in turned_away}


def test_who_is_turned_away_for_another_reason_or_before_anything_is_known_of_its_kind_does_not_come() -> None:
    shadow, one = shadow_of_nothing(), ticket(1, 10.0)
    told(shadow, rejected(2, 9.0, "max_wait_unattainable"))
    told(shadow, admitted(one), Finished(14.0, one, Usage(12, 33), "stop", 11.0, 11.5, charge=0.0))
    told(shadow, rejected(3, 15.0, "tenant_queue_full"), rejected(4, 16.0, "shutting_down"))
    assert ["r1"] == [past.request.id for past in shadow._pasts]


def test_the_line_of_a_gateway_that_turns_requests_away_is_as_long_in_the_simulation() -> None:
    terms = Terms(dict.fromkeys(Tier, 40.0), rejects_unattainable=True)
    live = Live("fair", [], terms=terms).serve(arrivals(NUM, 1.5 * BUSY))
    evidence = evidence_of(live)
    assert len([event for event in live.events if isinstance(event, Rejected)]) > NUM / 10
    assert pytest.approx(evidence.measured.times.mean, rel=0.15) == evidence.live.times.mean


def test_no_request_is_part_of_a_cycle_that_only_the_collector_would_free() -> None:
    gc.collect()
    gc.disable()
    try:
        live = Live("fifo", ["sjf"]).serve(arrivals(150, 1.0))
        held = [held for held in gc.get_objects() if isinstance(held, module._Account)]
    finally:
        gc.enable()
    assert 150 == live.shadow.num_simulated
    assert len(held) < 50


def test_the_described_request_is_what_is_simulated() -> None:
    shadow, one = shadow_of_nothing(), ticket(1, 10.0)
    told(shadow, admitted(one), Finished(14.0, one, Usage(12, 33), "stop", 11.0, 11.5, charge=0.0))
    (past,) = shadow._pasts
    assert (12, 33, 4.0) == (past.request.prompt_tokens, past.tokens, past.account.measured)
    assert past.account.estimate == one.estimate
