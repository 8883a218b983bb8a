"""Resizing pictures for a network, as Pillow does it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from streamproc.types import Uint8Array


def resize(pixels: Uint8Array, height: int, width: int) -> Uint8Array:
    """Resize (h, w, 3) to (height, width, 3), uint8, by Pillow's antialiased bilinear filter.

    `crops` shrinks a crop ahead of the network, `reid` those that come in another size. Both must
    give the same pixels, so both call this. It is here because neither may import the other.
    """
    size = (width, height)
    return np.asarray(Image.fromarray(pixels).resize(size, Image.Resampling.BILINEAR))
