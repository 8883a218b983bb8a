"""The person detector in torch on a GPU: half precision, channels last, one batch size.

The same code runs on torch's CPU device, where the tests compare it with onnxruntime. Half
precision is fp16, as for OSNet; boxes are made of the network's last maps in 32 bits.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from streamproc.errors import WeightsError
from streamproc.networks.devices import DeviceLostError
from streamproc.networks.person_network import PersonDetector
from streamproc.networks.weights import read_checkpoint

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    import numpy.typing as npt

    from streamproc.networks.weights import Weights
    from streamproc.types import Uint8Array

    Forward = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]

log = logging.getLogger(__name__)

BATCH_SIZE = 8
"""Every batch is filled up to it: libraries choose their way to compute by the batch's size, and
what is found in a picture must not depend on how many others wait."""
_PROBE_SHAPE = (96, 160, 3)


def open_gpu(weights: Weights) -> TorchPictures:
    """Load the checkpoint onto the GPU.

    Raises WeightsError for bad weights, DeviceLostError if the GPU cannot be used.
    """
    assert weights.checkpoint_path is not None
    network = load_network(weights.checkpoint_path)
    try:
        network = network.to("cuda", torch.float16, memory_format=torch.channels_last)
    except RuntimeError as error:
        raise DeviceLostError(_first_line(error)) from error
    return TorchPictures(network, device="cuda", dtype=torch.float16)


def load_network(checkpoint: Path) -> PersonDetector:
    """Read the network of the package's weights, in 32 bits. Raises WeightsError."""
    network = PersonDetector(norm=False)
    network.eval()
    state = read_checkpoint(checkpoint)
    try:
        network.load_state_dict({name: value.float() for name, value in state.items()})
    except RuntimeError as error:
        raise WeightsError(f"{checkpoint}: no weights of the detector ({error})") from error
    return network


class TorchPictures:
    """One network on one device. Made and used in the network's thread alone.

    If there is no memory for a batch, half of it is run, from then on. If there is none for one
    picture, or the device fails in any other way, `run` raises DeviceLostError, and the backend
    must not be used any more.
    """

    def __init__(
        self,
        network: Forward,
        *,
        device: str,
        dtype: torch.dtype,
        batch_size: int = BATCH_SIZE,
    ) -> None:
        """Take a `network` that is on `device` in `dtype`, and run it once.

        Raises DeviceLostError.
        """
        self.device = device
        self.batch_size = batch_size
        self._network = network
        self._dtype = dtype
        self.run([np.zeros(_PROBE_SHAPE, np.uint8)])

    def run(self, pictures: Sequence[Uint8Array], /) -> list[list[npt.NDArray[Any]]]:
        """Return scores (1, a) and boxes (1, a, 4) float32 for each picture (h, w, 3) RGB.

        The pictures are of one size. Raises DeviceLostError.
        """
        found: list[list[npt.NDArray[Any]]] = []
        while len(found) < len(pictures):
            batch = pictures[len(found) : len(found) + self.batch_size]
            try:
                found += self._run_batch(batch)
            except RuntimeError as error:  # torch's own errors derive from it
                self._shrink_or_fail(error)
        return found

    def _run_batch(self, pictures: Sequence[Uint8Array]) -> list[list[npt.NDArray[Any]]]:
        filled = np.zeros((self.batch_size, *pictures[0].shape), np.uint8)
        for row, picture in enumerate(pictures):
            filled[row] = picture
        with torch.inference_mode():
            pixels = torch.from_numpy(filled).to(self.device)
            # The memory of (b, h, w, 3) is that of (b, 3, h, w) with channels last.
            images = pixels.flip(3).permute(0, 3, 1, 2).to(self._dtype)
            scores, boxes = (output.cpu().numpy() for output in self._network(images))
        count = len(pictures)
        if not np.isfinite(scores[:count]).all() or not np.isfinite(boxes[:count]).all():
            raise DeviceLostError(f"half precision overflows with these weights on {self.device}")
        return [[scores[row : row + 1], boxes[row : row + 1]] for row in range(count)]

    def _shrink_or_fail(self, error: RuntimeError) -> None:
        out_of_memory = (
            isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()
        )
        if not out_of_memory or self.batch_size == 1:
            raise DeviceLostError(_first_line(error)) from error
        log.warning(
            "%s has no memory for %d pictures at once; from now %d",
            self.device,
            self.batch_size,
            self.batch_size // 2,
        )
        self.batch_size //= 2
        if self.device == "cuda":
            torch.cuda.empty_cache()


def _first_line(error: BaseException) -> str:
    first_line = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {first_line}"
