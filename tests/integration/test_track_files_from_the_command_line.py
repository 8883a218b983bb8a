"""Track files that tools really write, from the command line: one line and the right exit code."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import track_writers

from streamproc.events import VideoOptions
from streamproc.kafka.client import video_ready
from streamproc.settings import load_settings
from streamproc.tracks import load_tracks


def replay(sample, tmp_path, *flags):
    """Run `streamproc replay` on the sample clip without animations."""
    command = [sys.executable, "-m", "streamproc", "replay", sample / "sample.mp4", "--quiet"]
    command += ["--no-animations", "--out", tmp_path / "out", *flags]
    return subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)


def test_a_diverged_box_is_left_out_and_the_rest_is_processed(sample, tmp_path) -> None:
    """A finite box of 1e16 pixels beside a good track is a note, not a traceback."""
    path = tmp_path / "huge.mot.txt"
    rows = [f"{f},1,100,100,50,120,0.9\n{f},2,200,100,1e16,1e16,0.9\n" for f in range(1, 61)]
    path.write_text("".join(rows))
    done = replay(sample, tmp_path, "--persons", path)
    assert done.returncode == 0, done.stderr
    assert "60 boxes ignored (larger or farther away than any picture)" in done.stderr


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        (["--first-frame-number", "9" * 20], 2, "Invalid value for '--first-frame-number'"),
        (["--frame-stride", "9" * 20], 2, "Invalid value for '--frame-stride'"),
        (["--tracks-format", "kitti-tracking"], 1, "sample.persons.npz"),
    ],
)
def test_flags_on_tracks_end_in_one_line(sample, tmp_path, flags, code, said) -> None:
    """Numbers of any size, and a format that the file is not of, are told without a traceback."""
    done = replay(sample, tmp_path, *flags)
    assert done.returncode == code
    assert said in done.stderr
    assert "Traceback" not in done.stderr


def test_boxes_that_are_all_left_out_are_a_failure(sample, tmp_path) -> None:
    """With nothing left the exit code is 1 and the reason is said."""
    path = tmp_path / "det.txt"
    path.write_text("".join(f"{frame},-1,10,20,30,60,1\n" for frame in range(1, 20)))
    done = replay(sample, tmp_path, "--persons", path)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no box is left of 19: 19 boxes ignored (no id: empty or -1)" in done.stderr


def test_ids_of_64_bits_come_out_as_they_are(sample, tmp_path) -> None:
    """Persons whose ids no float64 tells apart are published under their own ids."""
    truth = load_tracks(sample / "sample.persons.npz").tracks
    path = tmp_path / "large.mot.txt"
    with path.open("w") as file:
        for frame, person_id, (a, b, c, d) in track_writers.boxes_of(truth):
            print(frame + 1, 2**63 - 1 - person_id, a, b, c - a, d - b, 1, sep=",", file=file)
    done = replay(sample, tmp_path, "--persons", path)
    assert done.returncode == 0, done.stderr
    first, second, _ = done.stdout.split()
    assert {2**63 - 1 - int(first), 2**63 - 1 - int(second)} == {1, 6}


def test_a_folder_of_labels_is_announced_as_one_npz(sample, tmp_path) -> None:
    """`submit` reads a folder, and what it hands on gives the same boxes, still as shares."""
    truth = load_tracks(sample / "sample.persons.npz").tracks
    folder = track_writers.write_ultralytics(tmp_path, truth, (640, 360))
    media = tmp_path / "media"
    media.mkdir()
    (media / "sample.mp4").symlink_to(sample / "sample.mp4")
    settings = load_settings({"media_root": str(media)}, config_file=None)
    event = video_ready(
        settings, str(media / "sample.mp4"), persons=str(folder), copy=True, options=VideoOptions()
    )
    assert event.tracks is not None
    announced = load_tracks(media / event.tracks.uri)
    assert announced.is_normalised
    assert [t.person_id for t in announced.tracks] == [t.person_id for t in truth]
    first = announced.tracks[0].boxes_xyxy[0] * [640, 360, 640, 360]
    np.testing.assert_allclose(first, truth[0].boxes_xyxy[0], atol=0.01)
