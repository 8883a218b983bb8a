"""A network that looks at one whole picture a run, several pictures at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import MachineError, WeightsError
from streamproc.networks.onnx_file import check_self_contained
from streamproc.networks.parallel import NETWORK_THREAD, usable_cores
from streamproc.networks.sessions import open_optimized_session, open_session
from streamproc.networks.weights import SOURCE_SHA256_KEY

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from concurrent.futures import Future

    import numpy.typing as npt

    from streamproc.networks.sessions import InputShape
    from streamproc.networks.weights import Weights

    Array = npt.NDArray[Any]

MAX_THREADS = 16


@dataclass(frozen=True, slots=True)
class Port:
    """An input or output of a network. A size that may be any is None."""

    name: str
    shape: tuple[int | None, ...]
    type: str

    def __str__(self) -> str:
        sizes = ", ".join("any" if size is None else str(size) for size in self.shape)
        return f"{self.name} [{sizes}] {self.type.removeprefix('tensor(').removesuffix(')')}"


class PictureSession:
    """A network on the CPU that takes one picture a run. Safe to use from any thread.

    What it says of a picture cannot depend on other pictures, as it sees one at a time. Files that
    streamproc exported run in several threads at once, one picture in each; those of others run in
    the network's thread with onnxruntime's threads (see `parallel.SplitSession`, also for why).
    `source_sha256` is of the checkpoint that the file was exported from, or of the file itself.
    """

    def __init__(self, weights: Weights, example_shape: InputShape, *, threads: int = 0) -> None:
        """Load; `threads` = 0 takes one for each core.

        `example_shape` (channels, height, width) is of the picture by which an optimized form of
        streamproc's own network is checked. Raises WeightsError.
        """
        self.name = weights.name
        self._threads = min(threads or usable_cores(), MAX_THREADS)
        check_self_contained(weights.onnx_path)
        opening = NETWORK_THREAD.submit(self._open, weights, example_shape)
        self._session, self.metadata = opening.result()
        self.source_sha256: str = self.metadata.get(SOURCE_SHA256_KEY, weights.sha256)
        self.inputs = tuple(_port(one) for one in self._session.get_inputs())
        self.outputs = tuple(_port(one) for one in self._session.get_outputs())
        is_ours = SOURCE_SHA256_KEY in self.metadata
        self._pool = ThreadPoolExecutor(self._threads, "detector") if is_ours else NETWORK_THREAD

    def _open(self, weights: Weights, example_shape: InputShape) -> tuple[Any, dict[str, str]]:
        session: Any
        if weights.optimized_folder is None:
            session = open_session(weights, 1)
        else:
            session = open_optimized_session(weights, example_shape)
        metadata: dict[str, str] = session.get_modelmeta().custom_metadata_map
        if SOURCE_SHA256_KEY not in metadata and self._threads > 1:
            session = open_session(weights, self._threads)
        return session, metadata

    def submit(self, make_inputs: Callable[[], Mapping[str, Array]]) -> Future[list[Array]]:
        """Run on the inputs that `make_inputs` gives, by name; it is called in the same thread.

        The future gives all outputs, in the network's order, or raises MachineError.
        """
        return self._pool.submit(lambda: self._run(make_inputs()))

    def _run(self, inputs: Mapping[str, Array]) -> list[Array]:
        try:
            outputs: list[Array] = self._session.run(None, dict(inputs))
        except Exception as error:  # onnxruntime's own errors derive from it alone
            raise MachineError(f"the network {self.name} failed on a picture: {error}") from error
        return outputs

    def probe(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Run once on an example; raises WeightsError if that fails or gives no finite numbers."""
        try:
            outputs = self.submit(lambda: inputs).result()
        except MachineError as error:
            raise WeightsError(f"{self.name}: cannot run ({error})") from error
        if not all(np.isfinite(output).all() for output in outputs):
            raise WeightsError(f"{self.name}: expected outputs of finite numbers")
        return outputs


def _port(value: Any) -> Port:
    shape = tuple(size if isinstance(size, int) else None for size in value.shape)
    return Port(value.name, shape, value.type)
