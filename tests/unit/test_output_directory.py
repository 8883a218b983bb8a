"""The output directory: no file is partial or stale, and no file of the user is touched."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
from pathlib import Path

import pytest
from programs import command, environment, run_program
from reports import report, write

from streamproc.errors import MachineError, UsageError
from streamproc.offline.directory import OutputDirectory

SIMILARITY_FILES = {
    "similarity_matrix.json",
    "similarity_matrix.npy",
    "embeddings.json",
    "embeddings.npy",
}


def files(folder):
    """The paths of all files below a folder, relative to it."""
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def contents(folder):
    """The bytes of all files below a folder, by path."""
    return {name: (folder / name).read_bytes() for name in files(folder)}


def test_nothing_shows_before_commit_and_everything_after(tmp_path):
    """Files are only in the staging folder before the commit, and in place after it."""
    out = OutputDirectory(tmp_path)
    assert out.write_webp(7, b"data") == "webp/person_7.webp"
    out.write_report(report(7, 8))
    assert {
        name for name in files(tmp_path) if not name.startswith(".streamproc-staging-")
    } == set()
    out.commit()
    assert (tmp_path / "webp_viewer" / "webp" / "person_7.webp").read_bytes() == b"data"
    assert SIMILARITY_FILES | {"run.json", "webp_viewer/person_selection.html"} < files(tmp_path)
    assert not list(tmp_path.glob(".*"))


def test_abort_leaves_nothing(tmp_path):
    """Leaving without a commit removes the folder that was made."""
    with OutputDirectory(tmp_path / "new") as out:
        out.write_webp(1, b"data")
    assert not (tmp_path / "new").exists()


def test_abort_leaves_an_earlier_run_as_it_was(tmp_path):
    """Leaving without a commit changes no file of an earlier run."""
    write(tmp_path, 1, 2)
    before = contents(tmp_path)
    with OutputDirectory(tmp_path) as out:
        out.write_webp(1, b"other")
        out.write_report(report(1))
    assert contents(tmp_path) == before


def test_commit_removes_what_an_earlier_run_left_and_nothing_else(tmp_path):
    """A commit removes the earlier run's files that it does not write, and no other file."""
    write(tmp_path, 1, 2, -3)
    (tmp_path / "webp_viewer/webp/person_-3.crops.webp").touch()
    others = [
        "notes.txt",
        "webp_viewer/webp/person_x.webp",
        "webp_viewer/webp/holiday.webp",
        "webp_viewer/assets/my.css",
    ]
    for name in others:
        (tmp_path / name).write_text("mine")
    write(tmp_path, 2, similarity=False)
    left = files(tmp_path)
    assert {name for name in left if "/webp/" in name} == {
        "webp_viewer/webp/person_2.webp",
        *others[1:3],
    }
    assert not left & (SIMILARITY_FILES | {"webp_viewer/assets/plotly.min.js"})
    assert left > set(others)


def test_commit_without_a_report_is_refused_and_removes_nothing(tmp_path):
    """A commit without a report raises a RuntimeError and changes no file."""
    write(tmp_path, 1)
    before = files(tmp_path)
    with OutputDirectory(tmp_path) as out, pytest.raises(RuntimeError, match="write_report"):
        out.commit()
    assert files(tmp_path) == before


def test_nothing_is_written_after_commit(tmp_path):
    """After an abort, which may come twice, writing raises a RuntimeError."""
    write(tmp_path, 1)
    out = OutputDirectory(tmp_path)
    out.abort()
    out.abort()
    with pytest.raises(RuntimeError, match="after commit or abort"):
        out.write_webp(1, b"")


@pytest.mark.parametrize(
    "moves", [0, 1, 4, 12], ids=lambda moves: f"before-move-{moves}" if moves else "while-staging"
)
def test_a_kill_at_any_moment_leaves_no_half_file(moves, tmp_path):
    """Killed at any moment, a run leaves whole files, old or new, under the final names.

    The next run removes what the killed one staged.
    """
    folder = tmp_path / "out"
    write(folder, 0, 1, 2, 3, 4, 5)
    old = contents(folder)
    with OutputDirectory(tmp_path / "new") as out:
        for i in range(5):
            out.write_webp(i, b"new" * 50_000)
        out.write_report(report(0, 1, 2, 3, 4))
        out.commit()
    new = contents(tmp_path / "new")
    program = command("write_outputs_until_killed.py", folder, moves)
    with subprocess.Popen(program, env=environment(), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "stopped\n"
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert list(folder.glob(".streamproc-staging-*"))
    for name in files(folder):
        if not name.startswith("."):
            assert (folder / name).read_bytes() in (old[name], new.get(name)), name
    assert (folder / "run.json").exists() == (moves == 0), (
        "run.json is missing where a commit was cut off"
    )
    write(folder, 1)
    assert not list(folder.glob(".*"))
    assert {name for name in files(folder) if "/webp/" in name} == {
        "webp_viewer/webp/person_1.webp"
    }


def test_two_runs_do_not_mix(tmp_path):
    """A second run in the same folder is refused until the first has ended."""
    with OutputDirectory(tmp_path), pytest.raises(UsageError, match="another run is writing"):
        OutputDirectory(tmp_path)
    OutputDirectory(tmp_path).abort()


def test_a_gallery_and_its_videos_are_written_side_by_side(tmp_path):
    """A gallery's folder and those of its videos below it are written at the same time."""
    with OutputDirectory(tmp_path) as gallery, OutputDirectory(tmp_path / "a") as video:
        for out in (video, gallery):
            out.write_report(report(1))
            out.commit()
    assert {"run.json", "a/run.json"} < files(tmp_path)


@pytest.mark.parametrize("path", ["file", "file/below"])
def test_a_file_in_the_way_is_an_error_of_use(path, tmp_path):
    """A file where the folder should be is a usage error and stays as it is."""
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match="expected a directory"):
        OutputDirectory(tmp_path / path)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_directory_that_cannot_be_made_is_a_fault_of_the_machine():
    """A folder that the system refuses to make raises a MachineError."""
    with pytest.raises(MachineError, match="cannot be written"):
        OutputDirectory("/proc/streamproc-cannot-be-here")


def test_a_directory_in_the_place_of_a_file_is_reported(tmp_path):
    """A folder in an output file's place raises a MachineError that names it."""
    (tmp_path / "embeddings.npy").mkdir()
    with pytest.raises(MachineError, match=r"embeddings\.npy"):
        write(tmp_path, 1)
    assert not list(tmp_path.glob(".*"))


@pytest.fixture
def full_disk(monkeypatch):
    """Every file takes three bytes, then the disk is full."""

    def write_bytes(path, _data):
        with path.open("wb") as file:
            file.write(b"hal")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))

    monkeypatch.setattr(Path, "write_bytes", write_bytes)


def test_a_full_disk_is_left_to_who_writes_an_animation(tmp_path, full_disk, monkeypatch):
    """A full disk raises OSError for an animation, which is left out of the committed run."""
    out = OutputDirectory(tmp_path)
    with pytest.raises(OSError, match="No space left") as caught:
        out.write_webp(1, b"half a file")
    assert caught.value.errno == errno.ENOSPC
    monkeypatch.undo()
    out.write_report(report(1))
    out.commit()
    assert not (tmp_path / "webp_viewer/webp/person_1.webp").exists()


@pytest.mark.usefixtures("full_disk")
def test_a_full_disk_at_the_report_is_a_fault_of_the_machine(tmp_path):
    """A full disk while the report is written raises a MachineError and leaves no file."""
    with (
        OutputDirectory(tmp_path) as out,
        pytest.raises(MachineError, match=r"No space left.*make room"),
    ):
        out.write_report(report(1))
    assert files(tmp_path) == set()


def test_what_was_prepared_is_what_a_report_alone_writes(tmp_path):
    """Preparing, even twice, changes nothing in what is written."""
    write(tmp_path / "plain", 1, 2)
    with OutputDirectory(tmp_path / "prepared") as directory:
        directory.prepare()
        directory.prepare()
        for person_id in (1, 2):
            directory.write_webp(person_id, b"webp of %d" % person_id)
        directory.write_report(report(1, 2))
        directory.commit()
    assert contents(tmp_path / "prepared") == contents(tmp_path / "plain")


def test_a_page_without_a_heatmap_gets_no_plotly_though_it_was_prepared(tmp_path):
    """A page of one person has no Plotly script, even where it was prepared."""
    with OutputDirectory(tmp_path) as directory:
        directory.prepare()
        directory.write_report(report(1))
        directory.commit()
    assert not list(tmp_path.rglob("plotly.min.js"))
    assert list(tmp_path.rglob("page.js"))


def test_preparing_on_a_full_disk_leaves_the_fault_to_the_report(tmp_path, full_disk):
    """A full disk while preparing is raised only by the report."""
    with OutputDirectory(tmp_path / "out") as directory:
        directory.prepare()
        with pytest.raises(MachineError, match="No space left"):
            directory.write_report(report(1, 2))


def test_plotly_itself_is_not_imported(tmp_path):
    """Writing a page does not import plotly, which takes longer than the page."""
    done = run_program("write_page.py", tmp_path)
    assert done.stdout == "False\n", done.stderr
    assert (tmp_path / "webp_viewer/assets/plotly.min.js").stat().st_size > 1_000_000
