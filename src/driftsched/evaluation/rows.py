"""Recorded requests with the lengths of their answers, from JSON lines or CSV. docs/evaluate.md has the columns.

A file is read once, line by line, and may be gzipped whatever its name. What is wrong with it becomes a
`ConfigError` that begins with `file:line: column:`. Of a prompt only the head is kept, so memory is bounded by the
number of rows, whatever their texts.
"""

import csv
import gzip
import json
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from itertools import pairwise
from math import isfinite, nan
from pathlib import Path
from sys import intern
from typing import IO, Any

import msgspec

from driftsched.core.errors import ConfigError
from driftsched.core.messages import head_and_size, texts_of
from driftsched.core.model import NO_TRAITS, Request, Tenant, Tier, Traits
from driftsched.core.traits import read_traits

BYTES_PER_TOKEN = 4
"""Of a prompt whose text is not recorded."""

MAX_LINE_BYTES = 64 << 20
MAX_TOKENS = 10_000_000

WHOLE_REASONS = frozenset(
    ("", "stop", "tool_calls", "function_call", "content_filter", "eos", "eos_token", "stop_sequence", "end_turn")
)
"""Finish reasons of answers that ended by themselves; any other says that the answer was cut short."""


class Row(msgspec.Struct, frozen=True, gc=False):
    """A request that was served, and what is known about its answer."""

    completion_tokens: int
    """What the answer really had, >= 0; a lower bound if it was cut short."""
    arrived_at: float | None = None
    """Seconds on any clock; of all rows of a file or of none."""
    tenant: str = "default"
    model: str = ""
    prompt: str = ""
    """Head of the last user message."""
    prompt_bytes: int = 0
    """UTF-8 length of the whole prompt."""
    prompt_tokens: int = 0
    """0: not recorded."""
    finish_reason: str = ""
    max_tokens: int | None = None
    category: str = ""
    """Of those who know it; empty: for the describer to find. No column of a file."""
    traits: Traits = NO_TRAITS

    @property
    def finished(self) -> bool:
        """The answer ended by itself, as far as is known; otherwise its length is a lower bound."""
        if self.max_tokens is not None and self.completion_tokens >= self.max_tokens:
            return False
        return self.finish_reason in WHOLE_REASONS

    @property
    def known(self) -> bool:
        """The length is what an estimator predicts: the answer ended by itself or at its own `max_tokens`."""
        return self.finished or (self.max_tokens is not None and self.completion_tokens >= self.max_tokens)

    def request(self, number: int, arrived_at: float) -> Request:
        """What a gateway would have known when it came; the truth about the answer is left out."""
        return Request(
            id=str(number),
            tenant=Tenant(self.tenant),
            tier=Tier.STANDARD,
            model=self.model,
            arrived_at=arrived_at,
            prompt=self.prompt,
            prompt_bytes=self.prompt_bytes,
            prompt_tokens=self.prompt_tokens,
            category=self.category,
            max_tokens=self.max_tokens,
            traits=self.traits,
        )


def read_rows(path: Path, tell: Callable[[str], None] = lambda _: None) -> list[Row]:
    """The rows of a file, at least one, in order of arrival.

    `tell` is given remarks worth printing: columns that are ignored, rows that had to be sorted. Raises
    `ConfigError` for whatever is wrong with the file.
    """
    seen: set[str] = set()
    with closing(_records(path, seen)) as records:
        rows = [_row(columns) for columns in records]
    if not rows:
        raise ConfigError(f"{path}: no requests: the file is empty")
    if unknown := sorted(seen - _COLUMNS):
        tell(f"{path.name}: ignored columns: {', '.join(unknown)}")
    return _in_order(path, rows, tell)


def _in_order(path: Path, rows: list[Row], tell: Callable[[str], None]) -> list[Row]:
    dated = [row.arrived_at for row in rows if row.arrived_at is not None]
    if not dated:
        return rows
    if len(dated) < len(rows):
        raise ConfigError(f"{path}: arrived_at: {len(rows) - len(dated)} rows have none: give all of them or none")
    if any(later < earlier for earlier, later in pairwise(dated)):
        tell(f"{path.name}: sorted by arrived_at")
        rows.sort(key=lambda row: row.arrived_at or 0.0)
    return rows


# Lines


class _Columns:
    """The values of one row by column, and where they were read."""

    def __init__(self, values: Mapping[str, Any], place: str) -> None:
        self._values = values
        self._place = place

    def get(self, name: str) -> Any:
        """None where the value is missing, null or an empty field."""
        value = self._values.get(name)
        return None if value == "" else value

    def error(self, name: str, problem: str) -> ConfigError:
        return ConfigError(f"{self._place}: {name}: {problem}")


def _records(path: Path, seen: set[str]) -> Generator[_Columns, None, None]:
    """Each row of the file; adds the names of its columns to `seen`."""
    with _opened(path) as file:
        lines = _lines(path, file)
        for number, line in lines:
            if line.strip():
                reader = _json_records if line.lstrip("\ufeff \t").startswith("{") else _csv_records
                yield from reader(path, number, line.removeprefix("\ufeff"), lines, seen)


def _json_records(
    path: Path, number: int, first: str, lines: Iterator[tuple[int, str]], seen: set[str]
) -> Iterator[_Columns]:
    for at, line in _after((number, first), lines):
        if not line.strip():
            continue
        try:
            values = json.loads(line)  # which reads NaN, so that the error can name the column
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"{path}:{at}: not JSON: {error}") from None
        if not isinstance(values, dict):
            raise ConfigError(f"{path}:{at}: must be a JSON object, one for each request")
        seen.update(values)
        yield _Columns(values, f"{path}:{at}")


def _csv_records(
    path: Path, number: int, first: str, lines: Iterator[tuple[int, str]], seen: set[str]
) -> Iterator[_Columns]:
    place = number

    def texts() -> Iterator[str]:
        nonlocal place
        for at, line in _after((number, first), lines):
            place = at
            yield line

    with _wide_fields():
        table = csv.reader(texts(), strict=True)
        try:
            header = [name.strip() for name in next(table)]
            _check_header(path, place, header)
            seen.update(header)
            for fields in table:
                if not fields:
                    continue
                if len(fields) != len(header):
                    raise ConfigError(f"{path}:{place}: {len(fields)} fields, where the header has {len(header)}")
                yield _Columns(dict(zip(header, fields, strict=True)), f"{path}:{place}")
        except csv.Error as error:
            raise ConfigError(f"{path}:{place}: not CSV: {error}") from None


def _check_header(path: Path, place: int, header: Sequence[str]) -> None:
    if "completion_tokens" not in header:
        raise ConfigError(f"{path}:{place}: completion_tokens: no such column; there are {', '.join(header)[:200]}")
    if twice := next((name for name in header if header.count(name) > 1), None):
        raise ConfigError(f"{path}:{place}: {twice}: the column comes twice")


@contextmanager
def _wide_fields() -> Iterator[None]:
    """Prompts may be longer than the csv module expects a field to be."""
    before = csv.field_size_limit(MAX_LINE_BYTES)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _after(first: tuple[int, str], rest: Iterator[tuple[int, str]]) -> Iterator[tuple[int, str]]:
    yield first
    yield from rest


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    try:
        with path.open("rb") as file:
            zipped = file.read(2) == b"\x1f\x8b"
            file.seek(0)
            yield gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[misc]
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None


def _lines(path: Path, file: IO[bytes]) -> Iterator[tuple[int, str]]:
    number = 0
    while True:
        number += 1
        try:
            line = file.readline(MAX_LINE_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ConfigError(f"{path}:{number}: broken or truncated gzip: {error}") from None
        if not line:
            return
        if len(line) > MAX_LINE_BYTES:
            raise ConfigError(f"{path}:{number}: a line of more than {MAX_LINE_BYTES >> 20} MiB")
        try:
            yield number, line.decode()
        except UnicodeDecodeError as error:
            raise ConfigError(f"{path}:{number}: not UTF-8 text: {error.reason}") from None


# Values


_COLUMNS = frozenset(
    (
        "arrived_at",
        "tenant",
        "session",
        "model",
        "prompt",
        "messages",
        "prompt_tokens",
        "completion_tokens",
        "finish_reason",
        "max_tokens",
    )
)


def _row(columns: _Columns) -> Row:
    tenant = _name(columns, "tenant") or "default"
    messages = _messages(columns)
    prompt, prompt_bytes = head_and_size(messages) if messages else ("", 0)
    prompt_tokens = _tokens(columns, "prompt_tokens") or 0
    completion_tokens = _tokens(columns, "completion_tokens")
    if completion_tokens is None:
        raise columns.error("completion_tokens", "is missing: it is what predictions are compared with")
    max_tokens = _tokens(columns, "max_tokens", cap=True)
    return Row(
        completion_tokens=completion_tokens,
        arrived_at=_instant(columns, "arrived_at"),
        tenant=tenant,
        model=_name(columns, "model"),
        prompt=prompt,
        prompt_bytes=prompt_bytes or BYTES_PER_TOKEN * prompt_tokens,
        prompt_tokens=prompt_tokens,
        finish_reason=_name(columns, "finish_reason").strip().lower(),
        max_tokens=max_tokens or None,  # engines differ on 0: it sets no limit here
        traits=read_traits(
            [(message.role, " ".join(texts_of(message))) for message in messages],
            tenant=tenant,
            session=_name(columns, "session"),
        ),
    )


def _name(columns: _Columns, name: str) -> str:
    value = columns.get(name)
    if value is None:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # a column of numbers some of which are missing
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise columns.error(name, f"must be a text, not {_shown(value)}")
    return intern(str(value))


def _tokens(columns: _Columns, name: str, *, cap: bool = False) -> int | None:
    """A count of tokens; `cap`: a limit, where more than `MAX_TOKENS` is as good as that."""
    value = columns.get(name)
    if value is None:
        return None
    number = _number(columns, name, value)
    if not number.is_integer() or number < 0 or (number > MAX_TOKENS and not cap):
        raise columns.error(name, f"must be a whole number of tokens, 0 to {MAX_TOKENS:,}, not {_shown(value)}")
    return int(number)


def _number(columns: _Columns, name: str, value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else nan
    except (ValueError, OverflowError):
        number = nan
    if not isfinite(number):
        raise columns.error(name, f"must be a number, not {_shown(value)}")
    return number


def _instant(columns: _Columns, name: str) -> float | None:
    value = columns.get(name)
    if value is None:
        return None
    if isinstance(value, str) and ":" in value:
        try:
            instant = datetime.fromisoformat(value.strip())
        except ValueError:
            raise columns.error(
                name, f"must be seconds or a time like 2026-01-31T22:00, not {_shown(value)}"
            ) from None
        return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()
    return _number(columns, name, value)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


class _Part(msgspec.Struct):
    text: str | None = None


class _Message(msgspec.Struct):
    role: str = "user"
    content: str | list[_Part] | None = None


def _messages(columns: _Columns) -> Sequence[_Message]:
    """What `messages` holds, else `prompt` as one message of the user, else nothing."""
    value = columns.get("messages")
    if value is None:
        prompt = columns.get("prompt")
        if not isinstance(prompt, str | None):
            raise columns.error("prompt", f"must be a text, not {_shown(prompt)}")
        return [_Message("user", prompt)] if prompt else []
    try:
        if isinstance(value, str):
            return msgspec.json.decode(value, type=list[_Message])
        return msgspec.convert(value, list[_Message])
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise columns.error("messages", f"must be a list of messages as in the OpenAI API: {error}") from None
