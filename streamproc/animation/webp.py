"""Crops in, one animated WebP out.

Pillow encodes each picture; the container (RIFF, https://developers.google.com/speed/webp/docs/riff_container) is put
together here, since libwebp's animation encoder spends its time on what these pictures do not have. It compares each
picture with the one before it, pixel by pixel, and codes what stayed as transparent, but a person who walks changes
everywhere. Here all pictures after the first cover just the part of the canvas that the person ever fills, and none has
an alpha plane. 19 persons of PETS09-S2L1 with 50 crops each, one thread, milliseconds a person:

    ========================================  ======  =======  ====  ======
    encoder                                   encode  decode   KiB   PSNR
    ========================================  ======  =======  ====  ======
    Pillow animation, method 4                   181       21    92    38.9
    Pillow animation, its default (method 0)      74       21   124    38.9
    Pillow animation, no key frames               57       22   124    39.0
    here, quality 75, method 2                    58       13    85    37.9
    here, quality 75, method 0                    42       13   112    38.0
    ========================================  ======  =======  ====  ======

Pillow lets go of the GIL while it encodes: two threads did 1.6 to 1.9 times as much as one.
"""

from __future__ import annotations

import io
import math
import struct
from typing import TYPE_CHECKING

from PIL import Image

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.types import Crop

BACKGROUND_RGB = (24, 26, 31)
"""Neutral and dark, so that the person stands out on a light page and on a dark one."""

_QUALITY = 75
_METHOD = 0  # the others make smaller files but take up to 2.6 times as long; see the table above
_MAX_SIZE_PX = 4096
_MAX_DURATION_MS = (1 << 24) - 1

_VP8X_ANIMATED = 0b0000_0010
_ANMF_OVERWRITE = 0b0000_0010  # no blending with the picture before
_LOOP_FOR_EVER = 0

_Rectangle = tuple[int, int, int, int]  # x, y, width, height in pixels of the canvas


def encode_webp(crops: Sequence[Crop], *, size_px: int = 256, frames_per_second: int = 10) -> bytes:
    """Animate `crops`, one picture each in the order given, `size_px` square, looping for ever.

    Each crop is stretched from its stored (256, 128, 3) back to its `aspect_ratio` and letter-boxed on
    `BACKGROUND_RGB`. Raises ValueError for no crops, a size outside 16..4096 px, a rate below 1, or an aspect ratio
    that is not a positive number; what Pillow raises (OSError, MemoryError) is let out. Safe in any thread, and two
    threads run at once (see above).
    """
    _check(crops, size_px, frames_per_second)
    duration_ms = min(_MAX_DURATION_MS, max(1, round(1000 / frames_per_second)))
    canvas = (0, 0, size_px, size_px)
    places = [_letter_box(crop.aspect_ratio, size_px) for crop in crops]
    shared = _smallest_around(places, size_px)
    pictures = []
    for position, (crop, place) in enumerate(zip(crops, places, strict=True)):
        # The first picture paints the letter box; the others leave it as it is.
        area = shared if position else canvas
        pictures.append(_animation_frame(area, duration_ms, _vp8(_painted(crop, place, area))))
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
    """Where a picture of this shape (width / height) lies on the canvas: centred, as large as fits."""
    width = min(size_px, max(1, round(size_px * aspect_ratio)))
    height = min(size_px, max(1, round(size_px / aspect_ratio)))
    return (size_px - width) // 2, (size_px - height) // 2, width, height


def _smallest_around(places: Sequence[_Rectangle], size_px: int) -> _Rectangle:
    """The smallest centred rectangle that holds all places; its corner is even, as the container demands."""
    x = min(place[0] for place in places) // 2 * 2
    y = min(place[1] for place in places) // 2 * 2
    return x, y, size_px - 2 * x, size_px - 2 * y


def _painted(crop: Crop, place: _Rectangle, area: _Rectangle) -> Image.Image:
    """The crop at its place, cut to `area`."""
    x, y, width, height = place
    picture = Image.fromarray(crop.pixels).resize((width, height), Image.Resampling.BILINEAR)
    painted = Image.new("RGB", area[2:], BACKGROUND_RGB)
    painted.paste(picture, (x - area[0], y - area[1]))
    return painted


def _vp8(picture: Image.Image) -> bytes:
    """One lossy picture as a chunk, without the file around it."""
    file = io.BytesIO()
    picture.save(file, "WEBP", quality=_QUALITY, method=_METHOD)
    return file.getvalue()[12:]  # after "RIFF", size, "WEBP"


def _animation_frame(area: _Rectangle, duration_ms: int, vp8: bytes) -> bytes:
    x, y, width, height = area
    head = b"".join(_uint24(value) for value in (x // 2, y // 2, width - 1, height - 1, duration_ms))
    return _chunk(b"ANMF", head + bytes([_ANMF_OVERWRITE]) + vp8)


def _container(size_px: int, pictures: Sequence[bytes]) -> bytes:
    features = bytes([_VP8X_ANIMATED, 0, 0, 0]) + _uint24(size_px - 1) + _uint24(size_px - 1)
    red, green, blue = BACKGROUND_RGB
    animation = struct.pack("<4BH", blue, green, red, 255, _LOOP_FOR_EVER)
    return _chunk(b"RIFF", b"WEBP" + _chunk(b"VP8X", features) + _chunk(b"ANIM", animation) + b"".join(pictures))


def _chunk(name: bytes, content: bytes) -> bytes:
    """Name, size without padding, content padded to an even size."""
    return name + struct.pack("<I", len(content)) + content + b"\0" * (len(content) % 2)


def _uint24(value: int) -> bytes:
    return value.to_bytes(3, "little")
