"""Whitened similarity: cosines of centred and whitened vectors, in one video and across videos."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persons import person, unit_vector

from streamproc.gallery import Curve
from streamproc.gallery.calibration import whitening
from streamproc.gallery.calibration.curve import FEATURES, NO_BETA, PAIR_FEATURES
from streamproc.gallery.calibration.whitening import WhitenedSimilarity

DIM = 24
PEOPLE = 40


def make_curve(within, dim=DIM) -> Curve:
    """A curve that learned how much one person's tracks differ in each direction (dim,).

    These numbers add up to 1.
    """
    order = np.argsort(within)[-3:]
    return Curve(
        mean=np.zeros(dim, np.float32),
        basis=np.eye(dim, dtype=np.float32)[order],
        basis_variances=within[order].astype(np.float32),
        rest_variance=float((within.sum() - within[order].sum()) / (dim - 3)),
        within_track_trace=0.01,
        arrival_coefficients=(0.0, 0.0),
        pair_coefficients=(0.0,) * (1 + PAIR_FEATURES),
        closing_coefficients=(0.0,) * (1 + FEATURES),
        beta_coefficients=NO_BETA,
    )


FLAT = np.full(DIM, 1 / DIM)


def people(rng, *, shift=0.0, changed=(), videos=("v", "w")):
    """The same persons in each video, and pairs of positions.

    `shift` is what a camera adds to all of them, `changed` the directions in which each changes
    most. The pairs are those of one person, and those of two in different videos.
    """
    appearances = rng.normal(size=(PEOPLE, DIM))
    seen = []
    for video in videos:
        offset = shift * rng.normal(size=DIM)
        change = 0.5 * rng.normal(size=(PEOPLE, DIM))
        change[:, list(changed)] *= 8
        for i, vector in enumerate(appearances + offset + change):
            parts = [unit_vector(vector + 0.1 * rng.normal(size=DIM)) for _ in range(4)]
            seen.append(person(i, vector, video_id=video, segments=parts))
    same = np.array([(i, PEOPLE + i) for i in range(PEOPLE)])
    one, another = np.nonzero(~np.eye(PEOPLE, dtype=bool))
    other = np.stack([one, PEOPLE + another], axis=1)
    return seen, same, other


def right(similarity, same, other):
    """The share of true pairs that are more alike than 99 % of the others."""
    return (similarity.cosines(same) > np.quantile(similarity.cosines(other), 0.99)).mean()


def test_what_a_camera_adds_to_everybody_is_no_likeness(monkeypatch) -> None:
    """With each video's own mean true pairs stand out, and with the gallery's alone they do not."""
    seen, same, other = people(np.random.default_rng(1), shift=2.0)
    each = right(WhitenedSimilarity(make_curve(FLAT), seen), same, other)
    # all are compared with the gallery's mean
    monkeypatch.setattr(whitening, "VIDEO_TRACKLETS", 1e9)
    assert each > 0.7 > right(WhitenedSimilarity(make_curve(FLAT), seen), same, other)


def test_what_changes_from_camera_to_camera_is_learned_and_not_asked_of_tracks(monkeypatch) -> None:
    """Across videos the learned covariance finds true pairs that the tracks' own does not."""
    changed = np.where(np.arange(DIM) < 3, 10.0, 0.1)
    curve = make_curve(changed / changed.sum())
    seen, same, other = people(np.random.default_rng(2), changed=range(3))
    across = right(WhitenedSimilarity(curve, seen), same, other)
    monkeypatch.setattr(whitening, "ACROSS_VIDEOS", (0.0, 0.0))  # tracks alone
    assert across > 0.5 > right(WhitenedSimilarity(curve, seen), same, other)


def test_pairs_in_one_video_do_not_ask_what_changes_between_cameras(monkeypatch) -> None:
    """The constants for different videos change no cosine within one video."""
    seen, same, _ = people(np.random.default_rng(3))
    pairs = np.concatenate([same, [(0, 1), (PEOPLE, PEOPLE + 1)]])
    changed = np.where(np.arange(DIM) < 3, 10.0, 0.1)
    curve = make_curve(changed / changed.sum())
    similarity = WhitenedSimilarity(curve, seen)
    found = similarity.cosines(pairs)
    monkeypatch.setattr(whitening, "ACROSS_VIDEOS", (0.0, 0.0))
    moved = similarity.cosines(pairs) != found
    np.testing.assert_array_equal(moved, ~similarity.in_one_video(pairs))
    assert moved.sum() == PEOPLE


def test_where_there_is_one_video_its_mean_is_the_gallerys(monkeypatch) -> None:
    """With one video it makes no difference whose mean is subtracted."""
    seen, _, _ = people(np.random.default_rng(4), videos=("v",))
    pairs = np.stack(np.tril_indices(PEOPLE, -1), axis=1)
    found = WhitenedSimilarity(make_curve(FLAT), seen).cosines(pairs)
    monkeypatch.setattr(whitening, "VIDEO_TRACKLETS", 1e9)
    np.testing.assert_allclose(
        found, WhitenedSimilarity(make_curve(FLAT), seen).cosines(pairs), atol=1e-12
    )


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_a_pair_is_as_alike_whichever_is_named_first_and_whatever_else_is_asked(
    seed, videos
) -> None:
    """A pair's cosine depends neither on its order nor on the other pairs asked for."""
    rng = np.random.default_rng(seed)
    seen = [person(i, rng.normal(size=DIM), video_id=f"v{rng.integers(videos)}") for i in range(9)]
    similarity = WhitenedSimilarity(make_curve(FLAT), seen)
    pairs = np.stack(np.tril_indices(9, -1), axis=1)
    found = similarity.cosines(pairs)
    assert (np.abs(found) <= 1 + 1e-9).all()
    np.testing.assert_allclose(similarity.cosines(pairs[:, ::-1]), found, atol=1e-12)
    np.testing.assert_allclose(
        [similarity.cosines(pair[None])[0] for pair in pairs], found, atol=1e-12
    )


def test_videos_of_which_the_sample_has_nobody_have_finite_cosines(monkeypatch) -> None:
    """Videos of which the sample holds nobody still give finite cosines."""
    monkeypatch.setattr(whitening, "SAMPLED_TRACKLETS", 1)
    rng = np.random.default_rng(5)
    seen = [person(i, rng.normal(size=DIM), video_id=f"v{i}") for i in range(4)]
    assert np.isfinite(
        WhitenedSimilarity(make_curve(FLAT), seen).cosines(np.array([(0, 1), (2, 3)]))
    ).all()


@pytest.mark.parametrize("videos", [("v",), ("v", "w")])
def test_no_pairs_have_no_cosines(videos) -> None:
    """No pairs give an empty result."""
    seen, _, _ = people(np.random.default_rng(6), videos=videos)
    assert WhitenedSimilarity(make_curve(FLAT), seen).cosines(np.zeros((0, 2), np.int64)).shape == (
        0,
    )
