"""OSNet, the re-identification network, in one file for all widths.

Zhou, Yang, Cavallaro, Xiang: "Omni-Scale Feature Learning for Person Re-Identification", ICCV 2019.
Parameter names are those of the published checkpoints, so that these load strictly. Training, the
export, the GPU's backend and the tests' reference use this file. The CPU runs its ONNX export.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from streamproc.errors import WeightsError
from streamproc.reid.preprocessing import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Mapping

GATE_REDUCTION = 16
BOTTLENECK_REDUCTION = 4
NEGLIGIBLE = 1e-20
"""Weights of a smaller magnitude become zero: see `from_state`."""


@dataclass(frozen=True, slots=True)
class OSNetConfig:
    """Channels of the stem and the three stages, and the length of the feature.

    OSNet x1.0 has (64, 256, 384, 512) and 512.
    """

    channels: tuple[int, int, int, int]
    feature_dim: int

    @classmethod
    def from_state(cls, state: Mapping[str, torch.Tensor]) -> OSNetConfig:
        """Read the sizes off the weights. Raises WeightsError if they are not OSNet's."""
        stages = [f"conv{stage}.0.conv3.conv.weight" for stage in (2, 3, 4)]
        outputs = ["conv1.conv.weight", *stages, "fc.0.weight"]
        missing = [name for name in outputs if name not in state]
        if missing:
            raise WeightsError(f"expected the weights of an OSNet, found no {missing[0]!r} in them")
        c0, c1, c2, c3, dim = (state[name].shape[0] for name in outputs)
        return cls((c0, c1, c2, c3), dim)


class ConvBN(nn.Module):
    """Convolution without bias, batch norm, then ReLU unless `linear`."""

    def __init__(
        self, n_in: int, n_out: int, kernel: int = 1, stride: int = 1, *, linear: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.BatchNorm2d(n_out)
        self.linear = linear

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, H, W) to (B, n_out, H / stride, W / stride)."""
        x = self.bn(self.conv(x))
        return x if self.linear else torch.relu(x)


class LightConv3x3(nn.Module):
    """Pointwise then depthwise 3x3 (the paper's "lite" layer), batch norm, ReLU."""

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(n_in, n_out, 1, bias=False)
        self.conv2 = nn.Conv2d(n_out, n_out, 3, padding=1, groups=n_out, bias=False)
        self.bn = nn.BatchNorm2d(n_out)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, H, W) to (B, n_out, H, W)."""
        return torch.relu(self.bn(self.conv2(self.conv1(x))))


class ChannelGate(nn.Module):
    """The aggregation gate: a factor for each channel of each image.

    The four streams of a block share its parameters.
    """

    def __init__(self, n: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(n, n // GATE_REDUCTION, 1)
        self.fc2 = nn.Conv2d(n // GATE_REDUCTION, n, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n, H, W) to (B, n, H, W)."""
        gate = x.mean(dim=(2, 3), keepdim=True)  # (B, n, 1, 1)
        return x * torch.sigmoid(self.fc2(torch.relu(self.fc1(gate))))


class OSBlock(nn.Module):
    """Four streams of 1 to 4 light convolutions, gated, summed, with a residual.

    Their receptive fields are 3 to 9.
    """

    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__()
        mid = n_out // BOTTLENECK_REDUCTION
        self.conv1 = ConvBN(n_in, mid)
        self.conv2a = LightConv3x3(mid, mid)
        self.conv2b = nn.Sequential(*(LightConv3x3(mid, mid) for _ in range(2)))
        self.conv2c = nn.Sequential(*(LightConv3x3(mid, mid) for _ in range(3)))
        self.conv2d = nn.Sequential(*(LightConv3x3(mid, mid) for _ in range(4)))
        self.gate = ChannelGate(mid)
        self.conv3 = ConvBN(mid, n_out, linear=True)
        self.downsample = ConvBN(n_in, n_out, linear=True) if n_in != n_out else None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, n_in, H, W) to (B, n_out, H, W)."""
        identity = x if self.downsample is None else self.downsample(x)
        x = self.conv1(x)
        a = self.conv2a(x)
        b = self.conv2b(x)
        c = self.conv2c(x)
        d = self.conv2d(x)
        mixed = self.gate(a) + self.gate(b) + self.gate(c) + self.gate(d)
        return torch.relu(self.conv3(mixed) + identity)


def _stage(n_in: int, n_out: int, *, halve: bool) -> nn.Sequential:
    blocks: list[nn.Module] = [OSBlock(n_in, n_out), OSBlock(n_out, n_out)]
    if halve:
        blocks.append(nn.Sequential(ConvBN(n_out, n_out), nn.AvgPool2d(2)))
    return nn.Sequential(*blocks)


class OSNet(nn.Module):
    """Images to features (B, feature_dim), which are not of unit length.

    The images are (B, 3, 256, 128), normalised by ImageNet's mean and standard deviation.
    """

    def __init__(self, config: OSNetConfig) -> None:
        super().__init__()
        c0, c1, c2, c3 = config.channels
        self.conv1 = ConvBN(3, c0, kernel=7, stride=2)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        self.conv2 = _stage(c0, c1, halve=True)
        self.conv3 = _stage(c1, c2, halve=True)
        self.conv4 = _stage(c2, c3, halve=False)
        self.conv5 = ConvBN(c3, c3)
        self.fc = nn.Sequential(
            nn.Linear(c3, config.feature_dim), nn.BatchNorm1d(config.feature_dim), nn.ReLU()
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(B, 3, 256, 128) float to (B, feature_dim)."""
        x = self.maxpool(self.conv1(x))  # (B, c0, 64, 32)
        x = self.conv2(x)  # (B, c1, 32, 16)
        x = self.conv3(x)  # (B, c2, 16, 8)
        x = self.conv5(self.conv4(x))  # (B, c3, 16, 8)
        features: torch.Tensor = self.fc(x.mean(dim=(2, 3)))  # (B, c3) to (B, feature_dim)
        return features


class PixelNetwork(nn.Module):
    """Normalisation and the network in one module, so that they compile into one graph."""

    def __init__(self, network: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.network = network.to(dtype=dtype, memory_format=torch.channels_last)
        self.dtype = dtype
        std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1) / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(b, 256, 128, 3) uint8 to (b, dim) float32."""
        # (b, 3, 256, 128), channels last in memory: nothing is moved.
        images = pixels.permute(0, 3, 1, 2)
        # In single precision: half precision would add its rounding to that of the pixels.
        images = images.float() * self.scale - self.shift
        return self.network(images.to(self.dtype)).float()


def folded(network: OSNet) -> OSNet:
    """Fold every batch norm into the layer before it, in place. The result computes the same."""
    for module in network.modules():
        if isinstance(module, ConvBN):
            module.conv = fuse_conv_bn_eval(module.conv, module.bn)
            module.bn = nn.Identity()
        elif isinstance(module, LightConv3x3):
            module.conv2 = fuse_conv_bn_eval(module.conv2, module.bn)
            module.bn = nn.Identity()
    network.fc[0] = fuse_linear_bn_eval(network.fc[0], network.fc[1])
    network.fc[1] = nn.Identity()
    return network


def from_state(state: Mapping[str, torch.Tensor]) -> OSNet:
    """Make the network that `state` belongs to and load it strictly, in eval mode.

    A `module.` prefix (of DataParallel) is accepted, and `classifier.*` (for the identities of the
    training) is dropped. Anything else that does not fit raises WeightsError. Negligible weights
    become 0: they change outputs by at most 1e-25, but they lead to denormal numbers, which make
    some processors five times slower.
    """
    state = {name.removeprefix("module."): value for name, value in state.items()}
    state = {name: value for name, value in state.items() if not name.startswith("classifier.")}
    model = OSNet(OSNetConfig.from_state(state))
    expected = model.state_dict()
    wrong = sorted(set(state) ^ set(expected))
    if not wrong:
        wrong = sorted(name for name in expected if state[name].shape != expected[name].shape)
    if wrong:
        raise WeightsError(
            f"expected exactly the {len(expected)} tensors of a plain OSNet; {len(wrong)} are "
            f"missing, unknown or of another shape, the first is {wrong[0]!r} "
            "(variants such as OSNet-AIN or -IBN are other networks)"
        )
    model.load_state_dict(
        {name: _without_negligible(value) for name, value in state.items()}, strict=True
    )
    return model.eval()


def _without_negligible(value: torch.Tensor) -> torch.Tensor:
    if not value.is_floating_point():
        return value
    value = value.float()
    return torch.where(value.abs() < NEGLIGIBLE, torch.zeros_like(value), value)
