"""What motion says of two tracklets of one video, apart from looks.

Whoever is lost inside the picture is found again nearby: where a tracklet would be, carried
forward by its velocity, the next one of the same person begins. How near depends on the time
between them. With A the picture's area and r the distance from that place, both in heights, and a
share of people who go on as predicted that falls with the gap g,

    log-odds = log(A w(g) t(r; s(g)) + 1 - w(g)),    w(g) = w0 exp(-g / T),

t a bivariate Student density of scale s(g) = s0 + s1 g: 0 for a long gap, where motion says
nothing, and never below log(1 - w0). The damped prediction and the heavy tails follow what
trackers with a Kalman filter assume (SORT: Bewley et al. 2016), here with learned widths.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.gallery.linking.ends import Ends
    from streamproc.types import BoolArray, Float64Array, Int64Array, Trajectory


@dataclass(frozen=True, slots=True)
class PositionModel:
    """Where people are found again; learned by `fit_linking.py`.

    `followed`: w0; `follow_seconds`: T; `scale_heights`: s0; `scale_heights_a_second`: s1;
    `tail`: degrees of freedom of t; `damping_seconds`: for how long a velocity is believed;
    `vertical`: the scale along y, as a share of that along x.
    """

    followed: float
    follow_seconds: float
    scale_heights: float
    scale_heights_a_second: float
    tail: float
    damping_seconds: float
    vertical: float


@dataclass(frozen=True, slots=True, eq=False)
class MotionPairs:
    """What the boxes of pairs say, (p,) each; made by `motion_pairs`.

    `gap_seconds`: from the end of the earlier to the begin of the later, below 0 where they
    overlap. `position`: log-odds of `PositionModel`. `height_change`: absolute log ratio of the
    heights there. `lost_inside`: the earlier ends inside the picture; `found_inside`: the later
    begins there. `known`: both have trajectories; where not, all else is 0.
    """

    gap_seconds: Float64Array
    position: Float64Array
    height_change: Float64Array
    lost_inside: BoolArray
    found_inside: BoolArray
    known: BoolArray


def motion_pairs(
    pairs: Int64Array,
    begins: Ends,
    ends: Ends,
    trajectories: Sequence[Trajectory | None],
    model: PositionModel,
    *,
    frames_per_second: float,
    picture_area_px: float,
) -> MotionPairs:
    """Describe pairs (p, 2) of tracklets of one video; the same whichever of a pair comes first."""
    earlier, later = in_time_order(pairs, begins, ends)
    known = ends.known[earlier] & begins.known[later]
    gap = np.where(known, (begins.frame[later] - ends.frame[earlier]) / frames_per_second, 0.0)
    height = np.sqrt(ends.height[earlier] * begins.height[later])
    missed = _extrapolated_miss(earlier, later, begins, ends, gap, model.damping_seconds)
    for row in np.flatnonzero(known & (gap <= 0)):
        missed[row] = _overlapping_miss(trajectories[earlier[row]], trajectories[later[row]])
    position = position_log_odds(missed / height[:, None], gap, picture_area_px / height**2, model)
    change = np.abs(np.log(ends.height[earlier] / begins.height[later]))
    return MotionPairs(
        gap,
        np.where(known, position, 0.0),
        np.where(known, change, 0.0),
        known & ~ends.at_edge[earlier],
        known & ~begins.at_edge[later],
        known,
    )


def in_time_order(pairs: Int64Array, begins: Ends, ends: Ends) -> tuple[Int64Array, Int64Array]:
    """Which of each pair (p, 2) began first, and which later, (p,) each."""
    one = pairs[:, 0]
    other = pairs[:, 1]
    first_begin = begins.frame[one]
    second_begin = begins.frame[other]
    first_end = ends.frame[one]
    second_end = ends.frame[other]
    swapped = first_begin > second_begin
    swapped |= (first_begin == second_begin) & (first_end > second_end)
    return np.where(swapped, other, one), np.where(swapped, one, other)


def _extrapolated_miss(
    earlier: Int64Array,
    later: Int64Array,
    begins: Ends,
    ends: Ends,
    gap_seconds: Float64Array,
    damping_seconds: float,
) -> Float64Array:
    """How far (p, 2), in px, the prediction misses: the mean of forward and backward.

    A velocity is believed less and less: after g seconds it has carried as far as the full one
    in d (1 - exp(-g / d)).
    """
    carried = damping_seconds * (1 - np.exp(-np.maximum(gap_seconds, 0) / damping_seconds))
    velocity = (ends.velocity[earlier] + begins.velocity[later]) / 2
    moved = begins.position[later] - ends.position[earlier]
    miss: Float64Array = moved - velocity * carried[:, None]
    return miss


def _overlapping_miss(earlier: Trajectory | None, later: Trajectory | None) -> Float64Array:
    """How far apart (2,), in px, two tracklets are while both are there."""
    if earlier is None or later is None:
        return np.zeros(2)
    start = max(earlier.frame_indices[0], later.frame_indices[0])
    stop = min(earlier.frame_indices[-1], later.frame_indices[-1])
    frames = np.unique([start, (start + stop) // 2, stop])
    apart = _centres_at(earlier, frames) - _centres_at(later, frames)
    distance: Float64Array = np.sqrt((apart**2).mean(0))
    return distance


def _centres_at(trajectory: Trajectory, frames: Int64Array) -> Float64Array:
    """Centres (f, 2) in px at frames, between the boxes that there are."""
    boxes = trajectory.boxes_xyxy.astype(np.float64)
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    at = [np.interp(frames, trajectory.frame_indices, centres[:, axis]) for axis in (0, 1)]
    return np.stack(at, axis=1)


def position_log_odds(
    miss_heights: Float64Array, gap_seconds: Float64Array, area: Float64Array, model: PositionModel
) -> Float64Array:
    """Log-odds (p,) of misses (p, 2), in heights, in pictures of an `area` (p,) in heights²."""
    gap = np.maximum(gap_seconds, 0)
    scale = model.scale_heights + model.scale_heights_a_second * gap
    scaled = miss_heights / (scale[:, None] * np.array([1.0, model.vertical]))
    distance = (scaled**2).sum(1)
    density = (1 + distance / model.tail) ** (-(model.tail + 2) / 2)
    density = density / (2 * np.pi * scale**2 * model.vertical)
    followed = model.followed * np.exp(-gap / model.follow_seconds)
    log_odds: Float64Array = np.log(followed * density * area + 1 - followed)
    return log_odds
