"""Where a video's tracks come from: a file that is read before decoding, or the frames themselves.

The pipeline takes either. Tracks of a file are known before decoding, so their crops are planned
and only the frames that give one are decoded. Tracks that are found while decoding grow: a
`FrameTracker` gets every frame and says which boxes it links, and crops are chosen as they come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeAlias

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamproc.types import FrameBoxes, TrackSet, Uint8Array


class Picture(Protocol):
    """What a tracker may see of a frame; `video.Frame` is one."""

    frame_index: int
    pts_seconds: float
    width: int
    height: int

    def crop_rgb(self, box: tuple[int, int, int, int], /) -> Uint8Array:
        """Return the pixels (h, w, 3) of a half-open integer box inside the picture."""
        ...

    def scaled_rgb(self, width: int, height: int, /) -> Uint8Array:
        """Return the whole upright picture, shrunk or enlarged to (height, width, 3)."""
        ...


class FrameTracker(Protocol):
    """Finds and links people, frame by frame. Made for one video, used in one thread."""

    def update(self, frames: Sequence[Picture], /) -> list[FrameBoxes]:
        """Take the next frames, in order; return the boxes of each. Raises MachineError."""
        ...


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What a tracker is told of its video; `frames_per_second` is the mean over the whole video."""

    width: int
    height: int
    frame_count: int
    frames_per_second: float


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True)
class TracksFromFile:
    """Tracks that are known before decoding.

    `load` is called once, in a thread. `begin` may start the work before, while the video is
    opened, and returns at once. `close`, from any thread, ends what is under way; it may be called
    more than once. `reading.tracks_from_file` makes one that reads in a child process.
    """

    load: Callable[[], TrackSet]
    begin: Callable[[], None] = _nothing
    close: Callable[[], None] = _nothing


@dataclass(frozen=True, slots=True)
class TracksFound:
    """Tracks that are found while decoding.

    `open` makes the tracker of one video. `identity` stands for all that decides what it finds
    (weights, settings, version): it is part of the run's id.
    """

    open: Callable[[VideoFacts], FrameTracker]
    identity: str


TrackSource: TypeAlias = TracksFromFile | TracksFound
