"""Boxes of a frame that no track has yet: what a detector found, overlaps, suppression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from streamproc.types import BoolArray, Float32Array, Float64Array, Int64Array

BOX_STEP_PX = 1 / 8
CONFIDENCE_STEP = 1 / 4096
_MAX_BOXES = 1000
"""Of one frame, before suppression: no picture shows more people that can be told apart."""


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """The people that a detector sees in one frame. Made by `Detector`, used by `Tracker`.

    boxes_xyxy (n, 4) float32, confidences (n,) float32 in [0, 1], the most confident first.
    """

    boxes_xyxy: Float32Array
    confidences: Float32Array

    def __len__(self) -> int:
        return len(self.confidences)

    def __repr__(self) -> str:
        return f"Detections({len(self)} boxes)"

    def take(self, rows: BoolArray | Int64Array) -> Detections:
        """Return some of them."""
        return Detections(self.boxes_xyxy[rows], self.confidences[rows])


def rounded(boxes_xyxy: Float32Array, confidences: Float32Array) -> Detections:
    """Return detections in steps of 1/8 px and 1/4096, the most confident first.

    The last digits of a network differ from one processor to another, and a tracker would make
    other tracks of them.
    """
    boxes = np.round(boxes_xyxy / BOX_STEP_PX) * BOX_STEP_PX
    steps = np.round(confidences / CONFIDENCE_STEP) * CONFIDENCE_STEP
    order = np.lexsort((*boxes.T[::-1], -steps))  # equal confidences by their boxes, left first
    return Detections(boxes[order].astype(np.float32), steps[order].astype(np.float32))


def iou_matrix(a: Float32Array | Float64Array, b: Float32Array | Float64Array) -> Float64Array:
    """Return intersection over union (n, m) of boxes (n, 4) and (m, 4)."""
    lefts_tops = np.maximum(a[:, None, :2], b[None, :, :2])
    rights_bottoms = np.minimum(a[:, None, 2:], b[None, :, 2:])
    sides = np.maximum(rights_bottoms - lefts_tops, 0)
    common = sides[..., 0] * sides[..., 1]
    unions = _areas(a)[:, None] + _areas(b)[None, :] - common
    ratio: Float64Array = common / np.maximum(unions, 1e-9)
    return ratio


def _areas(boxes: Float32Array | Float64Array) -> Float64Array:
    areas: Float64Array = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    return areas


def suppress(detections: Detections, most_iou: float) -> Detections:
    """Leave out boxes that overlap a more confident one by more than `most_iou`.

    This is greedy non-maximum suppression.
    """
    detections = detections.take(np.arange(min(len(detections), _MAX_BOXES)))
    overlapping = iou_matrix(detections.boxes_xyxy, detections.boxes_xyxy) > most_iou
    keep = np.ones(len(detections), bool)
    for row in range(len(detections)):
        if keep[row]:
            keep[row + 1 :] &= ~overlapping[row, row + 1 :]
    return detections.take(keep)
