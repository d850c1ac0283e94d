from random import Random

import pytest

from driftsched.core.events import Dispatched, Event, Finished, FirstToken
from driftsched.engines.presets import Hardware, get_hardware
from driftsched.sim.pace import MIN_ANSWERS, UNSURE_ANSWERS, Pace
from support.shadows import Live, arrivals


def served(hardware: str, rate: float, num: int = 500) -> list[Event]:
    return Live("fifo", [], hardware=hardware, steps_every=0).serve(arrivals(num, rate)).events


def heard(pace: Pace, events: list[Event], factor: float = 1.0) -> Pace:
    for event in events:
        match event:
            case Dispatched():
                pace.dispatched(event.ticket.id, event.at * factor)
            case FirstToken():
                pace.first_token(event.ticket.id, event.ticket.request.prompt_tokens, event.at * factor)
            case Finished():
                tokens = event.usage.completion_tokens
                pace.ended(event.ticket.id, tokens, event.at * factor, finished=True)
            case _:
                pass
    return pace


def known(pace: Pace) -> Hardware:
    hardware = pace.hardware()
    assert hardware is not None
    return hardware


@pytest.mark.parametrize("name", ["l4-qwen1.5-1.8b", "a100-llama3-8b", "a10g-llama3-8b"])
@pytest.mark.parametrize("rate", [1.0, 3.0])
def test_an_iteration_of_a_full_batch_is_known_within_a_tenth(name: str, rate: float) -> None:
    pace, real = heard(Pace(), served(name, rate)), get_hardware(name)
    batch = 16, 16, 16 * 400
    assert pytest.approx(real.step_seconds(*batch), rel=0.1) == known(pace).step_seconds(*batch)


def test_nothing_is_known_before_there_are_enough_answers() -> None:
    events = served("l4-qwen1.5-1.8b", 1.0, num=MIN_ANSWERS - 1)
    assert heard(Pace(), events).hardware() is None


def test_an_engine_twice_as_slow_has_twice_the_times() -> None:
    events = served("a100-llama3-8b", 3.0)
    once, twice = known(heard(Pace(), events)), known(heard(Pace(), events, factor=2.0))
    assert pytest.approx(2 * once.step_seconds(16, 16, 6400), rel=0.02) == twice.step_seconds(16, 16, 6400)


def test_no_coefficient_is_negative_whatever_is_measured() -> None:
    random, pace = Random(1), Pace()
    for number in range(200):
        at = number * 0.1
        pace.dispatched(str(number), at)
        pace.first_token(str(number), random.randrange(3000), at + random.expovariate(10))
        pace.ended(str(number), random.randrange(1000), at + 5 * random.random(), finished=True)
    hardware = known(pace)
    terms = (hardware.floor_ms, hardware.r_us_per_sequence, hardware.kv_ns_per_token, hardware.g_us_per_token)
    assert all(term >= 0 for term in (*terms, hardware.api_ms))


def test_one_answer_that_stalled_for_an_hour_does_not_make_the_engine_slow() -> None:
    pace = heard(Pace(), served("a100-llama3-8b", 3.0))
    before = known(pace).step_seconds(16, 16, 6400)
    pace.dispatched("stalled", 5000.0)
    pace.first_token("stalled", 100, 5000.1)
    pace.ended("stalled", 100, 8600.0, finished=True)
    assert pytest.approx(before, rel=0.1) == known(pace).step_seconds(16, 16, 6400)


def test_answers_that_broke_off_teach_nothing() -> None:
    pace = Pace()
    for number in range(2 * MIN_ANSWERS):
        pace.dispatched(str(number), number)
        pace.first_token(str(number), 10, number + 0.1)
        pace.ended(str(number), 10, number + 0.5, finished=False)
    assert 0 == pace.num_answers


def test_after_a_gap_nothing_is_learnt_until_what_the_engine_held_has_ended() -> None:
    pace, events = Pace(), served("a100-llama3-8b", 3.0)
    pace.begin_again()
    heard(pace, events)
    assert len([e for e in events if isinstance(e, Finished)]) - UNSURE_ANSWERS >= pace.num_answers > 0


def test_it_holds_only_what_is_at_the_engine() -> None:
    pace = heard(Pace(), served("a100-llama3-8b", 3.0))
    assert (0, 0, 0) == (len(pace._dispatched), len(pace._decoding), pace._num_decoding)


def test_context_grows_with_each_token_of_each_answer_while_it_lasts() -> None:
    pace = Pace()
    pace.dispatched("first", 0.0)
    pace.first_token("first", 10, 0.0)
    pace.ended("first", 11, 1.0, finished=True)  # so an iteration takes 0.1 s
    before = pace._mark(2.0)
    for name, prompt_tokens, at in (("a", 100, 2.0), ("b", 50, 4.0)):
        pace.dispatched(name, at)
        pace.first_token(name, prompt_tokens, at)
    pace.ended("a", 41, 6.0, finished=True)
    after = pace._mark(8.0)
    tokens = (100 + 20) * 4 + (50 + 20) * 4  # each lasted 4 s and grew by 40 tokens
    assert pytest.approx(tokens) == after.context - before.context
    assert pytest.approx(8.0) == after.sequences - before.sequences
