"""OSNet as a GPU runs it best: the same function as `osnet.OSNet`, half precision, channels last, few and large layers.

- Batch norms are folded. A light convolution (pointwise, then depthwise 3x3, with nothing between)
  is one dense 3x3 convolution whose kernel is the product of both: up to nine times the arithmetic,
  which matrix units have to spare, for half the memory traffic, which is what bounds OSNet.
- The four streams of a block run side by side: their first layers at once, then the second layers
  of three, and so on.
- Pointwise convolutions are matrix products; all that is not in `gpu_kernels` is for
  `torch.compile` to fuse.

Off a GPU the layers of `gpu_kernels` are computed by torch's own, which is what the kernels are
tested against.
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
"""Of a block's output: the matrices of wider networks (from x0.5 on) do not fit into a multiprocessor's memory."""

_STEM_PIXELS, _PIXEL_VALUES = 8, 4


@torch.library.custom_op(
    "streamproc::light_convs",
    mutates_args=(),
    schema="(Tensor x, Tensor weight, Tensor bias) -> Tensor",
)
def light_convs(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """3x3 convolutions, bias and ReLU of S streams (S, b, h, w, c), or of one (1, b, h, w, c) that stands for all.

    `weight` (S, 9, c in, c out), `bias` (S, c).
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
    """7x7 convolution of stride 2, bias and ReLU: (b, 2h + 6, 2w + 8, 4), padded, to (b, h, w, c).

    `weight` (7, 32, c): a row's eight pixels (the first one naught) of four channels (the last one
    naught).
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
    schema="(Tensor[] streams, Tensor gates, Tensor weight, Tensor bias, Tensor x, Tensor? project) -> Tensor",
)
def leave(
    streams: Sequence[torch.Tensor],
    gates: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    x: torch.Tensor,
    project: torch.Tensor | None,
) -> torch.Tensor:
    """The end of a block: gated sum of the streams (b, h, w, c), pointwise convolution, residual, ReLU: (b, h, w, n).

    `gates` (streams, b, c) float32, `weight` (c, n), `bias` (n,), `x` what entered the block,
    `project` (m, n) for its channels where their number changes.
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
    gated = [
        one * gate[:, None, None, :].to(one.dtype) for one, gate in zip(streams, gates, strict=True)
    ]
    mixed = torch.stack(gated).sum(0) @ weight + bias
    return torch.relu(mixed + (x if project is None else x @ project))


# What shapes come out, for torch.compile.
light_convs.register_fake(lambda x, weight, _bias: x.new_empty((len(weight), *x.shape[1:])))
stem.register_fake(
    lambda x, weight, _bias: x.new_empty(
        (len(x), x.shape[1] // 2 - 3, x.shape[2] // 2 - 4, weight.shape[2])
    )
)
leave.register_fake(
    lambda _y, _gates, weight, _bias, x, _project: x.new_empty((*x.shape[:3], weight.shape[1]))
)


def _dense(light: LightConv3x3) -> torch.Tensor:
    """The kernel (9, c in, c out) of both layers of a light convolution."""
    pointwise, depthwise = (
        light.conv1.weight[:, :, 0, 0],
        light.conv2.weight[:, 0],
    )  # (out, in), (out, 3, 3)
    return torch.einsum("oi,oyx->yxio", pointwise, depthwise).flatten(0, 1).detach()


def _matrix(conv: nn.Conv2d) -> torch.Tensor:
    """A pointwise convolution's weight (c in, c out)."""
    return conv.weight[:, :, 0, 0].detach().T.contiguous()


def _pointwise(conv: nn.Conv2d) -> nn.Linear:
    """A pointwise convolution, of the last dimension."""
    linear = nn.Linear(conv.in_channels, conv.out_channels)
    linear.weight, linear.bias = (
        nn.Parameter(conv.weight[:, :, 0, 0].detach()),
        nn.Parameter(conv.bias.detach()),
    )
    return linear


class _Block(nn.Module):
    """`osnet.OSBlock`, batch norms folded."""

    def __init__(self, block: OSBlock) -> None:
        super().__init__()
        self.enter = _pointwise(block.conv1.conv)
        streams = [[block.conv2a], [*block.conv2b], [*block.conv2c], [*block.conv2d]]
        self.steps = len(streams)
        for step in range(self.steps):  # one stream ends with each
            layers = [stream[step] for stream in streams[step:]]
            self.register_buffer(f"weight{step}", torch.stack([_dense(light) for light in layers]))
            self.register_buffer(
                f"bias{step}", torch.stack([light.conv2.bias.detach() for light in layers])
            )
        for number, fc in enumerate((block.gate.fc1, block.gate.fc2)):
            self.register_buffer(f"gate{number}", fc.weight[:, :, 0, 0].detach())
            self.register_buffer(f"gate_bias{number}", fc.bias.detach())
        bias, project = block.conv3.conv.bias.detach(), None
        if block.downsample is not None:
            bias, project = (
                bias + block.downsample.conv.bias.detach(),
                _matrix(block.downsample.conv),
            )
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
        """Gates (streams, b, mid) of means of the same shape; so small that sums are better than matrix products."""
        hidden = torch.relu(
            (means[:, :, None, :] * self.gate0.float()).sum(-1) + self.gate_bias0.float()
        )
        return torch.sigmoid(
            (hidden[:, :, None, :] * self.gate1.float()).sum(-1) + self.gate_bias1.float()
        )


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
    """Pixels (b, 256, 128, 3) uint8 to features (b, dim) float32, of an OSNet, whose batch norms are folded for it."""

    def __init__(self, network: OSNet) -> None:
        super().__init__()
        network = folded(network)
        first = network.conv1.conv
        weight = functional.pad(first.weight.detach(), (1, 0, 0, 0, 0, 1))  # (c, 4, 7, 8)
        self.register_buffer("stem_weight", weight.permute(2, 3, 1, 0).flatten(1, 2).contiguous())
        self.register_buffer("stem_bias", first.bias.detach())
        stages = (network.conv2, network.conv3, network.conv4)
        self.stages = nn.Sequential(*(layer for stage in stages for layer in _layers(stage)))
        self.last, self.fc = _pointwise(network.conv5.conv), network.fc[0]
        self.half().requires_grad_(requires_grad=False)
        std = torch.tensor(IMAGENET_STD)
        self.register_buffer("scale", 1 / (255 * std))
        self.register_buffer("shift", torch.tensor(IMAGENET_MEAN) / std)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(b, 256, 128, 3) uint8 to (b, dim) float32."""
        images = (
            pixels.float() * self.scale - self.shift
        )  # not in half: its steps would be added to the pixels'
        padded = functional.pad(images.half(), (0, 1, 4, 4, 3, 3))  # (b, 262, 136, 4)
        x = stem(padded, self.stem_weight, self.stem_bias)  # (b, 128, 64, c0)
        x = functional.max_pool2d(x.permute(0, 3, 1, 2), 3, 2, 1).permute(
            0, 2, 3, 1
        )  # (b, 64, 32, c0)
        x = torch.relu(self.last(self.stages(x)))  # (b, 16, 8, c3)
        return torch.relu(self.fc(x.float().mean((1, 2)).half())).float()
