from random import Random

from hypothesis import given
from hypothesis import strategies as st

from driftsched.core.heaps import SWEEP_LENGTH, LazyHeap

Entry = tuple[int, int]
"""(value, serial number)"""


class Members:
    """A heap beside the plain set of what is alive in it."""

    def __init__(self) -> None:
        self.alive: set[Entry] = set()
        self.num_checks = 0
        self.heap: LazyHeap[Entry] = LazyHeap(self._is_alive)

    def add(self, entry: Entry) -> None:
        self.alive.add(entry)
        self.heap.push(entry)

    def die(self, entry: Entry) -> None:
        self.alive.remove(entry)
        self.heap.sweep(len(self.alive))

    def _is_alive(self, entry: Entry) -> bool:
        self.num_checks += 1
        return entry in self.alive


def test_an_empty_heap_has_no_first() -> None:
    assert Members().heap.first() is None


def test_the_first_is_the_smallest_that_lives() -> None:
    members = Members()
    for value in (3, 1, 2):
        members.add((value, value))
    members.die((1, 1))
    assert (2, 2) == members.heap.first()


def test_the_first_stays_until_it_dies() -> None:
    members = Members()
    members.add((1, 1))
    assert [(1, 1)] * 2 == [members.heap.first(), members.heap.first()]
    members.die((1, 1))
    assert members.heap.first() is None
    assert 0 == len(members.heap)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), max_size=300))
def test_whatever_comes_and_dies_the_first_is_the_smallest_of_the_living(steps: list[tuple[bool, int]]) -> None:
    members = Members()
    for serial, (comes, number) in enumerate(steps):
        if comes or not members.alive:
            members.add((number, serial))
        else:
            members.die(sorted(members.alive)[number % len(members.alive)])
        assert min(members.alive, default=None) == members.heap.first()


def test_the_dead_never_outnumber_the_living_for_long() -> None:
    members, rng = Members(), Random(5)
    for serial in range(20_000):
        members.add((rng.randrange(1000), serial))
        while members.alive and rng.random() < (0.4 if serial < 10_000 else 0.7):
            members.die(
                max(members.alive, key=lambda entry: entry[1]) if rng.random() < 0.5 else min(members.alive)
            )
        assert len(members.heap) <= 3 * len(members.alive) + 24


def test_no_death_looks_at_more_than_a_few_entries() -> None:
    members = Members()
    for serial in range(5000):
        members.add((serial, serial))
    for serial in reversed(range(5000)):
        members.num_checks = 0
        members.die((serial, serial))
        assert members.num_checks <= SWEEP_LENGTH
    assert len(members.heap) <= 24


def test_all_that_lives_surfaces_in_order_while_a_sweep_is_under_way() -> None:
    members = Members()
    for serial in range(100):
        members.add((serial % 10, serial))
    for serial in range(60):
        members.die((serial % 10, serial))
    members.add((-1, 100))
    surfaced = []
    while first := members.heap.first():
        surfaced.append(first)
        members.alive.remove(first)
    assert [(-1, 100), *sorted((serial % 10, serial) for serial in range(60, 100))] == surfaced
