"""OSNet's input: crops resized as in the published preprocessing, and ImageNet's normalisation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from streamproc.networks.images import resize
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeGuard

    from streamproc.types import Float32Array, Uint8Array

CROP_SHAPE = (CROP_HEIGHT_PX, CROP_WIDTH_PX, 3)
"""A crop as OSNet sees it: height, width, channels."""
INPUT_SHAPE = (3, CROP_HEIGHT_PX, CROP_WIDTH_PX)
"""The same as the network's input: channels, height, width."""

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# For pixels in 0 to 255, (channel, 1, 1): one product and one difference instead of three steps.
_SCALE = np.array([1 / (255 * std) for std in IMAGENET_STD], np.float32)[:, None, None]
_SHIFT = np.array(np.divide(IMAGENET_MEAN, IMAGENET_STD), np.float32)[:, None, None]


def fill_input(crops: Uint8Array | Sequence[Uint8Array], memory: Float32Array) -> Float32Array:
    """Resize and normalise n crops into the first n images of `memory` (m, 3, 256, 128).

    The crops are (n, 256, 128, 3), or n of (h, w, 3). Returns those n images.
    """
    if not are_sized(crops):
        crops = np.stack([resize(crop, CROP_HEIGHT_PX, CROP_WIDTH_PX) for crop in crops])
    return normalise(crops, memory)


def are_sized(crops: Uint8Array | Sequence[Uint8Array]) -> TypeGuard[Uint8Array]:
    """Whether the crops are one array (n, 256, 128, 3), which needs no resizing."""
    return isinstance(crops, np.ndarray) and crops.shape[1:] == CROP_SHAPE


def normalise(pixels: Uint8Array, out: Float32Array | None = None) -> Float32Array:
    """Turn (n, h, w, 3) uint8 RGB into (n, 3, h, w) float32 by ImageNet's mean and std.

    Writes into the first n images of `out` if given: memory in use is five times faster than memory
    that the system must map first.
    """
    if out is None:
        images = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
    else:
        images = out[: len(pixels)]
    np.multiply(pixels.transpose(0, 3, 1, 2), _SCALE, out=images)
    np.subtract(images, _SHIFT, out=images)
    return images
