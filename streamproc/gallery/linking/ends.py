"""How tracklets begin and end: where, how tall, how fast, and whether at the picture's edge."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import BoolArray, Float64Array, Int64Array, Trajectory

END_BOXES = 10
"""So many boxes at each end give its position, size and velocity."""
VELOCITY_RIDGE_SECONDS = 0.3
"""A velocity is held towards 0 as if one more box, this far away in time, had not moved."""
EDGE_SHARE = 0.02
"""A box this near to the edge, as a share of the picture's width or height, touches it."""


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """How tracklets begin, or how they end; n tracklets, made by `ends_of`.

    `frame` (n,): the first (last) frame index. `position` (n, 2): centre of that box in px;
    `height` (n,): median of the ten boxes there, in px; `velocity` (n, 2): px a second there;
    `at_edge` (n,): whether that box touches the picture's edge. `known` (n,): has a trajectory.
    """

    frame: Int64Array
    position: Float64Array
    height: Float64Array
    velocity: Float64Array
    at_edge: BoolArray
    known: BoolArray

    def __repr__(self) -> str:
        return f"Ends({len(self.frame)} tracklets, {int(self.known.sum())} known)"


def ends_of(
    trajectories: Sequence[Trajectory | None],
    *,
    last: bool,
    width: int,
    height: int,
    frames_per_second: float,
) -> Ends:
    """Describe the begin of each tracklet, or its end where `last`; None has no trajectory.

    `width` and `height` are the picture's, in px.
    """
    count = len(trajectories)
    frame = np.zeros(count, np.int64)
    known = np.zeros(count, bool)
    position = np.zeros((count, 2))
    velocity = np.zeros((count, 2))
    heights = np.ones(count)
    at_edge = np.zeros(count, bool)
    for i, trajectory in enumerate(trajectories):
        if trajectory is None or not len(trajectory.frame_indices):
            continue
        known[i] = True
        chosen = slice(-END_BOXES, None) if last else slice(0, END_BOXES)
        frames = trajectory.frame_indices[chosen]
        boxes = trajectory.boxes_xyxy[chosen].astype(np.float64)
        end = -1 if last else 0
        frame[i] = frames[end]
        position[i], velocity[i] = _position_and_velocity(frames, boxes, end, frames_per_second)
        heights[i] = max(median((boxes[:, 3] - boxes[:, 1]).tolist()), 1.0)
        at_edge[i] = _touches_edge(boxes[end], width, height)
    return Ends(frame, position, heights, velocity, at_edge, known)


def _position_and_velocity(
    frames: Int64Array, boxes: Float64Array, end: int, frames_per_second: float
) -> tuple[Float64Array, Float64Array]:
    """Centre (2,) of the box at `end` in px, and px a second by a ridge regression on time."""
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    seconds = frames / frames_per_second
    from_mean = seconds - seconds.mean()
    spread = float(from_mean @ from_mean) + VELOCITY_RIDGE_SECONDS**2
    velocity = from_mean @ (centres - centres.mean(0)) / spread
    return centres[end], velocity


def _touches_edge(box: Float64Array, width: int, height: int) -> bool:
    x0, y0, x1, y1 = box
    near_x = EDGE_SHARE * width
    near_y = EDGE_SHARE * height
    return bool(x0 <= near_x or y0 <= near_y or x1 >= width - near_x or y1 >= height - near_y)
