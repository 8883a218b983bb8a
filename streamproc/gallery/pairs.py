"""Pairs of tracklets: what a gallery keeps of a pair, and what follows from two tracklets alone.

A tracklet is one track of one video, as its `PersonEmbedding` event describes it. The wire calls it
a person; whether two tracklets are the same person is what a gallery estimates.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from streamproc.ids import hash_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamproc.events import PersonEmbedding

MAX_SECONDS = 1e12
"""No tracklet is seen farther from its video's begin: 30,000 years."""
_SIMILARITY_DIGITS = 6
_MAX_GAP_SECONDS = 4 * MAX_SECONDS  # of rows that an older version stored without a check

FLOAT32_SLACK = 1e-4
"""Float32 cosines this far below a threshold are computed again in double precision."""

PairKey = tuple[str, str]
"""Two person keys, the smaller first."""

Band = Literal["likely", "uncertain"]


@dataclass(frozen=True, slots=True)
class Judgement:
    """How likely a pair is one person. Made by `Calibration`.

    `probability` is in [0, 1], `band` says on which side of `likely_probability` it lies, and
    `calibration_id` names the curve and the method.
    """

    probability: float
    band: Band
    calibration_id: str

    def wire_fields(self) -> dict[str, Any]:
        """Return this by the names of the wire."""
        # `asdict` copies deeply, which takes a tenth of a closing.
        return {
            "probability": self.probability,
            "band": self.band,
            "calibration_id": self.calibration_id,
        }


@dataclass(frozen=True, slots=True)
class Evidence:
    """What is kept of how a pair of closed videos was judged; made by `closing`.

    `first` are the log-odds by the two tracklets alone, `local` the final ones without what other
    videos say of a pair of two videos.
    """

    first: float
    local: float


@dataclass(frozen=True, slots=True)
class Candidate:
    """A pair of similar tracklets, as the gallery keeps it in the row of one of the two.

    `similarity` is the cosine of their vectors. `run_id` is the run of the other tracklet: once
    that belongs to another run, this candidate no longer counts. `state` is "proposed" or "updated"
    as last announced, or "suppressed": not announced, or withdrawn, since its probability is too
    low so far. `judgement` is None where the weights have no curve, `evidence` before both videos
    are closed, and where the weights have no model of pairs.

    This is the only form in memory. `wire_fields` makes the one on the wire of it, an
    `events.DuplicateCandidate`; `services.matcher.table` stores it.
    """

    similarity: float
    run_id: str
    state: Literal["proposed", "updated", "suppressed"]
    judgement: Judgement | None = None
    evidence: Evidence | None = None

    def judged(
        self, judgement: Judgement, evidence: Evidence | None = None, *, is_shown: bool
    ) -> Candidate:
        """Return the pair as a new judgement leaves it; not `is_shown`: it is suppressed."""
        state: Literal["proposed", "updated", "suppressed"] = "updated"
        if not is_shown:
            state = "suppressed"
        elif self.is_suppressed:
            state = "proposed"
        new = replace(self, state=state, judgement=judgement, evidence=evidence)
        return replace(new, state=self.state) if new.says_as(self) else new

    def says_as(self, other: Candidate) -> bool:
        """Return whether both say the same to whoever reads the candidates."""
        return (self.judgement, self.is_suppressed) == (other.judgement, other.is_suppressed)

    @property
    def is_suppressed(self) -> bool:
        """Whether the pair is kept without being announced."""
        return self.state == "suppressed"

    def wire_fields(self) -> dict[str, Any]:
        """Return the fields of a `DuplicateCandidate` that this holds, by their names there."""
        judged = {} if self.judgement is None else self.judgement.wire_fields()
        return {"similarity": self.similarity, **judged}


@dataclass(frozen=True, slots=True)
class Group:
    """Tracklets of a gallery that are proposed as one person, decided together by `closing`.

    `person_keys` are sorted, at least two. `judgement` is how likely all of them are one.
    """

    person_keys: tuple[str, ...]
    judgement: Judgement


def group_id_of(gallery_id: str, smallest_key: str) -> str:
    """Return the id of the group of a gallery whose smallest person key is this one."""
    return hash_of(gallery_id, smallest_key)


def group_ids_of(groups: Mapping[str, Group]) -> dict[str, str]:
    """Return the id of each tracklet's group by its key, for those that are in one of `groups`."""
    found: dict[str, str] = {}
    for group_id, group in groups.items():
        found |= dict.fromkeys(group.person_keys, group_id)
    return found


def pair_key(a: str, b: str) -> PairKey:
    """Return two person keys as one key, the same in either order."""
    return (a, b) if a < b else (b, a)


def pair_similarity(a: PersonEmbedding, b: PersonEmbedding) -> float:
    """Return the cosine of two tracklets, the same in either order."""
    cosine = np.dot(a.vector.numpy().astype(np.float64), b.vector.numpy().astype(np.float64))
    return round(min(1.0, max(-1.0, float(cosine))), _SIMILARITY_DIGITS)


def has_veto(a: PersonEmbedding, b: PersonEmbedding) -> bool:
    """Return whether both were seen in the same frames in different places: two people for sure.

    So are the parts of one track: it was split because they are two people.
    """
    if a.video_id != b.video_id:
        return False
    if a.part is None and b.part is None:
        return b.person_id in a.seen_with or a.person_id in b.seen_with
    if a.person_id == b.person_id:
        return True
    return b.person_key in a.keys_seen_apart or a.person_key in b.keys_seen_apart


def time_gap_seconds(a: PersonEmbedding, b: PersonEmbedding) -> float | None:
    """Return the time between two tracklets: 0 where they overlap, None without a common clock."""
    a_ahead = 0.0  # seconds by which a's clock is ahead of b's
    if a.video_id != b.video_id:
        if a.recorded_at is None or b.recorded_at is None:
            return None
        difference = datetime.fromisoformat(a.recorded_at) - datetime.fromisoformat(b.recorded_at)
        a_ahead = difference.total_seconds()
    gap = max(
        a_ahead + a.first_seen_seconds - b.last_seen_seconds,
        b.first_seen_seconds - a.last_seen_seconds - a_ahead,
    )
    return round(min(max(0.0, gap), _MAX_GAP_SECONDS), 3)


def candidate_id_of(gallery_id: str, key_a: str, key_b: str) -> str:
    """Return the id of a pair in a gallery, the same in either order."""
    return hash_of(gallery_id, *sorted((key_a, key_b)))
