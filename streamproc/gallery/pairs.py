"""What is known of two tracklets alone: similarity, veto, time gap, the pair's id."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

import numpy as np

from streamproc.ids import hash_of

if TYPE_CHECKING:
    from streamproc.events import PersonEmbedding

_SIMILARITY_DIGITS = 6


def pair_similarity(a: PersonEmbedding, b: PersonEmbedding) -> float:
    """Cosine of two persons, the same whichever comes first."""
    cosine = float(np.dot(a.vector.numpy().astype(np.float64), b.vector.numpy().astype(np.float64)))
    return round(min(1.0, max(-1.0, cosine)), _SIMILARITY_DIGITS)


def has_veto(a: PersonEmbedding, b: PersonEmbedding) -> bool:
    """Whether the two were seen apart in the same frames: then they are two people, however alike."""
    return a.video_id == b.video_id and (b.person_id in a.seen_with or a.person_id in b.seen_with)


def time_gap_seconds(a: PersonEmbedding, b: PersonEmbedding) -> float | None:
    """Time between the two being seen, 0 where they overlap, None where they have no common clock."""
    offset = 0.0  # of a's clock against b's
    if a.video_id != b.video_id:
        if a.recorded_at is None or b.recorded_at is None:
            return None
        offset = (
            datetime.fromisoformat(a.recorded_at) - datetime.fromisoformat(b.recorded_at)
        ).total_seconds()
    gap = max(
        offset + a.first_seen_seconds - b.last_seen_seconds,
        b.first_seen_seconds - a.last_seen_seconds - offset,
    )
    return round(max(0.0, gap), 3)


def candidate_id_of(gallery_id: str, key_a: str, key_b: str) -> str:
    """The id of a pair in a gallery, the same in either order."""
    return hash_of(gallery_id, *sorted((key_a, key_b)))
