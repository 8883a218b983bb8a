"""What a user may type or name: each works, or ends in one line and the documented exit code."""

from __future__ import annotations

import json
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from programs import environment, run_program

from streamproc import replay

PROGRAM = [sys.executable, "-m", "streamproc"]
HUGE = "9" * 20
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


def run(*arguments, cwd, stdout=subprocess.PIPE, **variables):
    """Run `streamproc replay` without animations, and return its exit code and output in bytes."""
    done = subprocess.run(
        [*PROGRAM, "replay", "--no-animations", "--quiet", *map(os.fsencode, arguments)],
        cwd=cwd,
        env=environment(**variables),
        stdout=stdout,
        stderr=subprocess.PIPE,
        check=False,
    )
    assert b"Traceback" not in done.stderr, done.stderr
    assert b"Exception ignored" not in done.stderr, done.stderr
    return done


def one_line(done, code, text) -> None:
    """The command ended as documented, with one line that says why."""
    lines = done.stderr.decode(errors="replace").strip().splitlines()
    assert done.returncode == code, lines
    assert len(lines) == 1
    assert text in lines[0]


@pytest.fixture
def folder(sample, tmp_path) -> Path:
    """A folder with the sample clip and its tracks, under names that are Latin-1."""
    inside = Path(os.fsdecode(os.fsencode(tmp_path) + b"/gr\xfc\xdfe"))
    inside.mkdir()
    for ending in (".mp4", ".persons.npz"):
        name = os.fsdecode(b"stra\xdfe" + ending.encode())
        shutil.copy(sample / f"sample{ending}", inside / name)
        shutil.copy(sample / f"sample{ending}", inside / f"plain{ending}")
    return inside


@pytest.mark.parametrize("locale", [{}, C_LOCALE], ids=["utf-8", "c"])
def test_names_of_any_bytes_work(folder, locale) -> None:
    """A video, its folder and the results may have names that are no UTF-8, in any locale."""
    video = folder / os.fsdecode(b"stra\xdfe.mp4")
    out = folder / os.fsdecode(b"\xe9t\xe9")
    done = run(video, "--out", out, "--json", cwd=folder, **locale)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    written = json.loads((out / "run.json").read_bytes())
    for record in (said, written):
        assert record["videos"][0]["path"].endswith(r"gr\xfc\xdfe/stra\xdfe.mp4")
    assert len(said["candidates"]) == 1
    assert r"stra\xdfe.mp4" in (out / "webp_viewer" / "person_selection.html").read_text("utf-8")
    plain = run(video, "--out", out, cwd=folder, **locale)
    assert plain.stdout.split()[:2] == [b"1", b"6"]
    if not locale:
        assert b"\xe9t\xe9/webp_viewer" in plain.stderr


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["--gallery", "x" * 300, "--out", "o"], "256 characters"),
        (["--gallery", os.fsdecode(b"gr\xfc"), "--out", "o"], "UTF-8"),
        (["--gallery", "a\nb", "--out", "o"], "control characters"),
        (["--gallery", "../../x"], "name one with --out"),
        (["--gallery", "/tmp/x"], "name one with --out"),
        (["--gallery", "x" * 250], "too long"),
        (["--first-frame-number", HUGE], "range"),
        (["--frame-stride", HUGE], "range"),
        (["--top", HUGE], "range"),
        (["--top", "9" * 5000], "--top"),
        (["--out", ""], "empty"),
        (["--persons", ""], "empty"),
        (["--config", ""], "empty"),
        (["--calibration", ""], "empty"),
    ],
)
def test_an_option_that_makes_no_sense_is_one_line_and_exit_code_2(folder, arguments, text) -> None:
    """Numbers of any size, names that lead elsewhere and empty names are refused by one line."""
    before = sorted(folder.parent.rglob("*"))
    one_line(run("plain.mp4", *arguments, cwd=folder), 2, text)
    assert sorted(folder.parent.rglob("*")) == before


@pytest.mark.parametrize(
    "name",
    ["TOP_PERSONS", "MIN_TRACK_FRAMES", "CROP_MEMORY_MIB", "LIMITS__MAX_FRAMES", "UMASK"],
)
def test_a_setting_beyond_all_measure_is_one_line_and_exit_code_2(folder, name) -> None:
    """A setting that is a huge number is refused by its name."""
    done = run("plain.mp4", cwd=folder, **{f"STREAMPROC_{name}": HUGE})
    one_line(done, 2, name.lower().replace("__", "."))


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_a_full_standard_output_is_one_line_and_exit_code_1(folder, more) -> None:
    """What cannot be printed is said in one line; the files are there."""
    with Path("/dev/full").open("wb") as full:
        done = run("plain.mp4", "--out", "o", *more, cwd=folder, stdout=full)
    lines = done.stderr.decode().strip().splitlines()
    assert done.returncode == 1
    assert lines[-1].startswith("streamproc: the output cannot be written (No space left")
    assert (folder / "o" / "run.json").is_file()


def test_an_unexpected_error_is_one_line_that_names_a_file_of_its_owner(tmp_path) -> None:
    """The traceback is in a file with mode 0600, of which the ten newest are kept."""
    reports = tmp_path / "cache" / "errors"
    names = []
    for _ in range(12):
        done = run_program("command_with_a_fault.py", STREAMPROC_CACHE_FOLDER=str(reports.parent))
        assert done.returncode == 1
        (line,) = done.stderr.splitlines()
        assert "ZeroDivisionError: a fault of two lines" in line
        names.append(Path(line.rsplit(" ", 1)[1]))
    assert sorted(reports.iterdir()) == names[2:]
    assert stat.S_IMODE(names[-1].stat().st_mode) == 0o600
    assert stat.S_IMODE(reports.stat().st_mode) == 0o700
    assert "ZeroDivisionError" in names[-1].read_text()


def test_an_unexpected_error_goes_to_stderr_where_no_file_can_be_written(tmp_path) -> None:
    """Without a cache folder the line is followed by the traceback."""
    (tmp_path / "cache").touch()
    done = run_program("command_with_a_fault.py", STREAMPROC_CACHE_FOLDER=str(tmp_path / "cache"))
    assert done.returncode == 1
    assert "ZeroDivisionError: a fault of two lines" in done.stderr.splitlines()[0]
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("settings", "file_mode", "folder_mode"),
    [({}, 0o600, 0o700), ({"umask": "027"}, 0o640, 0o750)],
)
def test_results_are_for_their_owner_alone_unless_a_setting_says_more(
    sample, tmp_path, settings, file_mode, folder_mode
) -> None:
    """Embeddings and pictures of people are written without the permissions of the umask."""
    before = os.umask(0)
    try:
        replay(sample / "sample.mp4", out=tmp_path / "out", **settings)
    finally:
        os.umask(before)
    for path in (tmp_path / "out", *(tmp_path / "out").rglob("*")):
        expected = folder_mode if path.is_dir() else file_mode
        assert stat.S_IMODE(path.stat().st_mode) == expected, path


def test_ctrl_c_gives_a_replay_in_python_up(sample, tmp_path) -> None:
    """Interrupted while it decodes, `replay` raises KeyboardInterrupt and writes nothing."""
    done = run_program("interrupt_a_replay.py", sample / "sample.mp4", tmp_path / "out")
    assert done.stdout == "interrupted\n", done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


def test_each_video_is_charged_its_own_embedding_seconds(sample, tmp_path) -> None:
    """The network's time for a video stands in that video's run.json."""
    videos = []
    for name in ("a", "b"):
        shutil.copy(sample / "sample.mp4", tmp_path / f"{name}.mp4")
        shutil.copy(sample / "sample.persons.npz", tmp_path / f"{name}.persons.npz")
        videos.append(tmp_path / f"{name}.mp4")
    replay(videos, gallery="both", out=tmp_path / "out", animate=False)
    seconds = [
        json.loads(path.read_text())["seconds"]["embed"]
        for path in (tmp_path / "out").glob("*/run.json")
    ]
    assert len(seconds) == 2
    assert min(seconds) > 0


@pytest.mark.parametrize(
    "candidate", ["[1]", '{"persons": [{"person_id": 1}, {"person_id": 2}]}', '{"persons": 5}']
)
def test_candidates_that_are_none_are_a_usage_mistake_of_evaluate(folder, candidate) -> None:
    """An output folder that somebody else changed is refused in one line."""
    (folder / "run.json").write_text('{"videos": [{"tracks_path": "plain.persons.npz"}]}')
    (folder / "duplicate_candidates.jsonl").write_text(candidate)
    done = subprocess.run(
        [*PROGRAM, "evaluate", ".", "--truth", "plain.persons.npz"],
        cwd=folder,
        env=environment(),
        capture_output=True,
        check=False,
    )
    one_line(done, 2, "expected candidates")
