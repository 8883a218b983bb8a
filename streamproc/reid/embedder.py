"""Crops in, unit vectors out: OSNet's ONNX export in onnxruntime on the CPU.

All networks of a process are made and run in one thread of their own. onnxruntime treats denormal numbers as zero (five
times faster on some processors) in the thread that makes the process's first session, and there alone; and that switch
must not leak into a thread of the user's, whose arithmetic it would change.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import MachineError, WeightsError
from streamproc.reid.weights import SOURCE_SHA256_KEY, Weights
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from concurrent.futures import Future

    import onnxruntime

    from streamproc.types import Float32Array, Uint8Array

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
BATCH_CROPS = 16
"""Crops a run of the network: 8 to 32 are within 5 % of each other on every processor measured; fewer wait less."""

_thread = ThreadPoolExecutor(1, "network")


class Embedder:
    """One network in memory. Made by the pipeline's owner, used from any thread: the work is done in its own.

    `name`, `weights_sha256`, `dim` say what made a vector; vectors of different weights are never compared.
    """

    def __init__(self, weights: Weights, *, threads: int = 0) -> None:
        """Load; `threads` = 0 takes one a core. Raises WeightsError for a file that is no re-id network."""
        self._session = _thread.submit(_open_session, weights, threads).result()
        self.name = weights.name
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.weights_sha256: str = metadata.get(SOURCE_SHA256_KEY, weights.sha256)
        self._input, self._fixed_batch = _check_input(self._session, weights)
        batch = self._fixed_batch or BATCH_CROPS
        self._images = np.empty((batch, 3, CROP_HEIGHT_PX, CROP_WIDTH_PX), np.float32)  # used in the network's thread
        self.dim = _thread.submit(self._probe, weights).result()

    def __repr__(self) -> str:
        return f"Embedder({self.name}, dim {self.dim}, sha256 {self.weights_sha256[:8]})"

    def embed(self, pixels: Uint8Array) -> Float32Array:
        """Embed crops (n, 256, 128, 3) uint8 RGB: unit vectors (n, dim) float32, one a crop."""
        return self.submit(lambda: pixels).result()

    def submit(self, make_pixels: Callable[[], Uint8Array]) -> Future[Float32Array]:
        """Do the same without waiting, and make the crops in the network's thread as well."""
        return _thread.submit(lambda: self._embed(make_pixels()))

    def _embed(self, pixels: Uint8Array) -> Float32Array:
        size = self._fixed_batch or BATCH_CROPS
        features = [self._run(normalise(pixels[i : i + size], self._images)) for i in range(0, len(pixels), size)]
        return unit(np.concatenate(features) if features else np.zeros((0, self.dim), np.float32))

    def _run(self, images: Float32Array) -> Float32Array:
        count = len(images)
        if self._fixed_batch and count < self._fixed_batch:
            images = np.concatenate([images, np.zeros((self._fixed_batch - count, *images.shape[1:]), np.float32)])
        try:
            output: Float32Array = self._session.run(None, {self._input: images})[0]
        except RuntimeError as error:  # onnxruntime's own errors derive from it
            raise MachineError(f"the network {self.name} failed on a batch of {count} crops: {error}") from error
        kept: Float32Array = output[:count]
        return kept

    def _probe(self, weights: Weights) -> int:
        output = self._run(np.zeros((1, 3, CROP_HEIGHT_PX, CROP_WIDTH_PX), np.float32))
        if output.ndim != 2 or not np.isfinite(output).all():  # noqa: PLR2004 - (batch, dim)
            raise WeightsError(
                f"{weights.onnx_path}: expected an output (batch, dim) of finite numbers, got {output.shape}"
            )
        return int(output.shape[1])


def person_vector(vectors: Float32Array) -> Float32Array:
    """Unit mean (dim,) of one person's unit crop vectors (k, dim)."""
    mean: Float32Array = vectors.mean(axis=0, dtype=np.float32, keepdims=True)
    return unit(mean).ravel()


def unit(vectors: Float32Array) -> Float32Array:
    """Scale rows to length 1; a row of zeros stays."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    scaled: Float32Array = (vectors / np.maximum(lengths, 1e-12)).astype(np.float32)
    return scaled


_SCALE = np.array([1 / (255 * std) for std in IMAGENET_STD], np.float32)[:, None, None]
_SHIFT = np.array([mean / std for mean, std in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], np.float32)[
    :, None, None
]


def normalise(pixels: Uint8Array, out: Float32Array | None = None) -> Float32Array:
    """Turn (n, h, w, 3) uint8 RGB into (n, 3, h, w) float32 by ImageNet's mean and std, into `out` where given.

    Memory that is there already makes it five times faster than memory that must be mapped first.
    """
    images = np.empty((len(pixels), 3, *pixels.shape[1:3]), np.float32) if out is None else out[: len(pixels)]
    np.multiply(pixels.transpose(0, 3, 1, 2), _SCALE, out=images)
    np.subtract(images, _SHIFT, out=images)
    return images


def _open_session(weights: Weights, threads: int) -> onnxruntime.InferenceSession:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4  # its lines are for its developers; what fails raises
    options.add_session_config_entry("session.set_denormal_as_zero", "1")
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # the cores also decode and write WebP
    try:
        return onnxruntime.InferenceSession(str(weights.onnx_path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises many kinds for a bad file
        first_line = str(error).strip().split("\n", 1)[0]
        raise WeightsError(f"{weights.onnx_path}: onnxruntime cannot load it ({first_line})") from error


def _check_input(session: onnxruntime.InferenceSession, weights: Weights) -> tuple[str, int]:
    inputs = session.get_inputs()
    shape: Sequence[object] = inputs[0].shape
    expected = [3, CROP_HEIGHT_PX, CROP_WIDTH_PX]
    fits = (
        len(inputs) == 1
        and len(shape) == 1 + len(expected)
        and all(not isinstance(got, int) or got == want for got, want in zip(shape[1:], expected, strict=True))
    )
    if not fits or inputs[0].type != "tensor(float)":
        raise WeightsError(
            f"{weights.onnx_path}: expected one input [batch, 3, {CROP_HEIGHT_PX}, {CROP_WIDTH_PX}] of float32, "
            f"got {[(i.shape, i.type) for i in inputs]}"
        )
    return inputs[0].name, shape[0] if isinstance(shape[0], int) else 0
