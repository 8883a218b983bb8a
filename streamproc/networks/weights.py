"""Resolves the name or path of a network's weights to an ONNX file that is ready to run.

The weights are those in the package, an ONNX file as it is, or a checkpoint, which is exported to
ONNX once. torch is imported only to export. There is no fall-back to random weights: what is
missing or does not fit raises WeightsError.
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
    package_file,
    require,
    search_folders,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    import torch

    from streamproc.networks.manifest import ModelEntry

SOURCE_SHA256_KEY = "streamproc.weights_sha256"
"""Metadata key of an exported ONNX file: the sha256 of the file that it was exported from.

By it, both files count as the same weights.
"""


class Export(Protocol):
    """Writes the tensors of a checkpoint as the ONNX file of their network."""

    def __call__(
        self, state: Mapping[str, torch.Tensor], path: Path, /, *, source_sha256: str
    ) -> None:
        """Write all of `path` or nothing; raise WeightsError for tensors of another network."""
        ...


@dataclass(frozen=True, slots=True)
class NetworkFamily:
    """What this package must know of a kind of network. Each package that runs one describes it.

    `architecture_prefix` (or several of them) and `input_shape` (channels, height, width; None
    where any will do) are those of its entries in the manifest. `default_weights` names the weights
    that the package carries, `option` is the command-line option by which users choose others.
    `export` is None where only ONNX files are taken. `export_version` is part of the file name of a
    cached export: raise it when `export` changes.
    """

    name: str
    architecture_prefix: str | tuple[str, ...]
    input_shape: tuple[int, int | None, int | None]
    default_weights: str
    option: str
    export: Export | None
    export_version: int


@dataclass(frozen=True, slots=True)
class Weights:
    """An ONNX file for the CPU, and the checkpoint for a GPU. Made by `find_weights`.

    `sha256` is of the file that the user named (an exported ONNX carries it in its metadata).
    `checkpoint_path` is None if there is only an ONNX file. `optimized_folder` is where the form
    that onnxruntime optimized for this processor may be cached. It is None for a user's ONNX file:
    its numbers may be in other files, which its sha256 does not cover.
    """

    name: str
    onnx_path: Path
    sha256: str
    checkpoint_path: Path | None = None
    optimized_folder: Path | None = None


def find_weights(
    spec: str | None,
    family: NetworkFamily,
    *,
    cache_folder: Path,
    models_folder: Path | None = None,
) -> Weights:
    """Resolve `spec`: None for the package's own, a name in the manifest, or a path to a file.

    A name is looked for in `models_folder` and in what was pulled into `cache_folder`, and a file
    is taken only if its sha256 is the manifest's. Nothing is ever downloaded. A checkpoint is
    exported once and cached in `cache_folder` under its sha256. Raises WeightsError.
    """
    if spec is None or spec == family.default_weights:
        return _packaged(family, cache_folder)
    entry = load_manifest().find(spec)
    if entry is None:
        path = Path(spec).expanduser()
        name = path.stem
    else:
        _check_family(entry, family)
        path = require(entry, search_folders(cache_folder, models_folder))
        name = entry.name
    if not path.is_file():
        raise WeightsError(
            f"expected a weights file, found none at {path}: give {family.option} a file that "
            "exists, or a name that `streamproc models list` prints"
        )
    sha256 = sha256_of(path)
    suffix = path.suffix.lower()
    if suffix == ".onnx":
        return Weights(name, path, sha256)
    if suffix not in WEIGHTS_SUFFIXES:
        raise WeightsError(
            f"{path}: expected weights as .onnx, .pth, .pt or .safetensors, "
            f"got {suffix or 'no'!r} name"
        )
    if family.export is None:
        raise WeightsError(
            f"{path}: expected {family.name} as .onnx, got {suffix}: export it to ONNX first"
        )
    exported = cache_folder / f"{sha256}.v{family.export_version}.onnx"
    if not exported.is_file():
        _require_torch(path, family)
        family.export(read_checkpoint(path), exported, source_sha256=sha256)
    return Weights(name, exported, sha256, path, cache_folder)


def _packaged(family: NetworkFamily, cache_folder: Path) -> Weights:
    name = family.default_weights
    network = package_file(f"{name}.onnx")
    if not network.is_file():
        raise WeightsError(
            f"expected the package's own weights at {network}, found none: install streamproc "
            f"again, or give {family.option}"
        )
    checkpoint = package_file(f"{name}.safetensors")
    return Weights(
        name,
        network,
        sha256_of(network),
        checkpoint if checkpoint.is_file() else None,
        cache_folder,
    )


def _check_family(entry: ModelEntry, family: NetworkFamily) -> None:
    if not entry.architecture.startswith(family.architecture_prefix):
        raise WeightsError(
            f"{entry.name}: expected weights of {family.name}, got those of {entry.architecture}"
        )
    pairs = zip(entry.input, family.input_shape, strict=True)
    if not all(wanted is None or size == wanted for size, wanted in pairs):
        raise WeightsError(
            f"{entry.name}: expected weights for an input of {family.input_shape}, "
            f"got {entry.input}"
        )


def _require_torch(path: Path, family: NetworkFamily) -> None:
    modules = ("torch", "onnx", "onnxscript", "safetensors")
    missing = [name for name in modules if find_spec(name) is None]
    if missing:
        raise WeightsError(
            f"{path}: exporting a checkpoint to ONNX requires {', '.join(missing)}: "
            f"install streamproc[gpu], or give {family.option} an .onnx file"
        )


def read_checkpoint(path: Path) -> dict[str, torch.Tensor]:
    """Read the tensors of a .pth, .pt or .safetensors file by name, running no code from it.

    Raises WeightsError.
    """
    import torch

    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.torch import load_file

            state: object = load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    # torch and safetensors raise many kinds for a bad file; the text is what helps.
    except Exception as error:
        first_line = str(error).strip().split("\n", 1)[0]
        raise WeightsError(f"{path}: cannot be read as weights ({first_line})") from error
    if isinstance(state, dict) and isinstance(state.get("state_dict"), dict):
        state = state["state_dict"]
    if not isinstance(state, dict):
        raise WeightsError(f"{path}: expected a dictionary of tensors, got {type(state).__name__}")
    if not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise WeightsError(f"{path}: expected a dictionary of tensors, got other values in it")
    return state
