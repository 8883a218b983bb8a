"""Output files and the page's data: names, keys, order and digits."""

from __future__ import annotations

import base64
import json
import re
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from persons import candidate, duplicate_group

from streamproc.errors import MachineError
from streamproc.offline import page
from streamproc.offline.artifacts import artifacts
from streamproc.offline.directory import OutputDirectory
from streamproc.offline.report import GalleryReport, PersonEntry, VetoedPair

NOW = datetime(2026, 11, 24, 10, 30, tzinfo=timezone(timedelta(hours=1)))


def key_of(person_id):
    """The person key of an id of the report."""
    return person_id if isinstance(person_id, str) else f"clip/{person_id}"


def pair(id_a, id_b, similarity, **fields):
    """A candidate of two persons of the report."""
    return candidate(key_of(id_a), key_of(id_b), similarity, **fields)


def group(*ids):
    """A group of persons of the report."""
    return duplicate_group(*(key_of(person_id) for person_id in ids))


def person(person_id, **changes):
    """A person of the report, seen from frame 3 to frame 40."""
    values = {
        "id": person_id,
        "person_key": key_of(person_id),
        "video_name": "clip.mp4",
        "frames_tracked": 20,
        "first_frame_index": 3,
        "last_frame_index": 40,
        "first_seen_seconds": 0.3,
        "last_seen_seconds": 4.0,
        "crop_count": 8,
        "best_quality": 0.75,
    }
    return PersonEntry(**(values | changes))


def report(ids=(4, 1, 9), **changes):
    """A report on three persons.

    4 and 9 are alike (.95), 1 and 9 exactly at the threshold, 4 and 1 above it but vetoed.
    """
    similarity = np.array([[1, 0.8, 0.95], [0.8, 1, 0.7], [0.95, 0.7, 1]], np.float32)
    values = {
        "gallery_id": "clip",
        "title": "clip.mp4",
        "timestamp": NOW,
        "similarity_threshold": 0.7,
        "persons": tuple(person(i) for i in ids),
        "embedded_ids": ids,
        "embeddings": np.eye(3, 5, dtype=np.float32),
        "similarity": similarity,
        "candidates": (pair(ids[0], ids[2], 0.95),),
        "groups": (group(ids[0], ids[2]),),
        "vetoed_pairs": (VetoedPair((key_of(ids[0]), key_of(ids[1])), 0.8),),
        "person_events": tuple(b'{"person_id":%d}' % i for i in range(len(ids))),
        "model": {"name": "ours", "architecture": "osnet_x0_25", "weights_sha256": "ab" * 32},
        "run": {"out": Path("/tmp/out"), "seconds": np.float32(0.1)},
    }
    return GalleryReport(**(values | changes))


def without_similarity(**changes):
    """A report on a run without embeddings."""
    nothing = {
        "embedded_ids": (),
        "embeddings": None,
        "similarity": None,
        "candidates": (),
        "groups": (),
        "vetoed_pairs": (),
    }
    return report(**(nothing | {"model": None} | changes))


def written(folder, value):
    """Write a report into a folder, and return the folder."""
    with OutputDirectory(folder) as out:
        out.write_report(value)
        out.commit()
    return folder


def page_data(folder):
    """The data that the page in this folder holds."""
    text = (folder / "webp_viewer/person_selection.html").read_text()
    return json.loads(
        re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1]
    )


def listed(entry):
    """The person keys and the similarity of a pair on the page."""
    return (*(person["person_key"] for person in entry["persons"]), entry["similarity"])


def test_the_similarity_file_has_the_keys_that_were_promised(tmp_path):
    """similarity_matrix.json has exactly the documented keys, with rounded numbers."""
    text = (written(tmp_path, report()) / "similarity_matrix.json").read_text()
    assert json.loads(text) == {
        "matrix": [[1.0, 0.8, 0.95], [0.8, 1.0, 0.7], [0.95, 0.7, 1.0]],
        "person_ids": [4, 1, 9],
        "high_similarity_pairs": [[4, 9, 0.95], [4, 1, 0.8]],
        "candidates": [[4, 9, 0.95]],
        "vetoed_pairs": [[4, 1, 0.8]],
        "similarity_threshold": 0.7,
        "timestamp": "2026-11-24T09:30:00+00:00",
    }
    assert not re.search(r"\d\.\d{10}", text), "float64 noise"


def test_ids_of_a_pair_are_in_the_order_of_the_matrix(tmp_path):
    """A pair's ids are written in the matrix's order, whichever came first."""
    written(tmp_path, report(candidates=(pair(9, 4, 0.95),)))
    assert json.loads((tmp_path / "similarity_matrix.json").read_text())["candidates"] == [
        [4, 9, 0.95]
    ]


def test_arrays_are_written_as_they_are(tmp_path):
    """The npy files hold the report's float32 arrays unchanged."""
    value = report()
    written(tmp_path, value)
    for name, array in (
        ("similarity_matrix.npy", value.similarity),
        ("embeddings.npy", value.embeddings),
    ):
        read = np.load(tmp_path / name, allow_pickle=False)
        assert read.dtype == np.float32
        np.testing.assert_array_equal(read, array)


def test_the_embeddings_file_names_the_model(tmp_path):
    """embeddings.json holds the vectors by id, their length, the model and the time."""
    read = json.loads((written(tmp_path, report()) / "embeddings.json").read_text())
    assert read["embeddings"]["9"] == [0, 0, 1, 0, 0]
    assert (read["person_ids"], read["feature_dimension"], read["model"]["name"]) == (
        [4, 1, 9],
        5,
        "ours",
    )
    assert read["timestamp"] == "2026-11-24T09:30:00+00:00"


def test_ids_of_several_videos_are_texts(tmp_path):
    """In a gallery of several videos ids are texts such as a/4."""
    ids = ("a/4", "a/1", "b/9")
    read = json.loads((written(tmp_path, report(ids)) / "similarity_matrix.json").read_text())
    assert read["person_ids"] == list(ids)
    assert read["candidates"] == [["a/4", "b/9", 0.95]]


def test_candidates_and_persons_are_one_event_a_line(tmp_path):
    """The jsonl files hold one event a line, in order."""
    value = report()
    lines = (written(tmp_path, value) / "duplicate_candidates.jsonl").read_bytes()
    assert lines == value.candidates[0].to_json() + b"\n"
    lines = (tmp_path / "duplicate_groups.jsonl").read_bytes()
    assert lines == value.groups[0].to_json() + b"\n"
    lines = (tmp_path / "person_embeddings.jsonl").read_bytes()
    assert lines == b'{"person_id":0}\n{"person_id":1}\n{"person_id":2}\n'


def test_run_json_takes_paths_and_numpy_numbers(tmp_path):
    """run.json takes paths as text and numpy numbers as plain ones."""
    assert json.loads((written(tmp_path, report()) / "run.json").read_text()) == {
        "out": "/tmp/out",
        "seconds": 0.1,
    }


def test_without_embeddings_there_are_no_files_of_similarity(tmp_path):
    """Without embeddings only the events, the run and the page are written."""
    written(tmp_path, without_similarity(notices=("similarity was skipped: no weights",)))
    names = {
        path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*") if path.is_file()
    }
    assert names == {
        "duplicate_candidates.jsonl",
        "duplicate_groups.jsonl",
        "track_suspects.jsonl",
        "run.json",
        "webp_viewer/person_selection.html",
        *(
            f"webp_viewer/assets/{name}"
            for name in (
                "page.css",
                "cards.js",
                "heatmap.js",
                "review.js",
                "choose.js",
                "audit.js",
                "page.js",
            )
        ),
    }
    assert page_data(tmp_path)["notices"] == ["similarity was skipped: no weights"]


def test_a_gallery_of_no_persons_is_written(tmp_path):
    """A gallery without persons has an empty matrix and the vectors' length."""
    nothing = {
        "embeddings": np.zeros((0, 5), np.float32),
        "similarity": np.zeros((0, 0), np.float32),
    }
    written(tmp_path, without_similarity(persons=(), **nothing))
    assert json.loads((tmp_path / "similarity_matrix.json").read_text())["matrix"] == []
    assert json.loads((tmp_path / "embeddings.json").read_text())["feature_dimension"] == 5


@given(
    cosines=st.lists(st.floats(-1, 1, width=32), min_size=6, max_size=6),
    threshold=st.floats(-1, 1, width=32),
)
def test_high_pairs_are_all_those_above_the_threshold_in_order(cosines, threshold):
    """Each pair strictly above the threshold is there once, the most similar first.

    Of its two persons the one that is earlier in the matrix comes first.
    """
    similarity = np.eye(4, dtype=np.float32)
    similarity[np.triu_indices(4, 1)] = cosines
    similarity = np.triu(similarity, 1) + np.triu(similarity).T
    value = report(
        (1, 2, 3, 4),
        similarity=similarity,
        embeddings=np.eye(4, dtype=np.float32),
        candidates=(),
        vetoed_pairs=(),
        similarity_threshold=threshold,
    )
    pairs = json.loads(dict(artifacts(value))["similarity_matrix.json"])["high_similarity_pairs"]
    expected = {
        (i + 1, j + 1)
        for i, j in zip(*np.triu_indices(4, 1), strict=True)
        if similarity[i, j] > threshold
    }
    assert {(a, b) for a, b, _ in pairs} == expected
    assert len(pairs) == len(expected)
    values = [value for _, _, value in pairs]
    assert values == sorted(values, reverse=True)


def test_texts_cannot_leave_the_data_of_the_page(tmp_path):
    """A file name that ends a script element adds no element and is shown as it is."""
    nasty = "</script><!--<img onerror=alert(1)>$data.mp4"
    persons = (person(4, video_name=nasty), person(1), person(9))
    written(tmp_path, report(title=nasty, persons=persons, notices=(nasty,)))
    html = (tmp_path / "webp_viewer/person_selection.html").read_text()
    assert page_data(tmp_path)["persons"][0]["video"] == page_data(tmp_path)["title"] == nasty
    assert html.count("</script>") == 8
    assert "<img" not in html


def test_the_page_holds_the_matrix_in_few_bytes(tmp_path):
    """The page's matrix in 16 bits a number is right within 0.00005."""
    data = page_data(written(tmp_path, report()))
    cells = np.frombuffer(base64.b64decode(data["similarities"]), "<i2").reshape(3, 3)
    np.testing.assert_allclose(cells / 10000, report().similarity, atol=5.1e-5)
    assert [listed(entry) for entry in data["candidates"]] == [("clip/4", "clip/9", 0.95)]
    assert [listed(entry) for entry in data["vetoed"]] == [("clip/4", "clip/1", 0.8)]


def test_the_page_holds_candidates_as_they_are_on_the_wire(tmp_path):
    """Each field of a candidate on the page is that of the event, and persons keep their keys."""
    event = pair(4, 9, 0.95, probability=0.9, band="likely", calibration_id="c", time_gap_seconds=2)
    (shown,) = page_data(written(tmp_path, report(candidates=(event,))))["candidates"]
    on_the_wire = json.loads(event.to_json())
    assert shown.items() <= (on_the_wire | {"persons": shown["persons"]}).items()
    assert shown["persons"] == [{"person_key": "clip/4"}, {"person_key": "clip/9"}]
    assert {"similarity", "probability", "band", "time_gap_seconds"} <= shown.keys()


def test_the_likeliest_pair_comes_first_on_the_page(tmp_path):
    """The page's candidates are sorted by probability before similarity."""
    pairs = (
        pair(4, 9, 0.95, probability=0.3, band="uncertain"),
        pair(4, 1, 0.8, probability=0.9, band="likely"),
    )
    data = page_data(written(tmp_path, report(candidates=pairs, vetoed_pairs=())))
    assert [entry["band"] for entry in data["candidates"]] == ["likely", "uncertain"]


def test_the_page_asks_for_nothing_but_files():
    """The page's security policy allows no network address."""
    policy = re.search(
        r'Content-Security-Policy" content="([^"]*)"',
        (Path(page.__file__).parent / "page.html").read_text(),
    )
    assert "default-src 'none'" in policy[1]
    assert not re.search(r"https?:|\*", policy[1])
    assert "connect-src 'self'" in policy[1]  # where `streamproc review` serves it


def test_very_many_pairs_are_counted_but_not_all_shown(tmp_path, monkeypatch):
    """Above the limit only the most similar pairs are on the page, and all are counted."""
    monkeypatch.setattr(page, "_MAX_PAIRS_SHOWN", 1)
    data = page_data(
        written(tmp_path, report(candidates=(pair(4, 1, 0.8), pair(4, 9, 0.95)), vetoed_pairs=()))
    )
    assert [listed(entry) for entry in data["candidates"]] == [("clip/4", "clip/9", 0.95)]
    assert data["candidate_count"] == 2


def test_a_plotly_without_its_script_is_a_fault_of_the_machine(tmp_path, monkeypatch):
    """A missing plotly raises a MachineError that says to install it."""
    monkeypatch.setattr(page, "find_spec", lambda _name: None)
    with pytest.raises(MachineError, match="install plotly"):
        written(tmp_path, report())


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"timestamp": NOW.replace(tzinfo=None)}, "time zone"),
        ({"persons": (person(4), person(4), person(9), person(1))}, "twice"),
        ({"embedded_ids": (4, 1, 1)}, "twice"),
        ({"candidates": (pair(4, 77, 0.9),)}, "person has.*77"),
        ({"embeddings": None}, "together or not at all"),
        ({"embeddings": np.eye(2, dtype=np.float32)}, r"embeddings \(3, D\)"),
        ({"similarity": np.eye(2, dtype=np.float32)}, r"similarity \(3, 3\)"),
        ({"embeddings": np.full((3, 5), np.nan, np.float32)}, "not a number"),
    ],
)
def test_a_report_that_does_not_fit_together_is_refused(changes, text):
    """A report whose parts contradict each other raises a ValueError that says which."""
    with pytest.raises(ValueError, match=text):
        report(**changes)


def test_timestamps_are_utc_in_every_file(tmp_path):
    """The page's time is the report's in UTC."""
    written(tmp_path, report())
    assert page_data(tmp_path)["timestamp"] == NOW.astimezone(UTC).isoformat()
