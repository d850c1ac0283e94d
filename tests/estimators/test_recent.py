"""State by key, bounded."""

from driftsched.estimators.recent import Recent


def table(max_keys: int) -> Recent[str, list[int]]:
    return Recent(list, max_keys)


def test_what_was_written_can_be_read() -> None:
    recent = table(2)
    recent.write("a").append(1)
    recent.write("a").append(2)
    assert recent.read("a") == [1, 2]


def test_reading_makes_no_state() -> None:
    recent = table(2)
    assert recent.read("a") is None
    assert len(recent) == 0


def test_the_key_not_written_for_longest_makes_room() -> None:
    recent = table(2)
    recent.write("a").append(1)
    recent.write("b").append(2)
    recent.write("a")
    recent.read("b")
    recent.write("c").append(3)
    assert [[1], None, [3]] == [recent.read(key) for key in "abc"]
    assert len(recent) == 2
