"""Looks: cosines of centred and whitened vectors, in one video and across videos."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persons import person, unit_vector

from streamproc.gallery import Curve
from streamproc.gallery.calibration import whitening
from streamproc.gallery.calibration.curve import ALONE, FEATURES, STRAIGHT
from streamproc.gallery.calibration.whitening import Looks

DIM = 24
PEOPLE = 40


def make_curve(within, dim=DIM) -> Curve:
    """A curve that has learned how much one person's tracks differ in each direction (dim,), of sum 1."""
    order = np.argsort(within)[-3:]
    return Curve(
        mean=np.zeros(dim, np.float32),
        basis=np.eye(dim, dtype=np.float32)[order],
        spread=within[order].astype(np.float32),
        rest=float((within.sum() - within[order].sum()) / (dim - 3)),
        part_trace=0.01,
        arrival=(0.0, 0.0),
        alone=(0.0,) * (1 + ALONE),
        closed=(0.0,) * (1 + FEATURES),
        bent=STRAIGHT,
    )


FLAT = np.full(DIM, 1 / DIM)


def people(rng, *, shift=0.0, changed=(), videos=("v", "w")):
    """The same persons in each video; what a camera adds to all of them, and how much each changes in some directions.

    Pairs of one person, and of two in different videos, as positions.
    """
    looks = rng.normal(size=(PEOPLE, DIM))
    seen = []
    for video in videos:
        offset, change = shift * rng.normal(size=DIM), 0.5 * rng.normal(size=(PEOPLE, DIM))
        change[:, list(changed)] *= 8
        for i, vector in enumerate(looks + offset + change):
            parts = [unit_vector(vector + 0.1 * rng.normal(size=DIM)) for _ in range(4)]
            seen.append(person(i, vector, video_id=video, segments=parts))
    same = np.array([(i, PEOPLE + i) for i in range(PEOPLE)])
    other = np.array([(i, PEOPLE + j) for i in range(PEOPLE) for j in range(PEOPLE) if i != j])
    return seen, same, other


def right(looks, same, other):
    """The share of true pairs that are more alike than 99 % of the others."""
    return (looks.cosines(same) > np.quantile(looks.cosines(other), 0.99)).mean()


def test_what_a_camera_adds_to_everybody_is_no_likeness(monkeypatch) -> None:
    seen, same, other = people(np.random.default_rng(1), shift=2.0)
    each = right(Looks(make_curve(FLAT), seen), same, other)
    monkeypatch.setattr(whitening, "VIDEO_PERSONS", 1e9)  # all are held against the gallery's mean
    assert each > 0.7 > right(Looks(make_curve(FLAT), seen), same, other)


def test_what_changes_from_camera_to_camera_is_learned_and_not_asked_of_tracks(monkeypatch) -> None:
    changed = np.where(np.arange(DIM) < 3, 10.0, 0.1)
    curve = make_curve(changed / changed.sum())
    seen, same, other = people(np.random.default_rng(2), changed=range(3))
    across = right(Looks(curve, seen), same, other)
    monkeypatch.setattr(whitening, "ACROSS_VIDEOS", (0.0, 0.0))  # tracks alone
    assert across > 0.5 > right(Looks(curve, seen), same, other)


def test_pairs_in_one_video_do_not_ask_what_changes_between_cameras(monkeypatch) -> None:
    seen, same, _ = people(np.random.default_rng(3))
    pairs = np.concatenate([same, [(0, 1), (PEOPLE, PEOPLE + 1)]])
    changed = np.where(np.arange(DIM) < 3, 10.0, 0.1)
    curve = make_curve(changed / changed.sum())
    looks = Looks(curve, seen)
    found = looks.cosines(pairs)
    monkeypatch.setattr(whitening, "ACROSS_VIDEOS", (0.0, 0.0))
    moved = looks.cosines(pairs) != found
    np.testing.assert_array_equal(moved, ~looks.in_one_video(pairs))
    assert moved.sum() == PEOPLE


def test_where_there_is_one_video_its_mean_is_the_gallerys(monkeypatch) -> None:
    seen, _, _ = people(np.random.default_rng(4), videos=("v",))
    pairs = np.array([(i, j) for i in range(PEOPLE) for j in range(i)])
    found = Looks(make_curve(FLAT), seen).cosines(pairs)
    monkeypatch.setattr(whitening, "VIDEO_PERSONS", 1e9)
    np.testing.assert_allclose(found, Looks(make_curve(FLAT), seen).cosines(pairs), atol=1e-12)


@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_a_pair_is_as_alike_whichever_is_named_first_and_whatever_else_is_asked(
    seed, videos
) -> None:
    rng = np.random.default_rng(seed)
    seen = [person(i, rng.normal(size=DIM), video_id=f"v{rng.integers(videos)}") for i in range(9)]
    looks = Looks(make_curve(FLAT), seen)
    pairs = np.array([(i, j) for i in range(9) for j in range(i)])
    found = looks.cosines(pairs)
    assert (np.abs(found) <= 1 + 1e-9).all()
    np.testing.assert_allclose(looks.cosines(pairs[:, ::-1]), found, atol=1e-12)
    np.testing.assert_allclose([looks.cosines(pair[None])[0] for pair in pairs], found, atol=1e-12)


def test_nobody_of_a_video_in_the_sample_is_held_against_the_gallery(monkeypatch) -> None:
    monkeypatch.setattr(whitening, "SAMPLED_PERSONS", 1)
    rng = np.random.default_rng(5)
    seen = [person(i, rng.normal(size=DIM), video_id=f"v{i}") for i in range(4)]
    assert np.isfinite(Looks(make_curve(FLAT), seen).cosines(np.array([(0, 1), (2, 3)]))).all()


@pytest.mark.parametrize("videos", [("v",), ("v", "w")])
def test_no_pairs_have_no_cosines(videos) -> None:
    seen, _, _ = people(np.random.default_rng(6), videos=videos)
    assert Looks(make_curve(FLAT), seen).cosines(np.zeros((0, 2), np.int64)).shape == (0,)
