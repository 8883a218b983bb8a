"""Which tracks hold two people: an identity switch inside a track, found from its crops' vectors.

A track is cut where its crops' vectors fall into two parts that are least alike for their sizes
(single change point, as in Gaussian segmentation: Scott and Knott 1974). With m1 and m2 the mean
vectors of both parts, centred and of unit length before averaging, and q the share of crops in the
first one,

    split = (1 - m1 m2) 2 sqrt(q (1 - q)).

Whoever is hidden for a while, or turns, is split too: what such a part is once more split by
(`rest`) and how small a share of the boxes it has tell one clean change from several.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Self

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import numpy.typing as npt

    FloatArray = npt.NDArray[np.float64]
    IntArray = npt.NDArray[np.int64]

LEAST_CROPS = 4
LEAST_BOXES = 20
LEAST_SHARE = 0.2
"""A part with a smaller share of the boxes is no second person, as far as vectors can tell."""
LEAST_SUSPICION = 0.5
"""A track that holds two people with this probability is reported."""
_LEAST_PART, _LEAST_PART_SHARE = 2, 0.1
_AROUND = 5  # boxes on each side of a change
_STILL = 4.0  # frames²: a velocity is held towards 0


@dataclass(frozen=True, slots=True)
class PurityModel:
    """Learned by `models/linking`: intercept and weights of `split`, `rest` and `share`."""

    intercept: float
    split: float
    rest: float
    share: float

    def to_json(self) -> dict[str, float]:
        """Return the numbers by name."""
        return asdict(self)

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Self:
        """Read what `to_json` gave; raises KeyError, TypeError or ValueError for anything else."""
        model = cls(*(float(values[name]) for name in cls.__slots__))
        if not np.isfinite(list(asdict(model).values())).all():
            raise ValueError("expected finite coefficients")
        return model


@dataclass(frozen=True, slots=True)
class Suspect:
    """A track that may hold two people: `frame_index` is the first frame of the second part.

    `split`, `rest` and `share` are what its probability is made of.
    """

    frame_index: int
    split: float
    rest: float
    share: float


def find_suspect(
    crop_vectors: FloatArray,
    crop_frames: IntArray,
    learned_mean: FloatArray,
    track_frames: IntArray,
    boxes_xyxy: FloatArray,
) -> Suspect | None:
    """Where a track would be cut, None where it is too short or no part is large enough.

    `crop_vectors` (k, dim): unit vectors of its crops in time order, of frames `crop_frames` (k,).
    `learned_mean` (dim,) is `LooksModel.mean`: the video's own is not known before it closes.
    `track_frames` (n,) ascending and `boxes_xyxy` (n, 4) are of all its boxes: where their motion
    breaks says when, between two crops.
    """
    if len(crop_vectors) < LEAST_CROPS or len(track_frames) < LEAST_BOXES:
        return None
    vectors = _unit(crop_vectors.astype(np.float64) - learned_mean)
    split, cut = best_cut(vectors)
    if cut == 0:
        return None
    rest = max(best_cut(vectors[:cut])[0], best_cut(vectors[cut:])[0])
    frame = _switch_frame(crop_frames[cut - 1 : cut + 1], track_frames, boxes_xyxy)
    before = int(np.searchsorted(track_frames, frame))
    share = min(before, len(track_frames) - before) / len(track_frames)
    return Suspect(frame, split, rest, share) if share >= LEAST_SHARE else None


@dataclass(frozen=True, slots=True, eq=False)
class TrackJudge:
    """Says of a track whether it holds two people, by what was learned of one set of weights.

    `mean` (dim,) is the learned mean of their vectors.
    """

    mean: FloatArray
    model: PurityModel

    def may_hold_two(self, crop_vectors: FloatArray) -> bool:
        """Return whether `judge` may find something, by the vectors (k, dim) in time order alone.

        Most tracks hold one person, and need not be looked at further.
        """
        if len(crop_vectors) < LEAST_CROPS or crop_vectors.shape[1:] != self.mean.shape:
            return False
        vectors = _unit(crop_vectors - self.mean)
        split, cut = best_cut(vectors)
        if cut == 0:
            return False
        rest = max(best_cut(vectors[:cut])[0], best_cut(vectors[cut:])[0])
        most = Suspect(0, split, rest, 0.5 if self.model.share > 0 else LEAST_SHARE)
        return float(suspicion([most], self.model)[0]) >= LEAST_SUSPICION

    def judge(
        self,
        crop_vectors: FloatArray,
        crop_frames: IntArray,
        track_frames: IntArray,
        boxes_xyxy: FloatArray,
    ) -> tuple[Suspect, float] | None:
        """Return where a track seems to hold two people and the probability, None where not.

        The arguments are those of `find_suspect`.
        """
        if crop_vectors.shape[1:] != self.mean.shape:
            return None  # the curve is of other weights than it says
        suspect = find_suspect(crop_vectors, crop_frames, self.mean, track_frames, boxes_xyxy)
        if suspect is None:
            return None
        chance = float(suspicion([suspect], self.model)[0])
        return (suspect, chance) if chance >= LEAST_SUSPICION else None


def best_cut(vectors: FloatArray) -> tuple[float, int]:
    """How far two parts of unit vectors (k, dim) differ at most, and where the second begins.

    0 and 0 where there are too few for two parts.
    """
    count = len(vectors)
    least = max(_LEAST_PART, int(_LEAST_PART_SHARE * count))
    cuts = np.arange(least, count - least + 1)
    if not len(cuts):
        return 0.0, 0
    sums = np.cumsum(vectors, axis=0)
    first = sums[cuts - 1] / cuts[:, None]
    second = (sums[-1] - sums[cuts - 1]) / (count - cuts)[:, None]
    share = cuts / count
    split = (1 - (first * second).sum(1)) * 2 * np.sqrt(share * (1 - share))
    best = int(split.argmax())
    return float(split[best]), int(cuts[best])


def _switch_frame(between: IntArray, track_frames: IntArray, boxes_xyxy: FloatArray) -> int:
    """Between the frames (2,) of two crops: that of the box at which the motion breaks most."""
    start, stop = np.searchsorted(track_frames, between, side="right")
    rows = np.arange(start, stop)
    breaks = motion_discontinuity(track_frames, boxes_xyxy, rows)
    return int(track_frames[rows[breaks.argmax()]])


def motion_discontinuity(
    track_frames: IntArray, boxes_xyxy: FloatArray, rows: IntArray
) -> FloatArray:
    """How badly the five boxes before and from each row (r,) fit one motion (r,), in heights.

    Both are carried by their own velocities to the middle between the two frames; half of the
    change in log height is added. Rows are from 1; at a track's ends its last box counts again.
    """
    boxes = boxes_xyxy.astype(np.float64)
    centres, heights = (boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 3] - boxes[:, 1]
    steps = np.arange(_AROUND)
    past = np.maximum(rows[:, None] - 1 - steps, 0)  # (r, 5)
    future = np.minimum(rows[:, None] + steps, len(boxes) - 1)
    middle = (track_frames[rows - 1] + track_frames[rows]) / 2
    before = _carried(track_frames[past], centres[past], middle)
    after = _carried(track_frames[future], centres[future], middle)
    old = np.median(heights[past], axis=1)
    new = np.median(heights[future], axis=1)
    jump = np.linalg.norm(before - after, axis=1) / np.sqrt(old * new)
    found: FloatArray = jump + np.abs(np.log(old / new)) / 2
    return found


def _carried(frames: IntArray, centres: FloatArray, to: FloatArray) -> FloatArray:
    """Where (r, 2) centres (r, 5, 2) would be at a time (r,), held towards standing still."""
    mean_frame = frames.mean(1)
    mean_centre = centres.mean(1)
    from_mean = frames - mean_frame[:, None]
    moved = np.einsum("rt,rtd->rd", from_mean, centres - mean_centre[:, None])
    velocity = moved / ((from_mean**2).sum(1) + _STILL)[:, None]
    carried: FloatArray = mean_centre + velocity * (to - mean_frame)[:, None]
    return carried


def suspicion(suspects: Sequence[Suspect], model: PurityModel) -> FloatArray:
    """Probabilities (s,) that suspects hold two people."""
    rows = np.array([[s.split, s.rest, s.share] for s in suspects]).reshape(-1, 3)
    log_odds = rows @ np.array([model.split, model.rest, model.share]) + model.intercept
    chances: FloatArray = 1 / (1 + np.exp(-log_odds))
    return chances


def _unit(rows: FloatArray) -> FloatArray:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: FloatArray = rows / np.maximum(lengths, 1e-12)
    return units
