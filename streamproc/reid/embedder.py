"""Turns crops into unit vectors by one network, on a GPU if there is one, else on the CPU."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol

import numpy as np

from streamproc.errors import MachineError, UsageError
from streamproc.files import sha256_of
from streamproc.networks.devices import Device, DeviceLostError, why_no_gpu
from streamproc.networks.parallel import BACKGROUND_THREAD, NETWORK_THREAD
from streamproc.reid.onnx_backend import OnnxBackend

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    from streamproc.networks.weights import Weights
    from streamproc.types import Float32Array, Uint8Array

    Crops = Uint8Array | Sequence[Uint8Array]  # (n, 256, 128, 3), or n of (h, w, 3)

log = logging.getLogger(__name__)


class Backend(Protocol):
    """One network on one device. All backends give the same vectors within a small tolerance."""

    device: str
    dim: int
    concurrent: bool
    """Whether two threads may `run` it at once."""

    def run(self, crops: Crops, /) -> Float32Array:
        """Return features (n, dim), not of unit length.

        Raises DeviceLostError if another backend should take over.
        """
        ...


class Embedder:
    """One network in memory. Made by the owner of the pipeline.

    Safe to use from any thread: the work is done in the threads of `networks.parallel`.

    `name`, `weights_sha256` and `dim` say what made a vector; vectors of different weights are
    never compared. If a GPU fails while it works, the CPU takes over: the log says so once, and the
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
        """Load the network.

        `threads` = 0 takes one for each core, `device` = "auto" a GPU if torch can use one.
        `no_gpu` and `open_gpu` look for the GPU and open it; tests pass their own.

        Raises WeightsError for a file that is not a re-identification network, UsageError if
        `device` is "cuda" and there is no GPU, MachineError if that GPU cannot be used.
        """
        self._weights = weights
        self._threads = threads
        self._open_gpu = open_gpu or _open_gpu
        self.name = weights.name
        self.weights_sha256 = weights.sha256
        self._backend: Backend = NETWORK_THREAD.submit(lambda: self._open(device, no_gpu)).result()
        self.dim = self._backend.dim

    def __repr__(self) -> str:
        sha256 = self.weights_sha256[:8]
        return f"Embedder({self.name}, dim {self.dim}, {self.device}, sha256 {sha256})"

    @property
    def device(self) -> str:
        """The device on which the network runs now."""
        return self._backend.device

    def embed(self, crops: Crops) -> Float32Array:
        """Return a unit vector for each RGB crop: (n, dim) float32.

        The crops are (n, 256, 128, 3) uint8, or n of any size (h, w, 3).
        """
        return self.submit(lambda: crops).result()

    def submit(
        self, make_crops: Callable[[], Crops], *, background: bool = False
    ) -> Future[Float32Array]:
        """Do the same without waiting, and make the crops in the network's thread as well.

        Crops submitted later need not wait until a `background` batch is done, if the backend runs
        two at once.
        """
        use_background = background and self._backend.concurrent
        thread = BACKGROUND_THREAD if use_background else NETWORK_THREAD
        return thread.submit(lambda: self._embed(make_crops()))

    def _embed(self, crops: Crops) -> Float32Array:
        try:
            features = self._backend.run(crops)
        except DeviceLostError as error:
            log.warning("the GPU is lost (%s): the CPU goes on", error)
            self._backend = self._open_cpu(expected_sha256=self.weights_sha256)
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
            return (
                f"{self._weights.onnx_path} is ONNX: a GPU needs the weights "
                "as .pth, .pt or .safetensors"
            )
        return no_gpu()

    def _open_cpu(self, *, expected_sha256: str | None = None) -> OnnxBackend:
        backend = OnnxBackend(self._weights, threads=self._threads)
        if expected_sha256 not in {None, backend.source_sha256}:
            # Otherwise the vectors of one video would be of two networks.
            raise MachineError(
                f"{self._weights.onnx_path} is of other weights than the GPU ran: start again"
            )
        self.weights_sha256 = backend.source_sha256
        return backend


def _open_gpu(weights: Weights) -> Backend:
    from streamproc.reid.torch_backend import open_gpu

    return open_gpu(weights)


def person_vector(vectors: Float32Array) -> Float32Array:
    """Return the unit mean (dim,) of one person's unit crop vectors (k, dim)."""
    mean: Float32Array = vectors.mean(axis=0, dtype=np.float32, keepdims=True)
    return unit(mean).ravel()


def unit(vectors: Float32Array) -> Float32Array:
    """Scale the rows of (n, dim) to length 1; a row of zeros stays as it is."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Float32Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled
