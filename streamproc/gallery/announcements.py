"""What a gallery announces: candidates, their withdrawal, and that a video is done."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from streamproc.events import (
    CandidatePerson,
    DuplicateCandidate,
    DuplicateGroup,
    PersonIdentity,
    VideoProgress,
)
from streamproc.gallery.pairs import (
    candidate_id_of,
    has_veto,
    pair_similarity,
    time_gap_seconds,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamproc.events import PersonEmbedding, VideoClosed
    from streamproc.gallery.gallery import Gallery
    from streamproc.gallery.identities import Identity
    from streamproc.gallery.pairs import Candidate, Group

_VETOES = ["seen-apart"]
_Reason = Literal["below-threshold", "below-probability", "veto", "person-removed", "decided"]


@dataclass(frozen=True, slots=True)
class Announcer:
    """Makes the events that follow from one event to a gallery. Used by `matcher`.

    `threshold` is the similarity threshold of tracklets whose event names none. `group_ids` says in
    which group a tracklet is, by its key, once the event has been applied.
    """

    gallery: Gallery
    threshold: float
    occurred_at: str
    group_ids: Mapping[str, str] = field(default_factory=dict)
    _persons: dict[tuple[str, str], CandidatePerson] = field(default_factory=dict)

    def candidate(
        self, a: PersonEmbedding, b: PersonEmbedding, candidate: Candidate
    ) -> DuplicateCandidate:
        """Announce a pair, or withdraw it where it is suppressed now."""
        fields = candidate.wire_fields()
        if candidate.is_suppressed:
            return self._withdrawal(a, b, fields, "below-probability")
        group_id = self.group_ids.get(a.person_key)
        if group_id is not None and group_id == self.group_ids.get(b.person_key):
            fields["group_id"] = group_id
        return self._event(a, b, {**fields, "state": candidate.state})

    def no_longer_similar(self, new: PersonEmbedding, other: PersonEmbedding) -> DuplicateCandidate:
        """Withdraw a pair, one of whose tracklets has a new run that does not make it any more."""
        comparable = new.model.weights_sha256 == other.model.weights_sha256
        similarity = pair_similarity(new, other) if comparable else 0.0
        reason: _Reason = "veto" if has_veto(new, other) else "below-threshold"
        return self._withdrawal(new, other, {"similarity": similarity}, reason)

    def removal(
        self, removed: PersonEmbedding, other: PersonEmbedding, candidate: Candidate
    ) -> DuplicateCandidate:
        """Withdraw a pair, one of whose tracklets is removed."""
        fields = {"similarity": candidate.similarity}
        return self._withdrawal(removed, other, fields, "person-removed")

    def ruled_out(
        self, a: PersonEmbedding, b: PersonEmbedding, candidate: Candidate
    ) -> DuplicateCandidate:
        """Withdraw a pair that reviewers called different."""
        return self._withdrawal(a, b, candidate.wire_fields(), "decided")

    def identity(self, identity: Identity) -> PersonIdentity:
        """Say what is decided of a person."""
        return PersonIdentity.make(
            occurred_at=self.occurred_at,
            identity_id=identity.identity_id,
            gallery_id=self.gallery.gallery_id,
            person_keys=list(identity.person_keys),
            verified=identity.is_verified,
            wanted=identity.is_wanted,
            conflicts=list(identity.conflicts),
        )

    def group(
        self, group_id: str, group: Group, state: Literal["proposed", "updated", "withdrawn"]
    ) -> DuplicateGroup:
        """Announce a group of the gallery, or withdraw it."""
        judged = {} if state == "withdrawn" else group.judgement.wire_fields()
        return DuplicateGroup.make(
            occurred_at=self.occurred_at,
            group_id=group_id,
            gallery_id=self.gallery.gallery_id,
            state=state,
            person_keys=list(group.person_keys),
            **judged,
        )

    def done(self, event: VideoClosed, candidate_count: int) -> VideoProgress:
        """Say that all candidates of a video are out."""
        return VideoProgress.make(
            occurred_at=self.occurred_at,
            gallery_id=event.gallery_id,
            video_id=event.video_id,
            run_id=event.run_id,
            state=event.outcome,
            candidate_count=candidate_count,
        )

    def pair_threshold(self, a: PersonEmbedding, b: PersonEmbedding) -> float:
        """Return the similarity threshold of a pair: the higher one of its two tracklets'."""
        return max(self.threshold_of(a), self.threshold_of(b))

    def threshold_of(self, tracklet: PersonEmbedding) -> float:
        """Return the similarity threshold of a tracklet."""
        own = tracklet.similarity_threshold
        return self.threshold if own is None else own

    def _withdrawal(
        self, a: PersonEmbedding, b: PersonEmbedding, fields: Mapping[str, Any], reason: _Reason
    ) -> DuplicateCandidate:
        return self._event(a, b, {**fields, "state": "withdrawn", "reason": reason})

    def _event(
        self, a: PersonEmbedding, b: PersonEmbedding, fields: Mapping[str, Any]
    ) -> DuplicateCandidate:
        first, second = sorted((a, b), key=lambda tracklet: tracklet.person_key)
        gallery_id = self.gallery.gallery_id
        rows = self.gallery.rows
        return DuplicateCandidate.make(
            occurred_at=self.occurred_at,
            candidate_id=candidate_id_of(gallery_id, first.person_key, second.person_key),
            gallery_id=gallery_id,
            persons=(self._person(first), self._person(second)),
            similarity_threshold=self.pair_threshold(a, b),
            time_gap_seconds=time_gap_seconds(a, b),
            model=a.model,
            gallery_person_count=len(rows) + (a.person_key not in rows),
            vetoes_checked=_VETOES,  # the default, of which pydantic would make a deep copy
            **fields,
        )

    def _person(self, tracklet: PersonEmbedding) -> CandidatePerson:
        """Describe a tracklet, once for all of its pairs."""
        key = (tracklet.person_key, tracklet.run_id)
        known = self._persons.get(key)
        if known is None:
            known = self._persons[key] = candidate_person(tracklet)
        return known


def candidate_person(tracklet: PersonEmbedding) -> CandidatePerson:
    """Return a tracklet as candidates describe it, without what it looks like."""
    return CandidatePerson(
        person_key=tracklet.person_key,
        video_id=tracklet.video_id,
        person_id=tracklet.person_id,
        run_id=tracklet.run_id,
        first_frame_index=tracklet.first_frame_index,
        last_frame_index=tracklet.last_frame_index,
        first_seen_seconds=tracklet.first_seen_seconds,
        last_seen_seconds=tracklet.last_seen_seconds,
        crop_count=tracklet.crop_count,
        best_crop=tracklet.crops[0] if tracklet.crops else None,
        part=tracklet.part,
    )
