"""OSNet in torch on a GPU: folded, channels last, half precision, a few fixed batch sizes.

The same code runs on torch's CPU device, where the tests hold it against eager torch. Half
precision is fp16: its cosine to float32 is above .9999, bfloat16's is as low as .997 with the
published weights B. Crops come from the host in batches of at most 128: while the GPU works on one,
the next is copied.
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
from streamproc.types import CROP_HEIGHT_PX, CROP_WIDTH_PX

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from streamproc.reid.osnet import OSNet
    from streamproc.types import Float32Array, Uint8Array

    Forward = Callable[[torch.Tensor], torch.Tensor]  # (b, 256, 128, 3) uint8 to (b, dim) float32

log = logging.getLogger(__name__)

BATCH_SIZES = (8, 32, 128)
HOST_CROPS = 128
"""Of larger batches a GPU would wait for the copying (measured on an H200:

512 at once were a third slower).
"""
COPIED_BY_TWO = 96
"""Of so many crops a second thread copies half:

512 go through 1.5 times as fast on an H200; of 64 it gains nothing.
"""
COMPILE_AFTER_CROPS = 20_000
"""Compiling takes half a minute or more, which a short video never gets back; a worker does."""
LEAST_COSINE = 0.999

_CROP_SHAPE = (CROP_HEIGHT_PX, CROP_WIDTH_PX, 3)


def open_gpu(weights: Weights) -> TorchBackend:
    """Load onto the GPU.

    Raises WeightsError for bad weights, DeviceLostError where the GPU refuses.
    """
    assert weights.checkpoint_path is not None
    state = read_checkpoint(weights.checkpoint_path)
    return backend_on("cuda", lambda: from_state(state), no_kernels=why_no_kernels())


def why_no_kernels() -> str | None:
    """Return why the GPU's own kernels cannot run here, None where they can."""
    if importlib.util.find_spec("triton") is None:
        return "there is no Triton"
    capability = torch.cuda.get_device_capability()
    return (
        None
        if capability >= LEAST_CAPABILITY
        else f"its capability is {capability}, Triton asks {LEAST_CAPABILITY}"
    )


def backend_on(device: str, load: Callable[[], OSNet], *, no_kernels: str | None) -> TorchBackend:
    """The form of the network that a GPU runs best, or for a reason against it, or a fault of it, the plain one."""
    if no_kernels is None:
        try:
            return TorchBackend(
                _moved(GpuNetwork(load()), device), device=device, compiler=_compile
            )
        except Exception as error:  # noqa: BLE001 - Triton's own errors, no C compiler for it, a folder without exec
            no_kernels = _first_line(error)
    log.warning("the GPU runs the plain network, which is slower: %s", no_kernels)
    plain = PixelNetwork(folded(load()), torch.float16)
    return TorchBackend(_moved(plain, device), device=device, compiler=_compile)


def _moved(network: torch.nn.Module, device: str) -> torch.nn.Module:
    try:
        return network.to(device)
    except RuntimeError as error:
        raise DeviceLostError(_first_line(error)) from error


class TorchBackend:
    """One network on one device. Made and used by `Embedder`, in the network's thread alone.

    A batch that finds no memory is tried again in smaller ones, which are then kept to; where the
    smallest finds none, or the device fails in any other way, `run` raises DeviceLostError and the
    backend is done.
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
        """Take `network`, which is on `device`; a `compiler` is tried once, after `compile_after_crops`."""
        self.device = device
        self.concurrent = False  # its CUDA graphs write to one memory
        self._network = network
        self._forwards: dict[int, Forward] = dict.fromkeys(sorted(sizes), network)
        self._compiler, self._crops_until_compile = compiler, compile_after_crops
        helper = ThreadPoolExecutor(1, "copy crops")
        # One is filled while the GPU fetches the other.
        self._staging = [_Staging(max(sizes), device, helper) for _ in range(2)]
        self.dim = self._probe()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes in use, ascending."""
        return tuple(self._forwards)

    def run(self, crops: Uint8Array | Sequence[Uint8Array]) -> Float32Array:
        """Features (n, dim), not unit length, of crops (n, 256, 128, 3) or of n crops (h, w, 3) of any size."""
        parts: list[torch.Tensor] = []
        done = 0
        while done < len(crops):
            size = self._size_for(min(len(crops) - done, HOST_CROPS))
            batch = crops[done : done + size]
            try:
                parts.append(self._begin(batch, size))
            except RuntimeError as error:  # torch's own errors derive from it
                self._shrink_or_give_up(error)
                continue
            done += len(batch)
        features = self._fetched(parts)
        self._count(len(crops))
        return features

    def run_on_device(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (b, dim) of pixels (b, 256, 128, 3) uint8 on the device already; b is one of `sizes`."""
        with torch.inference_mode():
            return self._forwards[len(pixels)](pixels)

    def compile_now(self) -> None:
        """Try the compiler, and keep what it made for each batch size that it makes faster."""
        if self._compiler is None:
            return
        compiler, self._compiler = self._compiler, None
        try:
            compiled = compiler(self._network)
            for size in self._forwards:
                self._forwards[size] = self._faster(compiled, size)
        except Exception as error:  # noqa: BLE001 - compilers raise anything, and nothing depends on this one
            log.warning("the network runs uncompiled on %s: %s", self.device, _first_line(error))
            self._forwards = dict.fromkeys(self._forwards, self._network)

    def _probe(self) -> int:
        size = min(self._forwards)
        try:
            return int(
                self._fetched([self._begin(np.zeros((1, *_CROP_SHAPE), np.uint8), size)]).shape[1]
            )
        except RuntimeError as error:
            raise DeviceLostError(_first_line(error)) from error

    def _size_for(self, count: int) -> int:
        """Take the next size above where it will be half full or more, else the next below."""
        fits = [
            size
            for size in self._forwards
            if size >= count and (2 * count >= size or size == min(self._forwards))
        ]
        return min(fits) if fits else max(size for size in self._forwards if size <= count)

    def _begin(self, crops: Uint8Array | Sequence[Uint8Array], size: int) -> torch.Tensor:
        """Queue a batch and return its features, which the device still has to compute."""
        output = self.run_on_device(self._on_device(crops, size))
        return output[: len(crops)].clone()  # a CUDA graph writes its next output to the same place

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
        """Bring crops to the device, resize them there where they need it, and pad the batch to `size`."""
        if isinstance(crops, np.ndarray) and crops.shape[1:] == _CROP_SHAPE:
            self._staging.reverse()
            return self._staging[0].send(crops, size)
        pixels = torch.zeros((size, *_CROP_SHAPE), dtype=torch.uint8, device=self.device)
        by_shape: dict[tuple[int, ...], list[int]] = {}
        for i, crop in enumerate(crops):
            by_shape.setdefault(crop.shape, []).append(i)
        for rows in by_shape.values():
            alike = torch.from_numpy(np.stack([crops[i] for i in rows])).to(self.device)
            pixels[rows] = resize(alike)
        return pixels

    def _shrink_or_give_up(self, error: RuntimeError) -> None:
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
        """Return which of the two is faster at `size`; a compiled one whose vectors differ raises."""
        pixels = torch.randint(0, 256, (size, *_CROP_SHAPE), dtype=torch.uint8, device=self.device)
        with torch.inference_mode():
            plain = self._network(pixels).clone()
            for _ in range(2):  # compiles, records the CUDA graph
                compiled(pixels)
            mine = compiled(pixels)  # replays it
            least = float(functional.cosine_similarity(plain, mine).min())
            if not least >= LEAST_COSINE:
                raise RuntimeError(f"compiled vectors differ at batch {size}: cosine {least:.4f}")
            spent = [seconds_a_run(forward, pixels) for forward in (self._network, compiled)]
        return compiled if spent[1] < spent[0] else self._network


class _Staging:
    """Page-locked memory, from which the GPU fetches by itself; reused, since locking costs more than copying."""

    def __init__(self, crops: int, device: str, helper: ThreadPoolExecutor) -> None:
        self._device, self._helper = device, helper
        on_gpu = device == "cuda"
        self._memory = torch.empty((crops, *_CROP_SHAPE), dtype=torch.uint8, pin_memory=on_gpu)
        self._fetched = torch.cuda.Event() if on_gpu else None

    def send(self, crops: Uint8Array, size: int) -> torch.Tensor:
        """Pixels (size, 256, 128, 3) on the device; what is there of the last ones is unread."""
        if self._fetched is not None:
            self._fetched.synchronize()
        staged = self._memory[:size]
        self._copy(crops, staged.numpy()[: len(crops)])
        pixels = staged.to(self._device, non_blocking=True)
        if self._fetched is not None:
            self._fetched.record()
        return pixels

    def _copy(self, crops: Uint8Array, into: Uint8Array) -> None:
        """Not by torch's own threads: with all 16 cores' they took milliseconds over 8 crops."""
        half = len(crops) // 2 if len(crops) >= COPIED_BY_TWO else 0
        others = self._helper.submit(np.copyto, into[:half], crops[:half]) if half else None
        into[half:] = crops[half:]
        if others is not None:
            others.result()


def resize(pixels: torch.Tensor) -> torch.Tensor:
    """Resize (b, h, w, 3) uint8 to (b, 256, 128, 3) uint8 on its device: what torchvision's antialiased resize calls.

    It is Pillow's filter, within a step of a pixel's value.
    """
    if pixels.shape[1:] == _CROP_SHAPE:
        return pixels
    images = pixels.permute(0, 3, 1, 2).float()  # (b, 3, h, w)
    size = (CROP_HEIGHT_PX, CROP_WIDTH_PX)
    images = functional.interpolate(images, size, mode="bilinear", antialias=True)
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def seconds_a_run(forward: Forward, pixels: torch.Tensor, runs: int = 10) -> float:
    """Mean seconds of a run, the device's work included. Call it warm, in inference mode."""
    waits = pixels.device.type == "cuda"
    if waits:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(runs):
        forward(pixels)
    if waits:
        torch.cuda.synchronize()
    return (time.perf_counter() - start) / runs


def _compile(network: Forward) -> Forward:
    compiled: Forward = torch.compile(
        network, mode="reduce-overhead", dynamic=False, fullgraph=True
    )
    return compiled  # replayed as a CUDA graph, one a batch size


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {str(error).strip().split(chr(10), 1)[0]}"
