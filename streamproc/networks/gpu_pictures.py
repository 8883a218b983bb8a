"""Whole pictures on a GPU: those that wait are run together; the CPU goes on where it fails."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from streamproc.errors import MachineError, UsageError
from streamproc.files import sha256_of
from streamproc.networks.devices import Device, DeviceLostError
from streamproc.networks.parallel import NETWORK_THREAD

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import numpy.typing as npt

    from streamproc.networks.weights import Weights
    from streamproc.types import Uint8Array

    Outputs: TypeAlias = list[npt.NDArray[Any]]

log = logging.getLogger(__name__)


class PictureBackend(Protocol):
    """The detector's network on one device. Used in `NETWORK_THREAD` alone."""

    device: str
    batch_size: int
    """How many pictures it takes at once."""

    def run(self, pictures: Sequence[Uint8Array], /) -> list[Outputs]:
        """Return the network's outputs for each picture, as of a batch of one.

        The pictures (h, w, 3) are RGB and of one size. Raises DeviceLostError if the CPU should
        take over.
        """
        ...


class GpuPictures:
    """A network on a GPU, for pictures of any number of videos. Safe to use from any thread.

    Pictures of one size that wait are run together, whatever videos they are of. If the GPU is
    lost, the log says so once, and `on_cpu` is given all pictures from then on.
    """

    def __init__(
        self, backend: PictureBackend, on_cpu: Callable[[Uint8Array], Future[Outputs]]
    ) -> None:
        self._backend: PictureBackend | None = backend
        self._on_cpu = on_cpu
        self._waiting: list[tuple[Uint8Array, Future[Outputs]]] = []
        self._lock = threading.Lock()

    @property
    def device(self) -> str:
        """The device on which the network runs now."""
        backend = self._backend
        return "cpu" if backend is None else backend.device

    def submit(self, picture: Uint8Array) -> Future[Outputs]:
        """Begin to look at a picture (h, w, 3) RGB; the future gives the network's outputs."""
        if self._backend is None:
            return self._on_cpu(picture)
        outputs: Future[Outputs] = Future()
        with self._lock:
            self._waiting.append((picture, outputs))
        NETWORK_THREAD.submit(self._run_waiting)
        return outputs

    def _run_waiting(self) -> None:
        batch = self._next_batch()
        if not batch:
            return  # an earlier call ran them
        try:
            found = self._looked_at([picture for picture, _ in batch])
        except Exception as error:  # noqa: BLE001 - whoever waits for it raises it
            for _, outputs in batch:
                outputs.set_exception(error)
            return
        for (_, outputs), each in zip(batch, found, strict=True):
            outputs.set_result(each)

    def _next_batch(self) -> list[tuple[Uint8Array, Future[Outputs]]]:
        """Take the pictures that have waited longest, and others of their size."""
        most = 1 if self._backend is None else self._backend.batch_size
        with self._lock:
            shapes = [picture.shape for picture, _ in self._waiting]
            taken = [i for i, shape in enumerate(shapes) if shape == shapes[0]][:most]
            batch = [self._waiting[i] for i in taken]
            for i in reversed(taken):
                del self._waiting[i]
        return batch

    def _looked_at(self, pictures: list[Uint8Array]) -> list[Outputs]:
        if self._backend is not None:
            try:
                return self._backend.run(pictures)
            except DeviceLostError as error:
                log.warning("the detector's GPU is lost (%s): the CPU goes on", error)
                self._backend = None
        begun = [self._on_cpu(picture) for picture in pictures]
        return [outputs.result() for outputs in begun]


def open_gpu_pictures(
    weights: Weights,
    weights_sha256: str,
    on_cpu: Callable[[Uint8Array], Future[Outputs]],
    *,
    device: Device,
    no_gpu: Callable[[], str | None],
    open_backend: Callable[[Weights], PictureBackend] | None = None,
) -> GpuPictures | None:
    """Put the package's own detector on the GPU; None where the CPU is to run it.

    `weights_sha256` names the weights that the CPU runs; a GPU must run the same. With "cuda"
    raises UsageError if there is no GPU or the network is another one, MachineError if the GPU
    cannot be used.
    """
    reason = "as asked" if device == "cpu" else _reason_against(weights, weights_sha256, no_gpu)
    if device == "cuda" and reason is not None:
        raise UsageError(f"detector.device cuda: {reason}; or use cpu")
    if reason is not None:
        log.info("the detector runs on the CPU: %s", reason)
        return None
    try:
        backend = NETWORK_THREAD.submit(open_backend or _open_backend, weights).result()
    except DeviceLostError as error:
        if device == "cuda":
            raise MachineError(f"detector.device cuda: the GPU cannot be used ({error})") from error
        log.warning("the GPU cannot be used (%s): the detector runs on the CPU", error)
        return None
    return GpuPictures(backend, on_cpu)


def _reason_against(
    weights: Weights, weights_sha256: str, no_gpu: Callable[[], str | None]
) -> str | None:
    checkpoint = weights.checkpoint_path
    if checkpoint is None or sha256_of(checkpoint) != weights_sha256:
        return f"{weights.onnx_path} is ONNX: only the package's own detector runs on a GPU"
    return no_gpu()


def _open_backend(weights: Weights) -> PictureBackend:
    from streamproc.networks.torch_pictures import open_gpu

    return open_gpu(weights)
