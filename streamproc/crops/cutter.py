"""Cuts planned crops out of a decoded frame, shrinks them to the network's size, and judges them."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from streamproc.crops.store import CROP_BYTES
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX, Crop, Cut

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.crops.store import PixelStore
    from streamproc.types import Float32Array, Uint8Array

SHARP_VARIANCE = 450.0
"""Variance of the Laplacian at which a crop counts as half sharp: the median of PETS."""
_SHARPNESS_WIDTH_PX, _SHARPNESS_HEIGHT_PX = 48, 96


class UprightFrame(Protocol):
    """What a crop is cut from; `video.Frame` is one."""

    frame_index: int
    pts_seconds: float
    width: int
    height: int

    def crop_rgb(self, box: tuple[int, int, int, int], /) -> Uint8Array:
        """Pixels (h, w, 3) of a half-open integer box inside the picture."""
        ...


def cut_frame(frame: UprightFrame, cuts: Sequence[Cut], store: PixelStore) -> list[Crop]:
    """Cut all planned crops of one frame. Runs in the one crop thread (the frame's converters belong to it)."""
    boxes = [_pixel_box(frame, cut) for cut in cuts]
    pixels = [_shrunk(frame.crop_rgb(box)) for box in boxes]
    made = zip(cuts, boxes, pixels, sharpness(pixels).tolist(), strict=True)
    return [_crop(frame, cut, box, own, sharp, store) for cut, box, own, sharp in made]


def _pixel_box(frame: UprightFrame, cut: Cut) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = cut.box_xyxy
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    return left, top, min(frame.width, math.ceil(x1)), min(frame.height, math.ceil(y1))


def _crop(
    frame: UprightFrame, cut: Cut, box: tuple[int, int, int, int], pixels: Uint8Array, sharp: float, store: PixelStore
) -> Crop:
    left, top, right, bottom = box
    return Crop(
        person_id=cut.person_id,
        slot=cut.slot,
        frame_index=frame.frame_index,
        pts_seconds=frame.pts_seconds,
        box_xyxy=cut.box_xyxy,
        quality=round(cut.placement_quality * (0.75 + 0.25 * sharp), 4),
        aspect_ratio=(right - left) / (bottom - top),
        pixels=store.keep(pixels),
    )


def _shrunk(pixels: Uint8Array) -> Uint8Array:
    return resized(pixels) if pixels.nbytes > CROP_BYTES else pixels


def resized(pixels: Uint8Array) -> Uint8Array:
    """Resize (h, w, 3) to (256, 128, 3) as the published preprocessing does: Pillow's bilinear, which antialiases."""
    size = (CROP_WIDTH_PX, CROP_HEIGHT_PX)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))  # itself, where it fits already


def sharpness(crops: Sequence[Uint8Array]) -> Float32Array:
    """How sharp each crop (h, w, 3) is, in [0, 1): variance of the Laplacian at 96x48, .5 at SHARP_VARIANCE; (n,).

    At that size all crops are alike, and motion blur and missed focus still show.
    """
    if not crops:
        return np.zeros(0, np.float32)
    greens = np.stack([_resized_green(pixels) for pixels in crops])
    laplacian = 4 * greens[:, 1:-1, 1:-1]
    for neighbours in (greens[:, :-2, 1:-1], greens[:, 2:, 1:-1], greens[:, 1:-1, :-2], greens[:, 1:-1, 2:]):
        laplacian -= neighbours
    values = laplacian.reshape(len(crops), -1)
    squares = np.einsum("ij,ij->i", values, values) / values.shape[1]  # a third of the time of `var`
    variance: Float32Array = np.maximum(0, squares - values.mean(axis=1) ** 2)
    return variance / (variance + SHARP_VARIANCE)


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
