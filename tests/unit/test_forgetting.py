"""Forgetting people: nothing that a gallery keeps or says names them, in any order of events."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from persons import closed, person, two_videos
from test_gallery_review import ALIKE, TIME, identities, pair, pairs, undo
from test_matcher_table import CALIBRATION

from streamproc.decisions import ApartDecision, GroupDecision, SelectedDecision, parse_gallery_event
from streamproc.errors import EventError
from streamproc.events import DuplicateCandidate, DuplicateGroup, Forgotten, PersonIdentity
from streamproc.gallery import (
    UNCALIBRATED,
    Gallery,
    Group,
    Judgement,
    Named,
    Writes,
    expire,
    holdings,
)
from streamproc.gallery.announcements import candidate_person
from streamproc.services.live.gallery import LiveGallery, Snapshot
from streamproc.services.matcher.table import EntryKey, Galleries, OwnedGallery, decide, entries_of

AT_MS = 1_796_083_200_000  # 2026-12-01, after all that these tests submit and decide


def forgotten(*keys, videos=(), everything=False):
    """The event that has some tracks, videos or all of the gallery g forgotten."""
    return Forgotten.make(
        gallery_id="g", person_keys=list(keys), video_ids=list(videos), everything=everything
    )


class Table:
    """A gallery with the entries that a table would hold of it."""

    def __init__(self, calibration=UNCALIBRATED):
        self.owned = OwnedGallery(Gallery("g"), 0)
        self.entries = {}
        self.calibration = calibration

    @property
    def gallery(self):
        """What the entries hold."""
        return self.owned.gallery

    def take(self, *events):
        """Have the gallery take events; what it announces, in order."""
        said = []
        for event in events:
            result = decide(
                self.owned,
                event,
                similarity_threshold=0.7,
                occurred_at=TIME,
                calibration=self.calibration,
                at_ms=AT_MS,
            )
            for key, value in entries_of("g", result.writes, at_ms=1, event=None, raw=b""):
                if value is None:
                    self.entries.pop(key, None)
                else:
                    self.entries[key] = value
            self.gallery.write(result.writes)
            said += result.events
        return said

    def naming(self, key):
        """The entries with the name of a track in them, or its number among who was seen."""
        number = int(key.rpartition("/")[2])
        found = [
            EntryKey.from_bytes(place)
            for place, value in self.entries.items()
            if f'"{key}"'.encode() in value or EntryKey.from_bytes(place).id == key
        ]
        seen = [
            row.tracklet.person_key
            for row in self.gallery.rows.values()
            if row.tracklet.video_id == key.rpartition("/")[0] and number in row.tracklet.seen_with
        ]
        return found + seen


def standing(said):
    """The candidates, groups and identities that hold after all that was said."""
    last = {}
    for event in said:
        if isinstance(event, DuplicateCandidate):
            last[event.candidate_id] = event
        elif isinstance(event, DuplicateGroup):
            last[event.group_id] = event
        elif event.topic == "identities":
            last[event.identity_id] = event
    return [
        event
        for event in last.values()
        if isinstance(event, PersonIdentity) or getattr(event, "state", "withdrawn") != "withdrawn"
    ]


def test_a_person_goes_with_all_that_names_it():
    """Row, pairs, group, decisions with their undo, and identity; the others stay."""
    table = Table()
    events = [person(number, ALIKE) for number in (1, 2, 3, 4)]
    table.take(*events, closed([1, 2, 3, 4]))
    table.gallery.write(Writes(groups={"x": Group(("v/1", "v/2"), Judgement(0.9, "likely", "c"))}))
    same, no = pair(1, 2, "same"), pair(3, 4, "different", 1)
    table.take(same, no, undo(same, 2), pair(1, 2, "same", 3))
    held = holdings(table.gallery, Named(frozenset({"v/1"})))
    assert held.person_keys == ("v/1",)
    assert (held.candidate_count, held.group_count, held.decision_count) == (3, 1, 3)
    assert (held.identity_count, held.video_ids) == (1, ("v",))

    said = table.take(forgotten("v/1"))
    assert [one for one in pairs(said) if one[0] == "withdrawn"] == [
        ("withdrawn", "person-removed", 1, number) for number in (2, 3, 4)
    ]
    assert identities(said) == [None]
    assert [event.group_id for event in said if isinstance(event, DuplicateGroup)] == ["x"]
    assert table.gallery.rows.keys() == {"v/2", "v/3", "v/4"}
    assert [kept.decision for kept in table.gallery.decisions.values()] == [no]
    assert table.naming("v/1") == []
    assert holdings(table.gallery, Named(frozenset({"v/1"}))).is_nothing
    assert table.take(forgotten("v/1")) == []


def test_what_a_decision_with_a_forgotten_person_ruled_out_is_proposed_again():
    """The decision goes as a whole, also what it said of others."""
    gallery = Table()
    gallery.take(*(person(number, ALIKE) for number in (1, 2, 3)), closed([1, 2, 3]))
    apart = ApartDecision.make(
        gallery_id="g",
        decided_at="2026-11-30T10:00:00Z",
        person_keys=["v/1"],
        other_keys=["v/2", "v/3"],
    )
    gallery.take(apart)
    assert ("proposed", None, 1, 3) in pairs(gallery.take(forgotten("v/2")))


def test_nobody_comes_back_by_an_event_from_before_and_everybody_by_one_from_after():
    """A run, or a decision, that was there before says nothing of them; a later one counts."""
    table = Table()
    run = [person(1, ALIKE), person(2, ALIKE, seen_with=[3]), closed([1, 2])]
    table.take(*run, forgotten("v/1", "v/3"))
    assert table.take(person(1, ALIKE), pair(1, 2, "same")) == []
    table.take(person(2, ALIKE, seen_with=[3, 4], run="r2"))
    assert table.gallery.rows["v/2"].tracklet.seen_with == [4]
    assert table.naming("v/1") == []
    assert table.take(closed([1, 2], run="r2"))[-1].candidate_count == 0

    later = [
        event.model_copy(update={"submitted_at": "2027-01-01T00:00:00Z"})
        for event in (person(1, ALIKE, run="r3"), person(2, ALIKE, run="r3"))
    ]
    assert pairs(table.take(*later))[-1][:1] == ("proposed",)
    assert table.gallery.rows.keys() == {"v/1", "v/2"}


def test_a_whole_gallery_goes_and_what_is_left_expires():
    """Rows, records, groups and decisions; only hashes stay, and those go with the gallery."""
    table = Table()
    events = two_videos(np.random.default_rng(3), 6)
    closings = [closed(range(6)), closed(range(6), video_id="w")]
    said = table.take(*events, *closings, pair(1, 2, "same"))
    assert standing(said)
    said += table.take(forgotten(videos=["v", "w"], everything=True))
    assert standing(said) == []
    assert {EntryKey.from_bytes(key).kind for key in table.entries} == {"forgotten"}
    assert (table.owned.is_empty, table.owned.is_known) == (True, False)
    late = table.take(events[0], closings[0])
    assert [(event.state, event.candidate_count) for event in late] == [("done", 0)]
    again = Galleries(max_persons=10)
    for key, value in table.entries.items():
        again.load(0, key, value)
    assert again.get("g").gallery.forgotten == table.gallery.forgotten
    gallery = again.get("g").gallery
    gallery.write(expire(gallery, TIME).writes)
    again.drop_if_empty(again.get("g"))
    assert again.get("g") is None


DECISIONS = [
    pair(1, 2, "same"),
    pair(2, 3, "different", 1),
    pair(4, 5, "same", 2),
    undo(pair(1, 2, "same"), 3),
    GroupDecision.make(
        gallery_id="g", decided_at="2026-11-30T10:01:00Z", person_keys=["v/0", "v/4", "w/1"]
    ),
    SelectedDecision.make(
        gallery_id="g", decided_at="2026-11-30T10:02:00Z", person_keys=["w/2"], wanted=True
    ),
]
named_sets = st.sampled_from(
    [
        {"keys": ("v/1",)},
        {"keys": ("v/4", "w/1")},
        {"videos": ("v",)},
        {"keys": ("v/0",), "videos": ("w",)},
        {"everything": True},
    ]
)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 50), named_sets, st.randoms(use_true_random=False), st.booleans())
def test_nothing_kept_or_standing_names_who_was_forgotten_in_any_order(seed, whom, rng, calibrated):
    """Whenever the event comes among the others, and though all of them come again."""
    events = two_videos(np.random.default_rng(seed), 6)
    closings = [closed(range(6)), closed(range(6), video_id="w")]
    whom = dict(whom)
    event = forgotten(*whom.pop("keys", ()), **whom)
    others = [*events, *DECISIONS]
    rng.shuffle(others)
    others += closings
    others.insert(rng.randrange(len(others) + 1), event)
    others += rng.sample(others, 8)
    table = Table(CALIBRATION if calibrated else UNCALIBRATED)
    said = table.take(*others)
    named = Named.by(event)
    gone = [f"{video}/{number}" for video in "vw" for number in range(6)]
    gone = [key for key in gone if named.has(key)]
    for key in gone:
        assert table.naming(key) == []
        assert not [one for one in standing(said) if f'"{key}"'.encode() in one.to_json()]
    assert holdings(table.gallery, named).is_nothing
    loaded = Galleries(max_persons=100)
    for key, value in table.entries.items():
        loaded.load(0, key, value)
    if table.entries:
        assert loaded.get("g").gallery.rows.keys() == table.gallery.rows.keys()
        assert loaded.get("g").gallery.forgotten == table.gallery.forgotten


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 50), named_sets)
def test_an_event_that_was_written_in_part_ends_the_same_when_it_comes_again(seed, whom):
    """A crash while entries are written leaves nothing that the next try does not take."""
    rng = np.random.default_rng(seed)
    table = Table()
    closings = [closed(range(6)), closed(range(6), video_id="w")]
    table.take(*two_videos(rng, 6), *closings, *DECISIONS)
    whom = dict(whom)
    event = forgotten(*whom.pop("keys", ()), **whom)
    result = decide(table.owned, event, similarity_threshold=0.7, occurred_at=TIME, at_ms=AT_MS)
    entries = entries_of("g", result.writes, at_ms=1, event=None, raw=b"")
    for key, value in entries[: int(rng.integers(0, len(entries) + 1))]:
        if value is None:
            table.entries.pop(key, None)
        else:
            table.entries[key] = value
    half = Table()
    half.entries = dict(table.entries)
    loaded = Galleries(max_persons=100)
    for key, value in table.entries.items():
        loaded.load(0, key, value)
    half.owned = loaded.open("g", 0)
    half.take(event)
    table.take(event)
    assert half.gallery.rows.keys() == table.gallery.rows.keys()
    assert half.gallery.decisions == table.gallery.decisions
    assert half.gallery.groups == table.gallery.groups
    assert holdings(half.gallery, Named.by(event)).is_nothing


def test_an_event_names_somebody_and_tracks_by_their_keys():
    """One that names nobody, or a track without its video, is refused."""
    event = forgotten("v/1", "a/b/-3")
    assert parse_gallery_event(event.to_json()) == event
    for said in (b"", b', "person_keys": ["7"]', b', "person_keys": ["v/x"]'):
        with pytest.raises(EventError, match="expected"):
            parse_gallery_event(b'{"kind": "forgotten", "gallery_id": "g"' + said + b"}")


def test_the_live_page_leaves_out_who_is_forgotten():
    """Their cards, pairs, groups and decisions go at once, and their row of the heatmap."""
    persons = [person(number, ALIKE) for number in (1, 2, 3)]
    table = Table()
    said = table.take(*persons, closed([1, 2, 3]))
    found = [event for event in said if isinstance(event, DuplicateCandidate)]
    decisions = [pair(1, 2, "same"), pair(2, 3, "same", 1), undo(pair(1, 2, "same"), 2)]
    gallery = LiveGallery(
        "g",
        Snapshot(
            candidates=tuple(event.model_dump(mode="json", exclude_none=True) for event in found),
            candidate_count=3,
            groups=({"group_id": "x", "person_keys": ["v/1", "v/2"]},),
            decisions=tuple(decisions),
            persons=tuple(
                candidate_person(one).model_dump(mode="json", exclude_none=True)
                | {"seen_with": [1]}
                for one in persons
            ),
            model={"name": "test"},
            keys=("v/1", "v/2", "v/3"),
            similarity=np.arange(9, dtype=np.float32).reshape(3, 3) / 10,
        ),
    )
    gallery.forget(forgotten("v/1"))
    report = gallery.report({}, {}, 0.7)
    assert [one.person_key for one in report.persons] == ["v/2", "v/3"]
    assert (len(report.candidates), report.candidate_count, report.groups) == (1, 1, ())
    assert list(gallery.decisions.values()) == [decisions[1]]
    assert report.embedded_keys == ("v/2", "v/3")
    np.testing.assert_allclose(report.similarity, [[0.4, 0.5], [0.7, 0.8]])
    assert not report.seen_apart
    gallery.forget(forgotten(videos=["v"], everything=True))
    assert gallery.report({}, {}, 0.7).persons == ()
