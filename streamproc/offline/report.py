"""What is written of one gallery, as plain values.

`results` makes a `GalleryReport` of what a replay found; `artifacts` and `page` turn it into the
content of files, which `OutputDirectory` writes.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from datetime import datetime

    from streamproc.events import DuplicateCandidate, DuplicateGroup, TrackSuspect
    from streamproc.types import Float32Array

PersonId = int | str
"""The tracker's id in the gallery of one video ("7#2" for a part of a track), `person_key` in a
gallery of several."""

_MATRIX_DIMENSIONS = 2


@dataclass(frozen=True, slots=True)
class PersonEntry:
    """One person as the page shows it.

    `id` is what files call the person; events know it by `person_key`. Seconds and frames (0-based)
    are those of the person's own video. `frames_tracked` counts the boxes, `crop_count` the
    pictures of the animation; `best_quality` is that of the best crop, in [0, 1].

    `webp` is the path of the animation relative to the folder of the page, with forward slashes and
    not percent-encoded ("webp/person_7.webp", "../gate-2/webp_viewer/webp/person_7.webp"). It is
    None where there is none, and `webp_error` says why. `crops_webp` is that of the strip of the
    best crops.
    """

    id: PersonId
    person_key: str
    video_name: str
    frames_tracked: int
    first_frame_index: int
    last_frame_index: int
    first_seen_seconds: float
    last_seen_seconds: float
    crop_count: int
    best_quality: float
    webp: str | None = None
    webp_error: str | None = None
    crops_webp: str | None = None


@dataclass(frozen=True, slots=True)
class VetoedPair:
    """Two persons above the threshold who are two people for sure: seen apart in the same frames.

    `similarity` is the cosine in [-1, 1].
    """

    person_keys: tuple[str, str]
    similarity: float


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GalleryReport:
    """All that is written of one gallery.

    `embeddings` (N, D) float32 unit rows and `similarity` (N, N) float32 symmetric are in the order
    of `embedded_ids`. Both are None where similarity was skipped; a notice should then say why.
    `candidates` and `groups` are the events that the stream would publish last, `suspects` those of
    tracks that were taken apart; `stills` are WebP pictures of their parts, by person key.
    `vetoed_pairs` are above `similarity_threshold` as well. `person_events` are the JSON of one
    event a person. `model` says at least "name", "architecture" and "weights_sha256". `notices` are
    shown on top of the page. `run` becomes run.json. `timestamp` must have a time zone and is
    converted to UTC.

    Raises ValueError where these do not fit together.
    """

    gallery_id: str
    title: str
    timestamp: datetime
    similarity_threshold: float
    persons: tuple[PersonEntry, ...] = ()
    embedded_ids: tuple[PersonId, ...] = ()
    embeddings: Float32Array | None = None
    similarity: Float32Array | None = None
    candidates: tuple[DuplicateCandidate, ...] = ()
    groups: tuple[DuplicateGroup, ...] = ()
    suspects: tuple[TrackSuspect, ...] = ()
    stills: Mapping[str, bytes] = field(default_factory=dict)
    vetoed_pairs: tuple[VetoedPair, ...] = ()
    person_events: tuple[bytes, ...] = ()
    model: dict[str, Any] | None = None
    notices: tuple[str, ...] = ()
    run: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.timestamp.tzinfo is None:
            raise ValueError(f"expected a timestamp with a time zone, got {self.timestamp!r}")
        # One zone in every file.
        object.__setattr__(self, "timestamp", self.timestamp.astimezone(UTC))
        self._check_ids()
        self._check_arrays()

    def __repr__(self) -> str:
        return (
            f"GalleryReport({self.gallery_id!r}, {len(self.persons)} persons, "
            f"{len(self.embedded_ids)} embedded, {len(self.candidates)} candidates, "
            f"{len(self.vetoed_pairs)} vetoed)"
        )

    def _check_ids(self) -> None:
        key_of = {person.id: person.person_key for person in self.persons}
        embedded = set(self.embedded_ids)
        if len(key_of) != len(self.persons) or len(embedded) != len(self.embedded_ids):
            raise ValueError(f"{self!r}: a person's id is there twice")
        strangers = {str(person_id) for person_id in embedded - key_of.keys()}
        known = {key_of[person_id] for person_id in embedded & key_of.keys()}
        for candidate in self.candidates:
            strangers |= set(keys_of(candidate)) - known
        for group in self.groups:
            strangers |= set(group.person_keys) - known
        for pair in self.vetoed_pairs:
            strangers |= set(pair.person_keys) - known
        if strangers:
            raise ValueError(
                f"{self!r}: ids that no (embedded) person has: {sorted(strangers)[:5]}"
            )

    def _check_arrays(self) -> None:
        count = len(self.embedded_ids)
        if self.embeddings is None or self.similarity is None:
            is_empty = not (count or self.candidates or self.vetoed_pairs)
            if self.embeddings is not self.similarity or not is_empty:
                raise ValueError(
                    f"{self!r}: embeddings, similarity and pairs come together or not at all"
                )
            return
        shape = self.embeddings.shape
        if len(shape) != _MATRIX_DIMENSIONS or shape[0] != count:
            raise ValueError(f"{self!r}: expected embeddings ({count}, D), got {shape}")
        if self.similarity.shape != (count, count):
            raise ValueError(
                f"{self!r}: expected similarity ({count}, {count}), got {self.similarity.shape}"
            )
        if not (np.isfinite(self.embeddings).all() and np.isfinite(self.similarity).all()):
            raise ValueError(f"{self!r}: an embedding or a similarity is not a number")


def keys_of(candidate: DuplicateCandidate) -> tuple[str, str]:
    """Return the person keys of a candidate, the smaller first."""
    first, second = candidate.persons
    return first.person_key, second.person_key


def likeliest_first(candidates: Iterable[DuplicateCandidate]) -> list[DuplicateCandidate]:
    """Sort by probability, candidates without one last, then by similarity."""

    def rank(candidate: DuplicateCandidate) -> tuple[float, float, str]:
        return (-(candidate.probability or 0), -candidate.similarity, candidate.candidate_id)

    return sorted(candidates, key=rank)
