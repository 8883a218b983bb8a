"""What is measured of two tracklets: how alike they look, and what their boxes say.

A `Video` is what is known of one video's tracklets when it closes; nothing in it changes after
that, and a pair needs nothing but the two videos that it is of. Pairs are of three kinds, each
with coefficients of its own: `moving` (one video, both have a trajectory: looks and motion),
`still` (one video, looks alone) and `across` (two videos, looks alone).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from streamproc.gallery.linking.ends import Ends, ends_of
from streamproc.gallery.linking.motion import PositionModel, motion_pairs

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamproc.types import Float64Array, Int64Array, Trajectory

MOVING, STILL, ACROSS = "moving", "still", "across"
MAX_CROPS = 8
"""Coefficients are fitted on means of 1 to 8 crops; more count as 8."""
MAX_HEIGHT_CHANGE = 0.6
"""Beyond this log ratio of heights there is nothing more to learn from them."""
REAPPEARS_SECONDS = 6.0
"""Whoever is lost and found inside the picture is soon found: that evidence fades so fast."""
_PAIRS_AT_ONCE = 128
PRIOR_TRACKLETS = 10.0
"""The learned mean counts as much as so many tracklets of a video."""
IDENTITY_SHARE = 0.6
"""Of the learned covariance, held towards a multiple of the identity (Ledoit and Wolf 2004)."""


@dataclass(frozen=True, slots=True, eq=False)
class LooksModel:
    """Learned of the vectors of one set of weights, from persons seen by several cameras.

    `mean` (dim,); the covariance within persons, of trace 1, is `spread` (k,) along the unit rows
    of `basis` (k, dim) and `rest` in every other direction.
    """

    mean: Float64Array
    basis: Float64Array
    spread: Float64Array
    rest: float

    def centred(self, vectors: Float64Array) -> Float64Array:
        """Vectors (n, dim) of one video without what its camera gives to all of them."""
        total = vectors.sum(0) + PRIOR_TRACKLETS * self.mean
        centred: Float64Array = vectors - total / (len(vectors) + PRIOR_TRACKLETS)
        return centred

    def whitened(self, centred: Float64Array) -> Float64Array:
        """Divide out what differs within persons (WCCN: Hatch et al. 2006); (n, dim)."""
        flat = IDENTITY_SHARE / len(self.mean)
        along = 1 / np.sqrt((1 - IDENTITY_SHARE) * self.spread + flat)
        elsewhere = 1 / np.sqrt((1 - IDENTITY_SHARE) * self.rest + flat)
        projected = centred @ self.basis.T
        whitened: Float64Array = (
            centred * elsewhere + (projected * (along - elsewhere)) @ self.basis
        )
        return whitened


@dataclass(frozen=True, slots=True, eq=False)
class Video:
    """The n tracklets of one closed video. Made by `close_video`.

    `centred` and `whitened` (n, dim): unit vectors. `log_crops` (n,): of how many crops each is
    the mean. `log_others` (n,): how many others each may be, all but those seen beside it.
    `vetoes` (v, 2): pairs seen apart in the same frames. `trajectories`: None where unknown.
    """

    centred: Float64Array
    whitened: Float64Array
    log_crops: Float64Array
    log_others: Float64Array
    vetoes: Int64Array
    trajectories: Sequence[Trajectory | None]
    begins: Ends
    ends: Ends
    frames_per_second: float
    picture_area_px: float

    def __len__(self) -> int:
        return len(self.log_crops)

    def __repr__(self) -> str:
        return f"Video({len(self)} tracklets, {len(self.vetoes)} vetoes)"


def close_video(
    looks: LooksModel,
    vectors: Float64Array,
    crop_counts: Int64Array,
    vetoes: Int64Array,
    trajectories: Sequence[Trajectory | None],
    *,
    width: int,
    height: int,
    frames_per_second: float,
) -> Video:
    """Compute what is asked of a video: unit `vectors` (n, dim), `crop_counts` (n,)."""
    centred = looks.centred(vectors.astype(np.float64))
    beside = np.bincount(vetoes.ravel(), minlength=len(vectors))
    begins, ends = (
        ends_of(
            trajectories,
            last=last,
            width=width,
            height=height,
            frames_per_second=frames_per_second,
        )
        for last in (False, True)
    )
    return Video(
        _unit(centred),
        _unit(looks.whitened(centred)),
        np.log(np.clip(crop_counts, 1, MAX_CROPS)),
        np.log(np.maximum(len(vectors) - 1 - beside, 1)),
        vetoes,
        trajectories,
        begins,
        ends,
        frames_per_second,
        float(width) * height,
    )


def features_within(
    video: Video, pairs: Int64Array, model: PositionModel
) -> dict[str, Float64Array]:
    """Features by name, (p,) each, of pairs (p, 2) of one video; 0 where motion is not known."""
    motion = motion_pairs(
        pairs,
        video.begins,
        video.ends,
        video.trajectories,
        model,
        frames_per_second=video.frames_per_second,
        picture_area_px=video.picture_area_px,
    )
    soon = np.exp(-np.maximum(motion.gap_seconds, 0) / REAPPEARS_SECONDS)
    return _looks(video, video, pairs) | {
        "position": motion.position,
        "height_change": np.minimum(motion.height_change, MAX_HEIGHT_CHANGE),
        "reappears": motion.lost_inside * motion.found_inside * soon,
        "moves": motion.known.astype(np.float64),
    }


def features_across(first: Video, second: Video, pairs: Int64Array) -> dict[str, Float64Array]:
    """Features by name, (p,) each, of pairs (p, 2) of a tracklet of each of two videos."""
    return _looks(first, second, pairs)


def _looks(first: Video, second: Video, pairs: Int64Array) -> dict[str, Float64Array]:
    one, other = pairs.T
    whitened = _cosines(first.whitened, second.whitened, pairs)
    log_crops = (first.log_crops[one] + second.log_crops[other]) / 2
    return {
        "centred": _cosines(first.centred, second.centred, pairs),
        "whitened": whitened,
        "whitened_by_crops": whitened * log_crops,
        "log_crops": log_crops,
        "log_others": (first.log_others[one] + second.log_others[other]) / 2,
    }


def _cosines(first: Float64Array, second: Float64Array, pairs: Int64Array) -> Float64Array:
    """Of unit rows, (p,); so many at a time as stay in the processor's cache."""
    parts = [
        np.einsum("pd,pd->p", first[some[:, 0]], second[some[:, 1]])
        for some in np.split(pairs, range(_PAIRS_AT_ONCE, len(pairs), _PAIRS_AT_ONCE))
    ]
    return np.concatenate(parts)


def log_odds_of(
    features: Mapping[str, Float64Array], names: Sequence[str], coefficients: Sequence[float]
) -> Float64Array:
    """Log-odds (p,): intercept, then a coefficient for each of the named features."""
    intercept, *weights = coefficients
    columns = np.stack([features[name] for name in names], axis=1)
    log_odds: Float64Array = columns @ np.array(weights) + intercept
    return log_odds


def _unit(rows: Float64Array) -> Float64Array:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    units: Float64Array = rows / np.maximum(lengths, 1e-12)
    return units
