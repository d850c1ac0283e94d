"""What a simulated request brings of its row."""

from collections import Counter

from driftsched.core.model import NO_TRAITS, Traits
from driftsched.core.traits import read_traits
from driftsched.sim.experiment import traits_of
from driftsched.sim.trace import Row


def traits_in_turn(*rows: Row) -> list[Traits]:
    turns: Counter[str] = Counter()
    return [traits_of(row, turns) for row in rows]


def row_of(prompt: str = "", session: str | None = None, tenant: str = "default") -> Row:
    return Row(0.0, 10, 20, prompt=prompt, session=session, tenant=tenant)


def test_a_row_without_text_and_session_has_no_traits() -> None:
    assert [NO_TRAITS, NO_TRAITS] == traits_in_turn(row_of(), row_of())


def test_a_rows_text_tells_its_template() -> None:
    assert [read_traits([("user", "explain the weather")])] == traits_in_turn(row_of("explain the weather"))


def test_the_rows_of_a_session_are_its_turns() -> None:
    traits = traits_in_turn(row_of("a", "s"), row_of("b", "s"), row_of("c", "other"), row_of("d", "s"))
    assert [0, 1, 0, 2] == [each.turn for each in traits]
    assert [True, True, False, True] == [each.session == traits[0].session for each in traits]


def test_tenants_that_call_their_sessions_alike_share_none() -> None:
    ann, bob = traits_in_turn(row_of(session="1", tenant="ann"), row_of(session="1", tenant="bob"))
    assert 0 == bob.turn
    assert ann.session != bob.session


def test_no_row_tells_how_long_an_earlier_answer_was() -> None:
    assert [0, 0] == [each.previous_bytes for each in traits_in_turn(row_of("a", "s"), row_of("b", "s"))]
