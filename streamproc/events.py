"""The values on the wire: one class a kind of event, each knowing its topic and its JSON.

Replay feeds the very same events to the matcher's core and writes the ones that come out to a file.
The JSON Schemas in `schemas/` are made from these classes (`python schemas/make.py`; a test
compares). Unknown fields are ignored on input, so that a newer producer can add some. Ids are
hashes of what an event says: the same again has the same id.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import orjson
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    StringConstraints,
    TypeAdapter,
    ValidationError,
    model_serializer,
    model_validator,
)

from streamproc.errors import EventError
from streamproc.ids import hash_of, person_key_of, video_id_of
from streamproc.shown import shown_value
from streamproc.types import BoxLayout, TrackFormatName  # noqa: TC001 - pydantic reads them
from streamproc.version import __version__

PRODUCER = f"streamproc/{__version__}"

Id = Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f]+$")]
Uri = Annotated[str, StringConstraints(min_length=1, max_length=4096, pattern=r"^[^\x00-\x1f]+$")]
Label = Annotated[str, StringConstraints(max_length=1024)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Finite = Annotated[
    float, Field(ge=-1e15, le=1e15, allow_inf_nan=False)
]  # so that sums and differences are finite too
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Cosine = Annotated[float, Field(ge=-1, le=1, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=0, le=2**53 - 1)]  # larger integers do not survive JSON everywhere
PersonId = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)]  # the tracker's; others join by keys
ObjectClass = Annotated[
    str, Field(coerce_numbers_to_str=True), StringConstraints(min_length=1, max_length=256)
]
FrameNumber = Annotated[int, Field(ge=0, le=2**40)]
FrameStride = Annotated[int, Field(ge=1, le=1_000_000)]
Box = tuple[Finite, Finite, Finite, Finite]
MAX_FORGOTTEN = 1000
"""The most tracks, or videos, that one event names to be forgotten."""


def _check_timestamp(text: str) -> str:
    if datetime.fromisoformat(text).tzinfo is None:
        raise ValueError("expected RFC 3339 with a time zone, such as 2026-11-24T09:30:00Z")
    return text


Timestamp = Annotated[
    str, Field(json_schema_extra={"format": "date-time"}), AfterValidator(_check_timestamp)
]


def now() -> str:
    """The time as events carry it: RFC 3339, UTC, milliseconds."""
    return _rfc3339(datetime.now(UTC))


def timestamp_of(ms: float) -> str:
    """Milliseconds since 1970 as events carry a time, see `now`."""
    return _rfc3339(datetime.fromtimestamp(ms / 1000, UTC))


def _rfc3339(time: datetime) -> str:
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_submitted_at(text: str, name: str = "submitted_at") -> None:
    """Raise EventError for a time after tomorrow, or before what can be counted from.

    Of two runs of a video the one submitted later counts: a time of the far future would keep the
    video as it is for ever. `name` is the field's.
    """
    try:
        is_possible = datetime.fromisoformat(text) <= datetime.now(UTC) + timedelta(days=1)
        datetime.fromisoformat(text).timestamp()
    except OverflowError:  # year 1 of a time zone
        is_possible = False
    if not is_possible:
        raise EventError(f"{name}: expected a time, tomorrow at the latest, got {text}")


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", ser_json_inf_nan="strings")


def _base64(values: np.ndarray[Any, Any]) -> str:
    return base64.b64encode(values.astype("<f4").tobytes()).decode()


def _check_finite(values: np.ndarray[tuple[int], np.dtype[np.float32]]) -> None:
    # A sum of squares that is finite says that all are; one that is not may have overflowed.
    with np.errstate(over="ignore", invalid="ignore"):
        squares = float(np.dot(values, values))
    if not math.isfinite(squares) and not np.isfinite(values).all():
        raise ValueError("expected finite numbers, got NaN or infinity")


class Vector(_Model):
    """A float32 vector as base64 of its little-endian bytes."""

    data: str
    dtype: Literal["float32"] = "float32"
    dim: Annotated[int, Field(ge=1, le=65536)]

    @classmethod
    def of(cls, values: np.ndarray[Any, Any]) -> Self:
        """Pack (dim,) numbers; raises ValueError where one is NaN or infinite."""
        packed = np.array(values, "<f4")
        _check_finite(packed)
        packed.flags.writeable = False
        vector = cls.model_construct(data=_base64(packed), dim=len(packed))
        vector.__dict__["_values"] = packed  # else `numpy` would unpack what was just packed
        return vector

    def numpy(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        """Unpack to (dim,) float32, read-only."""
        return self._values

    # Kept: decoding costs more than comparing with a hundred rows, and so does a private attribute
    # of pydantic's.
    @cached_property
    def _values(self) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
        return np.frombuffer(binascii.a2b_base64(self.data, strict_mode=True), "<f4").astype(
            np.float32, copy=False
        )

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and self.data == other.data

    def __hash__(self) -> int:
        return hash(self.data)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        try:
            values = self._values
        except (binascii.Error, ValueError) as error:
            raise ValueError("expected base64 of whole float32 numbers") from error
        if len(values) != self.dim:
            raise ValueError(f"expected {self.dim} numbers, got {len(values)}")
        _check_finite(values)
        return self


class Segments(_Model):
    """Mean vectors of consecutive parts of one person's crops, in time order.

    (k, dim) float32, k at most 4.
    """

    data: str
    dtype: Literal["float32"] = "float32"
    shape: tuple[Annotated[int, Field(ge=1, le=4)], Annotated[int, Field(ge=1, le=65536)]]
    crop_counts: list[Count]

    @classmethod
    def of(cls, values: np.ndarray[Any, Any], crop_counts: list[int]) -> Self:
        """Pack (k, dim) numbers."""
        return cls(data=_base64(values), shape=values.shape, crop_counts=crop_counts)

    def numpy(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Unpack to (k, dim) float32, read-only."""
        # Decoded whenever it is asked for: a large gallery would keep much that is seldom looked
        # at.
        return np.frombuffer(binascii.a2b_base64(self.data, strict_mode=True), "<f4").reshape(
            self.shape
        )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        try:
            values = self.numpy()
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"expected base64 of {self.shape[0]} x {self.shape[1]} float32 numbers"
            ) from error
        if not np.isfinite(values).all():
            raise ValueError("expected finite numbers, got NaN or infinity")
        return self


class Trajectory(_Model):
    """Where a person was in its video: at most 64 boxes of its track, and the video's measures.

    `frame_indices` ascend; `data` are as many boxes (k, 4), xyxy in pixels of the upright picture,
    which is `width_px` x `height_px`. The first ten and the last ten boxes of the track are among
    them, and in between those whose frame index is a multiple of a power of two.
    """

    frame_indices: Annotated[list[Count], Field(min_length=1, max_length=64)]
    data: str
    dtype: Literal["float32"] = "float32"
    width_px: Annotated[int, Field(ge=1, le=2**31)]
    height_px: Annotated[int, Field(ge=1, le=2**31)]
    frames_per_second: Annotated[float, Field(gt=0, le=1e6, allow_inf_nan=False)]

    @classmethod
    def of(cls, frame_indices: list[int], boxes_xyxy: np.ndarray[Any, Any], **video: Any) -> Self:
        """Pack boxes (k, 4); `video` are the other fields."""
        return cls(frame_indices=frame_indices, data=_base64(boxes_xyxy), **video)

    def numpy(self) -> np.ndarray[tuple[int, int], np.dtype[np.float32]]:
        """Unpack the boxes to (k, 4) float32, read-only."""
        return np.frombuffer(binascii.a2b_base64(self.data, strict_mode=True), "<f4").reshape(
            (len(self.frame_indices), 4)
        )

    @model_validator(mode="after")
    def _complete(self) -> Self:
        try:
            boxes = self.numpy()
        except (binascii.Error, ValueError) as error:
            raise ValueError(
                f"expected base64 of {len(self.frame_indices)} x 4 float32 numbers"
            ) from error
        _check_finite(boxes.ravel())
        if any(later <= one for one, later in pairwise(self.frame_indices)):
            raise ValueError("expected frame indices that ascend")
        return self


class ModelInfo(_Model):
    """What made a vector; vectors of different `weights_sha256` are never compared."""

    name: Label
    architecture: Label = "osnet"
    weights_sha256: Sha256


class CropInfo(_Model):
    """Where a crop was cut; `box_xyxy` in pixels of the upright picture."""

    frame_index: Count
    pts_seconds: Finite
    box_xyxy: Box
    quality: Share


class Event(_Model):
    """What every event out carries."""

    topic: ClassVar[str]
    key_field: ClassVar[str]
    """The field whose value is the record's key."""
    identity: ClassVar[tuple[str, ...]]
    """The fields that make the event what it is: equal ones have an equal `event_id`."""
    later_identity: ClassVar[tuple[str, ...]] = ()
    """Fields that came later, and are part of it where they are given."""

    schema_version: Literal[1] = 1
    event_id: Annotated[str, StringConstraints(max_length=256)] = ""
    occurred_at: Timestamp = Field(default_factory=now)
    producer: str = PRODUCER

    @classmethod
    def make(cls, **fields: Any) -> Self:
        """Build an event with its `event_id`."""
        event = cls(**fields)
        said = event._said()
        # In place, as nobody has it yet: a copy takes a fifth of the time of all this.
        event.__dict__["event_id"] = hash_of(cls.topic, said)
        event.__pydantic_fields_set__.add("event_id")
        return event

    def _said(self) -> dict[str, Any]:
        """What the event's id is a hash of."""
        given = {name for name in self.later_identity if getattr(self, name) is not None}
        return self.model_dump(include={*self.identity, *given}, mode="json")

    def saying(self, **changes: Any) -> Self:
        """Return this event with other values of some fields, and the `event_id` of that."""
        return self.make(**(dict(self) | {"event_id": ""} | changes))

    @property
    def key(self) -> str:
        """The record's key: events of one key are in one partition, in order."""
        return str(getattr(self, self.key_field))

    @property
    def partition_key(self) -> str:
        """What says the record's partition, as the key does for nearly all events."""
        return self.key

    @property
    def value(self) -> bytes | None:
        """The record's value; None takes back what was said under the key."""
        return self.to_json()

    def to_json(self) -> bytes:
        """Serialise; fields without a value are left out."""
        return orjson.dumps(self.model_dump(exclude_none=True, mode="json"))

    @classmethod
    def from_json(cls, data: bytes) -> Self:
        """Parse and check; raises EventError, which names the field, what was expected and came."""
        try:
            return cls.model_validate_json(data)
        except ValidationError as error:
            raise EventError(f"{cls.topic}: {describe(error)}") from error


def describe(error: ValidationError) -> str:
    """The first fault of a failed validation in one line: which field, what is wrong, what came."""
    first = error.errors(include_url=False)[0]
    field = ".".join(str(part) for part in first["loc"]) or "the event"
    if first["type"] == "json_invalid":  # what it holds may be anybody's secret
        came = f"{len(first['input'])} bytes or characters"
    else:
        came = shown_value(first["input"])
    return f"{field}: {first['msg'].removeprefix('Value error, ')} (got {came})"


class TracksRef(_Model):
    """Where a video's tracks are; `uri` as for the video.

    `boxes` says what a box's four numbers are, `normalised` that they are shares of the picture's
    size; absent, the format says so. `class` keeps one class, by number or name.
    """

    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True)

    uri: Uri
    format: TrackFormatName | None = None
    sha256: Sha256 | None = None
    size_bytes: Count | None = None
    first_frame_number: FrameNumber | None = None
    frame_stride: FrameStride | None = None
    boxes: BoxLayout | None = None
    normalised: bool | None = None
    object_class: ObjectClass | None = Field(default=None, alias="class")

    @model_serializer(mode="wrap")
    def _without_later_fields(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # An `event_id` is a hash of what is said: fields that came later and say nothing must not
        # change the ids of events as they were before.
        said: dict[str, Any] = serialise(self)
        for name in ("boxes", "normalised"):
            if said.get(name) is None:
                said.pop(name, None)
        said.pop("object_class", None)
        said.pop("class", None)
        return said if self.object_class is None else said | {"class": self.object_class}


class AskedDetector(_Model):
    """How people are found in one video; each as in the settings `detector.*`.

    `enabled`: true, they are found in the frames whatever lies beside the video; false, never;
    absent, where no tracks are named and none lie beside it. `model` is a name that `streamproc
    models list` prints: an event names no file of the worker's machine.
    """

    enabled: bool | None = None
    model: Annotated[str, StringConstraints(min_length=1, max_length=256)] | None = None
    input_size: Annotated[int, Field(ge=0, le=4096, multiple_of=32)] | None = None
    every_frames: Annotated[int, Field(ge=0, le=1000)] | None = None
    min_confidence: Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)] | None = None


class AskedTracker(_Model):
    """How found boxes are linked in one video; each as in the settings `tracker.*`."""

    high_confidence: Share | None = None
    new_confidence: Share | None = None
    lost_seconds: Annotated[float, Field(gt=0, le=3600, allow_inf_nan=False)] | None = None


class VideoOptions(_Model):
    """What a producer may ask for one video; absent: the worker's settings."""

    top_persons: Count | None = None
    min_track_frames: Annotated[int, Field(ge=1)] | None = None
    crops_per_person: Annotated[int, Field(ge=1, le=1000)] | None = None
    crops_embedded: Annotated[int, Field(ge=1, le=64)] | None = None
    similarity_threshold: Cosine | None = None
    animate: bool | None = None
    time_limit_seconds: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    detector: AskedDetector | None = None
    tracker: AskedTracker | None = None

    @model_serializer(mode="wrap")
    def _without_later_fields(self, serialise: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # As in TracksRef: the ids of events that say nothing of these stay as they were.
        said: dict[str, Any] = serialise(self)
        for name in ("detector", "tracker"):
            if said.get(name) is None:
                said.pop(name, None)
        return said


class VideoReady(Event):
    """A video to look at; `video_uri` is all that is required. Topic `video-ready`, from anyone."""

    topic: ClassVar[str] = "video-ready"
    key_field: ClassVar[str] = "video_id"
    identity: ClassVar[tuple[str, ...]] = (
        "video_uri",
        "video_id",
        "gallery_id",
        "tracks",
        "options",
        "submitted_at",
    )

    video_uri: Uri
    video_id: Id = ""  # filled by the validator below: never empty
    gallery_id: Id = ""
    video_sha256: Sha256 | None = None
    video_size_bytes: Count | None = None
    tracks: TracksRef | None = None
    recorded_at: Timestamp | None = None
    camera_id: Label | None = None
    submitted_at: Timestamp | None = None
    options: VideoOptions = VideoOptions()
    labels: dict[Label, Label] = {}

    @model_validator(mode="before")
    @classmethod
    def _ids(cls, data: Any) -> Any:
        if isinstance(data, dict) and isinstance(data.get("video_uri"), str):
            video_id = data.get("video_id") or video_id_of(data["video_uri"])
            return data | {"video_id": video_id, "gallery_id": data.get("gallery_id") or video_id}
        return data


class TracksReady(VideoReady):
    """The tracks that a worker found in a video: all that `video-ready` said of it, and these.

    Topic `tracks-ready`, from the worker, before the run's `video-closed`. For the animator, and
    whoever wants the tracks.
    """

    topic: ClassVar[str] = "tracks-ready"
    key_field: ClassVar[str] = "video_id"
    identity: ClassVar[tuple[str, ...]] = (
        "video_id",
        "gallery_id",
        "run_id",
        "submitted_at",
        "tracks",
        "options",
    )

    run_id: Id
    tracks: TracksRef
    submitted_at: Timestamp


class VideoCancel(Event):
    """A video that nobody wants any more, begun or not. Topic `video-cancel`, from anyone."""

    topic: ClassVar[str] = "video-cancel"
    key_field: ClassVar[str] = "video_id"
    identity: ClassVar[tuple[str, ...]] = ("video_id", "occurred_at")

    video_id: Id
    reason: Label | None = None


class PersonEmbedding(Event):
    """One person of one run: its vector, and the evidence for it.

    Topic `person-embeddings`, kind `person`. `started_at` is when the worker began the run: of two
    runs that were submitted at the same time, as where a worker died, the one begun later holds.

    A person whose track is found while the video is decoded comes several times: `revision` counts
    from 1, the highest of a run holds, and `final` is true once its track has ended. It does not
    come again at its end if nothing was added since.

    A track that seems to hold two people comes in parts: `part` counts from 1 in time order, and is
    in the person key (`VIDEO/7#2`). `seen_with` are tracks seen apart from this person.
    `seen_with_keys`, which parts have, says it by person key, where a track in parts has one for
    each; the other parts of its own track are among them.
    """

    topic: ClassVar[str] = "person-embeddings"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = (
        "kind",
        "gallery_id",
        "person_key",
        "run_id",
        "vector",
        "seen_with",
    )
    later_identity: ClassVar[tuple[str, ...]] = ("revision", "part", "seen_with_keys")

    kind: Literal["person"] = "person"
    gallery_id: Id
    video_id: Id
    run_id: Id
    submitted_at: Timestamp
    person_id: PersonId
    person_key: Id
    vector: Vector
    model: ModelInfo
    crops: list[CropInfo]
    crop_count: Count
    segments: Segments | None = None
    first_frame_index: Count
    last_frame_index: Count
    first_seen_seconds: Finite
    last_seen_seconds: Finite
    frames_tracked: Count
    seen_with: list[PersonId] = []
    similarity_threshold: Cosine | None = None
    recorded_at: Timestamp | None = None
    camera_id: str | None = None
    trajectory: Trajectory | None = None
    started_at: Timestamp | None = None
    revision: Annotated[int, Field(ge=1, le=2**31)] | None = None
    final: bool | None = None
    part: Annotated[int, Field(ge=1, le=2**31)] | None = None
    seen_with_keys: list[Id] | None = None

    @property
    def track_key(self) -> str:
        """The person key that the whole track has."""
        return person_key_of(self.video_id, self.person_id)

    @property
    def keys_seen_apart(self) -> list[str]:
        """Who was seen apart from this person, by person key."""
        if self.seen_with_keys is not None:
            return self.seen_with_keys
        return [person_key_of(self.video_id, person_id) for person_id in self.seen_with]

    @model_validator(mode="after")
    def _key_fits(self) -> Self:
        expected = person_key_of(self.video_id, self.person_id, self.part)
        if self.person_key != expected:
            raise ValueError(f"person_key: expected {expected!r}, got {self.person_key!r}")
        return self


class SkippedPerson(_Model):
    """A person of the run that has no embedding, and why."""

    person_id: PersonId
    reason: str


class VideoClosed(Event):
    """After the last person of a run: who the run's persons are.

    Topic `person-embeddings`, kind `video-closed`; `started_at` as in `person`. `revisions` are the
    last ones of `person_ids`, in their order, where persons have some. Where tracks came in parts,
    `person_keys` names all persons of the run, and `person_ids` those that are whole tracks.
    """

    topic: ClassVar[str] = "person-embeddings"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = (
        "kind",
        "gallery_id",
        "video_id",
        "run_id",
        "outcome",
        "person_ids",
    )
    later_identity: ClassVar[tuple[str, ...]] = ("person_keys",)

    kind: Literal["video-closed"] = "video-closed"
    gallery_id: Id
    video_id: Id
    run_id: Id
    submitted_at: Timestamp
    outcome: Literal["done", "cancelled", "failed"]
    person_ids: list[PersonId]
    skipped: list[SkippedPerson] = []
    frame_count: Count
    truncated: bool = False
    started_at: Timestamp | None = None
    revisions: list[Count] | None = None
    person_keys: list[Id] | None = None


class GalleryExpired(Event):
    """A gallery was not heard of for its time: its rows go, without a word on its candidates.

    Topic `person-embeddings`, kind `gallery-expired`, written by the matcher that owns the gallery.
    It does nothing where events came after `last_event_at`, the gallery's last one as its sender
    knew it. With `decisions` it is the reviewers' decisions that go, and `last_event_at` is when
    the last of them came.
    """

    topic: ClassVar[str] = "person-embeddings"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = ("kind", "gallery_id", "last_event_at")

    kind: Literal["gallery-expired"] = "gallery-expired"
    gallery_id: Id
    last_event_at: Timestamp
    decisions: bool | None = None


class Forgotten(Event):
    """People who are to be forgotten, with all that is kept of them.

    Topic `person-embeddings`, kind `forgotten`, from `streamproc forget`. `person_keys` are tracks,
    `video_ids` are videos with everybody in them, and with `everything` it is the whole gallery:
    then `video_ids` are those whose files go. It holds for what was submitted or decided before the
    record came. What is announced later comes back.
    """

    topic: ClassVar[str] = "person-embeddings"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = (
        "kind",
        "gallery_id",
        "person_keys",
        "video_ids",
        "everything",
        "occurred_at",
    )

    kind: Literal["forgotten"] = "forgotten"
    gallery_id: Id
    person_keys: Annotated[list[Id], Field(max_length=MAX_FORGOTTEN)] = []
    video_ids: Annotated[list[Id], Field(max_length=MAX_FORGOTTEN)] = []
    everything: bool = False

    @model_validator(mode="after")
    def _names_somebody(self) -> Self:
        if not (self.person_keys or self.video_ids or self.everything):
            raise ValueError("person_keys, video_ids or everything: expected one of them")
        for key in self.person_keys:
            video_id, _, number = key.rpartition("/")
            if not video_id or re.fullmatch(r"-?[0-9]{1,19}", number) is None:
                raise ValueError("person_keys: expected tracks, each VIDEO_ID/NUMBER")
        return self


class CandidatePerson(_Model):
    """One of the two persons of a candidate; `part` is of a part of a track."""

    person_key: Id
    video_id: Id
    person_id: PersonId
    run_id: Id
    first_frame_index: Count
    last_frame_index: Count
    first_seen_seconds: Finite
    last_seen_seconds: Finite
    crop_count: Count
    best_crop: CropInfo | None = None
    part: Annotated[int, Field(ge=1, le=2**31)] | None = None

    @cached_property
    def said(self) -> orjson.Fragment:
        """This as JSON with sorted keys: what ids are hashes of. Kept, as one has many pairs."""
        fields = self.model_dump(mode="json")
        if self.part is None:  # a later field: the ids of events without it stay as they were
            del fields["part"]
        said = orjson.dumps(fields, option=orjson.OPT_SORT_KEYS)
        return orjson.Fragment(bytes(memoryview(said)))  # orjson's own takes 4 KiB however short


class DuplicateCandidate(Event):
    """A pair that may be one person, or that no longer is thought to be.

    Topic `duplicate-candidates`.

    `probability` and `band` are there where the weights have a calibration curve; `calibration_id`
    names it and the method. They are first estimates until both videos are `done`: then all pairs
    are judged again, together. `group_id` is the group of both as this was said; the event does not
    come again because that changes, as `duplicate-groups` says what is in a group.
    """

    topic: ClassVar[str] = "duplicate-candidates"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = (
        "candidate_id",
        "state",
        "reason",
        "similarity",
        "probability",
        "band",
        "calibration_id",
        "persons",
        "model",
    )

    candidate_id: Id
    gallery_id: Id
    state: Literal["proposed", "updated", "withdrawn"]
    reason: (
        Literal["below-threshold", "below-probability", "veto", "person-removed", "decided"] | None
    ) = None
    persons: tuple[CandidatePerson, CandidatePerson]
    similarity: Cosine
    similarity_threshold: Cosine
    probability: Share | None = None
    band: Literal["likely", "uncertain"] | None = None
    calibration_id: Id | None = None
    group_id: Id | None = None
    time_gap_seconds: Finite | None = None
    vetoes_checked: list[str] = ["seen-apart"]
    model: ModelInfo
    gallery_person_count: Count

    def _said(self) -> dict[str, Any]:
        # As `model_dump` says it, at a third of the cost.
        said: dict[str, Any] = {name: getattr(self, name) for name in self.identity}
        persons = [person.said for person in self.persons]
        return said | {"persons": persons, "model": self.model.model_dump(mode="json")}


class DuplicateGroup(Event):
    """Persons of a gallery who are proposed as one, or are no longer. Topic `duplicate-groups`.

    Decided when a video is `done`, of all pairs together. `person_keys` ascend; `group_id` is a
    hash of the gallery and the smallest of them. `probability`, absent where a group is withdrawn,
    is that all are one person.
    """

    topic: ClassVar[str] = "duplicate-groups"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = (
        "group_id",
        "state",
        "person_keys",
        "probability",
        "band",
        "calibration_id",
    )

    group_id: Id
    gallery_id: Id
    state: Literal["proposed", "updated", "withdrawn"]
    person_keys: Annotated[list[Id], Field(min_length=2)]
    probability: Share | None = None
    band: Literal["likely", "uncertain"] | None = None
    calibration_id: Id | None = None


class SuspectPart(_Model):
    """One of the two parts of a track that seems to hold two people."""

    person_key: Id
    first_frame_index: Count
    last_frame_index: Count
    first_seen_seconds: Finite
    last_seen_seconds: Finite
    frames_tracked: Count
    crop_count: Count
    best_crop: CropInfo


class TrackSuspect(Event):
    """A track that seems to hold two people, as after an identity switch. Topic `track-suspects`.

    Said by the worker before the person events of both `parts`, which come in place of the whole
    track's. `frame_index` is the first frame of the second part, `probability` that there are two
    people. `person_key` is that of the whole track.
    """

    topic: ClassVar[str] = "track-suspects"
    key_field: ClassVar[str] = "gallery_id"
    identity: ClassVar[tuple[str, ...]] = ("gallery_id", "person_key", "run_id", "frame_index")

    gallery_id: Id
    video_id: Id
    run_id: Id
    submitted_at: Timestamp
    person_id: PersonId
    person_key: Id
    frame_index: Count
    seconds: Finite
    probability: Share
    parts: tuple[SuspectPart, SuspectPart]
    model: ModelInfo


class Fault(_Model):
    """Why something failed: a `code` for programs, a `text` for people."""

    code: str
    text: str


class Warned(_Model):
    """Something that was repaired or left out, and how often."""

    code: str
    text: str
    count: Count = 1


class VideoProgress(Event):
    """Where a video stands.

    Topic `video-progress`: `embedded` is the worker's last word, `done` the matcher's.

    `done`: all candidates of the video are out. The matcher knows no frames, so what only the
    worker knows is optional.
    """

    topic: ClassVar[str] = "video-progress"
    key_field: ClassVar[str] = "video_id"
    identity: ClassVar[tuple[str, ...]] = (
        "gallery_id",
        "video_id",
        "run_id",
        "attempt",
        "state",
        "candidate_count",
        "frames_decoded",
        "persons_embedded",
        "error",
    )

    gallery_id: Id
    video_id: Id
    run_id: Id | None = None
    attempt: Annotated[int, Field(ge=1)] | None = None
    state: Literal["accepted", "running", "retrying", "embedded", "done", "failed", "cancelled"]
    fraction: Share | None = None
    frames_decoded: Count | None = None
    frames_planned: Count | None = None
    persons_total: Count | None = None
    persons_embedded: Count | None = None
    crops_embedded: Count | None = None
    candidate_count: Count | None = None
    elapsed_seconds: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    warnings: list[Warned] = []
    error: Fault | None = None


class CropStrip(BaseModel):
    """A still picture (WebP) of a person's embedded crops side by side, the best first."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    uri: str
    sha256: Sha256
    size_bytes: Count
    width_px: Count
    height_px: Count
    frame_indices: list[Count]


class AnimationReady(Event):
    """A person's animation is there, or will not come. Topic `animation-ready`.

    `crops` is there with an animation, but not in the events of streamproc before it made strips.
    """

    topic: ClassVar[str] = "animation-ready"
    key_field: ClassVar[str] = "video_id"
    identity: ClassVar[tuple[str, ...]] = (
        "gallery_id",
        "person_key",
        "run_id",
        "state",
        "uri",
        "sha256",
        "error",
    )

    gallery_id: Id
    video_id: Id
    run_id: Id
    person_id: int
    person_key: Id
    state: Literal["ready", "failed", "skipped"]
    uri: str | None = None
    sha256: Sha256 | None = None
    size_bytes: Count | None = None
    media_type: Literal["image/webp"] = "image/webp"
    width_px: Count | None = None
    height_px: Count | None = None
    frame_count: Count | None = None
    frames_per_second: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    frame_indices: list[Count] = []
    crops: CropStrip | None = None
    error: Fault | None = None


class _OfIdentity(Event):
    """What events on an identity have in common: one key each, and the partition of its gallery."""

    topic: ClassVar[str] = "identities"
    key_field: ClassVar[str] = "identity_id"

    gallery_id: Id
    identity_id: Id

    @property
    def key(self) -> str:
        """A JSON array: the gallery and the identity."""
        return orjson.dumps([self.gallery_id, self.identity_id]).decode()

    @property
    def partition_key(self) -> str:
        """The gallery: what is said of it is in one partition."""
        return self.gallery_id


class PersonIdentity(_OfIdentity):
    """What reviewers decided of one person. Topic `identities`, from the matcher.

    `person_keys` ascend: the tracks that are one person. Where `conflicts` name pairs that must not
    be one person among those that this track was joined with, it is one track alone, until that is
    solved. `identity_id` is a hash of the gallery and the smallest key. A track of which nothing is
    decided has no such event; a record without a value takes back what was said under its key.
    """

    identity: ClassVar[tuple[str, ...]] = (
        "gallery_id",
        "person_keys",
        "verified",
        "wanted",
        "conflicts",
    )

    person_keys: Annotated[list[Id], Field(min_length=1)]
    verified: bool = False
    wanted: bool | None = None
    conflicts: list[tuple[Id, Id]] = []


class PersonIdentityGone(_OfIdentity):
    """Nothing is decided of an identity any more: a record without a value."""

    identity: ClassVar[tuple[str, ...]] = ("gallery_id", "identity_id")

    @property
    def value(self) -> None:
        """None: it takes back what was said under the key."""
        return


Embedded = Annotated[
    PersonEmbedding | VideoClosed | GalleryExpired | Forgotten, Field(discriminator="kind")
]
"""What `person-embeddings` carries."""

_EMBEDDED: TypeAdapter[PersonEmbedding | VideoClosed | GalleryExpired | Forgotten] = TypeAdapter(
    Embedded
)


def parse_embedded(data: bytes) -> PersonEmbedding | VideoClosed | GalleryExpired | Forgotten:
    """Parse a value of `person-embeddings`; raises EventError as `from_json` does."""
    try:
        return _EMBEDDED.validate_json(data)
    except ValidationError as error:
        raise EventError(f"person-embeddings: {describe(error)}") from error
