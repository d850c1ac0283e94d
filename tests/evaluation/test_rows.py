"""Files of recorded requests: what is understood, and what is refused with its place."""

import csv
import gzip
import io
import json
from pathlib import Path
from typing import Any

import pytest

from driftsched.core.errors import ConfigError
from driftsched.core.messages import PROMPT_HEAD_CHARS
from driftsched.core.traits import read_traits
from driftsched.evaluation.rows import Row, read_rows
from driftsched.gateway import wire

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": [{"type": "text", "text": "Hello"}, {"type": "image_url", "image_url": {}}]},
    {"role": "assistant", "content": "Yes?"},
    {"role": "user", "content": "Why\nis the sky blue?"},
]
RECORDS: list[dict[str, Any]] = [
    {
        "arrived_at": 12.5, "tenant": "acme", "session": "s1", "model": "m", "messages": MESSAGES,
        "prompt_tokens": 20, "completion_tokens": 7, "finish_reason": "Stop", "max_tokens": 100,
    },
    {
        "arrived_at": 13, "model": "n", "completion_tokens": 0, "prompt": '\u00e4, "quoted"',
        "finish_reason": "length",
    },
]  # fmt: skip


def as_json_lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def as_csv(records: list[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, sorted({name for record in records for name in record}))
    writer.writeheader()
    for record in records:
        writer.writerow({name: json.dumps(v) if name == "messages" else v for name, v in record.items()})
    return text.getvalue().encode()


def read(tmp_path: Path, content: bytes) -> list[Row]:
    path = tmp_path / "data"
    path.write_bytes(content)
    return read_rows(path)


@pytest.mark.parametrize("encode", [as_json_lines, as_csv])
@pytest.mark.parametrize("zipped", [False, True])
def test_json_lines_and_csv_say_the_same_gzipped_or_not(tmp_path: Path, encode: Any, zipped: bool) -> None:
    content = encode(RECORDS)
    first, second = read(tmp_path, gzip.compress(content) if zipped else content)
    texts = [("system", "Be brief."), ("user", "Hello"), ("assistant", "Yes?"), ("user", "Why\nis the sky blue?")]
    size = sum(len(text) for _, text in texts)
    assert first == Row(
        7, 12.5, "acme", "m", "Why\nis the sky blue?", size, 20, "stop", 100,
        traits=read_traits(texts, tenant="acme", session="s1"),
    )  # fmt: skip
    prompt = '\u00e4, "quoted"'
    traits = read_traits([("user", prompt)], tenant="default")
    assert second == Row(0, 13.0, "default", "n", prompt, len(prompt) + 1, 0, "length", traits=traits)


def test_as_much_of_a_prompt_is_kept_as_in_the_gateway(tmp_path: Path) -> None:
    body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "x" * 300_000}]}).encode()
    call = wire.read_call(wire.decode_body(wire.CHAT, body), tenant="default", session="")
    (row,) = read(tmp_path, as_csv([{"completion_tokens": 1, "prompt": "x" * 300_000}]))
    assert (call.prompt, call.prompt_bytes) == (row.prompt, row.prompt_bytes)
    assert (PROMPT_HEAD_CHARS, 300_000) == (len(row.prompt), row.prompt_bytes)


def test_a_prompt_without_text_has_four_bytes_a_token(tmp_path: Path) -> None:
    assert 400 == read(tmp_path, b"prompt_tokens,completion_tokens\n100,5\n")[0].prompt_bytes


def test_a_byte_order_mark_is_no_part_of_the_data(tmp_path: Path) -> None:
    for content in (b'{"completion_tokens": 4}', b"completion_tokens\n4\n"):
        assert [4] == [row.completion_tokens for row in read(tmp_path, b"\xef\xbb\xbf" + content)]


def test_no_limit_is_written_as_nothing_or_nought(tmp_path: Path) -> None:
    rows = read(tmp_path, b"completion_tokens,max_tokens\n4,\n4,0\n4,1000000000\n")
    assert [None, None, 1_000_000_000] == [row.max_tokens for row in rows]


def test_reading_leaves_the_csv_module_as_it_was(tmp_path: Path) -> None:
    before = csv.field_size_limit(12345)
    try:
        read(tmp_path, b"completion_tokens\n4\n")
        with pytest.raises(ConfigError) as raised:
            read(tmp_path, b"completion_tokens\nx\n")
        assert 12345 == csv.field_size_limit(), raised
    finally:
        csv.field_size_limit(before)


def test_names_may_be_numbers(tmp_path: Path) -> None:
    content = b'{"completion_tokens": 1, "tenant": 7, "model": 3.0}\n{"completion_tokens": 1, "tenant": null}\n'
    assert [("7", "3"), ("default", "")] == [(row.tenant, row.model) for row in read(tmp_path, content)]


def test_rows_are_put_in_order_of_arrival(tmp_path: Path) -> None:
    content = b"arrived_at,completion_tokens\n2026-01-31T22:00:01,2\n2026-01-31T22:00:00Z,1\n"
    assert [1, 2] == [row.completion_tokens for row in read(tmp_path, content)]


def test_unknown_columns_are_named_once(tmp_path: Path) -> None:
    path = tmp_path / "data.csv"
    path.write_text("completion_tokens,colour,size\n1,red,2\n2,blue,3\n")
    told: list[str] = []
    read_rows(path, told.append)
    assert ["data.csv: ignored columns: colour, size"] == told


@pytest.mark.parametrize(
    ("reason", "max_tokens", "finished", "known"),
    [
        ("", None, True, True),
        ("stop", 100, True, True),
        ("tool_calls", None, True, True),
        ("length", None, False, False),
        ("cancelled", 100, False, False),
        ("length", 10, False, True),
        ("stop", 10, False, True),
    ],
)
def test_an_answer_is_whole_unless_its_reason_or_its_limit_says_otherwise(
    reason: str, max_tokens: int | None, finished: bool, known: bool
) -> None:
    row = Row(10, finish_reason=reason, max_tokens=max_tokens)
    assert (finished, known) == (row.finished, row.known)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"completion_tokens": 1}\n{"completion_tokens": "many"}', ":2: completion_tokens: must be a number"),
        (b'{"completion_tokens": NaN}', ":1: completion_tokens: must be a number, not nan"),
        (b'{"completion_tokens": 1, "max_tokens": NaN}', ":1: max_tokens: must be a number, not nan"),
        (b'{"completion_tokens": Infinity}', ":1: completion_tokens: must be a number, not inf"),
        (b'{"completion_tokens": 1', ":1: not JSON"),
        (b'{"completion_tokens": ' + b"9" * 5000 + b"}", ":1: not JSON"),
        (b"completion_tokens\nnan\n", ":2: completion_tokens: must be a number, not 'nan'"),
        (b"completion_tokens\n-1\n", ":2: completion_tokens: must be a whole number of tokens"),
        (b"completion_tokens\n1e9\n", ":2: completion_tokens: must be a whole number of tokens"),
        (b"completion_tokens\n1.5\n", ":2: completion_tokens: must be a whole number of tokens"),
        (b'{"completion_tokens": true}', ":1: completion_tokens: must be a number"),
        (b'{"model": "m"}', ":1: completion_tokens: is missing"),
        (b"model\nm\n", ":1: completion_tokens: no such column"),
        (b"completion_tokens,model\n1,m\n2\n", ":3: 1 fields, where the header has 2"),
        (b"completion_tokens,completion_tokens\n1,1\n", ":1: completion_tokens: the column comes twice"),
        (b'{"completion_tokens": 1, "messages": [1]}', ":1: messages: must be a list of messages"),
        (b'{"completion_tokens": 1, "prompt": {}}', ":1: prompt: must be a text"),
        (b'{"completion_tokens": 1, "tenant": 1.5}', ":1: tenant: must be a text"),
        (b"arrived_at,completion_tokens\n12:99,1\n", ":2: arrived_at: must be seconds or a time"),
        (b"arrived_at,completion_tokens\n1,1\n,1\n", ": arrived_at: 1 rows have none"),
        (b"[1]\n", ":1: completion_tokens: no such column"),
        (b"\xff\xfe", ":1: not UTF-8 text"),
        (b"", ": no requests"),
        (b"completion_tokens\n", ": no requests"),
        (gzip.compress(b"completion_tokens\n1\n")[:-9], "broken or truncated gzip"),
    ],
)
def test_what_is_wrong_with_a_file_is_said_with_its_place(tmp_path: Path, content: bytes, problem: str) -> None:
    with pytest.raises(ConfigError) as raised:
        read(tmp_path, content)
    assert problem in str(raised.value)


def test_a_file_that_is_not_there_is_said_so(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_rows(tmp_path / "none.csv")
