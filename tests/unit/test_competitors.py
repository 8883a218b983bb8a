"""Competitors of a pair: the fast sum over triangles equals the plain one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamproc.gallery.calibration.competitors import competitor_strength
from streamproc.gallery.linking import context as module


def drawn(seed, count, share):
    """Some of the pairs of `count` persons, with log-odds."""
    rng = np.random.default_rng(seed)
    pairs = np.stack(np.triu_indices(count, 1), axis=1)
    pairs = pairs[rng.random(len(pairs)) < share]
    return pairs, rng.normal(-1, 3, len(pairs))


def plain(pairs, log_odds):
    """The sum as defined: c counts against (a, b) by the odds of (a, c), as far as c is not b."""
    odds = {
        frozenset(pair): value
        for pair, value in zip(pairs.tolist(), np.exp(log_odds).tolist(), strict=True)
    }
    persons = set(pairs.ravel().tolist())
    found = []
    for a, b in pairs.tolist():
        sides = []
        for own, other in ((a, b), (b, a)):
            rest = persons - {a, b}
            sides.append(
                sum(
                    odds.get(frozenset((own, c)), 0) / (1 + odds.get(frozenset((other, c)), 0))
                    for c in rest
                )
            )
        found.append(np.log1p(sides).sum())
    return np.array(found)


@given(st.integers(0, 2**32 - 1), st.integers(0, 14), st.sampled_from([0.2, 0.6, 1.0]))
def test_it_is_the_plain_sum(seed, count, share) -> None:
    """The fast sum equals the plain one over all persons."""
    pairs, log_odds = drawn(seed, count, share)
    np.testing.assert_allclose(
        competitor_strength(pairs, log_odds), plain(pairs, log_odds), atol=1e-6
    )


@given(st.integers(0, 2**32 - 1), st.integers(2, 14))
def test_neither_the_order_of_pairs_nor_the_names_of_persons_matter(seed, count) -> None:
    """Reordering pairs and renaming persons only reorders the result."""
    pairs, log_odds = drawn(seed, count, 0.7)
    rng = np.random.default_rng(seed + 1)
    order = rng.permutation(len(pairs))
    names = rng.permutation(count)
    turned = names[pairs[order]][:, ::-1]
    np.testing.assert_allclose(
        competitor_strength(turned, log_odds[order]),
        competitor_strength(pairs, log_odds)[order],
        atol=1e-9,
    )


def test_a_third_track_of_the_person_is_no_competitor_and_another_person_is_one() -> None:
    """A third track of the same person hardly counts, and another person by its odds."""
    triangle = np.array([[0, 1], [0, 2], [1, 2]])
    sure = np.full(3, 8.0)
    assert competitor_strength(triangle, sure) == pytest.approx(np.full(3, 2 * np.log(2)), abs=1e-2)
    assert competitor_strength(triangle[:2], sure[:2]) == pytest.approx(np.full(2, 8.0), abs=1e-2)
    assert competitor_strength(triangle[:1], sure[:1]) == 0


def test_many_triangles_are_seen_in_parts_that_come_to_the_same(monkeypatch) -> None:
    """Triangles seen in chunks give the same result as at once."""
    pairs, log_odds = drawn(5, 14, 0.9)
    whole = competitor_strength(pairs, log_odds)
    monkeypatch.setattr(module, "_WEDGES_AT_ONCE", 7)
    np.testing.assert_allclose(competitor_strength(pairs, log_odds), whole, atol=1e-9)


def test_who_is_like_everybody_does_not_make_it_quadratic(monkeypatch) -> None:
    """30,000 persons who are like one give the right sum without a step for each two of them."""
    pairs = np.stack([np.zeros(30_000, np.int64), np.arange(1, 30_001)], axis=1)
    monkeypatch.setattr(module, "_WEDGES_AT_ONCE", 1)
    assert competitor_strength(pairs, np.zeros(30_000))[0] == pytest.approx(np.log1p(29_999))
