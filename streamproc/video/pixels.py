"""From decoded planes to upright RGB.

Applies the display matrix, and converts only those parts of a picture that are cropped.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

if TYPE_CHECKING:
    from streamproc.types import Uint8Array

    Box = tuple[int, int, int, int]
    Planes = tuple[Uint8Array, ...]

# Chroma subsampling (x, y) of the formats for which tests show that converting a part gives the
# pixels of converting the whole. swscale converts 4:2:0 and 4:2:2 without interpolation where the
# height is even, and 4:4:4 always.
_SUBSAMPLING = {
    "yuv420p": (2, 2),
    "yuvj420p": (2, 2),
    "yuv422p": (2, 1),
    "yuvj422p": (2, 1),
    "yuv444p": (1, 1),
    "yuvj444p": (1, 1),
    "gray": (1, 1),
}
# Colour matrices (ISO/IEC 23091-2, H.273) that swscale converts from; with others it gives up.
KNOWN_MATRICES = frozenset({0, 1, 2, 4, 5, 6, 7, 9})
UNSPECIFIED_MATRIX = 2
"""Taken for others: swscale's default, BT.601, as the ffmpeg program does."""
# SIMD loops treat the last pixels of a row differently. A part that starts and ends on this grid,
# or ends where the picture ends, has the same last pixels as the whole. The grid also keeps the
# number of different sizes small, each of which needs a swscale context.
_GRID_PX = 32
_MAX_PARTS_BYTES = 8 * 2**20


def _side_data(picture: av.VideoFrame) -> list[Any]:
    """All entries in their order; by name there is only the last of a kind."""
    side_data: Any = picture.side_data
    try:
        return list(side_data[:])
    except TypeError:  # before PyAV 19, which iterates over names
        return list(side_data)


@dataclass(frozen=True, slots=True)
class Orientation:
    """How stored pixels become upright ones: transposed first, then mirrored.

    ISO/IEC 14496-12, 6.2.2.
    """

    transpose: bool = False
    flip_x: bool = False
    flip_y: bool = False

    @classmethod
    def of(cls, picture: av.VideoFrame) -> Orientation:
        """Read a picture's display matrix; rotations are rounded to a multiple of 90 degrees.

        It comes from the container, or from an SEI message of the picture. Where both are there,
        the first counts, which is the container's, as in FFmpeg's own tools.
        """
        matrices = [entry for entry in _side_data(picture) if entry.type.name == "DISPLAYMATRIX"]
        if not matrices:
            return cls()
        matrix = np.frombuffer(matrices[0], np.int32)
        a, b, c, d = (int(value) for value in matrix[[0, 1, 3, 4]])
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(flip_x=a < 0, flip_y=d < 0)
        return cls(transpose=True, flip_x=c < 0, flip_y=b < 0)

    def upright_size(self, width: int, height: int) -> tuple[int, int]:
        """(width, height) as shown, of a picture that is stored as (width, height)."""
        return (height, width) if self.transpose else (width, height)

    def stored_box(self, box: Box, width: int, height: int) -> Box:
        """Where a box of the upright picture (width, height) lies in the stored one."""
        x0, y0, x1, y1 = box
        if self.flip_x:
            x0, x1 = width - x1, width - x0
        if self.flip_y:
            y0, y1 = height - y1, height - y0
        return (y0, x0, y1, x1) if self.transpose else (x0, y0, x1, y1)

    def turn(self, stored: Uint8Array) -> Uint8Array:
        """Stored pixels (h, w, 3) as upright ones, in memory of their own."""
        upright = stored.transpose(1, 0, 2) if self.transpose else stored
        if self.flip_x:
            upright = upright[:, ::-1]
        if self.flip_y:
            upright = upright[::-1]
        return np.array(upright, order="C")


@dataclass(slots=True, eq=False)
class Converter:
    """Converts whole pictures and parts of them.

    Not thread-safe: all frames of a video are converted in one thread.
    """

    orientation: Orientation = field(default_factory=Orientation)
    _whole: VideoReformatter = field(default_factory=VideoReformatter)
    _scaled: VideoReformatter = field(default_factory=VideoReformatter)
    _parts: OrderedDict[tuple[int, int, str], _Part] = field(default_factory=OrderedDict)

    def rgb(self, picture: av.VideoFrame) -> Uint8Array:
        """Stored pixels (h, w, 3) of a whole picture, RGB."""
        converted = self._whole.reformat(picture, format="rgb24", threads=1)
        rgb: Uint8Array = converted.to_ndarray()  # type: ignore[assignment] # of any type
        return rgb

    def scaled_rgb(self, picture: av.VideoFrame, width: int, height: int) -> Uint8Array:
        """Stored pixels (height, width, 3) of a whole picture, RGB, scaled by swscale.

        Each pixel is a mean of its four nearest, as in the pictures that the detector learned.
        """
        converted = self._scaled.reformat(
            picture, width, height, "rgb24", interpolation=Interpolation.FAST_BILINEAR, threads=1
        )
        rgb: Uint8Array = converted.to_ndarray()  # type: ignore[assignment] # of any type
        return rgb

    def rgb_part(self, picture: av.VideoFrame, planes: Planes, box: Box) -> Uint8Array:
        """Stored pixels (h, w, 3) of a box.

        `planes` are `planes_of(picture)`, which must not be empty.
        """
        # The part is the box, extended to the grid.
        x0 = box[0] // _GRID_PX * _GRID_PX
        y0 = box[1] // _GRID_PX * _GRID_PX
        x1 = min(picture.width, -(-box[2] // _GRID_PX) * _GRID_PX)
        y1 = min(picture.height, -(-box[3] // _GRID_PX) * _GRID_PX)
        part = self._part(x1 - x0, y1 - y0, picture.format.name)
        part.picture.colorspace = picture.colorspace
        part.picture.color_range = picture.color_range
        corners = part.corners(x0, y0)
        for plane, part_plane, (left, top) in zip(planes, part.planes, corners, strict=True):
            height, width = part_plane.shape
            part_plane[:] = plane[top : top + height, left : left + width]
        return part.rgb()[box[1] - y0 : box[3] - y0, box[0] - x0 : box[2] - x0]

    def _part(self, width: int, height: int, pixel_format: str) -> _Part:
        """The part of this size, made if there is none; drops those that were used longest ago."""
        key = (width, height, pixel_format)
        part = self._parts.pop(key, None)
        if part is None:
            part = _Part(width, height, pixel_format)
            room = _MAX_PARTS_BYTES - part.size_bytes
            while self._parts and sum(kept.size_bytes for kept in self._parts.values()) > room:
                self._parts.popitem(last=False)
        self._parts[key] = part
        return part


class _Part:
    """A picture to which parts of one size are copied, and swscale's context for it.

    Both are kept, as making them costs more than using them.
    """

    __slots__ = ("_scaler", "_subsampling", "picture", "planes", "size_bytes")

    def __init__(self, width: int, height: int, pixel_format: str) -> None:
        self.picture = av.VideoFrame(width, height, pixel_format)
        self.planes = planes_of(self.picture)
        self._scaler = VideoReformatter()
        self.size_bytes = sum(plane.size for plane in self.planes)
        self._subsampling = _SUBSAMPLING[pixel_format]

    def corners(self, x0: int, y0: int) -> list[tuple[int, int]]:
        """Where (x0, y0), which lies on the grid, is in each plane: (x, y) in samples."""
        step_x, step_y = self._subsampling
        chroma = (x0 // step_x, y0 // step_y)
        return [(x0, y0)] + [chroma] * (len(self.planes) - 1)

    def rgb(self) -> Uint8Array:
        """RGB (h, w, 3), a view of swscale's memory, whose rows are longer.

        So a caller that needs part of it copies only that part.
        """
        (plane,) = self._scaler.reformat(self.picture, format="rgb24", threads=1).planes
        return np.ndarray(
            (plane.height, plane.width, 3),
            np.uint8,
            memoryview(plane),
            strides=(plane.line_size, 3, 1),
        )


def planes_of(picture: av.VideoFrame) -> Planes:
    """Views (h, w) of a picture's planes.

    None of them where converting a part would not give the pixels of the whole.
    """
    subsampling = _SUBSAMPLING.get(picture.format.name)
    # An interlaced picture's chroma lines belong to fields.
    if subsampling is None or picture.interlaced_frame:
        return ()
    if picture.height % 2 and subsampling != (1, 1):
        return ()
    planes = picture.planes
    # A picture that is stored bottom-up has negative strides.
    if min(plane.line_size for plane in planes) <= 0:
        return ()
    return tuple(
        np.ndarray((p.height, p.width), np.uint8, memoryview(p), strides=(p.line_size, 1))
        for p in planes
    )


class Frame:
    """One decoded picture. Made by `Video.frames`, used by the crop stage.

    All frames of one video are converted in one thread, which need not be the one that decodes.
    Sizes and boxes are of the upright picture.
    """

    __slots__ = (
        "_converter",
        "_picture",
        "_planes",
        "_whole",
        "frame_index",
        "height",
        "pts_seconds",
        "width",
    )

    def __init__(
        self, frame_index: int, pts_seconds: float, picture: av.VideoFrame, converter: Converter
    ) -> None:
        self.frame_index = frame_index
        self.pts_seconds = pts_seconds
        self.width, self.height = converter.orientation.upright_size(picture.width, picture.height)
        self._picture = picture
        self._converter = converter
        self._planes: Planes | None = None  # not read yet
        self._whole: Uint8Array | None = None

    def __repr__(self) -> str:
        return f"Frame({self.frame_index}, {self.width}x{self.height}, {self.pts_seconds:.3f} s)"

    def crop_rgb(self, box: Box) -> Uint8Array:
        """The pixels (h, w, 3) RGB of an integer half-open box, exactly as in `rgb()`.

        Raises:
            ValueError: The box is empty or leaves the picture.
        """
        x0, y0, x1, y1 = box
        if not (0 <= x0 < x1 <= self.width and 0 <= y0 < y1 <= self.height):
            raise ValueError(
                f"box {box} is empty or leaves the picture of {self.width}x{self.height}"
            )
        orientation = self._converter.orientation
        stored = orientation.stored_box(box, self.width, self.height)
        if self._whole is None:
            if self._planes is None:
                self._planes = planes_of(self._picture)
            if self._planes:
                return orientation.turn(
                    self._converter.rgb_part(self._picture, self._planes, stored)
                )
            self._whole = self._converter.rgb(self._picture)
        return orientation.turn(self._whole[stored[1] : stored[3], stored[0] : stored[2]])

    def scaled_rgb(self, width: int, height: int) -> Uint8Array:
        """The whole upright picture scaled to (height, width, 3), RGB."""
        orientation = self._converter.orientation
        size = (height, width) if orientation.transpose else (width, height)
        return orientation.turn(self._converter.scaled_rgb(self._picture, *size))

    def rgb(self) -> Uint8Array:
        """The whole upright picture (height, width, 3) RGB."""
        if self._whole is None:
            self._whole = self._converter.rgb(self._picture)
        return self._converter.orientation.turn(self._whole)
