"""OSNet in torch on a GPU: batch norms folded, channels last, half precision, fixed batch sizes.

The same code runs on torch's CPU device, where the tests compare it with eager torch. Half
precision is fp16: the cosine of its vectors to those of float32 is above .9999, while bfloat16's is
as low as .997 with the published weights B. Crops come from the host in batches of at most 128, so
that the next batch is copied while the GPU works on one.
"""

from __future__ import annotations

import importlib.util
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from streamproc.networks.devices import DeviceLostError
from streamproc.networks.weights import Weights, read_checkpoint
from streamproc.reid.gpu_network import LEAST_CAPABILITY, GpuNetwork
from streamproc.reid.osnet import PixelNetwork, folded, from_state
from streamproc.reid.preprocessing import CROP_SHAPE, are_sized
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamproc.reid.osnet import OSNet
    from streamproc.types import Float32Array, Uint8Array

    Forward = Callable[[torch.Tensor], torch.Tensor]  # (b, 256, 128, 3) uint8 to (b, dim) float32

log = logging.getLogger(__name__)

BATCH_SIZES = (8, 32, 128)
HOST_CROPS = 128
"""Crops copied from the host at once. The GPU would wait for larger batches.

On an H200, 512 at once were a third slower.
"""
COPIED_BY_TWO = 96
"""From so many crops on, a second thread copies half of them.

On an H200 this makes 512 crops 1.5 times as fast, and gains nothing for 64.
"""
COMPILE_AFTER_CROPS = 20_000
"""Compiling takes half a minute or more: too long for a short video, but it pays for a worker."""
LEAST_COSINE = 0.999
"""Between a compiled network's vectors and the uncompiled one's."""


def open_gpu(weights: Weights) -> TorchBackend:
    """Load the checkpoint onto the GPU.

    Raises WeightsError for bad weights, DeviceLostError if the GPU cannot be used.
    """
    assert weights.checkpoint_path is not None
    state = read_checkpoint(weights.checkpoint_path)
    return backend_on("cuda", lambda: from_state(state), no_kernels=why_no_kernels())


def why_no_kernels() -> str | None:
    """Return why the kernels of `gpu_kernels` cannot run here, None if they can."""
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton"
    capability = torch.cuda.get_device_capability()
    if capability < LEAST_CAPABILITY:
        return f"its capability is {capability}, Triton asks {LEAST_CAPABILITY}"
    return None


def backend_on(device: str, load: Callable[[], OSNet], *, no_kernels: str | None) -> TorchBackend:
    """Make the backend with the form of the network that a GPU runs fastest, if that works.

    `no_kernels` is a reason not to try it. Otherwise, and if it fails, the backend runs the plain
    network. `load` is called for each attempt, since making a form changes the network.
    """
    if no_kernels is None:
        try:
            return _backend(GpuNetwork(load()), device)
        # Triton's errors are of no common kind, and it may lack a C compiler or the right to run.
        except Exception as error:  # noqa: BLE001 - the plain network runs instead
            no_kernels = _first_line(error)
    log.warning("the GPU runs the plain network, which is slower: %s", no_kernels)
    return _backend(PixelNetwork(folded(load()), torch.float16), device)


def _backend(network: torch.nn.Module, device: str) -> TorchBackend:
    try:
        network = network.to(device)
    except RuntimeError as error:
        raise DeviceLostError(_first_line(error)) from error
    return TorchBackend(network, device=device, compiler=_compile)


class TorchBackend:
    """One network on one device. Made and used by `Embedder`, in the network's thread alone.

    If there is no memory for a batch, smaller ones are run, from then on. If there is none for the
    smallest, or the device fails in any other way, `run` raises DeviceLostError, and the backend
    must not be used any more.
    """

    def __init__(
        self,
        network: Forward,
        *,
        device: str,
        sizes: Sequence[int] = BATCH_SIZES,
        compiler: Callable[[Forward], Forward] | None = None,
        compile_after_crops: int = COMPILE_AFTER_CROPS,
    ) -> None:
        """Take a `network` that is on `device`, and run it once.

        `sizes` are the batch sizes to use. A `compiler` is tried once, after `compile_after_crops`.
        Raises DeviceLostError.
        """
        self.device = device
        self.concurrent = False  # its CUDA graphs write to one memory
        self._network = network
        self._forwards: dict[int, Forward] = dict.fromkeys(sorted(sizes), network)
        self._compiler = compiler
        self._crops_until_compile = compile_after_crops
        helper = ThreadPoolExecutor(1, "copy crops")
        # One is filled while the GPU reads from the other.
        self._staging = [_Staging(max(sizes), device, helper) for _ in range(2)]
        self.dim = self._probe()

    @property
    def sizes(self) -> tuple[int, ...]:
        """The batch sizes in use, ascending."""
        return tuple(self._forwards)

    def run(self, crops: Uint8Array | Sequence[Uint8Array]) -> Float32Array:
        """Return features (n, dim), not of unit length, of n crops.

        The crops are (n, 256, 128, 3), or n of (h, w, 3). Raises DeviceLostError.
        """
        parts: list[torch.Tensor] = []
        done = 0
        while done < len(crops):
            size = self._size_for(min(len(crops) - done, HOST_CROPS))
            batch = crops[done : done + size]
            try:
                parts.append(self._begin(batch, size))
            except RuntimeError as error:  # torch's own errors derive from it
                self._shrink_or_fail(error)
                continue
            done += len(batch)
        features = self._fetched(parts)
        self._count(len(crops))
        return features

    def run_on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features (b, dim) of pixels (b, 256, 128, 3) uint8 that are on the device.

        b must be one of `sizes`.
        """
        with torch.inference_mode():
            return self._forwards[len(pixels)](pixels)

    def compile_now(self) -> None:
        """Try the compiler, and use its result for each batch size that it makes faster."""
        compiler = self._compiler
        if compiler is None:
            return
        self._compiler = None  # whatever comes of it, once is enough
        try:
            compiled = compiler(self._network)
            for size in self._forwards:
                self._forwards[size] = self._faster(compiled, size)
        except Exception as error:  # noqa: BLE001 - compilers raise anything; nothing depends on it
            log.warning("the network runs uncompiled on %s: %s", self.device, _first_line(error))
            self._forwards = dict.fromkeys(self._forwards, self._network)

    def _probe(self) -> int:
        crops = np.zeros((1, *CROP_SHAPE), np.uint8)
        try:
            features = self._fetched([self._begin(crops, min(self._forwards))])
            return int(features.shape[1])
        except RuntimeError as error:
            raise DeviceLostError(_first_line(error)) from error

    def _size_for(self, count: int) -> int:
        """Return the batch size for `count` crops.

        It is the next one above if that will be at least half full, else the next one below. The
        smallest is also taken if it will not be half full.
        """
        smallest = min(self._forwards)
        above = min((size for size in self._forwards if size >= count), default=None)
        if above is not None and (2 * count >= above or above == smallest):
            return above
        return max(size for size in self._forwards if size <= count)

    def _begin(self, crops: Uint8Array | Sequence[Uint8Array], size: int) -> torch.Tensor:
        """Queue a batch and return its features, which the device has yet to compute."""
        output = self.run_on_device(self._on_device(crops, size))
        # A copy, since a CUDA graph writes its next output to the same place.
        return output[: len(crops)].clone()

    def _fetched(self, parts: list[torch.Tensor]) -> Float32Array:
        if not parts:
            return np.zeros((0, self.dim), np.float32)
        try:
            features: Float32Array = torch.cat(parts).cpu().numpy()  # waits for the device
        except RuntimeError as error:
            raise DeviceLostError(_first_line(error)) from error
        if not np.isfinite(features).all():
            raise DeviceLostError(f"half precision overflows with these weights on {self.device}")
        return features

    def _on_device(self, crops: Uint8Array | Sequence[Uint8Array], size: int) -> torch.Tensor:
        """Copy crops to the device, resize them there if needed, and pad the batch to `size`."""
        if are_sized(crops):
            self._staging.reverse()
            return self._staging[0].send(crops, size)
        pixels = torch.zeros((size, *CROP_SHAPE), dtype=torch.uint8, device=self.device)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, crop in enumerate(crops):
            by_shape.setdefault(crop.shape, []).append(i)
        for rows in by_shape.values():
            same_shape = torch.from_numpy(np.stack([crops[i] for i in rows])).to(self.device)
            pixels[rows] = resize(same_shape)
        return pixels

    def _shrink_or_fail(self, error: RuntimeError) -> None:
        out_of_memory = (
            isinstance(error, torch.OutOfMemoryError) or "out of memory" in str(error).lower()
        )
        if not out_of_memory or len(self._forwards) == 1:
            raise DeviceLostError(_first_line(error)) from error
        largest = max(self._forwards)
        del self._forwards[largest]
        log.warning(
            "%s has no memory for %d crops at once; from now %d",
            self.device,
            largest,
            max(self._forwards),
        )
        if self.device == "cuda":
            torch.cuda.empty_cache()

    def _count(self, crops: int) -> None:
        self._crops_until_compile -= crops
        if self._crops_until_compile <= 0:
            self.compile_now()

    def _faster(self, compiled: Forward, size: int) -> Forward:
        """Return the faster of `compiled` and the network as it is, at batch size `size`.

        Raises RuntimeError if the compiled one gives other vectors.
        """
        pixels = torch.randint(0, 256, (size, *CROP_SHAPE), dtype=torch.uint8, device=self.device)
        with torch.inference_mode():
            plain = self._network(pixels).clone()
            for _ in range(2):  # compiles, records the CUDA graph
                compiled(pixels)
            replayed = compiled(pixels)
            least = float(functional.cosine_similarity(plain, replayed).min())
            if not least >= LEAST_COSINE:  # true for nan as well
                raise RuntimeError(f"compiled vectors differ at batch {size}: cosine {least:.4f}")
            plain_seconds = seconds_a_run(self._network, pixels)
            compiled_seconds = seconds_a_run(compiled, pixels)
        return compiled if compiled_seconds < plain_seconds else self._network


class _Staging:
    """Page-locked memory of so many crops, from which the GPU reads without the processor.

    It is reused, since locking memory costs more than copying into it.
    """

    def __init__(self, crops: int, device: str, helper: ThreadPoolExecutor) -> None:
        self._device = device
        self._helper = helper
        on_gpu = device == "cuda"
        self._memory = torch.empty((crops, *CROP_SHAPE), dtype=torch.uint8, pin_memory=on_gpu)
        self._fetched = torch.cuda.Event() if on_gpu else None

    def send(self, crops: Uint8Array, size: int) -> torch.Tensor:
        """Return pixels (size, 256, 128, 3) on the device, of which the first are `crops`.

        The rest are remains of earlier batches, whose features nobody reads.
        """
        if self._fetched is not None:
            self._fetched.synchronize()
        staged = self._memory[:size]
        self._copy(crops, staged.numpy()[: len(crops)])
        pixels = staged.to(self._device, non_blocking=True)
        if self._fetched is not None:
            self._fetched.record()
        return pixels

    def _copy(self, crops: Uint8Array, into: Uint8Array) -> None:
        # Not by torch's own threads: on 16 cores they took milliseconds over 8 crops.
        if len(crops) < COPIED_BY_TWO:
            into[:] = crops
            return
        half = len(crops) // 2
        first_half = self._helper.submit(np.copyto, into[:half], crops[:half])
        into[half:] = crops[half:]
        first_half.result()


def resize(pixels: torch.Tensor) -> torch.Tensor:
    """Resize (b, h, w, 3) uint8 to (b, 256, 128, 3) uint8 on the device where it is.

    This is what torchvision's antialiased resize calls. It is Pillow's filter: values differ from
    Pillow's by at most 1.
    """
    if pixels.shape[1:] == CROP_SHAPE:
        return pixels
    images = pixels.permute(0, 3, 1, 2).float()  # (b, 3, h, w)
    size = (CROP_HEIGHT_PX, CROP_WIDTH_PX)
    images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def seconds_a_run(forward: Forward, pixels: torch.Tensor, runs: int = 10) -> float:
    """Return the mean seconds of a run, with the device's work.

    Call it in inference mode, after a run that warms up.
    """
    on_gpu = pixels.device.type == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        forward(pixels)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / runs


def _compile(network: Forward) -> Forward:
    # "reduce-overhead" records and replays a CUDA graph for each batch size.
    compiled: Forward = torch.compile(
        network, mode="reduce-overhead", dynamic=False, fullgraph=True
    )
    return compiled


def _first_line(error: BaseException) -> str:
    first_line = str(error).strip().split("\n", 1)[0]
    return f"{type(error).__name__}: {first_line}"
