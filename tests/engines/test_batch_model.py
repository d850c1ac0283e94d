import random
from dataclasses import dataclass, field, replace
from math import inf, pi
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from driftsched.engines.model import BatchModel, Step
from driftsched.engines.presets import Hardware, get_hardware

TICK = Hardware(
    name="tick",
    host_ms=0,
    floor_ms=1000,
    g0_ms=0,
    g_us_per_token=0,
    r_us_per_sequence=0,
    kv_ns_per_token=0,
    api_ms=0,
    kv_tokens=10_000,
    source="measured",
    note="every iteration takes one second",
)
L4 = get_hardware("l4-qwen1.5-1.8b")


def drain(model: BatchModel, until: float = inf, max_steps: int | None = None) -> list[Step]:
    steps = []
    while step := model.advance(until, max_steps):
        steps.append(step)
    return steps


def finish_times(steps: list[Step]) -> dict[str, float]:
    return {job_id: step.ended_at for step in steps for job_id in step.finished}


def first_token_times(steps: list[Step]) -> dict[str, float]:
    return {job_id: step.ended_at for step in steps for job_id in step.first_tokens}


# One job


def test_the_last_prompt_chunk_produces_the_first_token() -> None:
    model = BatchModel(TICK)
    model.add("a", prompt_tokens=10, completion_tokens=3, now=5.0)

    assert Step(5.0, 6.0, 1, ["a"], []) == model.advance()
    assert Step(6.0, 8.0, 2, [], ["a"]) == model.advance()
    assert model.advance() is None


def test_a_completion_of_one_token_ends_with_its_prompt() -> None:
    model = BatchModel(TICK)
    model.add("a", 10, 1, 0.0)

    assert [Step(0.0, 1.0, 1, ["a"], ["a"])] == drain(model)
    assert (0, 0, 0) == (model.num_running, model.num_waiting, model.kv_used)


def test_a_long_prompt_is_computed_in_chunks_of_the_token_budget() -> None:
    model = BatchModel(TICK, max_num_seqs=2, max_num_batched_tokens=4)
    model.add("a", 10, 2, 0.0)

    steps = drain(model)

    assert {"a": 3.0} == first_token_times(steps)
    assert {"a": 4.0} == finish_times(steps)


def test_decoding_sequences_come_before_prompts_in_the_token_budget() -> None:
    model = BatchModel(TICK, max_num_seqs=2, max_num_batched_tokens=4)
    model.add("a", 1, 9, 0.0)
    model.add("b", 7, 1, 0.0)

    # One iteration computes all of a and 3 of b; each later one spends a token on a and so 3 on b: 3 + 3 + 1.
    assert 3.0 == first_token_times(drain(model))["b"]


def test_a_request_costs_its_api_time_before_it_can_be_scheduled() -> None:
    model = BatchModel(replace(TICK, api_ms=250))
    model.add("a", 10, 1, 2.0)

    assert 2.25 == model.next_step_at
    assert [Step(2.25, 3.25, 1, ["a"], ["a"])] == drain(model)


def test_an_iteration_takes_what_the_hardware_says() -> None:
    model = BatchModel(L4)
    model.add("a", 100, 3, 0.0)

    steps = drain(model)

    prefill = L4.step_seconds(100, 1, 0)
    decode = L4.step_seconds(1, 1, 101) + L4.step_seconds(1, 1, 102)
    assert pytest.approx(L4.api_ms * 1e-3 + prefill + decode) == steps[-1].ended_at


# Continuous batching


def test_a_freed_seat_is_taken_at_the_next_iteration() -> None:
    model = BatchModel(TICK, max_num_seqs=2)
    for job_id, completion_tokens in (("short", 2), ("long", 9), ("next", 1)):
        model.add(job_id, 5, completion_tokens, 0.0)

    steps = drain(model)

    assert 2.0 == finish_times(steps)["short"]
    assert 3.0 == first_token_times(steps)["next"]
    assert 9.0 == finish_times(steps)["long"]


def test_a_job_that_arrives_during_an_iteration_waits_for_its_end() -> None:
    model = BatchModel(TICK)
    model.add("a", 5, 100, 0.0)
    drain(model, until=7.5)
    model.add("b", 5, 1, 7.5)

    assert 8.0 == model.time
    assert Step(8.0, 9.0, 1, ["b"], ["b"]) == model.advance()


def test_a_stretch_ends_where_a_waiting_job_becomes_ready() -> None:
    model = BatchModel(replace(TICK, api_ms=2500))
    model.add("a", 5, 100, -2.5)
    model.advance()
    model.add("b", 5, 1, 1.0)

    assert Step(1.0, 4.0, 3, [], []) == model.advance()
    assert Step(4.0, 5.0, 1, ["b"], ["b"]) == model.advance()


def test_no_iteration_begins_at_or_after_the_instant_asked_for() -> None:
    model = BatchModel(TICK)
    model.add("a", 5, 100, 0.0)

    assert model.advance(until=0.0) is None
    drain(model, until=4.0)
    assert 4.0 == model.time
    drain(model, until=4.001)
    assert 5.0 == model.time


def test_at_most_the_iterations_asked_for_are_run() -> None:
    model = BatchModel(TICK)
    model.add("a", 5, 100, 0.0)
    model.advance()

    assert Step(1.0, 4.0, 3, [], []) == model.advance(max_steps=3)
    assert 4 == model.generated("a")


def test_a_step_ends_where_a_job_has_as_many_tokens_as_it_is_watched_for() -> None:
    model = BatchModel(TICK)
    model.add("a", 5, 100, 0.0)
    model.watch("a", 40)

    assert [
        Step(0.0, 1.0, 1, ["a"], []),
        Step(1.0, 40.0, 39, [], [], (("a", 40),)),
        Step(40.0, 100.0, 60, [], ["a"]),
    ] == drain(model)


def test_a_milestone_may_be_the_end() -> None:
    model = BatchModel(TICK)
    model.add("a", 5, 3, 0.0)
    model.watch("a", 3)

    assert [Step(0.0, 1.0, 1, ["a"], []), Step(1.0, 3.0, 2, [], ["a"], (("a", 3),))] == drain(model)


def test_a_job_that_was_cancelled_passes_no_milestone() -> None:
    model = BatchModel(TICK)
    for job_id in "ab":
        model.add(job_id, 5, 10, 0.0)
        model.watch(job_id, 4)
    drain(model, until=2.0)
    model.cancel("a")

    assert [(), (("b", 4),), ()] == [step.milestones for step in [*drain(model, until=3.0), *drain(model)]]


def test_a_preempted_job_passes_its_milestone_once_when_it_has_the_tokens() -> None:
    model = BatchModel(TICK, kv_tokens=20)
    model.add("a", 5, 10, 0.0)
    model.add("b", 5, 10, 0.0)
    model.watch("b", 8)
    passed = []
    while step := model.advance(max_steps=1):
        passed += [(job_id, tokens, model.generated(job_id)) for job_id, tokens in step.milestones]

    assert [("b", 8, 8)] == passed


def test_milestones_inside_a_static_batch_are_told_at_its_end() -> None:
    model = static()
    for job_id, tokens in (("a", 3), ("b", 9)):
        model.add(job_id, 5, tokens, 0.0)
        model.watch(job_id, 2)
    (step,) = [step for step in drain(model) if step.finished or step.milestones]

    assert (("a", 2), ("b", 2)) == step.milestones


def test_a_job_behind_one_that_does_not_fit_waits_its_turn() -> None:
    model = BatchModel(TICK, kv_tokens=100)
    model.add("a", 60, 5, 0.0)
    model.add("large", 60, 1, 0.0)
    model.add("small", 5, 1, 0.0)

    assert {"a": 5.0, "large": 6.0, "small": 6.0} == finish_times(drain(model))


def test_an_idle_model_has_no_next_step() -> None:
    model = BatchModel(TICK)

    assert inf == model.next_step_at
    assert model.advance() is None


# Cancel


def test_cancelling_a_running_job_frees_its_seat_and_context() -> None:
    model = BatchModel(TICK, max_num_seqs=1)
    model.add("a", 5, 100, 0.0)
    model.add("b", 5, 1, 0.0)
    drain(model, until=3.0)

    assert 3 == model.cancel("a")
    assert (0, 1, 0) == (model.num_running, model.num_waiting, model.kv_used)
    assert [Step(3.0, 4.0, 1, ["b"], ["b"])] == drain(model)


def test_cancelling_a_half_computed_prompt_frees_its_context() -> None:
    model = BatchModel(TICK, max_num_seqs=2, max_num_batched_tokens=4)
    model.add("a", 10, 5, 0.0)
    model.add("b", 3, 1, 0.0)
    model.advance()

    assert 0 == model.cancel("a")
    assert 0 == model.kv_used
    assert [Step(1.0, 2.0, 1, ["b"], ["b"])] == drain(model)


def test_cancelling_a_waiting_job_takes_it_out_of_the_line() -> None:
    model = BatchModel(TICK, max_num_seqs=1)
    for job_id in "abc":
        model.add(job_id, 5, 2, 0.0)

    assert 0 == model.cancel("b")
    assert {"a": 2.0, "c": 4.0} == finish_times(drain(model))


def test_a_job_that_is_unknown_finished_or_cancelled_cannot_be_cancelled() -> None:
    model = BatchModel(TICK)
    model.add("finished", 5, 1, 0.0)
    drain(model)
    model.add("cancelled", 5, 1, 5.0)
    model.cancel("cancelled")

    assert [None, None, None] == [model.cancel(job_id) for job_id in ("unknown", "finished", "cancelled")]


# Context memory


def test_the_job_admitted_last_makes_room_and_computes_again_what_it_had() -> None:
    model = BatchModel(TICK, kv_tokens=24)
    model.add("a", 10, 6, 0.0)
    model.add("b", 10, 4, 0.0)

    drain(model, until=2.0)
    assert (2, 24) == (model.num_running, model.kv_used)
    drain(model, until=3.0)
    assert (1, 1, 13) == (model.num_running, model.num_waiting, model.kv_used)
    assert 2 == model.generated("b")
    later = drain(model)
    # a finishes at 6; then b computes 12 tokens, which yields its third, and decodes its fourth.
    assert {"a": 6.0, "b": 8.0} == finish_times(later)
    assert {} == first_token_times(later)


def test_a_preempted_job_goes_before_those_that_never_ran() -> None:
    model = BatchModel(TICK, max_num_seqs=2, kv_tokens=24)
    model.add("a", 10, 6, 0.0)
    model.add("preempted", 10, 4, 0.0)
    model.add("new", 12, 1, 0.0)

    assert {"a": 6.0, "preempted": 8.0, "new": 9.0} == finish_times(drain(model))
    assert 1 == model.num_preemptions


def test_a_job_that_could_never_fit_is_refused() -> None:
    model = BatchModel(TICK, kv_tokens=100)

    with pytest.raises(ValueError, match=r"must not exceed kv_tokens \(100\), but are 60 \+ 41"):
        model.add("a", 60, 41, 0.0)
    model.add("b", 60, 40, 0.0)
    assert {"b": 40.0} == finish_times(drain(model))


# Static batches


def static(hardware: Hardware = TICK, **limits: int) -> BatchModel:
    return BatchModel(hardware, mode="static", batch_wait_seconds=0.5, **limits)


def test_a_static_batch_is_collected_for_its_wait_and_then_reported_as_a_whole() -> None:
    model = static()
    model.add("short", 5, 1, 0.0)
    model.add("long", 5, 4, 0.25)
    model.add("late", 5, 1, 0.75)

    steps = drain(model)

    # short and long run from 0.5 to 4.5; the engine is free again then, and waits for company of late.
    assert {"short": 4.5, "long": 4.5, "late": 6.0} == finish_times(steps)
    assert first_token_times(steps) == finish_times(steps)


def test_a_full_static_batch_does_not_wait() -> None:
    model = static(max_num_seqs=2)
    model.add("a", 5, 1, 0.0)
    model.add("b", 5, 1, 0.25)

    assert Step(0.25, 1.25, 1, ["a", "b"], ["a", "b"]) == model.advance()


def test_nobody_joins_a_static_batch_that_runs() -> None:
    model = static(max_num_seqs=2)
    for job_id, completion_tokens in (("short", 1), ("long", 10), ("next", 1), ("last", 1)):
        model.add(job_id, 5, completion_tokens, 0.0)

    assert {"short": 10.0, "long": 10.0, "next": 11.0, "last": 11.0} == finish_times(drain(model))


def test_cancelling_the_last_running_member_ends_a_static_batch() -> None:
    model = static()
    model.add("short", 5, 1, 0.0)
    model.add("long", 5, 100, 0.0)
    drain(model, until=3.0)

    assert 3 == model.cancel("long")
    assert [Step(3.5, 3.5, 0, ["short"], ["short"])] == drain(model)


def test_a_static_batch_ended_by_a_cancel_is_reported_before_the_next_begins() -> None:
    model = static()
    model.add("short", 5, 1, 0.0)
    model.add("long", 5, 100, 0.0)
    drain(model, until=3.0)
    model.add("next", 5, 1, 3.0)
    model.cancel("long")

    assert {"short": 3.5, "next": 5.0} == finish_times(drain(model))


def test_a_member_that_is_done_can_be_cancelled_while_its_static_batch_runs() -> None:
    model = static()
    model.add("short", 5, 2, 0.0)
    model.add("long", 5, 9, 0.0)
    drain(model, until=5.0)

    assert 2 == model.cancel("short")
    assert {"long": 9.5} == finish_times(drain(model))


def test_a_static_batch_larger_than_memory_is_worked_off_inside() -> None:
    model = static(kv_tokens=30)
    for job_id in "ab":
        model.add(job_id, 20, 5, 0.0)
    drain(model, until=1.0)

    assert (1, 1) == (model.num_running, model.num_waiting)
    assert {"a": 10.5, "b": 10.5} == finish_times(drain(model))


def test_cancelling_what_runs_lets_the_rest_of_a_static_batch_run() -> None:
    model = static(kv_tokens=30)
    for job_id in "ab":
        model.add(job_id, 20, 5, 0.0)
    drain(model, until=1.0)
    model.cancel("a")

    assert {"b": 6.5} == finish_times(drain(model))


def test_a_member_left_outside_by_memory_can_be_cancelled() -> None:
    model = static(kv_tokens=30)
    for job_id in "ab":
        model.add(job_id, 20, 5, 0.0)
    drain(model, until=1.0)

    assert 0 == model.cancel("b")
    assert {"a": 5.5} == finish_times(drain(model))


def test_the_papers_stress_batches_last_what_the_paper_measured() -> None:
    mix = random.Random(0)
    seconds = []
    for _ in range(200):
        model = BatchModel(get_hardware("l4-qwen1.5-1.8b-eager"), mode="static", max_num_seqs=32)
        for member in range(32):
            completion_tokens = mix.choices((64, 256, 384, 512), weights=(10, 20, 40, 30))[0]
            model.add(str(member), 30, completion_tokens, 0.0)
        steps = drain(model)
        seconds.append(steps[-1].ended_at - steps[0].started_at)

    assert pytest.approx(10.5, rel=0.02) == median(seconds)


# Arguments


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"mode": "dynamic"}, "mode"),
        ({"max_num_seqs": 0}, "max_num_seqs"),
        ({"max_num_batched_tokens": 31}, "max_num_batched_tokens"),
        ({"kv_tokens": 1}, "kv_tokens"),
        ({"batch_wait_seconds": -1.0}, "batch_wait_seconds"),
    ],
)
def test_a_limit_out_of_range_is_refused_by_name(arguments: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"^{named} must"):
        BatchModel(TICK, **arguments)  # type: ignore[arg-type]


@pytest.mark.parametrize(("prompt_tokens", "completion_tokens"), [(0, 1), (1, 0)])
def test_a_job_without_tokens_is_refused(prompt_tokens: int, completion_tokens: int) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        BatchModel(TICK).add("a", prompt_tokens, completion_tokens, 0.0)


def test_a_job_id_in_use_is_refused() -> None:
    model = BatchModel(TICK)
    model.add("a", 1, 1, 0.0)

    with pytest.raises(ValueError, match="'a' is in use"):
        model.add("a", 1, 1, 0.0)


# Properties


@dataclass(frozen=True)
class Script:
    """Arrivals, cancels and limits for one run."""

    limits: dict[str, int]
    mode: str
    jobs: list[tuple[int, int, int]]  # (gap, prompt tokens, completion tokens)
    cancels: dict[int, int]  # arrival -> the earlier job cancelled at that moment
    milestones: dict[int, int]  # job -> how many tokens it is watched for


@dataclass
class Result:
    first: dict[str, float] = field(default_factory=dict)
    finished: dict[str, float] = field(default_factory=dict)
    passed: dict[str, float] = field(default_factory=dict)
    cancelled: list[tuple[str, int]] = field(default_factory=list)


@st.composite
def scripts(draw: st.DrawFn) -> Script:
    kv_tokens = draw(st.integers(40, 200))
    max_num_seqs = draw(st.integers(1, 6))
    jobs = draw(
        st.lists(st.tuples(st.integers(0, 300), st.integers(1, 20), st.integers(1, 20)), min_size=1, max_size=25)
    )
    return Script(
        limits={
            "kv_tokens": kv_tokens,
            "max_num_seqs": max_num_seqs,
            "max_num_batched_tokens": draw(st.integers(max_num_seqs, 40)),
        },
        mode=draw(st.sampled_from(["continuous", "static"])),
        jobs=jobs,
        cancels=draw(st.dictionaries(st.integers(1, len(jobs)), st.integers(0, len(jobs)), max_size=5)),
        milestones=draw(st.dictionaries(st.integers(0, len(jobs)), st.integers(2, 20), max_size=10)),
    )


def run(script: Script, max_steps: int | None) -> Result:
    """Play the script, checking after each step that no limit is exceeded."""
    model = BatchModel(L4, mode=script.mode, **script.limits)  # type: ignore[arg-type]
    result = Result()

    def play(until: float) -> None:
        while step := model.advance(until, max_steps):
            assert step.started_at < until
            assert model.kv_used <= model.kv_tokens
            assert model.num_running <= model.max_num_seqs
            for times, job_ids in ((result.first, step.first_tokens), (result.finished, step.finished)):
                for job_id in job_ids:
                    assert job_id not in times
                    times[job_id] = step.ended_at
            for job_id, tokens in step.milestones:
                assert job_id not in result.passed
                assert tokens == script.milestones[int(job_id)]
                assert job_id in step.finished or tokens == model.generated(job_id)
                result.passed[job_id] = step.ended_at

    now = 0.0
    for index, (gap, prompt_tokens, completion_tokens) in enumerate(script.jobs):
        now += gap * pi / 3000  # never a whole number of iterations
        play(now)
        if index in script.cancels:
            victim = str(script.cancels[index])
            tokens = model.cancel(victim)
            if tokens is not None:
                result.cancelled.append((victim, tokens))
        model.add(str(index), prompt_tokens, completion_tokens, now)
        if index in script.milestones and script.milestones[index] <= completion_tokens:
            model.watch(str(index), script.milestones[index])
    play(inf)
    assert (0, 0, 0) == (model.num_running, model.num_waiting, model.kv_used)
    return result


@settings(deadline=None)
@given(scripts())
def test_every_job_is_finished_or_cancelled_once_and_gives_back_its_context(script: Script) -> None:
    result = run(script, max_steps=None)

    ended = [*result.finished, *(job_id for job_id, _ in result.cancelled)]
    assert sorted(str(index) for index in range(len(script.jobs))) == sorted(ended)
    assert all(result.first[job_id] <= at for job_id, at in result.finished.items())


@settings(deadline=None)
@given(scripts())
def test_skipping_iterations_gives_what_stepping_each_gives(script: Script) -> None:
    skipped, stepped = run(script, max_steps=None), run(script, max_steps=1)

    assert stepped.cancelled == skipped.cancelled
    assert list(stepped.finished) == list(skipped.finished)
    assert pytest.approx(stepped.finished, rel=1e-9) == skipped.finished
    assert pytest.approx(stepped.first, rel=1e-9) == skipped.first
    assert pytest.approx(stepped.passed, rel=1e-9) == skipped.passed


@settings(deadline=None)
@given(scripts())
def test_watching_a_job_changes_no_time_and_tells_each_milestone_once(script: Script) -> None:
    watched, unwatched = run(script, max_steps=None), run(replace(script, milestones={}), max_steps=None)

    assert pytest.approx(unwatched.finished, rel=1e-9) == watched.finished
    for index, tokens in script.milestones.items():
        if str(index) in watched.finished and tokens <= script.jobs[index][2]:
            assert watched.first[str(index)] <= watched.passed[str(index)] <= watched.finished[str(index)]


def test_a_milestone_is_told_when_its_token_comes_with_a_prompt_computed_anew() -> None:
    limits = {"kv_tokens": 40, "max_num_seqs": 2, "max_num_batched_tokens": 4}
    script = Script(limits, "continuous", [(0, 1, 13), (0, 9, 19), (0, 6, 7)], cancels={}, milestones={2: 7})
    result = run(script, max_steps=None)
    assert {"2": result.finished["2"]} == result.passed


# Changes while it runs


def test_fewer_seats_let_those_who_sit_finish_and_admit_nobody_until_there_is_room() -> None:
    model = BatchModel(TICK, max_num_seqs=2)
    for job_id, tokens in (("a", 4), ("b", 6), ("c", 2)):
        model.add(job_id, 10, tokens, 0.0)
    model.advance(until=1.0)
    model.resize(1)
    assert {"a": 4.0, "b": 6.0, "c": 8.0} == finish_times(drain(model))


def test_more_seats_are_taken_at_the_next_iteration() -> None:
    model = BatchModel(TICK, max_num_seqs=1)
    for job_id in ("a", "b"):
        model.add(job_id, 10, 4, 0.0)
    model.advance(until=1.0)
    model.resize(2)
    assert {"a": 4.0, "b": 5.0} == finish_times(drain(model))


def test_an_engine_without_a_seat_is_refused() -> None:
    with pytest.raises(ValueError, match="max_num_seqs must be at least 1"):
        BatchModel(TICK).resize(0)


def test_other_hardware_takes_its_own_time_from_the_next_iteration_on() -> None:
    model = BatchModel(TICK)
    model.add("a", 10, 5, 0.0)
    assert model.advance(max_steps=1) == Step(0.0, 1.0, 1, ["a"], [])
    model.retime(replace(TICK, floor_ms=500))
    assert {"a": 1.0 + 4 * 0.5} == finish_times(drain(model))


def test_other_hardware_takes_its_own_time_for_each_request_and_for_context() -> None:
    model = BatchModel(TICK)
    model.retime(replace(TICK, api_ms=250, kv_ns_per_token=1e8))
    model.add("a", 10, 3, 0.0)
    assert {"a": pytest.approx(0.25 + 3 + 0.1 * (11 + 12))} == finish_times(drain(model))
