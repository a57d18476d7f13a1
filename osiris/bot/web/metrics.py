"""Metrics in the format of Prometheus."""

from collections.abc import Iterator, Sequence

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Metric, generate_latest
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from osiris.core.ports.storage import MetricSample

__all__ = ["CONTENT_TYPE_LATEST", "render_metrics"]

_MEANINGS = {
    "tasks": "Tasks, by state",
    "orders_waiting": "Orders that are not done yet, by kind",
    "orders_parked": "Orders that wait for a person and a retry, by kind",
    "deliveries_waiting": "Deliveries that are not decided yet, by source",
    "oldest_delivery_seconds": "Age of the oldest delivery that is not decided yet",
    "workers": "Workers that hold a lease",
    "loop_stalls": (
        "Times that the event loop of a process was blocked for more than a second, by worker;"
        " or web"
    ),
    "writes_last_hour": "Writes to GitHub in the last hour, by account; GitHub allows 500",
}


def render_metrics(figures: Sequence[MetricSample]) -> bytes:
    """Return every figure as a gauge named osiris_NAME."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_MetricsCollector(figures))
    return generate_latest(registry)


class _MetricsCollector(Collector):
    def __init__(self, figures: Sequence[MetricSample]) -> None:
        self._samples = figures

    def collect(self) -> Iterator[Metric]:
        for name, meaning in _MEANINGS.items():
            found = [figure for figure in self._samples if figure.name == name]
            gauge = GaugeMetricFamily(
                f"osiris_{name}", meaning, labels=[f.label for f in found[:1] if f.label]
            )
            for figure in found:
                gauge.add_metric([figure.value] if figure.label else [], figure.count)
            yield gauge
