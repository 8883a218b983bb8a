"""Where the network runs: what `auto` means on this machine, and why `cuda` cannot be had."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Device = Literal["auto", "cpu", "cuda"]

GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # NVIDIA's driver on Linux; a GPU under WSL


class DeviceLostError(Exception):
    """The GPU cannot be used, or no longer: said once by `Embedder`, which goes on with the CPU."""


def why_no_gpu(gpu_files: Sequence[Path] = GPU_FILES) -> str | None:
    """Say in a few words what is missing for a GPU, None where nothing is.

    torch takes seconds to import, so it is imported only where a driver's device file and torch
    itself are there.
    """
    if not any(path.exists() for path in gpu_files):
        return "no NVIDIA GPU is visible here"
    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: install streamproc[gpu]"
    import torch

    return (
        None
        if torch.cuda.is_available()
        else "torch finds no GPU that it can use (driver, or CUDA_VISIBLE_DEVICES)"
    )
