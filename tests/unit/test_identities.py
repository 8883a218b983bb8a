"""Identities follow from what was decided, whatever the order in which it is heard."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.decisions import (
    MAX_KEYS,
    ApartDecision,
    GroupDecision,
    PairDecision,
    SelectedDecision,
    UndoDecision,
    VerifiedDecision,
    parse_decision,
)
from streamproc.errors import EventError
from streamproc.gallery.identities import Identities, pair_of, statements_of

KEYS = [f"v/{number}" for number in range(6)]


def at(second):
    """When a decision was made."""
    return f"2026-11-30T10:00:{second:02d}Z"


def pair(a, b, verdict, second=0, **more):
    """A decision about two tracks."""
    return PairDecision.make(
        gallery_id="g", decided_at=at(second), person_keys=(a, b), verdict=verdict, **more
    )


def identities(decisions, *, keys=KEYS, vetoes=()):
    """The identities that follow from decisions."""
    return Identities("g", keys, statements_of(decisions), vetoes)


def together(decisions, **options):
    """The tracks of each identity that has several."""
    found = identities(decisions, **options).all
    return [list(one.person_keys) for one in found if len(one.person_keys) > 1]


keys = st.sampled_from(KEYS)
some_keys = st.lists(keys, min_size=1, max_size=4, unique=True)
seconds = st.integers(0, 20)
common = {"gallery_id": st.just("g"), "decided_at": seconds.map(at)}


def made(cls, **fields):
    """Decisions of one kind."""
    return st.fixed_dictionaries(common | fields).map(lambda said: cls.make(**said))


one_decision = st.one_of(
    made(
        PairDecision,
        person_keys=st.lists(keys, min_size=2, max_size=2, unique=True).map(tuple),
        verdict=st.sampled_from(["same", "different", "unsure"]),
    ),
    made(GroupDecision, person_keys=st.lists(keys, min_size=2, max_size=4, unique=True)),
    made(VerifiedDecision, person_keys=some_keys),
    made(SelectedDecision, person_keys=some_keys, wanted=st.booleans()),
    st.tuples(some_keys, some_keys, seconds)
    .filter(lambda said: not set(said[0]) & set(said[1]))
    .map(
        lambda said: ApartDecision.make(
            gallery_id="g", decided_at=at(said[2]), person_keys=said[0], other_keys=said[1]
        )
    ),
)


@st.composite
def histories(draw):
    """Decisions, some of which undo others, and undos of undos."""
    decisions = draw(st.lists(one_decision, max_size=12))
    for _ in range(draw(st.integers(0, 4))):
        if decisions:
            target = draw(st.sampled_from(decisions)).decision_id
            undo = UndoDecision.make(gallery_id="g", decided_at=at(draw(seconds)), undoes=target)
            decisions.append(undo)
    return decisions


vetoes = st.lists(st.sampled_from(list(combinations(KEYS, 2))), max_size=2)


@given(histories(), vetoes, st.randoms())
def test_any_order_and_any_repetition_give_the_same_identities(history, vetoes, random) -> None:
    """Decisions come in any order, some of them twice: after a restart, or from two reviewers."""
    expected = identities(history, vetoes=vetoes)
    again = [*history, *random.sample(history, len(history) // 2)]
    random.shuffle(again)
    found = identities(again, vetoes=vetoes)
    assert found.all == expected.all
    for a, b in combinations(KEYS, 2):
        assert found.is_ruled_out(a, b) == expected.is_ruled_out(b, a)


@given(histories(), vetoes)
def test_identities_share_out_the_tracks_and_hold_no_forbidden_pair(history, vetoes) -> None:
    """Each track is in one identity; two that must not be one person never are in one."""
    statements = statements_of(history)
    found = Identities("g", KEYS, statements, vetoes)
    assert sorted(key for one in found.all for key in one.person_keys) == KEYS
    assert len({one.identity_id for one in found.all}) == len(found.all)
    different = [pair for pair, verdict in statements.of_pair.items() if verdict == "different"]
    for a, b in [*different, *vetoes]:
        assert found.of_key[a] is not found.of_key[b]
    for a, b in different:
        assert found.is_ruled_out(a, b)


@given(histories(), vetoes)
def test_undoing_the_latest_decision_is_as_if_it_was_never_made(history, vetoes) -> None:
    """Undo takes back one decision, whatever its kind, and undo of that undo brings it back."""
    latest = pair("v/0", "v/5", "same", 30)
    with_it = [*history, latest]
    undo = UndoDecision.make(gallery_id="g", decided_at=at(31), undoes=latest.decision_id)
    redo = UndoDecision.make(gallery_id="g", decided_at=at(32), undoes=undo.decision_id)
    assert identities([*with_it, undo], vetoes=vetoes).all == identities(history, vetoes=vetoes).all
    redone = identities([*with_it, undo, redo], vetoes=vetoes).all
    assert redone == identities(with_it, vetoes=vetoes).all


@given(histories(), vetoes)
def test_the_decided_pairs_are_those_that_are_one_or_ruled_out(history, vetoes) -> None:
    """Each pair once, and of the others nothing is said."""
    found = identities(history, vetoes=vetoes)
    said = list(found.decided_pairs())
    assert len({pair for pair, _ in said}) == len(said)
    expected = {}
    for a, b in combinations(KEYS, 2):
        if found.of_key[a] is found.of_key[b]:
            expected[a, b] = True
        elif found.is_ruled_out(a, b):
            expected[a, b] = False
    assert dict(said) == expected


def test_tracks_are_joined_through_each_other() -> None:
    """Pairs, groups and tracks that are gone all join."""
    assert together([pair("v/0", "v/1", "same"), pair("v/1", "v/2", "same")]) == [KEYS[:3]]
    group = GroupDecision.make(gallery_id="g", decided_at=at(0), person_keys=["v/3", "v/1", "v/5"])
    assert together([group]) == [["v/1", "v/3", "v/5"]]
    gone = [pair("v/0", "gone/1", "same"), pair("gone/1", "v/4", "same")]
    assert together(gone) == [["v/0", "v/4"]]


def test_the_latest_statement_of_a_pair_holds() -> None:
    """A second look replaces the first; "unsure" takes back what was said."""
    said = [pair("v/0", "v/1", "same", 1), pair("v/1", "v/0", "different", 2)]
    assert together(said) == []
    assert identities(said).is_ruled_out("v/0", "v/1")
    unsure = identities([*said, pair("v/0", "v/1", "unsure", 3)])
    assert not unsure.is_ruled_out("v/0", "v/1")


def test_different_holds_through_a_third_track() -> None:
    """If 0 and 1 are one person and 1 is not 2, then 0 is not 2, and neither are 0's others."""
    said = [pair("v/0", "v/1", "same"), pair("v/1", "v/2", "different"), pair("v/2", "v/3", "same")]
    found = identities(said)
    assert found.is_ruled_out("v/0", "v/3")
    assert not found.is_ruled_out("v/0", "v/4")


def test_a_conflict_joins_nobody_and_names_the_pairs_in_question() -> None:
    """0 = 1 = 2 while 0 and 2 were seen apart: a reviewer has to look again."""
    said = [pair("v/0", "v/1", "same"), pair("v/1", "v/2", "same"), pair("v/3", "v/4", "same")]
    found = identities(said, vetoes=[("v/0", "v/2")])
    assert found.conflicts() == (("v/0", "v/2"),)
    assert [one.person_keys for one in found.all if one.conflicts] == [
        ("v/0",),
        ("v/1",),
        ("v/2",),
    ]
    assert found.of_key["v/3"] is found.of_key["v/4"]
    solved = [*said, pair("v/1", "v/2", "different", 9)]
    assert identities(solved, vetoes=[("v/0", "v/2")]).conflicts() == ()


def test_verified_ends_when_the_tracks_change() -> None:
    """It is said of exactly these tracks; one more, and somebody has to look again."""
    said = [
        pair("v/0", "v/1", "same"),
        VerifiedDecision.make(gallery_id="g", decided_at=at(1), person_keys=["v/1", "v/0"]),
    ]
    assert identities(said).of_key["v/0"].is_verified
    assert not identities([*said, pair("v/1", "v/2", "same", 2)]).of_key["v/0"].is_verified


def test_wanted_is_said_of_tracks_and_holds_for_their_identity() -> None:
    """One wanted track makes its person wanted."""
    said = [
        pair("v/0", "v/1", "same"),
        SelectedDecision.make(gallery_id="g", decided_at=at(1), person_keys=["v/0"], wanted=True),
        SelectedDecision.make(gallery_id="g", decided_at=at(2), person_keys=["v/2"], wanted=False),
    ]
    found = identities(said)
    assert [found.of_key[key].is_wanted for key in KEYS[:4]] == [True, True, False, None]


def test_decisions_are_read_as_anybody_may_write_them() -> None:
    """Without ids and times of ours; the same words have the same id."""
    text = (
        b'{"kind":"pair","gallery_id":"g","decided_at":"2026-11-30T10:00:00+01:00",'
        b'"person_keys":["v/1","v/0"],"verdict":"same","unknown":1}'
    )
    decision = parse_decision(text)
    assert decision.decision_id == parse_decision(text).decision_id
    assert together([decision]) == [["v/0", "v/1"]]
    written = parse_decision(decision.to_json())
    assert written == decision


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (b"{}", "kind"),
        (b"[]", "review-decisions"),
        (b'{"kind":"merge","gallery_id":"g"}', "merge"),
        (
            (
                b'{"kind":"pair","gallery_id":"g","decided_at":"2026-11-30T10:00:00Z",'
                b'"person_keys":["a","a"],"verdict":"same"}'
            ),
            "expected two tracks",
        ),
        (
            (
                b'{"kind":"pair","gallery_id":"g","decided_at":"yesterday",'
                b'"person_keys":["a","b"],"verdict":"same"}'
            ),
            "decided_at",
        ),
    ],
)
def test_what_is_no_decision_is_refused_by_name(text, told) -> None:
    """The field, what was expected and what came, in one line."""
    with pytest.raises(EventError, match=told):
        parse_decision(text)


def test_a_list_of_too_many_tracks_is_refused() -> None:
    """All pairs of a list are stated, so its length has a limit."""
    with pytest.raises(ValueError, match=str(MAX_KEYS)):
        GroupDecision.make(
            gallery_id="g",
            decided_at=at(0),
            person_keys=[f"v/{number}" for number in range(MAX_KEYS + 1)],
        )
    assert pair_of("b", "a") == ("a", "b")
