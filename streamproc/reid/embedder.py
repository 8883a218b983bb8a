"""Crops in, unit vectors out: one network, on a GPU where there is one, else on the CPU.

All networks of a process are made and run in one thread of their own; a second one hands in batches
aside, where the backend splits a batch among threads anyway. onnxruntime treats denormal numbers as
zero (five times faster on some processors) in the thread that makes the process's first session,
and there alone; and that switch must not leak into a thread of the user's, whose arithmetic it
would change. torch's CUDA graphs, too, belong to the thread that recorded them.
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Protocol

import numpy as np

from streamproc.errors import MachineError, UsageError
from streamproc.files import sha256_of
from streamproc.networks.devices import Device, DeviceLostError, why_no_gpu
from streamproc.reid.onnx_backend import OnnxBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from streamproc.networks.weights import Weights
    from streamproc.types import Float32Array, Uint8Array

    Crops = Uint8Array | Sequence[Uint8Array]  # (n, 256, 128, 3), or n of (h, w, 3)

log = logging.getLogger(__name__)

_thread = ThreadPoolExecutor(1, "network")
_aside_thread = ThreadPoolExecutor(1, "network aside")


class Backend(Protocol):
    """One network on one device; all of them give the same vectors, within the tolerance that the tests ask for."""

    device: str
    dim: int
    concurrent: bool
    """Whether two threads may `run` it at once."""

    def run(self, crops: Crops, /) -> Float32Array:
        """Features (n, dim), not unit length.

        Raises DeviceLostError where another backend should go on.
        """
        ...


class Embedder:
    """One network in memory.

    Made by the pipeline's owner, used from any thread: the work is done in its own.

    `name`, `weights_sha256`, `dim` say what made a vector; vectors of different weights are never
    compared. A GPU that fails while it works is replaced by the CPU: said once in the log, and the
    crops at hand are embedded there.
    """

    def __init__(
        self,
        weights: Weights,
        *,
        threads: int = 0,
        device: Device = "auto",
        no_gpu: Callable[[], str | None] = why_no_gpu,
        open_gpu: Callable[[Weights], Backend] | None = None,
    ) -> None:
        """Load; `threads` = 0 takes one a core, `device` = "auto" a GPU where torch can use one.

        Raises WeightsError for a file that is no re-id network, UsageError where `device` = "cuda"
        cannot be had. `no_gpu` and `open_gpu` look for and open the GPU; tests pass their own.
        """
        self._weights, self._threads = weights, threads
        self._open_gpu = open_gpu or _open_gpu
        self.name = weights.name
        self.weights_sha256 = weights.sha256
        self._backend: Backend = _thread.submit(lambda: self._open(device, no_gpu)).result()
        self.dim = self._backend.dim

    def __repr__(self) -> str:
        return f"Embedder({self.name}, dim {self.dim}, {self.device}, sha256 {self.weights_sha256[:8]})"

    @property
    def device(self) -> str:
        """Where the network runs now."""
        return self._backend.device

    def embed(self, crops: Crops) -> Float32Array:
        """Embed RGB crops, (n, 256, 128, 3) uint8 or n of any size: unit vectors (n, dim) float32, one a crop."""
        return self.submit(lambda: crops).result()

    def submit(
        self, make_crops: Callable[[], Crops], *, aside: bool = False
    ) -> Future[Float32Array]:
        """Do the same without waiting, and make the crops in the network's thread as well.

        `aside`: where the backend can, the next ones submitted need not wait until these are done.
        """
        thread = _aside_thread if aside and self._backend.concurrent else _thread
        return thread.submit(lambda: self._embed(make_crops()))

    def _embed(self, crops: Crops) -> Float32Array:
        try:
            features = self._backend.run(crops)
        except DeviceLostError as error:
            log.warning("the GPU is lost (%s): the CPU goes on", error)
            self._backend = self._open_cpu(must_be=self.weights_sha256)
            features = self._backend.run(crops)
        return unit(features)

    def _open(self, device: Device, no_gpu: Callable[[], str | None]) -> Backend:
        reason = None if device == "cpu" else self._reason_against_gpu(no_gpu)
        if device == "cuda" and reason is not None:
            raise UsageError(f"--device cuda: {reason}; or use --device cpu")
        if device == "cpu" or reason is not None:
            log.info("the network runs on the CPU: %s", reason or "as asked")
            return self._open_cpu()
        try:
            backend = self._open_gpu(self._weights)
        except DeviceLostError as error:
            if device == "cuda":
                raise MachineError(f"--device cuda: the GPU cannot be used ({error})") from error
            log.warning("the GPU cannot be used (%s): the network runs on the CPU", error)
            return self._open_cpu()
        assert self._weights.checkpoint_path is not None
        self.weights_sha256 = sha256_of(self._weights.checkpoint_path)
        return backend

    def _reason_against_gpu(self, no_gpu: Callable[[], str | None]) -> str | None:
        if self._weights.checkpoint_path is None:
            return f"{self._weights.onnx_path} is ONNX: a GPU needs the weights as .pth, .pt or .safetensors"
        return no_gpu()

    def _open_cpu(self, *, must_be: str | None = None) -> OnnxBackend:
        backend = OnnxBackend(self._weights, threads=self._threads)
        if must_be not in {
            None,
            backend.source_sha256,
        }:  # else one video's vectors would be of two networks
            raise MachineError(
                f"{self._weights.onnx_path} is of other weights than the GPU ran: start again"
            )
        self.weights_sha256 = backend.source_sha256
        return backend


def _open_gpu(weights: Weights) -> Backend:
    from streamproc.reid.torch_backend import open_gpu

    return open_gpu(weights)


def person_vector(vectors: Float32Array) -> Float32Array:
    """Unit mean (dim,) of one person's unit crop vectors (k, dim)."""
    mean: Float32Array = vectors.mean(axis=0, dtype=np.float32, keepdims=True)
    return unit(mean).ravel()


def unit(vectors: Float32Array) -> Float32Array:
    """Scale rows to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Float32Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled
