"""The matcher's core: `apply(gallery, event)` returns what to write and what to announce.

It is pure: it changes nothing and does no I/O. Its caller publishes the events first and carries
out the writes then. After a crash in between the same event comes again, and gives the same events.
Replay and the stream share this code, so vetoes, candidates and withdrawals are decided here only.

The result does not depend on the order in which tracklets come, up to the limit on candidates of
one tracklet: similarities near the threshold are computed again in double precision, from the two
vectors alone, and rounded.

Where the weights have a calibration curve each pair gets a probability: a first one from its
similarity when the second tracklet comes, and a better one when a video closes, from all tracklets
that the gallery then has (`calibration`). Pairs that are not likely enough are suppressed: they are
kept, since they may become likely, but they are not announced, or are withdrawn.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np

from streamproc.errors import EventError
from streamproc.events import PersonEmbedding, VideoClosed
from streamproc.gallery.announcements import Announcer
from streamproc.gallery.calibration.scorer import Calibration
from streamproc.gallery.closing import decide_pairs
from streamproc.gallery.forgetting import (
    Named,
    decisions_on,
    not_forgotten,
    rows_without,
)
from streamproc.gallery.gallery import (
    Row,
    VideoRecord,
    Writes,
    order_of,
    started_seconds_of,
)
from streamproc.gallery.pairs import (
    FLOAT32_SLACK,
    MAX_SECONDS,
    Candidate,
    Group,
    PairKey,
    group_ids_of,
    has_veto,
    pair_key,
    pair_similarity,
)
from streamproc.gallery.review import take_decision, with_decisions
from streamproc.ids import person_key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Mapping

    from streamproc.decisions import AnyDecision
    from streamproc.events import (
        DuplicateCandidate,
        DuplicateGroup,
        PersonIdentity,
        PersonIdentityGone,
        VideoProgress,
    )
    from streamproc.gallery.closing import Decided
    from streamproc.gallery.gallery import Gallery

UNCALIBRATED = Calibration()
"""No weights have a curve: every pair above the similarity threshold is a candidate."""
MAX_CANDIDATES = 20
"""So many candidates are kept for a tracklet when it comes, the most similar ones."""
_UNIT_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class MatchResult:
    """What follows from one event: `events` to publish first, then `writes` to carry out.

    `not_compared` counts the rows of other weights, which the tracklet was not compared with,
    `not_kept` the pairs of a closing that were not among the likeliest of their tracklets.
    """

    writes: Writes = field(default_factory=Writes)
    events: tuple[
        DuplicateCandidate | DuplicateGroup | VideoProgress | PersonIdentity | PersonIdentityGone,
        ...,
    ] = ()
    not_compared: int = 0
    not_kept: int = 0


def apply(
    gallery: Gallery,
    event: PersonEmbedding | VideoClosed | AnyDecision,
    *,
    similarity_threshold: float,
    occurred_at: str,
    calibration: Calibration = UNCALIBRATED,
) -> MatchResult:
    """Return what one event does to a gallery. Raises EventError for one that does not fit it.

    `similarity_threshold` is for tracklets whose event names none; of two tracklets the higher
    threshold decides. Once all videos of a gallery are closed, its candidates and their
    probabilities follow from its rows alone, but for what reviewers called different: that is in no
    candidate and no group.
    """
    announcer = Announcer(gallery, similarity_threshold, occurred_at, gallery.group_ids)
    left = not_forgotten(gallery, event)
    if left is None:
        return MatchResult(events=_end_of(event, announcer, 0))
    event = left
    if not isinstance(event, PersonEmbedding | VideoClosed):
        writes, events = take_decision(gallery, event, announcer)
        return MatchResult(writes, tuple(events))
    known = gallery.videos.get(event.video_id)
    if known is not None and known.is_newer_than(event):
        # Of an older run: it never overwrites a newer one, and ends with what that one knows.
        return MatchResult(events=_end_of(event, announcer, known.candidate_count))
    step = _Step(gallery, announcer, calibration)
    if isinstance(event, PersonEmbedding):
        result = step.take_tracklet(event)
    else:
        result = step.close_video(event)
    if not gallery.decisions:
        return result
    writes, events = with_decisions(gallery, event, result.writes, result.events, announcer)
    return replace(result, writes=writes, events=tuple(events))


def _end_of(
    event: PersonEmbedding | VideoClosed | AnyDecision, announcer: Announcer, count: int
) -> tuple[VideoProgress, ...]:
    """Return how a run ends of which nothing is taken: `done`, as every run does."""
    return (announcer.done(event, count),) if isinstance(event, VideoClosed) else ()


def expire(gallery: Gallery, occurred_at: str) -> MatchResult:
    """Return what the end of a gallery does: all rows and records go, decisions stay.

    Its candidates are not withdrawn: they are no longer kept. Identities are, as nobody is left of
    whom something is decided.
    """
    writes = Writes(
        dict.fromkeys(gallery.rows),
        dict.fromkeys(gallery.videos),
        dict.fromkeys(gallery.groups),
        forgotten=dict.fromkeys(gallery.forgotten),
    )
    announcer = Announcer(gallery, 0.0, occurred_at)
    writes, events = with_decisions(gallery, None, writes, (), announcer)
    return MatchResult(writes, tuple(events))


def forget(
    gallery: Gallery,
    named: Named,
    *,
    at_seconds: float,
    similarity_threshold: float,
    occurred_at: str,
    calibration: Calibration = UNCALIBRATED,
) -> MatchResult:
    """Return what it does that somebody is forgotten: all goes that names them.

    Their candidates are withdrawn, groups and identities are said without them, and the pairs of
    the others are judged again as at a closing. What comes later and was submitted or decided
    before `at_seconds` says nothing of them.
    """
    announcer = Announcer(gallery, similarity_threshold, occurred_at, gallery.group_ids)
    result = _Step(gallery, announcer, calibration).forget(named)
    decisions = dict.fromkeys(decisions_on(gallery.decisions, named))
    writes = replace(
        result.writes,
        decisions=decisions,
        places={key: None for key in gallery.places if named.has(key)},
        forgotten=dict.fromkeys(named.marks(), at_seconds),
    )
    writes, events = with_decisions(gallery, None, writes, result.events, announcer)
    return replace(result, writes=writes, events=tuple(events))


def forget_decisions(gallery: Gallery) -> Writes:
    """Return the writes that remove all decisions of a gallery that has no rows any more."""
    return Writes(decisions=dict.fromkeys(gallery.decisions), places=dict.fromkeys(gallery.places))


@dataclass(frozen=True, slots=True)
class _Step:
    """One application of an event to a gallery, which stays as it is."""

    gallery: Gallery
    announcer: Announcer
    calibration: Calibration

    # A tracklet comes.

    def take_tracklet(self, event: PersonEmbedding) -> MatchResult:
        self._check(event)
        key = event.person_key
        videos = self._new_video_record(event)
        if self._came_in_parts(event):
            return MatchResult(Writes(videos=videos))
        whole = self._whole_track_of(event)
        old = self.gallery.rows.get(key)
        is_revision = old is not None and old.tracklet.run_id == event.run_id
        if old is not None and is_revision and not _is_higher(event, old.tracklet):
            again = (*self._removals(whole), *self._announced_again(old))
            return MatchResult(Writes(dict.fromkeys(whole), videos), again)
        known = self.gallery.candidates_of(key, with_suppressed=True)
        announced = {other for other, entry in known.items() if not entry.is_suppressed}
        found, not_compared = self._find_candidates(event, announced)
        # A pair with a tracklet of this video that the new run has not come to yet stays until the
        # run comes to it, or the video closes.
        kept = {
            other: candidate
            for other, candidate in known.items()
            if other not in found and self._awaits_new_run(event, other)
        }
        gone = sorted(announced - found.keys() - kept.keys())
        said: set[str] = set()
        rows: dict[str, Row | None] = {}
        if is_revision:
            # The pairs of the revision before would count on, as they are of the same run.
            rows |= self._rows_without(key, kept)
            said = {other for other, one in found.items() if _is_said(known.get(other), one)}
            found |= {other: replace(found[other], state=known[other].state) for other in said}
        events = list(self._removals(whole))
        events += [
            self.announcer.candidate(event, self._tracklet(other), candidate)
            for other, candidate in found.items()
            if other not in said and (other in announced or not candidate.is_suppressed)
        ]
        events += [self.announcer.no_longer_similar(event, self._tracklet(other)) for other in gone]
        rows |= dict.fromkeys(whole)
        rows[key] = Row(event, {**kept, **found})
        return MatchResult(Writes(rows, videos), tuple(events), not_compared)

    def _came_in_parts(self, event: PersonEmbedding) -> bool:
        """Return whether a whole track has come in parts in the same run: then those hold."""
        if event.part is not None:
            return False
        first = self.gallery.rows.get(person_key_of(event.video_id, event.person_id, 1))
        return first is not None and first.tracklet.run_id == event.run_id

    def _whole_track_of(self, event: PersonEmbedding) -> list[str]:
        """Return the key of the whole track whose row a part takes the place of, if it has one."""
        has_row = event.part is not None and event.track_key in self.gallery.rows
        return [event.track_key] if has_row else []

    def _rows_without(self, key: str, kept: Collection[str]) -> dict[str, Row]:
        """Return the rows that keep a candidate with a tracklet, without it, but those `kept`."""
        rows = {}
        for other in sorted(self.gallery.rows_with(key)):
            if other not in kept:
                row = self.gallery.rows[other]
                others = {near: one for near, one in row.candidates.items() if near != key}
                rows[other] = Row(row.tracklet, others)
        return rows

    def _check(self, event: PersonEmbedding) -> None:
        key = event.person_key
        gallery = self.gallery
        if event.gallery_id != gallery.gallery_id:
            raise EventError(
                f"{key}: expected an event of gallery {gallery.gallery_id!r}, "
                f"got {event.gallery_id!r}"
            )
        _check_times(event)
        vector = event.vector.numpy()
        length = float(np.linalg.norm(vector))
        if abs(length - 1) > _UNIT_TOLERANCE:
            raise EventError(f"{key}: expected a unit vector, got one of length {length:.4f}")
        dim = gallery.dim_of(event.model.weights_sha256)
        if dim is not None and dim != len(vector):
            raise EventError(
                f"{key}: expected {dim} numbers as other vectors of these weights have, "
                f"got {len(vector)}"
            )
        if key not in gallery.rows and len(gallery.rows) >= gallery.max_persons:
            raise EventError(
                f"{key}: the gallery {gallery.gallery_id!r} is full with {gallery.max_persons} "
                "persons: use another gallery, or raise max_persons_per_gallery"
            )

    def _new_video_record(self, event: PersonEmbedding) -> Mapping[str, VideoRecord]:
        known = self.gallery.videos.get(event.video_id)
        if known is None or known.order != order_of(event):
            return {event.video_id: VideoRecord.of(event)}
        started_seconds = started_seconds_of(event)
        if started_seconds <= known.started_seconds:
            return {}
        return {event.video_id: replace(known, started_seconds=started_seconds)}

    def _announced_again(self, row: Row) -> Iterator[DuplicateCandidate]:
        """Yield what was announced of a row, for an event that came before."""
        for other, candidate in sorted(row.candidates.items()):
            if not candidate.is_suppressed and self.gallery.is_current(other, candidate):
                yield self.announcer.candidate(row.tracklet, self._tracklet(other), candidate)

    def _find_candidates(
        self, event: PersonEmbedding, announced: Collection[str]
    ) -> tuple[dict[str, Candidate], int]:
        """Return the most similar tracklets by key, and how many rows were not compared."""
        near, not_compared = self.gallery.more_similar(
            event.vector.numpy(),
            event.model.weights_sha256,
            self.announcer.threshold_of(event) - FLOAT32_SLACK,
        )
        ranked: list[tuple[float, str]] = []
        for key in near:
            other = self._tracklet(key)
            if key == event.person_key or has_veto(event, other):
                continue
            if self._awaits_new_run(event, key):
                continue
            similarity = pair_similarity(event, other)
            if similarity > self.announcer.pair_threshold(event, other):
                ranked.append((-similarity, key))
        found = {}
        for negative, key in sorted(ranked)[:MAX_CANDIDATES]:
            found[key] = self._new_candidate(event, key, -negative, announced=key in announced)
        return found, not_compared

    def _new_candidate(
        self, event: PersonEmbedding, other: str, similarity: float, *, announced: bool
    ) -> Candidate:
        judgement = self.calibration.at_arrival(event.model.weights_sha256, similarity)
        run_id = self._tracklet(other).run_id
        if self.calibration.suppresses(judgement):
            return Candidate(similarity, run_id, "suppressed", judgement)
        return Candidate(similarity, run_id, "updated" if announced else "proposed", judgement)

    def _awaits_new_run(self, event: PersonEmbedding, other: str) -> bool:
        """Return whether `other` is of the event's video, as an earlier run of it left it."""
        tracklet = self._tracklet(other)
        return tracklet.video_id == event.video_id and tracklet.run_id != event.run_id

    # A video closes.

    def close_video(self, event: VideoClosed) -> MatchResult:
        known = self.gallery.videos.get(event.video_id)
        if known is not None and known.closed and known.order == order_of(event):
            return MatchResult(events=(self.announcer.done(event, known.candidate_count),))
        own = set(self.gallery.keys_of_video(event.video_id))
        stays = _staying(event)
        removed = {key for key in own if not stays(self._tracklet(key))}
        decided = self._decide(event.video_id, removed)
        groups, events = self._conclude(decided)
        rows = dict.fromkeys(sorted(removed)) | self._rows_with(decided)
        count = self._count_candidates(own - removed, removed, decided)
        record = VideoRecord.of(event, closed=True, candidate_count=count)
        return MatchResult(
            Writes(rows, {event.video_id: record}, groups, settled=decided.settled),
            (*self._removals(removed), *events, self.announcer.done(event, count)),
            not_kept=decided.not_kept,
        )

    def forget(self, named: Named) -> MatchResult:
        """Return what goes with those who are named, and what becomes of the others' pairs."""
        gallery = self.gallery
        removed = {key for key in gallery.rows if named.has(key)}
        videos = {video_id for video_id in gallery.videos if named.has_video(video_id)}
        decided = self._decide(self._video_to_judge(removed, videos), removed)
        for group_id, group in gallery.groups.items():
            if not removed.isdisjoint(group.person_keys):
                decided.groups.setdefault(group_id, None)
        groups, events = self._conclude(decided)
        rows = dict.fromkeys(sorted(removed)) | self._rows_with(decided)
        return MatchResult(
            Writes(rows_without(gallery, rows, named), dict.fromkeys(sorted(videos)), groups),
            (*self._removals(removed), *events),
            not_kept=decided.not_kept,
        )

    def _video_to_judge(self, removed: Collection[str], videos: Collection[str]) -> str:
        """Return the closed video that loses some of its tracklets, "" where it is not just one."""
        touched = {self._tracklet(key).video_id for key in removed} - set(videos)
        records = {name: self.gallery.videos.get(name) for name in touched}
        closed = [name for name, record in records.items() if record is not None and record.closed]
        return closed[0] if len(closed) == 1 else ""

    def _conclude(
        self, decided: Decided
    ) -> tuple[dict[str, Group | None], list[DuplicateCandidate | DuplicateGroup]]:
        """Return the groups that change with what was decided, and what is said of it."""
        groups = {
            group_id: group
            for group_id, group in decided.groups.items()
            if self.gallery.groups.get(group_id) != group
        }
        standing = {name: group for name, group in decided.groups.items() if group is not None}
        announcer = replace(self.announcer, group_ids=group_ids_of(standing))
        return groups, [
            *_Step(self.gallery, announcer, self.calibration).announce(decided),
            *self._announce_groups(groups),
        ]

    def _removals(self, removed: Collection[str]) -> Iterator[DuplicateCandidate]:
        """Yield the withdrawals of all candidates of tracklets that are removed, each pair once."""
        for key in sorted(removed):
            for other, candidate in sorted(self.gallery.candidates_of(key).items()):
                if other not in removed or key < other:
                    pair = (self._tracklet(key), self._tracklet(other))
                    yield self.announcer.removal(*pair, candidate)

    def _decide(self, video_id: str, removed: Collection[str]) -> Decided:
        """Judge the pairs of the gallery as it is without `removed`.

        Those of weights that have no model of pairs are judged by their curve alone, all of them:
        each counts for all others.
        """
        decided = decide_pairs(self.announcer, self.calibration, video_id, removed)
        if not self.calibration.weights_without_pair_model() & self.gallery.weights:
            return decided
        staying = {
            key: row.tracklet for key, row in self.gallery.rows.items() if key not in removed
        }
        by_curve = self.calibration.without_pair_model(staying)
        stored = self._pairs_of(by_curve, removed)
        pairs = sorted(pair for pair in stored if pair[0] in by_curve and pair[1] in by_curve)
        for pair, judgement in self.calibration.at_close(by_curve, pairs).items():
            is_shown = not self.calibration.suppresses(judgement)
            new = stored[pair].judged(judgement, is_shown=is_shown)
            if new != stored[pair]:
                decided.stored[pair] = stored[pair]
                decided.candidates[pair] = new
        return decided

    def announce(self, decided: Decided) -> Iterator[DuplicateCandidate]:
        """Yield what readers must know of pairs that were decided."""
        stored = decided.stored
        for pair in sorted(decided.dropped):
            if not stored[pair].is_suppressed:
                yield self._candidate_event(pair, replace(stored[pair], state="suppressed"))
        for pair, new in sorted(decided.candidates.items()):
            old = stored.get(pair)
            was_shown = old is not None and not old.is_suppressed
            is_said = old is not None and new.says_as(old)
            if not is_said and (was_shown or not new.is_suppressed):
                yield self._candidate_event(pair, new)

    def _announce_groups(self, changed: Mapping[str, Group | None]) -> Iterator[DuplicateGroup]:
        known = self.gallery.groups
        for group_id, group in sorted(changed.items()):
            if group is None:
                yield self.announcer.group(group_id, known[group_id], "withdrawn")
            else:
                state: Literal["proposed", "updated"] = (
                    "updated" if group_id in known else "proposed"
                )
                yield self.announcer.group(group_id, group, state)

    def _candidate_event(self, pair: PairKey, candidate: Candidate) -> DuplicateCandidate:
        one, other = pair
        return self.announcer.candidate(self._tracklet(one), self._tracklet(other), candidate)

    def _pairs_of(self, keys: Iterable[str], removed: Collection[str]) -> dict[PairKey, Candidate]:
        """Return all pairs of some tracklets, suppressed ones as well, but those of `removed`."""
        return {
            pair_key(key, other): candidate
            for key in keys
            for other, candidate in self.gallery.candidates_of(key, with_suppressed=True).items()
            if other not in removed
        }

    def _rows_with(self, decided: Decided) -> dict[str, Row | None]:
        """Return the rows that change with what was decided, as they become."""
        rows = self.gallery.rows
        changed: dict[str, dict[str, Candidate]] = {}

        def candidates_of(key: str) -> dict[str, Candidate]:
            own = changed.get(key)
            if own is None:
                own = changed[key] = dict(rows[key].candidates)
            return own

        for pair in decided.dropped:
            for key, other in self._keepers(pair):
                del candidates_of(key)[other]
        for pair, new in decided.candidates.items():
            if pair in decided.stored:
                keepers = self._keepers(pair)
            else:
                owner = decided.owners[pair]
                keepers = [pair if owner == pair[0] else pair[::-1]]
            for key, other in keepers:
                candidates_of(key)[other] = new
        return {key: Row(rows[key].tracklet, own) for key, own in sorted(changed.items())}

    def _keepers(self, pair: PairKey) -> list[PairKey]:
        """Return whose row keeps a pair, each with the other of the two."""
        return [both for both in (pair, pair[::-1]) if self._keeps(*both)]

    def _count_candidates(
        self, own: Collection[str], removed: Collection[str], decided: Decided
    ) -> int:
        """Return how many pairs of a video's tracklets are announced once `decided` holds."""
        after = self._pairs_of(own, removed)
        for pair, candidate in decided.candidates.items():
            if pair[0] in own or pair[1] in own:
                after[pair] = candidate
        return sum(
            not candidate.is_suppressed and pair not in decided.dropped
            for pair, candidate in after.items()
        )

    def _keeps(self, key: str, other: str) -> bool:
        candidate = self.gallery.rows[key].candidates.get(other)
        return candidate is not None and self.gallery.is_current(other, candidate)

    def _tracklet(self, key: str) -> PersonEmbedding:
        return self.gallery.rows[key].tracklet


def _staying(event: VideoClosed) -> Callable[[PersonEmbedding], bool]:
    """Return what says whether a tracklet of the video stays when it is closed."""
    # A run that was cut short says nothing of the tracklets it did not come to: those stay.
    if event.outcome != "done":
        return lambda _: True
    person_ids = event.person_ids
    keys = event.person_keys
    named = {person_key_of(event.video_id, one) for one in person_ids} if keys is None else {*keys}
    return lambda tracklet: tracklet.run_id == event.run_id and tracklet.person_key in named


def _is_higher(event: PersonEmbedding, held: PersonEmbedding) -> bool:
    """Return whether an event is a higher revision than what is held of the same run."""
    return (event.revision or 0) > (held.revision or 0)


def _is_said(old: Candidate | None, new: Candidate) -> bool:
    """Return whether readers know already what a pair of another revision says."""
    return old is not None and new.says_as(old)


def _check_times(event: PersonEmbedding) -> None:
    first, last = event.first_seen_seconds, event.last_seen_seconds
    if not -MAX_SECONDS <= first <= last <= MAX_SECONDS:
        raise EventError(
            f"{event.person_key}: expected first_seen_seconds <= last_seen_seconds, both within "
            f"{MAX_SECONDS:.0e} s of 0, got {first:g} and {last:g}"
        )
