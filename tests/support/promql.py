"""As much of PromQL as it takes to know which metrics and labels an expression names."""

import re
from dataclasses import dataclass, field
from itertools import pairwise

FUNCTIONS = {
    *("absent", "clamp_max", "clamp_min", "histogram_quantile", "increase", "rate", "time", "vector"),
    *("avg", "bottomk", "count", "max", "min", "sum", "topk"),
}
KEYWORDS = {"and", "bool", "offset", "or", "unless"}
GROUPINGS = {"by", "group_left", "group_right", "ignoring", "on", "without"}

_TOKEN = re.compile(
    r"""\s+|(?P<string>"(?:[^"\\]|\\.)*")|(?P<range>\[[^\]]*\])|(?P<name>[a-zA-Z_:][\w:]*)
    |(?P<number>\d+(?:\.\d+)?)|(?P<operator>=~|!~|!=|==|<=|>=|[-+*/<>=(){},])""",
    re.VERBOSE,
)


@dataclass
class Named:
    """What an expression names."""

    metrics: dict[str, set[str]] = field(default_factory=dict)
    """By name, the labels that are asked of it in braces."""
    grouped: set[str] = field(default_factory=set)
    """Labels by which something is grouped or matched."""


def names_in(expression: str) -> Named:
    """Raises `ValueError` for what it cannot read, an unknown function or brackets that do not match included."""
    tokens = _tokens(expression)
    _check_brackets(expression, tokens)
    named = Named()
    while tokens:
        token = tokens.pop(0)
        if not re.match(r"[a-zA-Z_:]", token) or token in KEYWORDS:
            continue
        if token in GROUPINGS:
            named.grouped |= set(_until(tokens, "(", ")")) - {","}
        elif tokens and tokens[0] == "(":
            if token not in FUNCTIONS:
                raise ValueError(f"unknown function {token}")
        elif token in FUNCTIONS:
            continue  # an aggregation whose grouping comes first
        else:
            inside = _until(tokens, "{", "}")
            labels = named.metrics.setdefault(token, set())
            labels |= {name for name, sign in pairwise(inside) if sign in ("=", "=~", "!=", "!~")}
    return named


def _tokens(expression: str) -> list[str]:
    found, position = [], 0
    while position < len(expression):
        match = _TOKEN.match(expression, position)
        if match is None:
            raise ValueError(f"cannot read {expression[position:]!r}")
        position = match.end()
        if match.lastgroup:
            found.append(match[0])
    return found


def _until(tokens: list[str], opening: str, closing: str) -> list[str]:
    """Take what stands between two brackets, if the first of them comes next."""
    if not tokens or tokens[0] != opening:
        return []
    end = tokens.index(closing)
    inside = tokens[1:end]
    del tokens[: end + 1]
    return inside


def _check_brackets(expression: str, tokens: list[str]) -> None:
    closing = {"(": ")", "{": "}"}
    expected: list[str] = []
    for token in tokens:
        if token in closing:
            expected.append(closing[token])
        elif token in closing.values() and (not expected or expected.pop() != token):
            raise ValueError(f"brackets do not match: {expression}")
    if expected:
        raise ValueError(f"brackets do not match: {expression}")
