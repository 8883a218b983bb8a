"""Cuts planned crops out of a decoded frame, shrinks them to the network's size, and judges them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from streamproc.crops.store import CROP_BYTES
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX, Crop, Cut

if TYPE_CHECKING:
    from collections.abc import Iterable

    from streamproc.crops.store import PixelStore
    from streamproc.types import Uint8Array

SHARP_VARIANCE = 450.0
"""Variance of the Laplacian at which a crop counts as half sharp: the median of PETS."""
_SHARPNESS_SIZE = (48, 96)


class UprightFrame(Protocol):
    """What a crop is cut from; `video.Frame` is one."""

    frame_index: int
    pts_seconds: float
    width: int
    height: int

    def crop_rgb(self, box: tuple[int, int, int, int], /) -> Uint8Array:
        """Pixels (h, w, 3) of a half-open integer box inside the picture."""
        ...


def cut_frame(frame: UprightFrame, cuts: Iterable[Cut], store: PixelStore) -> list[Crop]:
    """Cut all planned crops of one frame. Runs in the one crop thread (the frame's converters belong to it)."""
    return [_cut(frame, cut, store) for cut in cuts]


def _cut(frame: UprightFrame, cut: Cut, store: PixelStore) -> Crop:
    x0, y0, x1, y1 = cut.box_xyxy
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    right, bottom = min(frame.width, math.ceil(x1)), min(frame.height, math.ceil(y1))
    pixels = frame.crop_rgb((left, top, right, bottom))
    sharp = sharpness(pixels)
    if pixels.nbytes > CROP_BYTES:
        pixels = resized(pixels)
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


def resized(pixels: Uint8Array) -> Uint8Array:
    """Resize (h, w, 3) to (256, 128, 3) as the published preprocessing does: Pillow's bilinear, which antialiases."""
    size = (CROP_WIDTH_PX, CROP_HEIGHT_PX)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))  # itself, where it fits already


def sharpness(pixels: Uint8Array) -> float:
    """How sharp a crop (h, w, 3) is, in [0, 1): variance of the Laplacian at 96x48, .5 at SHARP_VARIANCE.

    At that size all crops are alike, and motion blur and missed focus still show.
    """
    green = Image.fromarray(pixels[..., 1])  # most of the light
    g = np.asarray(green.resize(_SHARPNESS_SIZE, Image.Resampling.BILINEAR)).astype(np.int16)
    laplacian = 4 * g[1:-1, 1:-1]
    for neighbours in (g[:-2, 1:-1], g[2:, 1:-1], g[1:-1, :-2], g[1:-1, 2:]):
        laplacian -= neighbours
    values = laplacian.astype(np.float32).ravel()
    variance = float(values @ values) / values.size - (int(laplacian.sum()) / values.size) ** 2
    return variance / (variance + SHARP_VARIANCE)
