"""Track files as tools write them: each format is recognised, and read as it is meant."""

from __future__ import annotations

import gzip
import json
from typing import get_args

import numpy as np
import pytest
import track_writers
from hypothesis import given
from hypothesis import strategies as st

from streamproc.errors import TracksError
from streamproc.tracks import ReadOptions, files, fit_to_video, load_tracks, read_tracks
from streamproc.tracks.content import MAX_LINE_BYTES, Content
from streamproc.types import Track, TrackFormatName

SIZE = (640, 480)
KEYS = st.sampled_from(
    [
        "images",
        "annotations",
        "tracks",
        "features",
        "frame",
        "bounds",
        "id",
        "frame_id",
        "bbox",
        "x_min",
        "tracker_id",
        "frame_index",
        "image_id",
        "track_id",
        "categories",
    ]
)


def _nested(children):
    return st.lists(children, max_size=4) | st.dictionaries(KEYS, children, max_size=5)


def some_tracks() -> tuple[Track, ...]:
    """Two tracks, the second with a pause."""

    def track(person_id, frames, left):
        boxes = [[left + frame, 20.5, left + frame + 30, 90.25] for frame in frames]
        ones = np.ones(len(frames), np.float32)
        return Track(person_id, np.array(frames), np.array(boxes, np.float32), ones)

    return (track(3, [0, 1, 2, 3], 100), track(70, [1, 2, 6], 400))


def text(path, *lines):
    """Write lines, and return the path."""
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("name", track_writers.WRITERS)
def test_each_format_is_recognised_and_gives_the_same_tracks(tmp_path, name) -> None:
    """A file or folder in each format, as its tool writes it, gives the tracks it was made of."""
    tracks = some_tracks()
    path = track_writers.WRITERS[name](tmp_path, tracks, SIZE)
    assert files.recognise(Content(path)).name == name
    read = fit_to_video(load_tracks(path), frame_count=10, width=SIZE[0], height=SIZE[1])
    assert read.problems == {}
    assert [track.person_id for track in read.tracks] == [3, 70]
    for found, expected in zip(read.tracks, tracks, strict=True):
        np.testing.assert_array_equal(found.frame_indices, expected.frame_indices)
        np.testing.assert_allclose(found.boxes_xyxy, expected.boxes_xyxy, atol=0.01)


def test_events_and_flags_name_the_formats_that_are_registered() -> None:
    """The names on the wire are those of the registry."""
    names = {track_format.name for track_format in files.FORMATS}
    assert names == set(get_args(TrackFormatName))


@pytest.mark.parametrize(
    "encode",
    [
        lambda data: b"\xef\xbb\xbf" + data,
        lambda data: data.decode().encode("utf-16"),
        lambda data: data.decode().encode("utf-16-le"),
        lambda data: data.decode().encode("utf-16-be"),
        gzip.compress,
        lambda data: data.replace(b",", b";"),
        lambda data: data.replace(b",", b"\t"),
        lambda data: data.replace(b",", b", "),
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: b"frame,id,bb_left,bb_top,bb_width,bb_height,conf\n" + data,
        lambda data: b"# a comment\n\n" + data,
    ],
)
def test_mot_text_is_read_however_a_tool_encodes_it(tmp_path, encode) -> None:
    """Marks, UTF-16, gzip, other delimiters, a header line and comments change nothing."""
    path = tmp_path / "a.txt"
    path.write_bytes(encode(b"1,4,10,20,30,40,0.5\n2,4,11,20,30,40,\n"))
    (track,) = load_tracks(path).tracks
    assert track.frame_indices.tolist() == [0, 1]
    assert track.boxes_xyxy.tolist() == [[10, 20, 40, 60], [11, 20, 41, 60]]
    assert track.confidences.tolist() == [0.5, 1]


def test_a_header_says_which_column_is_which(tmp_path) -> None:
    """Columns in another order, and corners, are read by the names in the header."""
    path = text(tmp_path / "a.csv", "track_id,frame,x1,y1,x2,y2", "7,3,10,20,40,60")
    (track,) = load_tracks(path).tracks
    assert (track.person_id, track.frame_indices.tolist()) == (7, [2])
    assert track.boxes_xyxy.tolist() == [[10, 20, 40, 60]]


def test_an_empty_field_is_a_missing_value_and_the_others_keep_their_place(tmp_path) -> None:
    """A row without an id is left out and counted, and one without a confidence is kept."""
    path = text(
        tmp_path / "a.txt",
        "1,5,10,20,30,40,0.5,1,0.8",
        "2,,474,166,31.03,75.17,87,1,0.8",
        "3,5,10,20,30,40,,1,0.8",
        "4,5,,20,30,40,1,1,0.8",
    )
    tracks = load_tracks(path, object_class=1)
    assert [(t.person_id, t.frame_indices.tolist()) for t in tracks.tracks] == [(5, [0, 2])]
    assert tracks.problems == {"ids-missing": 1, "boxes-not-finite": 1}


def test_ids_of_64_bits_stay_what_they_are(tmp_path) -> None:
    """Neighbouring ids at both ends of 64 bits are different persons, in text and in npz."""
    ids = [-(2**63), -(2**63) + 1, 2**53, 2**53 + 1, 2**63 - 2, 2**63 - 1]
    rows = [f"1,{person_id},10,20,30,40,1" for person_id in ids]
    path = text(tmp_path / "a.txt", *rows)
    slow = text(tmp_path / "b.txt", *rows, "2,,10,20,30,40,1")
    npz = tmp_path / "c.npz"
    boxes = np.array([[10, 20, 40, 60]] * len(ids), np.float32)
    np.savez(npz, person_ids=np.array(ids), frame_indices=np.zeros(len(ids)), boxes_xyxy=boxes)
    for file in (path, slow, npz):
        assert [track.person_id for track in load_tracks(file).tracks] == ids


def test_an_id_that_64_bits_do_not_hold_is_counted_under_that_name(tmp_path) -> None:
    """Ids beyond 64 bits, of thousands of digits, or not whole, are left out by their own names."""
    path = text(
        tmp_path / "a.txt",
        "1,1,10,20,30,40,1",
        f"1,{2**63},10,20,30,40,1",
        f"1,{'9' * 5000},10,20,30,40,1",
        "1,1.5,10,20,30,40,1",
        "1,-1,10,20,30,40,1",
        "1700000000000,1,10,20,30,40,1",
        "1.5,1,10,20,30,40,1",
    )
    assert load_tracks(path).problems == {
        "ids-too-large": 2,
        "ids-not-whole": 1,
        "ids-missing": 1,
        "frame-numbers-too-large": 1,
        "frame-numbers-not-whole": 1,
    }


def test_boxes_that_diverged_are_left_out(tmp_path) -> None:
    """A finite box of 1e16 pixels, or of many pictures, is left out and counted."""
    path = text(
        tmp_path / "a.txt",
        "1,1,100,100,50,120,0.9",
        "1,2,200,100,1e16,1e16,0.9",
        "2,1,100,100,50000,120,0.9",
    )
    tracks = load_tracks(path)
    assert tracks.problems == {"boxes-diverged": 1}
    fitted = fit_to_video(tracks, frame_count=5, width=640, height=480)
    assert fitted.problems == {"boxes-diverged": 2}
    assert [len(track) for track in fitted.tracks] == [1]


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        (["1,1,10,20,30,40,0"], r"1 box ignored \(confidence 0\)"),
        (["1,-1,10,20,30,40,1"], r"1 box ignored \(no id"),
        (["1700000000000,1,10,20,30,40,1"], "a frame number that no video reaches"),
        (["1,1,0.1,0.2,0.3,0.4,1"], "look normalised.*--normalised"),
        (["1;1;10,5;20,5;30,5;40,5;1"], "line 1 is no MOT text.*'10,5' has a decimal comma"),
        (["1 1 10,5 20,5 30,5 40,5 1"], "'10,5' has a decimal comma"),
        (["1,1_9,10,20,30,40,1"], "'1_9' is no number"),
        (["0,1,10,20,30,40,1"], "--first-frame-number 0"),
    ],
)
def test_a_file_of_which_nothing_is_left_is_refused_with_the_reason(
    tmp_path, lines, reason
) -> None:
    """Where no box can be used, the error says why and what would help."""
    with pytest.raises(TracksError, match=reason) as caught:
        load_tracks(text(tmp_path / "a.txt", *lines))
    assert "\n" not in str(caught.value)


def test_corners_given_as_sizes_and_the_reverse_are_recognised(tmp_path) -> None:
    """The error or note names the flag that mends it, and with the flag the boxes are right."""
    rows = [(frame, 100 + 10 * frame, 50, 130 + 10 * frame, 150) for frame in range(1, 41)]
    corners = text(tmp_path / "a.txt", *(f"{f},1,{a},{b},{c},{d}" for f, a, b, c, d in rows))
    fitted = fit_to_video(load_tracks(corners), frame_count=99, width=640, height=480)
    assert any("try --boxes xyxy" in hint for hint in fitted.hints)
    (track,) = load_tracks(corners, boxes="xyxy").tracks
    assert track.boxes_xyxy[0].tolist() == [110, 50, 140, 150]
    npz = tmp_path / "b.npz"
    sizes = np.array([[a, b, c - a, d - b] for _, a, b, c, d in rows], np.float32)
    np.savez(npz, person_ids=np.ones(40), frame_indices=np.arange(40), boxes_xyxy=sizes)
    with pytest.raises(TracksError, match="try --boxes xywh"):
        load_tracks(npz)
    assert load_tracks(npz, boxes="xywh").tracks[0].boxes_xyxy[0].tolist() == [110, 50, 140, 150]


def test_normalised_boxes_become_pixels_of_the_video(tmp_path) -> None:
    """With --normalised and --boxes a MOT text of shares is scaled to the picture."""
    path = text(tmp_path / "a.txt", "1,1,0.5,0.5,0.25,0.5,1")
    tracks = load_tracks(path, is_normalised=True, boxes="cxcywh")
    fitted = fit_to_video(tracks, frame_count=1, width=640, height=480)
    assert fitted.tracks[0].boxes_xyxy.tolist() == [[240, 120, 400, 360]]
    assert tracks.identity != tracks.sha256, "the same file read otherwise is another run"


def test_six_columns_of_ultralytics_are_asked_for(tmp_path) -> None:
    """Without confidences the sixth column may be either; the format's name says which."""
    (tmp_path / "v_1.txt").write_text("0 0.5 0.5 0.25 0.5 7\n")
    (tmp_path / "v_2.txt").write_text("0 0.5 0.5 0.25 0.5\n")
    with pytest.raises(TracksError, match=r"six columns.*--tracks-format ultralytics-ids"):
        load_tracks(tmp_path)
    tracks = load_tracks(tmp_path, format_name="ultralytics-ids")
    assert [track.person_id for track in tracks.tracks] == [7]
    assert tracks.problems == {"ids-missing": 1}


def test_labels_of_two_videos_are_not_mixed(tmp_path) -> None:
    """A folder with files of two videos is refused, naming both."""
    for stem in ("a", "b"):
        (tmp_path / f"{stem}_1.txt").write_text("0 0.5 0.5 0.25 0.5 0.9 7\n")
    with pytest.raises(TracksError, match=r"several videos.*'a'.*'b'"):
        load_tracks(tmp_path)


def test_a_class_is_kept_by_its_name_or_number(tmp_path) -> None:
    """Several classes are said; one can be kept."""
    rows = "-1 -1 -1 -1 -1 -1 -1"
    path = text(
        tmp_path / "a.txt",
        f"0 1 Pedestrian 0 0 -10 10 20 30 40 {rows}",
        f"0 2 Car 0 0 -10 10 20 30 40 {rows}",
        f"0 -1 DontCare -1 -1 -10 10 20 30 40 {rows}",
    )
    everything = load_tracks(path)
    assert everything.problems == {"ids-missing": 1}
    assert any("several classes" in hint for hint in everything.hints)
    only = load_tracks(path, object_class="pedestrian")
    assert [track.person_id for track in only.tracks] == [1]
    assert only.problems == {"boxes-other-class": 2}


def cvat(path, body):
    """Write CVAT's XML with these elements, and return the path."""
    path.write_text(f"<?xml version='1.0'?>\n<annotations>{body}</annotations>")
    return path


def test_boxes_between_cvats_key_frames_are_interpolated(tmp_path) -> None:
    """A person moves in a straight line between key frames, and is gone from `outside` on."""
    box = '<box frame="{}" outside="{}" keyframe="1" xtl="{}" ytl="10" xbr="{}" ybr="60"/>'
    keys = [box.format(0, 0, 0, 20), box.format(4, 0, 8, 28), box.format(6, 1, 8, 28)]
    keys.append(box.format(9, 0, 50, 70))
    path = cvat(tmp_path / "a.xml", f'<track id="5" label="person">{"".join(keys)}</track>')
    (track,) = load_tracks(path).tracks
    assert track.frame_indices.tolist() == [0, 1, 2, 3, 4, 5, 9]
    assert track.boxes_xyxy[:, 0].tolist() == [0, 2, 4, 6, 8, 8, 50]


def test_key_frames_far_apart_take_no_memory(tmp_path) -> None:
    """Two key frames with a million million frames between them are refused."""
    box = '<box frame="{}" outside="0" xtl="0" ytl="0" xbr="9" ybr="9"/>'
    body = f'<track id="5" label="p">{box.format(0)}{box.format(10**12)}</track>'
    with pytest.raises(TracksError, match="between its key frames are more than"):
        load_tracks(cvat(tmp_path / "a.xml", body))


@pytest.mark.parametrize(
    "declaration",
    [
        '<!DOCTYPE a [<!ENTITY x "yyyyyyyyyy"><!ENTITY z "&x;&x;&x;&x;">]>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]>',
        '<!DOCTYPE a SYSTEM "http://127.0.0.1:9/a.dtd">',
    ],
)
def test_entities_in_xml_are_neither_expanded_nor_fetched(tmp_path, declaration) -> None:
    """A document type is refused before anything that it names is read."""
    path = tmp_path / "a.xml"
    path.write_text(f"<?xml version='1.0'?>{declaration}<annotations>&x;</annotations>")
    with pytest.raises(TracksError, match="a document type is not admitted"):
        load_tracks(path)


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("a.json", '{"images": [{"id": 1}], "annotations": []}', "images with id and frame_id"),
        ("a.json", "[" * 100_000, "cannot be read as JSON"),
        ("a.json", '[{"x_min": 1, "tracker_id": 2}]', "the frame's number from 0 as custom data"),
        ("a.json", '{"tracks": {"1": {"features": 3}}}', "expected tracks with id"),
        ("a.json", '{"some": "thing"}', "is not recognised: name it with --tracks-format"),
        ("a.xml", "<annotations><track/></annotations>", "line 1: expected track id"),
        ("a.xml", "<annotations>", "cannot be read as XML"),
        ("a.txt", "x" * (MAX_LINE_BYTES + 1), "a line has more than"),
        ("a.txt.gz", "\x1f\x8b\x08", "cannot be unpacked as gzip"),
    ],
)
def test_what_is_no_track_file_is_refused_in_one_line(tmp_path, name, content, expected) -> None:
    """A malformed file of each kind is named with what was expected."""
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TracksError, match=expected) as caught:
        load_tracks(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.recursive(st.none() | st.integers() | st.text(max_size=5), _nested, max_leaves=12))
def test_any_json_gives_tracks_or_one_line(tmp_path_factory, document) -> None:
    """Whatever JSON holds, it gives tracks or an error of one line, in each format of JSON."""
    path = tmp_path_factory.mktemp("fuzz") / "a.json"
    path.write_text(json.dumps(document))
    for name in (None, "coco-vid", "dive-json", "supervision-json"):
        try:
            load_tracks(path, format_name=name)
        except TracksError as error:
            assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("first_frame_number", 10**20),
        ("first_frame_number", -(10**20)),
        ("frame_stride", 10**20),
        ("frame_stride", 0),
    ],
)
def test_numbers_of_frames_are_bounded(tmp_path, option, value) -> None:
    """A first frame or stride that no video has is refused in one line."""
    path = text(tmp_path / "a.txt", "1,1,10,20,30,40")
    with pytest.raises(TracksError, match="expected a"):
        load_tracks(path, **{option: value})


def test_a_negative_stride_in_an_npz_is_refused(tmp_path) -> None:
    """The stride that an npz names is bounded like the flag."""
    path = tmp_path / "a.npz"
    box = np.array([[0, 0, 9, 9]])
    np.savez(path, person_ids=[1], frame_indices=[5], boxes_xyxy=box, frame_stride=np.int64(-1))
    with pytest.raises(TracksError, match="expected a frame stride from 1 to 1000000, got -1"):
        load_tracks(path)


def test_a_format_for_folders_is_not_used_for_a_file(tmp_path) -> None:
    """Naming a folder's format for a file is refused in one line."""
    path = text(tmp_path / "a.txt", "1,1,10,20,30,40")
    with pytest.raises(TracksError, match="expected a folder for the format ultralytics"):
        read_tracks(path, ReadOptions(format_name="ultralytics"))
