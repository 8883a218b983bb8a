"""The backend that always works: OSNet's ONNX export in onnxruntime on the CPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from streamproc.errors import WeightsError
from streamproc.networks.parallel import SplitSession, usable_cores
from streamproc.reid.preprocessing import INPUT_SHAPE, fill_input

if TYPE_CHECKING:
    from collections.abc import Sequence

    from streamproc.networks.weights import Weights
    from streamproc.types import Float32Array, Uint8Array

BATCH_CROPS = 16
"""Crops in one run of the network if a batch is not split among threads.

8 to 32 are within 5 % of each other on every processor measured; fewer wait less.
"""
SPLIT_CROPS = 8
"""Crops in one run if threads share a batch: as fast as 16, in half the memory."""
MAX_THREADS = 16
"""More would have no work: 32 crops come at a time, and running a single crop is inefficient."""


class OnnxBackend:
    """One network on the CPU. Made and used by `Embedder`, in the network's thread.

    `source_sha256` is of the checkpoint that the ONNX file was exported from, or of the file itself
    if the file does not say. If it is `concurrent`, a second thread may `run` it at the same time.
    """

    device = "cpu"

    def __init__(self, weights: Weights, *, threads: int = 0) -> None:
        """Load with so many threads; 0 takes one for each core.

        Raises WeightsError for a file that is not a re-identification network.
        """
        self._session = SplitSession(
            weights,
            INPUT_SHAPE,
            threads=min(threads or usable_cores(), MAX_THREADS),
            batch_size=BATCH_CROPS,
            part_size=SPLIT_CROPS,
        )
        output_shape = self._session.output_shape
        if len(output_shape) != 1:
            raise WeightsError(
                f"{weights.onnx_path}: expected an output (batch, dim), "
                f"got {('batch', *output_shape)}"
            )
        self.dim = output_shape[0]
        self.source_sha256 = self._session.source_sha256
        self.concurrent = self._session.concurrent

    def run(self, crops: Uint8Array | Sequence[Uint8Array]) -> Float32Array:
        """Return features (n, dim), not of unit length, of n crops.

        The crops are (n, 256, 128, 3), or n of (h, w, 3). Raises MachineError.
        """
        return self._session.run(crops, fill_input)
