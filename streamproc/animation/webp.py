"""Crops in, one animated WebP out.

libwebp encodes each picture. FFmpeg reaches it, and scales the crops straight to the planes that
libwebp takes, in a third of the time that Pillow paints in. The container (RIFF,
https://developers.google.com/speed/webp/docs/riff_container) is put together here, since libwebp's
animation encoder spends its time on what these pictures do not have. It compares each picture with
the one before it, pixel by pixel, and codes what stayed as transparent, but a person who walks
changes everywhere. Here each picture after the first covers just its own place and that of the one
before, and none has an alpha plane. 19 persons of PETS09-S2L1 with 50 crops each, one thread,
milliseconds a person; PSNR beside the crops as Pillow scales them (first three lines: the whole
picture):

    ========================================  ======  =======  ====  ======
    encoder                                   encode  decode   KiB   PSNR
    ========================================  ======  =======  ====  ======
    Pillow animation, method 4                   181       21    92    38.9
    Pillow animation, its default (method 0)      74       21   124    38.9
    Pillow animation, no key frames               57       22   124    39.0
    Pillow's pictures, quality 75, method 2       58       13    85    37.9
    Pillow's pictures, quality 75, method 0       44       13   115    37.8
    here, quality 75, method 0                    33       13   113    37.9
    ========================================  ======  =======  ====  ======

FFmpeg lets go of the GIL while it scales and encodes.
"""

from __future__ import annotations

import math
import struct
from fractions import Fraction
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from av import CodecContext, VideoFrame
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from av.video.plane import VideoPlane

    from streamproc.types import Crop, Uint8Array

BACKGROUND_RGB = (24, 26, 31)
"""Neutral and dark, so that the person stands out on a light page and on a dark one."""
_BACKGROUND_YUV = (38, 130, 127)  # the same by BT.601, 16..235

_QUALITY = 75
_METHOD = 0  # the others make smaller files but take up to 2.6 times as long; see the table above
_MAX_SIZE_PX = 4096
_SCALED_BYTES = 8 * 2**20  # 85 pictures of 256x256
_MAX_DURATION_MS = (1 << 24) - 1

_VP8X_ANIMATED = 0b0000_0010
_ANMF_OVERWRITE = 0b0000_0010  # no blending with the picture before
_LOOP_FOR_EVER = 0

_Rectangle = tuple[int, int, int, int]  # x, y, width, height in pixels of the canvas


def encode_webp(crops: Sequence[Crop], *, size_px: int = 256, frames_per_second: int = 10) -> bytes:
    """Animate `crops`, one picture each in the order given, `size_px` square, looping for ever.

    Each crop is stretched from the size it is kept at to its `aspect_ratio` and letter-boxed on
    `BACKGROUND_RGB`. Raises ValueError for no crops, a size outside 16..4096 px, a rate below 1, or
    an aspect ratio that is not a positive number; what FFmpeg raises (FFmpegError, MemoryError) is
    let out. Safe in any thread, and two threads run at once (see above).
    """
    _check(crops, size_px, frames_per_second)
    duration_ms = min(_MAX_DURATION_MS, max(1, round(1000 / frames_per_second)))
    canvas = (0, 0, size_px, size_px)
    places = [_letter_box(crop.aspect_ratio, size_px) for crop in crops]
    # The first picture paints the letter box; the others cover their own place and the one before.
    areas = [canvas, *(_smallest_around(two, size_px) for two in pairwise(places))]
    painters = {area: _Painter(area, duration_ms) for area in set(areas)}
    pictures: list[bytes] = []
    lot = max(1, _SCALED_BYTES // (size_px * size_px * 3 // 2))
    for i in range(0, len(crops), lot):
        frames = _scaled(crops[i : i + lot], places[i : i + lot])
        together = zip(frames, areas[i : i + lot], places[i : i + lot], strict=True)
        pictures += [painters[area].picture(frame, place) for frame, area, place in together]
    return _container(size_px, pictures)


def _check(crops: Sequence[Crop], size_px: int, frames_per_second: int) -> None:
    if not crops:
        raise ValueError("an animation needs one crop or more, got none")
    if not 16 <= size_px <= _MAX_SIZE_PX:  # noqa: PLR2004 - one macroblock
        raise ValueError(f"expected size_px in 16..{_MAX_SIZE_PX}, got {size_px}")
    if frames_per_second < 1:
        raise ValueError(f"expected one frame per second or more, got {frames_per_second}")
    for crop in crops:
        if not (math.isfinite(crop.aspect_ratio) and crop.aspect_ratio > 0):
            raise ValueError(f"{crop!r}: expected an aspect ratio above 0, got {crop.aspect_ratio}")


def _letter_box(aspect_ratio: float, size_px: int) -> _Rectangle:
    """Where a picture of this shape (width / height) lies on the canvas: centred, as large as fits, rounded to even.

    An edge at an odd place would share its colour (one sample for 2x2 pixels) with the background.
    """
    width, height = (
        min(size_px, max(2, 2 * round(side / 2)))
        for side in (size_px * aspect_ratio, size_px / aspect_ratio)
    )
    return (size_px - width) // 4 * 2, (size_px - height) // 4 * 2, width, height


def _smallest_around(places: Sequence[_Rectangle], size_px: int) -> _Rectangle:
    """The smallest centred rectangle that holds all places; its corner is even, as the container demands."""
    x, y = (min(place[axis] for place in places) for axis in (0, 1))
    return x, y, size_px - 2 * x, size_px - 2 * y


def _scaled(crops: Sequence[Crop], places: Sequence[_Rectangle]) -> list[VideoFrame]:
    """Each crop at the size of its place, in libwebp's planes.

    All of them before the first is encoded, as code that runs again finds itself in the cache, and
    those of equal sizes after each other, as swscale then keeps its tables: all of replay takes .97
    of the time on vtest.avi.
    """
    scaler = VideoReformatter()
    sizes = [(*crop.pixels.shape, *place[2:]) for crop, place in zip(crops, places, strict=True)]
    frames: dict[int, VideoFrame] = {}
    for i in sorted(range(len(crops)), key=sizes.__getitem__):
        _, _, width, height = places[i]
        frames[i] = scaler.reformat(
            VideoFrame.from_numpy_buffer(crops[i].pixels, format="rgb24"),
            width,
            height,
            "yuv420p",
            dst_colorspace=Colorspace.ITU601,  # a WebP has no other
            dst_color_range=ColorRange.MPEG,
            interpolation=Interpolation.BILINEAR,
            threads=1,
        )
    return [frames[i] for i in range(len(crops))]


class _Painter:
    """Paints and encodes pictures of one area.

    Keeps the codec: opening one for each picture costs a tenth more.
    """

    def __init__(self, area: _Rectangle, duration_ms: int) -> None:
        self._left, self._top, width, height = area
        self._head = b"".join(
            _uint24(value)
            for value in (self._left // 2, self._top // 2, width - 1, height - 1, duration_ms)
        ) + bytes([_ANMF_OVERWRITE])
        self._canvas = VideoFrame(width, height, "yuv420p")
        self._planes = [_pixels(plane) for plane in self._canvas.planes]
        self._place: _Rectangle | None = None  # what lies on the background
        self._codec = CodecContext.create("libwebp", "w")
        self._codec.width, self._codec.height, self._codec.pix_fmt = width, height, "yuv420p"
        self._codec.time_base = Fraction(1, 1000)
        self._codec.options = {"quality": str(_QUALITY), "compression_level": str(_METHOD)}

    def picture(self, scaled: VideoFrame, place: _Rectangle) -> bytes:
        """A crop that is scaled to its place of the canvas, background around it: one picture of the animation."""
        if (scaled.width, scaled.height) == (self._canvas.width, self._canvas.height):
            (packet,) = self._codec.encode(scaled)
        else:
            self._paint(scaled, place)
            (packet,) = self._codec.encode(self._canvas)
        return _chunk(b"ANMF", self._head, memoryview(packet)[12:])  # after "RIFF", size, "WEBP"

    def _paint(self, scaled: VideoFrame, place: _Rectangle) -> None:
        left, top = place[0] - self._left, place[1] - self._top
        for plane, into, background, shift in zip(
            scaled.planes, self._planes, _BACKGROUND_YUV, (0, 1, 1), strict=True
        ):
            if place != self._place:
                into[:] = background
            into[
                top >> shift : (top >> shift) + plane.height,
                left >> shift : (left >> shift) + plane.width,
            ] = _pixels(plane)
        self._place = place


def _pixels(plane: VideoPlane) -> Uint8Array:
    """A view (h, w) of the plane's memory."""
    return np.ndarray(
        (plane.height, plane.width), np.uint8, memoryview(plane), strides=(plane.line_size, 1)
    )


def _container(size_px: int, pictures: Sequence[bytes]) -> bytes:
    features = bytes([_VP8X_ANIMATED, 0, 0, 0]) + _uint24(size_px - 1) + _uint24(size_px - 1)
    red, green, blue = BACKGROUND_RGB
    animation = struct.pack("<4BH", blue, green, red, 255, _LOOP_FOR_EVER)
    return _chunk(
        b"RIFF", b"WEBP", _chunk(b"VP8X", features), _chunk(b"ANIM", animation), *pictures
    )


def _chunk(name: bytes, *content: bytes | memoryview) -> bytes:
    """Name, size without padding, content padded to an even size."""
    size = sum(map(len, content))
    return b"".join((name, struct.pack("<I", size), *content, b"\0" * (size % 2)))


def _uint24(value: int) -> bytes:
    return value.to_bytes(3, "little")
