"""Track files: what makes sense is kept, the rest counted, and nothing in a file is run."""

from __future__ import annotations

import io
import os
import pickle
import re
import zipfile
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from programs import run_program

from streamproc.errors import TracksError
from streamproc.tracks import (
    files,
    find_track_file,
    fit_to_video,
    load_tracks,
    pickle_guard,
    save_tracks,
)
from streamproc.tracks.content import Content
from streamproc.types import Track, TrackSet


def canonical(path, persons):
    """Write a canonical file of these persons, and return its path."""
    np.savez(path, persons=np.array([*persons, None], dtype=object)[:-1])
    return path


def one(person_id=1, frames=(0, 1, 2), boxes=None, **more):
    """One person of a canonical file."""
    boxes = [[10, 10, 30, 60]] * len(frames) if boxes is None else boxes
    return {
        "person_id": person_id,
        "frame_numbers": np.array(frames, np.int64),
        "bboxes": np.array(boxes, np.float32).reshape(-1, 4),
        **more,
    }


ROWS = {"person_ids": np.zeros(3), "boxes_xyxy": np.zeros((3, 4))}


def flat(path, **arrays):
    """Write arrays as npz, and return its path."""
    np.savez(path, **arrays)
    return path


def mot(path, *lines):
    """Write lines as MOT text, and return its path."""
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", ["PETS09-S2L1", "TUD-Campus", "real-46-persons"])
def test_real_canonical_files_are_read_whole(shared, name) -> None:
    """Every array of a real file equals what numpy's own unrestricted reader gives."""
    path = shared / "data" / "persons" / f"{name}.canonical_persons.npz"
    tracks = load_tracks(path)
    truth = np.load(path, allow_pickle=True)["persons"]
    assert [t.person_id for t in tracks.tracks] == sorted(p["person_id"] for p in truth)
    by_id = {t.person_id: t for t in tracks.tracks}
    for expected in truth:
        np.testing.assert_array_equal(
            by_id[expected["person_id"]].frame_indices, expected["frame_numbers"]
        )
        np.testing.assert_array_equal(by_id[expected["person_id"]].boxes_xyxy, expected["bboxes"])
    assert tracks.problems == Counter()


def test_mot_text_and_canonical_file_of_the_same_truth_agree(shared) -> None:
    """A MOT text gives the tracks of the canonical file made from it.

    The text's frame 1 is frame 0; the npz has its boxes cut at the picture's edge.
    """
    text = load_tracks(shared / "data" / "gt" / "TUD-Campus.gt.txt")
    npz = load_tracks(shared / "data" / "persons" / "TUD-Campus.canonical_persons.npz")
    assert [t.person_id for t in text.tracks] == [t.person_id for t in npz.tracks]
    for a, b in zip(text.tracks, npz.tracks, strict=True):
        np.testing.assert_array_equal(a.frame_indices, b.frame_indices)
        np.testing.assert_allclose(a.boxes_xyxy.clip(0, [640, 480] * 2), b.boxes_xyxy, atol=1e-3)


def test_our_own_format_gives_back_what_was_saved(tmp_path) -> None:
    """Saved tracks come back equal in all their arrays."""
    tracks = [
        Track(
            3,
            np.array([1, 5]),
            np.array([[0, 0, 9, 9], [1, 1, 8, 8]], np.float32),
            np.array([0.5, 1], np.float32),
        ),
        Track(
            9, np.array([2]), np.array([[4, 4, 9, 19]], np.float32), np.array([0.25], np.float32)
        ),
    ]
    save_tracks(tmp_path / "a.npz", tracks)
    for a, b in zip(load_tracks(tmp_path / "a.npz").tracks, tracks, strict=True):
        assert a.person_id == b.person_id
        np.testing.assert_array_equal(a.frame_indices, b.frame_indices)
        np.testing.assert_array_equal(a.boxes_xyxy, b.boxes_xyxy)
        np.testing.assert_array_equal(a.confidences, b.confidences)


def test_an_old_file_pickled_under_numpys_other_module_name_is_read(tmp_path) -> None:
    """Files by numpy 1 and 2, with scalars and with pickle protocol 5, are read."""
    persons = np.array([one(person_id=np.int64(4), confidences=np.ones(3, np.float32))], object)
    content = pickle.dumps(persons, 3)
    swapped = content.replace(b"numpy._core", b"numpy.core")
    assert swapped != content
    for data in (content, swapped, pickle.dumps(persons, 5)):
        write_npz(tmp_path / "p.npz", "persons", object_array_bytes((1,), data))
        assert [t.person_id for t in load_tracks(tmp_path / "p.npz").tracks] == [4]


def object_array_bytes(shape, pickled: bytes) -> bytes:
    """An npy file of an object array with this shape and pickle."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "|O", "fortran_order": False, "shape": shape}
    )
    return buffer.getvalue() + pickled


def write_npz(path, name, data: bytes) -> None:
    """Write one array's bytes as an npz."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"{name}.npy", data)


class Evil:
    """An object that asks the reader of its pickle to call a function."""

    def __init__(self, call, *arguments):
        self.call = call
        self.arguments = arguments

    def __reduce__(self):
        return self.call, self.arguments


def test_code_in_a_track_file_is_not_run(tmp_path) -> None:
    """A file whose pickle calls a function is refused, and nothing is run."""
    marker = tmp_path / "was-run"
    for call, argument in (
        (os.system, f"touch {marker}"),
        (exec, f"open({str(marker)!r}, 'w')"),
        (eval, "1"),
    ):
        persons = [one(), {"person_id": Evil(call, argument)}]
        with pytest.raises(TracksError, match="nothing was run"):
            load_tracks(canonical(tmp_path / "evil.npz", persons))
    assert not marker.exists()


@pytest.mark.parametrize(
    "bomb",
    [
        Evil(np.ndarray, (10**11,)),
        Evil(np._core.multiarray._reconstruct, np.ndarray, (10**11,), b"b"),
        Evil(np.dtype, "V100000000000"),
        Evil(np._core.multiarray.scalar, np.dtype("O"), b"x"),
    ],
)
def test_a_declared_size_takes_no_memory(tmp_path, bomb) -> None:
    """A pickle that asks numpy for a huge array is refused."""
    with pytest.raises(TracksError):
        load_tracks(canonical(tmp_path / "bomb.npz", [{"person_id": bomb}]))


NDARRAY = b"cnumpy\nndarray\n"
POINTER_ARGUMENTS = b"K\x01\x85X\x01\x00\x00\x00OC\x08AAAAAAAA\x87"
"""The shape (1,), the number type "O", and eight bytes that would be the address of an object."""


@pytest.mark.parametrize(
    "array",
    [
        NDARRAY + POINTER_ARGUMENTS + b"R",
        NDARRAY + POINTER_ARGUMENTS + b"\x81",
        NDARRAY + b"M\xe8\x03\x85\x85R",
    ],
)
def test_a_pickle_that_calls_numpys_ndarray_is_refused(tmp_path, array) -> None:
    """A pickle that calls numpy's ndarray is refused, and no bytes become a pointer.

    It is read in a process of its own, which such a pointer would crash.
    """
    path = tmp_path / "evil.npz"
    write_npz(path, "persons", object_array_bytes((1,), b"\x80\x04" + array + b"."))
    done = run_program("load_track_file.py", path)
    assert done.returncode == 1, done.stderr
    assert "its pickle is malformed" in done.stderr or "cannot be read as npz" in done.stderr


FUNCTION = b"cnumpy.core.multiarray\n_reconstruct\n"


@pytest.mark.parametrize(
    "pickled",
    [
        FUNCTION + b".",
        b"(l" + FUNCTION + b"a.",
        NDARRAY + b".",
        b"(l" + NDARRAY + b"a.",
        FUNCTION + b"N(X\x0c\x00\x00\x00__defaults__K\x01d\x86b.",
        FUNCTION + b"(X\x01\x00\x00\x00aK\x01db.",
        NDARRAY + b"(X\x01\x00\x00\x00aK\x01db.",
    ],
)
def test_a_pickle_gets_nothing_that_can_be_called_or_changed(tmp_path, pickled) -> None:
    """A pickle that returns or changes what it may name is refused."""
    path = tmp_path / "p.npz"
    write_npz(path, "persons", object_array_bytes((1,), b"\x80\x02" + pickled))
    with pytest.raises(TracksError):
        pickle_guard.read_npz(path)


def test_shared_lists_that_stand_for_millions_of_items_are_refused(tmp_path) -> None:
    """Lists that share their items and stand for millions are refused."""
    boxes = [[0, 0, 1, 1]] * 500
    for _ in range(2):
        boxes = [boxes] * 500
    with pytest.raises(TracksError, match="more than 50000000 items"):
        load_tracks(canonical(tmp_path / "p.npz", [one() | {"bboxes": boxes}]))


def test_a_list_that_contains_itself_is_refused(tmp_path) -> None:
    """A list that contains itself is refused."""
    loop = []
    loop.append(loop)
    with pytest.raises(TracksError, match="expected arrays, lists, dicts and plain values"):
        load_tracks(canonical(tmp_path / "p.npz", [one() | {"bboxes": loop}]))


def plain(value) -> bool:
    """Whether a value is made of plain values and arrays of numbers alone."""
    if isinstance(value, dict):
        return plain(list(value.keys())) and plain(list(value.values()))
    if isinstance(value, list | tuple):
        return all(plain(member) for member in value)
    if isinstance(value, np.ndarray):
        return value.dtype.kind in "biufUS"
    return value is None or type(value) in (bool, int, float, str, bytes)


OPCODES = [
    FUNCTION, NDARRAY, b"cnumpy\ndtype\n", b"cnumpy.core.multiarray\nscalar\n",
    b"cnumpy.core.numeric\n_frombuffer\n",
    b"X\x02\x00\x00\x00f8", b"X\x02\x00\x00\x00O8", b"C\x08AAAAAAAA", b"K\x01", b"K\x00",
    b"(", b"t", b"l", b"d", b"R", b"b", b"\x81", b"o", b"N", b"a", b"e", b"s", b"u", b"0", b"2",
    b"q\x00", b"h\x00", b"\x85", b"\x86", b"\x87", b"}", b"]", b")", b"\x88",
]  # fmt: skip


@given(st.lists(st.sampled_from(OPCODES), max_size=40))
def test_a_pickle_of_admitted_opcodes_gives_plain_values_or_is_refused(
    tmp_path_factory, opcodes
) -> None:
    """Any sequence of admitted opcodes gives plain values or is refused."""
    path = tmp_path_factory.mktemp("fuzz") / "p.npz"
    write_npz(path, "persons", object_array_bytes((1,), b"\x80\x04" + b"".join(opcodes) + b"."))
    try:
        values = pickle_guard.read_npz(path)["persons"].tolist()
    except TracksError:
        return
    assert all(plain(value) for value in values)


def test_an_object_array_that_declares_a_huge_shape_takes_no_memory(tmp_path) -> None:
    """An object array that declares a huge shape is refused before numpy allocates it."""
    good = pickle.dumps(np.empty(1, object), 3)
    shape = pickle.dumps((10**11,), 3)[2:-3]  # the opcodes that build the tuple
    bad = good.replace(b"(K\x01K\x01\x85", b"(K\x01" + shape, 1)
    assert bad != good
    write_npz(tmp_path / "p.npz", "persons", object_array_bytes((1,), bad))
    with pytest.raises(TracksError, match="declares the shape"):
        load_tracks(tmp_path / "p.npz")


def test_a_header_that_declares_100_gigabytes_is_refused(tmp_path) -> None:
    """An npy header that declares 100 GB is refused."""
    buffer = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        buffer, {"descr": "<f4", "fortran_order": False, "shape": (25_000_000_000,)}
    )
    write_npz(tmp_path / "p.npz", "person_ids", buffer.getvalue())
    with pytest.raises(TracksError, match="declares the shape"):
        load_tracks(tmp_path / "p.npz")


def test_a_zip_bomb_is_refused(tmp_path, monkeypatch) -> None:
    """An npz member that unpacks to more than the limit is refused."""
    monkeypatch.setattr("streamproc.tracks.pickle_guard.MAX_TOTAL_BYTES", 1_000_000)
    write_npz(tmp_path / "p.npz", "person_ids", bytes(2_000_000))
    with pytest.raises(TracksError, match="unpacks to"):
        load_tracks(tmp_path / "p.npz")


def test_faults_in_rows_are_counted_and_the_rest_is_kept(tmp_path) -> None:
    """Wrong boxes are left out and counted by kind, and the rest makes a track."""
    nan = float("nan")
    boxes = [
        [1, 1, 9, 19],
        [nan, 1, 9, 19],
        [5, 5, 5, 30],
        [9, 9, 1, 1],
        [2, 2, 8, 18],
        [3, 3, 8, 18],
    ]
    persons = [
        one(
            7, [5, 4, 3, 2, 1, 1], boxes, confidences=np.array([nan, 1, 1, 1, 0.2, 0.9], np.float32)
        )
    ]
    tracks = load_tracks(canonical(tmp_path / "p.npz", persons))
    assert tracks.problems == {
        "boxes-not-finite": 1,
        "boxes-empty": 2,
        "frames-unsorted": 1,
        "boxes-duplicate": 1,
    }
    (track,) = tracks.tracks
    assert track.frame_indices.tolist() == [1, 5]
    assert track.boxes_xyxy[0].tolist() == [3, 3, 8, 18], (
        "of two boxes in a frame the more confident stays"
    )
    assert track.confidences.tolist() == pytest.approx([0.9, 1.0])


def test_a_person_id_given_twice_is_one_track(tmp_path) -> None:
    """Two entries with one id become one track, and are counted."""
    tracks = load_tracks(
        canonical(tmp_path / "p.npz", [one(1, [0, 1]), one(1, [5, 6]), one(2, [0])])
    )
    assert [(t.person_id, t.frame_indices.tolist()) for t in tracks.tracks] == [
        (1, [0, 1, 5, 6]),
        (2, [0]),
    ]
    assert tracks.problems == {"ids-duplicate": 1}


def test_frame_base_and_stride(tmp_path) -> None:
    """The first frame's number and the stride set which frames the boxes belong to."""
    path = mot(tmp_path / "a.mot.txt", "1,5,10,10,20,40,1", "3,5,10,10,20,40,1")
    assert load_tracks(path).tracks[0].frame_indices.tolist() == [0, 2]
    assert load_tracks(path, first_frame_number=0).tracks[0].frame_indices.tolist() == [1, 3]
    assert load_tracks(path, frame_stride=2).tracks[0].frame_indices.tolist() == [0, 4]
    late = load_tracks(path, first_frame_number=2)
    assert late.tracks[0].frame_indices.tolist() == [1]
    assert late.problems == {"frames-before-video": 1}


def test_mot_columns(tmp_path) -> None:
    """A MOT text's confidence, ignore mark and class are read from their columns.

    Confidence is -1 where unknown, and 0 marks a box of the truth that does not count.
    """
    path = mot(
        tmp_path / "a.txt",
        "# a comment",
        "",
        "1 1 0 0 10 20 -1 -1 -1 -1",
        "2,1,0,0,10,20,0,1",
        "3,1,0,0,10,20,.5,1,.9",
        "4,1,0,0,10,20,.5,2,.9",
        "5,2,0,0,10,20",
    )
    tracks = load_tracks(path)
    assert [(t.person_id, t.frame_indices.tolist()) for t in tracks.tracks] == [
        (1, [0, 2, 3]),
        (2, [4]),
    ]
    assert tracks.tracks[0].confidences.tolist() == [1, 0.5, 0.5]
    assert tracks.problems == {"boxes-marked-ignored": 1}
    only = load_tracks(path, object_class=1)
    assert [t.frame_indices.tolist() for t in only.tracks] == [[2]]
    assert only.problems == {"boxes-other-class": 3, "boxes-marked-ignored": 1}


def flat_version_3(path):
    """Write arrays as our own format has them, of a version that is not known."""
    return flat(path, **ROWS, frame_indices=np.zeros(3), format_version=np.int64(3))


def octets(path, content):
    """Write bytes, and return their file's path."""
    path.write_bytes(content)
    return path


ONE_BOX_FOR_TWO_FRAMES = one(1, [0, 1], [[0, 0, 1, 1]])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda p: mot(p / "a.txt", "1,2,3"), "line 1 is no MOT text"),
        (lambda p: mot(p / "a.txt", "1,1,0,0,5,5", "x,1,0,0,5,5"), "line 2 is no MOT text"),
        (lambda p: p / "missing.npz", "expected a track file, found nothing"),
        (lambda p: p, "expected a folder of track files"),
        (lambda p: canonical(p / "a.npz", [{"person_id": 1}]), "'frame_numbers' is missing"),
        (lambda p: canonical(p / "a.npz", ["x"]), "expected a dict"),
        (
            lambda p: canonical(p / "a.npz", [ONE_BOX_FOR_TWO_FRAMES]),
            "expected person number 0 as ids",
        ),
        (lambda p: canonical(p / "a.npz", [one("x")]), "expected a whole number as person_id"),
        (lambda p: canonical(p / "a.npz", [one(2**70)]), "larger than 64 bits"),
        (lambda p: flat(p / "a.npz", other=np.zeros(3)), "expected the key 'persons'"),
        (lambda p: flat(p / "a.npz", **ROWS, frame_indices=np.zeros(2)), "expected its arrays"),
        (lambda p: flat_version_3(p / "a.npz"), "version 3"),
        (lambda p: octets(p / "a.npz", b"not a zip"), "cannot be read as npz"),
        (lambda p: octets(p / "a.npz", b""), "cannot be read as npz"),
    ],
)
def test_a_bad_file_ends_in_one_line_that_names_it(tmp_path, make, text) -> None:
    """A file that cannot be read raises a TracksError of one line with its path."""
    path = make(tmp_path)
    with pytest.raises(TracksError, match=text) as caught:
        load_tracks(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def a_track(frames, box=(10, 10, 30, 60)):
    """A track of person 1 with the same box in these frames."""
    k = len(frames)
    return Track(1, np.array(frames), np.array([box] * k, np.float32), np.ones(k, np.float32))


def test_boxes_that_do_not_fit_the_video_are_counted_with_a_hint() -> None:
    """Boxes beyond the video or the picture are left out and counted, with a hint on the cause."""
    tracks = TrackSet((a_track([0, 5, 10]), a_track([1, 2], (700, 10, 720, 60))), source="t.npz")
    fitted = fit_to_video(tracks, frame_count=10, width=640, height=480)
    assert [t.frame_indices.tolist() for t in fitted.tracks] == [[0, 5]]
    assert fitted.problems == {"frames-beyond-video": 1, "boxes-outside-picture": 2}
    assert any("--first-frame-number 1" in hint for hint in fitted.hints)
    assert any("another size" in hint for hint in fitted.hints)


def test_tracks_of_another_video_are_refused_with_the_reason() -> None:
    """Tracks with no box within the video are refused with the reason."""
    tracks = TrackSet((a_track([500, 501]),), source="t.npz")
    with pytest.raises(
        TracksError, match=r"t\.npz: the tracks do not fit the video: boxes reach frame 501"
    ):
        fit_to_video(tracks, frame_count=10, width=640, height=480)


def test_no_person_at_all_is_no_fault() -> None:
    """An empty set of tracks fits any video."""
    assert fit_to_video(TrackSet(()), frame_count=10, width=64, height=48).tracks == ()


def test_track_files_beside_the_video_are_found_in_order(tmp_path) -> None:
    """Of the track files beside a video the most specific name is found."""
    video = tmp_path / "walk.mp4"
    assert find_track_file(video) is None
    for name in ("canonical_persons.npz", "walk.mot.txt", "walk.persons.npz"):
        (tmp_path / name).touch()
        assert find_track_file(video) == tmp_path / name


@given(st.binary(max_size=2000))
def test_any_bytes_as_a_track_file_give_tracks_or_one_line(tmp_path_factory, data) -> None:
    """Random bytes as a track file give tracks or an error of one line."""
    folder = tmp_path_factory.mktemp("fuzz")
    for name in ("a.npz", "a.txt"):
        (folder / name).write_bytes(data)
        try:
            load_tracks(folder / name)
        except TracksError as error:
            assert "\n" not in str(error)


@given(st.binary(max_size=300))
def test_any_pickle_inside_an_npz_gives_tracks_or_one_line(tmp_path_factory, data) -> None:
    """A random pickle in an npz raises a TracksError of one line."""
    path = tmp_path_factory.mktemp("fuzz") / "p.npz"
    write_npz(path, "persons", object_array_bytes((1,), b"\x80\x04" + data))
    with pytest.raises(TracksError) as caught:
        load_tracks(path)
    assert "\n" not in str(caught.value)


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_a_damaged_real_pickle_gives_tracks_or_one_line(tmp_path_factory, seed, flips) -> None:
    """A pickle with some bytes changed gives tracks or an error of one line."""
    path = tmp_path_factory.mktemp("fuzz") / "p.npz"
    rng = np.random.default_rng(seed)
    data = bytearray(pickle.dumps(np.array([one(), one(2)], object), 4))
    for at in rng.integers(0, len(data), flips):
        data[at] = rng.integers(0, 256)
    write_npz(path, "persons", object_array_bytes((2,), bytes(data)))
    try:
        load_tracks(path)
    except TracksError as error:
        assert "\n" not in str(error)


numbers = st.one_of(st.integers(-3, 60), st.sampled_from([float("nan"), float("inf"), -1e300, 2.5]))


@given(
    st.lists(st.tuples(numbers, numbers, numbers, numbers, numbers, numbers, numbers), max_size=30)
)
def test_any_numbers_give_tracks_that_keep_their_promises(tmp_path_factory, rows) -> None:
    """From any numbers come valid, ascending tracks, and each row left out is counted."""
    path = mot(
        tmp_path_factory.mktemp("fuzz") / "a.txt", *(",".join(map(str, row)) for row in rows)
    )
    try:
        tracks = load_tracks(path)
    except TracksError as error:
        assert re.search("no box is left|look normalised", str(error))
        return
    assert sum(tracks.problems.values()) - tracks.problems["frames-unsorted"] + sum(
        map(len, tracks.tracks)
    ) == len(rows)
    assert len({t.person_id for t in tracks.tracks}) == len(tracks.tracks)
    for track in tracks.tracks:
        assert (np.diff(track.frame_indices) > 0).all()
        assert track.frame_indices[0] >= 0
        assert np.isfinite(track.boxes_xyxy).all()
        assert (track.boxes_xyxy[:, 2:] > track.boxes_xyxy[:, :2]).all()
        assert ((track.confidences >= 0) & (track.confidences <= 1)).all()


def test_a_format_is_recognised_by_the_content_whatever_the_name(tmp_path) -> None:
    """An npz named as a text, and a text without an ending, are read as what they are."""
    npz = canonical(tmp_path / "a.npz", [one(3)]).rename(tmp_path / "a.txt")
    assert [track.person_id for track in load_tracks(npz).tracks] == [3]
    own = flat(tmp_path / "b.npz", **ROWS, frame_indices=np.arange(3)).rename(tmp_path / "b")
    assert files.recognise(Content(own)).name == "streamproc"
    assert files.recognise(Content(npz)).name == "canonical-persons"
    assert files.recognise(Content(mot(tmp_path / "tracks", "1,1,0,0,5,5"))).name == "mot"


def test_a_format_that_is_named_is_used_and_no_other(tmp_path) -> None:
    """A file of another format than the one named is refused in one line."""
    path = canonical(tmp_path / "a.npz", [one(3)])
    assert len(load_tracks(path, format_name="canonical-persons").tracks) == 1
    for name, text in (
        ("streamproc", "expected the key 'persons' (canonical_persons) or 'person_ids'"),
        ("mot", "is no MOT text"),
        ("kitti", "expected a format of tracks among canonical-persons, streamproc, deepstream"),
    ):
        with pytest.raises(TracksError, match=re.escape(text)):
            load_tracks(path, format_name=name)
