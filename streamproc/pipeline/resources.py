"""What the videos of a process share: threads, statistics, and what is made of the settings."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self, TypeVar

from streamproc.errors import EventError, UsageError, WeightsError
from streamproc.gallery import Calibration, load_curves
from streamproc.networks.devices import why_no_gpu
from streamproc.networks.manifest import load_manifest, package_file
from streamproc.shown import shown
from streamproc.video import Limits

if TYPE_CHECKING:
    from collections.abc import Callable

    from streamproc.events import VideoOptions
    from streamproc.gallery.linking.purity import TrackJudge
    from streamproc.networks.weights import Weights
    from streamproc.reid import Embedder
    from streamproc.settings import Clustering, Settings
    from streamproc.tracks.detection.detector import Detector
    from streamproc.tracks.detection.found import FindingOptions

T = TypeVar("T")
log = logging.getLogger(__name__)

ANIMATION_THREADS = 2
PREPARE_THREADS = 128
"""Two for each of the most videos at once; as many are begun as are needed."""


def load_network(settings: Settings) -> Embedder:
    """Load the weights that the settings name, onto their device.

    Raises WeightsError or UsageError.
    """
    from streamproc.reid import Embedder

    weights = _find_weights(settings)
    return Embedder(weights, threads=settings.threads, device=settings.clustering.device)


def check_detector_device(settings: Settings) -> None:
    """Raise UsageError if the detector is to run on a GPU, and there is none."""
    reason = why_no_gpu() if settings.detector.device == "cuda" else None
    if reason is not None:
        raise UsageError(f"detector.device cuda: {reason}; or use cpu")


def load_detector(settings: Settings) -> Detector:
    """Load the detector that the settings name, onto their device.

    Raises WeightsError or UsageError, and MachineError for a GPU that is asked for and fails.
    """
    from streamproc.tracks.detection.detector import Detector, find_weights

    wanted = settings.detector
    weights = find_weights(
        wanted.model,
        cache_folder=settings.expanded_cache_folder(),
        models_folder=settings.models,
    )
    return Detector(
        weights,
        threads=settings.threads,
        min_confidence=wanted.min_confidence,
        longest_px=wanted.input_size,
        device=wanted.device,
    )


def settings_as_asked(settings: Settings, asked: VideoOptions) -> Settings:
    """Return the settings with what an event asks of detector and tracker in their place.

    Raises EventError for a detector that is no known name: an event must not name files here.
    """
    changes: dict[str, object] = {}
    for section, wanted in (("detector", asked.detector), ("tracker", asked.tracker)):
        if wanted is not None:
            said = wanted.model_dump(exclude_none=True, exclude={"enabled"})
            changes[section] = getattr(settings, section).model_copy(update=said)
    if asked.detector is not None and asked.detector.model is not None:
        _check_detector_name(asked.detector.model)
    return settings.model_copy(update=changes)


def _check_detector_name(name: str) -> None:
    from streamproc.tracks.detection.detector import DEFAULT_NAME

    if name != DEFAULT_NAME and load_manifest().find(name) is None:
        raise EventError(
            "options.detector.model: expected a name that `streamproc models list` prints, "
            f"got {shown(name)!r}"
        )


def finding_options(settings: Settings) -> FindingOptions:
    """Return how people are found, as the settings say."""
    from streamproc.tracks.detection.found import FindingOptions
    from streamproc.tracks.detection.tracker import TrackerOptions

    tracker = TrackerOptions(
        high_confidence=settings.tracker.high_confidence,
        new_confidence=settings.tracker.new_confidence,
        lost_seconds=settings.tracker.lost_seconds,
    )
    return FindingOptions(tracker, settings.detector.every_frames)


def find_weights_sha256(settings: Settings) -> str:
    """Return the sha256 by which a network loaded from the settings would name its weights.

    Does not load the network. Raises WeightsError.
    """
    from streamproc.networks.sessions import source_sha256_of

    return source_sha256_of(_find_weights(settings))


def _find_weights(settings: Settings) -> Weights:
    from streamproc.reid import find_weights

    return find_weights(
        settings.clustering.osnet_model,
        cache_folder=settings.expanded_cache_folder(),
        models_folder=settings.models,
    )


def video_limits(settings: Settings) -> Limits:
    """What a video may ask of this machine."""
    limits = settings.limits
    return Limits(
        max_pixels_per_frame=limits.max_pixels_per_frame,
        max_frames=limits.max_frames,
        max_duration_seconds=limits.max_duration_seconds,
        max_file_bytes=limits.max_file_bytes,
    )


def calibration_of(clustering: Clustering) -> Calibration:
    """The package's curves and the user's before them, and what is asked of a probability.

    Raises WeightsError for the package's, UsageError for a file of the user's that holds none.
    """
    curves = load_curves(package_file("calibration.json"))
    if clustering.calibration is not None:
        try:
            curves |= load_curves(clustering.calibration.expanduser())
        except WeightsError as error:
            raise UsageError(f"clustering.calibration: {error}") from error
    return Calibration(
        curves,
        min_probability=clustering.min_probability,
        likely_probability=clustering.likely_probability,
        min_grouped_probability=clustering.min_grouped_probability,
        min_ungrouped_probability=clustering.min_ungrouped_probability,
    )


def track_judge_of(clustering: Clustering, weights_sha256: str) -> TrackJudge | None:
    """Return what tells tracks that hold two people, None where nothing does for these weights.

    Raises as `calibration_of`.
    """
    curve = calibration_of(clustering).curves.get(weights_sha256)
    return None if curve is None else curve.track_judge


@dataclass(slots=True)
class VideoStats:
    """Where one video stands; written by the pipeline, read by whoever shows progress."""

    frames_planned: int = 0
    frames_done: int = 0
    persons_total: int = 0
    tracks_found: int = 0
    """Of a video whose tracks are found while decoding: how many so far."""
    persons_embedded: int = 0
    tracks_split: int = 0
    """Tracks that seemed to hold two people, and count once in `persons_embedded`."""
    crops_cut: int = 0
    crops_embedded: int = 0
    animations_done: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    """Busy seconds of each stage. Stages run side by side: the sum exceeds the wall clock."""


class Threads:
    """The long-lived threads of one process beside the network's: decode, crop, two to animate.

    Videos are hashed, opened and planned in threads of their own: none waits for another's.
    """

    def __init__(self) -> None:
        self.decode = ThreadPoolExecutor(1, "decode")
        self.prepare = ThreadPoolExecutor(PREPARE_THREADS, "prepare")
        self.crop = ThreadPoolExecutor(1, "crop")
        self.animation = ThreadPoolExecutor(ANIMATION_THREADS, "animate")

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        # Beside the loop: a thread may wait for it, as those that publish an animation do.
        await asyncio.to_thread(self._shut_down)

    def _shut_down(self) -> None:
        for pool in (self.prepare, self.decode, self.crop, self.animation):
            pool.shutdown(wait=True, cancel_futures=True)


async def run_timed(
    pool: ThreadPoolExecutor, seconds: Counter[str], stage: str, work: Callable[[], T]
) -> T:
    """Run `work` in a stage's thread and add its time to the stage's busy seconds."""

    def timed() -> tuple[T, float]:
        start = time.perf_counter()
        result = work()
        return result, time.perf_counter() - start

    result, spent = await asyncio.get_running_loop().run_in_executor(pool, timed)
    seconds[stage] += spent  # type: ignore[assignment] # a Counter adds floats as well
    return result
