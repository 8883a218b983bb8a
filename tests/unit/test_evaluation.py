"""Evaluation: pairs against the truth, and IDF1 before and after merging."""

from __future__ import annotations

import json
import shutil
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from scenes import SEEDS, drawn_scene

from streamproc.cli import cli
from streamproc.offline.evaluation import assign, evaluate
from streamproc.tracks import save_tracks
from streamproc.types import Track


def track(person_id, frames, x=0.0):
    """A track with one box of 10x20 at `x` in all frames."""
    frames = np.array(list(frames), np.int64)
    boxes = np.tile(np.array([x, 0, x + 10, 20], np.float32), (len(frames), 1))
    return Track(person_id, frames, boxes, np.ones(len(frames), np.float32))


TRUTH = [track(1, range(20)), track(2, range(20), x=100)]
SPLIT = [track(10, range(10)), track(11, range(10, 20)), track(20, range(20), x=100)]


def test_merging_the_two_halves_of_a_person_makes_the_tracks_whole():
    """Merging both halves of a person raises IDF1 to 1, and a wrong pair lowers it."""
    found = evaluate(SPLIT, TRUTH, [(10, 11, 0.9), (10, 20, 0.3)], [0.0, 0.5, 0.95])
    assert found.true_pairs == 1
    assert found.idf1 == pytest.approx(2 * 30 / 80)
    assert [(row.candidates, row.precision, row.recall) for row in found.scored] == [
        (2, 0.5, 1.0),
        (1, 1.0, 1.0),
        (0, None, 0.0),
    ]
    assert [row.idf1 for row in found.scored] == pytest.approx([2 * 20 / 80, 1.0, 2 * 30 / 80])


def test_a_track_that_lies_on_nobody_is_counted_and_is_nobodys_duplicate():
    """A track on no true person is counted, and a pair with it is wrong."""
    found = evaluate([*SPLIT, track(30, range(20), x=300)], TRUTH, [(20, 30, 0.9)], [0.5])
    assert found.tracks_without_person == 1
    assert found.scored[0].precision == 0


def test_boxes_must_overlap_by_half():
    """A box shifted by 3 of its 10 pixels matches, and one shifted by 4 does not."""
    assert evaluate([track(1, range(20), x=3)], TRUTH, [], []).idf1 == pytest.approx(2 * 20 / 60)
    assert evaluate([track(1, range(20), x=4)], TRUTH, [], []).idf1 == 0


def test_nothing_at_all_is_no_error():
    """Without tracks and truth the recall is unknown."""
    assert evaluate([], [], [], [0.5]).scored[0].recall is None


@given(st.integers(1, 5), st.integers(0, 2), st.data())
def test_the_assignment_is_the_cheapest(n, more, data):
    """The assignment costs as little as the best of all permutations."""
    values = st.lists(st.integers(-9, 9), min_size=n + more, max_size=n + more)
    costs = np.array(data.draw(st.lists(values, min_size=n, max_size=n)))
    chosen = assign(costs)
    assert sorted(chosen) == list(range(n))
    assert len(set(chosen.values())) == n
    cheapest = min(
        sum(costs[i, j] for i, j in enumerate(columns))
        for columns in permutations(range(n + more), n)
    )
    assert sum(costs[i, j] for i, j in chosen.items()) == cheapest


@pytest.fixture
def output(tmp_path):
    """What replay leaves, as far as `evaluate` reads it, and a MOT text of the truth."""
    save_tracks(tmp_path / "tracks.persons.npz", SPLIT)
    (tmp_path / "run.json").write_text(
        json.dumps({"videos": [{"tracks_path": str(tmp_path / "tracks.persons.npz")}]})
    )
    event = {
        "persons": [{"person_id": 10}, {"person_id": 11}],
        "similarity": 0.9,
        "probability": 0.65,
    }
    (tmp_path / "duplicate_candidates.jsonl").write_text(json.dumps(event) + "\n")
    lines = []
    for t in TRUTH:
        x = t.boxes_xyxy[0, 0]
        lines += [f"{frame + 1},{t.person_id},{x},0,10,20,1,1,1" for frame in t.frame_indices]
    (tmp_path / "truth.txt").write_text("\n".join(lines) + "\n")
    return tmp_path


def test_the_command_prints_a_line_a_threshold(output):
    """`evaluate` prints a header and one line a threshold, and sums up on stderr."""
    done = CliRunner().invoke(cli, ["evaluate", str(output), "--truth", str(output / "truth.txt")])
    assert done.exit_code == 0, done.output
    assert "1 true pairs; IDF1 of the tracks as they are 0.750" in done.stderr
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    assert lines[0] == ["probability", "candidates", "precision", "recall", "IDF1 merged"]
    assert ["0.60", "1", "1.00", "1.00", "1.000"] in lines
    assert ["0.70", "0", "-", "0.00", "0.750"] in lines


def test_the_command_prints_json(output):
    """With --json the scores come as JSON."""
    done = CliRunner().invoke(
        cli, ["evaluate", str(output), "--truth", str(output / "truth.txt"), "--json"]
    )
    assert json.loads(done.stdout)["scored"][0]["idf1"] == 1


def test_a_folder_that_replay_did_not_write_is_a_usage_mistake(tmp_path):
    """A folder without a run is a usage error with exit code 2."""
    done = CliRunner().invoke(cli, ["evaluate", str(tmp_path), "--truth", "none.txt"])
    assert done.exit_code == 2
    assert "expected a folder that `streamproc replay` wrote" in done.stderr


TRACKEVAL = json.loads((Path(__file__).parents[1] / "fixtures" / "trackeval.json").read_text())


@pytest.mark.parametrize("seed", SEEDS)
def test_idf1_and_hota_are_those_of_trackeval(seed):
    """On drawn scenes both agree with what the library itself said."""
    tracks, truth, _ = drawn_scene(seed)
    as_they_are = evaluate(tracks, truth, [], [], {"all": []}).merged[0]
    expected = TRACKEVAL[str(seed)]
    assert as_they_are.idf1 == pytest.approx(expected["IDF1"], abs=1e-6)
    assert as_they_are.hota == pytest.approx(expected["HOTA"], abs=1e-6)


@pytest.mark.parametrize("seed", SEEDS)
def test_merged_tracks_score_as_tracks_with_these_ids(seed):
    """Merging pairs gives IDF1 and HOTA of tracks that have one id a person from the start."""
    tracks, truth, pairs = drawn_scene(seed)
    merged = evaluate(tracks, truth, [], [], {"true": pairs}).merged[1]
    together = []
    for person in range(5):
        own = [track for track in tracks if track.person_id // 10 == person]
        together.append(
            Track(
                person,
                np.concatenate([track.frame_indices for track in own]),
                np.concatenate([track.boxes_xyxy for track in own]),
                np.concatenate([track.confidences for track in own]),
            )
        )
    whole = evaluate(together, truth, [], [], {"none": []}).merged[0]
    assert merged.hota == pytest.approx(whole.hota)
    assert merged.idf1 == pytest.approx(whole.idf1)


def test_the_share_of_the_gain_is_that_of_the_truths():
    """Nothing merged reaches none of it, the true pair all, and without a gain there is none."""
    ways = {"none": [], "true": [(10, 11)]}
    found = {row.by: row for row in evaluate(SPLIT, TRUTH, [], [], ways).merged}
    assert list(found) == ["tracks", "none", "true", "truth"]
    assert (found["none"].idf1_share, found["none"].hota_share) == (0, 0)
    assert (found["true"].idf1_share, found["true"].hota_share) == (1, 1)
    assert (found["truth"].idf1, found["truth"].hota) == (1, pytest.approx(1))
    (whole, *_) = evaluate(TRUTH, TRUTH, [], [], {"none": []}).merged
    assert (whole.idf1_share, whole.hota_share) == (None, None)


def test_several_folders_are_compared_in_one_call(output, tmp_path):
    """Each folder has its table, and the medians come last; groups are those of the folder."""
    other = tmp_path / "other"
    shutil.copytree(output, other)
    group = {"group_id": "x", "person_keys": ["v/10", "v/11"], "state": "proposed"}
    (other / "duplicate_groups.jsonl").write_text(json.dumps(group) + "\n")
    truth = str(output / "truth.txt")
    done = CliRunner().invoke(cli, ["evaluate", str(output), str(other), "--truth", truth])
    assert done.exit_code == 0, done.output
    lines = [line.split("\t") for line in done.stdout.splitlines()]
    of_groups = [line for line in lines if line[0] == "groups"]
    assert [line[1] for line in of_groups[:2]] == ["0.750", "1.000"]
    assert of_groups[2] == ["groups", "0.50", "0.50"]
    done = CliRunner().invoke(cli, ["evaluate", str(output), str(other), *["--truth", truth] * 3])
    assert done.exit_code == 2
    assert "one --truth, or one for each OUTPUT" in done.stderr


def test_parts_of_a_track_are_tracks_of_their_own(output, tmp_path):
    """A track that the run took apart counts as two, and pairs name its parts."""
    other = tmp_path / "other"
    shutil.copytree(output, other)
    suspect = {"video_id": "v", "person_id": 10, "frame_index": 5}
    (other / "track_suspects.jsonl").write_text(json.dumps(suspect) + "\n")
    group = {"group_id": "x", "person_keys": ["v/10#1", "v/10#2", "v/11"], "state": "proposed"}
    (other / "duplicate_groups.jsonl").write_text(json.dumps(group) + "\n")
    (other / "duplicate_candidates.jsonl").write_text("")
    truth = str(output / "truth.txt")
    done = CliRunner().invoke(cli, ["evaluate", str(other), "--truth", truth])
    assert done.exit_code == 0, done.output
    lines = {line.split("\t")[0]: line.split("\t") for line in done.stdout.splitlines()}
    assert lines["groups"][1] == "1.000"
