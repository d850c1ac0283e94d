"""Trace files, in the layouts people have, as rows. docs/traces.md lists the layouts.

A file is read once, line by line, and may be gzipped whatever its name. What is wrong with it becomes a
`ConfigError` that begins with `file:line:column:`, where the column is the number of the field in a CSV and of the
character in a JSON line.
"""

import csv
import gzip
import io
import logging
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path
from sys import intern

import msgspec
from msgspec.structs import replace

from driftsched.core.errors import ConfigError
from driftsched.core.model import Tier
from driftsched.sim.trace import Row, on_grid

_logger = logging.getLogger(__name__)

MAX_BYTES = 2 << 30
"""A trace may have so many bytes, once decompressed."""

MAX_LINE_BYTES = 16 << 20

MAX_RATIO = 200
"""Bytes out of a gzip per byte in; real traces have less than 50."""

_RATIO_FROM_BYTES = 16 << 20

MAX_TOKENS = 10_000_000
MAX_SECONDS = 1e9
"""Up to here a float holds every microsecond."""


@dataclass(frozen=True, slots=True)
class Layout:
    """The columns of one kind of CSV."""

    name: str
    at: str
    prompt_tokens: str
    completion_tokens: str
    columns: dict[str, str] = field(default_factory=dict)
    """Optional column -> field of `Row`."""
    rebased: bool = False
    """Its clock starts somewhere: time is counted from the first row."""
    skips_empty: bool = False
    """Its authors say that rows without tokens are failed requests."""

    @property
    def required(self) -> tuple[str, str, str]:
        return self.at, self.prompt_tokens, self.completion_tokens


OPTIONAL_COLUMNS = (
    "tenant",
    "tier",
    "category",
    "model",
    "max_tokens",
    "session",
    "phase",
    "prompt",
    "after_drain",
)
"""Of our own CSV, in the order of `Row`."""

LAYOUTS: dict[str, Layout] = {
    layout.name: layout
    for layout in (
        Layout(
            "csv",
            "arrival_s",
            "input_tokens",
            "output_tokens",
            {name: name for name in OPTIONAL_COLUMNS},
        ),
        Layout("azure", "TIMESTAMP", "ContextTokens", "GeneratedTokens", rebased=True),
        Layout(
            "burstgpt",
            "Timestamp",
            "Request tokens",
            "Response tokens",
            {"Model": "model", "Session ID": "session"},
            rebased=True,
            skips_empty=True,
        ),
        Layout("servegen", "timestamp", "input_tokens", "output_tokens", {"client_id": "tenant"}),
        Layout("vidur", "arrived_at", "num_prefill_tokens", "num_decode_tokens"),
    )
}

FORMATS = ("jsonl", *LAYOUTS)
"""What `read_trace` can be told to expect. `jsonl` is our own and Mooncake's."""


def read_trace(
    path: Path,
    *,
    format: str | None = None,
    sort: bool = False,
    skip_empty: bool | None = None,
    max_bytes: int = MAX_BYTES,
) -> list[Row]:
    """The rows of a trace file; at least one.

    `format` is one of `FORMATS`, or None to tell from the first line. Rows out of order are an error, or put in
    order if `sort`. A row without prompt or completion tokens is an error, or left out if `skip_empty`; None
    leaves that to the layout. Raises `ConfigError` for whatever is wrong with the file.
    """
    if format is not None and format not in FORMATS:
        raise ConfigError(f"format: unknown format {format!r}: use one of {', '.join(FORMATS)}")
    with _Source(path, max_bytes) as source:
        first = source.peek()
        if (format or ("jsonl" if first.startswith("{") else "csv")) == "jsonl":
            layout = _JSONL
            drafts = _read_json_lines(source, fewest=0 if skip_empty else 1)
        else:
            table = csv.reader(source, strict=True)
            header = _read_header(source, table)
            layout = _find_layout(source, header, format)
            skips = layout.skips_empty if skip_empty is None else skip_empty
            drafts = _read_table(source, table, header, layout, fewest=0 if skips else 1)
        rows = _collect(source, drafts, sort=sort)
    if not rows:
        raise ConfigError(f"{path}: no requests: the trace is empty")
    return _placed(path, rows, layout, sort=sort)


def _collect(source: "_Source", drafts: Iterator[Row], *, sort: bool) -> list[Row]:
    rows: list[Row] = []
    num_skipped = 0
    last = -MAX_SECONDS
    for row in drafts:
        if not (row.prompt_tokens and row.completion_tokens):
            num_skipped += 1
            continue
        if row.at < last and not sort:
            raise source.error(
                f"arrives at {row.at} s, before the row above at {last} s: sort the file, or ask for sorting"
            )
        last = row.at
        rows.append(row)
    if num_skipped:
        _logger.warning("%s: left out %d requests without tokens", source.path, num_skipped)
    return rows


def _placed(path: Path, rows: list[Row], layout: Layout, *, sort: bool) -> list[Row]:
    """In order, and on the trace's own clock."""
    if sort:
        rows.sort(key=lambda row: row.at)
    start = rows[0].at
    if layout.rebased and start:
        return [replace(row, at=on_grid(row.at - start)) for row in rows]
    if start < 0:
        raise ConfigError(f"{path}: the trace begins at {start} s: times count from its start and are 0 or more")
    return rows


class _Source:
    """The lines of a file, decompressed, decoded and bounded, knowing where they are."""

    def __init__(self, path: Path, max_bytes: int) -> None:
        self.path = path
        self.line = 0
        self._max_bytes = max_bytes
        self._peeked: str | None = None

    def __enter__(self) -> "_Source":
        try:
            self._file = self.path.open("rb")
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from None
        self._gzip = gzip.GzipFile(fileobj=self._file) if self._file.peek(2)[:2] == b"\x1f\x8b" else None
        self._stream: io.BufferedIOBase = self._gzip or self._file
        self._num_bytes = 0
        return self

    def __exit__(self, *exc: object) -> None:
        if self._gzip:
            self._gzip.close()
        self._file.close()

    def __iter__(self) -> "_Source":
        return self

    def __next__(self) -> str:
        if self._peeked is not None:
            text, self._peeked = self._peeked, None
            return text
        line = self._read_line()
        if not line:
            raise StopIteration
        self.line += 1
        self._bound(line)
        try:
            return line.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"not UTF-8 text: {error.reason}: save the file as UTF-8", error.start + 1) from None

    def peek(self) -> str:
        """The first line that is not blank, without its byte order mark; it will be read again."""
        for text in self:
            text = text.removeprefix("\ufeff")
            if text.strip():
                self._peeked = text
                return text
        raise ConfigError(f"{self.path}: the file is empty")

    def error(self, problem: str, column: int | None = None) -> ConfigError:
        """About the line read last."""
        place = f"{self.path}:{self.line}" if column is None else f"{self.path}:{self.line}:{column}"
        return ConfigError(f"{place}: {problem}")

    def _read_line(self) -> bytes:
        try:
            return self._stream.readline(MAX_LINE_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            self.line += 1
            raise self.error(f"broken or truncated gzip: {error}: fetch the file again") from None
        except OSError as error:
            raise ConfigError(f"{self.path}: {error.strerror}") from None

    def _bound(self, line: bytes) -> None:
        self._num_bytes += len(line)
        if len(line) > MAX_LINE_BYTES:
            raise self.error(f"a line of more than {MAX_LINE_BYTES >> 20} MiB: this is no trace")
        if self._num_bytes > self._max_bytes:
            raise self.error(f"more than {self._max_bytes:,} bytes: cut the trace into parts")
        if self._gzip and self._num_bytes > max(_RATIO_FROM_BYTES, MAX_RATIO * self._file.tell()):
            raise self.error(f"grows more than {MAX_RATIO}-fold when decompressed: this is no trace")


# JSON lines: our own format, and Mooncake's, of which it is a superset


_JSONL = Layout("jsonl", "timestamp", "input_length", "output_length")


class _Extra(msgspec.Struct):
    user: str | int | None = None


class _Line(msgspec.Struct):
    timestamp: float
    input_length: int
    output_length: int
    session_id: str | int | None = None
    extra: _Extra | None = None
    tenant: str | int | None = None
    tier: str | None = None
    category: str | None = None
    model: str | None = None
    max_tokens: int | None = None
    phase: str | None = None
    prompt: str | None = None
    after_drain: bool = False


def _read_json_lines(source: _Source, fewest: int) -> Iterator[Row]:
    decode = msgspec.json.Decoder(_Line).decode
    for line_and_end in source:
        text = line_and_end.rstrip()
        if not text:
            continue
        try:
            line = decode(text)
        except msgspec.DecodeError as error:
            raise _json_error(source, text, str(error)) from None
        try:
            yield _row_of_line(line, fewest)
        except _FieldError as error:
            raise source.error(f"{error.name}: {error}", text.find(f'"{error.name}"') + 1) from None


def _row_of_line(line: _Line, fewest: int) -> Row:
    tenant = line.tenant
    if tenant is None and line.extra is not None:
        tenant = line.extra.user
    return Row(
        at=_bounded_at("timestamp", line.timestamp / 1000),
        prompt_tokens=_bounded("input_length", line.input_length, fewest),
        completion_tokens=_bounded("output_length", line.output_length, fewest),
        tenant="default" if tenant is None else intern(str(tenant)),
        tier=Tier.STANDARD if line.tier is None else _tier(line.tier),
        category="short_qa" if line.category is None else intern(line.category),
        model="model" if line.model is None else intern(line.model),
        max_tokens=None if line.max_tokens is None else _limit(line.max_tokens, line.output_length),
        session=None if line.session_id is None else str(line.session_id),
        phase="steady" if line.phase is None else intern(line.phase),
        prompt=line.prompt or "",
        after_drain=line.after_drain,
    )


def _json_error(source: _Source, text: str, problem: str) -> ConfigError:
    """Say where: msgspec names the byte of bad JSON, and the key of a bad value."""
    reason, _, key = problem.partition(" - at `$.")
    if key:
        name = key.rstrip("`").partition(".")[0]
        return source.error(f"{name}: {reason}", text.find(f'"{name}"') + 1)
    if at := re.search(r" \(byte (\d+)\)$", problem):
        before = text.encode()[: int(at[1])].decode(errors="replace")
        return source.error(f"not JSON: {problem[: at.start()]}", len(before) + 1)
    if "truncated" in problem:
        return source.error("not JSON: the line ends too early", len(text) + 1)
    return source.error(problem, 1)


# CSV


def _read_header(source: _Source, table: Iterator[list[str]]) -> list[str]:
    header = [name.strip() for name in _next_fields(source, table) or []]
    if header and header[0][:1].isdigit():
        raise source.error(f"the first line must name the columns, not begin with {header[0]!r}", 1)
    for number, name in enumerate(header, start=1):
        if name and name in header[: number - 1]:
            raise source.error(f"column {name!r} comes twice", number)
    return header


def _find_layout(source: _Source, header: Sequence[str], format: str | None) -> Layout:
    layouts = LAYOUTS.values() if format is None else [LAYOUTS[format]]
    for layout in layouts:
        if set(layout.required) <= set(header):
            return layout
    if format is not None:
        missing = ", ".join(repr(name) for name in LAYOUTS[format].required if name not in header)
        raise source.error(f"no column {missing}, which format {format!r} needs; there are {_listed(header)}", 1)
    known = "; ".join(f"{layout.name}: {', '.join(layout.required)}" for layout in layouts)
    raise source.error(f"columns {_listed(header)} are of no known format. Known are {known}", 1)


def _listed(header: Sequence[str]) -> str:
    text = ", ".join(repr(name) for name in header)
    return text if len(text) <= 200 else f"{text[:200]}..."


def _read_table(
    source: _Source, table: Iterator[list[str]], header: list[str], layout: Layout, fewest: int
) -> Iterator[Row]:
    at, prompt, completion = (header.index(name) for name in layout.required)
    options = [
        (number, layout.columns[name], _OPTIONS[layout.columns[name]])
        for number, name in enumerate(header)
        if name in layout.columns
    ]
    base: float | None = None
    while (fields := _next_fields(source, table)) is not None:
        if len(fields) != len(header):
            raise source.error(f"{len(fields)} fields, where the header has {len(header)}", len(fields))
        try:
            seconds = _seconds(header[at], fields[at])
            if base is None:  # a float has no room for a date and a microsecond
                base = seconds if layout.rebased else 0.0
            num_prompt = _whole(header[prompt], fields[prompt], fewest)
            num_completion = _whole(header[completion], fields[completion], fewest)
            more = {
                name: parse(header[number], fields[number]) for number, name, parse in options if fields[number]
            }
            if "max_tokens" in more:
                _limit(more["max_tokens"], num_completion)
            yield Row(_bounded_at(header[at], seconds - base), num_prompt, num_completion, **more)  # type: ignore[arg-type]
        except _FieldError as error:
            raise source.error(f"{error.name}: {error}", header.index(error.name) + 1) from None


def _next_fields(source: _Source, table: Iterator[list[str]]) -> list[str] | None:
    """The fields of the next line that is not blank."""
    try:
        for fields in table:
            if fields:
                return fields
    except csv.Error as error:
        raise source.error(f"not CSV: {error}", 1) from None
    return None


# Values. `name` is the column as the file calls it.


class _FieldError(ValueError):
    def __init__(self, name: str, problem: str) -> None:
        super().__init__(problem)
        self.name = name


def _whole(name: str, text: str, fewest: int = 1) -> int:
    if text.isdecimal() and len(text) < 10:
        return _bounded(name, int(text), fewest)
    value = _number(name, text)
    if not value.is_integer():
        raise _FieldError(name, f"must be a whole number of tokens, not {text!r}")
    return _bounded(name, int(value), fewest)


def _bounded(name: str, tokens: int, fewest: int) -> int:
    if not fewest <= tokens <= MAX_TOKENS:
        hint = "; rows without tokens can be left out on request" if tokens == 0 else ""
        raise _FieldError(name, f"must be between 1 and {MAX_TOKENS:,} tokens, not {tokens}{hint}")
    return tokens


def _limit(max_tokens: object, completion_tokens: int) -> int:
    if not isinstance(max_tokens, int) or max_tokens < max(1, completion_tokens):
        raise _FieldError(
            "max_tokens", f"must be at least the answer's {completion_tokens} tokens, not {max_tokens}"
        )
    return max_tokens


def _seconds(name: str, text: str) -> float:
    if ":" not in text:
        return _number(name, text)
    try:
        instant = datetime.fromisoformat(text.strip())
    except ValueError:
        raise _FieldError(name, f"must be seconds or a time like 2024-05-10 00:00:00.0099, not {text!r}") from None
    return (instant if instant.tzinfo else instant.replace(tzinfo=UTC)).timestamp()


def _bounded_at(name: str, seconds: float) -> float:
    if not -MAX_SECONDS <= seconds <= MAX_SECONDS:
        raise _FieldError(name, f"must be within {MAX_SECONDS:.0e} s of the start of the trace, not {seconds} s")
    return on_grid(seconds)


def _number(name: str, text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not isfinite(value):
        raise _FieldError(name, f"must be a number, not {text!r}")
    return value


def _tier(label: str) -> Tier:
    try:
        return Tier.parse(label)
    except ValueError as error:
        raise _FieldError("tier", str(error)) from None


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise _FieldError(name, f"must be true or false, not {text!r}")
    return text.lower() == "true"


_OPTIONS: dict[str, Callable[[str, str], object]] = {
    "tenant": lambda _, text: intern(text),
    "tier": lambda _, text: _tier(text),
    "category": lambda _, text: intern(text),
    "model": lambda _, text: intern(text),
    "max_tokens": _whole,
    "session": lambda _, text: text,
    "phase": lambda _, text: intern(text),
    "prompt": lambda _, text: text,
    "after_drain": _flag,
}
