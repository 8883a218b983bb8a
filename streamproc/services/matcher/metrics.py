"""Metrics of the matcher, computed when Prometheus asks for them."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric


class MatcherMetrics(Collector):
    """What the matcher counts.

    Written by the matcher's event loop alone, so without a lock. For rates use Prometheus's
    `rate()`.
    """

    def __init__(self, registry: CollectorRegistry, gauges: Callable[[], dict[str, int]]) -> None:
        """`gauges` returns the current lag, galleries, rows and partitions."""
        self._gauges = gauges
        self.events: Counter[str] = Counter()
        self.candidates: Counter[str] = Counter()
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.strays = 0
        self.rows_not_compared = 0
        self.groups: Counter[str] = Counter()
        self.identities = 0
        self.pairs_not_kept = 0
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; called by Prometheus's registry."""
        yield _counter_by("events", "Events of person-embeddings, by kind", "kind", self.events)
        yield _counter_by(
            "candidates", "Duplicate candidates published, by state", "state", self.candidates
        )
        yield _counter_by("groups", "Duplicate groups published, by state", "state", self.groups)
        yield CounterMetricFamily(
            "streamproc_identities", "Identities published", value=self.identities
        )
        yield _counter_by("stage_seconds", "Time spent, by stage", "stage", self.seconds)
        yield CounterMetricFamily(
            "streamproc_strays", "Events sent on to their partition", value=self.strays
        )
        text = "Rows left out of comparisons, as their vectors are of other weights"
        yield CounterMetricFamily(
            "streamproc_rows_not_compared", text, value=self.rows_not_compared
        )
        text = "Similar pairs of closings that were not among the likeliest of a person"
        yield CounterMetricFamily("streamproc_pairs_not_kept", text, value=self.pairs_not_kept)
        for name, value in self._gauges().items():
            yield GaugeMetricFamily(f"streamproc_{name}", _GAUGES[name], value=value)


_GAUGES = {
    "decisions": "Decisions of reviewers in memory",
    "lag": "Events of the own partitions that are not done",
    "galleries": "Galleries in memory",
    "rows": "Persons in memory",
    "partitions": "Partitions owned and read",
}


def _counter_by(name: str, text: str, label: str, counts: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(f"streamproc_{name}", text, labels=[label])
    for value, count in counts.items():
        family.add_metric([value], count)
    return family
