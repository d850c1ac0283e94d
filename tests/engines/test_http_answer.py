"""Answers read from bytes: whatever the pieces they come in, the same status, headers and body."""

from collections.abc import Iterable
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from driftsched.engines.http_answer import MAX_HEAD_BYTES, Answer, AnswerParser, HttpError, NotHttpError

SIZED = b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nX-A: b\r\n\r\nhello"
CHUNKED = (
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: Chunked\r\nX-A: b\r\n\r\n"
    b'3\r\nhel\r\n002;name=value;other="a;b"\r\nlo\r\n0;last\r\nX-Sum: 1\r\nX-A: not this\r\n\r\n'
)
UNTIL_CLOSE = b"HTTP/1.1 200 OK\r\nX-A: b\r\n\r\nhello"
INTERIM = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nX-A: hint\r\n\r\n"


def read(pieces: Iterable[bytes]) -> tuple[AnswerParser, Answer]:
    """The answer after `pieces` and, if it has not ended by then, the end of the connection."""
    parser = AnswerParser()
    answer = parser.begin()
    for piece in pieces:
        parser.feed(piece)
    if not answer.ended:
        parser.finish()
    return parser, answer


def found(answer: Answer) -> tuple[int, str | None, bytes, bool]:
    return answer.status, answer.headers.get("x-a"), answer.take(), answer.ended


@pytest.mark.parametrize("sent", [SIZED, CHUNKED, UNTIL_CLOSE, INTERIM + SIZED, INTERIM + CHUNKED])
def test_an_answer_is_the_same_wherever_it_is_split(sent: bytes) -> None:
    for at in range(len(sent) + 1):
        _, answer = read([sent[:at], sent[at:]])
        assert (200, "b", b"hello", True) == found(answer), at


@pytest.mark.parametrize("sent", [SIZED, CHUNKED, UNTIL_CLOSE, INTERIM + SIZED])
def test_an_answer_may_come_byte_by_byte(sent: bytes) -> None:
    _, answer = read(sent[at : at + 1] for at in range(len(sent)))
    assert (200, "b", b"hello", True) == found(answer)


names = st.text("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-_", min_size=1, max_size=9).map("X-{}".format)
values = st.text(st.characters(min_codepoint=33, max_codepoint=255, exclude_characters="\x7f"), max_size=9)
framings = st.sampled_from(["sized", "chunked", "until close"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, int, dict[str, str], bytes]:
    """An answer as it is sent, and what it says."""
    status = draw(st.integers(200, 599).filter(lambda code: code not in (204, 304)))
    headers = draw(st.dictionaries(names, values, max_size=4))
    said: dict[str, str] = {}
    for name, value in headers.items():
        said[name.lower()] = f"{said[name.lower()]}, {value}" if name.lower() in said else value
    chunks = draw(st.lists(st.binary(min_size=1, max_size=40), max_size=4))
    body = b"".join(chunks)
    framing = draw(framings)
    lines = [f"{name}: {value}\r\n".encode("latin-1") for name, value in headers.items()]
    if framing == "sized":
        lines.append(b"Content-Length: %d\r\n" % len(body))
    elif framing == "chunked":
        lines.append(b"Transfer-Encoding: chunked\r\n")
        body_sent = b"".join(b"%x\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks) + b"0\r\n\r\n"
    head = b"HTTP/1.1 %d Some Reason\r\n%b\r\n" % (status, b"".join(lines))
    return head + (body_sent if framing == "chunked" else body), status, said, body


@given(answers(), st.lists(st.integers(0, 300), max_size=8))
def test_any_split_of_any_answer_gives_the_same(
    answer: tuple[bytes, int, dict[str, str], bytes], cuts: list[int]
) -> None:
    sent, status, headers, body = answer
    edges = [0, *sorted(min(cut, len(sent)) for cut in cuts), len(sent)]
    _, seen = read(sent[start:end] for start, end in pairwise(edges))
    framing = {"content-length", "transfer-encoding"}
    assert (status, body, True) == (seen.status, seen.take(), seen.ended)
    assert headers == {name: value for name, value in seen.headers.items() if name not in framing}


@given(st.binary(max_size=200), st.sampled_from([b"", b"HTTP/1.1 ", SIZED[:40], CHUNKED[:60]]))
def test_nothing_a_server_sends_raises_another_error(junk: bytes, begin: bytes) -> None:
    parser = AnswerParser()
    parser.begin()
    try:
        parser.feed(begin + junk)
        parser.finish()
    except HttpError:
        assert not parser.reusable


@pytest.mark.parametrize("status", [204, 304])
def test_some_answers_have_no_body_whatever_their_head_says(status: int) -> None:
    parser, answer = read([b"HTTP/1.1 %d X\r\nContent-Length: 5\r\n\r\n" % status])
    assert (status, b"", True, True) == (answer.status, answer.take(), answer.ended, parser.reusable)


def test_an_answer_that_changes_the_protocol_has_ended_and_so_has_the_connection() -> None:
    parser, answer = read([b"HTTP/1.1 101 Switching\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\nx speaks"])
    assert (101, b"", True, False) == (answer.status, answer.take(), answer.ended, parser.reusable)


@pytest.mark.parametrize("sent", [SIZED, CHUNKED])
def test_a_body_that_ends_too_soon_has_not_ended(sent: bytes) -> None:
    for at in range(len(sent)):
        _, answer = read([sent[:at]])
        assert not answer.ended


def test_a_head_that_ends_too_soon_is_no_answer() -> None:
    _, answer = read([UNTIL_CLOSE[:20]])
    assert (0, False) == (answer.status, answer.ended)


@pytest.mark.parametrize(
    ("sent", "reusable"),
    [
        (SIZED, True),
        (CHUNKED, True),
        (UNTIL_CLOSE, False),
        (SIZED.replace(b"X-A: b", b"Connection: close"), False),
        (SIZED.replace(b"1.1", b"1.0"), False),
        (SIZED.replace(b"1.1", b"1.0").replace(b"X-A: b", b"Connection: keep-alive"), True),
    ],
)
def test_a_connection_is_used_again_if_the_server_keeps_it(sent: bytes, reusable: bool) -> None:
    assert reusable == read([sent])[0].reusable


@pytest.mark.parametrize("junk", [b"x", b"H", b"HTTP/1.1 200 OK\r\n", SIZED, b"\x00", b"0\r\n\r\n"])
@pytest.mark.parametrize("sent", [SIZED, CHUNKED, SIZED.replace(b"X-A: b", b"Connection: close")])
def test_what_follows_an_answer_spoils_the_connection_but_not_the_answer(sent: bytes, junk: bytes) -> None:
    parser, answer = read([sent + junk])
    assert (b"hello", True, False) == (answer.take(), answer.ended, parser.reusable)


def test_an_answer_knows_nothing_of_the_one_before() -> None:
    parser, first = read([SIZED])
    second = parser.begin()
    parser.feed(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\nno")
    assert (200, b"hello") == (first.status, first.take())
    assert (404, {"content-length": "2"}, b"no") == (second.status, second.headers, second.take())


def test_a_repeated_header_is_joined() -> None:
    _, answer = read([b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-A: 1\r\nx-a:   2  \r\n\r\n"])
    assert answer.headers["x-a"] == "1, 2"


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00",
        b"GET / HTTP/1.1\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.6\r\n",
        b"HTTP/1.1 OK\r\n\r\n",
        b"HTTP/1.1 000 OK\r\n\r\n",
        b"HTTP/1.1 099 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX : a\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\x00b\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 0\n\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked, chunked\r\n\r\n",
    ],
)
def test_what_does_not_begin_like_an_answer_is_not_http(sent: bytes) -> None:
    parser = AnswerParser()
    answer = parser.begin()
    with pytest.raises(NotHttpError):
        parser.feed(sent)
    assert (0, False) == (answer.status, parser.reusable)


@pytest.mark.parametrize("broken", [b"5 \r\nhello\r\n", b"zz\r\n", b"5\r\nhelloworld", b"ffffffffffffffffff\r\n"])
def test_a_broken_chunk_breaks_off_the_answer_after_what_came_before(broken: bytes) -> None:
    parser = AnswerParser()
    answer = parser.begin()
    parser.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nhi\r\n")
    with pytest.raises(HttpError) as caught:
        parser.feed(broken)
    assert not isinstance(caught.value, NotHttpError)
    assert (b"hi", False) == (answer.take()[:2], answer.ended)


def feed_in_blocks(parser: AnswerParser, data: bytes) -> None:
    for start in range(0, len(data), 1000):
        parser.feed(data[start : start + 1000])


def test_a_long_head_is_read() -> None:
    parser = AnswerParser()
    answer = parser.begin()
    value = b"v" * (MAX_HEAD_BYTES - 100)
    feed_in_blocks(parser, b"HTTP/1.1 200 OK\r\nX-A: %b\r\nContent-Length: 0\r\n\r\n" % value)
    assert (value.decode(), True) == (answer.headers["x-a"], answer.ended)


def test_the_heads_of_many_answers_do_not_add_up() -> None:
    parser = AnswerParser()
    sent = b"HTTP/1.1 204 No Content\r\nX-A: %b\r\n\r\n" % (b"v" * 1000)
    for _ in range(2 * MAX_HEAD_BYTES // len(sent)):
        answer = parser.begin()
        feed_in_blocks(parser, sent)
        assert answer.ended


@pytest.mark.parametrize(
    "sent",
    [
        b"HTTP/1.1 200 OK\r\nX-A: %b" % (b"v" * 2 * MAX_HEAD_BYTES),
        b"HTTP/1.1 200 %b" % (b"v" * 2 * MAX_HEAD_BYTES),
        b"HTTP/1.1 200 OK\r\n%b" % (b"X-A: b\r\n" * MAX_HEAD_BYTES),
        b"HTTP/1.1 100 Continue\r\n\r\n" * MAX_HEAD_BYTES,
    ],
    ids=["value", "reason", "count", "interim"],
)
def test_a_head_without_end_is_not_http(sent: bytes) -> None:
    parser = AnswerParser()
    parser.begin()
    with pytest.raises(NotHttpError, match=f"more than {MAX_HEAD_BYTES} bytes"):
        feed_in_blocks(parser, sent)


@pytest.mark.parametrize(
    "sent", [b"0\r\nX-Sum: " + b"v" * 2 * MAX_HEAD_BYTES, b"2;ext=" + b"v" * 2 * MAX_HEAD_BYTES]
)
def test_trailers_and_extensions_without_end_break_off_the_answer(sent: bytes) -> None:
    parser = AnswerParser()
    parser.begin()
    parser.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with pytest.raises(HttpError, match=f"more than {MAX_HEAD_BYTES} bytes"):
        feed_in_blocks(parser, sent)
