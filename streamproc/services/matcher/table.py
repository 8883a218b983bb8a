"""The matcher's table entries: how rows and records are written as bytes, and where they belong.

One entry a person and one a video. A person's entry holds its event as it came, byte for byte, so
that nothing is serialised twice; the value's other parts are small. Entries of one gallery lie
together, in the partition of its id.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

import orjson
from aiokafka.partitioner import murmur2
from pydantic import BaseModel, ConfigDict, Field

from streamproc.errors import MachineError
from streamproc.events import GalleryExpired, PersonEmbedding, VideoClosed
from streamproc.gallery import (
    UNCALIBRATED,
    Calibration,
    Gallery,
    Judgement,
    Neighbour,
    Outcome,
    Row,
    VideoRecord,
    Writes,
    apply,
    expire,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

_MAX_MS = 2**53 - 1


def partition_of(gallery_id: str, partitions: int) -> int:
    """The partition of a gallery: Kafka's default for its id as the key."""
    return int((murmur2(gallery_id.encode()) & 0x7FFFFFFF) % partitions)


def now_ms() -> int:
    """The time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


def time_of(ms: int) -> str:
    """A time as events carry it."""
    return (
        datetime.fromtimestamp(ms / 1000, UTC)
        .isoformat(timespec="milliseconds")
        .replace("+00:00", "Z")
    )


@dataclass(frozen=True, slots=True)
class EntryKey:
    """Whose entry it is: `id` is a person key or a video id."""

    gallery_id: str
    kind: Literal["person", "video"]
    id: str

    def to_bytes(self) -> bytes:
        """A JSON array: different keys never have the same bytes, and keys of one gallery share their beginning."""
        return orjson.dumps([self.gallery_id, self.kind, self.id])

    @classmethod
    def from_bytes(cls, data: bytes) -> EntryKey:
        """Read what `to_bytes` wrote."""
        gallery_id, kind, identity = orjson.loads(data)
        return cls(gallery_id, kind, identity)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Annotated[int, Field(ge=0, le=_MAX_MS)]


class _StoredRow(_Stored):
    person: PersonEmbedding
    neighbours: dict[
        str,
        tuple[float, str, Literal["proposed", "updated", "held"]]
        | tuple[
            float,
            str,
            Literal["proposed", "updated", "held"],
            tuple[float, Literal["likely", "uncertain"], str],
        ],
    ]


class _StoredRecord(_Stored):
    order: tuple[float, str]
    closed: bool
    candidate_count: int


def entries_of(
    gallery_id: str, writes: Writes, *, at_ms: int, event: PersonEmbedding | None, raw: bytes
) -> Entries:
    """What to put into the table, removals as None.

    `raw` is the JSON of `event`. Rows before records.

    In that order: a closed video's record is the last of what its event writes, so an event that
    was cut short is recognised as not yet done when it comes again.
    """
    entries: Entries = []
    for key, row in writes.rows.items():
        value = (
            None
            if row is None
            else _row_bytes(row, raw if row.person is event else row.person.to_json(), at_ms)
        )
        entries.append((EntryKey(gallery_id, "person", key).to_bytes(), value))
    for video_id, record in writes.videos.items():
        value = None if record is None else _record_bytes(record, at_ms)
        entries.append((EntryKey(gallery_id, "video", video_id).to_bytes(), value))
    return entries


Entries = list[tuple[bytes, bytes | None]]
"""Table keys and values; None removes."""


def _row_bytes(row: Row, raw: bytes, at_ms: int) -> bytes:
    neighbours = {key: _entry(neighbour) for key, neighbour in row.neighbours.items()}
    return b'{"at":%d,"neighbours":%b,"person":%b}' % (at_ms, orjson.dumps(neighbours), raw)


def _entry(neighbour: Neighbour) -> tuple[object, ...]:
    judged = neighbour.judgement
    said = () if judged is None else ((judged.probability, judged.band, judged.calibration_id),)
    return (neighbour.similarity, neighbour.run_id, neighbour.state, *said)


def _neighbour(entry: tuple[Any, ...]) -> Neighbour:
    similarity, run_id, state, *judged = entry
    return Neighbour(similarity, run_id, state, Judgement(*judged[0]) if judged else None)


def _record_bytes(record: VideoRecord, at_ms: int) -> bytes:
    return orjson.dumps(
        {
            "at": at_ms,
            "order": record.order,
            "closed": record.closed,
            "candidate_count": record.candidate_count,
        }
    )


@dataclass(slots=True, eq=False)
class Held:
    """A gallery of a partition that this process owns. `heard_ms`: when its last event came."""

    gallery: Gallery
    partition: int
    heard_ms: int = 0

    def load(self, key: EntryKey, value: bytes) -> None:
        """Take in one entry of the table. Raises ValueError for one that cannot be read."""
        stored: _Stored
        if key.kind == "person":
            stored = row = _StoredRow.model_validate_json(value)
            near = {other: _neighbour(entry) for other, entry in row.neighbours.items()}
            self.gallery.write(Writes(rows={key.id: Row(row.person, near)}))
        else:
            stored = record = _StoredRecord.model_validate_json(value)
            known = VideoRecord(record.order, record.closed, record.candidate_count)
            self.gallery.write(Writes(videos={key.id: known}))
        self.heard_ms = max(self.heard_ms, stored.at)


def decide(
    held: Held,
    event: PersonEmbedding | VideoClosed | GalleryExpired,
    *,
    similarity_threshold: float,
    occurred_at: str,
    calibration: Calibration = UNCALIBRATED,
) -> Outcome:
    """Say what an event does to a gallery: the core's `apply`, and the gallery's end.

    Changes nothing itself.
    """
    if isinstance(event, GalleryExpired):
        last_known_ms = round(datetime.fromisoformat(event.last_event_at).timestamp() * 1000)
        return Outcome() if held.heard_ms > last_known_ms else Outcome(expire(held.gallery))
    outcome = apply(
        held.gallery,
        event,
        similarity_threshold=similarity_threshold,
        occurred_at=occurred_at,
        calibration=calibration,
    )
    known = held.gallery.videos.get(event.video_id)
    if isinstance(event, VideoClosed) and known is not None and not outcome.writes.videos:
        # Nothing new, but the gallery was heard of: its time starts again, whoever owns it next.
        return replace(outcome, writes=replace(outcome.writes, videos={event.video_id: known}))
    return outcome


class Galleries:
    """The galleries of the owned partitions: a cache of the table.

    Made by the matcher; for one task at a time.
    """

    def __init__(self, *, max_persons: int) -> None:
        self._max_persons = max_persons
        self._held: dict[str, Held] = {}

    def __iter__(self) -> Iterator[Held]:
        return iter(list(self._held.values()))

    def __len__(self) -> int:
        return len(self._held)

    def get(self, gallery_id: str) -> Held | None:
        """A gallery that has been heard of."""
        return self._held.get(gallery_id)

    def open(self, gallery_id: str, partition: int) -> Held:
        """A gallery, empty where it is new."""
        held = self._held.get(gallery_id)
        if held is None:
            held = Held(Gallery(gallery_id, max_persons=self._max_persons), partition)
            self._held[gallery_id] = held
        return held

    def drop_if_empty(self, held: Held) -> None:
        """Forget a gallery that has nothing to remember."""
        if not held.gallery.rows and not held.gallery.videos:
            self._held.pop(held.gallery.gallery_id, None)

    def load(self, partition: int, key: bytes, value: bytes) -> None:
        """Take in one entry of the table. Raises MachineError for one that cannot be read."""
        try:
            entry_key = EntryKey.from_bytes(key)
            self.open(entry_key.gallery_id, partition).load(entry_key, value)
        except ValueError as error:
            raise MachineError(
                f"partition {partition}, table entry {key[:200]!r}: expected one of this version, or an older one "
                f"({' '.join(str(error).split())[:200]}); run the version that wrote it"
            ) from error

    @property
    def rows(self) -> int:
        """How many persons are known."""
        return sum(len(held.gallery.rows) for held in self._held.values())
