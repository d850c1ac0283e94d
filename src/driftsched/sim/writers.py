"""Traces as files. Ours keep everything; the others keep what their format has a place for."""

import csv
import gzip
import io
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TextIO

import msgspec

from driftsched.core.errors import ConfigError
from driftsched.sim.readers import OPTIONAL_COLUMNS
from driftsched.sim.trace import Row

AZURE_EPOCH = datetime(2024, 1, 1, tzinfo=UTC)
"""Stands for the start of the trace where a format wants a date."""


def write_trace(rows: Iterable[Row], path: Path, format: str = "jsonl") -> None:
    """Write `rows`, gzipped if `path` ends in `.gz`; the same rows give the same bytes.

    `format` is one of `WRITERS`. `jsonl` and `csv` keep every field, the others times and lengths, and `burstgpt`
    models and sessions; Mooncake has whole milliseconds. Raises `ConfigError` if the file cannot be written.
    """
    if format not in WRITERS:
        raise ConfigError(f"format: cannot write {format!r}: use one of {', '.join(WRITERS)}")
    with _create(path) as file:
        WRITERS[format](rows, file)


def _write_jsonl(rows: Iterable[Row], file: TextIO) -> None:
    _write_lines(map(_own_line, rows), file)


def _write_mooncake(rows: Iterable[Row], file: TextIO) -> None:
    _write_lines(map(_mooncake_line, rows), file)


def _write_csv(rows: Iterable[Row], file: TextIO) -> None:
    _write_table(
        ("arrival_s", "input_tokens", "output_tokens", *OPTIONAL_COLUMNS),
        (
            (
                f"{row.at:.6f}".rstrip("0").rstrip("."),
                row.prompt_tokens,
                row.completion_tokens,
                row.tenant,
                row.tier.label,
                row.category,
                row.model,
                row.max_tokens,
                row.session,
                row.phase,
                row.prompt,
                str(row.after_drain).lower(),
            )
            for row in rows
        ),
        file,
    )


def _write_azure(rows: Iterable[Row], file: TextIO) -> None:
    _write_table(
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        (
            (
                f"{AZURE_EPOCH + timedelta(microseconds=round(row.at * 1e6)):%Y-%m-%d %H:%M:%S.%f+00:00}",
                row.prompt_tokens,
                row.completion_tokens,
            )
            for row in rows
        ),
        file,
    )


def _write_burstgpt(rows: Iterable[Row], file: TextIO) -> None:
    _write_table(
        ("Timestamp", "Session ID", "Model", "Request tokens", "Response tokens", "Total tokens", "Log Type"),
        (
            (
                row.at,
                row.session,
                row.model,
                row.prompt_tokens,
                row.completion_tokens,
                row.prompt_tokens + row.completion_tokens,
                "API log",
            )
            for row in rows
        ),
        file,
    )


WRITERS: dict[str, Callable[[Iterable[Row], TextIO], None]] = {
    "jsonl": _write_jsonl,
    "mooncake": _write_mooncake,
    "csv": _write_csv,
    "azure": _write_azure,
    "burstgpt": _write_burstgpt,
}


def _own_line(row: Row) -> dict[str, Any]:
    microseconds = round(row.at * 1e6)
    line: dict[str, Any] = {
        "timestamp": microseconds / 1000 if microseconds % 1000 else microseconds // 1000,
        "input_length": row.prompt_tokens,
        "output_length": row.completion_tokens,
        "session_id": row.session,
        "extra": {"user": row.tenant},
        "tenant": row.tenant,
        "tier": row.tier.label,
        "category": row.category,
        "model": row.model,
        "max_tokens": row.max_tokens,
        "phase": row.phase,
        "prompt": row.prompt or None,
        "after_drain": row.after_drain or None,
    }
    return {key: value for key, value in line.items() if value is not None}


def _mooncake_line(row: Row) -> dict[str, Any]:
    line: dict[str, Any] = {
        "timestamp": round(row.at * 1000),
        "input_length": row.prompt_tokens,
        "output_length": row.completion_tokens,
    }
    if row.session is not None:
        line["session_id"] = row.session
    line["extra"] = {"user": row.tenant}
    return line


def _write_lines(lines: Iterable[dict[str, Any]], file: TextIO) -> None:
    encode = msgspec.json.Encoder().encode
    for line in lines:
        file.write(encode(line).decode())
        file.write("\n")


def _write_table(header: Sequence[str], table: Iterable[Sequence[object]], file: TextIO) -> None:
    writer = csv.writer(_UnixLines(file))
    writer.writerow(header)
    writer.writerows(table)


class _UnixLines:
    """Ends lines with a line feed alone. Told to do so itself, `csv` would leave a carriage return unquoted."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    def write(self, line: str) -> int:
        return self._file.write(line.removesuffix("\r\n") + "\n")


@contextmanager
def _create(path: Path) -> Iterator[TextIO]:
    try:
        with path.open("wb") as raw:
            if path.suffix != ".gz":
                with io.TextIOWrapper(raw, encoding="utf-8", newline="") as file:
                    yield file
                return
            with (  # neither name nor time of writing: the same rows give the same bytes
                gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as zipped,
                io.TextIOWrapper(zipped, encoding="utf-8", newline="") as file,
            ):
                yield file
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
