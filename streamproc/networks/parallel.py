"""The threads that run networks, and a session whose batches are split among several of them.

onnxruntime treats denormal numbers as zero (five times faster on some processors) only in the
thread that makes the process's first session. A thread of the user's must not get that switch: it
would change the user's own arithmetic. So all networks of a process are made and run in
`NETWORK_THREAD`. torch's CUDA graphs, too, belong to the thread that recorded them.
"""

from __future__ import annotations

import math
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from streamproc.errors import MachineError, WeightsError
from streamproc.networks.sessions import open_optimized_session, open_session
from streamproc.networks.weights import SOURCE_SHA256_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamproc.networks.sessions import InputShape, Session
    from streamproc.networks.weights import Weights
    from streamproc.types import Float32Array, Uint8Array

    Pictures = Uint8Array | Sequence[Uint8Array]  # (n, h, w, 3), or n of (h, w, 3)
    Prepare = Callable[[Pictures, Float32Array], Float32Array]

NETWORK_THREAD = ThreadPoolExecutor(1, "network")
BACKGROUND_THREAD = ThreadPoolExecutor(1, "network background")
"""For batches that are not urgent, if the session runs them in threads of its own anyway."""


class SplitSession:
    """A network of one input on the CPU, which runs a batch in several threads.

    Each thread runs the whole network on a part of the batch. So they meet once a batch, where
    threads within the network meet at each of its layers. Only files that streamproc exported are
    split: other files may hold denormal numbers, which onnxruntime takes as zero only in its own
    threads. Those are run with onnxruntime's threads.

    Make and run it in `NETWORK_THREAD`; if it is `concurrent`, a second thread may run it as well.
    `source_sha256` is of the checkpoint that the ONNX file was exported from, or of the file itself
    if the file does not say. `output_shape` is of one picture's first output.
    """

    def __init__(
        self,
        weights: Weights,
        input_shape: InputShape,
        *,
        threads: int,
        batch_size: int,
        part_size: int,
    ) -> None:
        """Load, and run once on an empty image.

        A run of the network takes at most `part_size` pictures in each of the `threads` that share
        a batch, and at most `batch_size` if the batch is not split. Raises WeightsError for a file
        that cannot be loaded, or whose input is not `input_shape`.
        """
        self._name = weights.name
        self._input_shape = input_shape
        self._threads = threads
        self._session = open_optimized_session(weights, input_shape)
        metadata = self._session.get_modelmeta().custom_metadata_map
        self.source_sha256: str = metadata.get(SOURCE_SHA256_KEY, weights.sha256)
        self._input_name, self._fixed_batch = _check_input(self._session, weights, input_shape)
        self.concurrent = threads > 1 and SOURCE_SHA256_KEY in metadata and not self._fixed_batch
        self._workers: ThreadPoolExecutor | None = None
        self._run_size = self._fixed_batch or batch_size
        if self.concurrent:
            self._workers = ThreadPoolExecutor(threads, "network part")
            self._run_size = part_size
        elif threads > 1:
            self._session = open_session(weights, threads)
        self._memory = threading.local()  # each thread reuses its memory for input images
        self.output_shape = self._probe(weights)

    def run(self, pictures: Pictures, prepare: Prepare) -> Float32Array:
        """Return the network's first output (n, *output_shape) for n pictures.

        `prepare(part, memory)` makes the network's input: it fills the beginning of `memory`
        (m, *input_shape), m >= len(part), and returns that part of it. It is called in the thread
        that then runs the part. Raises MachineError if the network fails.
        """
        if not len(pictures):
            return np.zeros((0, *self.output_shape), np.float32)
        parts = [pictures[start:stop] for start, stop in pairwise(self._bounds(len(pictures)))]
        run_part = partial(self._run_part, prepare)
        if self._workers is None:
            return np.concatenate([run_part(part) for part in parts])
        return np.concatenate(list(self._workers.map(run_part, parts)))

    def _bounds(self, count: int) -> list[int]:
        if self._workers is None:
            return [*range(0, count, self._run_size), count]
        return part_bounds(count, self._threads, self._run_size)

    def _run_part(self, prepare: Prepare, part: Pictures) -> Float32Array:
        if not hasattr(self._memory, "images"):
            self._memory.images = np.empty((self._run_size, *self._input_shape), np.float32)
        return self._run_images(prepare(part, self._memory.images))

    def _run_images(self, images: Float32Array) -> Float32Array:
        """Run (n, *input_shape), filled up with zeros if the network takes only whole batches."""
        count = len(images)
        missing = self._fixed_batch - count
        if missing > 0:
            zeros = np.zeros((missing, *self._input_shape), np.float32)
            images = np.concatenate([images, zeros])
        try:
            output: Float32Array = self._session.run(None, {self._input_name: images})[0]
        except Exception as error:  # onnxruntime's own errors derive from it alone
            raise MachineError(
                f"the network {self._name} failed on a batch of {count}: {error}"
            ) from error
        return output[:count]

    def _probe(self, weights: Weights) -> tuple[int, ...]:
        try:
            output = self._run_images(np.zeros((1, *self._input_shape), np.float32))
        except MachineError as error:
            raise WeightsError(f"{weights.onnx_path}: cannot run ({error})") from error
        if not np.isfinite(output).all():
            raise WeightsError(f"{weights.onnx_path}: expected an output of finite numbers")
        return output.shape[1:]


def part_bounds(count: int, threads: int, part_size: int) -> list[int]:
    """Return where to cut a batch of `count`: 0, the bounds between parts, `count`.

    The parts are as equal as possible, none is above `part_size`, and each thread gets as many.
    """
    parts_a_thread = math.ceil(count / (threads * part_size))
    parts = max(1, min(count, threads * parts_a_thread))
    return [count * i // parts for i in range(parts + 1)]


def usable_cores() -> int:
    """Return how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on every system
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _check_input(session: Session, weights: Weights, input_shape: InputShape) -> tuple[str, int]:
    """Return the name of the one input, and its fixed batch size or 0 if any will do."""
    inputs = session.get_inputs()
    shape: Sequence[object] = inputs[0].shape
    fits = len(inputs) == 1 and inputs[0].type == "tensor(float)" and _fits(shape, input_shape)
    if not fits:
        expected = ", ".join(str(size) for size in input_shape)
        found = [(one.shape, one.type) for one in inputs]
        raise WeightsError(
            f"{weights.onnx_path}: expected one input [batch, {expected}] of float32, got {found}"
        )
    return inputs[0].name, shape[0] if isinstance(shape[0], int) else 0


def _fits(shape: Sequence[object], input_shape: InputShape) -> bool:
    """Whether a network with this input takes such images; a size that is no number is free."""
    if len(shape) != 1 + len(input_shape):
        return False
    pairs = zip(shape[1:], input_shape, strict=True)
    return all(not isinstance(size, int) or size == wanted for size, wanted in pairs)
