"""The tracks of a video alone: a detector looks at its frames, a tracker links what it finds."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field
from typing import TYPE_CHECKING

from streamproc.tracks.detection.tracker import VERSION, BufferedByteTracker, TrackerOptions
from streamproc.tracks.source import TracksFound, VideoFacts

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.tracks.detection.detector import Detector
    from streamproc.tracks.detection.record import TrackRecord
    from streamproc.tracks.detection.tracker import Tracker
    from streamproc.tracks.source import Picture
    from streamproc.types import FrameBoxes

LOOKS_A_SECOND = 15
"""So often a detector looks at a video, unless settings ask for more; between, tracks move on."""


@dataclass(frozen=True, slots=True)
class FindingOptions:
    """How people are found; `every_frames` = 0 follows from the video's frame rate."""

    tracker: TrackerOptions = field(default_factory=TrackerOptions)
    every_frames: int = 0


def tracks_found(
    detector: Detector, options: FindingOptions, record: TrackRecord | None = None
) -> TracksFound:
    """Return tracks that are found while decoding; `record` takes all their boxes as well."""

    def open_tracker(facts: VideoFacts) -> FrameFinder:
        linker = BufferedByteTracker(options.tracker, frames_per_second=facts.frames_per_second)
        every = options.every_frames or frames_between_looks(facts.frames_per_second)
        return FrameFinder(detector, linker, every, record)

    identity = f"{detector.identity} {VERSION} {astuple(options)}"
    return TracksFound(open_tracker, identity)


def frames_between_looks(frames_per_second: float) -> int:
    """Return k: a detector looks at every k-th frame. It follows from the frame rate alone."""
    return max(1, round(frames_per_second / LOOKS_A_SECOND))


class FrameFinder:
    """Finds and links people, frame by frame: a `FrameTracker`. One video, one thread."""

    def __init__(
        self, detector: Detector, linker: Tracker, every: int, record: TrackRecord | None
    ) -> None:
        self._detector = detector
        self._linker = linker
        self._every = every
        self._record = record

    def update(self, frames: Sequence[Picture], /) -> list[FrameBoxes]:
        """Take the next frames; the detector looks at several at once. Raises MachineError."""
        looks = {
            frame.frame_index: self._detector.submit(frame)
            for frame in frames
            if frame.frame_index % self._every == 0
        }
        linked = []
        for frame in frames:
            look = looks.get(frame.frame_index)
            detections = None
            if look is not None:
                detections = self._detector.read(look.result(), frame.width, frame.height)
            boxes = self._linker.update(frame.frame_index, detections)
            if self._record is not None:
                self._record.add(boxes)
            linked.append(boxes)
        return linked
