"""What a running gateway writes and sends about itself, wired together."""

import logging
import os
import sys

from driftsched.config import LogSettings
from driftsched.telemetry.access import AccessLog
from driftsched.telemetry.lines import LINES, LineFormatter, LogFormat

_STDERR = 2


def log_to_stderr(settings: LogSettings) -> None:
    """From here on everything that is logged goes to standard error, in the form that `settings` asks for."""
    handler = logging.StreamHandler()
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


def _write_to_stderr(lines: bytes) -> None:
    """Past Python's own buffer: whoever waits here holds no lock that others, or the end of the process, need."""
    while lines:
        lines = lines[os.write(_STDERR, lines) :]
