"""Metrics of worker and animator, computed when Prometheus asks for them."""

from __future__ import annotations

from collections import Counter
from contextlib import contextmanager
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

from streamproc.pipeline.embed import BUCKETS_A_BATCH

if TYPE_CHECKING:
    from collections.abc import Iterator

    from prometheus_client import CollectorRegistry
    from prometheus_client.metrics_core import Metric

    from streamproc.kafka.long_jobs import LongJobs
    from streamproc.pipeline.embed import EmbedStage
    from streamproc.pipeline.pipeline import Pipeline
    from streamproc.pipeline.resources import VideoStats


class VideoMetrics(Collector):
    """What went through the stages so far, and what waits.

    Made by `VideoIntake`; used by one event loop. For rates such as frames a second use
    Prometheus's `rate()`.
    """

    def __init__(self, registry: CollectorRegistry, jobs: LongJobs, pipeline: Pipeline) -> None:
        self._jobs = jobs
        self._pipeline = pipeline
        self._videos: Counter[str] = Counter()
        self._running: list[VideoStats] = []
        self._ended: Counter[str] = Counter()
        self._ended_seconds: Counter[str] = Counter()
        registry.register(self)

    @contextmanager
    def counting(self, stats: VideoStats) -> Iterator[None]:
        """While inside, count a running video; afterwards keep its last counts."""
        self._running.append(stats)
        try:
            yield
        finally:
            self._running = [other for other in self._running if other is not stats]
            self._ended.update(_counts(stats))
            self._ended_seconds.update(stats.seconds)

    def count_video(self, outcome: str) -> None:
        """Count the end of a video."""
        self._videos[outcome] += 1

    def collect(self) -> Iterator[Metric]:
        """Yield all metrics; called by Prometheus's registry."""
        counts = Counter(self._ended)
        seconds = Counter(self._ended_seconds)
        for stats in self._running:
            counts.update(_counts(stats))
            seconds.update(stats.seconds)
        videos = CounterMetricFamily("streamproc_videos", "Videos that ended", labels=["outcome"])
        for outcome, count in self._videos.items():
            videos.add_metric([outcome], count)
        yield videos
        for name, text in _COUNTED.items():
            yield _counter(name, text, counts[name])
        if self._pipeline.embed is not None:
            seconds.update(self._pipeline.embed.seconds)
            yield from _batch_metrics(self._pipeline.embed)
        if self._pipeline.animate is not None:
            yield _gauge("animations_waiting", "Persons waiting", self._pipeline.animate.waiting)
        text = "Busy seconds of each stage"
        stages = CounterMetricFamily("streamproc_stage_seconds", text, labels=["stage"])
        for stage, spent in sorted(seconds.items()):
            stages.add_metric([stage], spent)
        yield stages
        yield _gauge("videos_running", "Videos in work", self._jobs.running)
        yield _gauge("videos_waiting", "Videos taken, not begun", self._jobs.waiting)
        yield _gauge("lag", "Videos of the own partitions not done", self._jobs.lag)


def _batch_metrics(embed: EmbedStage) -> Iterator[Metric]:
    yield _counter("batches", "Batches embedded", embed.batches)
    yield _counter("batch_buckets", "Persons in these batches", embed.buckets)
    fill = embed.buckets / (embed.batches * BUCKETS_A_BATCH) if embed.batches else 0.0
    yield _gauge("batch_fill", "Mean fill of the batches, 0 to 1", fill)
    text = "Crops embedded before their bucket was full"
    yield _counter("crops_ahead", text, embed.crops_ahead)
    yield _counter("crops_ahead_used", "Of these, those that were chosen", embed.crops_ahead_used)
    yield _gauge("buckets_waiting", "Persons waiting for the network", embed.waiting)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(f"streamproc_{name}", text, value=value)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"streamproc_{name}", text, value=value)


_COUNTED = {
    "frames": "Planned frames decoded and cut",
    "crops_cut": "Crops cut",
    "crops_embedded": "Crops embedded",
    "persons": "Persons embedded and published",
    "tracks_split": "Tracks that seemed to hold two people, published in parts",
    "animations": "Animations written",
}


def _counts(stats: VideoStats) -> dict[str, int]:
    return {
        "frames": stats.frames_done,
        "crops_cut": stats.crops_cut,
        "crops_embedded": stats.crops_embedded,
        "persons": stats.persons_embedded,
        "tracks_split": stats.tracks_split,
        "animations": stats.animations_done,
    }
