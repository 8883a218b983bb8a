"""Track files are parsed in a process of its own: what a file does to it ends in one line."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import zipfile
import zlib

import numpy as np
import psutil
import pytest
from programs import command, environment, run_program

from streamproc.errors import MachineError, TracksError
from streamproc.offline.sources import find_sources, read_ahead
from streamproc.tracks import ReadOptions, load_tracks, read_tracks, save_tracks, tracks_from_file
from streamproc.tracks.pickle_guard import read_npz
from streamproc.tracks.reading import Limits, _environment
from streamproc.types import Track

PICKLES = int(os.environ.get("STREAMPROC_TEST_FUZZ_PICKLES", "5000"))


def mot(path, rows, *first):
    """Write that many rows of MOT text after some first lines, and return the path."""
    with path.open("w") as file:
        file.writelines(f"{line}\n" for line in first)
        file.writelines(f"{row // 5 + 1},{row % 5},9,9,30.5,60.25,1,-1\n" for row in range(rows))
    return path


def test_the_child_gives_the_tracks_that_reading_here_gives(tmp_path, sample) -> None:
    """Arrays, counts, hints and hashes come over the pipe as they are."""
    text = mot(tmp_path / "a.txt", 5000, "1,-1,0,0,9,9,1", "7,3,1,1,0,0,1")
    for path in (text, sample / "sample.persons.npz"):
        found = read_tracks(path)
        expected = load_tracks(path)
        assert found.problems == expected.problems
        assert found.hints == expected.hints
        assert (found.sha256, found.identity) == (expected.sha256, expected.identity)
        for a, b in zip(found.tracks, expected.tracks, strict=True):
            assert a.person_id == b.person_id
            np.testing.assert_array_equal(a.frame_indices, b.frame_indices)
            np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
            np.testing.assert_array_equal(a.confidences, b.confidences)


def test_options_reach_the_child(tmp_path) -> None:
    """How a file is read is passed on, and part of what stands for it."""
    path = mot(tmp_path / "a.txt", 5)
    options = ReadOptions(first_frame_number=0, frame_stride=3, boxes="xyxy")
    track = read_tracks(path, options).tracks[0]
    assert track.frame_indices.tolist() == [3]
    assert track.boxes_xyxy.tolist() == [[9, 9, 30.5, 60.25]]


def test_a_fault_in_the_file_is_the_childs_one_line(tmp_path) -> None:
    """The TracksError of the child is raised here, with the path as it was given."""
    path = tmp_path / "a.txt"
    path.write_text("1,2\n")
    with pytest.raises(TracksError, match=f"^{path}: line 1 is no MOT text"):
        read_tracks(path)
    with pytest.raises(TracksError, match="found nothing there"):
        read_tracks(tmp_path / "b.txt")


def test_a_pipe_as_a_track_file_is_refused(tmp_path) -> None:
    """A named pipe is not opened, which would wait for ever."""
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(TracksError, match="found a device or a pipe"):
        read_tracks(tmp_path / "pipe")


@pytest.mark.long
def test_a_file_that_takes_too_much_memory_is_refused(tmp_path) -> None:
    """The child's limit of memory ends in one line that says what to do."""
    path = mot(tmp_path / "a.txt", 1_000_000)
    limits = Limits(memory_bytes=220 * 2**20)
    with pytest.raises(TracksError, match="takes more than 220 MiB of memory: split the file"):
        read_tracks(path, limits=limits)


def test_a_file_that_takes_too_long_is_refused(tmp_path) -> None:
    """The limits of processor time and of time each end in one line."""
    path = mot(tmp_path / "a.txt", 2_000_000, "1,,9,9,30,60,1")
    with pytest.raises(TracksError, match="more than 1 s of processor time: split the file"):
        read_tracks(path, limits=Limits(cpu_seconds=1))
    with pytest.raises(TracksError, match=r"took more than 0\.01 s: split the file"):
        read_tracks(path, limits=Limits(wall_seconds=0.01, answer_seconds=0.01))


def test_closing_ends_the_child(tmp_path) -> None:
    """A reading that is given up leaves no process, and says so to whoever waits for it."""
    path = mot(tmp_path / "a.txt", 1_000_000, "1,,9,9,30,60,1")
    source = tracks_from_file(path)
    before = set(psutil.Process().children())  # a broker of other tests may be among them
    source.begin()
    (child,) = set(psutil.Process().children()) - before
    source.close()
    with pytest.raises(MachineError, match="given up"):
        source.load()
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_tracks_read_ahead_and_never_asked_for_leave_no_process(tmp_path, sample) -> None:
    """A replay that fails before its first video ends the child that was started for it."""
    tracks = sample / "sample.persons.npz"
    sources = find_sources([sample / "sample.mp4"], [tracks])
    before = set(psutil.Process().children())
    with read_ahead(sources):
        assert set(psutil.Process().children()) - before
    assert not set(psutil.Process().children()) - before
    with pytest.raises(MachineError, match="given up"):
        sources[0].tracks.load()


def test_the_child_ends_with_its_parent(tmp_path) -> None:
    """Killed by force, this process leaves no child that reads on."""
    path = mot(tmp_path / "a.txt", 2_000_000, "1,,9,9,30,60,1")
    program = command("read_tracks_until_killed.py", path)
    with subprocess.Popen(program, env=environment(), stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        parent.send_signal(signal.SIGKILL)
    child.wait(30)


def test_the_child_gets_no_secrets(monkeypatch) -> None:
    """Of this process's environment only what is needed to import numpy is passed on."""
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret")
    monkeypatch.setenv("STREAMPROC_KAFKA__PASSWORD", "s3cret")
    assert "s3cret" not in str(_environment())


def test_only_the_named_members_of_an_npz_are_unpacked(tmp_path) -> None:
    """What else an npz holds, whatever its size, costs nothing."""
    path = tmp_path / "a.npz"
    save_tracks(path, [a_track()])
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        for number in range(3):
            archive.writestr(f"other{number}.npy", b"no npy file at all")
    assert [track.person_id for track in load_tracks(path).tracks] == [1]


def a_track():
    """One track of one box."""
    box = np.array([[0, 0, 9, 9]], np.float32)
    return Track(1, np.array([0]), box, np.ones(1, np.float32))


def test_a_member_that_an_npz_holds_twice_is_refused(tmp_path) -> None:
    """Two members of one name are refused, before either is unpacked."""
    path = tmp_path / "a.npz"
    save_tracks(path, [a_track()])
    with zipfile.ZipFile(path, "a") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("person_ids.npy", b"")
    with pytest.raises(TracksError, match=r"it holds 'person_ids\.npy' twice"):
        load_tracks(path)


def test_the_members_of_an_npz_have_one_limit_together(tmp_path, monkeypatch) -> None:
    """Members of which each is within the limit are refused if all are not."""
    monkeypatch.setattr("streamproc.tracks.pickle_guard.MAX_TOTAL_BYTES", 3000)
    boxes = np.zeros((80, 4), np.float32)
    path = tmp_path / "a.npz"
    ids = np.zeros(80, np.int64)
    np.savez(path, person_ids=ids, frame_indices=ids, boxes_xyxy=boxes, confidences=ids)
    with pytest.raises(TracksError, match=r"unpacks to .* bytes, more than 3000"):
        load_tracks(path)


def test_entries_that_overlap_are_counted_as_often_as_they_stand(tmp_path, monkeypatch) -> None:
    """Members that share their bytes in the file do not get around the limit."""
    monkeypatch.setattr("streamproc.tracks.pickle_guard.MAX_TOTAL_BYTES", 3_000_000)
    path = tmp_path / "a.npz"
    path.write_bytes(overlapping(bytes(1_000_000), ["person_ids", "frame_indices", "boxes_xyxy"]))
    with pytest.raises(TracksError, match=r"unpacks to 3000000 bytes|cannot be read as npz"):
        load_tracks(path)
    monkeypatch.setattr("streamproc.tracks.pickle_guard.MAX_TOTAL_BYTES", 2_500_000)
    with pytest.raises(TracksError, match="unpacks to 3000000 bytes, more than 2500000"):
        load_tracks(path)


def overlapping(content: bytes, names: list[str]) -> bytes:
    """A zip whose members all name the same compressed bytes."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(content) + packer.flush()
    crc = zlib.crc32(content)
    sizes = struct.pack("<III", crc, len(packed), len(content))
    local = b"PK\x03\x04" + struct.pack("<HHHHH", 20, 0, 8, 0, 0) + sizes
    local += struct.pack("<HH", len(names[0]) + 4, 0) + f"{names[0]}.npy".encode()
    central = b""
    for name in names:
        entry = b"PK\x01\x02" + struct.pack("<HHHHHH", 20, 20, 0, 8, 0, 0) + sizes
        entry += struct.pack("<HHHHHII", len(name) + 4, 0, 0, 0, 0, 0, 0)
        central += entry + f"{name}.npy".encode()
    start = len(local) + len(packed)
    end = struct.pack("<HHHHIIH", 0, 0, len(names), len(names), len(central), start, 0)
    return local + packed + central + b"PK\x05\x06" + end


@pytest.mark.parametrize(
    "pickled",
    [
        b"\x80\x02]r\xff\xff\xff\x0f.",
        b"\x80\x02]p268435455\n.",
        b"]" + b"2\x86" * 60 + b"}2K\x01s.",
        b"}]" + b"2\x86" * 60 + b"K\x01s.",
        b"cnumpy\ndtype\n]" + b"2\x86" * 60 + b"\x85R.",
        b"\x8b\xff\xff\xff\x7f.",
        b"\x8e" + b"\xff" * 8 + b".",
    ],
)
def test_a_small_pickle_takes_neither_memory_nor_time(tmp_path, pickled) -> None:
    """A memo index of 2^28, nested shared tuples, and lengths without bytes are refused at once."""
    header = b"\x93NUMPY\x01\x00" + b"v\x00"
    header += b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }".ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "p.npz", "w") as archive:
        archive.writestr("persons.npy", header + pickled)
    before = psutil.Process().memory_info().rss
    with pytest.raises(TracksError):
        read_npz(tmp_path / "p.npz", ("persons",))
    assert psutil.Process().memory_info().rss - before < 50 * 2**20


def test_fuzzed_pickles_give_a_plain_value_or_are_refused() -> None:
    """Thousands of pickles in one process: no crash, at most 300 MB, at most 2 s each."""
    done = run_program("fuzz_pickle_guard.py", PICKLES)
    assert done.returncode == 0, done.stderr[-2000:]
    used_mib, longest_seconds = map(float, done.stdout.split())
    assert used_mib <= 300
    assert longest_seconds <= 2
