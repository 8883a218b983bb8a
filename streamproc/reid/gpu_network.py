"""OSNet in the form that a GPU runs fastest: half precision, channels last, few and large layers.

It computes the same function as `osnet.OSNet`.

- Batch norms are folded. A light convolution (pointwise, then depthwise 3x3, with nothing between)
  becomes one dense 3x3 convolution whose kernel is the product of both. That is up to nine times
  the arithmetic, for which matrix units have room, and half the memory traffic, which is what
  limits OSNet's speed.
- The four streams of a block run side by side: first the first layers of all four, then the second
  layers of three, and so on.
- Pointwise convolutions are matrix products. What is not in `gpu_kernels` is left for
  `torch.compile` to fuse.

Without a GPU, torch's own layers stand in for those of `gpu_kernels`. The tests compare the kernels
with them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import nn
from torch.nn import functional

from streamproc.reid.osnet import folded
from streamproc.reid.preprocessing import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.reid.osnet import LightConv3x3, OSBlock, OSNet

LEAST_CAPABILITY = (8, 0)
"""Of a GPU that Triton compiles for (Ampere, 2020)."""
MOST_FUSED_CHANNELS = 128
"""Output channels of a block, at most, for the fused `leave`.

The matrices of wider networks (from x0.5 on) do not fit into a multiprocessor's memory.
"""

_STEM_PIXELS = 8  # neighbouring pixels of a row that one row of the stem's kernel covers
_PIXEL_VALUES = 4  # values of a pixel: three channels and a zero


@torch.library.custom_op(
    "streamproc::light_convs",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor",
)
def light_convs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """3x3 convolutions with bias and ReLU of S streams: (S, b, h, w, c) to the same shape.

    `x` may be (1, b, h, w, c) if it is the same for all streams. `weight` is (S, 9, c in, c out),
    `bias` (S, c).
    """
    if x.is_cuda:
        from streamproc.reid import gpu_kernels

        return gpu_kernels.light_convs(x, weight, bias)
    kernels = weight.unflatten(1, (3, 3)).permute(0, 4, 3, 1, 2)  # (S, c out, c in, 3, 3)
    streams = x.expand(len(weight), *x.shape[1:]).permute(0, 1, 4, 2, 3)
    triples = zip(streams, kernels, bias, strict=True)
    outputs = torch.stack(
        [functional.conv2d(one, kernel, own, padding=1) for one, kernel, own in triples]
    )
    return torch.relu(outputs).permute(0, 1, 3, 4, 2).contiguous()


@torch.library.custom_op(
    "streamproc::stem", mutates_args=(), schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor"
)
def stem(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """7x7 convolution of stride 2 with bias and ReLU: (b, 2h + 6, 2w + 8, 4) to (b, h, w, c).

    `x` is padded. `weight` is (7, 32, c): for each row eight pixels of four channels, of which the
    first pixel and the last channel are zero. `bias` is (c,).
    """
    if x.is_cuda:
        from streamproc.reid import gpu_kernels

        return gpu_kernels.stem(x, weight, bias)
    kernel = weight.unflatten(1, (_STEM_PIXELS, _PIXEL_VALUES)).permute(3, 2, 0, 1)  # (c, 4, 7, 8)
    y = functional.conv2d(x[:, :, :-1].permute(0, 3, 1, 2), kernel, bias, stride=2)
    return torch.relu(y).permute(0, 2, 3, 1).contiguous()


@torch.library.custom_op(
    "streamproc::leave",
    mutates_args=(),
    schema=(
        "(Tensor[] streams, Tensor gates, Tensor weight, Tensor bias, Tensor x, Tensor? project)"
        " -> Tensor"
    ),
)
def leave(
    streams: Sequence[torch.Tensor],
    gates: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    project: torch.Tensor | None,
) -> torch.Tensor:
    """The end of a block: gated sum of the streams, pointwise convolution, residual, ReLU.

    The streams are (b, h, w, c), the result is (b, h, w, n). `gates` are (streams, b, c) float32,
    `weight` is (c, n), `bias` (n,). `x` is the input of the block: (b, h, w, n), or (b, h, w, m)
    with a `project` (m, n) if the number of channels changes.
    """
    if x.is_cuda:
        from streamproc.reid import gpu_kernels

        return gpu_kernels.leave(streams, gates, weight, bias, x, project)
    return _left(streams, gates, weight, bias, x, project)


def _left(
    streams: Sequence[torch.Tensor],
    gates: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    project: torch.Tensor | None,
) -> torch.Tensor:
    pairs = zip(streams, gates, strict=True)
    gated = [one * gate[:, None, None, :].to(one.dtype) for one, gate in pairs]
    mixed = torch.stack(gated).sum(0) @ weight + bias
    residual = x if project is None else x @ project
    return torch.relu(mixed + residual)


# torch.compile asks these for the shapes of the results.


@light_convs.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor) -> torch.Tensor:
    return x.new_empty((len(weight), *x.shape[1:]))


@stem.register_fake
def _(x: torch.Tensor, weight: torch.Tensor, _bias: torch.Tensor) -> torch.Tensor:
    height = x.shape[1] // 2 - 3
    width = x.shape[2] // 2 - 4
    return x.new_empty((len(x), height, width, weight.shape[2]))


@leave.register_fake
def _(
    _streams: Sequence[torch.Tensor],
    _gates: torch.Tensor,
    weight: torch.Tensor,
    _bias: torch.Tensor,
    x: torch.Tensor,
    _project: torch.Tensor | None,
) -> torch.Tensor:
    return x.new_empty((*x.shape[:3], weight.shape[1]))


def _dense(light: LightConv3x3) -> torch.Tensor:
    """Return the kernel (9, c in, c out) that does both layers of a light convolution."""
    pointwise = light.conv1.weight[:, :, 0, 0]  # (out, in)
    depthwise = light.conv2.weight[:, 0]  # (out, 3, 3)
    return torch.einsum("oi,oyx->yxio", pointwise, depthwise).flatten(0, 1).detach()


def _matrix(conv: nn.Conv2d) -> torch.Tensor:
    """Return the weight (c in, c out) of a pointwise convolution."""
    return conv.weight[:, :, 0, 0].detach().T.contiguous()


def _pointwise(conv: nn.Conv2d) -> nn.Linear:
    """Return a pointwise convolution as a linear layer of the last dimension."""
    linear = nn.Linear(conv.in_channels, conv.out_channels)
    linear.weight = nn.Parameter(conv.weight[:, :, 0, 0].detach())
    linear.bias = nn.Parameter(conv.bias.detach())
    return linear


class _Block(nn.Module):
    """`osnet.OSBlock` with batch norms folded."""

    def __init__(self, block: OSBlock) -> None:
        super().__init__()
        self.enter = _pointwise(block.conv1.conv)
        streams = [[block.conv2a], [*block.conv2b], [*block.conv2c], [*block.conv2d]]
        self.steps = len(streams)
        for step in range(self.steps):  # one stream ends with each step
            layers = [stream[step] for stream in streams[step:]]
            biases = [light.conv2.bias.detach() for light in layers]
            self.register_buffer(f"weight{step}", torch.stack([_dense(light) for light in layers]))
            self.register_buffer(f"bias{step}", torch.stack(biases))
        for number, fc in enumerate((block.gate.fc1, block.gate.fc2)):
            self.register_buffer(f"gate{number}", fc.weight[:, :, 0, 0].detach())
            self.register_buffer(f"gate_bias{number}", fc.bias.detach())
        bias = block.conv3.conv.bias.detach()
        project = None
        if block.downsample is not None:
            bias = bias + block.downsample.conv.bias.detach()
            project = _matrix(block.downsample.conv)
        self.register_buffer("weight", _matrix(block.conv3.conv))
        self.register_buffer("bias", bias)
        self.register_buffer("project", project)
        self._end = leave if self.weight.shape[1] <= MOST_FUSED_CHANNELS else _left

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(b, h, w, n_in) to (b, h, w, n_out)."""
        y = torch.relu(self.enter(x))[None]  # (1, b, h, w, mid)
        ended = []
        for step in range(self.steps):
            y = light_convs(y, getattr(self, f"weight{step}"), getattr(self, f"bias{step}"))
            ended.append(y[0])
            y = y[1:]
        gates = self._gates(torch.stack([one.float().mean((1, 2)) for one in ended]))
        return self._end(ended, gates, self.weight, self.bias, x, self.project)

    def _gates(self, means: torch.Tensor) -> torch.Tensor:
        """Return the gates (streams, b, mid) for means of the same shape.

        They are so small that sums are faster than matrix products.
        """
        hidden = (means[:, :, None, :] * self.gate0.float()).sum(-1) + self.gate_bias0.float()
        hidden = torch.relu(hidden)
        gates = (hidden[:, :, None, :] * self.gate1.float()).sum(-1) + self.gate_bias1.float()
        return torch.sigmoid(gates)


class _Halve(nn.Module):
    """A stage's transition: (b, h, w, c) to (b, h / 2, w / 2, c)."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.linear = _pointwise(conv)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = torch.relu(self.linear(x))
        return functional.avg_pool2d(x.permute(0, 3, 1, 2), 2).permute(0, 2, 3, 1)


def _layers(stage: nn.Sequential) -> list[nn.Module]:
    first, second, *transition = stage
    return [_Block(first), _Block(second), *(_Halve(one[0].conv) for one in transition)]


class GpuNetwork(nn.Module):
    """Pixels (b, 256, 128, 3) uint8 to features (b, dim) float32, as the given OSNet computes them.

    Its batch norms are folded in place.
    """

    def __init__(self, network: OSNet) -> None:
        super().__init__()
        network = folded(network)
        first = network.conv1.conv
        weight = functional.pad(first.weight.detach(), (1, 0, 0, 0, 0, 1))  # (c, 4, 7, 8)
        self.register_buffer("stem_weight", weight.permute(2, 3, 1, 0).flatten(1, 2).contiguous())
        self.register_buffer("stem_bias", first.bias.detach())
        stages = (network.conv2, network.conv3, network.conv4)
        self.stages = nn.Sequential(*(layer for stage in stages for layer in _layers(stage)))
        self.last = _pointwise(network.conv5.conv)
        self.fc = network.fc[0]
        self.half().requires_grad_(requires_grad=False)
        std = torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", torch.tensor(IMAGENET_MEAN) / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(b, 256, 128, 3) uint8 to (b, dim) float32."""
        # In single precision: half precision would add its rounding to that of the pixels.
        images = pixels.float() * self.scale - self.shift
        padded = functional.pad(images.half(), (0, 1, 4, 4, 3, 3))  # (b, 262, 136, 4)
        x = stem(padded, self.stem_weight, self.stem_bias)  # (b, 128, 64, c0)
        x = functional.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1)  # (b, c0, 64, 32)
        x = x.permute(0, 2, 3, 1)  # (b, 64, 32, c0)
        x = torch.relu(self.last(self.stages(x)))  # (b, 16, 8, c3)
        return torch.relu(self.fc(x.float().mean((1, 2)).half())).float()
