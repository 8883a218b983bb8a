"""Cuts planned crops out of decoded frames, and shrinks the largest to the network's size."""

from __future__ import annotations

import math
from itertools import islice
from typing import TYPE_CHECKING, Protocol

from streamproc.crops.pixel_store import CROP_BYTES
from streamproc.crops.quality import crop_quality
from streamproc.networks.images import resize
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX, Crop, Cut

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from streamproc.crops.pixel_store import PixelStore
    from streamproc.types import Uint8Array

    PixelBox = tuple[int, int, int, int]  # left, top, right, bottom: half-open

EMBEDDED_BYTES = CROP_HEIGHT_PX * CROP_WIDTH_PX * 3


class UprightFrame(Protocol):
    """What a crop is cut from; `video.Frame` is one."""

    frame_index: int
    pts_seconds: float
    width: int
    height: int

    def crop_rgb(self, box: PixelBox, /) -> Uint8Array:
        """Pixels (h, w, 3) of a half-open integer box inside the picture."""
        ...


def cut_frames(
    frames: Sequence[UprightFrame], cuts: Mapping[int, Sequence[Cut]], store: PixelStore
) -> list[list[Crop]]:
    """Cut the crops that are planned for some frames; a list for each frame, in order.

    `cuts` are by frame index. Runs in the one crop thread, to which the frames' converter belongs.
    """
    wanted: list[tuple[UprightFrame, Cut, PixelBox]] = []
    for frame in frames:
        wanted += [(frame, cut, _pixel_box(frame, cut)) for cut in cuts[frame.frame_index]]
    pixels = [store.keep(_shrunk(frame.crop_rgb(box), cut)) for frame, cut, box in wanted]
    qualities = crop_quality([cut.placement_quality for _, cut, _ in wanted], pixels)
    crops = iter([_crop(*which) for which in zip(wanted, pixels, qualities, strict=True)])
    return [list(islice(crops, len(cuts[frame.frame_index]))) for frame in frames]


def _pixel_box(frame: UprightFrame, cut: Cut) -> PixelBox:
    """All pixels that the box touches, within the picture."""
    x0, y0, x1, y1 = cut.box_xyxy
    left = max(0, math.floor(x0))
    top = max(0, math.floor(y0))
    return left, top, min(frame.width, math.ceil(x1)), min(frame.height, math.ceil(y1))


def _crop(wanted: tuple[UprightFrame, Cut, PixelBox], pixels: Uint8Array, quality: float) -> Crop:
    frame, cut, (left, top, right, bottom) = wanted
    return Crop(
        person_id=cut.person_id,
        crop_index=cut.crop_index,
        frame_index=frame.frame_index,
        pts_seconds=frame.pts_seconds,
        box_xyxy=cut.box_xyxy,
        quality=quality,
        aspect_ratio=(right - left) / (bottom - top),
        pixels=pixels,
    )


def _shrunk(pixels: Uint8Array, cut: Cut) -> Uint8Array:
    """The crop as it is kept: resized if memory or the network asks for it, else unchanged.

    Most of a person's crops are never embedded, and need no resizing for the network. Those that
    are embedded could be resized then, but that would keep the network waiting: many persons' last
    crops come with the end of the video. So those that will probably be embedded are resized here.
    """
    most = EMBEDDED_BYTES if cut.is_preselected else CROP_BYTES
    return resized(pixels) if pixels.nbytes > most else pixels


def resized(pixels: Uint8Array) -> Uint8Array:
    """Resize (h, w, 3) to (256, 128, 3), as the network itself does with crops of another size.

    Pixels that have the size already keep their values.
    """
    return resize(pixels, CROP_HEIGHT_PX, CROP_WIDTH_PX)
