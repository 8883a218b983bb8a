"""`streamproc replay` as its users run it: a process, its exit code, its output and its files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from itertools import combinations
from typing import TYPE_CHECKING

import numpy as np
import orjson
import pytest
from processes import STREAMPROC, Process, eventually, run_streamproc
from services import SCRIPTS

from streamproc import replay
from streamproc.errors import TracksError, UsageError, VideoError
from streamproc.tracks import load_tracks, save_tracks
from streamproc.types import Track

if TYPE_CHECKING:
    from pathlib import Path

run = partial(run_streamproc, "replay")


def files_in(folder):
    """The names of all files in a folder and its folders."""
    return sorted(
        path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()
    )


def event_ids(folder):
    """The ids of the candidates in an output folder."""
    return [
        json.loads(line)["event_id"]
        for line in (folder / "duplicate_candidates.jsonl").read_text().splitlines()
    ]


@pytest.fixture
def clip(sample, tmp_path) -> Path:
    """A copy of the sample clip with its tracks beside it."""
    folder = tmp_path / "clip"
    folder.mkdir()
    for name in ("sample.mp4", "sample.persons.npz"):
        shutil.copy(sample / name, folder)
    return folder / "sample.mp4"


def test_the_sample_gives_the_pair_that_came_back_and_all_files(clip, tmp_path) -> None:
    """The sample clip gives its one pair, and every file that is promised."""
    done = run(clip, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    a, b, similarity = done.stdout.split()
    assert (a, b) == ("1", "6")
    out = tmp_path / "out"
    names = files_in(out)
    assert [name for name in names if not name.startswith("webp_viewer/assets/")] == [
        "duplicate_candidates.jsonl",
        "duplicate_groups.jsonl",
        "embeddings.json",
        "embeddings.npy",
        "person_embeddings.jsonl",
        "run.json",
        "similarity_matrix.json",
        "similarity_matrix.npy",
        "track_suspects.jsonl",
        "webp_viewer/person_selection.html",
        *(
            f"webp_viewer/webp/person_{i}{end}"
            for i in range(1, 7)
            for end in (".crops.webp", ".webp")
        ),
    ]
    matrix = json.loads((out / "similarity_matrix.json").read_text())
    assert matrix["person_ids"] == [1, 2, 3, 4, 5, 6]
    assert [pair[:2] for pair in matrix["candidates"]] == [[1, 6]]
    assert matrix["candidates"][0][2] == pytest.approx(float(similarity), abs=1e-3)
    array = np.load(out / "similarity_matrix.npy")
    assert array.shape == (6, 6)
    np.testing.assert_allclose(array, array.T)
    np.testing.assert_allclose(
        np.linalg.norm(np.load(out / "embeddings.npy"), axis=1), 1, atol=1e-5
    )
    (line,) = (out / "duplicate_candidates.jsonl").read_text().splitlines()
    assert [p["person_id"] for p in json.loads(line)["persons"]] == [1, 6]
    (line,) = (out / "duplicate_groups.jsonl").read_text().splitlines()
    group = json.loads(line)
    assert [key.rpartition("/")[2] for key in group["person_keys"]] == ["1", "6"]
    candidate = json.loads((out / "duplicate_candidates.jsonl").read_text())
    assert candidate["group_id"] == group["group_id"]


def test_json_is_the_only_thing_on_stdout(clip, tmp_path) -> None:
    """With --json stdout is one JSON document that agrees with run.json."""
    done = run(clip, "--out", tmp_path / "out", "--json")
    summary = orjson.loads(done.stdout)
    assert summary["exit_code"] == 0
    assert len(summary["candidates"]) == summary["candidate_count"] == 1
    assert summary["seconds"]["wall"] > 0
    assert (
        summary["model"]["weights_sha256"]
        == json.loads((tmp_path / "out" / "run.json").read_text())["model"]["weights_sha256"]
    )


def test_results_go_beside_where_the_user_stands_by_default(clip, tmp_path) -> None:
    """Without --out the results are in NAME.streamproc in the current folder."""
    assert run(clip, cwd=tmp_path).returncode == 0
    assert (tmp_path / "sample.streamproc" / "webp_viewer" / "person_selection.html").is_file()


def test_the_same_again_replaces_the_files_and_says_the_same(clip, tmp_path) -> None:
    """A second run gives the same ids, and leaves no file of the first."""
    first = run(clip, "--out", tmp_path / "out")
    ids = event_ids(tmp_path / "out")
    assert run(clip, "--out", tmp_path / "out").stdout == first.stdout
    assert ids == event_ids(tmp_path / "out")
    run(clip, "--out", tmp_path / "out", "--top", "2")
    assert len(list((tmp_path / "out" / "webp_viewer" / "webp").iterdir())) == 2 * 2


def test_duplicates_across_videos_in_one_gallery(clip, tmp_path) -> None:
    """Two videos of one gallery have one matrix and one page, and pairs of both."""
    other = clip.with_name("other.mp4")
    shutil.copy(clip, other)
    tracks = load_tracks(clip.with_suffix(".persons.npz")).tracks
    third = [track for track in tracks if track.person_id == 3]
    save_tracks(other.with_suffix(".persons.npz"), third)
    done = run(clip, other, "--gallery", "lobby", "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    matrix = json.loads((tmp_path / "out" / "similarity_matrix.json").read_text())
    assert len(matrix["person_ids"]) == 7
    pairs = [{label.split("/")[1] for label in pair[:2]} for pair in matrix["candidates"]]
    assert {"3"} in pairs, "the same person in both videos"
    assert {"1", "6"} in pairs
    folders = sorted({label.split("/")[0] for label in matrix["person_ids"]})
    assert sorted(path.parent.name for path in (tmp_path / "out").glob("*/run.json")) == folders
    page = (tmp_path / "out" / "webp_viewer" / "person_selection.html").read_text()
    for folder in folders:
        assert f"../{folder}/webp_viewer/webp/person_3.webp" in page


def test_one_bad_video_among_several_is_named_and_the_others_are_done(clip, tmp_path) -> None:
    """A bad video beside a good one is named, and the exit code is 4."""
    bad = clip.with_name("bad.mp4")
    bad.write_bytes(b"no video")
    shutil.copy(clip.with_suffix(".persons.npz"), bad.with_suffix(".persons.npz"))
    done = run(bad, clip, "--gallery", "lobby", "--out", tmp_path / "out")
    assert done.returncode == 4
    assert "bad.mp4" in done.stderr
    matrix = json.loads((tmp_path / "out" / "similarity_matrix.json").read_text())
    assert len(matrix["candidates"]) == 1


def test_where_no_video_is_left_each_fault_is_named_and_nothing_is_written(clip, tmp_path) -> None:
    """Two bad videos are named in one line, and there are no files."""
    bad = [clip.with_name(name) for name in ("bad1.mp4", "bad2.mp4")]
    for path in bad:
        path.write_bytes(b"no video")
    tracks = ["--persons", clip.with_suffix(".persons.npz")]
    done = run(*bad, *tracks, *tracks, "--gallery", "lobby", "--out", tmp_path / "out")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "bad1.mp4" in line
    assert "bad2.mp4" in line
    assert not (tmp_path / "out").exists() or files_in(tmp_path / "out") == []


async def test_from_python_also_where_a_loop_runs(clip, tmp_path) -> None:
    """`replay` in Python gives arrays and events, and writes nothing without `out`."""
    result = replay(clip, persons=clip.with_suffix(".persons.npz"))
    assert result.similarity.shape == (6, 6)
    assert result.embeddings.shape == (6, 512)
    (candidate,) = result.candidates
    assert [person.person_id for person in candidate.persons] == [1, 6]
    assert (result.skipped, result.partial, result.out) == ((), False, None)
    assert files_in(clip.parent) == ["sample.mp4", "sample.persons.npz"], (
        "without `out` nothing is written"
    )
    strict = replay(clip, clustering__similarity_threshold=0.999999, min_track_frames=70)
    assert strict.candidates == ()
    assert {skip.person_id for skip in strict.skipped} == {1, 6}


def test_python_errors_are_ours(tmp_path, clip) -> None:
    """`replay` in Python raises this package's errors."""
    with pytest.raises(VideoError):
        replay(tmp_path / "none.mp4")
    with pytest.raises(UsageError):
        replay(clip, clustering__similarity_treshold=1)
    (clip.parent / "sample.persons.npz").unlink()
    with pytest.raises(TracksError, match="no tracks found beside it"):
        replay(clip, detector__enabled=False)


def test_without_weights_animations_and_page_still_come(clip, tmp_path) -> None:
    """Missing weights cost the similarity alone, and the exit code is 4."""
    done = run(clip, "--out", tmp_path / "out", "--weights", "missing.onnx")
    assert done.returncode == 4
    assert "similarity was skipped: expected a weights file" in done.stderr
    names = files_in(tmp_path / "out")
    assert sum(name.endswith(".crops.webp") for name in names) == 6
    assert sum(name.endswith(".webp") for name in names) == 2 * 6
    assert "similarity_matrix.json" not in names
    page = tmp_path / "out" / "webp_viewer" / "person_selection.html"
    assert "similarity was skipped" in page.read_text()
    assert json.loads((tmp_path / "out" / "run.json").read_text())["partial"] is True


def test_with_animations_failing_candidates_still_come(clip, tmp_path) -> None:
    """With a disk that fills up while animations are written, candidates and page still come."""
    program = (sys.executable, str(SCRIPTS / "replay_on_a_full_disk.py"))
    done = run(clip, "--out", tmp_path / "out", program=program)
    assert done.returncode == 4
    assert done.stdout.split()[:2] == ["1", "6"]
    reason = "the first: OSError: [Errno 28] No space left on device"
    assert f"6 animations could not be written, {reason}" in done.stderr
    assert not list((tmp_path / "out").rglob("*.webp"))
    assert (tmp_path / "out" / "webp_viewer" / "person_selection.html").is_file()


def test_a_disk_that_is_really_full_is_one_line_and_leaves_nothing_half(clip, tmp_path) -> None:
    """A full file system is one line and exit code 1, and leaves no file."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a small file system (root)")
    try:
        done = run(clip, "--out", disk / "out")
        assert done.returncode == 1
        assert len(done.stderr.strip().splitlines()) == 1
        assert "No space left on device" in done.stderr
        assert files_in(disk) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_video_cut_off_in_the_middle_gives_what_it_has(shared, tmp_path) -> None:
    """The frames before the cut are used, the missing ones counted, and the exit code is 4."""
    import av

    source = shared / "data" / "codecs" / "h264.mp4"
    whole = tmp_path / "whole.mp4"
    with (
        av.open(str(source)) as inside,
        av.open(str(whole), "w", options={"movflags": "faststart"}) as outside,
    ):
        stream = outside.add_stream_from_template(inside.streams.video[0])
        for packet in inside.demux(inside.streams.video[0]):
            if packet.size:
                packet.stream = stream
                outside.mux(packet)
    cut = tmp_path / "cut.mp4"
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    tracks = shared / "data" / "persons" / "TUD-Campus.canonical_persons.npz"
    done = run(cut, "--persons", tracks, "--out", tmp_path / "out")
    assert done.returncode == 4
    assert "cut.mp4: the file is cut off:" in done.stderr
    record = json.loads((tmp_path / "out" / "run.json").read_text())["videos"][0]
    assert 0 < record["frame_count"] < 71
    assert record["frame_count"] + record["missing_frames"] == 71
    assert record["track_problems"]["frames-beyond-video"] > 0


def empty(folder):
    """Make v.mp4 an empty file."""
    (folder / "v.mp4").touch()


def text(folder):
    """Make v.mp4 a text."""
    (folder / "v.mp4").write_text("this is no video\n" * 50)


def ffconcat(folder):
    """Make v.mp4 a list that names another video."""
    shutil.copy(folder / "sample.mp4", folder / "other.mp4")
    (folder / "v.mp4").write_text("ffconcat version 1.0\nfile other.mp4\n")


def playlist(folder):
    """Make v.mp4 a playlist that names another video."""
    shutil.copy(folder / "sample.mp4", folder / "other.mp4")
    (folder / "v.mp4").write_text(
        "#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\nother.mp4\n#EXT-X-ENDLIST\n"
    )


def audio_only(folder):
    """Make v.mp4 a file of sound alone."""
    import av

    with av.open(str(folder / "v.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame(format="fltp", layout="mono", samples=1024)
        frame.sample_rate, frame.pts = 44100, 0
        for plane in frame.planes:
            plane.update(bytes(plane.buffer_size))
        container.mux(stream.encode(frame))
        container.mux(stream.encode())


def no_frames(folder):
    """Make v.mp4 a video without frames."""
    import av

    with av.open(str(folder / "v.mp4"), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.start_encoding()


def directory(folder):
    """Make v.mp4 a folder."""
    (folder / "v.mp4").mkdir()


@pytest.mark.parametrize(
    "make", [lambda _: None, directory, empty, text, ffconcat, playlist, audio_only, no_frames]
)
def test_a_bad_video_is_one_line_that_names_it_and_exit_code_1(clip, tmp_path, make) -> None:
    """Whatever is no video is one line on stderr that names it, and no file."""
    make(clip.parent)
    tracks = clip.with_suffix(".persons.npz")
    done = run(clip.parent / "v.mp4", "--persons", tracks, "--out", tmp_path / "out")
    assert done.returncode == 1, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert "v.mp4" in line
    assert done.stdout == ""
    assert not (tmp_path / "out").exists() or files_in(tmp_path / "out") == []


def tracks_of(folder, *tracks):
    """The track file t.npz with these tracks."""
    save_tracks(folder / "t.npz", tracks)
    return folder / "t.npz"


def boxes(person_id, frames, box=(100, 100, 160, 280)):
    """A track that stands still."""
    return Track(
        person_id,
        np.array(frames),
        np.tile(np.float32(box), (len(frames), 1)),
        np.ones(len(frames), np.float32),
    )


def other_video(folder):
    """Make t.npz the tracks of a longer video."""
    tracks_of(folder, boxes(1, range(5000, 5100), (9, 9, 50, 99)))


def code_in_tracks(folder):
    """Make t.npz a file whose pickle runs a program."""

    class Evil:
        def __reduce__(self):
            return os.system, (f"touch {folder / 'was-run'}",)

    np.savez(folder / "t.npz", persons=np.array([Evil(), None], object)[:1])


def huge(folder):
    """Make t.npz an array that declares 100 GB."""
    import zipfile

    header = np.lib.format.header_data_from_array_1_0(np.zeros(1, np.float32))
    header |= {"shape": (25_000_000_000,)}
    with (
        zipfile.ZipFile(folder / "t.npz", "w") as archive,
        archive.open("persons.npy", "w") as member,
    ):
        np.lib.format.write_array_header_1_0(member, header)


def no_npz(folder):
    """Make t.npz a text."""
    (folder / "t.npz").write_text("nothing")


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (
            other_video,
            "the tracks do not fit the video: boxes reach frame 5099 but the video has 150 frames",
        ),
        (code_in_tracks, "nothing was run"),
        (huge, "declares the shape"),
        (no_npz, "cannot be read as npz"),
        (lambda _: None, "expected a track file, found nothing"),
    ],
)
def test_bad_tracks_are_one_line_that_names_them_and_exit_code_1(
    clip, tmp_path, make, expected
) -> None:
    """Tracks that cannot be used are one line that names them, and no file."""
    make(clip.parent)
    done = run(clip, "--persons", clip.parent / "t.npz", "--out", tmp_path / "out")
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert expected in line
    assert "t.npz" in line
    assert not (clip.parent / "was-run").exists()
    assert not (tmp_path / "out").exists() or files_in(tmp_path / "out") == []


@pytest.mark.parametrize(
    ("tracks", "people", "skipped"),
    [
        ([], 0, {}),
        ([boxes(1, range(50))], 1, {}),
        ([boxes(1, range(50)), boxes(2, range(50), (639, 0, 700, 300))], 1, {2: "no usable crop"}),
        ([boxes(1, range(3))], 0, {1: "3 boxes, fewer than the 5"}),
    ],
)
def test_few_or_no_persons_are_no_fault(clip, tmp_path, tracks, people, skipped) -> None:
    """With one person or none the matrix is small, and the skipped have their reasons."""
    done = run(
        clip, "--persons", tracks_of(clip.parent, *tracks), "--out", tmp_path / "out", "--json"
    )
    assert done.returncode == 0, done.stderr
    summary = orjson.loads(done.stdout)
    assert len(summary["person_ids"]) == people
    found = {skip["person_id"]: skip["reason"] for skip in summary["videos"][0]["skipped"]}
    assert found.keys() == skipped.keys()
    assert all(found[person].startswith(reason) for person, reason in skipped.items())
    assert np.load(tmp_path / "out" / "similarity_matrix.npy").shape == (people, people)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            ["--threshold", "7"],
            "setting clustering.similarity_threshold: input should be less than or equal to 1",
        ),
        (["--device", "gpu"], "'gpu' is not one of 'auto', 'cpu', 'cuda'"),
        (["--persons", "a", "--persons", "b"], "expected one --persons for each"),
        (["--config", "none.yml"], "expected a settings file"),
        (["--tresh", "1"], "No such option"),
        (["--out", "sample.mp4"], "a file"),
    ],
)
def test_a_usage_mistake_is_exit_code_2(clip, arguments, expected) -> None:
    """A mistake in the arguments is exit code 2 and says what was expected."""
    done = run(clip, *arguments, cwd=clip.parent)
    assert done.returncode == 2, done.stderr
    assert expected in done.stderr


def test_a_mistyped_variable_is_exit_code_2(clip, tmp_path) -> None:
    """An unknown STREAMPROC_ variable is refused with the nearest name."""
    done = run(clip, cwd=tmp_path, env={"STREAMPROC_TOP_PERSON": "3"})
    assert done.returncode == 2
    assert "did you mean STREAMPROC_TOP_PERSONS" in done.stderr


def test_no_color_and_no_control_codes_where_there_is_no_terminal(clip, tmp_path) -> None:
    """Output to a pipe has no escape sequence."""
    done = run(clip, "--out", tmp_path / "out")
    assert "\x1b" not in done.stderr + done.stdout


def started(shared, out) -> Process:
    """A replay of PETS that is known to be in the middle: its first animation is written.

    That is in the staging folder.
    """
    data = shared / "data"
    tracks = data / "gt" / "PETS09-S2L1.gt.txt"
    video = data / "videos" / "vtest.avi"
    command = [*STREAMPROC, "replay", video, "--persons", tracks, "--out", out]
    process = Process("replay", list(map(str, command)), out.with_suffix(".log"))
    eventually(
        lambda: list(out.glob(".*/**/*.webp")), "an animation", seconds=120, processes=[process]
    )
    return process


def test_the_first_interrupt_drains(shared, tmp_path) -> None:
    """After the first Ctrl-C what is begun is finished and written, and the exit code is 130."""
    out = tmp_path / "out"
    process = started(shared, out)
    process.send(signal.SIGINT)
    assert process.wait(seconds=120) == 130, process.log
    assert "Traceback" not in process.log
    record = json.loads((out / "run.json").read_text())
    assert record["interrupted"] is True
    (video,) = record["videos"]
    persons = video["persons_embedded"]
    assert len(video["skipped"]) + persons == 19
    assert np.load(out / "similarity_matrix.npy").shape == (persons, persons)


def test_the_second_interrupt_gives_up_and_leaves_no_files(shared, tmp_path) -> None:
    """After the second Ctrl-C nothing is written."""
    out = tmp_path / "out"
    process = started(shared, out)
    process.send(signal.SIGINT)
    eventually(lambda: "stopping" in process.log, "the first one heard", processes=[process])
    process.send(signal.SIGINT)
    assert process.wait(seconds=120) == 130
    assert "Traceback" not in process.log
    assert "given up" in process.log
    assert not out.exists() or files_in(out) == []


def test_a_kill_in_the_middle_leaves_no_file_and_the_next_run_cleans_up(
    shared, clip, tmp_path
) -> None:
    """A killed run leaves only its staging folder, which the next run removes."""
    out = tmp_path / "out"
    process = started(shared, out)
    process.kill()
    assert [name for name in files_in(out) if not name.startswith(".")] == []
    assert run(clip, "--out", out).returncode == 0
    assert not [name for name in files_in(out) if name.startswith(".")]


@pytest.mark.parametrize(
    "weights",
    [
        pytest.param("osnet_x0_25_msmt17.pth", marks=pytest.mark.long),
        "osnet_x0_25_msmt17.B.converted.pt",
    ],
)
def test_all_duplicates_of_pets_are_found_at_the_precision_promised(
    shared, exports, weights
) -> None:
    """At defaults the published weights find all 12 true pairs of 171, with precision .60."""
    pytest.importorskip("torch", reason="torch is not installed: the extra gpu brings it")
    result = replay(
        shared / "data" / "videos" / "vtest.avi",
        persons=shared / "data" / "persons" / "PETS09-S2L1.canonical_persons.npz",
        clustering__osnet_model=str(shared / "models" / weights),
        cache_folder=exports,
    )
    identity = json.loads((shared / "data" / "gt" / "PETS09-S2L1.identity.json").read_text())
    people = {int(track): person for track, person in identity["track_to_person"].items()}
    true = {(a, b) for a, b in combinations(sorted(people), 2) if people[a] == people[b]}
    found = set()
    for event in result.candidates:
        found.add(tuple(sorted(person.person_id for person in event.persons)))
    assert len(true) == 12
    assert true <= found
    assert len(found & true) / len(found) >= 0.60


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    """`replay --help` imports none of the libraries that take long to load."""
    command = [sys.executable, str(SCRIPTS / "heavy_imports_of_help.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_track_that_holds_two_people_becomes_two_persons(sample, tmp_path) -> None:
    """Files name its parts, the page shows them, and they share the track's animation."""
    own = {track.person_id: track for track in load_tracks(sample / "sample.persons.npz").tracks}
    first, second = own[3], own[5]  # who goes over into whom at frame 74
    early, late = first.frame_indices < 74, second.frame_indices >= 74
    mixed = Track(
        7,
        np.concatenate([first.frame_indices[early], second.frame_indices[late]]),
        np.concatenate([first.boxes_xyxy[early], second.boxes_xyxy[late]]),
        np.concatenate([first.confidences[early], second.confidences[late]]),
    )
    save_tracks(tmp_path / "mixed.npz", (own[1], mixed))
    out = tmp_path / "out"
    result = replay(sample / "sample.mp4", persons=tmp_path / "mixed.npz", out=out)
    assert result.person_ids == (1, "7#1", "7#2")
    matrix = json.loads((out / "similarity_matrix.json").read_text())
    assert matrix["person_ids"] == [1, "7#1", "7#2"]
    assert set(json.loads((out / "embeddings.json").read_text())["embeddings"]) == {
        "1",
        "7#1",
        "7#2",
    }
    (line,) = (out / "track_suspects.jsonl").read_text().splitlines()
    suspect = json.loads(line)
    assert (suspect["person_id"], suspect["frame_index"]) == (7, 74)
    run = json.loads((out / "run.json").read_text())
    assert run["videos"][0]["tracks_in_parts"] == [7]
    assert any("1 track seems to hold two people" in notice for notice in run["notices"])
    html = (out / "webp_viewer" / "person_selection.html").read_text()
    page = json.loads(html.split('id="data">')[1].split("</script>")[0])
    assert [one["person_keys"][1].rpartition("/")[2] for one in page["suspects"]] == ["7#2"]
    assert all(one.startswith("data:image/webp;") for one in page["suspects"][0]["pictures"])
    pictures = {person["label"]: person["webp"] for person in page["persons"]}
    assert pictures["7#1"] == pictures["7#2"] == "webp/person_7.webp"
    off = replay(
        sample / "sample.mp4",
        persons=tmp_path / "mixed.npz",
        out=tmp_path / "off",
        animate=False,
        clustering__split_tracks=False,
    )
    assert off.person_ids == (1, 7)
