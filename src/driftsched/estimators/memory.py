"""What `adaptive` remembers: nodes by key, three models shared by all, and all of it as plain data.

Every table is bounded, since keys hold names that clients chose. What was not written for longest is forgotten
first.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final, Generic, Protocol, Self, TypeVar

import numpy as np

from driftsched.estimators.drift import Cusum, Side
from driftsched.estimators.linear import Ridge, Words
from driftsched.estimators.nodes import Level, Numbers, Window
from driftsched.estimators.quantiles import Conformal, Profile
from driftsched.estimators.recent import Recent
from driftsched.estimators.state import check_version, is_keepable, share_of
from driftsched.estimators.text import NUM_DENSE, TABLE_BITS

STATE_VERSION: Final = 1

EXPERTS: Final = ("model", "figures", "words", "session", "template", "tenant", "tenant_size", "size", "pretrained")
"""What is added, weighted, to the level of model, category and tenant; `pretrained` beyond what `figures` say."""
START_WEIGHTS: Final = (0.0, 0.8, 0.5, 0.5, 0.3, 0.1, 0.1, 0.1, 0.4)
"""Of `EXPERTS`: a hint at what to expect, worth a few answers."""

CANDIDATES: Final = ("blend", "level", "tenant", "tenant_size", "size", "sizes")
"""What the gate chooses among: the blend of all experts, and plain statistics that it must not lose to."""
START_GATE: Final = (0.45, 0.11, 0.11, 0.11, 0.11, 0.11)
"""Weights of `CANDIDATES` before their losses are known; they add up to 1."""

KEPT: Final = 8
"""Answers from before a drift that still count after it."""
MERGED: Final = 200.0
"""Answers by which two replicas weigh what they learnt: older ones are forgotten anyway."""
CONFORMAL_RATE: Final = 0.05
MAX_COUNT: Final = 2.0**53

Key = TypeVar("Key", bound=tuple[Any, ...])


class Node(Protocol):
    """Something remembered under a key."""

    def pack(self) -> list[float]: ...

    def unpack(self, numbers: Numbers) -> None: ...

    def absorb(self, other: Self) -> None: ...


N = TypeVar("N", bound=Node)


class TenantNode:
    """One tenant's answers from one model, in comparison with everybody's."""

    __slots__ = ("apart", "distance", "num_learnt", "outlying")

    def __init__(self) -> None:
        self.apart = Level()  # from the level of model and category, where it is learnt
        self.distance = Level()  # square of it, and from the level of those who are learnt together
        self.num_learnt = 0  # since it was last decided where
        self.outlying = False
        """Many times longer or shorter than usual: learnt apart from the other tenants."""

    def pack(self) -> list[float]:
        return [*self.apart.pack(), *self.distance.pack(), self.num_learnt, self.outlying * 1.0]

    def unpack(self, numbers: Numbers) -> None:
        self.apart.unpack(numbers)
        self.distance.unpack(numbers)
        self.num_learnt = int(numbers.take(0, MAX_COUNT))
        self.outlying = numbers.take(0, 1) == 1

    def absorb(self, other: "TenantNode") -> None:
        if other.num_learnt > self.num_learnt:
            self.outlying = other.outlying
        self.apart.absorb(other.apart)
        self.distance.absorb(other.distance)
        self.num_learnt += other.num_learnt


class OwnNode:
    """One tenant's answers from one model in one category."""

    __slots__ = ("conformal", "level", "num_drifts", "since_drift", "spread", "window")

    def __init__(self) -> None:
        self.level = Level()
        self.spread = Level()
        self.window = Window()
        self.num_drifts = 0
        self.since_drift = 0
        """Answers since the last of these drifts of its kind."""
        self.conformal: Conformal | None = None
        """Of what came in a row, which others do not hear; None if nothing did."""

    def promise(self, chances: Sequence[float], *, is_heard: bool) -> None:
        """Keep the promises to a tenant whose answers others do not hear; forget that once they hear them again."""
        if not is_heard:
            self.conformal = self.conformal or Conformal(CONFORMAL_RATE)
            self.conformal.learn(chances)
        elif self.conformal:
            self.conformal.offsets = [0.9 * offset for offset in self.conformal.offsets]

    def heed(self, num_drifts: int) -> None:
        """An answer comes in, after so many drifts of its kind: what came before the last of them counts little."""
        if num_drifts != self.num_drifts:
            self.num_drifts = num_drifts
            self.since_drift = 0 if self.level.weight else KEPT  # who is new knows nothing from before
            self.level.keep(KEPT)
            self.window.keep(KEPT)
        self.since_drift += 1

    def pack(self) -> list[float]:
        conformal = self.conformal or Conformal(CONFORMAL_RATE)
        nodes = (self.level, self.spread, self.window, conformal)
        return [self.num_drifts, self.since_drift, *(x for node in nodes for x in node.pack())]

    def unpack(self, numbers: Numbers) -> None:
        self.num_drifts, self.since_drift = int(numbers.take(0, MAX_COUNT)), int(numbers.take(0, MAX_COUNT))
        self.level.unpack(numbers)
        self.spread.unpack(numbers)
        self.window.unpack(numbers)
        conformal = Conformal(CONFORMAL_RATE)
        conformal.unpack(numbers)
        self.conformal = conformal if any(conformal.offsets) else None

    def absorb(self, other: "OwnNode") -> None:
        self.num_drifts = max(self.num_drifts, other.num_drifts)
        self.level.absorb(other.level)
        self.spread.absorb(other.spread)
        self.window.absorb(other.window)
        self.conformal = self.conformal or other.conformal


class SessionNode:
    """One conversation."""

    __slots__ = ("last_tokens", "level")

    def __init__(self) -> None:
        self.level = Level()
        self.last_tokens = 0.0

    def pack(self) -> list[float]:
        return [*self.level.pack(), self.last_tokens]

    def unpack(self, numbers: Numbers) -> None:
        self.level.unpack(numbers)
        self.last_tokens = numbers.take(0, 1e8)

    def absorb(self, other: "SessionNode") -> None:
        if other.level.weight > self.level.weight:
            self.last_tokens = other.last_tokens
        self.level.absorb(other.level)


class KindNode:
    """One model's answers in one category."""

    def __init__(self) -> None:
        self.level = Level()
        self.spread = Level()
        self.error = Level()  # absolute log error of the point
        self.covered = Level()  # share within q80
        self.bias = 0.0  # logarithm: what the blend still lacks
        self.shift = 0.0  # logarithm: the last shift that the detector told
        self.since_drift = 1_000_000  # answers
        self.num_drifts = 0
        self.drift = Cusum()

    def pack(self) -> list[float]:
        levels = (self.level, self.spread, self.error, self.covered)
        sums = (*self.drift.ups, *self.drift.downs)
        return [
            *(x for y in levels for x in y.pack()),
            self.bias,
            self.shift,
            self.since_drift,
            self.num_drifts,
            *sums,
        ]

    def unpack(self, numbers: Numbers) -> None:
        for level in (self.level, self.spread, self.error, self.covered):
            level.unpack(numbers)
        self.bias = numbers.take(-20, 20)
        self.shift = numbers.take(-20, 20)
        self.since_drift, self.num_drifts = int(numbers.take(0, MAX_COUNT)), int(numbers.take(0, MAX_COUNT))
        self.drift.ups = _side(numbers)
        self.drift.downs = _side(numbers)

    def absorb(self, other: "KindNode") -> None:
        share = share_of(other.level.weight, self.level.weight, MERGED)
        self.bias += share * (other.bias - self.bias)
        if other.since_drift < self.since_drift:
            self.since_drift, self.shift = other.since_drift, other.shift
        self.num_drifts = max(self.num_drifts, other.num_drifts)
        for mine, theirs in (
            (self.level, other.level),
            (self.spread, other.spread),
            (self.error, other.error),
            (self.covered, other.covered),
        ):
            mine.absorb(theirs)


def _side(numbers: Numbers) -> Side:
    total, num, residuals = numbers.take(0), int(numbers.take(0)), numbers.take()
    return Side(total, num, residuals, int(numbers.take(0, MAX_COUNT)), int(numbers.take(0)))


class FamilyNode:
    """One model's answers: their level, their scatter, and which of the candidates has lately been best."""

    def __init__(self) -> None:
        self.level = Level()
        self.spread = Level()
        self.starts = Level()  # what was expected before anything was learnt
        self.num_learnt = 0
        self.offset = 0.0  # logarithm: median of what the blend leaves
        self.losses = [0.0] * len(CANDIDATES)
        self.gate = list(START_GATE)
        self.profile = Profile()
        self.conformal = Conformal(CONFORMAL_RATE)
        self.distance = Level()  # squared, of answers from the level of model and category
        self.speaker = 0  # checksum of the tenant whose answer came last
        self.num_in_a_row = 0

    def hears(self, speaker: int) -> bool:
        """Whether an answer of `speaker` teaches what tenants share: in a row the 1st to 4th, 8th, 16th ..."""
        self.num_in_a_row = self.num_in_a_row + 1 if speaker == self.speaker else 1
        self.speaker = speaker
        return self.num_in_a_row < 4 or self.num_in_a_row.bit_count() == 1

    def pack(self) -> list[float]:
        plain = [self.num_learnt, self.speaker, self.num_in_a_row, self.offset, *self.losses, *self.gate]
        nodes = (self.level, self.spread, self.starts, self.distance, self.profile, self.conformal)
        return [*plain, *(x for node in nodes for x in node.pack())]

    def unpack(self, numbers: Numbers) -> None:
        self.num_learnt = int(numbers.take(0, MAX_COUNT))
        self.speaker, self.num_in_a_row = int(numbers.take(0, MAX_COUNT)), int(numbers.take(0, MAX_COUNT))
        self.offset = numbers.take(-20, 20)
        self.losses = numbers.take_all(0, 1e10, num=len(CANDIDATES))
        self.gate = numbers.take_all(0, 1, num=len(CANDIDATES))
        if abs(sum(self.gate) - 1) > 1e-6:
            raise ValueError("weights of candidates must add up to 1")
        for node in (self.level, self.spread, self.starts, self.distance, self.profile, self.conformal):
            node.unpack(numbers)

    def absorb(self, other: "FamilyNode") -> None:
        share = share_of(other.num_learnt, self.num_learnt, MERGED)
        self.offset += share * (other.offset - self.offset)
        self.losses = [a + b for a, b in zip(self.losses, other.losses, strict=True)]
        self.gate = [a + share * (b - a) for a, b in zip(self.gate, other.gate, strict=True)]
        self.conformal.absorb(other.conformal, share)
        self.profile.absorb(other.profile)
        self.level.absorb(other.level)
        self.spread.absorb(other.spread)
        self.starts.absorb(other.starts)
        self.distance.absorb(other.distance)
        self.num_learnt += other.num_learnt


class Table(Recent[Key, N], Generic[Key, N]):
    """Nodes by key, bounded, with a form as plain data: rows of [key, numbers], the one written last at the end."""

    def __init__(self, fresh: Callable[[], N], max_keys: int, key_of: Callable[[list[Any]], Key]) -> None:
        """`key_of` makes a key of its plain form and raises `ValueError` if it is none."""
        super().__init__(fresh, max_keys)
        self._new = fresh
        self._limit = max_keys
        self._key_of = key_of

    def pack(self) -> list[object]:
        return [[list(key), node.pack()] for key, node in self.items() if _is_keepable(key)]

    def unpack(self, rows: object) -> list[tuple[Key, N]]:
        """Raises `ValueError`, naming what is wrong."""
        if not isinstance(rows, list) or len(rows) > self._limit:
            raise ValueError(f"a table must be a list of at most {self._limit} rows")
        nodes = [self._unpack_row(row) for row in rows]
        if len({key for key, _ in nodes}) < len(nodes):
            raise ValueError("a table must not hold a key twice")
        return nodes

    def absorb(self, nodes: Iterable[tuple[Key, N]]) -> None:
        """Beyond the bound what is known here stays."""
        for key, node in reversed(list(nodes)):
            mine = self.read(key)
            if mine is None:
                self.add_oldest(key, node)
            else:
                mine.absorb(node)

    def _unpack_row(self, row: object) -> tuple[Key, N]:
        if not isinstance(row, list) or len(row) != 2 or not isinstance(row[0], list):
            raise ValueError("a row must hold a key and numbers")
        numbers, node = Numbers(row[1]), self._new()
        node.unpack(numbers)
        numbers.end()
        return self._key_of(row[0]), node


def _is_keepable(key: tuple[object, ...]) -> bool:
    return all(is_keepable(part) for part in key if isinstance(part, str))


def _key(*kinds: type | tuple[type, ...]) -> Callable[[list[Any]], Any]:
    """Makes keys of plain lists whose parts are of these kinds."""

    def key_of(parts: list[Any]) -> tuple[Any, ...]:
        fits = len(parts) == len(kinds) and all(
            type(part) in (kind if isinstance(kind, tuple) else (kind,)) and _is_keepable((part,))
            for part, kind in zip(parts, kinds, strict=True)
        )
        if not fits or any(type(part) is int and abs(part) > MAX_COUNT for part in parts):
            raise ValueError("a key must hold short names and numbers of its kind")
        return tuple(parts)

    return key_of


class Memory:
    """All that was learnt."""

    def __init__(self, max_tenants: int) -> None:
        few = max(1, min(max_tenants, 16_000))
        self.num_learnt = 0
        self.everything: Table[tuple[str], Level] = Table(Level, 1, _key(str))
        self.families: Table[tuple[str, bool], FamilyNode] = Table(FamilyNode, 512, _key(str, bool))
        self.kinds: Table[tuple[str, bool, str], KindNode] = Table(KindNode, 1024, _key(str, bool, str))
        self.tenants: Table[tuple[str, str], TenantNode] = Table(TenantNode, max_tenants, _key(str, str))
        self.own: Table[tuple[str, str, str], OwnNode] = Table(OwnNode, max_tenants, _key(str, str, str))
        self.sessions: Table[tuple[str, str], SessionNode] = Table(SessionNode, few, _key(str, str))
        self.templates: Table[tuple[str, str | int], Level] = Table(Level, few, _key(str, (str, int)))
        self.prompts: Table[tuple[str, int], Level] = Table(Level, few, _key(str, int))
        self.tenant_sizes: Table[tuple[str, str, int], Window] = Table(Window, few, _key(str, str, int))
        self.sizes: Table[tuple[str, int, bool], Window] = Table(Window, few, _key(str, int, bool))
        self.figures, self.words, self.blend = _models()
        self.outlying_figures, self.outlying_words, self.outlying_blend = _models()

    def models(self, *, outlying: bool) -> tuple[Ridge, Words, Ridge]:
        """Of figures, words and experts: of who is learnt together, or of who is learnt apart."""
        if outlying:
            return self.outlying_figures, self.outlying_words, self.outlying_blend
        return self.figures, self.words, self.blend

    def pack(self) -> dict[str, object]:
        """Plain data: numbers, bytes and names of models, tenants and categories. No text, digests only."""
        parts = {name: part.pack() for name, part in {**self._tables(), **self._models()}.items()}
        return {"version": STATE_VERSION, "num_learnt": self.num_learnt, **parts}

    def unpack(self, state: Mapping[str, object]) -> None:
        """Fill a fresh memory. Raises `ValueError` for another version or anything else; throw it away then."""
        check_version(state, STATE_VERSION)
        num_learnt = state.get("num_learnt")
        if type(num_learnt) is not int or not 0 <= num_learnt <= MAX_COUNT:
            raise ValueError("num_learnt must be a count")
        self.num_learnt = num_learnt
        for part, table in self._tables().items():
            table.replace(table.unpack(state.get(part)))
        for part, model in self._models().items():
            model.unpack(state.get(part))

    def absorb(self, other: "Memory") -> None:
        """Add what another replica learnt."""
        if other.num_learnt == 0:
            return
        for name, table in self._tables().items():
            table.absorb(other._tables()[name].items())
        for name, model in self._models().items():
            model.absorb(other._models()[name])
        self.num_learnt += other.num_learnt

    def _tables(self) -> dict[str, Table[Any, Any]]:
        return {name: part for name, part in vars(self).items() if isinstance(part, Table)}

    def _models(self) -> dict[str, Any]:
        return {name: part for name, part in vars(self).items() if isinstance(part, (Ridge, Words))}


def _models() -> tuple[Ridge, Words, Ridge]:
    """Of figures, words and experts."""
    return (
        Ridge(np.zeros(NUM_DENSE), penalty=10.0),
        Words(1 << TABLE_BITS, step=0.3),
        Ridge(np.array(START_WEIGHTS), penalty=5.0),
    )
