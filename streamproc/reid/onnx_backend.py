"""OSNet's ONNX export in onnxruntime on the CPU: the backend that is always there."""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from streamproc.errors import MachineError, WeightsError
from streamproc.networks.sessions import open_kept_session, open_session
from streamproc.networks.weights import SOURCE_SHA256_KEY, Weights
from streamproc.reid.preprocessing import normalise
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.networks.sessions import Session
    from streamproc.types import Float32Array, Uint8Array

BATCH_CROPS = 16
"""Crops a run of the network:

8 to 32 are within 5 % of each other on every processor measured; fewer wait less.
"""
SPLIT_CROPS = 8
"""Crops a thread runs at once where threads share a batch: as fast as 16, in half the memory."""
MAX_THREADS = 16
"""More have nothing to do: 32 crops come at a time, and one alone is slow to compute."""

_CROP_SHAPE = (CROP_HEIGHT_PX, CROP_WIDTH_PX, 3)


class OnnxBackend:
    """One session. Made and used by `Embedder`, in the network's thread alone (see there why).

    A batch is split among threads, each of which runs the whole network: they meet once, where
    threads within the network meet at each of its 200 layers. Only files that `export` made are
    treated so: others may hold denormal numbers, which onnxruntime takes as zero in its own threads
    alone. `source_sha256` is of the checkpoint that the ONNX file was made from, of the file itself
    where it does not say.
    """

    device = "cpu"

    def __init__(self, weights: Weights, *, threads: int = 0) -> None:
        """Load.

        `threads` = 0 takes one a core. Raises WeightsError for a file that is no re-id network.
        """
        self._name = weights.name
        threads = min(threads or _cores(), MAX_THREADS)
        self._session = open_kept_session(weights)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.source_sha256: str = metadata.get(SOURCE_SHA256_KEY, weights.sha256)
        self._input, self._fixed_batch = _check_input(self._session, weights)
        self._workers: ThreadPoolExecutor | None = None
        if threads > 1 and SOURCE_SHA256_KEY in metadata and not self._fixed_batch:
            self._workers = ThreadPoolExecutor(threads, "network part")
        elif threads > 1:
            self._session = open_session(weights, threads)
        self._threads = threads
        self.concurrent = self._workers is not None
        self._memory = threading.local()  # standing memory for a thread's images
        self.dim = self._probe(weights)

    def run(self, crops: Uint8Array | Sequence[Uint8Array]) -> Float32Array:
        """Features (n, dim), not unit length, of crops (n, 256, 128, 3) or of n crops (h, w, 3) of any size."""
        if self._workers is None:
            bounds = [*range(0, len(crops), self._fixed_batch or BATCH_CROPS), len(crops)]
        else:
            bounds = part_bounds(len(crops), self._threads)
        parts = [crops[start:stop] for start, stop in pairwise(bounds)] if len(crops) else []
        features = list((self._workers.map if self._workers else map)(self._features, parts))
        return np.concatenate(features) if features else np.zeros((0, self.dim), np.float32)

    def _features(self, crops: Uint8Array | Sequence[Uint8Array]) -> Float32Array:
        if not hasattr(self._memory, "images"):
            shape = (self._fixed_batch or BATCH_CROPS, 3, CROP_HEIGHT_PX, CROP_WIDTH_PX)
            self._memory.images = np.empty(shape, np.float32)
        return self._run(normalise(_sized(crops), self._memory.images))

    def _run(self, images: Float32Array) -> Float32Array:
        count = len(images)
        if self._fixed_batch and count < self._fixed_batch:
            images = np.concatenate(
                [images, np.zeros((self._fixed_batch - count, *images.shape[1:]), np.float32)]
            )
        try:
            output: Float32Array = self._session.run(None, {self._input: images})[0]
        except RuntimeError as error:  # onnxruntime's own errors derive from it
            raise MachineError(
                f"the network {self._name} failed on a batch of {count} crops: {error}"
            ) from error
        kept: Float32Array = output[:count]
        return kept

    def _probe(self, weights: Weights) -> int:
        output = self._run(np.zeros((1, 3, CROP_HEIGHT_PX, CROP_WIDTH_PX), np.float32))
        if output.ndim != 2 or not np.isfinite(output).all():  # noqa: PLR2004 - (batch, dim)
            raise WeightsError(
                f"{weights.onnx_path}: expected an output (batch, dim) of finite numbers, got {output.shape}"
            )
        return int(output.shape[1])


def _sized(crops: Uint8Array | Sequence[Uint8Array]) -> Uint8Array:
    """Stack crops at the network's size, resized as the published preprocessing does.

    Pillow's bilinear.
    """
    if isinstance(crops, np.ndarray) and crops.shape[1:] == _CROP_SHAPE:
        return crops
    size = (CROP_WIDTH_PX, CROP_HEIGHT_PX)
    return np.stack(
        [
            np.asarray(Image.fromarray(crop).resize(size, Image.Resampling.BILINEAR))
            for crop in crops
        ]
    )


def part_bounds(count: int, threads: int) -> list[int]:
    """Where to cut a batch: parts as equal as can be, as many for each thread, none above `SPLIT_CROPS`."""
    most = threads * math.ceil(count / (threads * SPLIT_CROPS))
    parts = max(1, min(count, most))
    return [count * i // parts for i in range(parts + 1)]


def _cores() -> int:
    """The cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)  # not everywhere
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def _check_input(session: Session, weights: Weights) -> tuple[str, int]:
    inputs = session.get_inputs()
    shape: Sequence[object] = inputs[0].shape
    expected = [3, CROP_HEIGHT_PX, CROP_WIDTH_PX]
    fits = (
        len(inputs) == 1
        and len(shape) == 1 + len(expected)
        and all(
            not isinstance(got, int) or got == want
            for got, want in zip(shape[1:], expected, strict=True)
        )
    )
    if not fits or inputs[0].type != "tensor(float)":
        raise WeightsError(
            f"{weights.onnx_path}: expected one input [batch, 3, {CROP_HEIGHT_PX}, {CROP_WIDTH_PX}] of float32, "
            f"got {[(i.shape, i.type) for i in inputs]}"
        )
    return inputs[0].name, shape[0] if isinstance(shape[0], int) else 0
