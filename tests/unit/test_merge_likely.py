"""`merge --gallery --likely`: what nobody decided is joined where nothing speaks against it."""

from __future__ import annotations

import numpy as np
from persons import candidate

from streamproc.events import PersonIdentity
from streamproc.offline.merge import merge_gallery
from streamproc.offline.stream_tracks import StreamTracks
from streamproc.types import Track


def likely(a, b, probability=0.95, band="likely"):
    """A candidate of two tracks of one video."""
    return candidate(f"v/{a}", f"v/{b}", 0.9, probability=probability, band=band)


def tracks(count):
    """Tracks 1 to `count`, after each other."""
    box = np.array([[0, 0, 10, 20]], np.float32)
    return tuple(
        Track(number, np.array([number]), box, np.ones(1, np.float32))
        for number in range(1, count + 1)
    )


def said(*numbers, conflicts=()):
    """An identity as a matcher says it."""
    keys = [f"v/{number}" for number in numbers]
    return PersonIdentity.make(
        occurred_at="2026-11-30T10:00:00Z",
        gallery_id="g",
        identity_id=f"of {keys[0]}",
        person_keys=keys,
        conflicts=conflicts,
        verified=False,
    )


def persons(count, identities, candidates, apart=()):
    """Which tracks are one person in what is written."""
    merged = merge_gallery(
        "g",
        identities,
        [StreamTracks("v", "v", tracks(count))],
        decision_count=len(identities),
        candidates=candidates,
        apart=frozenset(apart),
    )
    [video] = merged.videos
    assert merged.identity_count == len(video.tracks)
    return [one.original_ids for one in video.tracks]


def test_likely_candidates_join_identities_and_uncertain_ones_do_not():
    """Also two that were decided, each with others."""
    found = persons(
        6, [said(1, 4), said(2, 5)], [likely(4, 5), likely(3, 6, 0.5, band="uncertain")]
    )
    assert found == [(1, 2, 4, 5), (3,), (6,)]


def test_two_who_are_apart_are_never_joined_through_others():
    """Neither through a likely pair, nor through a track that was decided to be the same.

    The likeliest comes first, and what would then join 2 and 3 is left.
    """
    pairs = [likely(1, 2, 0.99), likely(4, 3, 0.95)]
    assert persons(4, [said(1, 4)], pairs, [("v/2", "v/3")]) == [(1, 2, 4), (3,)]


def test_whom_a_conflict_holds_apart_is_joined_with_nobody():
    """Until it is solved."""
    conflicts = [("v/1", "v/2")]
    single = [said(1, conflicts=conflicts), said(2, conflicts=conflicts)]
    assert persons(3, single, [likely(1, 3)]) == [(1,), (2,), (3,)]
