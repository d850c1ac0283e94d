import logging

import pytest

from driftsched.core.events import DriftDetected, PolicyChanged, Recalibrated
from driftsched.telemetry.log import log_drift, log_policy


def test_a_drift_is_one_line_whatever_the_model_is_called(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_drift(DriftDetected(1.0, "m\nERROR", "summary", 1.6))
    [line] = caplog.messages
    assert line.startswith(
        r"drift detected: answers of model 'm\nERROR' in category 'summary' have become 1.60 times"
    )
    assert "\n" not in line


def test_a_change_of_the_policy_is_one_line_with_its_reason(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_policy(PolicyChanged(1.0, "fair:slack=2", "fair:slack=4", "p50 is 12 % lower"))
    assert ["policy changed from fair:slack=2 to fair:slack=4: p50 is 12 % lower"] == caplog.messages


def test_other_events_leave_no_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    for log in (log_drift, log_policy):
        log(Recalibrated(1.0, "m", "summary", 1.0, 1.1))
    assert [] == caplog.messages


def test_the_pool_whose_policy_changed_is_named(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    log_policy(PolicyChanged(1.0, "fifo", "sjf", "p50 is 12 % lower"), pool="chat")
    assert "policy of pool chat changed from fifo to sjf: p50 is 12 % lower" == caplog.records[0].getMessage()
