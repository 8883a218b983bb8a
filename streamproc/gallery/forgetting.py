"""Who is forgotten: what an event names, what of a gallery names them, and what comes too late.

Pure. That somebody was forgotten is remembered by a hash and a time, which name nobody: what was
submitted or decided before that time, and comes later, says nothing of them any more. So it does
not matter in which order the events come.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from streamproc.decisions import UndoDecision
from streamproc.events import PersonEmbedding, VideoClosed
from streamproc.gallery.gallery import Row, order_of
from streamproc.gallery.reviewed import keys_named
from streamproc.ids import hash_of, person_key_of, track_key_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from streamproc.decisions import AnyDecision
    from streamproc.events import Forgotten
    from streamproc.gallery.gallery import Gallery
    from streamproc.gallery.reviewed import Kept


@dataclass(frozen=True, slots=True)
class Named:
    """Whom one event names: tracks, all of some videos, or `everything` of its gallery."""

    person_keys: frozenset[str] = frozenset()
    video_ids: frozenset[str] = frozenset()
    everything: bool = False

    @classmethod
    def by(cls, event: Forgotten) -> Named:
        """Return whom an event names: a part of a track stands for its track."""
        tracks = frozenset(map(track_key_of, event.person_keys))
        return cls(tracks, frozenset(event.video_ids), event.everything)

    def has(self, person_key: str) -> bool:
        """Return whether a track, or that of a part, is among them."""
        if self.everything or track_key_of(person_key) in self.person_keys:
            return True
        return person_key.rpartition("/")[0] in self.video_ids

    def has_video(self, video_id: str) -> bool:
        """Return whether all of a video are among them."""
        return self.everything or video_id in self.video_ids

    def marks(self) -> Iterator[str]:
        """Yield what is remembered of them: hashes."""
        if self.everything:
            yield _EVERYTHING
        yield from map(_mark_of_video, sorted(self.video_ids))
        yield from map(_mark_of_person, sorted(self.person_keys))


_EVERYTHING = hash_of("forgotten", "everything")


def _mark_of_video(video_id: str) -> str:
    return hash_of("forgotten", "video", video_id)


def _mark_of_person(person_key: str) -> str:
    return hash_of("forgotten", "person", person_key)


def is_late_of_video(gallery: Gallery, video_id: str, seconds: float) -> bool:
    """Return whether a video was forgotten since what was said at this time, in seconds."""
    marks = (_EVERYTHING, _mark_of_video(video_id))
    return any(gallery.forgotten.get(mark, -1.0) >= seconds for mark in marks)


def is_late(gallery: Gallery, person_key: str, seconds: float) -> bool:
    """Return whether a track was forgotten since what was said at this time, in seconds."""
    track_key = track_key_of(person_key)
    if gallery.forgotten.get(_mark_of_person(track_key), -1.0) >= seconds:
        return True
    return is_late_of_video(gallery, person_key.rpartition("/")[0], seconds)


def not_forgotten(
    gallery: Gallery, event: PersonEmbedding | VideoClosed | AnyDecision
) -> PersonEmbedding | VideoClosed | AnyDecision | None:
    """Return what an event says of those who were not forgotten since; None for nothing."""
    if not gallery.forgotten:
        return event
    if isinstance(event, VideoClosed):
        seconds = order_of(event)[0]
        return None if is_late_of_video(gallery, event.video_id, seconds) else event
    if isinstance(event, PersonEmbedding):
        seconds = order_of(event)[0]
        if is_late(gallery, event.person_key, seconds):
            return None
        return without_seen(event, lambda key: is_late(gallery, key, seconds))
    decided_seconds = event.order[0]
    if isinstance(event, UndoDecision):
        is_over = gallery.forgotten.get(_EVERYTHING, -1.0) >= decided_seconds
    else:
        is_over = any(is_late(gallery, key, decided_seconds) for key in keys_named(event))
    return None if is_over else event


def without_seen(person: PersonEmbedding, is_gone: Callable[[str], bool]) -> PersonEmbedding:
    """Return a person who was seen beside none of whom is gone; the same where nothing changes."""
    video_id = person.video_id
    kept = [name for name in person.seen_with if not is_gone(person_key_of(video_id, name))]
    keys = person.seen_with_keys
    kept_keys = None if keys is None else [key for key in keys if not is_gone(key)]
    if len(kept) == len(person.seen_with) and kept_keys == keys:
        return person
    return person.model_copy(update={"seen_with": kept, "seen_with_keys": kept_keys})


def rows_without(
    gallery: Gallery, changed: Mapping[str, Row | None], named: Named
) -> dict[str, Row | None]:
    """Return the rows to write so that none names somebody who is forgotten.

    `changed` are the rows that change anyway, None for one that goes.
    """
    rows = dict(changed)
    for key, stored in gallery.rows.items():
        row = rows.get(key, stored)
        if row is None:
            continue
        kept = {other: one for other, one in row.candidates.items() if not named.has(other)}
        person = without_seen(row.tracklet, named.has)
        if person is not row.tracklet or len(kept) != len(row.candidates):
            rows[key] = Row(person, kept)
    return rows


def decisions_on(decisions: Mapping[str, Kept], named: Named) -> list[str]:
    """Return the ids of the decisions that name one of them, and of those that undo these.

    An undo comes before what it undoes: where they are removed one by one and that is cut short,
    what is left still leads to it.
    """
    undone: dict[str, list[str]] = {}
    found: dict[str, None] = {}  # in the order in which they are found
    for decision_id, kept in decisions.items():
        if isinstance(kept.decision, UndoDecision):
            undone.setdefault(kept.decision.undoes, []).append(decision_id)
        if named.everything or any(map(named.has, keys_named(kept.decision))):
            found[decision_id] = None
    waiting = list(found)
    while waiting:
        for decision_id in undone.get(waiting.pop(), ()):
            if decision_id not in found:
                found[decision_id] = None
                waiting.append(decision_id)
    return list(reversed(found))


@dataclass(frozen=True, slots=True)
class Holdings:
    """What a gallery holds of somebody: `person_keys` have rows; of the rest how many.

    `video_ids` are the videos of all of them, as far as the gallery knows.
    """

    person_keys: tuple[str, ...] = ()
    candidate_count: int = 0
    group_count: int = 0
    decision_count: int = 0
    identity_count: int = 0
    place_count: int = 0
    video_ids: tuple[str, ...] = ()

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is held."""
        return self == Holdings()


def holdings(gallery: Gallery, named: Named) -> Holdings:
    """Return what a gallery holds of those who are named."""
    keys = sorted(key for key in gallery.rows if named.has(key))
    pairs = {tuple(sorted((key, other))) for key in keys for other in gallery.candidates_of(key)}
    groups = gallery.groups.values()
    identities = gallery.reviewed.notable.values()
    decisions = decisions_on(gallery.decisions, named)
    places = [key for key in gallery.places if named.has(key)]
    decided = {key for name in decisions for key in keys_named(gallery.decisions[name].decision)}
    videos = {key.rpartition("/")[0] for key in (*keys, *places, *filter(named.has, decided))}
    videos |= {video_id for video_id in gallery.videos if named.has_video(video_id)}
    return Holdings(
        tuple(keys),
        len(pairs),
        sum(any(map(named.has, group.person_keys)) for group in groups),
        len(decisions),
        sum(any(map(named.has, one.person_keys)) for one in identities),
        len(places),
        tuple(sorted(videos)),
    )
