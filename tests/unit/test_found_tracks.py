"""Where the worker puts tracks that it found: whole files, below the media root or in a bucket."""

from __future__ import annotations

import hashlib
import os
import time

import numpy as np
import pytest

from streamproc.errors import MachineError, UsageError
from streamproc.storage.found_tracks import TrackStore
from streamproc.storage.marks import Gone
from streamproc.storage.media import MediaAccess
from streamproc.tracks import TRACK_FILE_PATTERNS, load_tracks
from streamproc.tracks.detection.record import TrackRecord
from streamproc.types import FrameBoxes

RUN = "0123456789abcdef"


@pytest.fixture
def record():
    """Two persons in three frames."""
    record = TrackRecord()
    for frame in range(3):
        boxes = np.array([[frame, 0, frame + 10, 30], [50, 0, 60, 30]], np.float32)
        confidences = np.array([0.9, 0.8], np.float32)
        record.add(FrameBoxes(frame, np.array([1, 2]), boxes, confidences, ()))
    yield record
    record.close()


def test_tracks_are_a_file_below_the_media_root_which_readers_take(tmp_path, record):
    """The file has the URI, hash and size that are said, and is written again as it was."""
    store = TrackStore(str(tmp_path / "tracks"), media_root=tmp_path)
    store.check()
    stored = store.write("lobby/one", RUN, record.write_npz)
    assert stored.uri == f"tracks/lobby~2Fone/{RUN}.tracks.npz"
    path = tmp_path / stored.uri
    assert hashlib.sha256(path.read_bytes()).hexdigest() == stored.sha256
    assert path.stat().st_size == stored.size_bytes
    assert [track.person_id for track in load_tracks(path).tracks] == [1, 2]
    assert store.write("lobby/one", RUN, record.write_npz) == stored
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("pattern", TRACK_FILE_PATTERNS)
@pytest.mark.parametrize("where", ["", "v"])
def test_tracks_of_an_earlier_run_are_no_file_beside_the_video(tmp_path, record, pattern, where):
    """Even where they lie beside the video, and it has their name, they are not taken for given."""
    store = TrackStore(str(tmp_path), media_root=tmp_path)
    video_id = pattern.format(stem=RUN).removesuffix(".npz")
    for name in (video_id, "v", RUN):
        stored = store.write(name, RUN, record.write_npz)
        assert (tmp_path / stored.uri).is_file()
    media = MediaAccess(media_root=tmp_path, max_file_bytes=10**9)
    folder = tmp_path / where
    for stem in ("v", RUN, f"{RUN}.tracks"):
        (folder / f"{stem}.mp4").touch()
        assert media.find_tracks(f"{where}/{stem}.mp4".lstrip("/")) is None


def test_tracks_are_removed_after_their_time_and_nothing_else_is(tmp_path, record):
    """Only files of found tracks go, with folders that become empty."""
    store = TrackStore(str(tmp_path / "tracks"), media_root=tmp_path)
    old, new = (tmp_path / store.write(name, RUN, record.write_npz).uri for name in "ab")
    other = old.parent / "mine.npz"
    other.touch()
    os.utime(old, (1000, 1000))
    os.utime(other, (1000, 1000))
    os.utime(new, (5000, 5000))
    assert store.remove_older_than(3600, now_seconds=5000) == 1
    assert (old.exists(), other.exists(), new.exists()) == (False, True, True)
    other.unlink()
    assert store.remove_older_than(3600, now_seconds=9000) == 1
    assert not new.parent.exists()


def test_a_place_that_the_animator_cannot_read_is_refused(tmp_path):
    """A folder outside the media root has no URI by which events may name it."""
    (tmp_path / "media").mkdir()
    store = TrackStore(str(tmp_path / "elsewhere"), media_root=tmp_path / "media")
    with pytest.raises(UsageError, match="expected a folder below media_root"):
        store.check()


def test_a_place_that_cannot_be_written_to_says_so_at_the_start(tmp_path):
    """A file in the place of the folder is named, with what else could be done."""
    (tmp_path / "tracks").touch()
    store = TrackStore(str(tmp_path / "tracks"), media_root=tmp_path)
    with pytest.raises(UsageError, match=r"cannot be written .* detector\.enabled false"):
        store.check()


def test_a_full_disk_is_the_machines_fault(tmp_path):
    """The video is tried again later."""

    def save(path):
        raise OSError(28, "No space left on device")

    with pytest.raises(MachineError, match="No space left on device"):
        TrackStore(str(tmp_path), media_root=tmp_path).write("v", RUN, save)


def test_any_store_of_fsspec_will_do(record):
    """In an object store the URI is the store's own."""
    store = TrackStore("memory://found")
    store.check()
    stored = store.write("v", RUN, record.write_npz)
    assert stored.uri == f"memory://found/v/{RUN}.tracks.npz"
    assert store._files._fs.cat_file(stored.uri)[:2] == b"PK"


def test_who_is_forgotten_is_taken_out_of_the_tracks(tmp_path, record):
    """The others stay, in a file with a new hash; of everybody the file goes, and stays away."""
    store = TrackStore(str(tmp_path / "tracks"), media_root=tmp_path)
    stored = store.write("v", RUN, record.write_npz)
    later = time.time() + 60
    assert store.forget("v", {7}, at_ms=1000, written_until=later) == []
    [anew] = store.forget("v", {1}, at_ms=1000, written_until=later)
    assert (anew.uri, anew.sha256 == stored.sha256) == (stored.uri, False)
    path = tmp_path / stored.uri
    assert hashlib.sha256(path.read_bytes()).hexdigest() == anew.sha256
    [track] = load_tracks(path).tracks
    assert (track.person_id, len(track)) == (2, 3)
    assert store.forget("v", {1}, at_ms=1000, written_until=later) == []

    store.write("v", RUN, record.write_npz)
    assert store.leave_out("v", RUN, 1001) == Gone()
    assert store.leave_out("v", RUN, 1000) == anew
    assert store.forget("v", None, at_ms=2000, written_until=later) == []
    store.write("v", "another", record.write_npz)
    assert store.leave_out("v", "another", 1500).everybody
    assert list(tmp_path.rglob("*.npz")) == []
    store.remove_older_than(60, time.time() + 120)
    assert list((tmp_path / "tracks").iterdir()) == []
    assert store.forget("v", None, at_ms=1, written_until=later, runs_come=False) == []
    assert list((tmp_path / "tracks").iterdir()) == []
