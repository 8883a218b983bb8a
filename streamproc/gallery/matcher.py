"""The matcher's core.

`apply(gallery, event) -> what to write and what to announce`. Pure: it changes nothing itself.

Whoever calls it publishes the events first and writes the rows then: after a crash in between, the
same event gives the same events again. Vetoes, candidates and withdrawal live here once, for replay
and for the stream.

The outcome does not depend on the order in which persons come (up to the cap on neighbours):
similarities near the threshold are computed again in double precision from the two vectors alone,
and rounded. Weights that have a curve give each pair a probability: a first one from the similarity
when a person comes, and a better one when a video closes, from all persons that the gallery then
has (`calibration`); pairs that are not likely enough are kept, but held back.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamproc.errors import EventError
from streamproc.events import (
    CandidatePerson,
    DuplicateCandidate,
    PersonEmbedding,
    VideoClosed,
    VideoProgress,
)
from streamproc.gallery.calibration.scorer import Calibration
from streamproc.gallery.gallery import Neighbour, Row, VideoRecord, Writes, order_of
from streamproc.gallery.pairs import candidate_id_of, has_veto, pair_similarity, time_gap_seconds

if TYPE_CHECKING:
    from collections.abc import Mapping

    from streamproc.gallery.calibration.scorer import Judgement
    from streamproc.gallery.gallery import Gallery

UNCALIBRATED = Calibration()
"""No weights have a curve: a similarity above the threshold makes a candidate."""
MAX_NEIGHBOURS = 20
_UNIT_TOLERANCE = 1e-3
FLOAT32_SLACK = 1e-4
_SIMILARITY_DIGITS = 6

State = Literal["proposed", "updated", "withdrawn"]
Reason = Literal["below-threshold", "below-probability", "veto", "person-removed"]


@dataclass(frozen=True, slots=True)
class Outcome:
    """`events` to publish, then `writes` to carry out.

    `not_compared` rows were of other weights.
    """

    writes: Writes = field(default_factory=Writes)
    events: tuple[DuplicateCandidate | VideoProgress, ...] = ()
    not_compared: int = 0


def apply(
    gallery: Gallery,
    event: PersonEmbedding | VideoClosed,
    *,
    similarity_threshold: float,
    occurred_at: str,
    calibration: Calibration = UNCALIBRATED,
) -> Outcome:
    """Say what one event does to a gallery. Raises EventError for one that the gallery refuses.

    `similarity_threshold` holds for persons whose event names none; of two persons the stricter one
    decides. Once all its videos are closed, a gallery's candidates and their probabilities follow
    from its rows alone.
    """
    known = gallery.videos.get(event.video_id)
    if known is not None and known.order > order_of(event):
        return Outcome()  # a newer run has spoken: an older one never overwrites it
    step = _Step(gallery, similarity_threshold, occurred_at, calibration)
    return step.person(event) if isinstance(event, PersonEmbedding) else step.closed(event)


def expire(gallery: Gallery) -> Writes:
    """Forget a gallery: all its rows and records go.

    Its candidates are not withdrawn, they are no longer kept.
    """
    return Writes(dict.fromkeys(gallery.rows), dict.fromkeys(gallery.videos))


@dataclass(frozen=True, slots=True)
class _Step:
    """One application: the gallery as it is, and what holds for this event."""

    gallery: Gallery
    threshold: float
    occurred_at: str
    calibration: Calibration

    def person(self, event: PersonEmbedding) -> Outcome:
        self._check(event)
        key = event.person_key
        videos = self._video_record(event)
        old = self.gallery.rows.get(key)
        if (
            old is not None and old.person.run_id == event.run_id
        ):  # a repeat: nothing changes, what was said is said again
            again = [
                self._said(old.person, self.gallery.rows[other].person, entry)
                for other, entry in sorted(old.neighbours.items())
                if entry.state != "held" and self.gallery.holds(other, entry)
            ]
            return Outcome(Writes(videos=videos), tuple(again))
        similar = self.gallery.similar_to(key)
        standing = {k: n for k, n in similar.items() if n.state != "held"}
        found, not_compared = self._neighbours(event, standing)
        # A pair with a person of this video whose new run has not spoken yet stands until it has,
        # or the video closes.
        carried = {
            k: n for k, n in similar.items() if k not in found and self._awaits_new_run(event, k)
        }
        gone = {k: n for k, n in standing.items() if k not in found and k not in carried}
        events = [
            *(
                self._said(event, self._person(k), n)
                for k, n in found.items()
                if n.state != "held" or k in standing
            ),
            *(self._withdrawn(event, self._person(k)) for k in sorted(gone)),
        ]
        row = Row(event, {**carried, **found})
        return Outcome(Writes({key: row}, videos), tuple(events), not_compared)

    def closed(self, event: VideoClosed) -> Outcome:
        known = self.gallery.videos.get(event.video_id)
        if known is not None and known.closed and known.order == order_of(event):
            return Outcome(events=(self._done(event, known.candidate_count),))
        kept, removed = set[str](), set[str]()
        for key in self.gallery.of_video(event.video_id):
            person = self._person(key)
            # A run that was cut short says nothing of those it did not come to: what was known of
            # them stays.
            stays = event.outcome != "done" or (
                person.run_id == event.run_id and person.person_id in event.person_ids
            )
            (kept if stays else removed).add(key)
        withdrawn = []
        for key in sorted(removed):
            for other, entry in sorted(self.gallery.pairs_of(key).items()):
                if other not in removed or key < other:
                    pair = (self._person(key), self._person(other))
                    withdrawn.append(
                        self._candidate(*pair, entry.similarity, "withdrawn", "person-removed")
                    )
        changed, said = self._judged_again(removed)
        standing = {
            candidate_id_of(self.gallery.gallery_id, key, other)
            for key in kept
            for other, entry in self.gallery.similar_to(key).items()
            if other not in removed and changed.get(_pair(key, other), entry).state != "held"
        }
        record = VideoRecord(order_of(event), closed=True, candidate_count=len(standing))
        writes = Writes(
            dict.fromkeys(sorted(removed)) | self._rows_with(changed, removed),
            {event.video_id: record},
        )
        return Outcome(writes, (*withdrawn, *said, self._done(event, len(standing))))

    def _judged_again(
        self, removed: set[str]
    ) -> tuple[dict[tuple[str, str], Neighbour], list[DuplicateCandidate]]:
        """Judge all similar pairs by what the gallery is without those removed: entries that change, what to say."""
        rows = self.gallery.rows
        entries = {
            _pair(key, other): entry
            for key, row in rows.items()
            if key not in removed
            for other, entry in row.neighbours.items()
            if other not in removed and self.gallery.holds(other, entry)
        }
        persons = {key: row.person for key, row in rows.items() if key not in removed}
        changed, said = dict[tuple[str, str], Neighbour](), list[DuplicateCandidate]()
        for pair, judgement in sorted(self.calibration.at_close(persons, sorted(entries)).items()):
            old, (a, b) = entries[pair], (persons[pair[0]], persons[pair[1]])
            held = self.calibration.holds_back(judgement)
            state: Literal["proposed", "updated", "held"]
            state = "held" if held else "proposed" if old.state == "held" else "updated"
            if judgement == old.judgement and held == (old.state == "held"):
                continue
            changed[pair] = replace(old, state=state, judgement=judgement)
            if not held or old.state != "held":
                said.append(self._said(a, b, changed[pair]))
        return changed, said

    def _rows_with(
        self, changed: Mapping[tuple[str, str], Neighbour], removed: set[str]
    ) -> dict[str, Row | None]:
        """Rows that own changed entries, as they become."""
        new: dict[str, Row | None] = {}
        for key in sorted({key for pair in changed for key in pair} - removed):
            row = self.gallery.rows[key]
            own = {
                other: changed[_pair(key, other)]
                for other, entry in row.neighbours.items()
                if _pair(key, other) in changed and self.gallery.holds(other, entry)
            }
            if own:
                new[key] = Row(row.person, {**row.neighbours, **own})
        return new

    def _check(self, event: PersonEmbedding) -> None:
        gallery, key = self.gallery, event.person_key
        if event.gallery_id != gallery.gallery_id:
            raise EventError(
                f"{key}: expected an event of gallery {gallery.gallery_id!r}, got {event.gallery_id!r}"
            )
        vector = event.vector.numpy()
        if abs(float(np.linalg.norm(vector)) - 1) > _UNIT_TOLERANCE:
            raise EventError(
                f"{key}: expected a unit vector, got one of length {np.linalg.norm(vector):.4f}"
            )
        dim = gallery.dim_of(event.model.weights_sha256)
        if dim is not None and dim != len(vector):
            raise EventError(
                f"{key}: expected {dim} numbers as other vectors of these weights have, got {len(vector)}"
            )
        if key not in gallery.rows and len(gallery.rows) >= gallery.max_persons:
            raise EventError(
                f"{key}: the gallery {gallery.gallery_id!r} is full with {gallery.max_persons} persons: "
                "use another gallery, or raise max_persons_per_gallery"
            )

    def _video_record(self, event: PersonEmbedding) -> Mapping[str, VideoRecord]:
        known = self.gallery.videos.get(event.video_id)
        fresh = known is None or known.order < order_of(event)
        return {event.video_id: VideoRecord(order_of(event))} if fresh else {}

    def _person(self, key: str) -> PersonEmbedding:
        return self.gallery.rows[key].person

    def _awaits_new_run(self, event: PersonEmbedding, other: str) -> bool:
        person = self._person(other)
        return person.video_id == event.video_id and person.run_id != event.run_id

    def _pair_threshold(self, a: PersonEmbedding, b: PersonEmbedding) -> float:
        return max(self._threshold_of(a), self._threshold_of(b))

    def _threshold_of(self, person: PersonEmbedding) -> float:
        return (
            self.threshold if person.similarity_threshold is None else person.similarity_threshold
        )

    def _neighbours(
        self, event: PersonEmbedding, standing: Mapping[str, Neighbour]
    ) -> tuple[dict[str, Neighbour], int]:
        near, not_compared = self.gallery.more_similar(
            event.vector.numpy(),
            event.model.weights_sha256,
            self._threshold_of(event) - FLOAT32_SLACK,
        )
        found: list[tuple[float, str]] = []
        for key in near:
            other = self._person(key)
            if (
                key == event.person_key
                or has_veto(event, other)
                or self._awaits_new_run(event, key)
            ):
                continue
            similarity = pair_similarity(event, other)
            if similarity > self._pair_threshold(event, other):
                found.append((-similarity, key))
        best = sorted(found)[:MAX_NEIGHBOURS]
        return {
            key: self._first_judged(
                event, -negative, self._person(key).run_id, announced=key in standing
            )
            for negative, key in best
        }, not_compared

    def _first_judged(
        self, event: PersonEmbedding, similarity: float, run_id: str, *, announced: bool
    ) -> Neighbour:
        judgement = self.calibration.at_arrival(event.model.weights_sha256, similarity)
        if self.calibration.holds_back(judgement):
            return Neighbour(similarity, run_id, "held", judgement)
        return Neighbour(similarity, run_id, "updated" if announced else "proposed", judgement)

    def _said(self, a: PersonEmbedding, b: PersonEmbedding, entry: Neighbour) -> DuplicateCandidate:
        """A pair as its entry has it; one that is held now was announced before."""
        if entry.state == "held":
            return self._candidate(
                a, b, entry.similarity, "withdrawn", "below-probability", entry.judgement
            )
        return self._candidate(a, b, entry.similarity, entry.state, judgement=entry.judgement)

    def _candidate(
        self,
        a: PersonEmbedding,
        b: PersonEmbedding,
        similarity: float,
        state: State,
        reason: Reason | None = None,
        judgement: Judgement | None = None,
    ) -> DuplicateCandidate:
        first, second = sorted((a, b), key=lambda person: person.person_key)
        return DuplicateCandidate.make(
            occurred_at=self.occurred_at,
            candidate_id=candidate_id_of(
                self.gallery.gallery_id, first.person_key, second.person_key
            ),
            gallery_id=self.gallery.gallery_id,
            state=state,
            reason=reason,
            persons=(_described(first), _described(second)),
            similarity=similarity,
            similarity_threshold=self._pair_threshold(a, b),
            probability=None if judgement is None else judgement.probability,
            band=None if judgement is None else judgement.band,
            calibration_id=None if judgement is None else judgement.calibration_id,
            time_gap_seconds=time_gap_seconds(a, b),
            model=a.model,
            gallery_person_count=len(self.gallery.rows.keys() | {a.person_key}),
        )

    def _withdrawn(self, event: PersonEmbedding, other: PersonEmbedding) -> DuplicateCandidate:
        comparable = event.model.weights_sha256 == other.model.weights_sha256
        similarity = pair_similarity(event, other) if comparable else 0.0
        return self._candidate(
            event,
            other,
            similarity,
            "withdrawn",
            "veto" if has_veto(event, other) else "below-threshold",
        )

    def _done(self, event: VideoClosed, candidate_count: int) -> VideoProgress:
        return VideoProgress.make(
            occurred_at=self.occurred_at,
            gallery_id=event.gallery_id,
            video_id=event.video_id,
            run_id=event.run_id,
            state=event.outcome,
            candidate_count=candidate_count,
        )


def _pair(a: str, b: str) -> tuple[str, str]:
    return (a, b) if a < b else (b, a)


def _described(person: PersonEmbedding) -> CandidatePerson:
    return CandidatePerson(
        person_key=person.person_key,
        video_id=person.video_id,
        person_id=person.person_id,
        run_id=person.run_id,
        first_frame_index=person.first_frame_index,
        last_frame_index=person.last_frame_index,
        first_seen_seconds=person.first_seen_seconds,
        last_seen_seconds=person.last_seen_seconds,
        crop_count=person.crop_count,
        best_crop=person.crops[0] if person.crops else None,
    )
