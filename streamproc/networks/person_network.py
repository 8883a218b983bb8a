"""The person detector: a small network of one class in the style of YOLOX-nano.

CSPDarknet (depth .33, width .25, depthwise convolutions), PAFPN, and a decoupled head without
anchor boxes on strides 8, 16 and 32 (Ge et al., "YOLOX", 2021). It differs from YOLOX-nano in two
things: a 6x6 convolution of stride 2 instead of Focus, which sees the same pixels, and one score
for a cell instead of objectness times 80 classes. 896,559 parameters.

Input is (n, 3, h, w), BGR from 0 to 255, letter-boxed with 114, h and w multiples of 32. `forward`
gives scores (n, a) and boxes (n, a, 4), xyxy in pixels of the input. Training, the export and the
GPU use this file; the CPU runs its ONNX export.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional

STRIDES = (8, 16, 32)
_STEM_KERNEL = 6
_MOST_LOG_SIZE = 6.0


def convolution(
    inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, norm: bool
) -> nn.Sequential:
    """Return convolution, batch norm, SiLU; without `norm` it is folded into the convolution."""
    padding = 2 if kernel == _STEM_KERNEL else (kernel - 1) // 2
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=not norm)
    between = nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03) if norm else nn.Identity()
    return nn.Sequential(layer, between, nn.SiLU(inplace=True))


def separable(inputs: int, outputs: int, *, stride: int = 1, norm: bool) -> nn.Sequential:
    """Return a depthwise 3x3 convolution, then a pointwise one."""
    return nn.Sequential(
        convolution(inputs, inputs, 3, stride=stride, groups=inputs, norm=norm),
        convolution(inputs, outputs, norm=norm),
    )


class Bottleneck(nn.Module):
    """Pointwise, then separable; the input is added where `shortcut`."""

    def __init__(self, channels: int, *, shortcut: bool, norm: bool) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels, norm=norm)
        self.conv2 = separable(channels, channels, norm=norm)
        self.shortcut = shortcut

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape (n, c, h, w)."""
        y = self.conv2(self.conv1(x))
        return y + x if self.shortcut else y


class CspBlock(nn.Module):
    """Cross stage partial block: half of the channels pass the bottlenecks, half go round them."""

    def __init__(
        self, inputs: int, outputs: int, depth: int = 1, *, shortcut: bool, norm: bool
    ) -> None:
        super().__init__()
        half = outputs // 2
        self.conv1 = convolution(inputs, half, norm=norm)
        self.conv2 = convolution(inputs, half, norm=norm)
        blocks = [Bottleneck(half, shortcut=shortcut, norm=norm) for _ in range(depth)]
        self.m = nn.Sequential(*blocks)
        self.conv3 = convolution(2 * half, outputs, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Turn (n, inputs, h, w) into (n, outputs, h, w)."""
        return self.conv3(torch.cat([self.m(self.conv1(x)), self.conv2(x)], 1))


class PyramidPooling(nn.Module):
    """Spatial pyramid pooling: maxima over 5, 9 and 13 cells beside the map itself."""

    def __init__(self, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.conv1 = convolution(channels, channels // 2, norm=norm)
        self.conv2 = convolution(channels * 2, channels, norm=norm)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Keep the shape (n, c, h, w)."""
        x = self.conv1(x)
        pooled = [functional.max_pool2d(x, size, 1, size // 2) for size in (5, 9, 13)]
        return self.conv2(torch.cat([x, *pooled], 1))


class Pyramid(nn.Module):
    """PAFPN: the maps of three strides, mixed from coarse to fine and back."""

    def __init__(self, c: int, *, norm: bool) -> None:
        super().__init__()
        self.lateral = convolution(4 * c, 2 * c, norm=norm)
        self.c3p4 = CspBlock(4 * c, 2 * c, shortcut=False, norm=norm)
        self.reduce = convolution(2 * c, c, norm=norm)
        self.c3p3 = CspBlock(2 * c, c, shortcut=False, norm=norm)
        self.bu2 = separable(c, c, stride=2, norm=norm)
        self.c3n3 = CspBlock(2 * c, 2 * c, shortcut=False, norm=norm)
        self.bu1 = separable(2 * c, 2 * c, stride=2, norm=norm)
        self.c3n4 = CspBlock(4 * c, 4 * c, shortcut=False, norm=norm)

    def forward(
        self, d3: torch.Tensor, d4: torch.Tensor, d5: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Turn the maps of strides 8, 16 and 32 into those that the heads see."""
        coarse = self.lateral(d5)
        middle = self.c3p4(torch.cat([_twice_as_large(coarse), d4], 1))
        middle_reduced = self.reduce(middle)
        p3 = self.c3p3(torch.cat([_twice_as_large(middle_reduced), d3], 1))
        p4 = self.c3n3(torch.cat([self.bu2(p3), middle_reduced], 1))
        p5 = self.c3n4(torch.cat([self.bu1(p4), coarse], 1))
        return p3, p4, p5


def _twice_as_large(x: torch.Tensor) -> torch.Tensor:
    return functional.interpolate(x, scale_factor=2.0, mode="nearest")


class Head(nn.Module):
    """One stride's head: two separable convolutions for the score, two for the box."""

    def __init__(self, inputs: int, channels: int, *, norm: bool) -> None:
        super().__init__()
        self.stem = convolution(inputs, channels, norm=norm)
        self.cls = nn.Sequential(*(separable(channels, channels, norm=norm) for _ in range(2)))
        self.reg = nn.Sequential(*(separable(channels, channels, norm=norm) for _ in range(2)))
        self.cls_pred = nn.Conv2d(channels, 1, 1)
        self.reg_pred = nn.Conv2d(channels, 4, 1)
        nn.init.constant_(self.cls_pred.bias, -4.6)  # a cell is a person in one of 100

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return (n, 5, h, w): box in strides, its size as a logarithm, and the score's logit."""
        x = self.stem(x)
        return torch.cat([self.reg_pred(self.reg(x)), self.cls_pred(self.cls(x))], 1)


class PersonDetector(nn.Module):
    """The whole network. `norm`: with batch norms, to train; without them, to run."""

    def __init__(self, c: int = 16, *, norm: bool = True) -> None:
        super().__init__()
        self.stem = convolution(3, c, _STEM_KERNEL, stride=2, norm=norm)
        self.dark2 = nn.Sequential(
            separable(c, 2 * c, stride=2, norm=norm),
            CspBlock(2 * c, 2 * c, 1, shortcut=True, norm=norm),
        )
        self.dark3 = nn.Sequential(
            separable(2 * c, 4 * c, stride=2, norm=norm),
            CspBlock(4 * c, 4 * c, 3, shortcut=True, norm=norm),
        )
        self.dark4 = nn.Sequential(
            separable(4 * c, 8 * c, stride=2, norm=norm),
            CspBlock(8 * c, 8 * c, 3, shortcut=True, norm=norm),
        )
        self.dark5 = nn.Sequential(
            separable(8 * c, 16 * c, stride=2, norm=norm),
            PyramidPooling(16 * c, norm=norm),
            CspBlock(16 * c, 16 * c, 1, shortcut=False, norm=norm),
        )
        self.fpn = Pyramid(4 * c, norm=norm)
        self.heads = nn.ModuleList([Head(k * c, 4 * c, norm=norm) for k in (4, 8, 16)])

    def raw(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Return what the heads say of (n, 3, h, w): (n, 5, h / stride, w / stride) each."""
        d3 = self.dark3(self.dark2(self.stem(x)))
        d4 = self.dark4(d3)
        maps = self.fpn(d3, d4, self.dark5(d4))
        return [head(level) for head, level in zip(self.heads, maps, strict=True)]

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return scores (n, a) and boxes (n, a, 4), float32 whatever the network computes in.

        In 16 bits a pixel is the smallest step from 1,024 on.
        """
        scores = []
        boxes = []
        for raw, stride in zip(self.raw(x), STRIDES, strict=True):
            level = raw.float()
            boxes.append(boxes_of(level, stride).flatten(1, 2))
            scores.append(torch.sigmoid(level[:, 4]).flatten(1))
        return torch.cat(scores, 1), torch.cat(boxes, 1)


def boxes_of(level: torch.Tensor, stride: int) -> torch.Tensor:
    """Turn one head's (n, 5, h, w) into boxes (n, h, w, 4), xyxy in pixels of the input."""
    height, width = level.shape[-2:]
    rows = torch.arange(height, device=level.device, dtype=level.dtype)
    columns = torch.arange(width, device=level.device, dtype=level.dtype)
    x = (level[:, 0] + columns[None, None]) * stride
    y = (level[:, 1] + rows[None, :, None]) * stride
    half_width = torch.exp(level[:, 2].clamp(max=_MOST_LOG_SIZE)) * (stride / 2)
    half_height = torch.exp(level[:, 3].clamp(max=_MOST_LOG_SIZE)) * (stride / 2)
    corners = (x - half_width, y - half_height, x + half_width, y + half_height)
    return torch.stack(corners, -1)


def folded(model: PersonDetector) -> PersonDetector:
    """Return a copy for running, with each batch norm in the convolution before it."""
    out = PersonDetector(norm=False).eval()
    pairs = zip(_convolutions(model), _convolutions(out), strict=True)
    with torch.no_grad():
        for trained, plain in pairs:
            layer, norm = trained[0], trained[1]
            gain = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            plain[0].weight.copy_(layer.weight * gain[:, None, None, None])
            plain[0].bias.copy_(norm.bias - norm.running_mean * gain)
        for trained, plain in zip(model.heads, out.heads, strict=True):
            plain.cls_pred.load_state_dict(trained.cls_pred.state_dict())
            plain.reg_pred.load_state_dict(trained.reg_pred.state_dict())
    return out


def _convolutions(model: nn.Module) -> list[nn.Sequential]:
    return [
        module
        for module in model.modules()
        if isinstance(module, nn.Sequential) and isinstance(module[-1], nn.SiLU)
    ]
