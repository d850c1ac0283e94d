"""How often the configuration was read anew, and whether what is in the files is what runs."""

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector


class Reloads(Collector):
    """Counted by whoever reads the files; a collector of metrics."""

    def __init__(self) -> None:
        self.num_applied = 0
        self.num_refused = 0
        self.is_current = True
        """False once the files as they are were refused: what ran before goes on."""

    def applied(self) -> None:
        self.num_applied += 1
        self.is_current = True

    def refused(self) -> None:
        self.num_refused += 1
        self.is_current = False

    def collect(self) -> Iterator[CounterMetricFamily | GaugeMetricFamily]:
        reloads = CounterMetricFamily("driftsched_config_reloads", "Files were read anew", labels=["outcome"])
        reloads.add_metric(["applied"], self.num_applied)
        reloads.add_metric(["refused"], self.num_refused)
        yield reloads
        yield GaugeMetricFamily("driftsched_config_current", "The files were not refused", value=self.is_current)
