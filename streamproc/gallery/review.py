"""What a decision does to a gallery, and what decisions do to everything else that is announced.

The matcher proposes as if nobody had decided anything, and so do its rows. This module stands
between that and what is announced: a pair, or a group with a pair, that reviewers called different
is withdrawn with the reason `decided`, and is proposed again where that no longer holds. It also
says which identities change, and carries decisions over to a run with other tracks.

Pure, as the matcher's core is.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from streamproc.errors import EventError
from streamproc.events import (
    DuplicateCandidate,
    DuplicateGroup,
    PersonEmbedding,
    PersonIdentity,
    PersonIdentityGone,
    VideoClosed,
    VideoProgress,
)
from streamproc.gallery.carry_over import carry_over, place_of
from streamproc.gallery.gallery import Writes
from streamproc.gallery.pairs import pair_key
from streamproc.gallery.reviewed import (
    MAX_DECISIONS,
    MAX_PAIRS_SAID,
    Kept,
    Reviewed,
    Said,
    keys_named,
    pair_count,
)

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from typing import TypeAlias

    from streamproc.decisions import AnyDecision
    from streamproc.gallery.announcements import Announcer
    from streamproc.gallery.carry_over import Place
    from streamproc.gallery.gallery import Gallery, Row
    from streamproc.gallery.pairs import Candidate, Group, PairKey

    Announced: TypeAlias = (
        DuplicateCandidate | DuplicateGroup | VideoProgress | PersonIdentity | PersonIdentityGone
    )


def take_decision(
    gallery: Gallery, decision: AnyDecision, announcer: Announcer
) -> tuple[Writes, list[Announced]]:
    """Return what one decision does. Raises EventError where the gallery holds too many.

    One that came before, or has the id of an earlier one, does nothing.
    """
    known = gallery.decisions.get(decision.decision_id)
    if known is not None and known.decision.order <= decision.order:
        return Writes(), []
    before = gallery.reviewed
    count = len(gallery.decisions)
    pairs = before.said.pair_total + pair_count(decision)
    if count >= MAX_DECISIONS or pairs > MAX_PAIRS_SAID:
        raise EventError(
            f"gallery {gallery.gallery_id!r}: expected at most {MAX_DECISIONS:,} decisions on "
            f"{MAX_PAIRS_SAID:,} pairs, got another one: it holds {count:,} decisions"
        )
    kept = {decision.decision_id: Kept(decision)}
    places = {
        key: place_of(gallery.rows[key].tracklet)
        for key in keys_named(decision)
        if key in gallery.rows and key not in gallery.places
    }
    said = before.said.after(decision) if known is None else None
    if said is None:
        said = Said.by((gallery.decisions | kept).values())
    step = _Step(gallery, Writes(decisions=kept, places=places), announcer, said)
    return step.writes_with_reviewed(), list(step.consequences())


def with_decisions(
    gallery: Gallery,
    event: PersonEmbedding | VideoClosed | None,
    writes: Writes,
    events: Sequence[Announced],
    announcer: Announcer,
) -> tuple[Writes, list[Announced]]:
    """Return what an event does where some is decided, of what it would do otherwise.

    `event` is None where the gallery expires, or somebody is forgotten.
    """
    if not gallery.decisions:
        return writes, list(events)
    said = gallery.reviewed.said
    if isinstance(event, PersonEmbedding):
        writes = replace(writes, places=_first_places(gallery, writes))
    elif isinstance(event, VideoClosed) and writes.videos and event.outcome == "done":
        writes = _carried(gallery, event, writes)
    if writes.decisions:
        said = Said.by(_there({**gallery.decisions, **writes.decisions}).values())
    step = _Step(gallery, writes, announcer, said)
    allowed = list(step.allowed(events))
    if isinstance(event, VideoClosed):
        return step.with_count(event, [*allowed, *step.consequences(allowed)])
    return step.writes_with_reviewed(), [*allowed, *step.consequences(allowed)]


def _there(kept: Mapping[str, Kept | None]) -> dict[str, Kept]:
    return {decision_id: one for decision_id, one in kept.items() if one is not None}


def _first_places(gallery: Gallery, writes: Writes) -> dict[str, Place | None]:
    """Return where those are who come now and whom an earlier decision named."""
    return {
        key: place_of(row.tracklet)
        for key, row in writes.rows.items()
        if row is not None and key not in gallery.places and key in gallery.reviewed.said.named
    }


def _carried(gallery: Gallery, event: VideoClosed, writes: Writes) -> Writes:
    """Carry the decisions on an earlier run of a video over to the one that is closed now."""
    own = {key: one for key, one in gallery.places.items() if one.video_id == event.video_id}
    rows = _rows_of_video(gallery, writes, event.video_id)
    # A track may be taken apart at its end, after it was published as a whole in the same run.
    if all(place.run_id == event.run_id and key in rows for key, place in own.items()):
        return writes
    kept = {name: one.decision for name, one in gallery.decisions.items() if not one.is_lost}
    named = {key for decision in kept.values() for key in keys_named(decision)}
    carried = carry_over(
        kept.values(),
        own.values(),
        [row.tracklet for row in rows.values()],
        {event.video_id},
        unchanged_keys=named - own.keys(),  # of a track that never was there nothing is known
    )
    decisions = {
        one.decision_id: Kept(one) for one in carried.decisions if one != kept[one.decision_id]
    }
    decisions |= {one.decision_id: Kept(one, is_lost=True) for one in carried.lost}
    named = {key for one in carried.decisions for key in keys_named(one)}
    places: dict[str, Place | None] = dict.fromkeys(own)
    places |= {key: place_of(row.tracklet) for key, row in rows.items() if key in named}
    return replace(writes, decisions=decisions, places=places)


def _rows_of_video(gallery: Gallery, writes: Writes, video_id: str) -> dict[str, Row]:
    known = {key: gallery.rows[key] for key in gallery.keys_of_video(video_id)}
    return {key: row for key, row in (known | dict(writes.rows)).items() if row is not None}


@dataclass(slots=True, eq=False)
class _Step:
    """One event's effect on a gallery, which stays as it is, seen with and without decisions."""

    gallery: Gallery
    writes: Writes
    announcer: Announcer
    said: Said
    _after: Reviewed | None = None

    @property
    def before(self) -> Reviewed:
        return self.gallery.reviewed

    @property
    def after(self) -> Reviewed:
        """What follows from the decisions after the event."""
        if self._after is None:
            is_same = self.said is self.before.said
            touches = not self.said.named.isdisjoint(self.writes.rows)
            self._after = (
                self.gallery.reviewed_after(self.writes, self.said)
                if touches or not is_same
                else self.before
            )
        return self._after

    def writes_with_reviewed(self) -> Writes:
        return replace(self.writes, reviewed=self.after)

    # What the matcher would announce.

    def allowed(self, events: Sequence[Announced]) -> Iterator[Announced]:
        """Yield the events but for proposals of what is ruled out."""
        for event in events:
            if isinstance(event, DuplicateCandidate) and event.state != "withdrawn":
                if not self.after.rules_out(*(person.person_key for person in event.persons)):
                    yield event
            elif isinstance(event, DuplicateGroup) and event.state != "withdrawn":
                yield from self._allowed_group(event)
            else:
                yield event

    def _allowed_group(self, event: DuplicateGroup) -> Iterator[Announced]:
        if not self.after.are_apart(event.person_keys):
            yield event
            return
        old = self.gallery.groups.get(event.group_id)
        if old is not None and not self.before.are_apart(old.person_keys):
            yield self.announcer.group(event.group_id, old, "withdrawn")

    def with_count(
        self, closed: VideoClosed, events: list[Announced]
    ) -> tuple[Writes, list[Announced]]:
        """Leave the pairs that are ruled out out of the number of a video's candidates."""
        record = self.writes.videos.get(closed.video_id)
        if record is None:
            return self.writes_with_reviewed(), events
        own = [key for key in self.said.named if key.rpartition("/")[0] == closed.video_id]
        hidden = {
            pair
            for pair, candidate in self._pairs_of(own).items()
            if not candidate.is_suppressed and self.after.rules_out(*pair)
        }
        count = record.candidate_count - len(hidden)
        videos = {closed.video_id: replace(record, candidate_count=count)}
        self.writes = replace(self.writes, videos=videos)
        done = [
            event.saying(candidate_count=count) if isinstance(event, VideoProgress) else event
            for event in events
        ]
        # `done` is the last word on a video.
        last = [event for event in done if isinstance(event, VideoProgress)]
        others = [event for event in done if not isinstance(event, VideoProgress)]
        return self.writes_with_reviewed(), [*others, *last]

    # What follows beside that.

    def consequences(self, said: Collection[Announced] = ()) -> Iterator[Announced]:
        """Yield what changes by what is decided, but for pairs and groups that are in `said`."""
        affected = self.after.differs_for(self.before)
        yield from self._pairs(affected, said)
        yield from self._groups(affected)
        yield from self._identities()

    def _pairs(self, affected: Collection[str], said: Collection[Announced]) -> Iterator[Announced]:
        told = {event.candidate_id for event in said if isinstance(event, DuplicateCandidate)}
        for pair, candidate in sorted(self._pairs_of(affected).items()):
            is_out = self.after.rules_out(*pair)
            if candidate.is_suppressed or is_out == self.before.rules_out(*pair):
                continue
            a, b = (self._row(key).tracklet for key in pair)
            if is_out:
                yield self.announcer.ruled_out(a, b, candidate)
                continue
            event = self.announcer.candidate(a, b, replace(candidate, state="proposed"))
            if event.candidate_id not in told:
                yield event

    def _groups(self, affected: Collection[str]) -> Iterator[Announced]:
        group_ids = self.gallery.group_ids
        for group_id in sorted({group_ids[key] for key in affected if key in group_ids}):
            group: Group = self.gallery.groups[group_id]
            is_out = self.after.are_apart(group.person_keys)
            if group_id not in self.writes.groups and is_out != self.before.are_apart(
                group.person_keys
            ):
                yield self.announcer.group(group_id, group, "withdrawn" if is_out else "proposed")

    def _identities(self) -> Iterator[Announced]:
        gallery_id = self.gallery.gallery_id
        was = self.before.notable
        now = self.after.notable
        for identity_id in sorted(was.keys() | now.keys()):
            one = now.get(identity_id)
            if one is None:
                yield PersonIdentityGone.make(
                    occurred_at=self.announcer.occurred_at,
                    gallery_id=gallery_id,
                    identity_id=identity_id,
                )
            elif one != was.get(identity_id):
                yield self.announcer.identity(one)

    # The gallery as it becomes.

    def _row(self, key: str) -> Row:
        row = self._row_or_none(key)
        assert row is not None
        return row

    def _row_or_none(self, key: str) -> Row | None:
        rows = self.writes.rows
        return rows[key] if key in rows else self.gallery.rows.get(key)

    def _pairs_of(self, keys: Collection[str]) -> dict[PairKey, Candidate]:
        """Return the pairs of some tracklets, suppressed ones too."""
        found: dict[PairKey, Candidate] = {}
        for key in keys:
            for other, candidate in self._candidates_of(key).items():
                found[pair_key(key, other)] = candidate
        return found

    def _candidates_of(self, key: str) -> dict[str, Candidate]:
        """Return the candidates of one tracklet, whichever row keeps them; see `Gallery`."""
        own = self._row_or_none(key)
        if own is None:
            return {}
        found: dict[str, Candidate] = {}
        for other in {*self.gallery.rows_with(key), *self.writes.rows}:
            row = self._row_or_none(other)
            candidate = None if row is None else row.candidates.get(key)
            if candidate is not None and candidate.run_id == own.tracklet.run_id:
                found[other] = candidate
        for other, candidate in own.candidates.items():
            row = self._row_or_none(other)
            if row is not None and row.tracklet.run_id == candidate.run_id:
                found[other] = candidate
        return found
