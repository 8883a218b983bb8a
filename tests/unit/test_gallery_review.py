"""What decisions do to a gallery: pairs go and come back, identities are said, runs come again."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persons import closed, person, unit_vector, walk
from test_identities import one_decision

from streamproc.decisions import (
    GroupDecision,
    PairDecision,
    SelectedDecision,
    UndoDecision,
    parse_gallery_event,
)
from streamproc.errors import EventError
from streamproc.events import DuplicateCandidate, DuplicateGroup, PersonIdentity
from streamproc.gallery import Gallery, Group, Judgement, Writes, apply, expire, reviewed
from streamproc.gallery.identities import Identities, statements_of
from streamproc.services.matcher.table import EntryKey, OwnedGallery, entries_of

TIME = "2026-11-30T12:00:00Z"
ALIKE = [1.0, 0.1, 0.0]


def take(gallery, *events):
    """Have a gallery take events; what it announces, in order."""
    said = []
    for event in events:
        result = apply(gallery, event, similarity_threshold=0.7, occurred_at=TIME)
        gallery.write(result.writes)
        said += result.events
    return said


def pair(a, b, verdict, second=0):
    """A decision on two tracks of the video v, by their numbers."""
    return PairDecision.make(
        gallery_id="g",
        decided_at=f"2026-11-30T10:00:{second:02d}Z",
        person_keys=(f"v/{a}", f"v/{b}"),
        verdict=verdict,
    )


def undo(decision, second):
    """The undo of a decision."""
    return UndoDecision.make(
        gallery_id="g",
        decided_at=f"2026-11-30T10:00:{second:02d}Z",
        undoes=decision.decision_id,
    )


def a_gallery(count=4, **options):
    """A gallery of one closed video whose persons all look alike; what it announced."""
    gallery = Gallery("g")
    events = [person(number, ALIKE, **options) for number in range(1, count + 1)]
    said = take(gallery, *events, closed(range(1, count + 1)))
    return gallery, said


def pairs(said):
    """State and numbers of the candidates among events."""
    return [
        (event.state, event.reason, *(one.person_id for one in event.persons))
        for event in said
        if isinstance(event, DuplicateCandidate)
    ]


def identities(said):
    """The identities that are said, with None for one that is gone."""
    return [
        event.person_keys if isinstance(event, PersonIdentity) else None
        for event in said
        if event.topic == "identities"
    ]


def test_a_pair_that_is_called_different_goes_and_comes_back_with_an_undo():
    """It is withdrawn with its own reason, and proposed again when that no longer holds."""
    gallery, _ = a_gallery()
    no = pair(1, 2, "different")
    assert pairs(take(gallery, no)) == [("withdrawn", "decided", 1, 2)]
    assert take(gallery, no) == []
    assert pairs(take(gallery, undo(no, 5))) == [("proposed", None, 1, 2)]


def test_different_reaches_through_a_third_track():
    """Whoever is the same as one of two that are different is different from the other."""
    gallery, _ = a_gallery()
    said = take(gallery, pair(1, 2, "same"), pair(2, 3, "different", 1))
    assert pairs(said) == [
        ("withdrawn", "decided", 1, 3),
        ("withdrawn", "decided", 2, 3),
    ]
    assert identities(said) == [["v/1", "v/2"]]
    said = take(gallery, pair(1, 2, "different", 2))
    assert pairs(said) == [("withdrawn", "decided", 1, 2), ("proposed", None, 1, 3)]
    assert identities(said) == [None]


def test_a_pair_that_is_called_different_is_not_proposed_by_a_later_event():
    """Not when its tracks come, not when the video closes; and `done` does not count it."""
    gallery = Gallery("g")
    no = pair(1, 2, "different")
    assert take(gallery, no) == []
    events = [person(number, ALIKE) for number in (1, 2, 3)]
    said = take(gallery, *events, closed([1, 2, 3]))
    assert ("proposed", None, 1, 2) not in pairs(said)
    assert said[-1].state == "done"
    assert said[-1].candidate_count == 2
    assert gallery.videos["v"].candidate_count == 2
    assert take(gallery, closed([1, 2, 3]))[-1].candidate_count == 2
    assert pairs(take(gallery, undo(no, 3))) == [("proposed", None, 1, 2)]


def test_tracks_in_conflict_are_joined_with_nobody_and_the_pair_is_named():
    """A veto among those that were called one takes them apart, and so says the topic."""
    gallery, _ = a_gallery(seen_with=[3])
    said = take(gallery, pair(1, 2, "same"), pair(2, 3, "same", 1))
    last = {event.person_keys[0]: event for event in said if isinstance(event, PersonIdentity)}
    assert [event.person_keys for event in last.values()] == [["v/1"], ["v/2"], ["v/3"]]
    assert last["v/1"].conflicts == [("v/1", "v/3"), ("v/2", "v/3")]


def test_a_group_with_a_pair_that_is_different_is_withdrawn_and_comes_back():
    """As replay does: a group in which two were called different is no proposal any more."""
    gallery, _ = a_gallery()
    group = Group(("v/1", "v/2", "v/3"), Judgement(0.9, "likely", "c"))
    gallery.write(Writes(groups={"x": group}))
    no = pair(1, 3, "different")

    def states(said):
        return [event.state for event in said if isinstance(event, DuplicateGroup)]

    assert states(take(gallery, no)) == ["withdrawn"]
    assert states(take(gallery, undo(no, 1))) == ["proposed"]


def test_decisions_outlive_the_rows_and_hold_when_the_video_comes_again():
    """The gallery expires: identities are taken back, and said again with the same tracks."""
    gallery, _ = a_gallery(trajectory=walk(0, 20, 0, 3))
    take(gallery, pair(1, 2, "same"), pair(1, 3, "different", 1))
    result = expire(gallery, TIME)
    assert identities(result.events) == [None]
    gallery.write(result.writes)
    assert not gallery.rows
    assert len(gallery.decisions) == 2
    events = [person(number, ALIKE, trajectory=walk(0, 20, 0, 3)) for number in (1, 2, 3)]
    said = take(gallery, *events, closed([1, 2, 3]))
    assert identities(said) == [["v/1", "v/2"]]
    assert pairs(said) == [("proposed", None, 1, 2)]


def places(*numbers, run, minute):
    """Persons by where they walk, one line each; they have new numbers."""
    return [
        person(
            number,
            ALIKE,
            run=run,
            minute=minute,
            trajectory=walk(0, 20, 400 * line, 3),
        )
        for line, number in enumerate(numbers)
        if number
    ]


def test_a_run_with_other_tracks_keeps_decisions_on_those_who_are_where_they_were():
    """Who is not there any more loses them: they say nothing, and are kept to be shown."""
    gallery = Gallery("g")
    take(gallery, *places(1, 2, 3, 4, run="r1", minute=0), closed([1, 2, 3, 4]))
    same, no, of_gone = pair(1, 2, "same"), pair(1, 3, "different", 1), pair(3, 4, "same", 2)
    take(gallery, same, no, of_gone)
    # The first has the number of the second, and so on; the fourth is gone.
    said = take(
        gallery,
        *places(2, 3, 1, None, run="r2", minute=1),
        closed([1, 2, 3], run="r2", minute=1),
    )
    assert ["v/2", "v/3"] in identities(said)
    assert [one.is_lost for one in gallery.decisions.values()] == [False, False, True]
    kept = gallery.decisions[no.decision_id].decision
    assert sorted(kept.person_keys) == ["v/1", "v/2"]
    assert gallery.reviewed.rules_out("v/1", "v/3")
    assert take(gallery, same) == []
    assert {key: place.run_id for key, place in gallery.places.items()} == {
        "v/1": "r2",
        "v/2": "r2",
        "v/3": "r2",
    }


def test_a_decision_on_a_track_that_is_taken_apart_later_goes_to_the_part_that_is_it():
    """In one run, too: what was said of the whole track holds for the part that has its boxes."""
    gallery = Gallery("g")
    other = person(1, ALIKE, trajectory=walk(0, 40, 1200, 5))
    whole = person(7, ALIKE, revision=1, trajectory=walk(0, 40, 100, 5))
    take(gallery, other, whole, pair(1, 7, "same"))
    parts = [
        person(7, ALIKE, part=1, trajectory=walk(0, 40, 100, 5)),
        person(7, [0, 0, 1.0], part=2, trajectory=walk(40, 40, 900, 5)),
    ]
    said = take(gallery, *parts, closed([1], person_keys=["v/1", "v/7#1", "v/7#2"]))
    identities = [event for event in said if isinstance(event, PersonIdentity)]
    assert identities[-1].person_keys == ["v/1", "v/7#1"]


def test_a_run_that_was_cut_short_carries_nothing_over():
    """It says nothing of those whom it did not come to."""
    gallery = Gallery("g")
    take(gallery, *places(1, 2, run="r1", minute=0), closed([1, 2]))
    take(gallery, pair(1, 2, "same"))
    take(
        gallery,
        *places(2, None, run="r2", minute=1),
        closed([2], run="r2", minute=1, outcome="failed"),
    )
    assert gallery.reviewed.identities.all[0].person_keys == ("v/1", "v/2")


def test_a_gallery_that_is_full_of_decisions_refuses_more(monkeypatch):
    """By name, so that it becomes a dead letter."""
    monkeypatch.setattr("streamproc.gallery.review.MAX_DECISIONS", 1)
    gallery, _ = a_gallery()
    take(gallery, pair(1, 2, "same"))
    with pytest.raises(EventError, match="at most 1 decisions"):
        take(gallery, pair(1, 3, "same"))


def loaded(gallery, *, at_ms=5):
    """The gallery that a matcher reads from the entries of this one."""
    writes = Writes(gallery.rows, gallery.videos, gallery.groups, gallery.decisions, gallery.places)
    owned = OwnedGallery(Gallery("g"), 0)
    for key, value in entries_of("g", writes, at_ms=at_ms, event=None, raw=b""):
        owned.load(EntryKey.from_bytes(key), value)
    return owned


@settings(deadline=None, max_examples=60)
@given(st.lists(one_decision, max_size=10), st.randoms(), st.integers(0, 5))
def test_any_order_of_events_gives_the_same_and_so_does_a_restart(decisions, random, cut):
    """Decisions before, between and after the persons: identities, rows and what is said last."""
    rng = np.random.default_rng(1)
    events = [
        person(number, unit_vector(rng.normal(size=3) + 1.5), seen_with=[5] if number == 4 else [])
        for number in range(6)
    ]
    decisions = [*decisions, *(undo(one, 30) for one in decisions[:1])]
    last = []
    for order in (0, 1):
        mixed = [*decisions]
        if order:
            random.shuffle(mixed)
        gallery, said = Gallery("g"), {}
        stages = [mixed[:cut], events, [closed(range(6))], mixed[cut:]]
        for event in [one for stage in stages for one in stage]:
            for out in take(gallery, parse_gallery_event(event.to_json())):
                key = (out.topic, out.key if out.topic == "identities" else out.event_id)
                if isinstance(out, DuplicateCandidate):
                    key = (out.topic, out.candidate_id)
                said[key] = None if out.topic == "identities" and not out.value else out
        again = loaded(gallery).gallery
        assert again.reviewed.notable == gallery.reviewed.notable
        candidates = {
            key: (event.similarity, event.state != "withdrawn")
            for (topic, key), event in said.items()
            if topic == "duplicate-candidates"
        }
        shown = {
            key: event.person_keys
            for (topic, key), event in said.items()
            if topic == "identities" and event is not None
        }
        last.append((shown, {key for key, (_, is_on) in candidates.items() if is_on}))
        library = Identities(
            "g",
            [f"v/{number}" for number in range(6)],
            statements_of(decisions),
            {("v/4", "v/5")},
        )
        assert gallery.reviewed.notable == {
            one.identity_id: one
            for one in library.all
            if len(one.person_keys) > 1
            or one.is_verified
            or one.is_wanted is not None
            or one.conflicts
        }
        on = {
            frozenset(one.person_key for one in event.persons)
            for event in said.values()
            if isinstance(event, DuplicateCandidate) and event.state != "withdrawn"
        }
        assert on == {
            frozenset((a, b)) for a, b, _ in gallery.candidates() if not library.is_ruled_out(a, b)
        }
    assert last[0] == last[1]


def test_a_list_of_decisions_one_by_one_says_what_all_together_say():
    """What holds is found out step by step; the result is that of all at once."""
    gallery, _ = a_gallery(6)
    rng = np.random.default_rng(3)
    made = []
    for second in range(40):
        a, b = rng.choice(np.arange(1, 7), 2, replace=False).tolist()
        verdict = ["same", "different", "unsure"][rng.integers(3)]
        made.append(pair(a, b, verdict, second))
        if second % 7 == 6:
            made.append(undo(made[second // 2], second))
        take(gallery, made[-1])
        if second % 7 == 6:
            take(gallery, made[-2])
        together = reviewed.Said.by(gallery.decisions.values())
        step_by_step = gallery.reviewed.said
        assert step_by_step == together or vars_of(step_by_step) == vars_of(together)


def vars_of(said):
    """The fields of what holds."""
    return {name: getattr(said, name) for name in ("statements", "named", "latest", "pair_total")}


def test_wanted_people_and_groups_are_said():
    """A track of which nobody decided anything has no event."""
    gallery, _ = a_gallery()
    group = GroupDecision.make(
        gallery_id="g", decided_at=TIME, person_keys=[f"v/{number}" for number in (1, 2, 3)]
    )
    wanted = SelectedDecision.make(
        gallery_id="g", decided_at=TIME, person_keys=["v/4"], wanted=True
    )
    said = take(gallery, group, wanted)
    assert [(event.person_keys, event.wanted) for event in said if event.topic == "identities"] == [
        (["v/1", "v/2", "v/3"], None),
        (["v/4"], True),
    ]
    keys = [f"v/{number}" for number in (1, 2, 3)]
    assert all(
        gallery.reviewed.identities.of_key[a] is gallery.reviewed.identities.of_key[b]
        for a, b in combinations(keys, 2)
    )
