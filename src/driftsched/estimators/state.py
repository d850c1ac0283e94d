"""What was learnt as plain data: rows that are checked before any of them is used, and weighed when pooled.

A state comes from a file or from another replica, so it may be of another version, cut short or made up.
"""

from collections.abc import Iterable, Mapping, Sequence
from math import isfinite
from typing import Any

MAX_NAME_CHARS = 512
"""A longer key is kept in memory and left out of the state, which is bounded in bytes so."""
MAX_COUNT = 1 << 53
ROUNDING = 1e-9


def is_keepable(name: str) -> bool:
    """Whether a key can be part of a state: short, and text that UTF-8 can hold."""
    if len(name) > MAX_NAME_CHARS:
        return False
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def make_state(version: int, rows: Iterable[Sequence[object]]) -> dict[str, object]:
    """The state that `read_rows` reads."""
    return {"version": version, "rows": [list(row) for row in rows]}


def check_version(state: Mapping[str, object], version: int) -> None:
    """Raises `ValueError` unless the state is of `version`."""
    found = state.get("version")
    if type(found) is not int or found != version:
        raise ValueError(f"a state of version {found!r}, and only {version} is known here")


def read_rows(state: Mapping[str, object], *, version: int, kinds: Sequence[type], max_rows: int) -> list[Any]:
    """The rows of a state, each with values of `kinds`: short strings (the key), finite floats, counts from 0 on.

    Raises `ValueError` for a state of another version, or with anything else in it.
    """
    check_version(state, version)
    rows = state.get("rows")
    if not isinstance(rows, list) or len(rows) > max_rows:
        raise ValueError(f"rows: must be a list of at most {max_rows}")
    for row in rows:
        if not isinstance(row, list) or list(map(type, row)) != list(kinds) or not all(map(_is_sane, row)):
            raise ValueError(f"rows: must each hold sane values of {', '.join(kind.__name__ for kind in kinds)}")
    if len({tuple(value for value in row if isinstance(value, str)) for row in rows}) < len(rows):
        raise ValueError("rows: must not hold a key twice")
    return rows


def check_range(what: str, value: float, low: float, high: float) -> float:
    """`value`. Raises `ValueError` unless `low` <= `value` <= `high`, as far as sums of floats can be exact."""
    if not low - ROUNDING <= value <= high + ROUNDING:
        raise ValueError(f"{what}: must be between {low:g} and {high:g}, not {value:g}")
    return value


def share_of(theirs: float, mine: float, memory: float) -> float:
    """Weight, 0 .. 1, of what was learnt from `theirs` observations beside `mine`.

    Who has learnt more counts for more, up to `memory` observations: what came before those is forgotten anyway.
    """
    their_weight = min(theirs, memory)
    return their_weight / (min(mine, memory) + their_weight) if theirs > 0 else 0.0


def add_counts(mine: int, theirs: int) -> int:
    """The sum; bounded, since states may be merged over and over."""
    return min(mine + theirs, MAX_COUNT)


def _is_sane(value: object) -> bool:
    match value:
        case str():
            return len(value) <= MAX_NAME_CHARS
        case float():
            return isfinite(value)
        case int():
            return 0 <= value <= MAX_COUNT
        case _:
            return False
