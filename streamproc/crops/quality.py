"""How good a crop is: by its box before a frame is decoded, and by its sharpness when it is cut."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import Float32Array, Track, Uint8Array


MIN_HEIGHT_PX, MIN_WIDTH_PX = 8, 4
GOOD_HEIGHT_PX = 128.0
EDGE_PX = 2.0
NATURAL_ASPECT = (0.2, 0.8)


SHARP_VARIANCE = 450.0
"""Variance of the Laplacian at which a crop counts as half sharp: the median of PETS."""
_SHARPNESS_WIDTH_PX, _SHARPNESS_HEIGHT_PX = 48, 96
_JUDGED_AT_ONCE = (
    32  # takes two thirds of the time that the crops of one frame after the other take
)


def clip_boxes(boxes_xyxy: Float32Array, *, width: int, height: int) -> Float32Array:
    """Boxes (k, 4) cut at the picture's edges."""
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], np.float32))


def usable(boxes_xyxy: Float32Array, *, width: int, height: int) -> np.ndarray:
    """Which boxes (k, 4) show enough of a person to be cut at all: (k,) bool."""
    clipped = clip_boxes(boxes_xyxy, width=width, height=height)
    tall = clipped[:, 3] - clipped[:, 1] >= MIN_HEIGHT_PX
    return tall & (clipped[:, 2] - clipped[:, 0] >= MIN_WIDTH_PX)


def placement_quality(
    track: Track, hidden: Float32Array, *, width: int, height: int
) -> Float32Array:
    """Quality (k,) in [0, 1] of each box by size, edge, overlap, shape and detector confidence: a product of five."""
    boxes = track.boxes_xyxy
    box_width, box_height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    clipped = clip_boxes(boxes, width=width, height=height)
    visible = (
        (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1]) / (box_width * box_height)
    )
    inner = np.array([EDGE_PX, EDGE_PX, EDGE_PX - width, EDGE_PX - height]) * np.array(
        [1, 1, -1, -1]
    )
    touches = (boxes[:, :2] < inner[:2]).any(axis=1) | (boxes[:, 2:] > inner[2:]).any(axis=1)
    aspect = box_width / box_height
    natural = (aspect >= NATURAL_ASPECT[0]) & (aspect <= NATURAL_ASPECT[1])
    quality = (
        np.sqrt(np.minimum(1.0, box_height / GOOD_HEIGHT_PX))
        * visible
        * np.where(touches, 0.8, 1.0)
        * (1.0 - hidden.clip(0, 1))
        * np.where(natural, 1.0, 0.7)
        * (0.5 + 0.5 * track.confidences)
    )
    bounded: Float32Array = quality.clip(0, 1).astype(np.float32)
    return bounded


def sharpness(crops: Sequence[Uint8Array]) -> Float32Array:
    """How sharp each crop (h, w, 3) is, in [0, 1): variance of the Laplacian at 96x48, .5 at SHARP_VARIANCE; (n,).

    At that size all crops are alike, and motion blur and missed focus still show.
    """
    parts = [
        _variances(crops[i : i + _JUDGED_AT_ONCE]) for i in range(0, len(crops), _JUDGED_AT_ONCE)
    ]
    variance: Float32Array = np.concatenate([np.zeros(0, np.float32), *parts])
    return variance / (variance + SHARP_VARIANCE)


def _variances(crops: Sequence[Uint8Array]) -> Float32Array:
    greens = np.stack([_resized_green(pixels) for pixels in crops])
    laplacian = 4 * greens[:, 1:-1, 1:-1]
    for neighbours in (
        greens[:, :-2, 1:-1],
        greens[:, 2:, 1:-1],
        greens[:, 1:-1, :-2],
        greens[:, 1:-1, 2:],
    ):
        laplacian -= neighbours
    values = laplacian.reshape(len(crops), -1)
    squares = (
        np.einsum("ij,ij->i", values, values) / values.shape[1]
    )  # a third of the time of `var`
    variances: Float32Array = np.maximum(0, squares - values.mean(axis=1) ** 2)
    return variances


def _resized_green(pixels: Uint8Array) -> Float32Array:
    """Green, which is most of the light, of a crop (h, w, 3) at the size at which sharpness is measured."""
    height, width = pixels.shape[:2]
    columns = pixels[..., 1].astype(np.float32) @ _resampling(width, _SHARPNESS_WIDTH_PX).T
    green: Float32Array = _resampling(height, _SHARPNESS_HEIGHT_PX) @ columns
    return green


@lru_cache(maxsize=1024)
def _resampling(size: int, to_size: int) -> Float32Array:
    """Weights (to_size, size) of resizing a line: each output's triangle over its inputs, as Pillow's bilinear has it.

    Two small matrix products take half of the time that Pillow does with its objects around it.
    """
    scale = size / to_size
    centres = (np.arange(to_size) + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distances)
    normalised: Float32Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised
