"""Random changes of crops: moved, recoloured, blurred, covered in part.

Images are (b, 3, h, w) float in 0..1.
"""

from __future__ import annotations

import torch
from torch.nn import functional

from streamproc.reid.preprocessing import IMAGENET_MEAN, IMAGENET_STD

COVERED_BY_CROP_SHARE = 0.5
"""Of the covered crops; the others are covered by a plain colour."""


def augment(packed: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn uint8 crops (b, 3, h, w) into normalised network input of another size.

    Also returns (b,) whether the person can still be recognised: not if colours were exchanged.
    """
    x, genuine = _recolour(_move(packed.float() / 255, size))
    x = _occlude(_blur(x))
    mean = torch.tensor(IMAGENET_MEAN, device=x.device).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD, device=x.device).view(1, 3, 1, 1)
    return (x.clamp(0, 1) - mean) / std, genuine


def _chance(x: torch.Tensor, share: float) -> torch.Tensor:
    """Choose a share of the images at random: (b,) bool."""
    return torch.rand(len(x), device=x.device) < share


def _move(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Flip, zoom, shift and tilt a little.

    Of some only the upper part is kept, as of a person behind a car or at the edge of the frame.
    """
    n = len(x)
    rand = torch.rand(5, n, device=x.device)
    randn = torch.randn(2, n, device=x.device)
    zoom_x = 1 - 0.2 * rand[0] + 0.1 * rand[1]
    zoom_y = zoom_x * (1 + 0.08 * randn[0])
    shift_x = 0.2 * (rand[2] - 0.5)
    shift_y = 0.16 * (rand[3] - 0.5)
    upper = _chance(x, 0.08)
    kept = 0.55 + 0.4 * rand[4]
    zoom_y = torch.where(upper, kept, zoom_y)
    shift_y = torch.where(upper, kept - 1, shift_y)
    flip = torch.where(_chance(x, 0.5), -1.0, 1.0)
    tilt = 0.04 * randn[1]
    upper_row = (flip * zoom_x * tilt.cos(), -tilt.sin(), shift_x)
    lower_row = (tilt.sin(), zoom_y * tilt.cos(), shift_y)
    matrices = torch.stack((*upper_row, *lower_row), 1).view(n, 2, 3)
    grid = functional.affine_grid(matrices, [n, 3, *size], align_corners=False)
    return functional.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _recolour(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Change saturation, contrast, brightness and tint.

    Of a few the colour channels are exchanged, as if in other clothes. Also returns (b,) of which
    they are not.
    """
    saturation = _factor(x, 0.35, low=0, high=2)
    contrast = _factor(x, 0.2, low=0.4, high=1.7)
    brightness = _factor(x, 0.2, low=0.4, high=1.7)
    tint = 0.07 * torch.randn(len(x), 3, 1, 1, device=x.device) * _chance(x, 0.5).view(-1, 1, 1, 1)
    luma = torch.tensor((0.299, 0.587, 0.114), device=x.device).view(1, 3, 1, 1)
    grey = (x * luma).sum(1, keepdim=True)
    x = grey + (x - grey) * saturation
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean) * brightness + tint
    exchanged = _chance(x, 0.12)
    x[exchanged] = x[exchanged][:, torch.randperm(3, device=x.device)]
    return x, ~exchanged


def _factor(x: torch.Tensor, spread: float, *, low: float, high: float) -> torch.Tensor:
    """Draw a factor near 1 for each image: (b, 1, 1, 1)."""
    return (1 + spread * torch.randn(len(x), 1, 1, 1, device=x.device)).clamp(low, high)


def _blur(x: torch.Tensor) -> torch.Tensor:
    """Make a quarter of the crops look as if taken from far away."""
    some = _chance(x, 0.25)
    if some.any():
        scale = 0.25 + 0.5 * float(torch.rand(()))
        small = functional.interpolate(x[some], scale_factor=scale, mode="area")
        x[some] = functional.interpolate(
            small, size=x.shape[2:], mode="bilinear", align_corners=False
        )
    return x


def _occlude(x: torch.Tensor) -> torch.Tensor:
    """Cover part of some crops by a piece of another crop or by a plain colour."""
    other = x.roll(7, 0)
    rows, columns = x.shape[2:]
    for i in _chance(x, 0.35).nonzero().flatten().tolist():
        r = torch.rand(5).tolist()
        height = int(rows * (0.1 + 0.3 * r[0]))
        width = int(columns * (0.15 + 0.4 * r[1]))
        top = int((rows - height) * r[2])
        left = int((columns - width) * r[3])
        area = (slice(None), slice(top, top + height), slice(left, left + width))
        if r[4] < COVERED_BY_CROP_SHARE:
            x[i][area] = other[i][area]
        else:
            x[i][area] = torch.rand(3, 1, 1, device=x.device)
    return x
