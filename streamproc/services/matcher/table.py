"""The matcher's table entries: how rows and records are stored as bytes, and where.

There is one entry for each tracklet, one for each video, one for each group and one for each
decision; for each tracklet that a decision names, one that says where it was; and for whom is
forgotten one that holds a hash and a time. A tracklet's
entry holds its event byte for byte as it came, so that it is not serialised again. All entries of a
gallery are in the partition of its id. What is stored keeps its names and values, since a running
matcher reads what an older one wrote.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Literal

import numpy as np
import orjson
from pydantic import BaseModel, ConfigDict, Field

from streamproc.decisions import Decided, GalleryEvent  # noqa: TC001 - pydantic reads them
from streamproc.errors import MachineError
from streamproc.events import Forgotten, GalleryExpired, PersonEmbedding, VideoClosed
from streamproc.gallery import (
    UNCALIBRATED,
    Calibration,
    Candidate,
    Evidence,
    Gallery,
    Group,
    Judgement,
    Kept,
    MatchResult,
    Named,
    Place,
    Row,
    VideoRecord,
    Writes,
    apply,
    expire,
    forget,
    forget_decisions,
)
from streamproc.kafka.records import partition_of

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = [
    "Entries",
    "EntryKey",
    "Galleries",
    "OwnedGallery",
    "decide",
    "entries_of",
    "now_ms",
    "partition_of",
]

_MAX_MS = 2**53 - 1


def now_ms() -> int:
    """Return the time in milliseconds since 1970."""
    return time.time_ns() // 1_000_000


@dataclass(frozen=True, slots=True)
class EntryKey:
    """The key of an entry: `id` is a person key, a video id, a group's or a decision's id.

    Of somebody who is forgotten it is a hash.
    """

    gallery_id: str
    kind: Literal["person", "video", "group", "decision", "place", "forgotten"]
    id: str

    def to_bytes(self) -> bytes:
        """Return a JSON array: no two keys have equal bytes, and those of a gallery lie together.

        They begin with the same bytes, and RocksDB sorts by them.
        """
        return orjson.dumps([self.gallery_id, self.kind, self.id])

    @classmethod
    def from_bytes(cls, data: bytes) -> EntryKey:
        """Read what `to_bytes` wrote."""
        gallery_id, kind, identity = orjson.loads(data)
        return cls(gallery_id, kind, identity)


class _Stored(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    at: Annotated[int, Field(ge=0, le=_MAX_MS)]


_StoredState = Literal["proposed", "updated", "held"]
_StoredJudgement = tuple[float, Literal["likely", "uncertain"], str]
_StoredCandidate = (
    tuple[float, str, _StoredState]
    | tuple[float, str, _StoredState, _StoredJudgement]
    | tuple[float, str, _StoredState, _StoredJudgement, tuple[float, float]]
)
"""Similarity, run id, state, judgement and evidence where there are: see `gallery.Candidate`."""


class _StoredRow(_Stored):
    person: PersonEmbedding
    neighbours: dict[str, _StoredCandidate]


class _StoredRecord(_Stored):
    order: tuple[float, str]
    closed: bool
    candidate_count: int
    started: float = 0.0


class _StoredGroup(_Stored):
    person_keys: tuple[str, ...]
    judgement: _StoredJudgement


class _StoredDecision(_Stored):
    decision: Decided
    lost: bool = False


class _StoredForgotten(_Stored):
    until: Annotated[float, Field(ge=0, le=_MAX_MS)]


class _StoredPlace(_Stored):
    video_id: str
    run_id: str
    frame_indices: tuple[int, ...]
    boxes: list[tuple[float, float, float, float]]


Entries = list[tuple[bytes, bytes | None]]
"""Table keys and values; None removes."""


def entries_of(
    gallery_id: str, writes: Writes, *, at_ms: int, event: PersonEmbedding | None, raw: bytes
) -> Entries:
    """Return the entries to put into the table, those of records last.

    `raw` is the JSON of `event`. The record of a closed video is the last entry of its event: if
    writing is cut short, the event is recognised as not yet done when it comes again.
    """
    entries: Entries = []
    for key, row in writes.rows.items():
        value = None
        if row is not None:
            person = raw if row.tracklet is event else row.tracklet.to_json()
            value = _row_bytes(row, person, at_ms)
        entries.append((EntryKey(gallery_id, "person", key).to_bytes(), value))
    for group_id, group in writes.groups.items():
        value = None if group is None else _group_bytes(group, at_ms)
        entries.append((EntryKey(gallery_id, "group", group_id).to_bytes(), value))
    for key, place in writes.places.items():
        value = None if place is None else _place_bytes(place, at_ms)
        entries.append((EntryKey(gallery_id, "place", key).to_bytes(), value))
    for decision_id, kept in writes.decisions.items():
        value = None if kept is None else _decision_bytes(kept, at_ms)
        entries.append((EntryKey(gallery_id, "decision", decision_id).to_bytes(), value))
    for mark, seconds in writes.forgotten.items():
        value = None if seconds is None else orjson.dumps({"at": at_ms, "until": seconds})
        entries.append((EntryKey(gallery_id, "forgotten", mark).to_bytes(), value))
    for video_id, record in writes.videos.items():
        value = None if record is None else _record_bytes(record, at_ms)
        entries.append((EntryKey(gallery_id, "video", video_id).to_bytes(), value))
    return entries


def _row_bytes(row: Row, person: bytes, at_ms: int) -> bytes:
    neighbours = {key: _stored(candidate) for key, candidate in row.candidates.items()}
    return b'{"at":%d,"neighbours":%b,"person":%b}' % (at_ms, orjson.dumps(neighbours), person)


def _stored(candidate: Candidate) -> _StoredCandidate:
    state: _StoredState = "held" if candidate.state == "suppressed" else candidate.state
    judgement = candidate.judgement
    if judgement is None:
        return (candidate.similarity, candidate.run_id, state)
    judged = (judgement.probability, judgement.band, judgement.calibration_id)
    evidence = candidate.evidence
    if evidence is None:
        return (candidate.similarity, candidate.run_id, state, judged)
    known = (evidence.first, evidence.local)
    return (candidate.similarity, candidate.run_id, state, judged, known)


def _candidate_from(stored: _StoredCandidate) -> Candidate:
    similarity, run_id, stored_state = stored[:3]
    judged = stored[3:]
    return Candidate(
        similarity,
        run_id,
        state="suppressed" if stored_state == "held" else stored_state,
        judgement=Judgement(*judged[0]) if judged else None,
        evidence=Evidence(*judged[1]) if len(judged) > 1 else None,
    )


def _record_bytes(record: VideoRecord, at_ms: int) -> bytes:
    return orjson.dumps(
        {
            "at": at_ms,
            "order": record.order,
            "closed": record.closed,
            "candidate_count": record.candidate_count,
            "started": record.started_seconds,
        }
    )


def _group_bytes(group: Group, at_ms: int) -> bytes:
    judged = group.judgement
    judgement = (judged.probability, judged.band, judged.calibration_id)
    return orjson.dumps({"at": at_ms, "person_keys": group.person_keys, "judgement": judgement})


def _place_bytes(place: Place, at_ms: int) -> bytes:
    return orjson.dumps(
        {
            "at": at_ms,
            "video_id": place.video_id,
            "run_id": place.run_id,
            "frame_indices": place.frame_indices,
            "boxes": place.boxes.tolist(),
        }
    )


def _decision_bytes(kept: Kept, at_ms: int) -> bytes:
    lost = b"true" if kept.is_lost else b"false"
    return b'{"at":%d,"lost":%b,"decision":%b}' % (at_ms, lost, kept.decision.to_json())


@dataclass(slots=True, eq=False)
class OwnedGallery:
    """A gallery of a partition that this process owns."""

    gallery: Gallery
    partition: int
    last_event_ms: int = 0
    """When the last event of the gallery came, in milliseconds since 1970."""
    last_decision_ms: int = 0
    """When the last decision on it came; it counts as an event, too."""

    @property
    def is_empty(self) -> bool:
        """Whether it has neither rows nor records; decisions may be left of it."""
        return not self.gallery.rows and not self.gallery.videos

    @property
    def is_known(self) -> bool:
        """Whether there is anything of it, but for the marks of those who were forgotten."""
        return not self.is_empty or bool(self.gallery.decisions)

    def load(self, key: EntryKey, value: bytes) -> None:
        """Take in one entry of the table. Raises ValueError for one that cannot be read."""
        stored: _Stored
        if key.kind == "person":
            stored = row = _StoredRow.model_validate_json(value)
            candidates = {other: _candidate_from(entry) for other, entry in row.neighbours.items()}
            self.gallery.write(Writes(rows={key.id: Row(row.person, candidates)}))
        elif key.kind == "group":
            stored = group = _StoredGroup.model_validate_json(value)
            known_group = Group(group.person_keys, Judgement(*group.judgement))
            self.gallery.write(Writes(groups={key.id: known_group}))
        elif key.kind == "decision":
            stored = kept = _StoredDecision.model_validate_json(value)
            self.gallery.write(Writes(decisions={key.id: Kept(kept.decision, kept.lost)}))
            self.last_decision_ms = max(self.last_decision_ms, stored.at)
        elif key.kind == "place":
            stored = place = _StoredPlace.model_validate_json(value)
            boxes = np.array(place.boxes, np.float32).reshape(-1, 4)
            was = Place(key.id, place.video_id, place.run_id, place.frame_indices, boxes)
            self.gallery.write(Writes(places={key.id: was}))
            return  # no event: it may be written anew when nothing came
        elif key.kind == "forgotten":
            stored = mark = _StoredForgotten.model_validate_json(value)
            self.gallery.write(Writes(forgotten={key.id: mark.until}))
        else:
            stored = record = _StoredRecord.model_validate_json(value)
            known = VideoRecord(record.order, record.closed, record.candidate_count, record.started)
            self.gallery.write(Writes(videos={key.id: known}))
        self.last_event_ms = max(self.last_event_ms, stored.at)


def decide(
    owned: OwnedGallery,
    event: GalleryEvent,
    *,
    similarity_threshold: float,
    occurred_at: str,
    calibration: Calibration = UNCALIBRATED,
    at_ms: int = 0,
) -> MatchResult:
    """Return what an event does to a gallery: the core's `apply` or `forget`, or its end.

    `at_ms` is when the event came. It changes nothing itself.
    """
    gallery = owned.gallery
    if isinstance(event, Forgotten):
        return forget(
            gallery,
            Named.by(event),
            at_seconds=at_ms / 1000,
            similarity_threshold=similarity_threshold,
            occurred_at=occurred_at,
            calibration=calibration,
        )
    if isinstance(event, GalleryExpired):
        return _expired(owned, event, occurred_at)
    result = apply(
        gallery,
        event,
        similarity_threshold=similarity_threshold,
        occurred_at=occurred_at,
        calibration=calibration,
    )
    if not isinstance(event, VideoClosed):
        return result
    known = gallery.videos.get(event.video_id)
    if known is not None and not result.writes.videos:
        # Nothing changes, but the gallery had an event: its time until it expires starts again,
        # also for the process that owns it next, which reads the time from this entry.
        return replace(result, writes=replace(result.writes, videos={event.video_id: known}))
    return result


def _expired(owned: OwnedGallery, event: GalleryExpired, occurred_at: str) -> MatchResult:
    last_known_ms = round(datetime.fromisoformat(event.last_event_at).timestamp() * 1000)
    if event.decisions:
        is_over = owned.is_empty and owned.last_decision_ms <= last_known_ms
        return MatchResult(forget_decisions(owned.gallery)) if is_over else MatchResult()
    if owned.last_event_ms > last_known_ms:
        return MatchResult()
    return expire(owned.gallery, occurred_at)


class Galleries:
    """The galleries of the owned partitions: a cache of the table.

    Made by the matcher; for one task at a time.
    """

    def __init__(self, *, max_persons: int) -> None:
        self._max_persons = max_persons
        self._owned: dict[str, OwnedGallery] = {}

    def __iter__(self) -> Iterator[OwnedGallery]:
        return iter(list(self._owned.values()))

    def __len__(self) -> int:
        return len(self._owned)

    def get(self, gallery_id: str) -> OwnedGallery | None:
        """Return a gallery, None where it is not known."""
        return self._owned.get(gallery_id)

    def open(self, gallery_id: str, partition: int) -> OwnedGallery:
        """Return a gallery, an empty one where it is new."""
        owned = self._owned.get(gallery_id)
        if owned is None:
            owned = OwnedGallery(Gallery(gallery_id, max_persons=self._max_persons), partition)
            self._owned[gallery_id] = owned
        return owned

    def drop(self, owned: OwnedGallery) -> None:
        """Forget a gallery, with all that it holds."""
        self._owned.pop(owned.gallery.gallery_id, None)

    def drop_if_empty(self, owned: OwnedGallery) -> None:
        """Forget a gallery that has neither rows nor records nor decisions, nor marks."""
        if not owned.is_known and not owned.gallery.forgotten:
            self._owned.pop(owned.gallery.gallery_id, None)

    def load(self, partition: int, key: bytes, value: bytes) -> None:
        """Take in one entry of the table. Raises MachineError for one that cannot be read."""
        try:
            entry_key = EntryKey.from_bytes(key)
            self.open(entry_key.gallery_id, partition).load(entry_key, value)
        except ValueError as error:
            reason = " ".join(str(error).split())[:200]
            raise MachineError(
                f"partition {partition}, table entry {key[:200]!r}: expected one of this version, "
                f"or an older one ({reason}); run the version that wrote it"
            ) from error

    @property
    def rows(self) -> int:
        """How many tracklets are known."""
        return sum(len(owned.gallery.rows) for owned in self._owned.values())

    @property
    def decisions(self) -> int:
        """How many decisions are known."""
        return sum(len(owned.gallery.decisions) for owned in self._owned.values())
