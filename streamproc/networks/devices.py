"""Which device a network runs on: whether torch can use a GPU here, and if not, why."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Sequence

Device = Literal["auto", "cpu", "cuda"]

GPU_FILES = (Path("/dev/nvidiactl"), Path("/dev/dxg"))  # NVIDIA's driver on Linux; a GPU under WSL


class DeviceLostError(Exception):
    """The GPU cannot be used, or no longer. Whoever runs the network goes on with the CPU."""


def why_no_gpu(gpu_files: Sequence[Path] = GPU_FILES) -> str | None:
    """Say in a few words what is missing for a GPU; None if torch can use one.

    torch takes seconds to import, so it is imported only if both a driver's device file and torch
    itself are present.
    """
    if not any(path.exists() for path in gpu_files):
        return "no NVIDIA GPU is visible here"
    missing = [name for name in ("torch", "safetensors") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} not installed: install streamproc[gpu]"
    import torch

    if not torch.cuda.is_available():
        return "torch finds no GPU that it can use (driver, or CUDA_VISIBLE_DEVICES)"
    return None
