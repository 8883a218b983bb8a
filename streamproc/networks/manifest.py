"""The manifest of named weights: what they are, and where on this machine their files are.

A name stands for one sha256 and nothing else. Different files circulate under the same public
names, so a file is taken for a name only if its sha256 is the manifest's.
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

MODELS_SUBFOLDER = "models"
"""Of the cache folder: where `streamproc models pull` puts files."""
WEIGHTS_SUFFIXES = (".pth", ".pt", ".safetensors", ".onnx")

_PACKAGE = Path(__file__).resolve().parent.parent
PACKAGE_FOLDERS = (_PACKAGE / "_models", _PACKAGE.parent / "models")
"""Where the package's own files are: in a wheel, in a checkout."""

_Size = Annotated[int, Field(ge=1)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ModelEntry(_Strict):
    """One set of weights. `sha256` is of the file, and goes into every event made with them.

    `dim` is the length of the network's vectors, None for a network that makes none. `input` is
    channels, height and width; a height or width that may be any is None. `url` is None for weights
    that the package carries, `size_bytes` is None if it is not known. `figures` are those that
    `models/evaluate.py` measured, None if nobody did. `calibration_id` names the curve of these
    weights in `calibration.json`, None if there is none.
    """

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_]*$", max_length=100)]
    architecture: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$", max_length=100)]
    dim: _Size | None
    input: tuple[Literal[3], _Size | None, _Size | None]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
    size_bytes: _Size | None
    licence: Annotated[str, Field(min_length=1)]
    trained_on: Annotated[str, Field(min_length=1)]
    file_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+\.(pth|pt|safetensors|onnx)$")]
    url: Annotated[str, Field(pattern=r"^https?://")] | None
    figures: dict[str, float] | None = None
    calibration_id: Annotated[str, Field(pattern=r"^[0-9a-f]{16}$")] | None = None

    def file_names(self) -> tuple[str, ...]:
        """Return under which names a file of these weights may be in a folder.

        Only its sha256 says whether such a file is the right one.
        """
        published = [] if self.url is None else [urlsplit(self.url).path.rpartition("/")[2]]
        named = [f"{self.name}{suffix}" for suffix in WEIGHTS_SUFFIXES]
        return tuple(dict.fromkeys((self.file_name, *named, *published)))


class Manifest(_Strict):
    """All entries. Names and hashes are unique."""

    format_version: Literal[1]
    models: tuple[ModelEntry, ...]

    def find(self, name: str) -> ModelEntry | None:
        """Return the entry of this name, or None."""
        return next((entry for entry in self.models if entry.name == name), None)


@cache
def load_manifest(path: Path | None = None) -> Manifest:
    """Read and check the manifest, by default the package's own. Raises WeightsError."""
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
        message = first["msg"]
        raise WeightsError(f"{path}: {where}: {message[:1].lower()}{message[1:]}") from error
    for what in ("name", "sha256"):
        values = [getattr(entry, what) for entry in manifest.models]
        repeated = sorted({value for value in values if values.count(value) > 1})
        if repeated:
            raise WeightsError(f"{path}: expected every {what} once, got {repeated[0]} twice")
    return manifest


def package_file(name: str) -> Path:
    """Return the path of the package's own file `name`, which may be missing."""
    paths = [folder / name for folder in PACKAGE_FOLDERS]
    return next((path for path in paths if path.is_file()), paths[0])


def search_folders(cache_folder: Path, models_folder: Path | None) -> tuple[Path, ...]:
    """Return where named weights are looked for: the offline folder first, then what was pulled."""
    pulled = cache_folder / MODELS_SUBFOLDER
    if models_folder is None:
        return (pulled,)
    return models_folder.expanduser(), pulled


def locate(entry: ModelEntry, folders: Sequence[Path]) -> tuple[Path | None, tuple[Path, ...]]:
    """Find the file of `entry`, and the files that have its name but another sha256.

    Weights that the package carries are looked for there alone. Every file with a matching name is
    hashed. The path is None if no file is the right one.
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


def require(entry: ModelEntry, folders: Sequence[Path]) -> Path:
    """Return the file of `entry`. Downloads nothing.

    Raises WeightsError in one line that says what to type if the file is not there.
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
    remedy = f"run `streamproc models pull {entry.name}`"
    if wrong:
        remedy += ", or give a path"
    raise WeightsError(
        f"{entry.name} (sha256 {entry.sha256[:8]}) is not on this machine{others}: {remedy}"
    )
