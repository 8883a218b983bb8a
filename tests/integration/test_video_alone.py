"""`streamproc replay` of a video that has no tracks: people are found in its frames."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import pytest
import small_detectors
from processes import run_streamproc
from squares import write_squares

from streamproc import replay
from streamproc.errors import UsageError
from streamproc.tracks import load_tracks

if TYPE_CHECKING:
    from pathlib import Path

SMALL = {"STREAMPROC_DETECTOR__INPUT_SIZE": "320"}
"""Half of the default size: the figures of the sample are large, and the tests quick."""

run = partial(run_streamproc, "replay", "-q", env=SMALL)


@pytest.fixture
def clip(sample, tmp_path) -> Path:
    """The sample clip, without its tracks."""
    folder = tmp_path / "clip"
    folder.mkdir()
    shutil.copy(sample / "sample.mp4", folder)
    return folder / "sample.mp4"


@pytest.fixture
def squares(tmp_path) -> Path:
    """A clip in which a bright square crosses a grey picture, from frame 5 on."""
    return write_squares(tmp_path / "squares.mp4", 40, [(5, 40)])


def candidates_of(out):
    """The pairs of persons in an output folder."""
    lines = (out / "duplicate_candidates.jsonl").read_text().splitlines()
    return {tuple(p["person_id"] for p in json.loads(line)["persons"]) for line in lines}


def test_a_video_alone_gives_people_tracks_and_all_files(clip, tmp_path) -> None:
    """With nothing beside it, its people are found, and the outputs say where they are from."""
    out = tmp_path / "out"
    done = run(clip, "--out", out, "--save-tracks", tmp_path / "mine.npz")
    assert done.returncode == 0, done.stderr
    record = json.loads((out / "run.json").read_text())
    (video,) = record["videos"]
    assert (video["tracks_from"], video["detector"]["name"]) == ("detector", "persondet_ours")
    assert video["persons_embedded"] >= 3
    assert "found in the video itself (detector persondet_ours)" in done.stderr
    assert "found in the video itself" in (out / "webp_viewer/person_selection.html").read_text()
    found = load_tracks(out / "tracks.npz").tracks
    as_text = load_tracks(out / "tracks.mot.txt").tracks
    assert len(found) >= video["persons_embedded"]
    for one, other in zip(found, as_text, strict=True):
        assert one.person_id == other.person_id
        np.testing.assert_array_equal(one.frame_indices, other.frame_indices)
        np.testing.assert_allclose(one.boxes_xyxy, other.boxes_xyxy, atol=1e-3)
        np.testing.assert_allclose(one.confidences, other.confidences, atol=1e-4)
    assert len(load_tracks(tmp_path / "mine.npz").tracks) == len(found)


def test_tracks_that_were_saved_give_the_same_persons(clip, tmp_path) -> None:
    """Replayed with the tracks that it found, a video has the same persons, times and vetoes."""
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(clip, "--out", first).returncode == 0
    assert run(clip, "--persons", first / "tracks.npz", "--out", second).returncode == 0
    alone, given = (
        [json.loads(line) for line in (out / "person_embeddings.jsonl").read_text().splitlines()]
        for out in (first, second)
    )
    fields = ("person_id", "frames_tracked", "first_frame_index", "last_frame_index", "seen_with")
    assert [[person[name] for name in fields] for person in alone] == [
        [person[name] for name in fields] for person in given
    ]
    assert candidates_of(first) == candidates_of(second)


def test_a_video_twice_gives_the_same_and_other_settings_another_run(clip) -> None:
    """A run's id names the detector and how it is used; an equal run gives equal vectors."""
    small = {"detector__input_size": 320}
    one, other = replay(clip, **small), replay(clip, **small)
    changed = replay(clip, **small, tracker__lost_seconds=3.0)
    ids = [result.summary["videos"][0]["run_id"] for result in (one, other, changed)]
    assert ids[0] == ids[1] != ids[2]
    np.testing.assert_array_equal(one.embeddings, other.embeddings)


def test_nothing_is_left_open(clip, tmp_path) -> None:
    """Python warns of a file that is left to its collector."""
    files = f"{str(clip)!r}, out={str(tmp_path / 'out')!r}"
    code = f"import gc, streamproc; streamproc.replay({files}); gc.collect()"
    command = [sys.executable, "-W", "always::ResourceWarning", "-c", code]
    done = subprocess.run(
        command, env=os.environ | SMALL, capture_output=True, text=True, check=False
    )
    assert (done.returncode, "ResourceWarning" in done.stderr) == (0, False), done.stderr


def test_another_detector_finds_what_it_knows(squares, tmp_path) -> None:
    """`--detector` takes a network of another maker; here it sees a bright square as a person."""
    network = small_detectors.yolox(tmp_path / "small.onnx")
    done = run(squares, "--detector", network, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    tracks = load_tracks(tmp_path / "out/tracks.npz").tracks
    assert tracks
    assert min(track.frame_indices[0] for track in tracks) in {5, 6}


def test_a_video_without_people_is_a_result_of_one_line(squares, tmp_path) -> None:
    """Nobody found is no fault: exit code 0, one line, empty lists."""
    done = run(squares, "--out", tmp_path / "out")
    assert done.returncode == 0
    (line,) = done.stderr.splitlines()
    assert line.startswith("nobody was found in the video; page: ")
    assert done.stdout == ""
    assert load_tracks(tmp_path / "out/tracks.npz").tracks == ()
    assert candidates_of(tmp_path / "out") == set()
    summary = json.loads(run(squares, "--out", tmp_path / "out", "--json").stdout)
    assert (summary["exit_code"], summary["person_ids"]) == (0, [])


def test_tracks_beside_the_video_go_first_unless_asked_otherwise(sample, clip, tmp_path) -> None:
    """A track file is taken where there is one; `--detect` finds people all the same."""
    shutil.copy(sample / "sample.persons.npz", clip.parent)
    given = json.loads(run(clip, "--out", tmp_path / "a", "--json").stdout)
    found = json.loads(run(clip, "--out", tmp_path / "b", "--json", "--detect").stdout)
    assert given["videos"][0]["tracks_from"] == "file"
    assert found["videos"][0]["tracks_from"] == "detector"
    assert not (tmp_path / "a/tracks.npz").exists()


def test_an_earlier_runs_tracks_do_not_stay(sample, clip, tmp_path) -> None:
    """Where a track file has come since, the files of what was found before are removed."""
    out = tmp_path / "out"
    assert run(clip, "--out", out).returncode == 0
    assert (out / "tracks.npz").exists()
    shutil.copy(sample / "sample.persons.npz", clip.parent)
    assert run(clip, "--out", out).returncode == 0
    assert not (out / "tracks.npz").exists()


def test_without_a_detector_a_video_alone_is_refused(clip, tmp_path) -> None:
    """`--no-detect` asks for a track file, as streamproc did before it had a detector."""
    done = run(clip, "--no-detect", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "no tracks found beside it" in done.stderr


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--detect", "--persons", "x.npz"], "expected --detect or --persons"),
        (["--persons", "x.npz", "--save-tracks", "y.npz"], "--save-tracks: expected one video"),
    ],
)
def test_options_that_contradict_each_other_are_refused(clip, tmp_path, options, text) -> None:
    """The line says which two cannot be together."""
    done = run(clip, *options, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert text in done.stderr


def test_a_detector_that_is_none_is_one_line(clip, tmp_path) -> None:
    """A file that cannot be used ends the run before anything is decoded."""
    (tmp_path / "d.onnx").write_bytes(b"not a network")
    done = run(clip, "--detector", tmp_path / "d.onnx", "--out", tmp_path / "out")
    assert done.returncode == 1
    assert "d.onnx" in done.stderr
    assert not (tmp_path / "out").exists()


def test_python_finds_people_as_well(clip, tmp_path) -> None:
    """`replay(video)` in Python needs nothing beside the video, and may forbid the detector."""
    result = replay(clip, detector__input_size=320)
    assert len(result.person_ids) >= 3
    assert result.summary["videos"][0]["tracks_from"] == "detector"
    with pytest.raises(UsageError, match="did you mean"):
        replay(clip, detector__enable=False)


@pytest.mark.long
def test_pets_from_its_video_alone_is_about_as_right_as_it_is_known_to_be(shared, tmp_path) -> None:
    """Of ten people who come and go, each is found in pieces, and the right pieces are grouped."""
    out = tmp_path / "out"
    done = run_streamproc(
        "replay", "-q", shared / "data/videos/vtest.avi", "--detect", "--out", out
    )
    assert done.returncode == 0, done.stderr
    (video,) = json.loads((out / "run.json").read_text())["videos"]
    assert video["frames_decoded"] == 795
    assert 19 <= video["persons_embedded"] <= 50, "33 when this was written"
    boxes = sum(len(track.frame_indices) for track in load_tracks(out / "tracks.npz").tracks)
    assert 3700 <= boxes <= 5300, "4,562; the truth has 4,476"
    groups = (out / "duplicate_groups.jsonl").read_text().splitlines()
    assert 5 <= len(groups) <= 10, "no more than people"
    truth = shared / "data/trackers/PETS09-S2L1/gt.txt"
    scores = json.loads(run_streamproc("evaluate", out, "--truth", truth, "--json").stdout)
    assert scores["scored"][0]["precision"] >= 0.9, "every pair said was right"
    merged = {way["by"]: way["idf1"] for way in scores["merged"]}
    assert merged["tracks"] >= 0.40, ".442 when this was written"
    assert merged["all"] >= 0.83, ".885 when this was written"
