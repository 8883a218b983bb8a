"""Teacher and student cut into parts, how a part's map is compared, and the optimiser."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from streamproc.files import sha256_of
from streamproc.networks.weights import read_checkpoint
from streamproc.reid.osnet import OSNet, from_state
from streamproc.reid.preprocessing import IMAGENET_MEAN, IMAGENET_STD

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    Network = Callable[[torch.Tensor], torch.Tensor]
    Teacher = Callable[[torch.Tensor], list[torch.Tensor]]

SIZE = (256, 128)
"""Height and width in use."""
MOMENTUM = 0.95
"""How much a step keeps of the mean gradient."""
SQUARES = 0.98
"""How much a step keeps of the mean squared gradient."""
MATRIX_DIMENSIONS = 2
MATRIX_RATE = 7.0
"""Learning rate of a matrix relative to that of a vector."""


def parts(model: OSNet) -> nn.ModuleList:
    """Cut the network after each OSNet block, where maps are compared, and after the feature."""
    block1, block2, halve2 = model.conv2
    block3, block4, halve4 = model.conv3
    block5, block6 = model.conv4
    return nn.ModuleList(
        [
            nn.Sequential(model.conv1, model.maxpool, block1),
            block2,
            nn.Sequential(halve2, block3),
            block4,
            nn.Sequential(halve4, block5),
            block6,
            nn.Sequential(model.conv5, nn.AdaptiveAvgPool2d(1), nn.Flatten(), model.fc),
        ]
    )


class _Maps(nn.Module):
    def __init__(self, model: OSNet) -> None:
        super().__init__()
        self.parts = parts(model)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        maps = []
        for part in self.parts:
            x = part(x)
            maps.append(x)
        return tuple(maps)


def load_teacher(path: Path, device: torch.device, folder: Path, size: tuple[int, int]) -> Teacher:
    """Return a function from network input (b, 3, *size) to the maps of all parts.

    On the CPU onnxruntime runs it, which is 4 times faster; its file is cached in `folder`.
    """
    model = _Maps(from_state(read_checkpoint(path))).eval().to(device)
    if device.type == "cpu":
        return _onnx_teacher(model, folder / f"{sha256_of(path)}.{size[0]}.onnx", size)

    @torch.no_grad()
    def run(x: torch.Tensor) -> list[torch.Tensor]:
        return [one.float() for one in model(x)]

    return run


def _onnx_teacher(model: nn.Module, path: Path, size: tuple[int, int]) -> Teacher:
    import onnxruntime

    if not path.is_file():  # it is there when a training is resumed
        part = path.with_suffix(".part")
        torch.onnx.export(
            model,
            (torch.zeros(2, 3, *size),),
            part,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            dynamo=True,
            verbose=False,
            external_data=False,
        )
        part.replace(path)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(x: torch.Tensor) -> list[torch.Tensor]:
        found = [session.run(None, {name: part.numpy()}) for part in x.split(16)]
        return [torch.from_numpy(np.concatenate(maps)) for maps in zip(*found, strict=True)]

    return run


@torch.no_grad()
def embed(network: Network, images: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return the unit features (n, dim) of crops (n, 3, h, w) uint8, without augmentation."""
    mean = torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(1, 3, 1, 1)
    found = []
    for part in images.split(64):
        x = part.float() / 255
        x = functional.interpolate(x, size=SIZE, mode="bilinear", align_corners=False)
        features = network(((x - mean) / std).to(device)).float()
        found.append(functional.normalize(features).cpu())
    return torch.cat(found)


class Hint(torch.autograd.Function):
    """Mean over channels of `weight` times the mean squared error of a map.

    A function of its own because it passes over the large maps only a few times.
    """

    @staticmethod
    def forward(
        ctx: Any, own: torch.Tensor, target: torch.Tensor, weight: torch.Tensor
    ) -> torch.Tensor:
        """Take maps (b, c, h, w) or features (b, c), and weights (c,)."""
        error = own - target.to(own.dtype)
        ctx.save_for_backward(error, weight)
        rows = error
        if error.ndim > MATRIX_DIMENSIONS:
            rows = error.permute(0, 2, 3, 1).reshape(-1, len(weight))
        return ((rows * rows).mean(0, dtype=torch.float32) * weight).mean()

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """Return the gradient of the student's own map; the others have none."""
        error, weight = ctx.saved_tensors
        scale = (2 * gradient / error.numel() * weight).to(error.dtype)
        if error.ndim > MATRIX_DIMENSIONS:
            scale = scale.view(1, -1, 1, 1)
        return error * scale, None, None


class Muon(torch.optim.Optimizer):
    """Orthogonalised momentum for matrices of weights, Adam for all other parameters.

    The others are biases, batch norm and depthwise kernels. Jordan et al., "Muon: an optimizer for
    hidden layers in neural networks", 2024. torch's own takes only parameters of two dimensions,
    and convolutions have four. In a forced phase the error of the first part was .57 after 250
    steps of 64 crops, with Adam .77 after 300.
    """

    def __init__(self, parameters: list[dict[str, object]], rate: float) -> None:
        super().__init__(parameters, {"lr": rate})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override] # no closure
        """Move all parameters by their gradients."""
        for group in self.param_groups:
            for parameter in group["params"]:
                self._move(parameter, group["lr"])

    def _move(self, parameter: nn.Parameter, rate: float) -> None:
        state = self.state[parameter]
        if not state:
            state["m"] = torch.zeros_like(parameter)
            state["v"] = torch.zeros_like(parameter)
            state["t"] = 0
        state["t"] += 1
        gradient = parameter.grad
        state["m"].lerp_(gradient, 1 - MOMENTUM)
        if parameter.ndim > 1 and parameter.shape[1] > 1:
            direction = orthogonalised(gradient.lerp(state["m"], MOMENTUM).flatten(1))
            rows, columns = direction.shape
            scale = MATRIX_RATE * max(1, rows / columns) ** 0.5
            parameter.add_(direction.view_as(parameter), alpha=-rate * scale)
        else:
            state["v"].mul_(SQUARES).addcmul_(gradient, gradient, value=1 - SQUARES)
            mean = state["m"] / (1 - MOMENTUM ** state["t"])
            root = (state["v"] / (1 - SQUARES ** state["t"])).sqrt() + 1e-8
            parameter.add_(mean / root, alpha=-rate)


def orthogonalised(matrix: torch.Tensor) -> torch.Tensor:
    """Return (m, n) with all singular values near 1.

    It takes five Newton-Schulz steps with Jordan's coefficients.
    """
    wide = matrix.shape[0] <= matrix.shape[1]
    x = matrix if wide else matrix.T
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        a = x @ x.T
        x = 3.4445 * x + (-4.775 * a + 2.0315 * a @ a) @ x
    return x if wide else x.T
