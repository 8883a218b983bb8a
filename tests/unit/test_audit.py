"""How right the probabilities were by what was decided."""

from __future__ import annotations

import pytest

from streamproc.decisions import GroupDecision, PairDecision, UndoDecision
from streamproc.gallery.audit import audit

SAID = {"gallery_id": "lobby"}


def pair(number, verdict, probability=None, *, second=0):
    """A decision on a pair of its own."""
    return PairDecision.make(
        **SAID,
        decided_at=f"2026-11-30T10:00:{second:02}Z",
        person_keys=(f"v/{number}", f"w/{number}"),
        verdict=verdict,
        shown=None if probability is None else {"probability": probability},
    )


def test_bins_say_what_was_called_the_same_and_how_far_off_the_probability_was():
    """Ten pairs of .2, of which one is the same, and ten of .9, of which all are."""
    low = [pair(n, "same" if n == 0 else "different", 0.2) for n in range(10)]
    high = [pair(n, "same", 0.9) for n in range(10, 20)]
    found = audit([*high, *low], {})
    halves = [row for row in found.rows if row.greatest < 0.5]
    assert sum(row.pairs for row in halves) == 10
    assert sum(row.same * row.pairs for row in halves) == pytest.approx(1)
    assert [row.error for row in found.rows][-1] == pytest.approx(0.1)
    assert found.error == pytest.approx(0.1)
    assert found.error_by_chance > 0
    assert found.diagram().startswith("<svg")


def test_what_says_nothing_is_left_out_and_counted():
    """Not sure, undone, without a probability; of a pair the latest decision counts, once."""
    undone = pair(1, "same", 0.7)
    decisions = [
        undone,
        UndoDecision.make(**SAID, decided_at="2026-11-30T11:00:00Z", undoes=undone.decision_id),
        pair(2, "unsure", 0.7),
        pair(3, "same"),
        pair(4, "same", 0.6),
        pair(4, "different", 0.5, second=1),
    ]
    found = audit(decisions, {})
    assert (found.undone, found.unsure, found.without_probability) == (1, 1, 1)
    assert (found.probability.tolist(), found.same.tolist()) == ([0.5], [False])


def test_pairs_of_a_group_have_the_probability_that_the_gallery_gives_them():
    """A group was not shown pair by pair; what was shown holds before what is known now."""
    group = GroupDecision.make(
        **SAID, decided_at="2026-11-30T10:00:00Z", person_keys=["v/1", "v/2", "v/3"]
    )
    known = {("v/1", "v/2"): 0.8, ("v/4", "w/4"): 0.3}
    found = audit([group, pair(4, "same", 0.9)], known)
    assert sorted(found.probability) == [0.8, 0.9]
    assert found.without_probability == 2


def test_nothing_decided_is_nothing_to_say():
    """No rows, and no error."""
    found = audit([], {})
    assert (found.rows, found.error, found.as_json()["pairs"]) == ((), None, 0)
