"""Trajectories, motion, context, groups: what holds whatever the numbers are."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.linking import gta_link
from models.linking.learned import all_coefficients, load_linking
from models.linking.rows import Listed, TrackedFile, split
from models.linking.scores import Truth, score
from streamproc.crops.trajectory import END_BOXES, MAX_BOXES, thinned
from streamproc.gallery import load_curves
from streamproc.gallery.linking.context import competition, support
from streamproc.gallery.linking.ends import ends_of
from streamproc.gallery.linking.groups import cluster, components, same_group
from streamproc.gallery.linking.motion import PositionModel, motion_pairs, position_log_odds
from streamproc.gallery.linking.pair_features import LooksModel, close_video, features_within
from streamproc.gallery.linking.pair_model import FINAL, FIRST, log_duplicates, measure
from streamproc.types import Track, Trajectory

ROOT = Path(__file__).resolve().parents[2]
MODEL = PositionModel(0.97, 8.0, 0.1, 0.1, 2.5, 0.7, 0.55)
FLOOR, STOP = -3.0, 0.0


def walker(start: int, count: int, x: float, speed: float, width: float = 40.0) -> Trajectory:
    """Somebody 100 px tall who walks to the right, `speed` px a frame."""
    frames = np.arange(start, start + count)
    left = x + speed * (frames - start)
    boxes = np.stack([left, np.full(count, 200.0), left + width, np.full(count, 300.0)], axis=1)
    return thinned(frames, boxes.astype(np.float32))


def graph_of(seed: int) -> tuple[int, np.ndarray, np.ndarray, np.ndarray]:
    """Up to 9 tracklets, some pairs with log-odds, and vetoes between some of the others.

    Every fourth has log-odds with many ties.
    """
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 10))
    pairs = np.stack(np.triu_indices(count, 1), axis=1)
    state = rng.integers(0, 4, len(pairs))
    odds = rng.uniform(-5, 5, len(pairs))
    odds = odds.round() if seed % 4 == 0 else odds
    return count, pairs[state > 1], odds[state > 1], pairs[state == 1]


some_graphs = pytest.mark.parametrize("seed", range(16))


def partition(label: np.ndarray) -> set[frozenset[int]]:
    """Return the clusters as sets of tracklets."""
    return {frozenset(np.flatnonzero(label == name).tolist()) for name in np.unique(label)}


# Trajectories.


@settings(max_examples=30)
@given(st.lists(st.integers(0, 5000), min_size=1, max_size=300, unique=True))
def test_a_thinned_track_keeps_both_ends_and_at_most_64_boxes(frames: list[int]) -> None:
    """The first and last ten boxes stay, and never more than 64 in all."""
    indices = np.array(sorted(frames))
    boxes = np.tile(indices[:, None].astype(float), (1, 4))
    found = thinned(indices, boxes.astype(np.float32))
    kept = found.frame_indices
    kept_boxes = found.boxes_xyxy
    assert len(kept) <= MAX_BOXES or len(indices) <= MAX_BOXES
    assert kept[:END_BOXES].tolist() == indices[:END_BOXES].tolist()
    assert kept[-END_BOXES:].tolist() == indices[-END_BOXES:].tolist()
    assert (kept_boxes[:, 0] == kept).all()


@settings(max_examples=50)
@given(st.integers(0, 3000), st.integers(0, 3000), st.integers(100, 900), st.integers(100, 900))
def test_two_thinned_tracks_share_frames(a: int, b: int, n: int, m: int) -> None:
    """In the middle one's frames are a subset of the other's, where both are there."""
    grids = []
    for start, count in ((a, n), (b, m)):
        indices = np.arange(start, start + count)
        kept = thinned(indices, np.zeros((count, 4), np.float32)).frame_indices
        grids.append(set(kept[END_BOXES:-END_BOXES].tolist()))
    low, high = max(a, b) + END_BOXES, min(a + n, b + m) - END_BOXES
    inside = [{frame for frame in grid if low <= frame < high} for grid in grids]
    assert inside[0] <= inside[1] or inside[1] <= inside[0]


def test_ends_say_where_and_how_fast() -> None:
    """A steady walker's velocity is found but for the ridge, and the edge is noticed."""
    track = walker(0, 50, 0.0, 3.0)
    begin = ends_of([track, None], last=False, width=640, height=480, frames_per_second=10)
    end = ends_of([track, None], last=True, width=640, height=480, frames_per_second=10)
    assert begin.known.tolist() == [True, False]
    assert begin.at_edge[0]
    assert not end.at_edge[0]
    assert end.position[0] == pytest.approx([3 * 49 + 20, 250])
    assert 25 < end.velocity[0, 0] <= 30
    assert end.velocity[0, 1] == pytest.approx(0)


# Motion.


def pairs_of_motion(tracks: list[Trajectory | None]) -> object:
    """Describe the one pair of two tracklets."""
    ends = {
        last: ends_of(tracks, last=last, width=640, height=480, frames_per_second=10)
        for last in (False, True)
    }
    pairs = np.array([[i, j] for i in range(len(tracks)) for j in range(i + 1, len(tracks))])
    return motion_pairs(
        pairs,
        ends[False],
        ends[True],
        tracks,
        MODEL,
        frames_per_second=10,
        picture_area_px=640 * 480,
    )


def test_who_goes_on_where_predicted_is_likelier() -> None:
    """The continuation beats somebody as far away on the other side."""
    goes_on, elsewhere = walker(35, 20, 100 + 35 * 3, 3.0), walker(35, 20, 0.0, 3.0)
    found = pairs_of_motion([walker(0, 30, 100.0, 3.0), goes_on, elsewhere])
    assert found.position[0] > 2 > found.position[1]
    assert found.gap_seconds[0] == pytest.approx(0.6)


def test_after_a_long_gap_motion_says_nothing() -> None:
    """Log-odds go to 0 as time passes."""
    odds = position_log_odds(np.ones((3, 2)), np.array([1.0, 20.0, 200.0]), np.ones(3) * 40, MODEL)
    assert abs(odds[2]) < 1e-6
    assert abs(odds[0]) > abs(odds[2])


def test_without_a_trajectory_nothing_is_said() -> None:
    """A row of an earlier version is neutral."""
    found = pairs_of_motion([walker(0, 30, 100.0, 3.0), None])
    assert not found.known[0]
    assert found.position[0] == 0
    assert found.height_change[0] == 0


@settings(max_examples=30)
@given(st.integers(-20, 60), st.floats(0, 500), st.floats(0, 500))
def test_a_pair_is_judged_the_same_either_way(gap: int, x: float, other_x: float) -> None:
    """Motion does not know an order of the two."""
    one, other = walker(0, 30, x, 1.0), walker(max(30 + gap, 0), 30, other_x, 1.0)
    first, second = pairs_of_motion([one, other]), pairs_of_motion([other, one])
    assert first.position == pytest.approx(second.position)
    assert first.gap_seconds == pytest.approx(second.gap_seconds)


# Context.


def brute_force(pairs: np.ndarray, odds: np.ndarray, video: np.ndarray) -> tuple[list, list]:
    """What `competition` and `support` say, one pair after the other."""
    known = {frozenset(pair): value for pair, value in zip(pairs.tolist(), odds, strict=True)}

    def chance(a: int, b: int) -> float:
        value = known.get(frozenset((a, b)))
        return 0.0 if value is None else 1 / (1 + np.exp(-min(value, 6)))

    strength, best = [], []
    for a, b in pairs.tolist():
        others = [c for c in range(len(video)) if c not in (a, b)]
        if video[a] == video[b]:
            others = [c for c in others if video[c] == video[a]]
        against = 0.0
        for one, two in ((a, b), (b, a)):
            of = [c for c in others if frozenset((one, c)) in known]
            odds_of = [np.exp(min(known[frozenset((one, c))], 6)) for c in of]
            counted = [odds * (1 - chance(two, c)) for odds, c in zip(odds_of, of, strict=True)]
            against += np.log1p(sum(counted))
        both = [c for c in others if {frozenset((a, c)), frozenset((b, c))} <= known.keys()]
        ways = [min(known[frozenset((a, c))], known[frozenset((b, c))]) for c in both]
        strength.append(against)
        best.append(min(max([-3.0, *ways]), 6.0))
    return strength, best


@some_graphs
def test_context_is_what_its_definition_says(seed: int) -> None:
    """The fast sums over triangles agree with the definition."""
    count, pairs, odds, _ = graph_of(seed)
    video = np.random.default_rng(seed).integers(0, 2, count)
    strength, best = brute_force(pairs, odds, video)
    assert competition(pairs, odds, video) == pytest.approx(strength)
    assert support(pairs, odds, video) == pytest.approx(best)


@some_graphs
def test_context_does_not_know_an_order(seed: int) -> None:
    """Pairs in another order have the same context."""
    count, pairs, odds, _ = graph_of(seed)
    video = np.zeros(count, np.int64)
    order = np.random.default_rng(seed).permutation(len(pairs))
    again = competition(pairs[order], odds[order], video)
    assert again == pytest.approx(competition(pairs, odds, video)[order])


def test_a_piece_of_the_same_person_is_no_competitor() -> None:
    """A third piece, alike to both, counts against the pair less than a stranger does."""
    pairs, video = np.array([[0, 1], [0, 2], [1, 2]]), np.zeros(3, np.int64)
    piece = competition(pairs, np.array([3.0, 3.0, 3.0]), video)[0]
    stranger = competition(pairs[:2], np.array([3.0, 3.0]), video)[0]
    assert piece < stranger / 2


def test_another_video_does_not_change_a_pair_of_one_video() -> None:
    """What is said of a video's own pairs is fixed when it closes."""
    own, video = np.array([[0, 1], [1, 2]]), np.array([0, 0, 0, 1])
    more = np.array([[0, 1], [1, 2], [1, 3], [0, 3]])
    before = competition(own, np.array([1.0, 2.0]), video)
    after = competition(more, np.array([1.0, 2.0, 4.0, 4.0]), video)
    assert after[:2] == pytest.approx(before)


def test_duplicates_are_counted_within_the_two_videos() -> None:
    """Pairs of other videos do not change the rate."""
    video = np.array([0, 0, 1, 1])
    alone = log_duplicates(np.array([[0, 1]]), np.array([2.0]), video)
    beside = log_duplicates(np.array([[0, 1], [0, 2]]), np.array([2.0, 3.0]), video)
    assert beside[0] == pytest.approx(alone[0])


# Groups.


@some_graphs
def test_no_veto_is_inside_a_group(seed: int) -> None:
    """Cannot-links hold, whatever speaks against them."""
    count, pairs, odds, vetoes = graph_of(seed)
    found = cluster(pairs, odds, vetoes, count, stop=STOP, floor=FLOOR)
    assert not same_group(vetoes, found.label).any()


@some_graphs
def test_groups_do_not_know_an_order_of_pairs(seed: int) -> None:
    """Pairs and vetoes in any order, and either way round, give the same groups."""
    count, pairs, odds, vetoes = graph_of(seed)
    order = np.random.default_rng(seed).permutation(len(pairs))
    found = cluster(pairs, odds, vetoes, count, stop=STOP, floor=FLOOR)
    again = cluster(pairs[order][:, ::-1], odds[order], vetoes[::-1], count, stop=STOP, floor=FLOOR)
    assert found.label.tolist() == again.label.tolist()
    assert found.merged_at[order].tolist() == again.merged_at.tolist()


@some_graphs
def test_groups_do_not_know_the_numbers_of_tracklets(seed: int) -> None:
    """Without ties, tracklets numbered otherwise fall into the same groups."""
    count, pairs, odds, vetoes = graph_of(seed)
    if len(np.unique(np.round(np.maximum(odds, FLOOR), 6))) < len(odds):
        return
    new = np.random.default_rng(seed).permutation(count)
    found = cluster(pairs, odds, vetoes, count, stop=STOP, floor=FLOOR)
    if len(np.unique(np.round(found.merged_at, 6))) < len(found.merged_at):
        return
    again = cluster(new[pairs], odds, new[vetoes], count, stop=STOP, floor=FLOOR)
    renamed = {frozenset(int(new[i]) for i in own) for own in partition(found.label)}
    assert renamed == partition(again.label)


@some_graphs
def test_groups_lie_within_components(seed: int) -> None:
    """Who is linked by no chain of pairs is in no group together."""
    count, pairs, odds, vetoes = graph_of(seed)
    label = cluster(pairs, odds, vetoes, count, stop=STOP, floor=FLOOR).label
    component = components(pairs, count)
    assert all(len(set(component[list(own)])) == 1 for own in partition(label))


@some_graphs
@pytest.mark.parametrize("most", [1, 3])
def test_no_group_is_larger_than_allowed(seed: int, most: int) -> None:
    """The limit on a group's size holds."""
    count, pairs, odds, vetoes = graph_of(seed)
    found = cluster(pairs, odds, vetoes, count, stop=-9.0, floor=FLOOR, max_tracklets=most)
    assert max(len(own) for own in partition(found.label)) <= most


@some_graphs
def test_merged_pairs_are_those_within_groups(seed: int) -> None:
    """`merged_at` is finite for pairs in one group alone, and at least `stop`."""
    count, pairs, odds, vetoes = graph_of(seed)
    found = cluster(pairs, odds, vetoes, count, stop=STOP, floor=FLOOR)
    inside = same_group(pairs, found.label)
    assert (np.isfinite(found.merged_at) == inside).all()
    assert (found.merged_at[inside] >= STOP).all()


def test_a_veto_decides_between_two_alike() -> None:
    """Of two who both look like a third, but were seen beside each other, the likelier joins."""
    pairs, vetoes = np.array([[0, 1], [0, 2]]), np.array([[1, 2]])
    found = cluster(pairs, np.array([2.0, 3.0]), vetoes, 3, stop=STOP, floor=FLOOR)
    assert partition(found.label) == {frozenset({0, 2}), frozenset({1})}


def test_two_likely_pairs_join_a_third() -> None:
    """The upper half of the pairs between clusters decides."""
    pairs = np.array([[0, 1], [0, 2], [1, 2]])
    found = cluster(pairs, np.array([4.0, 3.0, -2.0]), np.zeros((0, 2), int), 3, stop=0, floor=-3)
    assert partition(found.label) == {frozenset({0, 1, 2})}
    assert found.weakest[0] == pytest.approx(3.0)


# Looks.


def looks(dim: int) -> LooksModel:
    """Make what was learned of vectors of this length."""
    return LooksModel(np.zeros(dim), np.eye(dim)[:2], np.array([0.3, 0.2]), 0.5 / (dim - 2))


@settings(max_examples=20)
@given(st.integers(2, 8), st.integers(0, 100))
def test_features_do_not_know_an_order_of_tracklets(count: int, seed: int) -> None:
    """Tracklets in another order have the same looks."""
    rng = np.random.default_rng(seed)
    vectors = rng.normal(size=(count, 6))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    new = rng.permutation(count)
    kept = {"width": 640, "height": 480, "frames_per_second": 10.0}
    none, no_vetoes = [None] * count, np.zeros((0, 2), np.int64)
    crops = rng.integers(1, 9, count)
    video = close_video(looks(6), vectors, crops, no_vetoes, none, **kept)
    other = close_video(looks(6), vectors[new], crops[new], no_vetoes, none, **kept)
    pairs, back = np.array([[0, 1]]), np.argsort(new)
    found = features_within(video, pairs, MODEL)
    again = features_within(other, back[pairs], MODEL)
    assert all(again[name] == pytest.approx(values) for name, values in found.items())


def test_kinds_of_pairs() -> None:
    """Two videos: across; one with trajectories: moving; one without: still."""
    vectors, no_vetoes = np.eye(6)[:2], np.zeros((0, 2), np.int64)
    tracks = [walker(0, 20, 0.0, 1.0), walker(30, 20, 40.0, 1.0)]
    kept = {"width": 640, "height": 480, "frames_per_second": 10.0}
    crops = np.array([8, 8])
    videos = [
        close_video(looks(6), vectors, crops, no_vetoes, trajectories, **kept)
        for trajectories in (tracks, [None, None])
    ]
    found = measure(videos, np.array([[0, 1], [2, 3], [0, 2]]), MODEL)
    assert found.kind.tolist() == ["moving", "still", "across"]


# Learned values.


@pytest.mark.parametrize("weights", ["own", "A", "B"])
@pytest.mark.parametrize("without", [None, "Venice-2", "PETS09-S2L1", "TUD-Campus"])
def test_learned_values_have_a_coefficient_for_each_feature(weights, without) -> None:
    """The files fit the code, and the looks those of the weights' curve."""
    model = load_linking(weights, without=without)
    assert {kind: len(values) - 1 for kind, values in model.first.items()} == {
        kind: len(names) for kind, names in FIRST.items()
    }
    assert {kind: len(values) - 1 for kind, values in model.final.items()} == {
        kind: len(names) for kind, names in FINAL.items()
    }
    assert model.first["moving"][1] > 0, "who looks more alike is likelier one person"
    assert model.looks.basis.shape[1] == len(model.looks.mean)


@pytest.mark.parametrize("video", ["Venice-2", "PETS09-S2L1", "TUD-Campus"])
def test_curves_that_never_saw_a_video_are_written_and_read(video, tmp_path) -> None:
    """The file has the package's curves with the coefficients that were fitted without it."""
    path = tmp_path / "curves.json"
    script = ROOT / "models" / "calibrate.py"
    command = [sys.executable, script, "--leave-out", video, "--out", path]
    subprocess.run(command, check=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    curves = load_curves(path)
    expected = all_coefficients(without=video)
    assert curves.keys() == expected.keys()
    for sha256, curve in curves.items():
        assert curve.linking.to_json() == expected[sha256].to_json()
        assert curve.linking.to_json() != all_coefficients()[sha256].to_json()


# What the figures are made of.


def boxes_at(x: float, start: int, stop: int, person: int) -> Track:
    """Somebody who stands at x px in the frames from start to stop."""
    frames = np.arange(start, stop)
    boxes = np.tile(np.array([x, 0, x + 40, 100], np.float32), (len(frames), 1))
    return Track(person, frames, boxes, np.ones(len(frames), np.float32))


def tracked_file(tracks: list[Track], truth: list[Track]) -> TrackedFile:
    """A file whose every track has two crops, at its first and last frame."""
    ids = np.array([track.person_id for track in tracks])
    none = Listed(np.zeros((0, 2), np.int64), np.zeros(0), np.zeros(0, bool))
    return TrackedFile(
        "V",
        "t",
        tuple(truth),
        tuple(tracks),
        {track.person_id: track for track in tracks},
        ids,
        [np.eye(4)[:2] for _ in tracks],
        [track.frame_indices[[0, -1]] for track in tracks],
        np.zeros((0, 2), np.int64),
        (640, 480),
        10.0,
        none,
    )


def test_merging_what_is_one_person_gives_all_of_the_gain() -> None:
    """One person in two pieces of 20 boxes: IDF1 is a half of 2 * 20 / 40 before, 1 after."""
    file = tracked_file([boxes_at(0, 0, 20, 1), boxes_at(0, 20, 40, 2)], [boxes_at(0, 0, 40, 7)])
    truth = Truth(file)
    listed = Listed(np.array([[1, 2]]), np.array([0.8]), np.array([False]))
    found = score(file, truth, listed, truth)
    assert found.true_pairs == 1
    assert found.right.tolist() == [True]
    assert found.idf1 == pytest.approx((0.5, 0.5, 1.0, 1.0))
    assert (found.share(1), found.share(2)) == pytest.approx((0.0, 1.0))


def test_parts_of_a_split_track_have_a_veto_and_their_own_boxes() -> None:
    """Frames before the cut stay with the old id, the others get a new one."""
    file = tracked_file([boxes_at(0, 0, 30, 1), boxes_at(300, 10, 20, 5)], [])
    parts = split(file, {1: 12})
    assert [(track.person_id, len(track)) for track in parts.tracks] == [(1, 12), (6, 18), (5, 10)]
    assert parts.ids.tolist() == [1, 6, 5]
    assert [len(vectors) for vectors in parts.crop_vectors] == [1, 1, 2]
    assert [0, 1] in parts.vetoes.tolist()


def test_gta_link_joins_alike_tracklets_that_share_no_frame() -> None:
    """Two pieces that look alike are joined, one seen beside them is not."""
    alike, frames = [np.eye(4)[:1]] * 3, [np.arange(5), np.arange(9, 14), np.arange(3, 12)]
    boxes = np.array([[0.0, 0, 10, 20], [5, 5, 15, 25], [0, 0, 10, 20]])
    assert gta_link.link(alike, frames, boxes, boxes).tolist() == [0, 0, 2]
