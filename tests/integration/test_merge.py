"""`streamproc merge`: tracks under the identities that were decided, and nothing else merged."""

from __future__ import annotations

import os
import shutil

import numpy as np
import orjson
import pytest
from processes import run_streamproc

import streamproc
from streamproc.decisions import GroupDecision, PairDecision, SelectedDecision
from streamproc.errors import InputError, StreamprocError, UsageError
from streamproc.gallery import has_veto
from streamproc.offline.replay_folder import read_folder
from streamproc.tracks import read_tracks

WHEN = "2026-11-30T10:00:00Z"


@pytest.fixture(scope="module")
def replayed(tmp_path_factory, sample):
    """The folder of a replay of the sample, without decisions."""
    out = tmp_path_factory.mktemp("replayed") / "out"
    streamproc.replay(
        sample / "sample.mp4", persons=sample / "sample.persons.npz", out=out, animate=False
    )
    return out


@pytest.fixture
def folder(replayed, tmp_path):
    """A copy of it for one test."""
    return shutil.copytree(replayed, tmp_path / "out")


def keys_of_pair(folder):
    """The gallery and the keys of the sample's one true pair."""
    found = read_folder(folder)
    [candidate] = found.candidates
    return found.gallery_id, [person.person_key for person in candidate.persons]


def decide(folder, *decisions):
    """Write the folder's decisions.jsonl."""
    lines = b"".join(decision.to_json() + b"\n" for decision in decisions)
    (folder / "decisions.jsonl").write_bytes(lines)


def same(gallery_id, keys, verdict="same"):
    """A decision about a pair."""
    return PairDecision.make(
        gallery_id=gallery_id, decided_at=WHEN, person_keys=keys, verdict=verdict
    )


def boxes(tracks):
    """All boxes as sorted rows: frame and corners, without ids."""
    rows = [np.column_stack([track.frame_indices, track.boxes_xyxy]) for track in tracks]
    return np.array(sorted(np.concatenate(rows).tolist()))


@pytest.mark.parametrize(
    "name", ["merged.txt", "merged.csv", "merged.npz", "merged.canonical_persons.npz"]
)
def test_decided_tracks_are_one_in_each_format_and_no_box_is_lost(
    folder, tmp_path, sample, name
) -> None:
    """The pair has one id, the smaller; read again, every box is where it was."""
    gallery_id, keys = keys_of_pair(folder)
    decide(folder, same(gallery_id, keys))
    done = run_streamproc("merge", folder, "-o", tmp_path / name)
    assert (done.returncode, done.stdout.strip()) == (0, str(tmp_path / name))
    assert "6 tracks before, 5 identities after, by 1 decision" in done.stderr
    before = read_tracks(sample / "sample.persons.npz").tracks
    after = read_tracks(tmp_path / name).tracks
    numbers = sorted(int(key.rpartition("/")[2]) for key in keys)
    expected = sorted({track.person_id for track in before} - {numbers[1]})
    assert [track.person_id for track in after] == expected
    np.testing.assert_allclose(boxes(after), boxes(before), atol=0.002)


def test_the_canonical_file_says_which_tracks_each_person_was(folder, tmp_path) -> None:
    """So that merging can be taken back."""
    gallery_id, keys = keys_of_pair(folder)
    decide(folder, same(gallery_id, keys))
    path = tmp_path / "canonical_persons.npz"
    streamproc.merge(folder, path)
    persons = np.load(path, allow_pickle=True)["persons"]
    numbers = sorted(int(key.rpartition("/")[2]) for key in keys)
    [merged] = [one for one in persons if one["num_tracklets_merged"] > 1]
    assert (merged["person_id"], merged["original_tracklet_ids"]) == (numbers[0], numbers)
    assert sum(one["num_tracklets_merged"] for one in persons) == 6


def test_nothing_is_merged_that_nobody_decided(folder) -> None:
    """Not even a likely candidate, unless that is asked for."""
    assert streamproc.merge(folder).identity_count == 6
    likely = run_streamproc("merge", folder, "--dry-run", "--likely")
    assert "5 identities after" in likely.stderr
    assert "which nobody decided" in likely.stderr
    gallery_id, keys = keys_of_pair(folder)
    decide(folder, same(gallery_id, keys, "different"))
    assert streamproc.merge(folder, with_likely=True).identity_count == 6


def test_a_conflict_leaves_its_tracks_as_they_were_and_is_said(folder, tmp_path) -> None:
    """Two people who were seen side by side cannot be one: exit code 4, and both are named."""
    persons = read_folder(folder).persons
    one, other = next((a, b) for a in persons for b in persons if has_veto(a, b))
    together = [one.person_key, other.person_key]
    decide(
        folder,
        GroupDecision.make(gallery_id=one.gallery_id, decided_at=WHEN, person_keys=together),
    )
    done = run_streamproc("merge", folder, "-o", tmp_path / "merged.txt")
    assert done.returncode == 4
    assert "6 identities after" in done.stderr
    assert all(key in done.stderr for key in together)
    assert len(read_tracks(tmp_path / "merged.txt").tracks) == 6


def test_only_the_people_who_are_wanted(folder, tmp_path) -> None:
    """One wanted track brings the whole identity."""
    gallery_id, keys = keys_of_pair(folder)
    wanted = SelectedDecision.make(
        gallery_id=gallery_id, decided_at=WHEN, person_keys=keys[1:], wanted=True
    )
    decide(folder, same(gallery_id, keys), wanted)
    streamproc.merge(folder, tmp_path / "m.npz", only_selected=True)
    [track] = read_tracks(tmp_path / "m.npz").tracks
    assert track.person_id == min(int(key.rpartition("/")[2]) for key in keys)


def test_one_number_an_identity_in_all_videos_of_a_gallery(tmp_path, sample) -> None:
    """Two videos with the same ids: strangers get other numbers, the same person one number."""
    for name in ("one", "two"):
        shutil.copy(sample / "sample.mp4", tmp_path / f"{name}.mp4")
        shutil.copy(sample / "sample.persons.npz", tmp_path / f"{name}.persons.npz")
    out = tmp_path / "out"
    streamproc.replay(
        [tmp_path / "one.mp4", tmp_path / "two.mp4"], gallery="hall", out=out, animate=False
    )
    first, second = (str(video["video_id"]) for video in read_folder(out).videos)
    decide(out, same("hall", [f"{first}/3", f"{second}/3"]))
    merged = streamproc.merge(out, tmp_path / "merged")
    assert merged.identity_count == 11
    ids = []
    for name in ("one", "two"):
        tracks = read_tracks(tmp_path / "merged" / f"{name}.mot.txt").tracks
        ids.append({track.person_id for track in tracks})
    assert ids[0] & ids[1] == {3}


def test_tracks_that_changed_since_are_not_merged(tmp_path, sample) -> None:
    """Decisions were made on other tracks."""
    tracks = tmp_path / "t.npz"
    shutil.copy(sample / "sample.persons.npz", tracks)
    out = tmp_path / "out"
    streamproc.replay(sample / "sample.mp4", persons=tracks, out=out, animate=False)
    with np.load(tracks) as arrays:
        changed = dict(arrays)
    changed["boxes_xyxy"] = changed["boxes_xyxy"] + 1
    np.savez(tracks, **changed)
    with pytest.raises(UsageError, match="have changed"):
        streamproc.merge(out)


def test_the_tracks_are_found_from_anywhere(tmp_path, sample) -> None:
    """Replay was given relative paths, and merge and evaluate are called from another folder.

    Of an older folder that does not say from where, the paths go from here.
    """
    for name in ("sample.mp4", "sample.persons.npz"):
        shutil.copy(sample / name, tmp_path)
    done = run_streamproc("replay", "sample.mp4", "--out", "out", "--no-animations", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    merge = ("merge", "../out", "--dry-run")
    done = run_streamproc(*merge, cwd=elsewhere)
    assert (done.returncode, "6 tracks before" in done.stderr) == (0, True), done.stderr
    refused = run_streamproc("merge", "../out", "-o", "../sample.persons.npz", cwd=elsewhere)
    assert "would be replaced" in refused.stderr
    path = tmp_path / "out" / "run.json"
    run = orjson.loads(path.read_bytes())
    del run["working_directory"]
    path.write_bytes(orjson.dumps(run))
    assert run_streamproc(*merge, cwd=elsewhere).returncode == 2
    assert run_streamproc("merge", "out", "--dry-run", cwd=tmp_path).returncode == 0


def test_bad_decisions_and_folders_are_one_line(folder, tmp_path) -> None:
    """File, line and what was expected; a half last line was never said to be kept."""
    gallery_id, keys = keys_of_pair(folder)
    good = same(gallery_id, keys).to_json()
    (folder / "decisions.jsonl").write_bytes(good + b"\n" + good[:50])
    assert streamproc.merge(folder).identity_count == 5
    (folder / "decisions.jsonl").write_bytes(good + b"\n{}\n")
    with pytest.raises(InputError, match=r"decisions.jsonl: line 2: .*kind"):
        streamproc.merge(folder)
    (folder / "decisions.jsonl").unlink()
    done = run_streamproc("merge", tmp_path / "none", "-o", tmp_path / "m.txt")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    done = run_streamproc("merge", folder, "-o", tmp_path / "m.xyz")
    assert done.returncode == 2
    assert "ends in" in done.stderr
    assert orjson.loads((folder / "run.json").read_bytes())["videos"][0]["tracks_sha256"]


def test_what_the_tracks_were_made_of_is_not_replaced(tmp_path, sample) -> None:
    """Neither tracks nor video nor what replay wrote, also where a folder would hold their name."""
    video = shutil.copy(sample / "sample.mp4", tmp_path / "a.mp4")
    tracks = tmp_path / "a.mot.txt"
    out = tmp_path / "out"
    streamproc.replay(video, persons=sample / "sample.persons.npz", out=out, animate=False)
    streamproc.merge(out, tracks)
    streamproc.replay(video, out=out, animate=False)
    (out / "decisions.jsonl").touch()
    (tmp_path / "link.txt").symlink_to(tracks)
    for to in (tracks, tmp_path, tmp_path / "link.txt", video, *out.glob("*.json*")):
        before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        with pytest.raises(UsageError, match="would be replaced"):
            streamproc.merge(out, to, written="mot")
        after = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
        assert after == before


def test_what_is_no_file_is_not_replaced(folder, tmp_path) -> None:
    """A pipe whose reader waits, or a device."""
    os.mkfifo(tmp_path / "pipe.txt")
    with pytest.raises(UsageError, match="something else"):
        streamproc.merge(folder, tmp_path / "pipe.txt")
    assert (tmp_path / "pipe.txt").is_fifo()


def test_several_videos_need_a_folder_and_its_names_are_safe(tmp_path, sample) -> None:
    """A file's name is no folder's; and run.json, which may come from anybody, names no path."""
    for name in ("one", "two"):
        shutil.copy(sample / "sample.mp4", tmp_path / f"{name}.mp4")
        shutil.copy(sample / "sample.persons.npz", tmp_path / f"{name}.persons.npz")
    out = tmp_path / "out"
    streamproc.replay(
        [tmp_path / "one.mp4", tmp_path / "two.mp4"], gallery="hall", out=out, animate=False
    )
    with pytest.raises(UsageError, match="expected a folder for 2 videos"):
        streamproc.merge(out, tmp_path / "merged.csv")
    run = orjson.loads((out / "run.json").read_bytes())
    run["videos"][0]["path"] = run["videos"][1]["path"] = "same \x1b[2J"
    (out / "run.json").write_bytes(orjson.dumps(run))
    streamproc.merge(out, tmp_path / "merged")
    ids = {str(video["video_id"]) for video in run["videos"]}
    names = {path.name for path in (tmp_path / "merged").iterdir()}
    assert names == {f"{video_id}.mot.txt" for video_id in ids}


@pytest.mark.parametrize(
    "changed",
    [
        {"video_id": "../../elsewhere"},
        {"video_id": ""},
        {"video_id": None},
        {"tracks_path": None},
        {"tracks_path": "/dev/zero"},
        {"tracks_path": "a\0b"},
        {"tracks_options": {"what": 1}},
        {"tracks_options": 1},
        {"tracks_options": {"first_frame_number": "x"}},
        {"tracks_options": {"format_name": ["x"]}},
        {"tracks_sha256": None},
        {"width_px": None},
        {"width_px": "wide"},
        {"path": None},
    ],
)
def test_a_folder_that_somebody_sent_ends_in_one_line(folder, changed) -> None:
    """What run.json says is checked before it is used; None: it does not say so."""
    run = orjson.loads((folder / "run.json").read_bytes())
    run["videos"][0] |= changed
    run["videos"][0] = {name: said for name, said in run["videos"][0].items() if said is not None}
    (folder / "run.json").write_bytes(orjson.dumps(run))
    with pytest.raises(StreamprocError) as caught:
        streamproc.merge(folder)
    assert "\n" not in str(caught.value)


def test_a_merge_says_what_it_did_not_take(folder, tmp_path) -> None:
    """A file of decisions that is not there, decisions on another gallery, and nobody wanted."""
    with pytest.raises(UsageError, match="found none there"):
        streamproc.merge(folder, decisions=tmp_path / "no.jsonl")
    _, keys = keys_of_pair(folder)
    decide(folder, same("another", keys))
    done = run_streamproc("merge", folder, "--dry-run")
    assert "6 identities after, by 0 decisions" in done.stderr
    assert "1 decisions were left out: they are on other galleries" in done.stderr
    with pytest.raises(UsageError, match="who is wanted"):
        streamproc.merge(folder, tmp_path / "m.txt", only_selected=True)


def test_keys_in_conflicts_are_nothing_that_a_terminal_obeys(folder) -> None:
    """Whoever wrote the decisions chose them; and a long list is cut short."""
    gallery_id, keys = keys_of_pair(folder)
    strangers = [f"x\x9b2J\u2028{number}" for number in range(30)]
    decisions = [same(gallery_id, [strangers[0], key], "different") for key in strangers[1:]]
    group = GroupDecision.make(
        gallery_id=gallery_id, decided_at="2020-01-01T00:00:00Z", person_keys=[*keys, *strangers]
    )
    joined = [same(gallery_id, [keys[0], key]) for key in strangers]
    decide(folder, group, *decisions, *joined)
    done = run_streamproc("merge", folder, "--dry-run")
    assert done.returncode == 4
    assert "\x9b" not in done.stderr
    assert "and 9 conflicts more" in done.stderr
    assert len(done.stderr.splitlines()) == 22


def test_a_few_lines_that_speak_of_more_pairs_than_there_is_memory_for(folder) -> None:
    """Each line of 200 keys speaks of 19,900 pairs."""
    gallery_id, _ = keys_of_pair(folder)
    one = GroupDecision.make(
        gallery_id=gallery_id, decided_at=WHEN, person_keys=[f"x/{n}" for n in range(200)]
    )
    (folder / "decisions.jsonl").write_bytes((one.to_json() + b"\n") * 300)
    with pytest.raises(InputError, match="line 252: expected at most 5,000,000 pairs"):
        streamproc.merge(folder)


def test_a_file_of_decisions_that_is_too_large_is_not_read(folder) -> None:
    """Nobody decides that much, and each decision takes memory."""
    path = folder / "decisions.jsonl"
    path.touch()
    os.truncate(path, 1 << 40)
    with pytest.raises(InputError, match="expected at most 134,217,728 bytes"):
        streamproc.merge(folder)


def test_tracks_that_replay_found_itself_are_merged(tmp_path, sample) -> None:
    """Of a video alone: they are in the folder, also after it was moved, and are not replaced."""
    video = shutil.copy(sample / "sample.mp4", tmp_path / "alone.mp4")
    done = run_streamproc("replay", video, "--out", tmp_path / "first", "--no-animations")
    assert done.returncode == 0, done.stderr
    out = (tmp_path / "first").rename(tmp_path / "out")
    merged = streamproc.merge(out, tmp_path / "merged.txt")
    assert merged.identity_count == merged.track_count > 1
    with pytest.raises(UsageError, match="would be replaced"):
        streamproc.merge(out, out / "tracks.npz")


def test_tracks_that_replay_took_apart_are_merged_in_parts(folder, tmp_path) -> None:
    """Each part is a track of its own that may be merged with others; no box is lost."""
    run = orjson.loads((folder / "run.json").read_bytes())
    [video_id] = [video["video_id"] for video in run["videos"]]
    suspect = {"video_id": video_id, "person_id": 2, "frame_index": 80}
    (folder / "track_suspects.jsonl").write_bytes(orjson.dumps(suspect))
    keys = [f"{video_id}/2#2", f"{video_id}/1"]
    decide(folder, same(run["gallery_id"], keys))
    streamproc.merge(folder, tmp_path / "merged.csv")
    merged = {track.person_id: track for track in read_tracks(tmp_path / "merged.csv").tracks}
    whole = {one.person_id: one for one in read_tracks(run["videos"][0]["tracks_path"]).tracks}
    assert len(merged) == 6
    assert merged[2].frame_indices.max() < 80
    later = whole[2].frame_indices[whole[2].frame_indices >= 80]
    assert set(merged[1].frame_indices) == {*whole[1].frame_indices, *later}
    assert sum(map(len, merged.values())) == sum(map(len, whole.values()))
    (folder / "track_suspects.jsonl").write_text("{}")
    with pytest.raises(UsageError, match=r"track_suspects.jsonl: expected what"):
        streamproc.merge(folder, tmp_path / "again.csv")
