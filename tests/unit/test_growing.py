"""Crops of tracks that are found while decoding: spread over the track, in bounded memory."""

from __future__ import annotations

from collections import Counter

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from streamproc.crops import CropOptions
from streamproc.crops.apart import SeenApart
from streamproc.crops.growing import GrowingBuckets
from streamproc.crops.overlaps import find_overlaps, overlaps_in_frame
from streamproc.crops.trajectory import GrowingTrajectory, thinned
from streamproc.types import Crop, FrameBoxes, Track

SIZE = {"width": 640, "height": 480}
PIXELS = np.zeros((4, 2, 3), np.uint8)


def boxes(frame_index, rows, ended=()) -> FrameBoxes:
    """Return the boxes of a frame from (person id, box) rows."""
    return FrameBoxes(
        frame_index,
        np.array([person for person, _ in rows], np.int64),
        np.array([box for _, box in rows], np.float32).reshape(-1, 4),
        np.ones(len(rows), np.float32),
        tuple(ended),
    )


def crop(cut, frame_index) -> Crop:
    """Return the crop that a cut gives, as good as its placement."""
    return Crop(
        person_id=cut.person_id,
        crop_index=cut.crop_index,
        frame_index=frame_index,
        pts_seconds=frame_index / 25,
        box_xyxy=cut.box_xyxy,
        quality=cut.placement_quality,
        aspect_ratio=0.5,
        pixels=PIXELS,
    )


def grown(frame_count, options, height_of=lambda _: 160.0):
    """Return the closed track of one person seen in `frame_count` frames, and how many were cut."""
    buckets = GrowingBuckets(**SIZE, options=options)
    cut_count = 0
    for frame in range(frame_count):
        height = height_of(frame)
        cuts = buckets.cuts(boxes(frame, [(1, [100, 100, 100 + height / 2, 100 + height])]))
        buckets.add([crop(cut, frame) for cut in cuts])
        cut_count += len(cuts)
    (closed,) = buckets.close_all()
    return closed, cut_count


@settings(max_examples=25)
@given(st.integers(1, 700), st.integers(2, 60))
def test_crops_are_bounded_and_spread_however_long_a_track_becomes(frame_count, most) -> None:
    """At most as many as asked for, no fewer than half, in time order, over all of the track."""
    closed, _ = grown(frame_count, CropOptions(crops_per_person=most))
    frames = [crop.frame_index for crop in closed.bucket.crops]
    assert min(frame_count, most // 2) <= len(frames) <= most
    assert frames == sorted(set(frames))
    assert [crop.crop_index for crop in closed.bucket.crops] == list(range(len(frames)))
    stride = -(-frame_count // len(frames))
    assert np.diff([-1, *frames, frame_count]).max() <= 4 * stride
    assert closed.span.box_count == frame_count


def test_a_long_track_is_seldom_cut() -> None:
    """Of equally good boxes one a window is cut: half as many with each doubling of the stride."""
    _, cut_count = grown(3_200, CropOptions(crops_per_person=50))
    assert cut_count <= 50 + 25 * 7


def test_of_a_window_the_best_crop_stays() -> None:
    """A person who comes nearer in every tenth frame is shown by those frames."""
    closed, _ = grown(
        400, CropOptions(crops_per_person=10), lambda frame: 200.0 if frame % 10 == 7 else 60.0
    )
    assert {crop.frame_index % 10 for crop in closed.bucket.crops} == {7}


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_vetoes_and_hidden_shares_equal_those_of_tracks_known_beforehand(seed) -> None:
    """Frame by frame the boxes are compared as `find_overlaps` compares whole tracks."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 200, (4, 12, 2))
    all_boxes = np.concatenate([corners, corners + rng.uniform(20, 150, (4, 12, 2))], axis=2)
    tracks = [
        Track(person, np.arange(12), rows.astype(np.float32), np.ones(12, np.float32))
        for person, rows in enumerate(all_boxes)
    ]
    expected = find_overlaps(tracks)
    growing = GrowingBuckets(**SIZE, options=CropOptions())
    for frame in range(12):
        rows = [(person, all_boxes[person, frame]) for person in range(4)]
        growing.cuts(boxes(frame, rows))
        hidden, _ = overlaps_in_frame(all_boxes[:, frame].astype(np.float32))
        np.testing.assert_allclose(hidden, [shares[frame] for shares in expected.hidden], atol=1e-6)
    for person in range(4):
        assert growing.close(person).seen_with == expected.seen_with.get(person, ())


def some_boxes(seed, count):
    """Boxes (n, 4) of people in a picture so small that many overlap."""
    rng = np.random.default_rng(seed)
    corners = rng.uniform(0, 40 * np.sqrt(count), (count, 2))
    return np.concatenate([corners, corners + rng.uniform(5, 60, (count, 2))], axis=1)


@settings(max_examples=15)
@given(st.integers(0, 2**32 - 1), st.integers(0, 140))
@example(1, 140)
def test_the_boxes_of_a_crowd_are_compared_as_every_pair_would_be(seed, count) -> None:
    """Looking only at boxes that touch gives what looking at each pair by itself gives."""
    found = some_boxes(seed, count).astype(np.float32)
    hidden, apart = overlaps_in_frame(found)
    wanted = np.zeros(count)
    is_apart = np.zeros((count, count), bool)
    for one in range(count):
        for other in range(one + 1, count):
            (share, other_share), both = overlaps_in_frame(found[[one, other]])
            wanted[one] = max(wanted[one], share)
            wanted[other] = max(wanted[other], other_share)
            is_apart[one, other] = is_apart[other, one] = both[0, 1]
    np.testing.assert_array_equal(hidden, wanted.astype(np.float32))
    np.testing.assert_array_equal(apart, is_apart)


@given(st.data())
def test_who_was_apart_is_counted_while_tracks_begin_and_end(data) -> None:
    """Whoever ends knows who was apart three times, of those who have ended before as well."""
    apart = SeenApart()
    times = Counter()
    alive = set()
    fresh = iter(range(1000))
    for _ in range(data.draw(st.integers(1, 12))):
        alive |= {next(fresh) for _ in range(data.draw(st.integers(0, 20)))}
        ids = data.draw(st.permutations(sorted(alive)))[:15]
        rng = np.random.default_rng(data.draw(st.integers(0, 99)))
        upper = np.triu(rng.random((len(ids), len(ids))) < 0.7, 1)
        apart.add(np.array(ids, np.int64), upper | upper.T)
        times.update(frozenset((ids[a], ids[b])) for a, b in np.argwhere(upper).tolist())
        for one in data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else []:
            alive.discard(one)
            others = [pair - {one} for pair, frames in times.items() if one in pair and frames > 2]
            assert apart.close(one) == tuple(sorted(other for (other,) in others))


def test_a_person_without_a_usable_box_is_skipped_with_the_reason() -> None:
    """Boxes too small to cut are counted, and nothing is published of them."""
    buckets = GrowingBuckets(**SIZE, options=CropOptions())
    for frame in range(9):
        assert buckets.cuts(boxes(frame, [(1, [10, 10, 12, 13])])) == []
    (closed,) = buckets.close_all()
    assert "no usable crop" in closed.skipped.reason


def test_an_empty_frame_has_nothing_to_compare() -> None:
    """No boxes give no shares and no pairs."""
    hidden, apart = overlaps_in_frame(np.zeros((0, 4), np.float32))
    assert hidden.shape == (0,)
    assert apart.shape == (0, 0)


@given(st.integers(0, 5000), st.lists(st.integers(1, 40), min_size=1, max_size=400))
def test_a_growing_trajectory_is_that_of_the_whole_track(start, steps) -> None:
    """Whatever frames a track has, both ways to thin it keep the same boxes."""
    frames = start + np.cumsum([0, *steps])
    boxes = np.arange(4 * len(frames), dtype=np.float32).reshape(-1, 4)
    growing = GrowingTrajectory()
    for frame, box in zip(frames.tolist(), boxes, strict=True):
        growing.add(frame, box)
    whole = thinned(frames, boxes)
    np.testing.assert_array_equal(growing.finish().frame_indices, whole.frame_indices)
    np.testing.assert_array_equal(growing.finish().boxes_xyxy, whole.boxes_xyxy)


def revisions_of(seen, *, lost_frames=25, least=1):
    """Return the tracks that are taken of one person who is seen in these frames, and closed."""
    options = CropOptions(min_track_frames=least)
    buckets = GrowingBuckets(**SIZE, options=options)
    taken = []
    for frame in range(max(seen) + 1):
        rows = [(1, [100 + frame % 7, 100, 180, 260])] if frame in seen else []
        cuts = buckets.cuts(boxes(frame, rows))
        buckets.add([crop(cut, frame) for cut in cuts])
        due = buckets.due(frame, lost_frames=lost_frames)
        taken += [buckets.revise(person_id) for person_id in due]
    return taken, buckets.close(1)


@settings(max_examples=20, deadline=None)
@given(st.sets(st.integers(0, 900), min_size=1, max_size=700), st.integers(1, 60))
def test_revisions_are_few_and_the_last_is_the_whole_track(seen, lost_frames) -> None:
    """At most 3 + log2(boxes / 64), or two; each has more boxes, and taking them changes nothing.

    What is not taken at the end was the revision before it.
    """
    taken, last = revisions_of(seen, lost_frames=lost_frames)
    published = [*taken, last] if last.is_news else taken
    assert [track.revision for track in published] == list(range(1, len(published) + 1))
    assert len(published) <= max(2, 3 + np.log2(len(seen) / 64))
    counts = [track.span.box_count for track in published]
    assert counts == sorted(set(counts))
    assert counts[-1] == len(seen)
    assert (last.is_final, [track.is_final for track in taken]) == (True, [False] * len(taken))
    _, whole = revisions_of(seen, lost_frames=10**9, least=10**6)
    assert [one.frame_index for one in whole.bucket.crops] == [
        one.frame_index for one in published[-1].bucket.crops
    ]
    assert whole.bucket.embedded == published[-1].bucket.embedded
    assert (whole.span.first_frame_index, whole.span.last_frame_index) == (
        published[-1].span.first_frame_index,
        published[-1].span.last_frame_index,
    )


def test_a_track_is_published_at_64_boxes_at_each_doubling_and_at_its_end() -> None:
    """One that is lost for a second before that is published then, and next with 64 boxes."""
    taken, last = revisions_of(set(range(300)))
    counts = [track.span.box_count for track in [*taken, last]]
    assert counts == [64, 128, 256, 300]
    taken, last = revisions_of({*range(20), *range(60, 104), 150})
    counts = [track.span.box_count for track in [*taken, last]]
    assert counts == [20, 64, 65]
    taken, last = revisions_of(set(range(128)))
    assert [track.span.box_count for track in taken] == [64, 128]
    assert (last.revision, last.is_news) == (2, False)


def test_who_has_too_few_boxes_or_no_crop_is_not_published_while_it_grows() -> None:
    """It may be skipped in the end, and nothing that was published may be."""
    taken, last = revisions_of({0, 1, 200}, least=5)
    assert (taken, last.revision) == ([], 1)
    assert last.skipped is not None
