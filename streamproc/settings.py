"""The only reader of defaults, settings file and environment: flags, then STREAMPROC_*, then the file, then defaults.

A nested key is reached by two underscores in the environment: STREAMPROC_CLUSTERING__SIMILARITY_THRESHOLD. An unknown
key, in the file or the environment, is a UsageError that names the nearest right one.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from streamproc.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "STREAMPROC_"
_NOT_SETTINGS = ("STREAMPROC_TEST_", "STREAMPROC_BASE_IMAGES")  # the project's own tests read these
_MIB = 1024 * 1024


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clustering(_Section):
    """How persons are compared; the section and its keys are those of the pipeline that streamproc replaces."""

    enabled: bool = True
    """False: no network is loaded; animations and the page only."""
    osnet_model: str | None = None
    """Weights: a path to .onnx, .pth, .pt or .safetensors; absent: the package's own."""
    device: Literal["auto", "cpu"] = "auto"
    num_best_crops: Annotated[int, Field(ge=1, le=64)] = 8
    similarity_threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 0.70


class LimitSettings(_Section):
    """What a video may ask of the machine; beyond it the video is refused by name."""

    max_pixels_per_frame: Annotated[int, Field(ge=1)] = 8192 * 4608
    max_frames: Annotated[int, Field(ge=1)] = 5_000_000
    max_duration_seconds: Annotated[float, Field(gt=0)] = 48 * 3600.0
    max_file_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * _MIB
    max_persons_per_gallery: Annotated[int, Field(ge=1)] = 100_000


class Settings(BaseSettings):
    """All settings of streamproc; each is described in the README's table."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True)

    clustering: Clustering = Clustering()
    limits: LimitSettings = LimitSettings()
    top_persons: Annotated[int, Field(ge=0)] = 0
    min_track_frames: Annotated[int, Field(ge=1)] = 5
    crops_per_person: Annotated[int, Field(ge=1, le=1000)] = 50
    animate: bool = True
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    crop_memory_mib: Annotated[int, Field(ge=1)] = 128
    cache_folder: Path = Path("~/.cache/streamproc")

    def expanded_cache_folder(self) -> Path:
        """The folder for exported weights, `~` resolved."""
        return self.cache_folder.expanduser()


def load_settings(flags: Mapping[str, object], *, config_file: Path | None) -> Settings:
    """Merge all sources, the first named wins; raises UsageError in one line for an unknown key or a bad value.

    `flags` are dotted keys ("clustering.device") with None for a flag that was not given.
    """
    _check_environment()
    from_file = {} if config_file is None else _read_file(config_file)

    class FromFile(Settings):
        @classmethod
        def settings_customise_sources(
            cls,
            settings_cls: type[BaseSettings],
            init_settings: PydanticBaseSettingsSource,
            env_settings: PydanticBaseSettingsSource,
            dotenv_settings: PydanticBaseSettingsSource,
            file_secret_settings: PydanticBaseSettingsSource,
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            del dotenv_settings, file_secret_settings  # neither is documented, so neither may surprise
            return init_settings, env_settings, InitSettingsSource(settings_cls, init_kwargs=from_file)

    try:
        return FromFile(**_nested({key: value for key, value in flags.items() if value is not None}))
    except ValidationError as error:
        raise UsageError(_describe(error)) from error
    except SettingsError as error:
        raise UsageError(f"environment: {error}") from error


def known_keys() -> list[str]:
    """All keys, dotted, in the order of their definition."""
    keys = []
    for name, info in Settings.model_fields.items():
        section = info.annotation
        nested = section.model_fields if isinstance(section, type) and issubclass(section, BaseModel) else {}
        keys += [f"{name}.{key}" for key in nested] or [name]
    return keys


def _read_file(path: Path) -> dict[str, Any]:
    """Read a settings file as far as keys and sections; what they hold is checked with everything else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: expected a settings file ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(f"--config {path}: expected YAML ({' '.join(str(error).split())[:160]})") from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"--config {path}: expected keys and values, got {content!r:.60}")
    for name, info in Settings.model_fields.items():
        is_section = isinstance(info.annotation, type) and issubclass(info.annotation, _Section)
        if is_section and not isinstance(content.get(name, {}), dict):
            raise UsageError(f"--config {path}: expected {name} to hold keys and values, got {content[name]!r:.60}")
    return content


def _check_environment() -> None:
    """Refuse a variable with our prefix that means nothing: it is a mistyped setting."""
    for name in os.environ:
        key = name.removeprefix(PREFIX).lower().replace("__", ".")
        if name.startswith(PREFIX) and not name.startswith(_NOT_SETTINGS) and key not in (*known_keys(), "config"):
            near = _nearest(key).replace(".", "__").upper()
            raise UsageError(f"unknown environment variable {name}: did you mean {PREFIX}{near}?")


def _nested(flat: Mapping[str, object]) -> dict[str, Any]:
    tree: dict[str, Any] = {}
    for key, value in flat.items():
        *sections, leaf = key.split(".")
        node = tree
        for section in sections:
            node = node.setdefault(section, {})
        node[leaf] = value
    return tree


def _nearest(key: str) -> str:
    """Return the known key that looks most like `key`, comparing whole keys and their last parts."""
    last_parts = {known.rpartition(".")[2]: known for known in known_keys()}
    near = difflib.get_close_matches(key.rpartition(".")[2], last_parts, n=1, cutoff=0.6)
    return last_parts[near[0]] if near else difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.0)[0]


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"setting {key}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r:.60}"
    return f"unknown setting {key!r}: did you mean {_nearest(key)!r}?"
