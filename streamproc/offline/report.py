"""What a run found in one gallery, as plain values. Made by `cli`, written by `OutputDirectory`."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from datetime import datetime

    from streamproc.types import Float32Array

PersonId = int | str
"""The tracker's person id in the gallery of one video;

"video_id/person_id" in a gallery of several.
"""


@dataclass(frozen=True, slots=True)
class PersonEntry:
    """One person as the page shows them.

    `webp` is the animation's path relative to the page's folder, with forward slashes and not
    percent-encoded ("webp/person_7.webp", "../gate-2/webp_viewer/webp/person_7.webp"); None where
    there is none, and `webp_error` says why. Seconds and frames (0-based) are those of the person's
    own video; `frames_tracked` counts the boxes, `crop_count` the pictures of the animation;
    `best_quality` is the best crop's, in [0, 1].
    """

    id: PersonId
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


@dataclass(frozen=True, slots=True)
class Pair:
    """Two persons and their cosine similarity in [-1, 1].

    `probability` in [0, 1] and `band` are there where the weights have a calibration curve.
    `frames_apart` is in how many frames both were seen with boxes apart (what vetoes a pair); None
    where not known.
    """

    id_a: PersonId
    id_b: PersonId
    similarity: float
    frames_apart: int | None = None
    probability: float | None = None
    band: Literal["likely", "uncertain"] | None = None


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class GalleryReport:
    """All that is written of one gallery.

    embeddings (N, D) float32 unit rows and similarity (N, N) float32 symmetric, both in the order
    of `embedded_ids`, or both None where similarity was skipped; a notice should then say why.
    `candidates` have no veto; `vetoed_pairs` are above `similarity_threshold` and have one.
    `candidate_events` and `person_events` are the events that the stream would publish, one JSON
    text each. `model` says at least "name", "architecture" and "weights_sha256". `notices` are
    shown on top of the page. `run` becomes run.json. `timestamp` must know its zone and is kept in
    UTC.

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
    candidates: tuple[Pair, ...] = ()
    vetoed_pairs: tuple[Pair, ...] = ()
    candidate_events: tuple[bytes, ...] = ()
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
            f"GalleryReport({self.gallery_id!r}, {len(self.persons)} persons, {len(self.embedded_ids)} embedded, "
            f"{len(self.candidates)} candidates, {len(self.vetoed_pairs)} vetoed)"
        )

    def _check_ids(self) -> None:
        known = {person.id for person in self.persons}
        if len(known) != len(self.persons) or len(set(self.embedded_ids)) != len(self.embedded_ids):
            raise ValueError(f"{self!r}: a person's id is there twice")
        paired = {
            person
            for pair in (*self.candidates, *self.vetoed_pairs)
            for person in (pair.id_a, pair.id_b)
        }
        strangers = (set(self.embedded_ids) - known) | (paired - set(self.embedded_ids))
        if strangers:
            raise ValueError(
                f"{self!r}: ids that no (embedded) person has: {sorted(map(str, strangers))[:5]}"
            )

    def _check_arrays(self) -> None:
        count = len(self.embedded_ids)
        if self.embeddings is None or self.similarity is None:
            if (
                self.embeddings is not self.similarity
                or count
                or self.candidates
                or self.vetoed_pairs
            ):
                raise ValueError(
                    f"{self!r}: embeddings, similarity and pairs come together or not at all"
                )
            return
        if self.embeddings.ndim != 2 or len(self.embeddings) != count:  # noqa: PLR2004 - (N, D)
            raise ValueError(
                f"{self!r}: expected embeddings ({count}, D), got {self.embeddings.shape}"
            )
        if self.similarity.shape != (count, count):
            raise ValueError(
                f"{self!r}: expected similarity ({count}, {count}), got {self.similarity.shape}"
            )
        if not (np.isfinite(self.embeddings).all() and np.isfinite(self.similarity).all()):
            raise ValueError(f"{self!r}: an embedding or a similarity is not a number")
