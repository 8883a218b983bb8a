"""How tracklets begin and end: where, how tall, how fast, and whether at the picture's edge."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

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
    chosen = slice(-END_BOXES, None) if last else slice(0, END_BOXES)
    end = -1 if last else 0
    for rows, found in _by_length(trajectories):
        frames = np.stack([one.frame_indices[chosen] for one in found])  # (m, k)
        boxes = np.stack([one.boxes_xyxy[chosen] for one in found]).astype(np.float64)
        known[rows] = True
        frame[rows] = frames[:, end]
        centres = (boxes[:, :, :2] + boxes[:, :, 2:]) / 2
        position[rows] = centres[:, end]
        velocity[rows] = _velocities(frames / frames_per_second, centres)
        tall = np.median(boxes[:, :, 3] - boxes[:, :, 1], axis=1)
        heights[rows] = np.maximum(tall, 1.0)
        at_edge[rows] = _touch_edge(boxes[:, end], width, height)
    return Ends(frame, position, heights, velocity, at_edge, known)


def _by_length(
    trajectories: Sequence[Trajectory | None],
) -> Iterator[tuple[list[int], list[Trajectory]]]:
    """Yield those that are known by how many boxes an end has, so that each lot is one array."""
    lots: dict[int, tuple[list[int], list[Trajectory]]] = {}
    for i, trajectory in enumerate(trajectories):
        if trajectory is None or not len(trajectory.frame_indices):
            continue
        length = min(len(trajectory.frame_indices), END_BOXES)
        rows, found = lots.setdefault(length, ([], []))
        rows.append(i)
        found.append(trajectory)
    yield from lots.values()


def _velocities(seconds: Float64Array, centres: Float64Array) -> Float64Array:
    """Px a second (m, 2) of k centres (m, k, 2) each, by a ridge regression on time (m, k)."""
    from_mean = seconds - seconds.mean(1, keepdims=True)
    spread = np.einsum("mk,mk->m", from_mean, from_mean) + VELOCITY_RIDGE_SECONDS**2
    moved = centres - centres.mean(1, keepdims=True)
    velocities: Float64Array = np.einsum("mk,mkc->mc", from_mean, moved) / spread[:, None]
    return velocities


def _touch_edge(boxes: Float64Array, width: int, height: int) -> BoolArray:
    x0, y0, x1, y1 = boxes.T
    near_x = EDGE_SHARE * width
    near_y = EDGE_SHARE * height
    touches: BoolArray = x0 <= near_x
    touches |= y0 <= near_y
    touches |= x1 >= width - near_x
    touches |= y1 >= height - near_y
    return touches
