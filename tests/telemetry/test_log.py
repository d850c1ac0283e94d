import logging

import pytest

from driftsched.core.events import DriftDetected, Recalibrated
from driftsched.telemetry.log import log_drift


def test_a_drift_is_one_line_whatever_the_model_is_called(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_drift(DriftDetected(1.0, "m\nERROR", "summary", 1.6))
    [line] = caplog.messages
    assert line.startswith(
        r"drift detected: answers of model 'm\nERROR' in category 'summary' have become 1.60 times"
    )
    assert "\n" not in line


def test_other_events_leave_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    log_drift(Recalibrated(1.0, "m", "summary", 1.0, 1.1))
    assert [] == caplog.messages
