"""The only reader of defaults, settings file and environment: flags, then STREAMPROC_*, then the file, then defaults.

A nested key is reached by two underscores in the environment:
STREAMPROC_CLUSTERING__SIMILARITY_THRESHOLD. An unknown key, in the file or the environment, is a
UsageError that names the nearest right one.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr, ValidationError
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
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
    """Weights: a name of the manifest, or a path to .onnx, .pth, .pt or .safetensors; absent: the package's own."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    num_best_crops: Annotated[int, Field(ge=1, le=64)] = 8
    similarity_threshold: Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)] = 0.70
    min_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.2
    """A candidate of weights that have a calibration curve is at least so likely one person;

    0: all are shown.
    """
    likely_probability: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.9
    """From here on a candidate is in the band `likely`, below in `uncertain`."""
    calibration: Path | None = None
    """A file that `streamproc calibrate` wrote: its curves go before the package's for the same weights."""


class LimitSettings(_Section):
    """What a video may ask of the machine; beyond it the video is refused by name."""

    max_pixels_per_frame: Annotated[int, Field(ge=1)] = 8192 * 4608
    max_frames: Annotated[int, Field(ge=1)] = 5_000_000
    max_duration_seconds: Annotated[float, Field(gt=0)] = 48 * 3600.0
    max_file_bytes: Annotated[int, Field(ge=1)] = 256 * 1024 * _MIB
    max_persons_per_gallery: Annotated[int, Field(ge=1)] = 100_000


def _split(value: object) -> object:
    """Allow `a, b` where a list is wanted: an environment variable is awkward as JSON."""
    return (
        [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, str)
        else value
    )


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Hours = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class KafkaSettings(_Section):
    """How to reach Kafka, and what to declare there."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    sasl_username: str | None = None
    sasl_password: SecretStr | None = None
    ssl_cafile: Path | None = None
    ssl_certfile: Path | None = None
    ssl_keyfile: Path | None = None
    topic_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]*$", max_length=100)] = ""
    """Before the name of every topic and group."""
    declare: bool = True
    """False: no topic is ever created; services only check."""
    replication_factor: Annotated[int, Field(ge=1)] = 1
    min_insync_replicas: Annotated[int, Field(ge=1)] = 1
    max_event_bytes: Annotated[int, Field(ge=65536)] = _MIB
    session_timeout_seconds: Seconds = 30
    max_poll_interval_seconds: Seconds = 300


class TopicSettings(_Section):
    """One topic's size and memory."""

    partitions: Annotated[int, Field(ge=1, le=10_000)] = 8
    retention_hours: Hours = 7 * 24


class _KeptADay(TopicSettings):
    retention_hours: Hours = 24


class _KeptAMonth(TopicSettings):
    retention_hours: Hours = 30 * 24


class _CancelTopic(_KeptADay):
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 1  # every worker reads all of it


class _DeadLettersTopic(_KeptAMonth):
    partitions: Annotated[int, Field(ge=1, le=10_000)] = 1


class TopicsSettings(_Section):
    """The topics. `person_embeddings` holds biometric vectors, hence its short memory."""

    video_ready: TopicSettings = TopicSettings()
    person_embeddings: _KeptADay = _KeptADay()
    duplicate_candidates: _KeptAMonth = _KeptAMonth()
    animation_ready: TopicSettings = TopicSettings()
    video_progress: TopicSettings = TopicSettings()
    video_cancel: _CancelTopic = _CancelTopic()
    dead_letters: _DeadLettersTopic = _DeadLettersTopic()


class RemoteSettings(_Section):
    """Which URIs beyond the media root may be fetched: none, unless named here."""

    allowed_hosts: Names = ()
    """For http and https: `host`, `host:port` or `*.example.org`."""
    allowed_buckets: Names = ()
    """For s3: `bucket` or `bucket/prefix`."""
    s3_endpoint_url: str | None = None
    attempts: Annotated[int, Field(ge=1, le=100)] = 4
    timeout_seconds: Seconds = 60


class ServiceSettings(_Section):
    """What every service has: health and metrics, logs, a time to stop in."""

    http_host: str = "127.0.0.1"
    http_port: Annotated[int, Field(ge=0, le=65535)] | None = None
    """None: 8081 worker, 8082 matcher, 8083 animator; 0: any free one."""
    grace_seconds: Seconds = 60
    log_format: Literal["text", "json"] = "text"
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


class JobSettings(_Section):
    """How the worker and the animator take videos."""

    videos_at_once: Annotated[int, Field(ge=1, le=64)] = 2
    attempts: Annotated[int, Field(ge=1, le=100)] = 3
    """Starts of one video that may end with the process; after the last it is a dead letter."""
    time_limit_seconds: Seconds = 6 * 3600
    retry_seconds: Seconds = 1
    """The first wait after a fault of the machine; it doubles up to 64 times this."""


class MatcherSettings(_Section):
    """Where the matcher keeps its table, and for how long."""

    state_folder: Path = Path("~/.local/state/streamproc")
    store: Literal["rocksdict", "memory"] = "rocksdict"
    gallery_expiry_hours: Hours = 7 * 24
    """After a gallery's last event."""
    advertised_url: str | None = None
    """How other matchers' clients reach this one, such as http://matcher-0:8082;

    None: its own host and port.
    """


class AnimatorSettings(_Section):
    """Where animations go."""

    output_uri: str | None = None
    """A folder or an fsspec URI such as s3://bucket/prefix;

    None: `animations` under the media root.
    """


class Settings(BaseSettings):
    """All settings of streamproc; each is described in the README's table."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    clustering: Clustering = Clustering()
    limits: LimitSettings = LimitSettings()
    top_persons: Annotated[int, Field(ge=0)] = 0
    min_track_frames: Annotated[int, Field(ge=1)] = 5
    crops_per_person: Annotated[int, Field(ge=1, le=1000)] = 50
    animate: bool = True
    threads: Annotated[int, Field(ge=0, le=256)] = 0
    crop_memory_mib: Annotated[int, Field(ge=1)] = 128
    cache_folder: Path = Path("~/.cache/streamproc")
    models: Path | None = None
    """Offline folder in which weights of a name are looked for first."""

    bootstrap: Names = ("127.0.0.1:9092",)
    media_root: Path = Path("media")
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicsSettings = TopicsSettings()
    remote: RemoteSettings = RemoteSettings()
    service: ServiceSettings = ServiceSettings()
    jobs: JobSettings = JobSettings()
    matcher: MatcherSettings = MatcherSettings()
    animator: AnimatorSettings = AnimatorSettings()

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
            del (
                dotenv_settings,
                file_secret_settings,
            )  # neither is documented, so neither may surprise
            return (
                init_settings,
                env_settings,
                InitSettingsSource(settings_cls, init_kwargs=from_file),
            )

    try:
        return FromFile(
            **_nested({key: value for key, value in flags.items() if value is not None})
        )
    except ValidationError as error:
        raise UsageError(_describe(error)) from error
    except SettingsError as error:
        raise UsageError(f"environment: {error}") from error


def known_keys() -> list[str]:
    """All keys, dotted, in the order of their definition."""
    return _keys_of(Settings)


def _keys_of(section: type[BaseModel]) -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        kind = info.annotation
        nested = _keys_of(kind) if isinstance(kind, type) and issubclass(kind, _Section) else []
        keys += [f"{name}.{key}" for key in nested] or [name]
    return keys


def _read_file(path: Path) -> dict[str, Any]:
    """Read a settings file as far as keys and sections; what they hold is checked with everything else."""
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"--config {path}: expected a settings file ({error.strerror})") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UsageError(
            f"--config {path}: expected YAML ({' '.join(str(error).split())[:160]})"
        ) from error
    if content is None:
        return {}
    if not isinstance(content, dict) or not all(isinstance(key, str) for key in content):
        raise UsageError(f"--config {path}: expected keys and values, got {content!r:.60}")
    for name, info in Settings.model_fields.items():
        is_section = isinstance(info.annotation, type) and issubclass(info.annotation, _Section)
        if is_section and not isinstance(content.get(name, {}), dict):
            raise UsageError(
                f"--config {path}: expected {name} to hold keys and values, got {content[name]!r:.60}"
            )
    return content


def _check_environment() -> None:
    """Refuse a variable with our prefix that means nothing: it is a mistyped setting."""
    for name in os.environ:
        key = name.removeprefix(PREFIX).lower().replace("__", ".")
        if (
            name.startswith(PREFIX)
            and not name.startswith(_NOT_SETTINGS)
            and key not in (*known_keys(), "config")
        ):
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
    return (
        last_parts[near[0]]
        if near
        else difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.0)[0]
    )


def _describe(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] != "extra_forbidden":
        return f"setting {key}: {first['msg'][:1].lower()}{first['msg'][1:]}, got {first['input']!r:.60}"
    return f"unknown setting {key!r}: did you mean {_nearest(key)!r}?"
