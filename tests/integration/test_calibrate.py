"""`streamproc calibrate` as its users run it: a process, on clips and on made events."""

from __future__ import annotations

import json
import shutil
from itertools import combinations
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from persons import person, unit_vector
from processes import run_streamproc

from streamproc.decisions import ApartDecision, GroupDecision
from streamproc.events import CropInfo
from streamproc.gallery import load_curves
from streamproc.networks.manifest import package_file

DIM = 16
PEOPLE = 40
UNKNOWN = "c" * 64


def refused(done) -> str:
    """The one line of a usage mistake."""
    assert done.returncode == 2, (done.returncode, done.stderr)
    (line,) = done.stderr.splitlines()
    return line


def placed(event, lane, first_frame):
    """The person with crops in a lane of the picture, so that a truth can say who stands there."""
    box = (30.0 * lane, 0.0, 30.0 * lane + 10, 20.0)
    crops = [
        CropInfo(frame_index=first_frame + i, pts_seconds=0, box_xyxy=box, quality=1)
        for i in range(len(event.crops))
    ]
    return event.model_copy(update={"crops": crops})


def people_seen_twice(seed, *, video_id="v", gallery_id="g", weights=UNKNOWN, people=PEOPLE):
    """Tracks 2 i and 2 i + 1 are one person; all people are alike in that they are people."""
    rng = np.random.default_rng(seed)
    common = unit_vector(rng.normal(size=DIM))
    persons = []
    for i in range(people):
        centre = 1.8 * common + unit_vector(rng.normal(size=DIM))
        for half in (0, 1):
            middle = centre + rng.normal(0, 0.08, DIM)
            event = person(
                2 * i + half,
                middle,
                video_id=video_id,
                gallery_id=gallery_id,
                weights=weights,
                segments=[unit_vector(middle + rng.normal(0, 0.05, DIM)) for _ in range(4)],
                crops=int(rng.integers(1, 9)),
                similarity_threshold=0.7,
            )
            persons.append(placed(event, i, 100 * half))
    return persons


def folder_of(path, persons):
    """An output folder with these events."""
    path.mkdir(parents=True)
    lines = [event.to_json() + b"\n" for event in persons]
    (path / "person_embeddings.jsonl").write_bytes(b"".join(lines))
    return path


def truth_of(path, people=PEOPLE):
    """Person i + 1 stands in lane i, in all frames."""
    frames = (*range(8), *range(100, 108))
    rows = []
    for i in range(people):
        rows += [f"{frame + 1},{i + 1},{30 * i},0,10,20,1,1,1\n" for frame in frames]
    path.write_text("".join(rows))
    return path


def pairs_of(path, persons):
    """All pairs of persons as csv."""
    lines = []
    for a, b in combinations(persons, 2):
        is_same = a.person_id // 2 == b.person_id // 2
        lines.append(f"{a.person_key},{b.person_key},{int(is_same)}\n")
    path.write_text("".join(lines))
    return path


def decide_as_pairs(folder, persons):
    """Decide the same: each two tracks of one person, and everybody apart from everybody else."""
    said = {"gallery_id": persons[0].gallery_id, "decided_at": "2026-11-30T10:00:00Z"}
    keys = [person.person_key for person in persons]
    decisions = []
    for place in range(0, len(keys), 2):
        group = GroupDecision.make(**said, person_keys=keys[place : place + 2])
        decisions.append(group)
        if place + 2 < len(keys):
            apart = {"person_keys": keys[place : place + 1], "other_keys": keys[place + 2 :: 2]}
            decisions.append(ApartDecision.make(**said, **apart))
    lines = b"".join(decision.to_json() + b"\n" for decision in decisions)
    (folder / "decisions.jsonl").write_bytes(lines)


@pytest.fixture
def out(tmp_path):
    """An output folder of people who are each seen twice."""
    return folder_of(tmp_path / "out", people_seen_twice(1))


def test_a_curve_for_weights_that_had_none(out, tmp_path) -> None:
    """Metrics come on stdout, the curve and the diagram as files, and nothing beside them."""
    curve = tmp_path / "curve.json"
    plot = tmp_path / "plot.svg"
    truth = truth_of(tmp_path / "truth.txt")
    done = run_streamproc("calibrate", out, "--truth", truth, "-o", curve, "--plot", plot)
    assert done.returncode == 0, done.stderr
    assert "40 true and" in done.stderr
    assert "the package has no curve for these weights" in done.stderr
    assert f"--calibration {curve}" in done.stderr
    rows = [line.split("\t") for line in done.stdout.splitlines()]
    assert rows[0] == ["probability", "log loss", "calibration error", "by chance alone"]
    assert [row[0] for row in rows[1:]] == ["after, at arrival", "after, when closed"]
    assert all(0 <= float(value) < 0.5 for row in rows[1:] for value in row[1:])
    fitted = load_curves(curve)[UNKNOWN]
    assert fitted.arrival_coefficients[1] > 0
    assert fitted.closing_coefficients[1] > 0
    assert ET.parse(plot).getroot().tag.endswith("svg")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "curve.json",
        "out",
        "plot.svg",
        "truth.txt",
    ]


def test_truth_pairs_and_decisions_on_the_same_people_give_the_same_curve(out, tmp_path) -> None:
    """Labels by place, by pair, and by what a reviewer decided are the same labels."""
    decide_as_pairs(out, people_seen_twice(1))
    truth = ("--truth", truth_of(tmp_path / "truth.txt"))
    pairs = ("--pairs", pairs_of(tmp_path / "p.csv", people_seen_twice(1)))
    said, curves = [], []
    files = {"truth.json": truth, "pairs.json": pairs, "decisions.json": ("--decisions",)}
    for name, labels in files.items():
        done = run_streamproc("calibrate", out, *labels, "-o", tmp_path / name, "--json")
        said.append(json.loads(done.stdout))
        curves.append(load_curves(tmp_path / name)[UNKNOWN])
    assert [one["true_pairs"] for one in said] == [PEOPLE] * 3
    assert said[0]["wrong_pairs"] == said[1]["wrong_pairs"] == said[2]["wrong_pairs"] > 100
    for curve in curves[1:]:
        np.testing.assert_allclose(
            curve.closing_coefficients, curves[0].closing_coefficients, rtol=1e-6
        )
    assert said[1]["before"] is None


def test_decisions_of_several_folders_count_together_and_of_one_kind_are_refused(tmp_path) -> None:
    """A curve tells the same from different: what lacks is said in one line, with what to do."""
    folders = []
    for name, persons in (("v", people_seen_twice(1)), ("w", people_seen_twice(2, video_id="w"))):
        folders.append(folder_of(tmp_path / name, persons))
        decide_as_pairs(folders[-1], persons)
    command = ("calibrate", *folders, "--decisions", "-o", tmp_path / "curve.json", "--json")
    assert json.loads(run_streamproc(*command).stdout)["true_pairs"] == 2 * PEOPLE
    for folder in folders:
        path = folder / "decisions.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(line for line in lines if b'"group"' in line))
    assert f"all {2 * PEOPLE} pairs that were decided are the same" in refused(
        run_streamproc(*command)
    )


def test_videos_of_one_gallery_are_compared_with_each_other(tmp_path) -> None:
    """The gallery's folder and the folders of its videos, as replay leaves them, say the same."""
    persons = people_seen_twice(2)
    first = [person.model_copy() for person in persons if person.person_id % 2 == 0]
    second = [
        person.model_copy(update={"video_id": "w", "person_key": f"w/{person.person_id}"})
        for person in persons
        if person.person_id % 2
    ]
    folder_of(tmp_path / "lobby", [*first, *second])
    for name, own in (("v", first), ("w", second)):
        folder_of(tmp_path / "lobby" / name, own)
    pairs = pairs_of(tmp_path / "pairs.csv", [*first, *second])
    whole = run_streamproc(
        "calibrate", tmp_path / "lobby", "--pairs", pairs, "-o", "a.json", "--json", cwd=tmp_path
    )
    parts = run_streamproc(
        *("calibrate", tmp_path / "lobby" / "v", tmp_path / "lobby" / "w", "--pairs", pairs),
        *("-o", "b.json", "--json"),
        cwd=tmp_path,
    )
    assert json.loads(whole.stdout)["true_pairs"] == PEOPLE, whole.stderr
    assert whole.stdout == parts.stdout
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()


def test_too_few_pairs_are_refused_and_nothing_is_written(tmp_path) -> None:
    """Fewer than 10 pairs of a kind are a usage error, and no curve is written."""
    out = folder_of(tmp_path / "out", people_seen_twice(1, people=9))
    truth = truth_of(tmp_path / "truth.txt")
    done = run_streamproc("calibrate", out, "--truth", truth, "-o", tmp_path / "curve.json")
    assert "9 true and" in refused(done)
    assert "expected at least 10 of each" in done.stderr
    assert not (tmp_path / "curve.json").exists()


def test_few_pairs_are_called_few(tmp_path) -> None:
    """Fewer than 30 pairs of a kind give a curve and a note."""
    out = folder_of(tmp_path / "out", people_seen_twice(1, people=15))
    truth = truth_of(tmp_path / "truth.txt")
    done = run_streamproc("calibrate", out, "--truth", truth, "-o", tmp_path / "curve.json")
    assert done.returncode == 0
    assert "fewer than 30 pairs of a kind" in done.stderr


@pytest.fixture
def replayed(sample, tmp_path):
    """The sample clip and its output folder: persons 1 and 6 are the same."""
    for name in ("sample.mp4", "sample.persons.npz"):
        shutil.copy(sample / name, tmp_path)
    done = run_streamproc(
        "replay", "sample.mp4", "--out", "out", "--no-animations", "-q", cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr
    return tmp_path


def test_the_sample_clip_has_too_few_people_and_says_so(replayed, sample_truth) -> None:
    """One true pair is no basis for a curve, and the message counts it."""
    done = run_streamproc(
        "calibrate", "out", "--truth", sample_truth, "-o", "curve.json", cwd=replayed
    )
    assert "1 true and" in refused(done)
    assert not (replayed / "curve.json").exists()


def test_replay_uses_the_curve_by_flag_and_by_environment(replayed) -> None:
    """A curve of the user's goes before the package's for the same weights."""
    sha256 = json.loads((replayed / "out" / "run.json").read_text())["model"]["weights_sha256"]
    package = load_curves(package_file("calibration.json"))[sha256].to_json()
    (replayed / "mine.json").write_text(
        json.dumps({"curves": {sha256: package | {"arrival": [0.0, 1.0]}}})
    )
    mine = load_curves(replayed / "mine.json")[sha256].calibration_id
    path = str(replayed / "mine.json")
    replay = ("replay", "sample.mp4", "--no-animations", "--json", "-q")
    variable = {"STREAMPROC_CLUSTERING__CALIBRATION": path}
    for done in (
        run_streamproc(*replay, "--calibration", path, cwd=replayed),
        run_streamproc(*replay, cwd=replayed, env=variable),
    ):
        (candidate,) = json.loads(done.stdout)["candidates"]
        assert candidate["calibration_id"] == mine


@pytest.mark.parametrize("content", [None, "{}", '{"curves": {"a": {}}}', "no json"])
def test_a_bad_calibration_file_is_one_line(replayed, content) -> None:
    """A calibration file that cannot be read is a usage error in one line."""
    if content is not None:
        (replayed / "mine.json").write_text(content)
    done = run_streamproc(
        "replay", "sample.mp4", "--out", "new", "-q", "--calibration", "mine.json", cwd=replayed
    )
    assert "clustering.calibration: mine.json: expected" in refused(done)
    assert not (replayed / "new").exists()


@pytest.mark.slow
def test_pets_from_replay_to_replay(shared, tmp_path) -> None:
    """Twelve true pairs move the package's curve little, and replay takes the new file."""
    data = shared / "data"
    tracks = data / "persons" / "PETS09-S2L1.canonical_persons.npz"
    # At 0.70 the package's weights leave too few wrong pairs to fit on.
    flags = ("--persons", tracks, "--no-animations", "--threshold", "0.6", "-q")
    replay = ("replay", data / "videos" / "vtest.avi", *flags)
    assert run_streamproc(*replay, "--out", "out", cwd=tmp_path).returncode == 0
    who = json.loads((data / "gt" / "PETS09-S2L1.identity.json").read_text())["track_to_person"]
    text = (tmp_path / "out" / "person_embeddings.jsonl").read_text()
    lines = []
    for a, b in combinations(map(json.loads, text.splitlines()), 2):
        is_same = who[str(a["person_id"])] == who[str(b["person_id"])]
        lines.append(f"{a['person_key']},{b['person_key']},{int(is_same)}\n")
    (tmp_path / "pairs.csv").write_text("".join(lines))
    files = ("--pairs", "pairs.csv", "-o", "c.json", "--plot", "p.svg")
    done = run_streamproc("calibrate", "out", *files, "--json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["labelled_pairs"] == 171
    assert said["true_pairs"] == 12
    losses = [said[side]["when closed"]["log_loss"] for side in ("before", "after")]
    assert abs(losses[1] - losses[0]) < 0.05
    assert said["gain"][0] <= said["gain"][1] <= said["gain"][2]
    again = ("--out", "again", "--json", "--calibration", "c.json")
    candidates = json.loads(run_streamproc(*replay, *again, cwd=tmp_path).stdout)["candidates"]
    assert {each["calibration_id"] for each in candidates} == {said["calibration_id"]}


# Bad input: one line, exit code 2.


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            ("none",),
            "none: expected a folder that `streamproc replay` wrote, with person_embeddings.jsonl",
        ),
        ((".",), "run replay again"),
        (("broken",), "broken/person_embeddings.jsonl: line 2: person-embeddings"),
        (("empty",), "got no person"),
        (("out", "others"), "by the same weights in all folders, got bbbbbbbb, cccccccc"),
    ],
)
def test_folders_that_cannot_be_used(out, tmp_path, arguments, words) -> None:
    """A folder that replay did not write, or of other weights, is a usage error in one line."""
    folder_of(tmp_path / "others", people_seen_twice(2, weights="b" * 64, video_id="w"))
    folder_of(tmp_path / "empty", [])
    lines = (out / "person_embeddings.jsonl").read_text().splitlines()
    folder_of(tmp_path / "broken", [])
    (tmp_path / "broken" / "person_embeddings.jsonl").write_text(f"{lines[0]}\n{lines[1][:99]}\n")
    (tmp_path / "pairs.csv").write_text("v/0,v/1,1\n")
    done = run_streamproc(
        "calibrate", *arguments, "--pairs", "pairs.csv", "-o", "curve.json", cwd=tmp_path
    )
    assert words in refused(done)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("v/0,v/1\n", "line 1: expected person_key,person_key,0 or 1, got 'v/0,v/1'"),
        ("v/0,v/1,1\n\nv/0,v/2,yes\n", "line 3: expected person_key,person_key,0 or 1"),
        ("v/0,v/999,1\n", "line 1: no person 'v/999' in the folders"),
        ("v/0,v/0,1\n", "expected two persons of one gallery, but 'v/0' and 'v/0' are the same"),
        ("v/0,w/0,1\n", "are of different galleries"),
        (
            "v/0,v/1,1\nv/1,v/0,0\n",
            "line 2: 'v/1' and 'v/0' are said to be one person and to be two",
        ),
        (
            "v/0,v/1,1\nv/1,v/2,1\nv/0,v/2,0\n",
            "'v/0' and 'v/2' are two persons, and by way of others one",
        ),
        ('v/0,"v/1,1\n', "expected lines of person_key,person_key,0 or 1 ("),
        ("\udcff\n", "expected lines of person_key,person_key,0 or 1 ("),
        (None, "expected lines of person_key,person_key,0 or 1 ("),
        ("", "0 true and 0 wrong pairs above the similarity threshold"),
    ],
)
def test_pairs_that_cannot_be_used(out, tmp_path, content, words) -> None:
    """A pairs file with a mistake is a usage error that names the line or the persons."""
    folder_of(tmp_path / "other", people_seen_twice(2, video_id="w", gallery_id="h"))
    if content is not None:
        (tmp_path / "pairs.csv").write_bytes(content.encode("utf-8", "surrogateescape"))
    files = ("--pairs", "pairs.csv", "-o", "curve.json")
    assert words in refused(
        run_streamproc("calibrate", out, tmp_path / "other", *files, cwd=tmp_path)
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "expected one of --truth, one for each folder, --pairs and --decisions"),
        (("--truth", "t.txt", "--pairs", "p.csv"), "expected one of --truth"),
        (
            ("--truth", "t.txt", "--truth", "t.txt"),
            "expected one --truth for each of the 1 folders, got 2",
        ),
        (("--truth", "none.txt"), "--truth none.txt: expected a track file"),
    ],
)
def test_labels_that_do_not_fit_the_folders(out, tmp_path, arguments, words) -> None:
    """Labels must be one --truth for each folder, or --pairs."""
    truth_of(tmp_path / "t.txt")
    assert words in refused(
        run_streamproc("calibrate", out, *arguments, "-o", "curve.json", cwd=tmp_path)
    )


def test_a_truth_is_of_one_video(tmp_path) -> None:
    """--truth with a folder of two videos is refused, and the message names what to do."""
    persons = [*people_seen_twice(1), *people_seen_twice(2, video_id="w")]
    both = folder_of(tmp_path / "both", persons)
    truth = truth_of(tmp_path / "t.txt")
    done = run_streamproc("calibrate", both, "--truth", truth, "-o", "curve.json", cwd=tmp_path)
    assert "give its subfolders, or --pairs" in refused(done)


def test_a_file_that_cannot_be_written_is_a_failure(out, tmp_path) -> None:
    """A curve that cannot be written is exit code 1, not a usage error."""
    (tmp_path / "file").write_text("")
    truth = truth_of(tmp_path / "t.txt")
    done = run_streamproc(
        "calibrate", out, "--truth", truth, "-o", tmp_path / "file" / "curve.json"
    )
    assert done.returncode == 1
    assert "cannot be written" in done.stderr
