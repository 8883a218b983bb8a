"""Crops as they might have been: moved, recoloured, blurred, covered.

Images are (b, 3, h, w) float in 0..1.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own habit

from streamproc.reid.preprocessing import IMAGENET_MEAN, IMAGENET_STD


def augment(packed: torch.Tensor, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Turn uint8 crops into normalised network input; also tell whose identity is still to be seen."""
    x, genuine = _recolour(_move(packed.float() / 255, size))
    x = _occlude(_blur(x))
    mean, std = (
        torch.tensor(v, device=x.device).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD)
    )
    return (x.clamp(0, 1) - mean) / std, genuine


def _chance(x: torch.Tensor, share: float) -> torch.Tensor:
    return torch.rand(len(x), device=x.device) < share


def _move(x: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Flip, zoom, shift, tilt a little; of some only the upper part is kept, as behind a car or at the frame's edge."""
    n, device = len(x), x.device
    rand, randn = torch.rand(5, n, device=device), torch.randn(2, n, device=device)
    zoom_x = 1 - 0.2 * rand[0] + 0.1 * rand[1]
    zoom_y = zoom_x * (1 + 0.08 * randn[0])
    shift_x, shift_y = 0.2 * (rand[2] - 0.5), 0.16 * (rand[3] - 0.5)
    upper = _chance(x, 0.08)
    kept = 0.55 + 0.4 * rand[4]
    zoom_y, shift_y = torch.where(upper, kept, zoom_y), torch.where(upper, kept - 1, shift_y)
    flip = torch.where(_chance(x, 0.5), -1.0, 1.0)
    tilt = 0.04 * randn[1]
    rows = (
        flip * zoom_x * tilt.cos(),
        -tilt.sin(),
        shift_x,
        tilt.sin(),
        zoom_y * tilt.cos(),
        shift_y,
    )
    grid = F.affine_grid(torch.stack(rows, 1).view(n, 2, 3), [n, 3, *size], align_corners=False)
    return F.grid_sample(x, grid, padding_mode="border", align_corners=False)


def _recolour(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Saturation, contrast, brightness, tint; of a few the channels are exchanged, as if in other clothes."""
    saturation, contrast, brightness = (
        (1 + spread * torch.randn(len(x), 1, 1, 1, device=x.device)).clamp(low, high)
        for spread, low, high in ((0.35, 0, 2), (0.2, 0.4, 1.7), (0.2, 0.4, 1.7))
    )
    tint = 0.07 * torch.randn(len(x), 3, 1, 1, device=x.device) * _chance(x, 0.5).view(-1, 1, 1, 1)
    grey = (x * torch.tensor((0.299, 0.587, 0.114), device=x.device).view(1, 3, 1, 1)).sum(
        1, keepdim=True
    )
    x = grey + (x - grey) * saturation
    mean = x.mean((1, 2, 3), keepdim=True)
    x = ((x - mean) * contrast + mean) * brightness + tint
    exchanged = _chance(x, 0.12)
    x[exchanged] = x[exchanged][:, torch.randperm(3, device=x.device)]
    return x, ~exchanged


def _blur(x: torch.Tensor) -> torch.Tensor:
    """A quarter of the crops as if taken from far away."""
    some = _chance(x, 0.25)
    if some.any():
        small = F.interpolate(x[some], scale_factor=0.25 + 0.5 * float(torch.rand(())), mode="area")
        x[some] = F.interpolate(small, size=x.shape[2:], mode="bilinear", align_corners=False)
    return x


def _occlude(x: torch.Tensor) -> torch.Tensor:
    """Cover part of some crops by a piece of another crop or a plain colour."""
    other = x.roll(7, 0)
    rows, columns = x.shape[2:]
    for i in _chance(x, 0.35).nonzero().flatten().tolist():
        r = torch.rand(5).tolist()
        height, width = int(rows * (0.1 + 0.3 * r[0])), int(columns * (0.15 + 0.4 * r[1]))
        top, left = int((rows - height) * r[2]), int((columns - width) * r[3])
        area = (slice(None), slice(top, top + height), slice(left, left + width))
        x[i][area] = other[i][area] if r[4] < 0.5 else torch.rand(3, 1, 1, device=x.device)  # noqa: PLR2004 - half
    return x
