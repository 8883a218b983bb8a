"""The manifest: which weights are known by a name, what they are, and where on this machine they lie.

A name stands for one sha256 and nothing else: different files circulate under the same public
names, so a file is taken for a name only where its hash is the manifest's.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from streamproc.errors import WeightsError
from streamproc.files import sha256_of

if TYPE_CHECKING:
    from collections.abc import Sequence

MODELS_SUBFOLDER = "models"  # of the cache folder: where `streamproc models pull` puts files
WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors", ".onnx")

_PACKAGE = Path(__file__).resolve().parent.parent
PACKAGE_FOLDERS = (_PACKAGE / "_models", _PACKAGE.parent / "models")  # in the wheel; in a checkout


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """One set of weights. `sha256` is of the checkpoint, and goes into every event.

    `input` is channels, height, width; `url` is None for weights that the package carries;
    `size_bytes` is None where it is not known. `figures` are measured by `models/evaluate.py`, None
    where nobody did; `calibration_id` names the curve of these weights in `calibration.json`, None
    where there is none.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=100)]
    architecture: Annotated[str, Field(pattern=r"^osnet_")]
    dim: Annotated[int, Field(ge=1)]
    input: tuple[Literal[3], Literal[256], Literal[128]]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: Annotated[int, Field(ge=1)] | None
    licence: Annotated[str, Field(min_length=1)]
    trained_on: Annotated[str, Field(min_length=1)]
    file_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+\.(pth|pt|safetensors|onnx)$")]
    url: Annotated[str, Field(pattern=r"^https?://")] | None
    figures: dict[str, float] | None = None
    calibration_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None

    def file_names(self) -> tuple[str, ...]:
        """Under which names a file of these weights may lie in a folder; which of them it is, only the hash says."""
        published = [] if self.url is None else [urlsplit(self.url).path.rpartition("/")[2]]
        named = [f"{self.name}{suffix}" for suffix in WEIGHTS_SUFFIXES]
        return tuple(dict.fromkeys((self.file_name, *named, *published)))


class Manifest(_Strict):
    """All entries; names and hashes are unique."""

    format_version: Literal[1]
    models: tuple[ModelEntry, ...]

    def find(self, name: str) -> ModelEntry | None:
        """Return the entry of this name."""
        return next((entry for entry in self.models if entry.name == name), None)


@cache
def load_manifest(path: Path | None = None) -> Manifest:
    """Read and check the manifest, by default the package's own.

    Raises WeightsError in one line.
    """
    path = path or package_file("manifest.json")
    try:
        manifest = Manifest.model_validate_json(path.read_bytes())
    except OSError as error:
        raise WeightsError(
            f"{path}: expected the manifest of weights ({error.strerror})"
        ) from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise WeightsError(
            f"{path}: {where}: {first['msg'][:1].lower()}{first['msg'][1:]}"
        ) from error
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in manifest.models]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise WeightsError(f"{path}: expected every {what} once, got {twice[0]} twice")
    return manifest


def package_file(name: str) -> Path:
    """Where the package keeps `name`; a path that does not exist where it is missing."""
    paths = [folder / name for folder in PACKAGE_FOLDERS]
    return next((path for path in paths if path.is_file()), paths[0])


def search_folders(cache_folder: Path, models_folder: Path | None) -> tuple[Path, ...]:
    """Where files of a name are looked for: the offline folder first, then what was pulled."""
    pulled = cache_folder / MODELS_SUBFOLDER
    return (pulled,) if models_folder is None else (models_folder.expanduser(), pulled)


def locate(entry: ModelEntry, folders: Sequence[Path]) -> tuple[Path | None, tuple[Path, ...]]:
    """Find the file of `entry`: its path, and files that bear its name with another hash (never used).

    Weights that the package carries are looked for there alone. A name is only where to look: every
    file is hashed.
    """
    if entry.url is None:
        paths = [package_file(entry.file_name)]
    else:
        paths = [folder / name for folder in folders for name in entry.file_names()]
    wrong: list[Path] = []
    for path in paths:
        if path.is_file():
            if sha256_of(path) == entry.sha256:
                return path, tuple(wrong)
            wrong.append(path)
    return None, tuple(wrong)


def need(entry: ModelEntry, folders: Sequence[Path]) -> Path:
    """Return the file of `entry`; raises WeightsError in one line that says what to type.

    Downloads nothing.
    """
    path, wrong = locate(entry, folders)
    if path is not None:
        return path
    others = "".join(
        f"; {other} is another file (sha256 {sha256_of(other)[:8]})" for other in wrong
    )
    if entry.url is None:
        raise WeightsError(
            f"{entry.name}: expected the package's own weights{others}: install streamproc again"
        )
    remedy = f"run `streamproc models pull {entry.name}`" + (", or give a path" if wrong else "")
    raise WeightsError(
        f"{entry.name} (sha256 {entry.sha256[:8]}) is not on this machine{others}: {remedy}"
    )
