"""Metrics of the services that take videos, read at the moment they are asked for."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from streamproc.pipeline.embed import BUCKETS_A_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from streamproc.kafka.long_jobs import LongJobs
    from streamproc.pipeline.pipeline import Pipeline
    from streamproc.pipeline.resources import VideoStats


class VideoMetrics(Collector):
    """What went through the stages so far, and what waits; rates (frames/s, crops/s) are Prometheus's `rate()`."""

    def __init__(self, registry: CollectorRegistry, jobs: LongJobs, pipeline: Pipeline) -> None:
        self._jobs, self._pipeline = jobs, pipeline
        self._videos: Counter[str] = Counter()
        self._watched: list[VideoStats] = []
        self._past: Counter[str] = Counter()
        self._past_seconds: Counter[str] = Counter()
        registry.register(self)

    def watch(self, stats: VideoStats) -> None:
        """Count a video that has begun."""
        self._watched.append(stats)

    def unwatch(self, stats: VideoStats) -> None:
        """Keep the counts of a video that has ended."""
        self._watched = [other for other in self._watched if other is not stats]
        self._past.update(_counts(stats))
        self._past_seconds.update(stats.seconds)

    def ended(self, outcome: str) -> None:
        """Count a video's end."""
        self._videos[outcome] += 1

    def collect(self) -> Iterator[Metric]:
        """Prometheus's hook."""
        counts, seconds = Counter(self._past), Counter(self._past_seconds)
        for stats in self._watched:
            counts.update(_counts(stats))
            seconds.update(stats.seconds)
        videos = CounterMetricFamily("streamproc_videos", "Videos that ended", labels=["outcome"])
        for outcome, count in self._videos.items():
            videos.add_metric([outcome], count)
        yield videos
        for name, text in _COUNTED.items():
            yield CounterMetricFamily(f"streamproc_{name}", text, value=counts[name])
        embed, animate = self._pipeline.embed, self._pipeline.animate
        if embed is not None:
            seconds.update(embed.seconds)
            yield CounterMetricFamily("streamproc_batches", "Batches embedded", value=embed.batches)
            yield CounterMetricFamily(
                "streamproc_batch_buckets", "Persons in these batches", value=embed.buckets
            )
            fill = embed.buckets / (embed.batches * BUCKETS_A_BATCH) if embed.batches else 0.0
            yield GaugeMetricFamily(
                "streamproc_batch_fill", "Mean fill of the batches, 0 to 1", value=fill
            )
            yield CounterMetricFamily(
                "streamproc_crops_ahead",
                "Crops embedded before their bucket was full",
                value=embed.crops_ahead,
            )
            yield CounterMetricFamily(
                "streamproc_crops_ahead_used",
                "Of these, those that were chosen",
                value=embed.crops_ahead_used,
            )
            yield GaugeMetricFamily(
                "streamproc_buckets_waiting", "Persons waiting for the network", value=embed.waiting
            )
        if animate is not None:
            yield GaugeMetricFamily(
                "streamproc_animations_waiting", "Persons waiting", value=animate.waiting
            )
        stages = CounterMetricFamily(
            "streamproc_stage_seconds", "Busy seconds of each stage", labels=["stage"]
        )
        for stage, spent in sorted(seconds.items()):
            stages.add_metric([stage], spent)
        yield stages
        yield GaugeMetricFamily(
            "streamproc_videos_running", "Videos in work", value=self._jobs.running
        )
        yield GaugeMetricFamily(
            "streamproc_videos_waiting", "Videos taken, not begun", value=self._jobs.waiting
        )
        yield GaugeMetricFamily(
            "streamproc_lag", "Videos of the own partitions not done", value=self._jobs.lag
        )


_COUNTED = {
    "frames": "Planned frames decoded and cut",
    "crops_cut": "Crops cut",
    "crops_embedded": "Crops embedded",
    "persons": "Persons embedded and published",
    "animations": "Animations written",
}


def _counts(stats: VideoStats) -> dict[str, int]:
    return {
        "frames": stats.frames_done,
        "crops_cut": stats.crops_cut,
        "crops_embedded": stats.crops_embedded,
        "persons": stats.persons_embedded,
        "animations": stats.animations_done,
    }
