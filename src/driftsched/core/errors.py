"""What may go wrong, as types: a driver turns each into its wire form."""


class DriftschedError(Exception):
    """Base of every error this package raises on purpose."""


class ConfigError(DriftschedError):
    """A setting is wrong. The message names it, says why, and what to write instead."""


class RejectedError(DriftschedError):
    """The scheduler did not admit a request.

    `reason` is one of the words documented at `driftsched.core.events.Rejected`; `retry_after_seconds` is when it
    is worth trying again, None if never.
    """

    def __init__(self, reason: str, message: str, retry_after_seconds: float | None) -> None:
        super().__init__(message)
        self.reason = reason
        self.retry_after_seconds = retry_after_seconds


class EngineError(DriftschedError):
    """The engine did not serve a request.

    `status` is the engine's HTTP status, or 502 when its answer made no sense or broke off, 503 when it could not
    be reached, 504 when it was too slow. `kind` is a short word for metrics. `body` is the engine's own error
    document when it sent one worth passing on. `retry_after` is its Retry-After header, verbatim.
    """

    def __init__(
        self,
        status: int,
        kind: str,
        message: str,
        *,
        body: bytes | None = None,
        retry_after: str | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.kind = kind
        self.body = body
        self.retry_after = retry_after
