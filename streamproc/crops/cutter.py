"""Cuts planned crops out of a decoded frame, shrinks the largest to the network's size, and judges them."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Protocol

import numpy as np
from PIL import Image

from streamproc.crops.pixel_store import CROP_BYTES
from streamproc.crops.quality import sharpness
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX, Crop, Cut

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamproc.crops.pixel_store import PixelStore
    from streamproc.types import Uint8Array

EMBEDDED_BYTES = CROP_HEIGHT_PX * CROP_WIDTH_PX * 3


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
    wanted = [
        (frame, cut, _pixel_box(frame, cut)) for frame in frames for cut in cuts[frame.frame_index]
    ]
    pixels = [store.keep(_shrunk(frame.crop_rgb(box), cut)) for frame, cut, box in wanted]
    judged = zip(wanted, pixels, sharpness(pixels).tolist(), strict=True)
    crops = iter([_crop(*which, own, sharp) for which, own, sharp in judged])
    return [list(islice(crops, len(cuts[frame.frame_index]))) for frame in frames]


def _pixel_box(frame: UprightFrame, cut: Cut) -> tuple[int, int, int, int]:
    x0, y0, x1, y1 = cut.box_xyxy
    left, top = max(0, math.floor(x0)), max(0, math.floor(y0))
    return left, top, min(frame.width, math.ceil(x1)), min(frame.height, math.ceil(y1))


def _crop(
    frame: UprightFrame, cut: Cut, box: tuple[int, int, int, int], pixels: Uint8Array, sharp: float
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
        pixels=pixels,
    )


def _shrunk(pixels: Uint8Array, cut: Cut) -> Uint8Array:
    """The crop as it is kept: resized if memory asks for it, or the network probably will, else as it is.

    Most of a person's crops are never embedded, so resizing all would be in vain. Resizing all that
    are, but only then, would keep the network waiting, as many people's last crops come with the
    video's end.
    """
    most = EMBEDDED_BYTES if cut.is_favourite else CROP_BYTES
    return resized(pixels) if pixels.nbytes > most else pixels


def resized(pixels: Uint8Array) -> Uint8Array:
    """Resize (h, w, 3) to (256, 128, 3) as the published preprocessing does.

    Pillow's bilinear, which antialiases.
    """
    size = (CROP_WIDTH_PX, CROP_HEIGHT_PX)
    return np.asarray(
        Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR)
    )  # itself, where it fits already
