"""The tracker: whose box is whose, frame by frame."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tracking_scores import hota, tracks_of
from tracking_scores import truth_of as truth_of_tracks

from streamproc.tracks.detection.boxes import Detections, rounded
from streamproc.tracks.detection.detector import Detector, find_weights
from streamproc.tracks.detection.found import frames_between_looks
from streamproc.tracks.detection.tracker import (
    BufferedByteTracker,
    TrackerOptions,
    assigned,
    buffered_iou,
)
from streamproc.video import Limits, open_video

SIZE = np.array([40, 100])
PAPERS = {"least_similarity": 0.25, "least_new_similarity": 0.3, "hidden_seconds": 0.0}
"""ByteTrack's and C-BIoU's own thresholds; by default streamproc's tracks are purer and shorter.

They ask for .2 of the IoU times the confidence, which is about .8: an IoU of .25 here.
"""


def seen(*people, confidence=0.9) -> Detections:
    """Return detections of people whose left top corners are given; (x, y, confidence) as well."""
    corners = np.array([person[:2] for person in people], np.float32).reshape(-1, 2)
    confidences = np.array([(*person, confidence)[2] for person in people], np.float32)
    return rounded(np.concatenate([corners, corners + SIZE], 1).astype(np.float32), confidences)


def tracker(frames_per_second=10, **options) -> BufferedByteTracker:
    """Return a tracker with the papers' thresholds."""
    options = PAPERS | options
    return BufferedByteTracker(TrackerOptions(**options), frames_per_second=frames_per_second)


def run(linker, frames):
    """Return for each frame the left edge of each track by id, and the ids that ended."""
    lefts = []
    ended = []
    for frame_index, detections in enumerate(frames):
        boxes = linker.update(frame_index, detections)
        lefts.append(dict(zip(boxes.person_ids.tolist(), boxes.boxes_xyxy[:, 0], strict=True)))
        ended.append(boxes.ended)
    return lefts, ended


def test_two_who_pass_each_other_keep_their_ids() -> None:
    """Where two boxes meet, movement tells whose is whose."""
    frames = [seen((100 + 8 * i, 100), (400 - 8 * i, 110)) for i in range(38)]
    lefts, ended = run(tracker(), frames)
    first, last = lefts[0], lefts[-1]
    assert sorted(first) == sorted(last) == [1, 2]
    (rightward,) = [person for person, left in first.items() if left == 100]
    assert last[rightward] == 100 + 8 * 37
    assert not any(ended)


def test_a_box_of_low_confidence_continues_a_track_and_begins_none() -> None:
    """ByteTrack: half hidden people are seen with low confidence, and so is what is nobody."""
    frames = [seen((100 + i, 100, 0.9 if i < 5 else 0.3), (300, 100, 0.3)) for i in range(20)]
    lefts, _ = run(tracker(), frames)
    assert all(list(frame) == [1] for frame in lefts)
    assert lefts[-1][1] == 119


@pytest.mark.parametrize(("buffers", "ids"), [((0.3, 0.5), 1), ((0.0, 0.0), 2)])
def test_buffers_link_boxes_that_do_not_touch(buffers, ids) -> None:
    """C-BIoU: somebody who jumps by more than their width is still the same with a buffer."""
    frames = [seen((100, 100))] * 4 + [seen((145, 100))] * 4
    lefts, _ = run(tracker(buffers=buffers), frames)
    assert max(max(frame, default=0) for frame in lefts) == ids


def test_who_is_seen_in_one_frame_alone_is_nobody() -> None:
    """Only the video's first frame is trusted; later a second box is asked for."""
    nobody = seen()
    lefts, ended = run(tracker(), [nobody, seen((100, 100)), nobody, nobody])
    assert lefts == [{}] * 4
    assert not any(ended), "what was never announced does not end"
    lefts, _ = run(tracker(), [nobody, seen((100, 100)), seen((102, 100))])
    assert [list(frame) for frame in lefts] == [[], [], [1]]


@pytest.mark.parametrize(("missing", "same"), [(9, True), (12, False)])
def test_a_track_waits_a_second_for_its_person(missing, same) -> None:
    """At 10 frames a second a person may be unseen for 10 frames; then the track has ended."""
    frames = [seen((100, 100))] * 5 + [seen()] * missing + [seen((100, 100))] * 3
    lefts, ended = run(tracker(), frames)
    assert all(not frame for frame in lefts[5 : 5 + missing]), "an unseen person has no box"
    assert list(lefts[-1]) == [1 if same else 2]
    assert [frame for frame, ids in enumerate(ended) if ids] == ([] if same else [15])


def test_a_short_gap_is_bridged_by_movement() -> None:
    """Who is hidden for a tenth of a second has boxes meanwhile, where they should be by then."""
    frames = [seen((100 + 6 * i, 100)) if i not in {20, 21} else seen() for i in range(26)]
    lefts, _ = run(tracker(hidden_seconds=0.1), frames)
    assert lefts[20][1] == pytest.approx(220, abs=2)
    assert lefts[21] == {}
    assert lefts[25][1] == 250


def test_a_track_rather_breaks_than_changes_to_somebody_else() -> None:
    """By default a box that is only near begins a track of its own; the papers' would go over."""
    frames = [seen((100, 100))] * 5 + [seen((135, 110))] * 5
    for options, ids in ((PAPERS, 1), ({}, 2)):
        linker = BufferedByteTracker(TrackerOptions(**options), frames_per_second=30)
        lefts, _ = run(linker, frames)
        assert max(lefts[-1]) == ids


def test_between_looks_tracks_go_on_as_they_moved() -> None:
    """A frame at which nobody looked has the boxes where people should be by then."""
    frames = [seen((100 + 6 * i, 100)) if i % 2 == 0 else None for i in range(30)]
    lefts, _ = run(tracker(), frames)
    for frame_index in range(11, 30):
        assert lefts[frame_index][1] == pytest.approx(100 + 6 * frame_index, abs=2)


def test_a_video_without_a_frame_rate_is_tracked() -> None:
    """A file whose time stamps say nothing has a rate of 0."""
    lefts, _ = run(tracker(frames_per_second=0), [seen((100, 100))] * 3)
    assert [list(frame) for frame in lefts] == [[1]] * 3


@settings(max_examples=50)
@given(st.integers(0, 2**32 - 1))
def test_any_boxes_give_sound_tracks(seed) -> None:
    """Ids are unique in a frame, boxes finite, and a track that has ended never returns."""
    rng = np.random.default_rng(seed)
    linker = tracker(lost_seconds=0.5)
    gone = set()
    for frame_index in range(40):
        corners = rng.uniform(-50, 600, (rng.integers(0, 12), 2)).astype(np.float32)
        sizes = rng.uniform(1, 300, corners.shape).astype(np.float32)
        confidences = rng.uniform(0, 1, len(corners)).astype(np.float32)
        found = rounded(np.concatenate([corners, corners + sizes], 1), confidences)
        boxes = linker.update(frame_index, None if rng.random() < 0.2 else found)
        ids = boxes.person_ids.tolist()
        assert len(set(ids)) == len(ids)
        assert gone.isdisjoint(ids)
        gone.update(boxes.ended)
        assert np.isfinite(boxes.boxes_xyxy).all()
        assert (boxes.boxes_xyxy[:, 2:] > boxes.boxes_xyxy[:, :2]).all()


def test_the_nearest_pairs_are_assigned_together() -> None:
    """The best sum counts, not the best single pair, and what is too far apart stays free."""
    gain = np.array([[0.9, 0.8, 0.0], [0.8, 0.1, 0.0]])
    rows, columns = assigned(gain)
    assert list(zip(rows.tolist(), columns.tolist(), strict=True)) == [(0, 1), (1, 0)]
    assert [len(which) for which in assigned(np.zeros((2, 3)))] == [0, 0]


def test_a_buffer_enlarges_both_boxes() -> None:
    """Boxes that touch at an edge overlap once they are enlarged, by the papers' formula."""
    a = np.array([[0.0, 0, 10, 10]])
    b = np.array([[10, 0, 20, 10]], np.float32)
    assert buffered_iou(a, b, 0)[0, 0] == 0
    larger = 6 * 16  # both reach 3 beyond their edge
    assert buffered_iou(a, b, 0.3)[0, 0] == pytest.approx(larger / (2 * 16 * 16 - larger))


@pytest.mark.parametrize(("rate", "frames"), [(0, 1), (10, 1), (15, 1), (25, 2), (30, 2), (60, 4)])
def test_the_detector_looks_fifteen_times_a_second(rate, frames) -> None:
    """How often follows from the frame rate alone."""
    assert frames_between_looks(rate) == frames


# HOTA of roboflow trackers 2.6.1 (the better of its ByteTrack and C-BIoU, with its defaults) on the
# same boxes: YOLOX-nano at 416, confidence from .1, suppression .65.
ROBOFLOW_HOTA = {"TUD-Campus": 0.481, "PETS09-S2L1": 0.557}
VIDEOS = {"TUD-Campus": "TUD-Campus.mp4", "PETS09-S2L1": "vtest.avi"}


@pytest.mark.parametrize(
    "name", ["TUD-Campus", pytest.param("PETS09-S2L1", marks=pytest.mark.long)]
)
def test_tracks_are_as_good_as_those_of_known_trackers(name, shared, tmp_path) -> None:
    """On the same boxes HOTA is not below roboflow's ByteTrack and C-BIoU, the better of both."""
    weights = find_weights(str(shared / "models/yolox_nano.onnx"), cache_folder=tmp_path)
    detector = Detector(weights, threads=2, min_confidence=0.1)
    video = open_video(shared / "data/videos" / VIDEOS[name], limits=Limits(), decode_threads=1)
    # As roboflow's, it waits for 30 frames whatever the frame rate.
    linker = BufferedByteTracker(TrackerOptions(**PAPERS), frames_per_second=30)
    frames = [
        linker.update(frame.frame_index, detector.detect(frame))
        for frame in video.frames(np.arange(video.frame_count))
    ]
    video.close()
    truth = truth_of_tracks(shared / f"data/gt/{name}.gt.txt")
    assert hota(truth, tracks_of(frames)) >= ROBOFLOW_HOTA[name]
