"""All boxes of a video's tracks, asked for again: in memory, and in a file."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from streamproc.crops import box_archive
from streamproc.crops.box_archive import BoxArchive
from streamproc.crops.overlaps import find_overlaps, were_apart
from streamproc.types import Track


def track_of(person_id, frames, rng) -> Track:
    """A track with random boxes in these frames."""
    corner = rng.random((len(frames), 2)) * 60
    boxes = np.concatenate([corner, corner + 10 + 40 * rng.random((len(frames), 2))], axis=1)
    sure = np.ones(len(frames), np.float32)
    return Track(person_id, np.array(frames, np.int64), boxes.astype(np.float32), sure)


def test_tracks_come_back_whole_or_box_by_box_from_memory_or_a_file(monkeypatch) -> None:
    """What was added comes back bit for bit, of a track that grows as far as it has come."""
    rng = np.random.default_rng(0)
    tracks = [track_of(i, range(i, 300 - i, 1 + i % 2), rng) for i in range(1, 6)]
    for limit in (box_archive.MEMORY_BYTES, 100):
        monkeypatch.setattr(box_archive, "MEMORY_BYTES", limit)
        archive = BoxArchive()
        archive.add(tracks[:3])
        for frame in range(300):
            for track in tracks[3:]:
                for row in np.flatnonzero(track.frame_indices == frame):
                    archive.add_box(track.person_id, frame, track.boxes_xyxy[row])
            if frame == 100:
                so_far = archive.track(5)
                assert so_far is not None
                assert so_far.frame_indices.tolist() == list(range(5, 101, 2))
        for track in tracks:
            again = archive.track(track.person_id)
            assert again is not None
            np.testing.assert_array_equal(again.frame_indices, track.frame_indices)
            np.testing.assert_array_equal(again.boxes_xyxy, track.boxes_xyxy)
        assert archive.track(99) is None


@settings(max_examples=50)
@given(st.integers(0, 10**6))
def test_two_tracks_are_apart_as_a_whole_video_says(seed) -> None:
    """Compared alone, two tracks have a veto where `find_overlaps` gives them one."""
    rng = np.random.default_rng(seed)
    one = track_of(1, np.flatnonzero(rng.random(12) < 0.7), rng)
    other = track_of(2, np.flatnonzero(rng.random(12) < 0.7), rng)
    assert were_apart(one, other) == (2 in find_overlaps([one, other]).seen_with.get(1, ()))
