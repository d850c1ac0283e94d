"""Every failure in OpenAI's shape, with what the official SDKs look at: status, code and retry headers."""

from collections.abc import Iterable
from math import ceil

import msgspec

from driftsched.core.errors import EngineError, RejectedError


class HttpError(Exception):
    """An answer other than the one that was asked for."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        type: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        headers: tuple[tuple[str, str], ...] = (),
        body: bytes | None = None,
    ) -> None:
        """`body` replaces the document made from the other arguments."""
        super().__init__(message)
        self.status = status
        self.code = code
        self.headers = headers
        self.body = body or error_document(message, type, param, code)


class ExpiredError(Exception):
    """The request waited in the queue for as long as it may."""


class ShedError(Exception):
    """The queue was full, and the request's place was given to another."""


class ClientLeftError(Exception):
    """The client closed its connection before its call was complete."""


class ClientStalledError(Exception):
    """The client takes nothing of its answer."""


def error_document(message: str, type_: str, param: str | None = None, code: str | None = None) -> bytes:
    """The four keys that OpenAI's clients require, all always there."""
    return msgspec.json.encode({"error": {"message": message, "type": type_, "param": param, "code": code}})


def model_not_found(model: str, served: Iterable[str]) -> HttpError:
    """404: there is no such model, or not for this caller, who may use those that are `served`."""
    names = ", ".join(served)
    return HttpError(
        404,
        f"The model {model!r} is not served here{': use one of ' if names else ''}{names}.",
        param="model",
        code="model_not_found",
    )


def from_rejection(error: RejectedError) -> HttpError:
    """429 when retrying helps; 503 when this server is going away."""
    if error.reason in _QUOTAS:
        return HttpError(
            429,
            str(error),
            type=_QUOTAS[error.reason],
            code="rate_limit_exceeded",
            headers=retry_headers(error.retry_after_seconds),
        )
    return HttpError(
        503 if error.reason == "shutting_down" else 429,
        str(error),
        type="server_error" if error.reason == "shutting_down" else "rate_limit_error",
        code=error.reason,
        headers=retry_headers(error.retry_after_seconds),
    )


def from_expiry(waited_seconds: float, retry_after_seconds: float) -> HttpError:
    return HttpError(
        429,
        f"The request waited {waited_seconds:.0f} seconds in the queue without a turn. Retry later.",
        type="rate_limit_error",
        code="queue_timeout",
        headers=retry_headers(retry_after_seconds),
    )


def from_shed(waited_seconds: float, retry_after_seconds: float) -> HttpError:
    return HttpError(
        429,
        f"The queue is full, and after {waited_seconds:.0f} seconds the request's place was given to another. "
        "Retry later.",
        type="rate_limit_error",
        code="shed",
        headers=retry_headers(retry_after_seconds),
    )


def from_engine(error: EngineError, retry_after_seconds: float) -> HttpError:
    """The engine's own document and Retry-After when it sent them, else ours if it was busy or away."""
    if error.retry_after:
        headers: tuple[tuple[str, str], ...] = (("retry-after", error.retry_after),)
    else:
        headers = retry_headers(retry_after_seconds) if error.status in (429, 503) else ()
    return HttpError(
        error.status,
        str(error),
        type="invalid_request_error" if error.status < 500 else "server_error",
        code=error.kind,
        headers=headers,
        body=error.body,
    )


def stopping(retry_after_seconds: float) -> HttpError:
    """The server stops, and the time it gives to what it admitted is over."""
    return HttpError(
        503,
        "The server is shutting down. Retry later.",
        type="server_error",
        code="shutting_down",
        headers=retry_headers(retry_after_seconds),
    )


def internal() -> HttpError:
    """A fault of this server's own; what it is stands in the log, and is not the client's business."""
    return HttpError(500, "The server failed to answer.", type="server_error", code="internal_error")


_QUOTAS = {"requests_quota": "requests", "tokens_quota": "tokens"}
"""What OpenAI's error names as its type, by the reason of the rejection."""


def retry_headers(seconds: float | None) -> tuple[tuple[str, str], ...]:
    """`Retry-After` in both forms the SDKs read; told not to retry when there is no point in it."""
    if seconds is None:
        return (("x-should-retry", "false"),)
    return (("retry-after", str(ceil(seconds))), ("retry-after-ms", str(round(seconds * 1000))))
