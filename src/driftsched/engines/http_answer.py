"""What an HTTP/1.1 server answers, read from bytes as they come: no socket, no clock.

httptools (llhttp) finds heads, chunks and ends, in its strict mode. What is ours is what it leaves open: which
answers last until the connection closes, how long a head may be, and what may follow an answer (nothing).
"""

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

MAX_HEAD_BYTES = 64 * 1024
"""Longest run of bytes that brings nothing of a body: a head, the trailers, what stands between two chunks."""


class HttpError(ConnectionError):
    """A request got no whole answer: the connection broke off before the end."""


class NotHttpError(HttpError):
    """What the server sends does not begin like an answer of HTTP/1.1."""


class Answer:
    """One answer as far as it has come."""

    __slots__ = ("begun", "ended", "failure", "headers", "num_bytes", "pieces", "status")

    def __init__(self) -> None:
        self.begun = False
        """A byte of it has come."""
        self.status = 0
        """100 to 999, once the head is complete."""
        self.headers: dict[str, str] = {}
        """By name in lower case; values of a repeated name are joined with commas. No trailers."""
        self.pieces: list[bytes] = []
        """Of the body: what has come and was not taken."""
        self.num_bytes = 0
        """In `pieces`."""
        self.ended = False
        """The body is complete."""
        self.failure: HttpError | None = None
        """Why there will never be more, though it has not ended."""

    def take(self) -> bytes:
        """All pieces in one."""
        pieces = self.pieces
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self.num_bytes = 0
        return body


class AnswerParser:
    """Reads the answers of one connection, one after the other: `begin`, then `feed` until the answer has ended."""

    def __init__(self) -> None:
        self._parser = HttpResponseParser(self)
        self._num_barren = 0  # bytes since the last that belonged to a body
        self._lasts_until_close = False
        self._answer = Answer()
        self.reusable = False
        """The server keeps the connection open after this answer, and has sent nothing behind it."""

    def begin(self) -> Answer:
        """The next answer, which `feed` fills. The last one must have ended and `reusable` be true."""
        self._answer = Answer()
        self._num_barren = 0
        return self._answer

    def feed(self, data: bytes) -> None:
        """Raises `HttpError`, and `NotHttpError` before the head is complete. What has ended stays as it is."""
        answer = self._answer
        answer.begun = True
        self._num_barren += len(data)
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade) as error:
            self.reusable = False
            if not answer.ended:
                raise _failure(answer, str(error.__context__ or error)) from error
        if self._num_barren > MAX_HEAD_BYTES and not answer.ended:
            raise _failure(answer, f"more than {MAX_HEAD_BYTES} bytes of head, trailers or chunk extensions")

    def finish(self) -> None:
        """The server has closed its side in good order: that is the end of a body without a length."""
        self.reusable = False
        if self._answer.status and self._lasts_until_close:
            self._answer.ended = True

    # What httptools calls. An exception ends `feed_data`.

    def on_message_begin(self) -> None:
        if self._answer.ended:
            raise NotHttpError("an answer that nobody asked for")

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._answer.status:  # a trailer
            return
        headers, key = self._answer.headers, name.decode("latin-1").lower()
        text = value.decode("latin-1").strip(" \t")
        headers[key] = f"{headers[key]}, {text}" if key in headers else text

    def on_headers_complete(self) -> None:
        headers = self._answer.headers
        status = self._parser.get_status_code()
        if status < 100:
            raise NotHttpError(f"status {status}")
        if status < 200 and status != 101:  # 100 Continue, 103 Early Hints: the answer comes after them
            headers.clear()
            return
        coding = headers.get("transfer-encoding")
        if coding is not None and coding.lower() != "chunked":
            raise NotHttpError(f"transfer-encoding {coding!r}, which was not asked for")
        self._lasts_until_close = coding is None and "content-length" not in headers
        self.reusable = self._parser.should_keep_alive()
        self._answer.status = status

    def on_body(self, data: bytes) -> None:
        self._answer.pieces.append(data)
        self._answer.num_bytes += len(data)
        self._num_barren = 0

    def on_message_complete(self) -> None:
        self._answer.ended = self._answer.status > 0


def _failure(answer: Answer, reason: str) -> HttpError:
    return HttpError(reason) if answer.status else NotHttpError(reason)
