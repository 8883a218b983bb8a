"""Cuts planned crops out of a decoded frame, shrinks the largest to the network's size, and judges them."""

from __future__ import annotations

import math
from functools import lru_cache
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from streamproc.crops.store import CROP_BYTES
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX, Crop, Cut

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamproc.crops.store import PixelStore
    from streamproc.types import Float32Array, Uint8Array

EMBEDDED_BYTES = CROP_HEIGHT_PX * CROP_WIDTH_PX * 3
SHARP_VARIANCE = 450.0
"""Variance of the Laplacian at which a crop counts as half sharp: the median of PETS."""
_SHARPNESS_WIDTH_PX, _SHARPNESS_HEIGHT_PX = 48, 96
_JUDGED_AT_ONCE = 32  # takes two thirds of the time that the crops of one frame after the other take


class UprightFrame(Protocol):
    """What a crop is cut from; `video.Frame` is one."""

    frame_index: int
    pts_seconds: float
    width: int
    height: int

    def crop_rgb(self, box: tuple[int, int, int, int], /) -> Uint8Array:
        """Pixels (h, w, 3) of a half-open integer box inside the picture."""
        ...


def cut_frames(
    frames: Sequence[UprightFrame], cuts: Mapping[int, Sequence[Cut]], store: PixelStore
) -> list[list[Crop]]:
    """Cut the crops that are planned (`cuts` by frame index) of some frames; a list for each, in order.

    Runs in the one crop thread (the frames' converters belong to it).
    """
    wanted = [(frame, cut, _pixel_box(frame, cut)) for frame in frames for cut in cuts[frame.frame_index]]
    pixels = [store.keep(_shrunk(frame.crop_rgb(box), cut)) for frame, cut, box in wanted]
    judged = zip(wanted, pixels, sharpness(pixels).tolist(), strict=True)
    crops = iter([_crop(*which, own, sharp) for which, own, sharp in judged])
    return [list(islice(crops, len(cuts[frame.frame_index]))) for frame in frames]


def _pixel_box(frame: UprightFrame, cut: Cut) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = cut.box_xyxy
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    return left, top, min(frame.width, math.ceil(x1)), min(frame.height, math.ceil(y1))


def _crop(frame: UprightFrame, cut: Cut, box: tuple[int, int, int, int], pixels: Uint8Array, sharp: float) -> Crop:
    left, top, right, bottom = box
    return Crop(
        person_id=cut.person_id,
        slot=cut.slot,
        frame_index=frame.frame_index,
        pts_seconds=frame.pts_seconds,
        box_xyxy=cut.box_xyxy,
        quality=round(cut.placement_quality * (0.75 + 0.25 * sharp), 4),
        aspect_ratio=(right - left) / (bottom - top),
        pixels=pixels,
    )


def _shrunk(pixels: Uint8Array, cut: Cut) -> Uint8Array:
    """The crop as it is kept: resized if memory asks for it, or the network probably will, else as it is.

    Most of a person's crops are never embedded, so resizing all would be in vain. Resizing all that are, but only then,
    would keep the network waiting, as many people's last crops come with the video's end.
    """
    most = EMBEDDED_BYTES if cut.is_favourite else CROP_BYTES
    return resized(pixels) if pixels.nbytes > most else pixels


def resized(pixels: Uint8Array) -> Uint8Array:
    """Resize (h, w, 3) to (256, 128, 3) as the published preprocessing does: Pillow's bilinear, which antialiases."""
    size = (CROP_WIDTH_PX, CROP_HEIGHT_PX)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))  # itself, where it fits already


def sharpness(crops: Sequence[Uint8Array]) -> Float32Array:
    """How sharp each crop (h, w, 3) is, in [0, 1): variance of the Laplacian at 96x48, .5 at SHARP_VARIANCE; (n,).

    At that size all crops are alike, and motion blur and missed focus still show.
    """
    parts = [_variances(crops[i : i + _JUDGED_AT_ONCE]) for i in range(0, len(crops), _JUDGED_AT_ONCE)]
    variance: Float32Array = np.concatenate([np.zeros(0, np.float32), *parts])
    return variance / (variance + SHARP_VARIANCE)


def _variances(crops: Sequence[Uint8Array]) -> Float32Array:
    greens = np.stack([_resized_green(pixels) for pixels in crops])
    laplacian = 4 * greens[:, 1:-1, 1:-1]
    for neighbours in (greens[:, :-2, 1:-1], greens[:, 2:, 1:-1], greens[:, 1:-1, :-2], greens[:, 1:-1, 2:]):
        laplacian -= neighbours
    values = laplacian.reshape(len(crops), -1)
    squares = np.einsum("ij,ij->i", values, values) / values.shape[1]  # a third of the time of `var`
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
