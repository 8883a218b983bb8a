"""Impure tracks: what is cut, and where."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.linking.learned import load_purity
from models.linking.scores import switches
from streamproc.gallery import Curve, load_curves
from streamproc.gallery.linking.purity import (
    PurityModel,
    Suspect,
    best_cut,
    find_suspect,
    suspicion,
)
from streamproc.networks.manifest import package_file
from streamproc.types import Track

DIM = 8
PURITY_FIELDS = ("intercept", "split", "rest", "share")


def crops_of(rng: np.random.Generator, centre: np.ndarray, count: int) -> np.ndarray:
    """Unit vectors around a centre."""
    vectors = centre + 0.05 * rng.normal(size=(count, DIM))
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@settings(max_examples=30)
@given(st.integers(2, 20), st.integers(2, 20), st.integers(0, 1000))
def test_two_people_are_cut_where_the_second_begins(first: int, second: int, seed: int) -> None:
    """Two clearly different stretches are told apart, if neither is very short."""
    if min(first, second) < 0.2 * (first + second):
        return
    rng = np.random.default_rng(seed)
    vectors = np.concatenate(
        [crops_of(rng, np.eye(DIM)[0], first), crops_of(rng, np.eye(DIM)[1], second)]
    )
    split, cut = best_cut(vectors)
    assert cut == first
    assert split > 0.5


@settings(max_examples=30)
@given(st.integers(0, 3), st.integers(0, 100))
def test_too_few_crops_are_never_cut(count: int, seed: int) -> None:
    """Two crops a part at least."""
    assert best_cut(crops_of(np.random.default_rng(seed), np.eye(DIM)[0], count)) == (0.0, 0)


@settings(max_examples=30)
@given(st.lists(st.floats(-1, 1), min_size=3 * DIM, max_size=3 * DIM), st.integers(4, 12))
def test_a_split_reads_the_same_backwards(values: list[float], count: int) -> None:
    """Time may run either way."""
    rng = np.random.default_rng(abs(hash(tuple(values))) % 2**32)
    vectors = crops_of(rng, np.array(values[:DIM]) + 1.5, count)
    assert best_cut(vectors)[0] == pytest.approx(best_cut(vectors[::-1])[0])


def test_the_frame_is_where_the_motion_breaks() -> None:
    """Between the last crop of the one and the first of the other the boxes say when."""
    rng, frames = np.random.default_rng(0), np.arange(100)
    left = np.where(frames < 47, frames * 2.0, 300 - frames * 2.0)
    boxes = np.stack([left, np.zeros(100), left + 40, np.full(100, 100.0)], axis=1)
    vectors = np.concatenate([crops_of(rng, np.eye(DIM)[0], 4), crops_of(rng, np.eye(DIM)[1], 4)])
    crop_frames = np.array([5, 15, 25, 40, 60, 70, 80, 95])
    found = find_suspect(vectors, crop_frames, np.zeros(DIM), frames, boxes)
    assert found is not None
    assert found.frame_index == 47
    assert found.share == pytest.approx(0.47)


def test_a_short_track_is_no_suspect() -> None:
    """Of a few boxes nothing is said."""
    rng, frames = np.random.default_rng(0), np.arange(10)
    vectors = crops_of(rng, np.eye(DIM)[0], 8)
    boxes = np.tile([0.0, 0.0, 10.0, 20.0], (10, 1))
    assert find_suspect(vectors, np.arange(8), np.zeros(DIM), frames, boxes) is None


def test_a_clearer_split_is_likelier() -> None:
    """Probability rises with the split and falls with what is left to split."""
    model = PurityModel(-6.2, 5.8, -1.0, 3.0)
    cases = [Suspect(0, 1.0, 0.2, 0.4), Suspect(0, 0.5, 0.2, 0.4), Suspect(0, 1.0, 0.8, 0.4)]
    chances = suspicion(cases, model)
    assert chances[0] > chances[1]
    assert chances[0] > chances[2]


def test_learned_values_say_that_a_clear_split_is_suspect() -> None:
    """The values in the folder are of this model, and in its order."""
    model = load_purity()
    clear, none = suspicion([Suspect(0, 1.2, 0.2, 0.5), Suspect(0, 0.2, 0.2, 0.5)], model)
    assert clear > 0.9
    assert none < 0.1


def test_the_curve_of_the_package_tells_tracks_that_hold_two_people() -> None:
    """The package's own weights have what was learned, and judge by it; others report nothing."""
    curves = load_curves(package_file("calibration.json"))
    judges = [curve.track_judge for curve in curves.values() if curve.track_judge is not None]
    (judge,) = judges
    assert judge.model == load_purity()
    rng = np.random.default_rng(0)
    ends = np.eye(len(judge.mean))[:2]
    crops = np.repeat(ends, 4, axis=0) + 0.01 * rng.normal(size=(8, len(judge.mean)))
    crops /= np.linalg.norm(crops, axis=1, keepdims=True)
    frames = np.arange(80)
    boxes = np.tile([0.0, 0.0, 40.0, 100.0], (80, 1))
    boxes[40:] += [200, 0, 200, 0]
    found = judge.judge(crops, np.arange(5, 80, 10), frames, boxes)
    assert found is not None
    assert found[0].frame_index == 40
    assert found[1] > 0.5
    assert judge.judge(crops[:4].repeat(2, 0), np.arange(5, 80, 10), frames, boxes) is None
    assert judge.judge(crops[:, :8], np.arange(5, 80, 10), frames, boxes) is None


def test_what_tells_impure_tracks_changes_no_calibration_id() -> None:
    """It decides no probability of a pair, so that candidates are not said again for it."""
    curve = next(iter(load_curves(package_file("calibration.json")).values()))
    without = replace(curve, purity=None)
    assert without.calibration_id == curve.calibration_id
    assert Curve.from_json(curve.to_json()).purity == curve.purity
    with pytest.raises(ValueError, match="finite"):
        Curve.from_json(curve.to_json() | {"purity": dict.fromkeys(PURITY_FIELDS, float("nan"))})


def test_a_track_that_goes_from_one_person_to_another_truly_holds_two() -> None:
    """The truth of an impure track is the first frame on the second person."""
    frames = np.arange(40)
    left = np.where(frames < 25, 0, 200).astype(np.float32)
    boxes = np.stack([left, 0 * left, left + 40, 0 * left + 100], axis=1)
    sure = np.ones(40, np.float32)
    impure, pure = Track(1, frames, boxes, sure), Track(2, frames[:25], boxes[:25], sure[:25])
    truth = [
        Track(3, frames, np.tile(boxes[0], (40, 1)), sure),
        Track(4, frames, np.tile(boxes[-1], (40, 1)), sure),
    ]
    assert switches([impure, pure], truth) == {1: 25}
