"""Makes one animated WebP of a person's crops, and one still picture of the best ones.

FFmpeg scales the crops to the planes that libwebp encodes, and calls libwebp for each picture. The
container (RIFF, https://developers.google.com/speed/webp/docs/riff_container) is written here, not
by libwebp's animation encoder. That one looks for pixels that stay the same from one picture to the
next, and a walking person has none. Here each picture after the first covers only its own place on
the canvas and that of the picture before, and none has an alpha plane. How that compares in time
and size: tests/benchmarks/README.md.
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

    from av.video.codeccontext import VideoCodecContext
    from av.video.plane import VideoPlane

    from streamproc.types import Crop, Uint8Array

BACKGROUND_RGB = (24, 26, 31)
"""Neutral and dark, so that the person stands out on a light page and on a dark one."""
_BACKGROUND_YUV = (38, 130, 127)  # the same in BT.601, 16 to 235

_QUALITY = 75
_METHOD = 0  # the others make smaller files but take up to 2.6 times as long
_MIN_SIZE_PX = 16  # one macroblock
_CELL_PX = (96, 192)  # width and height of a crop in a strip
_MAX_SIZE_PX = 4096
_SCALED_BYTES = 8 * 2**20  # of a batch of crops: 85 pictures of 256x256
_MAX_DURATION_MS = (1 << 24) - 1

_VP8X_ANIMATED = 0b0000_0010
_ANMF_OVERWRITE = 0b0000_0010  # no blending with the picture before
_LOOP_FOR_EVER = 0

_Rectangle = tuple[int, int, int, int]  # x, y, width, height in pixels of the canvas


def encode_webp(crops: Sequence[Crop], *, size_px: int = 256, frames_per_second: int = 10) -> bytes:
    """Animate `crops`, one picture each in the order given, `size_px` square, in an endless loop.

    Each crop is stretched from the size it is kept at to its `aspect_ratio`, and letter-boxed on
    `BACKGROUND_RGB`. Safe in any thread. FFmpeg releases the GIL while it scales and encodes, so
    two threads run at once.

    Raises:
        ValueError: No crops, a size outside 16..4096 px, a rate below 1, or an aspect ratio that is
            not a positive number.
        av.FFmpegError, MemoryError: As FFmpeg raised it.
    """
    _check_options(size_px, frames_per_second)
    _check_crops(crops)
    duration_ms = min(_MAX_DURATION_MS, max(1, round(1000 / frames_per_second)))
    canvas = (0, 0, size_px, size_px)
    places = [_letter_box(crop.aspect_ratio, size_px, size_px) for crop in crops]
    # The first picture paints the letter box; the others cover their own place and the one before.
    areas = [canvas, *(_smallest_around(pair, size_px) for pair in pairwise(places))]
    painters = {area: _Painter(area, duration_ms) for area in set(areas)}
    pictures: list[bytes] = []
    batch_size = max(1, _SCALED_BYTES // (size_px * size_px * 3 // 2))
    for start in range(0, len(crops), batch_size):
        batch = slice(start, start + batch_size)
        frames = _scaled(crops[batch], places[batch])
        for frame, area, place in zip(frames, areas[batch], places[batch], strict=True):
            pictures.append(painters[area].picture(frame, place))
    return _container(size_px, pictures)


def encode_strip(crops: Sequence[Crop]) -> bytes:
    """Put `crops` side by side in one still picture of `strip_size`, in the order given.

    Each is letter-boxed in a place of its own, as in the animation. Safe in any thread.

    Raises:
        ValueError: No crops, or an aspect ratio that is not a positive number.
        av.FFmpegError, MemoryError: As FFmpeg raised it.
    """
    _check_crops(crops)
    width, height = strip_size(len(crops))
    picture = VideoFrame(width, height, "yuv420p")
    planes = [_pixels(plane) for plane in picture.planes]
    for plane, background in zip(planes, _BACKGROUND_YUV, strict=True):
        plane[:] = background
    places = [_letter_box(crop.aspect_ratio, *_CELL_PX) for crop in crops]
    for i, frame in enumerate(_scaled(crops, places)):
        left, top, _, _ = places[i]
        _copy(frame, planes, i * _CELL_PX[0] + left, top)
    (packet,) = _codec(width, height).encode(picture)
    return bytes(packet)


def strip_size(count: int) -> tuple[int, int]:
    """Return width and height in pixels of a strip of so many crops."""
    return count * _CELL_PX[0], _CELL_PX[1]


def _check_options(size_px: int, frames_per_second: int) -> None:
    if not _MIN_SIZE_PX <= size_px <= _MAX_SIZE_PX:
        raise ValueError(f"expected size_px in {_MIN_SIZE_PX}..{_MAX_SIZE_PX}, got {size_px}")
    if frames_per_second < 1:
        raise ValueError(f"expected one frame per second or more, got {frames_per_second}")


def _check_crops(crops: Sequence[Crop]) -> None:
    if not crops:
        raise ValueError("an animation needs one crop or more, got none")
    for crop in crops:
        if not (math.isfinite(crop.aspect_ratio) and crop.aspect_ratio > 0):
            raise ValueError(f"{crop!r}: expected an aspect ratio above 0, got {crop.aspect_ratio}")


def _letter_box(aspect_ratio: float, width_px: int, height_px: int) -> _Rectangle:
    """Where a picture of this shape (width / height) lies on a canvas of this size.

    Centred, as large as fits, and rounded to even numbers: an edge at an odd place would share its
    colour (one sample for 2x2 pixels) with the background.
    """
    width = _even_side(height_px * aspect_ratio, width_px)
    height = _even_side(width_px / aspect_ratio, height_px)
    return (width_px - width) // 4 * 2, (height_px - height) // 4 * 2, width, height


def _even_side(side: float, most_px: int) -> int:
    return min(most_px, max(2, 2 * round(side / 2)))


def _smallest_around(places: Sequence[_Rectangle], size_px: int) -> _Rectangle:
    """The smallest centred rectangle that holds all places.

    Its corner is even, as the container requires.
    """
    x = min(place[0] for place in places)
    y = min(place[1] for place in places)
    return x, y, size_px - 2 * x, size_px - 2 * y


def _scaled(crops: Sequence[Crop], places: Sequence[_Rectangle]) -> list[VideoFrame]:
    """Each crop at the size of its place, in the planes that libwebp takes.

    Scaling a batch of crops before the first is encoded keeps code in the cache, and crops of equal
    size after each other let swscale keep its tables: both together make a replay 3 % faster.
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
    """Paints and encodes pictures of one area of the canvas.

    It keeps the codec, as opening one for each picture makes encoding a tenth slower.
    """

    def __init__(self, area: _Rectangle, duration_ms: int) -> None:
        self._left, self._top, width, height = area
        numbers = (self._left // 2, self._top // 2, width - 1, height - 1, duration_ms)
        self._header = b"".join(map(_uint24, numbers)) + bytes([_ANMF_OVERWRITE])
        self._canvas = VideoFrame(width, height, "yuv420p")
        self._planes = [_pixels(plane) for plane in self._canvas.planes]
        self._place: _Rectangle | None = None  # of the last crop; around it is background
        self._codec = _codec(width, height)

    def picture(self, scaled: VideoFrame, place: _Rectangle) -> bytes:
        """One picture of the animation: a crop, scaled to its place, on background."""
        if (scaled.width, scaled.height) == (self._canvas.width, self._canvas.height):
            (packet,) = self._codec.encode(scaled)
        else:
            self._paint(scaled, place)
            (packet,) = self._codec.encode(self._canvas)
        return _chunk(b"ANMF", self._header, memoryview(packet)[12:])  # after "RIFF", size, "WEBP"

    def _paint(self, scaled: VideoFrame, place: _Rectangle) -> None:
        if place != self._place:
            for painted, background in zip(self._planes, _BACKGROUND_YUV, strict=True):
                painted[:] = background
        _copy(scaled, self._planes, place[0] - self._left, place[1] - self._top)
        self._place = place


def _codec(width: int, height: int) -> VideoCodecContext:
    codec = CodecContext.create("libwebp", "w")
    codec.width = width
    codec.height = height
    codec.pix_fmt = "yuv420p"
    codec.time_base = Fraction(1, 1000)
    codec.options = {"quality": str(_QUALITY), "compression_level": str(_METHOD)}
    return codec


def _copy(frame: VideoFrame, planes: Sequence[Uint8Array], left: int, top: int) -> None:
    """Put a picture at an even place of a larger one, given as its three planes."""
    shifts = (0, 1, 1)  # both chroma planes have half of the size
    for plane, painted, shift in zip(frame.planes, planes, shifts, strict=True):
        x = left >> shift
        y = top >> shift
        painted[y : y + plane.height, x : x + plane.width] = _pixels(plane)


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
