"""Log lines: whatever is in a field, one line, and nothing that a terminal obeys."""

import json
import logging
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.telemetry.lines import LINES, NO_FIELDS, Fields, LineFormatter, LogFormat, json_line, text_line

AT = 1_764_104_405.25
FORMATS: list[LogFormat] = ["json", "text"]
NASTY = 'a"b\nERROR root: forged=1\r\x1b[31m\x9b0m\u2028\u202e\x7f\\ é 好'
ANYTHING = st.text(st.characters(codec=None)) | st.just(NASTY)


class Some(Fields):
    said: str
    count: int = 0
    missing: float | None = None


def logged(line_format: LogFormat, message: str, *arguments: object, exc_info: BaseException | None = None) -> str:
    record = logging.LogRecord(
        "some.part",
        logging.WARNING,
        "f.py",
        1,
        message,
        arguments,
        None if exc_info is None else (type(exc_info), exc_info, None),
    )
    record.created = AT
    return LineFormatter(LINES[line_format]).format(record)


def is_harmless(line: str) -> bool:
    """No character of it controls anything, but for the end of the line."""
    return line.endswith("\n") and not {unicodedata.category(c) for c in line[:-1]} & {"Cc", "Cf", "Zl", "Zp", "Cs"}


@given(ANYTHING, ANYTHING)
def test_a_line_stays_one_line_and_controls_nothing_whatever_clients_say(message: str, said: str) -> None:
    for line in LINES.values():
        assert is_harmless(line(AT, "info", "x", message, Some(said)))


@given(ANYTHING, ANYTHING)
def test_a_json_line_says_exactly_what_was_said(message: str, said: str) -> None:
    document = json.loads(json_line(AT, "info", "x", message, Some(said, 7)))
    assert {
        "time": "2025-11-25T21:00:05.250Z",
        "level": "info",
        "logger": "x",
        "message": message,
        "said": said,
        "count": 7,
    } == document


def test_a_text_line_quotes_what_would_be_taken_for_something_else() -> None:
    line = text_line(AT, "info", "x", "request", Some("a b=c", 7))
    assert '2025-11-25T21:00:05.250Z info x: request said="a b=c" count=7\n' == line


@pytest.mark.parametrize(
    ("said", "shown"), [("plain", "plain"), ("é", "é"), ("", '""'), ('"', r'"\""'), ("a\nb", r'"a\nb"')]
)
def test_a_field_is_quoted_only_if_it_must_be(said: str, shown: str) -> None:
    assert f" said={shown} " in text_line(AT, "info", "x", "m", Some(said))


def test_a_line_without_fields_has_none() -> None:
    assert {"time", "level", "logger", "message"} == set(json.loads(json_line(AT, "info", "x", "m", NO_FIELDS)))


@pytest.mark.parametrize("line_format", FORMATS)
def test_what_other_parts_log_has_the_same_form(line_format: LogFormat) -> None:
    line = logged(line_format, "engine %s is gone\nERROR", "gpu-1")
    assert line == LINES[line_format](AT, "warning", "some.part", "engine gpu-1 is gone\nERROR", NO_FIELDS)[:-1]


@pytest.mark.parametrize("line_format", FORMATS)
def test_a_traceback_is_a_field_of_its_line(line_format: LogFormat) -> None:
    line = logged(line_format, "failed", exc_info=ValueError("x\ny"))
    assert is_harmless(line + "\n")
    assert "ValueError: x" in line
