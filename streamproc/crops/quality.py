"""How good a crop is.

Its box tells before the frame is decoded (`placement_quality`), its pixels when it is cut
(`sharpness`); `crop_quality` joins the two.
"""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import Float32Array, Track, Uint8Array


MIN_HEIGHT_PX = 8
MIN_WIDTH_PX = 4
GOOD_HEIGHT_PX = 128.0
EDGE_PX = 2.0
"""A box that comes so close to the picture's edge probably shows only part of the person."""
NATURAL_ASPECT = (0.2, 0.8)

SHARP_VARIANCE = 450.0
"""Variance of the Laplacian at which a crop counts as half sharp: the median of PETS."""
_SHARPNESS_WIDTH_PX = 48
_SHARPNESS_HEIGHT_PX = 96
# So many crops at once take two thirds of the time that those of one frame after the other take.
_CROPS_A_CHUNK = 32


def clip_boxes(boxes_xyxy: Float32Array, *, width: int, height: int) -> Float32Array:
    """Boxes (k, 4) cut at the picture's edges."""
    return np.clip(boxes_xyxy, 0, np.array([width, height, width, height], np.float32))


def usable(boxes_xyxy: Float32Array, *, width: int, height: int) -> np.ndarray:
    """Which boxes (k, 4) show enough of a person to be cut at all: (k,) bool."""
    clipped = clip_boxes(boxes_xyxy, width=width, height=height)
    is_tall = clipped[:, 3] - clipped[:, 1] >= MIN_HEIGHT_PX
    is_wide = clipped[:, 2] - clipped[:, 0] >= MIN_WIDTH_PX
    return is_tall & is_wide


def placement_quality(
    track: Track, hidden: Float32Array, *, width: int, height: int
) -> Float32Array:
    """Quality (k,) in [0, 1] of each box, as far as it is known before decoding.

    The product of size, visible share, edge, overlap (`hidden` (k,) is the share of each box that
    another box hides), shape and detector confidence.
    """
    boxes = track.boxes_xyxy
    box_width = boxes[:, 2] - boxes[:, 0]
    box_height = boxes[:, 3] - boxes[:, 1]
    clipped = clip_boxes(boxes, width=width, height=height)
    clipped_area = (clipped[:, 2] - clipped[:, 0]) * (clipped[:, 3] - clipped[:, 1])
    visible = clipped_area / (box_width * box_height)
    touches_edge = (boxes[:, :2] < EDGE_PX).any(axis=1)
    touches_edge |= boxes[:, 2] > width - EDGE_PX
    touches_edge |= boxes[:, 3] > height - EDGE_PX
    aspect = box_width / box_height
    is_natural = (aspect >= NATURAL_ASPECT[0]) & (aspect <= NATURAL_ASPECT[1])
    quality = (
        np.sqrt(np.minimum(1.0, box_height / GOOD_HEIGHT_PX))
        * visible
        * np.where(touches_edge, 0.8, 1.0)
        * (1.0 - hidden.clip(0, 1))
        * np.where(is_natural, 1.0, 0.7)
        * (0.5 + 0.5 * track.confidences)
    )
    bounded: Float32Array = quality.clip(0, 1).astype(np.float32)
    return bounded


def crop_quality(placements: Sequence[float], crops: Sequence[Uint8Array]) -> list[float]:
    """Quality in [0, 1] of each crop, whose box has this placement quality and these pixels.

    Placement says most: the sharpest crop of a box is a third better than the least sharp one.
    """
    return [
        round(placement * (0.75 + 0.25 * sharp), 4)
        for placement, sharp in zip(placements, sharpness(crops).tolist(), strict=True)
    ]


def sharpness(crops: Sequence[Uint8Array]) -> Float32Array:
    """How sharp each crop (h, w, 3) is: (n,) in [0, 1), .5 at `SHARP_VARIANCE`.

    Measured is the variance of the Laplacian at 96x48. At that size all crops are alike, and motion
    blur and missed focus still show.
    """
    chunks = [
        _laplacian_variances(crops[i : i + _CROPS_A_CHUNK])
        for i in range(0, len(crops), _CROPS_A_CHUNK)
    ]
    variance: Float32Array = np.concatenate([np.zeros(0, np.float32), *chunks])
    return variance / (variance + SHARP_VARIANCE)


def _laplacian_variances(crops: Sequence[Uint8Array]) -> Float32Array:
    greens = np.stack([_resized_green(pixels) for pixels in crops])  # (n, 96, 48)
    laplacian = 4 * greens[:, 1:-1, 1:-1]
    for neighbours in (
        greens[:, :-2, 1:-1],
        greens[:, 2:, 1:-1],
        greens[:, 1:-1, :-2],
        greens[:, 1:-1, 2:],
    ):
        laplacian -= neighbours
    values = laplacian.reshape(len(crops), -1)
    # A third of the time that `var` takes.
    mean_squares = np.einsum("ij,ij->i", values, values) / values.shape[1]
    variances: Float32Array = np.maximum(0, mean_squares - values.mean(axis=1) ** 2)
    return variances


def _resized_green(pixels: Uint8Array) -> Float32Array:
    """Green of a crop (h, w, 3) at the size at which sharpness is measured: (96, 48).

    Green is most of the light.
    """
    height, width = pixels.shape[:2]
    columns = pixels[..., 1].astype(np.float32) @ _resampling(width, _SHARPNESS_WIDTH_PX).T
    green: Float32Array = _resampling(height, _SHARPNESS_HEIGHT_PX) @ columns
    return green


@lru_cache(maxsize=1024)
def _resampling(size: int, to_size: int) -> Float32Array:
    """Weights (to_size, size) that resize a line as Pillow's bilinear does.

    Each output is the sum of its inputs, weighted by a triangle. Two small matrix products take
    half of the time that Pillow takes with the objects around it.
    """
    scale = size / to_size
    centres = (np.arange(to_size) + 0.5) * scale
    distances = np.abs(np.arange(size) + 0.5 - centres[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distances)
    normalised: Float32Array = (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    return normalised
