"""What a running gateway writes and sends about itself, wired together."""

import logging
import os
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from driftsched import __version__
from driftsched.config import LogSettings, OtelSettings
from driftsched.core.errors import ConfigError
from driftsched.core.model import Request
from driftsched.engines.payload import Payload
from driftsched.telemetry.access import AccessLog
from driftsched.telemetry.background import BackgroundHandler
from driftsched.telemetry.lines import LINES, LineFormatter, LogFormat

if TYPE_CHECKING:
    from driftsched.telemetry.otel import OpenTelemetry

_logger = logging.getLogger(__name__)

_STDERR = 2
_ENDPOINT = "OTEL_EXPORTER_OTLP_ENDPOINT"
_OPERATIONS = {
    "/v1/chat/completions": "chat",
    "/v1/responses": "chat",
    "/v1/completions": "text_completion",
    "/v1/embeddings": "embeddings",
}


def log_to_stderr(settings: LogSettings) -> None:
    """From here on everything that is logged goes to standard error, in the form that `settings` asks for."""
    handler = BackgroundHandler(_write_to_stderr)
    handler.setFormatter(LineFormatter(LINES[log_format(settings)]))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)


def log_format(settings: LogSettings, terminal: bool | None = None) -> LogFormat:
    """Text for people, JSON for programs, unless `settings` says which. `terminal`: None: as standard error is."""
    if settings.format == "auto":
        return "text" if (sys.stderr.isatty() if terminal is None else terminal) else "json"
    return settings.format


def open_access_log(settings: LogSettings) -> AccessLog | None:
    """To be started and closed; None if there is none."""
    if not settings.access:
        return None
    return AccessLog(_write_to_stderr, LINES[log_format(settings)], prompts=settings.prompts)


def open_otel(settings: OtelSettings, environment: Mapping[str, str] = os.environ) -> "OpenTelemetry | None":
    """To be started and closed; None unless there is an endpoint. Raises `ConfigError`.

    The environment may be one for all programs of a site, so that what it asks for is done where it can be done.
    """
    if environment.get("OTEL_SDK_DISABLED", "").lower() == "true" or not (
        settings.endpoint or environment.get(_ENDPOINT)
    ):
        return None
    try:
        from driftsched.telemetry.otel import open_telemetry
    except ModuleNotFoundError as error:
        problem = f"OpenTelemetry is not installed ({error.name}): pip install 'driftsched[otel]'"
        if settings.endpoint:
            raise ConfigError(f"otel.endpoint: {problem}") from None
        _logger.warning("%s, to send what the environment asks for", problem)
        return None
    return open_telemetry(
        settings.endpoint,
        operation=operation,
        version=__version__,
        sample_ratio=settings.sample_ratio,
        export_seconds=settings.export_seconds,
    )


def operation(request: Request) -> str:
    """`gen_ai.operation.name` of a request; `other` for what is passed through: paths are no bounded set."""
    endpoint = request.payload.endpoint if isinstance(request.payload, Payload) else ""
    return _OPERATIONS.get(endpoint, "other")


def _write_to_stderr(lines: bytes) -> None:
    """Past Python's own buffer: whoever waits here holds no lock that others, or the end of the process, need."""
    while lines:
        lines = lines[os.write(_STDERR, lines) :]
