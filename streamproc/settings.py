"""Settings: flags win, then variables STREAMPROC_*, then the settings file, then the defaults.

In the environment two underscores stand for the dot of a nested key:
STREAMPROC_CLUSTERING__SIMILARITY_THRESHOLD. An unknown key, in the file or the environment, raises
a UsageError that names the most similar known one. No other module reads the environment or the
file.
"""

from __future__ import annotations

import difflib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeGuard

import yaml
from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    SecretStr,
    ValidationError,
)
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from streamproc.errors import UsageError
from streamproc.shown import shown, shown_value

if TYPE_CHECKING:
    from collections.abc import Mapping

PREFIX = "STREAMPROC_"
_NOT_SETTINGS = ("STREAMPROC_TEST_", "STREAMPROC_BASE_IMAGES")
"""Prefixes of variables that only the project's own tests read."""
_MIB = 1024 * 1024
_MAX_COUNT = 2**31 - 1
_MAX_BYTES = 2**62


def _without_password(uri: str | None) -> str | None:
    return None if uri is None else shown(uri)


Hours = Annotated[float, Field(gt=0, le=1_000_000, allow_inf_nan=False)]
_ShownUri = Annotated[str | None, PlainSerializer(_without_password, when_used="json")]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Clustering(_Section):
    """How persons are compared.

    The section and its keys are those of the pipeline that streamproc replaces.
    """

    enabled: bool = Field(
        default=True,
        description="False: no network is loaded; replay writes animations and the page only.",
    )
    osnet_model: str | None = Field(
        default=None,
        description=(
            "Weights: a name that `streamproc models list` prints, or a file `.onnx`, `.pth`, "
            "`.pt` or `.safetensors` (`--weights`). None: the package's own."
        ),
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description=(
            "`auto`, `cpu` or `cuda` (`--device`). `auto` is the GPU where there is one that "
            "torch can use."
        ),
    )
    num_best_crops: int = Field(
        default=8, ge=1, le=64, description="How many crops of each person are embedded."
    )
    similarity_threshold: float = Field(
        default=0.70,
        ge=-1,
        le=1,
        allow_inf_nan=False,
        description="A candidate's similarity is above this (`--threshold`).",
    )
    split_tracks: bool = Field(
        default=True,
        description=(
            "Whether a track that seems to hold two people is taken apart, for weights that can "
            "tell. Workers and animators need the same value."
        ),
    )
    min_probability: float = Field(
        default=0.2,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=(
            "Least probability of a candidate, for weights that have a calibration curve. "
            "0 shows all."
        ),
    )
    min_grouped_probability: float = Field(
        default=0.6,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=(
            "The same for two tracks of one video that were judged by their boxes as well and are "
            "in one group: a tracker that breaks people into many pieces makes many such pairs."
        ),
    )
    min_ungrouped_probability: float = Field(
        default=0.7,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="The same for two tracks of one video that are in no group together.",
    )
    likely_probability: float = Field(
        default=0.9,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description=(
            "From this probability on a candidate is in the band `likely`, below in `uncertain`."
        ),
    )
    calibration: Path | None = Field(
        default=None,
        description=(
            "File that `streamproc calibrate` wrote (`--calibration`). Its curves go before the "
            "package's for the same weights. None: the package's own."
        ),
    )


class DetectorSettings(_Section):
    """How people are found in a video that has no tracks."""

    enabled: bool = Field(
        default=True,
        description="False: a video without tracks is refused (`--no-detect`).",
    )
    model: str | None = Field(
        default=None,
        description=(
            "Detector: a name that `streamproc models list` prints, or a file `.onnx` as YOLOX, "
            "ultralytics or RT-DETR export it (`--detector`). None: the package's own."
        ),
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        default="auto",
        description=(
            "`auto`, `cpu` or `cuda`. `auto` is the GPU where there is one that torch can use. "
            "Other detectors than the package's own run on the CPU."
        ),
    )
    input_size: int = Field(
        default=0,
        ge=0,
        le=4096,
        multiple_of=32,
        description=(
            "Longest side of what the detector sees of a frame, in pixels, a multiple of 32. 0: "
            "640 to 1088, by the video's size."
        ),
    )
    every_frames: int = Field(
        default=0,
        ge=0,
        le=1000,
        description="The detector looks at every so many frames. 0: 15 times a second.",
    )
    min_confidence: float = Field(
        default=0.3,
        gt=0,
        le=1,
        allow_inf_nan=False,
        description="Boxes of a lower confidence are left out.",
    )
    output_uri: _ShownUri = Field(
        default=None,
        description=(
            "Where a worker writes the tracks that it finds: a folder below the media root, or a "
            "bucket that the animator may read (`remote.allowed_buckets`). None: `tracks` under "
            "the media root."
        ),
    )
    retention_hours: Hours = Field(
        default=30 * 24,
        description=(
            "How long a worker keeps them in a folder, in hours. In an object store, set a rule "
            "of the store."
        ),
    )


class TrackerSettings(_Section):
    """How found boxes are linked into tracks."""

    high_confidence: float = Field(
        default=0.55,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Boxes from this confidence on go to tracks first, the others then.",
    )
    new_confidence: float = Field(
        default=0.65,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="Boxes from this confidence on may begin a track.",
    )
    lost_seconds: float = Field(
        default=1.0,
        gt=0,
        le=3600,
        allow_inf_nan=False,
        description="A track ends that was not seen for so long, in seconds.",
    )


class LimitSettings(_Section):
    """What a video may ask of the machine; beyond it the video is refused by name."""

    max_pixels_per_frame: int = Field(
        default=8192 * 4608,
        ge=1,
        le=_MAX_COUNT,
        description="Most pixels of a frame: 8192 by 4608.",
    )
    max_frames: int = Field(
        default=5_000_000, ge=1, le=_MAX_COUNT, description="Most frames of a video."
    )
    max_duration_seconds: float = Field(
        default=48 * 3600.0,
        gt=0,
        allow_inf_nan=False,
        description="Longest video, in seconds: two days.",
    )
    max_file_bytes: int = Field(
        default=256 * 1024 * _MIB,
        ge=1,
        le=_MAX_BYTES,
        description="Largest video file, in bytes: 256 GiB.",
    )
    max_persons_per_gallery: int = Field(
        default=100_000,
        ge=1,
        le=_MAX_COUNT,
        description="Most persons in a gallery; further ones are refused by name.",
    )


def _split(value: object) -> object:
    """Allow `a, b` where a list is wanted: an environment variable is awkward as JSON."""
    if not isinstance(value, str):
        return value
    parts = [part.strip() for part in value.split(",")]
    return [part for part in parts if part]


Names = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]
Seconds = Annotated[float, Field(gt=0, le=100_000_000, allow_inf_nan=False)]


class KafkaSettings(_Section):
    """How to reach Kafka, and what to declare there."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = Field(
        default="PLAINTEXT", description="`PLAINTEXT`, `SSL`, `SASL_PLAINTEXT` or `SASL_SSL`."
    )
    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = Field(
        default="PLAIN", description="`PLAIN`, `SCRAM-SHA-256` or `SCRAM-SHA-512`."
    )
    sasl_username: str | None = Field(default=None, description="User name for SASL.")
    sasl_password: SecretStr | None = Field(
        default=None, description="Password for SASL; set it in the environment, not in a file."
    )
    ssl_cafile: Path | None = Field(
        default=None, description="Certificates of the authorities to trust. None: the system's."
    )
    ssl_certfile: Path | None = Field(default=None, description="Certificate of the client.")
    ssl_keyfile: Path | None = Field(default=None, description="Key of the client's certificate.")
    topic_prefix: str = Field(
        default="",
        pattern=r"^[A-Za-z0-9._-]*$",
        max_length=100,
        description="Put before the name of every topic and consumer group.",
    )
    declare: bool = Field(
        default=True, description="False: no topic is ever created; services only check them."
    )
    replication_factor: int = Field(
        default=1, ge=1, le=1000, description="Of topics that are created."
    )
    min_insync_replicas: int = Field(
        default=1, ge=1, le=1000, description="Of topics that are created."
    )
    max_event_bytes: int = Field(
        default=_MIB, ge=65536, le=_MAX_COUNT, description="Largest event, in bytes."
    )
    session_timeout_seconds: Seconds = Field(
        default=30, description="After this time the partitions of a dead service move to others."
    )
    max_poll_interval_seconds: Seconds = Field(
        default=300, description="A service that has not polled for so long counts as hung."
    )


class TopicSettings(_Section):
    """One topic's size, and how long it keeps events."""

    partitions: int = Field(default=8, ge=1, le=10_000, description="Partitions of the topic.")
    retention_hours: Hours = Field(
        default=7 * 24, description="How long an event is kept, in hours."
    )


class _VideoReadyTopic(TopicSettings):
    partitions: int = Field(
        default=8,
        ge=1,
        le=10_000,
        description="Partitions of the topic: so many workers can be busy at most.",
    )


class _PersonEmbeddingsTopic(TopicSettings):
    partitions: int = Field(
        default=8,
        ge=1,
        le=10_000,
        description=(
            "Partitions of the topic: so many matchers can be busy at most. Must not be changed "
            "later."
        ),
    )
    retention_hours: Hours = Field(
        default=24, description="How long an event is kept, in hours. These are biometric vectors."
    )


class _CandidatesTopic(TopicSettings):
    retention_hours: Hours = Field(
        default=30 * 24, description="How long an event is kept, in hours."
    )


class _CancelTopic(TopicSettings):
    # One, because every worker and animator reads all of it.
    partitions: int = Field(default=1, ge=1, le=10_000, description="Partitions of the topic.")
    retention_hours: Hours = Field(
        default=24, description="How long a cancellation holds, in hours."
    )


class _DeadLettersTopic(TopicSettings):
    partitions: int = Field(default=1, ge=1, le=10_000, description="Partitions of the topic.")
    retention_hours: Hours = Field(
        default=30 * 24, description="How long a dead letter is kept, in hours."
    )


class _DecisionsTopic(TopicSettings):
    retention_hours: Hours = Field(
        default=30 * 24,
        description=(
            "How long an event is kept, in hours. The matcher keeps decisions for longer: see "
            "`review.keep_days`."
        ),
    )


class CompactedTopicSettings(_Section):
    """The size of a topic that keeps the last event of each key."""

    partitions: int = Field(default=8, ge=1, le=10_000, description="Partitions of the topic.")


class TopicsSettings(_Section):
    """The topics. `person_embeddings` holds biometric vectors, so it keeps them a day only."""

    video_ready: _VideoReadyTopic = _VideoReadyTopic()
    tracks_ready: TopicSettings = TopicSettings()
    person_embeddings: _PersonEmbeddingsTopic = _PersonEmbeddingsTopic()
    duplicate_candidates: _CandidatesTopic = _CandidatesTopic()
    duplicate_groups: _CandidatesTopic = _CandidatesTopic()
    track_suspects: _CandidatesTopic = _CandidatesTopic()
    animation_ready: TopicSettings = TopicSettings()
    video_progress: TopicSettings = TopicSettings()
    video_cancel: _CancelTopic = _CancelTopic()
    dead_letters: _DeadLettersTopic = _DeadLettersTopic()
    review_decisions: _DecisionsTopic = _DecisionsTopic()
    identities: CompactedTopicSettings = CompactedTopicSettings()


class RemoteSettings(_Section):
    """Which URIs beyond the media root may be fetched: none, unless named here."""

    allowed_hosts: Names = Field(
        default=(),
        description=(
            "Hosts from which `http://` and `https://` are fetched: `host`, `host:port` or "
            "`*.example.org`, separated by commas."
        ),
    )
    allowed_buckets: Names = Field(
        default=(),
        description=(
            "Buckets from which `s3://` is fetched: `bucket` or `bucket/prefix`, separated by "
            "commas. Needs the extra `s3`."
        ),
    )
    s3_endpoint_url: str | None = Field(
        default=None, description="Address of another S3 server. None: Amazon's."
    )
    attempts: int = Field(
        default=4, ge=1, le=100, description="Attempts at a download before the video waits."
    )
    timeout_seconds: Seconds = Field(
        default=60, description="Longest wait for one read, in seconds."
    )
    min_bytes_per_second: float = Field(
        default=10_000,
        ge=0,
        allow_inf_nan=False,
        description=(
            "A server that sends less, in each `remote.timeout_seconds`, counts as one that is "
            "away. 0: any pace."
        ),
    )


class ServiceSettings(_Section):
    """What every service has: health and metrics, logs, a time to stop in."""

    http_host: str = Field(
        default="127.0.0.1", description="Address on which health, metrics and galleries answer."
    )
    http_port: int | None = Field(
        default=None,
        ge=0,
        le=65535,
        description=(
            "Its port (`--http-port`). None: 8081 for a worker, 8082 for a matcher, 8083 for an "
            "animator, 8084 for the live page. 0: any free one."
        ),
    )
    allowed_hosts: Names = Field(
        default=(),
        description=(
            "Further names by which it may be asked, separated by commas. Addresses, names without "
            "a dot, and those that end in `.local`, `.internal` or `.svc` need not be named."
        ),
    )
    grace_seconds: Seconds = Field(
        default=60, description="How long a service may finish its work after SIGTERM, in seconds."
    )
    log_format: Literal["text", "json"] = Field(default="text", description="`text` or `json`.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="`DEBUG`, `INFO`, `WARNING` or `ERROR`."
    )


class JobSettings(_Section):
    """How the worker and the animator take videos."""

    videos_at_once: int = Field(
        default=2, ge=1, le=64, description="Videos that one worker or animator processes at once."
    )
    attempts: int = Field(
        default=3,
        ge=1,
        le=100,
        description=(
            "How often a video is started if the process dies each time; after that it is a dead "
            "letter."
        ),
    )
    fault_attempts: int = Field(
        default=6,
        ge=1,
        le=1000,
        description=(
            "How often a video is tried if the machine fails each time, such as its disk or "
            "another server; after that it is a dead letter. Faults of Kafka do not count."
        ),
    )
    time_limit_seconds: Seconds = Field(
        default=6 * 3600,
        description="Longest time for one video, in seconds. An event may ask for less.",
    )
    retry_seconds: Seconds = Field(
        default=1,
        description=(
            "First wait after a fault of the machine, in seconds. It doubles up to 64 times this."
        ),
    )


class MatcherSettings(_Section):
    """Where the matcher keeps its table, and for how long."""

    state_folder: Path = Field(
        default=Path("~/.local/state/streamproc"),
        description="Folder for the local copy of the table.",
    )
    store: Literal["rocksdict", "memory"] = Field(
        default="rocksdict", description="`rocksdict`, or `memory` for tests."
    )
    gallery_expiry_hours: Hours = Field(
        default=7 * 24, description="A gallery is forgotten so many hours after its last event."
    )
    advertised_url: str | None = Field(
        default=None,
        description=(
            "Where other matchers redirect to for this one's galleries, such as "
            "`http://matcher-0:8082`. None: its own host and port."
        ),
    )


class AnimatorSettings(_Section):
    """Where animations go; `run.json` names the place without a password."""

    output_uri: _ShownUri = Field(
        default=None,
        description=(
            "Folder or fsspec URI for animations, such as `s3://bucket/prefix` (`--output`). "
            "None: `animations` under the media root."
        ),
    )
    retention_hours: Hours = Field(
        default=30 * 24,
        description=(
            "How long an animation is kept in a folder, in hours. In an object store, set a rule "
            "of the store."
        ),
    )


class ReviewSettings(_Section):
    """Where the live page is served, who may see it, and how long decisions are kept."""

    host: str = Field(
        default="127.0.0.1",
        description=(
            "Address on which the live page is served. Beyond the loopback `review.token` or "
            "`review.user_header` is needed."
        ),
    )
    port: int = Field(
        default=8080, ge=0, le=65535, description="Its port (`--port`). 0: any free one."
    )
    token: SecretStr | None = Field(
        default=None,
        description=(
            "What a browser must know, given once as `/?token=…`; 16 characters or more. Set it in "
            "the environment, not in a file. None: the page is open to who reaches it."
        ),
    )
    require_token: bool = Field(
        default=True,
        description=(
            "False: beyond the loopback no token is needed, as something else keeps others away."
        ),
    )
    user_header: str | None = Field(
        default=None,
        description=(
            "The header in which a proxy that checks who asks gives their name, such as "
            "`X-Forwarded-User`. Who is named needs no token, and decisions carry the name."
        ),
    )
    trusted_proxies: Names = Field(
        default=(),
        description=(
            "Addresses or networks of these proxies, separated by commas. From anywhere else a "
            "request with `review.user_header` is refused."
        ),
    )
    matcher_url: str = Field(
        default="http://127.0.0.1:8082",
        description="Any matcher: the live page asks it for galleries, and for other matchers.",
    )
    keep_days: float | None = Field(
        default=None,
        gt=0,
        le=100_000,
        allow_inf_nan=False,
        description=(
            "The matcher forgets the decisions on a gallery so many days after the last of them, "
            "once the gallery itself is forgotten. None: never."
        ),
    )


class Settings(BaseSettings):
    """All settings of streamproc; `deploy/README.md` has a table made of these descriptions."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True
    )

    clustering: Clustering = Clustering()
    detector: DetectorSettings = DetectorSettings()
    tracker: TrackerSettings = TrackerSettings()
    limits: LimitSettings = LimitSettings()
    top_persons: int = Field(
        default=0,
        ge=0,
        le=_MAX_COUNT,
        description="Only the N persons with the most frames (`--top`). 0: everybody.",
    )
    min_track_frames: int = Field(
        default=5, ge=1, le=_MAX_COUNT, description="Persons with fewer boxes are skipped."
    )
    crops_per_person: int = Field(
        default=50, ge=1, le=1000, description="Most crops that are cut of each person."
    )
    animate: bool = Field(default=True, description="Write WebP animations (`--no-animations`).")
    threads: int = Field(
        default=0,
        ge=0,
        le=256,
        description="Threads of decoder and network each. 0: one for each core.",
    )
    crop_memory_mib: int = Field(
        default=128,
        ge=1,
        le=_MAX_COUNT,
        description="Memory for crops, in MiB; what does not fit goes to a temporary file.",
    )
    cache_folder: Path = Field(
        default=Path("~/.cache/streamproc"),
        description=(
            "Folder for exported weights, for what onnxruntime makes of them, and for `models/`, "
            "where `streamproc models pull` puts its files."
        ),
    )
    umask: str = Field(
        default="077",
        pattern="^[0-7]{3}$",
        description=(
            "Permissions that files and folders of vectors, people's pictures and the local copy "
            "are written without, as for the command `umask`: `077` leaves them to their owner, "
            "`027` lets the group read."
        ),
    )
    models: Path | None = Field(
        default=None,
        description=(
            "Folder that is searched first for weights of a name, on a machine with no network "
            "(`STREAMPROC_MODELS`)."
        ),
    )

    bootstrap: Names = Field(
        default=("127.0.0.1:9092",),
        description="Kafka's addresses, separated by commas (`--bootstrap`).",
    )
    media_root: Path = Field(
        default=Path("media"), description="Folder that relative URIs refer to (`--media-root`)."
    )
    kafka: KafkaSettings = KafkaSettings()
    topics: TopicsSettings = TopicsSettings()
    remote: RemoteSettings = RemoteSettings()
    service: ServiceSettings = ServiceSettings()
    jobs: JobSettings = JobSettings()
    matcher: MatcherSettings = MatcherSettings()
    animator: AnimatorSettings = AnimatorSettings()
    review: ReviewSettings = ReviewSettings()

    def umask_bits(self) -> int:
        """The permissions that files are written without."""
        return int(self.umask, 8)

    def expanded_cache_folder(self) -> Path:
        """The folder for exported weights, `~` resolved."""
        return self.cache_folder.expanduser()


def load_settings(flags: Mapping[str, object], *, config_file: Path | None) -> Settings:
    """Merge flags, environment, file and defaults; raises UsageError for a bad key or value.

    `flags` are by dotted key ("clustering.device"), None for a flag that was not given.
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
            # Neither is documented, so neither may have an effect.
            del dotenv_settings
            del file_secret_settings
            return (
                init_settings,
                env_settings,
                InitSettingsSource(settings_cls, init_kwargs=from_file),
            )

    given = {key: value for key, value in flags.items() if value is not None}
    try:
        return FromFile(**_nested(given))
    except ValidationError as error:
        raise UsageError(_describe(error)) from error
    except SettingsError as error:
        raise UsageError(f"environment: {error}") from error


def known_keys() -> list[str]:
    """Return all keys, dotted, in the order of their definition."""
    return _keys_of(Settings)


def _keys_of(section: type[BaseModel]) -> list[str]:
    keys = []
    for name, info in section.model_fields.items():
        if _is_section(info.annotation):
            keys += [f"{name}.{key}" for key in _keys_of(info.annotation)]
        else:
            keys.append(name)
    return keys


def _is_section(annotation: object) -> TypeGuard[type[_Section]]:
    return isinstance(annotation, type) and issubclass(annotation, _Section)


def _read_file(path: Path) -> dict[str, Any]:
    """Read a settings file, and check that sections hold keys; values are checked later."""
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
        if _is_section(info.annotation) and not isinstance(content.get(name, {}), dict):
            raise UsageError(
                f"--config {path}: expected {name} to hold keys and values, "
                f"got {content[name]!r:.60}"
            )
    return content


def _check_environment() -> None:
    """Raise UsageError for a variable with the prefix that is no setting: it is mistyped."""
    known = {*known_keys(), "config"}
    for name in os.environ:
        if not name.startswith(PREFIX) or name.startswith(_NOT_SETTINGS):
            continue
        key = name.removeprefix(PREFIX).lower().replace("__", ".")
        if key not in known:
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
    """Return the known key that is most similar: in its last part, or else as a whole."""
    by_last_part = {known.rpartition(".")[2]: known for known in known_keys()}
    near = difflib.get_close_matches(key.rpartition(".")[2], by_last_part, n=1, cutoff=0.6)
    if near:
        return by_last_part[near[0]]
    return difflib.get_close_matches(key, known_keys(), n=1, cutoff=0.0)[0]


def _describe(error: ValidationError) -> str:
    """Say on one line what the first fault is."""
    first = error.errors(include_url=False)[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"unknown setting {key!r}: did you mean {_nearest(key)!r}?"
    message = first["msg"]
    came = "another value" if key.endswith(("password", "token")) else shown_value(first["input"])
    return f"setting {key}: {message[:1].lower()}{message[1:]}, got {came}"
