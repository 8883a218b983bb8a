"""The values between stages, in the order in which data flows through them.

Boxes are `xyxy`: half-open pixels of the upright picture, x to the right, y down. `frame_index` is
the 0-based rank of a frame in presentation order.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypeAlias

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Float32Array = npt.NDArray[np.float32]
    Float64Array = npt.NDArray[np.float64]
    Int64Array = npt.NDArray[np.int64]
    Uint8Array = npt.NDArray[np.uint8]
    BoolArray = npt.NDArray[np.bool_]

TrackFormatName: TypeAlias = Literal[
    "canonical-persons",
    "streamproc",
    "mot",
    "supervision-csv",
    "supervision-json",
    "ultralytics",
    "ultralytics-ids",
    "cvat-video",
    "coco-vid",
    "kitti-tracking",
    "deepstream-kitti",
    "dive-json",
    "viame-csv",
]
"""The formats of tracks, as events and flags name them. `tracks.files` has their readers."""

WrittenFormat: TypeAlias = Literal["mot", "streamproc", "canonical-persons", "csv"]
"""The formats that merged tracks are written in."""

BoxLayout: TypeAlias = Literal["xyxy", "xywh", "cxcywh"]
"""What a box's four numbers are: two corners, or the left top corner or the centre and the size."""

CROP_HEIGHT_PX = 256
CROP_WIDTH_PX = 128


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Track:
    """The boxes that a tracker gave one id. Made by `tracks`, used by `crops`.

    frame_indices (k,) int64 ascending and unique, boxes_xyxy (k, 4) float32 finite and not empty,
    confidences (k,) float32 in [0, 1]. `part` counts from 1 where a track was taken apart.
    """

    person_id: int
    frame_indices: Int64Array
    boxes_xyxy: Float32Array
    confidences: Float32Array
    part: int | None = None

    def __len__(self) -> int:
        return len(self.frame_indices)

    def __repr__(self) -> str:
        span = f"{self.frame_indices[0]}..{self.frame_indices[-1]}" if len(self) else "empty"
        return f"Track({self.person_id}, {len(self)} boxes, frames {span})"


@dataclass(frozen=True, slots=True, eq=False)
class TrackSet:
    """All tracks of one video, and what was wrong with their file. Made by `tracks`.

    `problems` counts what was left out or repaired, by a short code such as "boxes-empty"; each of
    the `hints` is a line that says what may be wrong and what to try. `is_normalised`: the boxes
    are shares of the picture's size, until `fit_to_video` makes pixels of them. `identity` stands
    for the file's bytes and how they were read, where that is not as the format says.
    """

    tracks: tuple[Track, ...]
    problems: Counter[str] = field(default_factory=Counter)
    hints: tuple[str, ...] = ()
    source: str = ""
    sha256: str = ""
    identity: str = ""
    is_normalised: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class FrameBoxes:
    """The tracked boxes of one frame. Made by a tracker that runs while decoding, used by `crops`.

    person_ids (n,) int64, each once; boxes_xyxy (n, 4) float32 finite and not empty; confidences
    (n,) float32 in [0, 1]. `ended` are the ids of tracks that no later frame will continue.
    """

    frame_index: int
    person_ids: Int64Array
    boxes_xyxy: Float32Array
    confidences: Float32Array
    ended: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Trajectory:
    """Few boxes of a track that stand for all of them. Made by `crops`, which says which ones.

    frame_indices (k,) int64 ascending, k at most 64; boxes_xyxy (k, 4) float32.
    """

    frame_indices: Int64Array
    boxes_xyxy: Float32Array

    def __len__(self) -> int:
        return len(self.frame_indices)

    def __repr__(self) -> str:
        return f"Trajectory({len(self)} boxes)"


@dataclass(frozen=True, slots=True)
class TrackSpan:
    """What is kept of a track once its crops are chosen: the boxes of a long video are many."""

    first_frame_index: int
    last_frame_index: int
    box_count: int
    trajectory: Trajectory = field(compare=False)


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class FrameTable:
    """What is known of each frame before decoding, and so what it costs to decode it.

    Made by `video`, used by `crops`.

    All arrays are (n,), by frame_index. `start_order` and `decode_order` are positions of packets
    in the file: to get frame i the decoder must be fed from packet `start_order[i]` (a key frame)
    to packet `decode_order[i]`. `disposable[i]`: no other frame needs i, so it can be skipped.
    `exact` is false where the file's time stamps cannot be trusted: then every frame is decoded
    from the start.
    """

    pts_seconds: Float64Array
    start_order: Int64Array
    decode_order: Int64Array
    disposable: BoolArray
    exact: bool

    def __len__(self) -> int:
        return len(self.pts_seconds)

    def __repr__(self) -> str:
        starts = len(set(self.start_order.tolist()))
        return f"FrameTable({len(self)} frames, {starts} starts, exact={self.exact})"


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Cut:
    """One crop that is to be cut. Made by `crops`, when it chooses boxes; used by `crops.cutter`.

    `crop_index` is its place among the person's crops, in time order.
    """

    person_id: int
    crop_index: int
    box_xyxy: tuple[float, float, float, float]
    confidence: float
    placement_quality: float
    """Quality in [0, 1] as far as the boxes alone tell it; see `crops.quality`."""
    is_preselected: bool = False
    """Whether the crop will be embedded if all crops of the person are equally sharp."""


@dataclass(frozen=True, slots=True, eq=False, repr=False, weakref_slot=True)
class Crop:
    """The pixels of one track in one frame.

    Made by `crops`, used by `reid` and `animation`; equal to itself alone.

    `pixels` (h, w, 3) uint8 RGB are as cut, or shrunk to 256x128, the size that OSNet takes: those
    of a preselected crop where they are larger than that, all others where they are above 256 KiB.
    `aspect_ratio` (width / height) is that of the crop as cut.
    """

    person_id: int
    crop_index: int
    frame_index: int
    pts_seconds: float
    box_xyxy: tuple[float, float, float, float]
    quality: float
    aspect_ratio: float
    pixels: Uint8Array

    def __repr__(self) -> str:
        return (
            f"Crop(person {self.person_id}, frame {self.frame_index}, quality {self.quality:.2f})"
        )


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Bucket:
    """All crops of one person. Made by `crops`, used by the embed and animate stages.

    `crops` are in time order; `embedded` are positions in `crops` of those to be embedded, best
    first.
    """

    person_id: int
    crops: tuple[Crop, ...]
    embedded: tuple[int, ...]

    @property
    def best_crops(self) -> list[Crop]:
        """The crops to be embedded, the best first."""
        return [self.crops[i] for i in self.embedded]

    def __repr__(self) -> str:
        return (
            f"Bucket(person {self.person_id}, {len(self.crops)} crops, "
            f"{len(self.embedded)} to embed)"
        )


@dataclass(frozen=True, slots=True)
class Skipped:
    """A person that was left out, and why."""

    person_id: int
    reason: str
