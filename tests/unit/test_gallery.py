"""The matcher's core: what any order, any repeat and any later run of events comes to."""

from __future__ import annotations

from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persons import closed, person, two_videos, unit_vector

from streamproc.errors import EventError
from streamproc.events import DuplicateCandidate, PersonEmbedding, VideoClosed, VideoProgress
from streamproc.gallery import Candidate, Gallery, Judgement, apply
from streamproc.gallery import gallery as state
from streamproc.gallery.matcher import MAX_CANDIDATES
from streamproc.gallery.scope import vetoes_among

THRESHOLD = 0.7
TIME = "2026-11-24T12:00:00Z"


def feed(
    gallery: Gallery, *events: PersonEmbedding | VideoClosed
) -> list[DuplicateCandidate | VideoProgress]:
    """Apply and write the events one after the other; return what they announce."""
    said = []
    for event in events:
        outcome = apply(gallery, event, similarity_threshold=THRESHOLD, occurred_at=TIME)
        gallery.write(outcome.writes)
        said += outcome.events
    return said


def standing(gallery: Gallery) -> dict[tuple[str, str], float]:
    """The similarity of each candidate that the gallery holds."""
    return {(a, b): entry.similarity for a, b, entry in gallery.candidates()}


def announced(events: list[DuplicateCandidate | VideoProgress]) -> dict[tuple[str, str], float]:
    """What a subscriber who keeps the last word on each candidate believes."""
    last: dict[tuple[str, str], DuplicateCandidate] = {}
    for event in events:
        if isinstance(event, DuplicateCandidate):
            last[event.persons[0].person_key, event.persons[1].person_key] = event
    return {pair: event.similarity for pair, event in last.items() if event.state != "withdrawn"}


def test_a_pair_above_the_threshold_is_proposed_once() -> None:
    """Of three persons the one pair above the threshold is proposed, once."""
    gallery = Gallery("g")
    said = feed(gallery, person(1, [1, 0]), person(2, [0.9, np.sqrt(1 - 0.81)]), person(3, [0, 1]))
    assert [
        (e.state, e.persons[0].person_id, e.persons[1].person_id, e.similarity) for e in said
    ] == [("proposed", 1, 2, 0.9)]


def test_the_threshold_is_strict() -> None:
    """A similarity equal to the threshold proposes nothing, and one just above it does."""
    gallery = Gallery("g")
    assert feed(gallery, person(1, [1, 0, 0, 0]), person(2, [0.7, 0.7, 0.1, 0.1])) == []
    assert len(feed(gallery, person(3, [0.70001, -np.sqrt(1 - 0.70001**2), 0, 0]))) == 1


def test_people_seen_apart_in_the_same_frames_are_never_a_pair() -> None:
    """A veto of either person keeps equal vectors from being a pair."""
    gallery = Gallery("g")
    assert feed(gallery, person(1, [1, 0], seen_with=[2]), person(2, [1, 0])) == []
    assert feed(gallery, person(3, [1, 0], seen_with=[1, 2])) == []


def test_a_veto_holds_within_one_video_only() -> None:
    """A veto against an id says nothing of that id in another video."""
    gallery = Gallery("g")
    assert (
        len(feed(gallery, person(1, [1, 0], seen_with=[2]), person(2, [1, 0], video_id="other")))
        == 1
    )


def test_vectors_of_different_weights_are_never_compared_but_counted() -> None:
    """Two persons of different weights are no pair, and are counted as not compared."""
    gallery = Gallery("g")
    feed(gallery, person(1, [1, 0]))
    outcome = apply(
        gallery,
        person(2, [1, 0], weights="b" * 64),
        similarity_threshold=THRESHOLD,
        occurred_at=TIME,
    )
    assert outcome.events == ()
    assert outcome.not_compared == 1


def test_vectors_of_different_weights_may_differ_in_length() -> None:
    """The matrix has NaN between persons of different weights, whatever their lengths."""
    gallery = Gallery("g")
    feed(
        gallery,
        person(1, [1, 0]),
        person(2, [1, 0, 0], weights="b" * 64),
        person(3, [1, 0, 0], weights="b" * 64),
    )
    matrix = gallery.matrix(["v/1", "v/2", "v/3"])
    assert np.isnan(matrix[0, 1:]).all()
    assert matrix[1, 2] == 1


def test_the_stricter_of_two_thresholds_decides() -> None:
    """The higher of two persons' thresholds holds, whoever comes first."""
    gallery = Gallery("g")
    a = person(1, [1, 0])
    b = person(2, [0.9, np.sqrt(1 - 0.81)], similarity_threshold=0.95)
    assert feed(gallery, a, b) == []
    assert feed(Gallery("g"), b, a) == []


@pytest.mark.parametrize(
    ("event", "text"),
    [
        (person(2, [1, 0], gallery_id="other"), "expected an event of gallery 'g'"),
        (person(2, [1, 0, 0]), "expected 2 numbers"),
        (person(2, [3, 4], normalise=False), "expected a unit vector, got one of length 5"),
    ],
)
def test_what_does_not_fit_is_refused_by_name(event, text) -> None:
    """An event of another gallery, length or norm is refused and leaves the gallery as it was."""
    gallery = Gallery("g")
    feed(gallery, person(1, [1, 0]))
    with pytest.raises(EventError, match=text):
        feed(gallery, event)
    assert list(gallery.rows) == ["v/1"]


def test_a_full_gallery_refuses_another_person_and_still_takes_known_ones() -> None:
    """A full gallery refuses a new person and takes a new run of a known one."""
    gallery = Gallery("g", max_persons=1)
    feed(gallery, person(1, [1, 0]))
    with pytest.raises(EventError, match="full with 1 persons"):
        feed(gallery, person(2, [1, 0]))
    feed(gallery, person(1, [0, 1], run="r2", minute=1))
    assert gallery.rows["v/1"].tracklet.run_id == "r2"


def test_apply_itself_changes_nothing() -> None:
    """`apply` leaves the gallery's rows and videos as they are."""
    gallery = Gallery("g")
    feed(gallery, person(1, [1, 0]))
    apply(gallery, person(2, [1, 0]), similarity_threshold=THRESHOLD, occurred_at=TIME)
    apply(gallery, closed([]), similarity_threshold=THRESHOLD, occurred_at=TIME)
    assert list(gallery.rows) == ["v/1"]
    assert not gallery.videos["v"].closed


def test_a_crash_between_publishing_and_writing_gives_the_same_events_again() -> None:
    """Applying an event twice without writing gives the same events."""
    gallery = Gallery("g")
    feed(gallery, person(1, [1, 0]))
    outcomes = [
        apply(gallery, person(2, [1, 0]), similarity_threshold=THRESHOLD, occurred_at=TIME).events
        for _ in range(2)
    ]
    assert outcomes[0] == outcomes[1] != ()


def test_neighbours_are_capped_at_the_most_similar() -> None:
    """A person with too many neighbours is paired with the most similar ones."""
    gallery = Gallery("g")
    angles = np.linspace(0.01, 0.5, MAX_CANDIDATES + 10)
    feed(
        gallery,
        *(
            person(i, [np.cos(a), np.sin(a)], seen_with=list(range(100)))
            for i, a in enumerate(angles)
        ),
    )
    said = feed(gallery, person(1000, [1, 0]))
    assert [e.persons for e in said] != []
    assert sorted(e.similarity for e in said) == sorted(
        round(float(np.cos(a)), 6) for a in angles[:MAX_CANDIDATES]
    )


def test_done_counts_the_candidates_of_the_video_and_repeats_its_answer() -> None:
    """A closing reports its video's candidates, and reports the same when it comes again."""
    gallery = Gallery("g")
    said = feed(gallery, person(1, [1, 0]), person(2, [1, 0]), closed([1, 2]))
    assert isinstance(said[-1], VideoProgress)
    assert said[-1].candidate_count == 1
    feed(gallery, person(1, [1, 0], video_id="w"))
    assert feed(gallery, closed([1, 2]))[-1].event_id == said[-1].event_id


def test_closing_removes_who_is_not_in_the_run_and_withdraws() -> None:
    """Closing a run removes persons who are not in it and withdraws their candidates."""
    gallery = Gallery("g")
    feed(gallery, person(1, [1, 0]), person(2, [1, 0]), person(3, [1, 0]), closed([1, 2, 3]))
    feed(gallery, person(1, [1, 0], run="r2", minute=1), person(2, [1, 0], run="r2", minute=1))
    said = feed(gallery, closed([1, 2], run="r2", minute=1))
    withdrawn = [e for e in said if isinstance(e, DuplicateCandidate)]
    assert {(e.persons[0].person_id, e.persons[1].person_id, e.reason) for e in withdrawn} == {
        (1, 3, "person-removed"),
        (2, 3, "person-removed"),
    }
    assert standing(gallery) == {("v/1", "v/2"): 1.0}
    assert said[-1].candidate_count == 1


def test_an_older_run_never_overwrites_a_newer_one() -> None:
    """Events of an older run change nothing; all that is said of it is that it has ended."""
    gallery = Gallery("g")
    new = {"run": "new", "minute": 5}
    old = {"run": "old", "minute": 1}
    feed(gallery, person(1, [1, 0], **new), person(3, [1, 0], **new), closed([1, 3], **new))
    before = (dict(gallery.rows), dict(gallery.videos))
    said = feed(gallery, person(2, [1, 0], **old), closed([2], **old))
    assert [(one.run_id, one.state, one.candidate_count) for one in said] == [("old", "done", 1)]
    assert (dict(gallery.rows), dict(gallery.videos)) == before


def test_submitted_at_is_compared_as_time_not_as_text() -> None:
    """Of two runs the one that was submitted later wins, in whatever time zone it says so."""
    gallery = Gallery("g")
    late = person(1, [1, 0], run="late").model_copy(update={"submitted_at": "2026-11-24T09:30:00Z"})
    early = person(1, [0, 1], run="early").model_copy(
        update={"submitted_at": "2026-11-24T10:00:00+02:00"}
    )
    feed(gallery, late, early)
    assert gallery.rows["v/1"].tracklet.run_id == "late"


def test_time_gap_needs_a_common_clock() -> None:
    """A candidate has a time gap within one video and none across videos."""
    gallery = Gallery("g")
    said = feed(gallery, person(1, [1, 0], seconds=(0, 5)), person(2, [1, 0], seconds=(12, 20)))
    assert said[0].time_gap_seconds == 7
    said = feed(gallery, person(1, [1, 0], video_id="w"))
    assert {e.time_gap_seconds for e in said} == {None}


def test_a_candidate_names_its_fields_as_the_wire_does() -> None:
    """Each field that a candidate gives to the wire is one of the event's, which drops others."""
    judged = Candidate(0.9, "r1", "proposed", Judgement(0.8, "likely", "c"))
    assert judged.wire_fields().keys() <= DuplicateCandidate.model_fields.keys()
    assert judged.wire_fields().keys() >= {"similarity", "probability", "band", "calibration_id"}
    assert Candidate(0.9, "r1", "suppressed").wire_fields() == {"similarity": 0.9}


@st.composite
def galleries(draw):
    """The persons of two videos with random vectors and vetoes, an order of them, and a count.

    Some vectors are equal.
    """
    seed = draw(st.integers(0, 2**32 - 1))
    count = draw(st.integers(1, 8))
    rng = np.random.default_rng(seed)
    events = two_videos(rng, count)
    return events, draw(st.permutations(range(len(events)))), count


@given(galleries())
def test_any_order_of_persons_gives_the_same_candidates(data) -> None:
    """Any order of persons ends in the same candidates and announces them with the same ids."""
    events, order, count = data
    closing = [closed(list(range(count)), video_id=video) for video in ("v", "w")]
    one, other = Gallery("g"), Gallery("g")
    said_one = feed(one, *events, *closing)
    said_other = feed(other, *(events[i] for i in order), *closing)
    assert standing(one) == standing(other) == announced(said_one) == announced(said_other)
    candidates = [
        {e.event_id for e in said if isinstance(e, DuplicateCandidate)}
        for said in (said_one, said_other)
    ]
    assert candidates[0] == candidates[1]


@given(galleries(), st.data())
def test_any_repeat_changes_nothing(data, choose) -> None:
    """Events that come again change neither the rows nor the ids of what is announced."""
    events, order, count = data
    sequence = [*(events[i] for i in order), closed(list(range(count)), video_id="v")]
    repeated = list(sequence)
    for _ in range(choose.draw(st.integers(1, 5))):
        i = choose.draw(st.integers(0, len(sequence) - 1))
        after = repeated.index(sequence[i])
        repeated.insert(choose.draw(st.integers(after + 1, len(repeated))), sequence[i])
    one, other = Gallery("g"), Gallery("g")
    said_one, said_other = feed(one, *sequence), feed(other, *repeated)
    assert standing(one) == standing(other)
    assert one.rows == other.rows
    assert {e.event_id for e in said_one} == {e.event_id for e in said_other}


@given(galleries(), galleries(), st.integers(0, 8), st.integers(0, 40))
def test_a_later_run_replaces_an_earlier_one_and_leaves_no_ghost(first, second, kept, mix) -> None:
    """After a second run the gallery is as if that run had been the only one.

    It has other vectors and fewer persons, and late events of the first come among its own.
    """
    old, _, count = first
    new = [
        e.model_copy(update={"run_id": "r2", "submitted_at": "2026-11-24T10:00:00Z"})
        for e in second[0]
        if e.video_id == "v" and e.person_id < kept
    ]
    ids = [e.person_id for e in new]
    late = [e for e in old if e.video_id == "v"][: mix % (count + 1)]
    gallery = Gallery("g")
    said = feed(gallery, *old, closed(list(range(count))), *new[:1], *late, *new[1:])
    said += feed(gallery, closed(ids, run="r2", minute=60), *late, closed(list(range(count))))
    fresh = Gallery("g")
    feed(fresh, *(e for e in old if e.video_id == "w"), *new, closed(ids, run="r2", minute=60))
    assert standing(gallery) == standing(fresh)
    assert announced(said) == standing(gallery)
    assert set(gallery.rows) == set(fresh.rows)


@given(galleries())
def test_the_arrays_agree_with_the_rows_after_any_removal(data) -> None:
    """The matrix and the search give what the rows' vectors give, also after removals."""
    events, order, count = data
    gallery = Gallery("g")
    feed(gallery, *(events[i] for i in order), closed(list(range(0, count, 2))))
    keys = sorted(gallery.rows)
    expected = np.array(
        [
            [
                gallery.rows[a].tracklet.vector.numpy() @ gallery.rows[b].tracklet.vector.numpy()
                for b in keys
            ]
            for a in keys
        ]
    )
    np.testing.assert_allclose(
        gallery.matrix(keys), expected.reshape(len(keys), len(keys)), atol=1e-6
    )
    for key in keys:
        near, _ = gallery.more_similar(gallery.rows[key].tracklet.vector.numpy(), "a" * 64, 0.999)
        assert key in near


@given(st.integers(0, 2**32 - 1))
def test_what_is_foreseen_is_what_is_found(seed) -> None:
    """Comparing ahead changes no result, whatever rows come and go in between."""
    rng = np.random.default_rng(seed)
    gallery = Gallery("g")
    with mock.patch.object(state, "_LEAST_ROWS_TO_PRECOMPUTE", 1):
        vectors = [unit_vector(rng.normal(size=4)) for _ in range(12)]
        for i in range(6):
            feed(gallery, person(i, vectors[i]))
        asked = np.stack(vectors).astype(np.float32)
        gallery.precompute(asked, "a" * 64)
        for i in range(6, 12):
            before = gallery.more_similar(asked[i], "a" * 64, 0.2)
            assert before == gallery.more_similar(
                asked[i], "a" * 64, 0.2
            )  # the second time it is not foreseen
            feed(gallery, person(i, vectors[i]))
            if rng.random() < 0.3:
                feed(gallery, closed([i], minute=1))


def test_the_first_part_of_a_track_takes_the_place_of_the_whole_one() -> None:
    """The row of the whole track goes with its pairs; a whole one that comes again says nothing."""
    gallery = Gallery("g")
    feed(gallery, person(1, [1, 0]), person(7, [1, 0.1], revision=1))
    parts = [person(7, [1, 0], part=1), person(7, [0, 1], part=2)]
    first = feed(gallery, parts[0])
    assert [(e.state, e.reason, e.persons[1].person_key) for e in first] == [
        ("withdrawn", "person-removed", "v/7"),
        ("proposed", None, "v/7#1"),
    ]
    assert [person.part for person in first[1].persons] == [None, 1]
    assert feed(gallery, parts[1]) == []
    assert set(gallery.rows) == {"v/1", "v/7#1", "v/7#2"}
    assert feed(gallery, person(7, [1, 0.1], revision=1)) == []
    assert set(gallery.rows) == {"v/1", "v/7#1", "v/7#2"}
    assert standing(gallery) == {("v/1", "v/7#1"): 1.0}


def test_parts_of_one_track_are_never_a_pair() -> None:
    """Equal vectors make no pair of them, whatever they say of each other."""
    gallery = Gallery("g")
    parts = [person(7, [1, 0], part=1), person(7, [1, 0], part=2)]
    assert feed(gallery, *parts, closed([], person_keys=["v/7#1", "v/7#2"]))[:-1] == []
    assert vetoes_among(parts).tolist() == [[0, 1]]


def test_a_part_has_the_vetoes_of_its_own_frames() -> None:
    """Who was seen beside one part may be the other; a whole track's veto says nothing of parts."""
    gallery = Gallery("g")
    one = person(1, [1, 0], seen_with=[7])
    parts = [
        person(7, [1, 0], part=1, seen_with=[1], seen_with_keys=["v/1", "v/7#2"]),
        person(7, [1, 0], part=2, seen_with=[], seen_with_keys=["v/7#1"]),
    ]
    feed(gallery, one, *parts)
    assert set(standing(gallery)) == {("v/1", "v/7#2")}
    assert vetoes_among([one, *parts]).tolist() == [[0, 1], [1, 2]]


def test_a_closing_names_parts_by_their_keys() -> None:
    """Parts that the run did not name go, and those of an earlier run where the track is whole."""
    gallery = Gallery("g")
    parts = [person(7, [1, 0], part=1), person(7, [0, 1], part=2)]
    feed(gallery, person(1, [1, 0]), *parts, closed([1], person_keys=["v/1", "v/7#2"]))
    assert set(gallery.rows) == {"v/1", "v/7#2"}
    later = {"run": "r2", "minute": 1}
    feed(gallery, person(1, [1, 0], **later), person(7, [0, 1], **later), closed([1, 7], **later))
    assert set(gallery.rows) == {"v/1", "v/7"}


def test_a_run_in_parts_that_comes_again_says_the_same() -> None:
    """A repeat of a whole run, its parts included, announces what holds and changes no row."""
    gallery = Gallery("g")
    run = [
        person(1, [1, 0]),
        person(7, [1, 0.1], revision=1),
        person(7, [1, 0], part=1),
        person(7, [0, 1], part=2),
    ]
    feed(gallery, *run)
    before = (standing(gallery), set(gallery.rows))
    said = feed(gallery, *run, closed([1], person_keys=["v/1", "v/7#1", "v/7#2"]))
    assert (standing(gallery), set(gallery.rows)) == before
    assert {event.state for event in said} == {"proposed", "done"}
