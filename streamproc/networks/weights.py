"""Where weights come from: the ones in the package, an ONNX file as it is, or a checkpoint exported once by torch.

The outcome always has an ONNX file, which onnxruntime runs; torch is imported only to export. There
is no fall-back to random weights: what is missing or does not fit is a WeightsError.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from streamproc.errors import WeightsError
from streamproc.files import sha256_of
from streamproc.networks.manifest import (
    WEIGHTS_SUFFIXES,
    load_manifest,
    need,
    package_file,
    search_folders,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

DEFAULT_NAME = "osnet_x0_25_ours"
SOURCE_SHA256_KEY = "streamproc.weights_sha256"
"""Metadata of an exported ONNX file: sha256 of the file it was made from, so both count as the same weights."""

_EXPORT_VERSION = 1  # part of the cache's file name: raise it when the export changes


class Export(Protocol):
    """Writes the tensors of a checkpoint as the ONNX file of their network, whole or not at all."""

    def __call__(
        self, state: Mapping[str, torch.Tensor], path: Path, /, *, source_sha256: str
    ) -> None:
        """Raise WeightsError for tensors of another network."""
        ...


@dataclass(frozen=True, slots=True)
class Weights:
    """An ONNX file ready to run on the CPU, and the checkpoint that a GPU runs.

    Made by `find_weights`.

    `sha256` is of the file that the user named (an exported ONNX carries it in its metadata).
    `checkpoint_path` is None where there is only an ONNX file. `kept_folder` is where onnxruntime's
    form of the network may be kept; None for a user's ONNX file, whose numbers may lie in other
    files that its sha256 says nothing of.
    """

    name: str
    onnx_path: Path
    sha256: str
    checkpoint_path: Path | None = None
    kept_folder: Path | None = None


def find_weights(
    spec: str | None, *, export: Export, cache_folder: Path, models_folder: Path | None = None
) -> Weights:
    """Resolve `--weights`: None for the package's own, a name of the manifest, or a path to a file.

    A name is looked for in `models_folder` and in what was pulled into `cache_folder`, and taken
    only where its sha256 is the manifest's; nothing is ever downloaded. A checkpoint is exported
    once and kept in `cache_folder` under its sha256. Raises WeightsError.
    """
    entry = None if spec is None else load_manifest().find(spec)
    if spec is None or spec == DEFAULT_NAME:
        return _own(cache_folder)
    named = None if entry is None else need(entry, search_folders(cache_folder, models_folder))
    path = named or Path(spec).expanduser()
    if not path.is_file():
        raise WeightsError(
            f"expected a weights file, found none at {path}: give --weights a file that exists, "
            "or a name that `streamproc models list` prints"
        )
    name = path.stem if entry is None else entry.name
    sha256 = sha256_of(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return Weights(name, path, sha256)
    if suffix not in WEIGHTS_SUFFIXES:
        raise WeightsError(
            f"{path}: expected weights as .onnx, .pth, .pt or .safetensors, got {suffix or 'no'!r} name"
        )
    cached = cache_folder / f"{sha256}.v{_EXPORT_VERSION}.onnx"
    if not cached.is_file():
        _need_torch(path)
        export(read_checkpoint(path), cached, source_sha256=sha256)
    return Weights(name, cached, sha256, path, cache_folder)


def _own(cache_folder: Path) -> Weights:
    network = package_file(f"{DEFAULT_NAME}.onnx")
    if not network.is_file():
        raise WeightsError(
            f"expected the package's own weights at {network}, found none: install streamproc again, or give --weights"
        )
    checkpoint = package_file(f"{DEFAULT_NAME}.safetensors")
    return Weights(
        DEFAULT_NAME,
        network,
        sha256_of(network),
        checkpoint if checkpoint.is_file() else None,
        cache_folder,
    )


def _need_torch(path: Path) -> None:
    missing = [
        name for name in ("torch", "onnx", "onnxscript", "safetensors") if find_spec(name) is None
    ]
    if missing:
        raise WeightsError(
            f"{path}: turning a checkpoint into ONNX needs {', '.join(missing)}: install streamproc[gpu], "
            "or give --weights an .onnx file"
        )


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a .pth, .pt or .safetensors file, running no code from it.

    Raises WeightsError.
    """
    import torch

    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except (
        Exception
    ) as error:  # torch and safetensors raise many kinds for a bad file; the text is what helps
        first_line = str(error).strip().split("\n", 1)[0]
        raise WeightsError(f"{path}: cannot be read as weights ({first_line})") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict) or not all(
        isinstance(value, torch.Tensor) for value in state.values()
    ):
        raise WeightsError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    return state
