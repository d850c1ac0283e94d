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


def test_what_is_held_is_listed_with_the_key_written_last_at_the_end() -> None:
    recent = table(2)
    for key in "aba":
        recent.write(key).append(ord(key))
    assert [("b", [98]), ("a", [97, 97])] == list(recent.items())


def test_what_replaces_all_is_bounded_too_and_loses_its_oldest() -> None:
    recent = table(2)
    recent.write("z")
    recent.replace([("a", [1]), ("b", [2]), ("c", [3])])
    assert [("b", [2]), ("c", [3])] == list(recent.items())


def test_what_is_added_as_oldest_makes_room_first_and_takes_none() -> None:
    recent = table(2)
    recent.write("a").append(1)
    recent.add_oldest("b", [2])
    recent.add_oldest("c", [3])
    assert [("b", [2]), ("a", [1])] == list(recent.items())
    recent.write("d")
    assert ["a", "d"] == [key for key, _ in recent.items()]
