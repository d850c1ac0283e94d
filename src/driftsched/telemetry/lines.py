"""Log lines, as JSON or as text. Whatever a client put into a field, a line stays one line."""

import json
import logging
import time
from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import msgspec

LogFormat = Literal["json", "text"]
Field = str | int | float | None


class Fields(msgspec.Struct, omit_defaults=True):
    """What a line tells beside its message. A field whose default is None is left out while it is that."""


NO_FIELDS = Fields()

Line = Callable[[float, str, str, str, Fields], str]
"""Instant in seconds since 1970 UTC, level, logger, message and fields to a line, its end included."""

_encode = msgspec.json.Encoder().encode


def json_line(at: float, level: str, logger: str, message: str, fields: Fields) -> str:
    """One JSON object, in ASCII."""
    head = {"time": _instant(at), "level": level, "logger": logger, "message": message}
    try:
        line = _encode(head)
        if fields is not NO_FIELDS:
            line = line[:-1] + b"," + _encode(fields)[1:]
    except UnicodeEncodeError:  # half a surrogate pair
        line = b"\x7f"
    if not line.isascii() or b"\x7f" in line:  # whatever a terminal may obey is escaped, C1 and bidi included
        return json.dumps(head | _told(fields)) + "\n"
    return line.decode() + "\n"


def text_line(at: float, level: str, logger: str, message: str, fields: Fields) -> str:
    """Instant, level, logger and message, then `name=value` of each field that is not None."""
    told = "".join(f" {name}={_shown(value)}" for name, value in _told(fields).items())
    return f"{_instant(at)} {level} {logger}: {printable(message)}{told}\n"


LINES: dict[LogFormat, Line] = {"json": json_line, "text": text_line}


class _Trouble(Fields):
    exception: str


class LineFormatter(logging.Formatter):
    """What other parts of the program log, in the same form. A traceback is a field of it."""

    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def format(self, record: logging.LogRecord) -> str:
        fields = _Trouble(self.formatException(record.exc_info)) if record.exc_info else NO_FIELDS
        line = self._line(record.created, record.levelname.lower(), record.name, record.getMessage(), fields)
        return line.removesuffix("\n")


def printable(text: str) -> str:
    """`text` with all that is not printable written as an escape, as in Python's own strings."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def _shown(value: Field) -> str:
    if not isinstance(value, str):
        return str(value)
    if value and value.isprintable() and not set(value) & set(' "=\\'):
        return value
    return json.dumps(value, ensure_ascii=not value.isprintable())


def _told(fields: Fields) -> dict[str, Field]:
    return {name: value for name, value in msgspec.structs.asdict(fields).items() if value is not None}


def _instant(at: float) -> str:
    """UTC, to the millisecond, as in RFC 3339."""
    seconds = int(at)
    return f"{_second(seconds)}.{int((at - seconds) * 1000):03d}Z"


@lru_cache(maxsize=2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
