"""A replay that comes again knows what reviewers decided, also with other tracks."""

from __future__ import annotations

import fcntl
import shutil

import numpy as np
import pytest
from processes import run_streamproc

import streamproc
from streamproc.decisions import GroupDecision, PairDecision
from streamproc.errors import UsageError
from streamproc.offline.replay import Replay
from streamproc.offline.replay_folder import read_decisions, read_folder
from streamproc.tracks import read_tracks, save_tracks
from streamproc.types import Track

WHEN = "2026-11-30T10:00:00Z"


@pytest.fixture
def tracks(tmp_path, sample):
    """A track file of the sample's that a test may change."""
    return shutil.copy(sample / "sample.persons.npz", tmp_path / "tracks.npz")


@pytest.fixture
def replay(tmp_path, sample, tracks):
    """Replay the sample with that file into one folder; the result."""

    def run(**options):
        return streamproc.replay(
            sample / "sample.mp4",
            persons=tracks,
            animate=False,
            **{"out": tmp_path / "out", **options},
        )

    return run


def keys(result):
    """The person keys of its only candidate."""
    [candidate] = result.candidates
    return tuple(person.person_key for person in candidate.persons)


def decide(folder, *decisions):
    """Write the folder's decisions.jsonl."""
    lines = b"".join(decision.to_json() + b"\n" for decision in decisions)
    (folder / "decisions.jsonl").write_bytes(lines)


def different(gallery_id, person_keys):
    """A pair of two people."""
    return PairDecision.make(
        gallery_id=gallery_id, decided_at=WHEN, person_keys=person_keys, verdict="different"
    )


def renumbered(tracks, number_of, *, left_out=()):
    """Rewrite a track file with other ids, moved by a pixel, and without some persons."""
    changed = [
        Track(
            number_of(track.person_id),
            track.frame_indices,
            track.boxes_xyxy + 1,
            track.confidences,
        )
        for track in read_tracks(tracks).tracks
        if track.person_id not in left_out
    ]
    save_tracks(tracks, changed)


def test_what_was_called_different_is_not_listed_again(replay, tmp_path) -> None:
    """By the decisions in the folder, which stay as they are, or by a file that is named."""
    first = replay()
    decide(tmp_path / "out", different(first.gallery_id, keys(first)))
    before = (tmp_path / "out" / "decisions.jsonl").read_bytes()
    assert replay().candidates == ()
    assert (tmp_path / "out" / "decisions.jsonl").read_bytes() == before
    named = tmp_path / "out" / "decisions.jsonl"
    assert replay(out=tmp_path / "other", decisions=named).candidates == ()
    assert read_decisions(tmp_path / "other" / "decisions.jsonl") == read_decisions(named)


def test_a_decision_holds_for_the_same_people_under_other_ids(replay, tracks, tmp_path) -> None:
    """Another tracker numbers the people anew: who is where the earlier one was is meant."""
    first = replay()
    decide(tmp_path / "out", different(first.gallery_id, keys(first)))
    renumbered(tracks, lambda number: 7 - number)
    second = replay()
    assert second.candidates == ()
    [carried] = read_decisions(tmp_path / "out" / "decisions.jsonl")
    ids = [int(key.rpartition("/")[2]) for key in keys(first)]
    expected = {f"{first.gallery_id}/{7 - number}" for number in ids}
    assert set(carried.person_keys) == expected
    # And back again: nothing is lost on the way.
    renumbered(tracks, lambda number: 7 - number)
    assert replay().candidates == ()


def test_decisions_on_people_who_are_not_there_any_more_are_kept_and_said(
    replay, tracks, tmp_path
) -> None:
    """A group keeps its others; a pair of which one is missing is set aside."""
    first = replay()
    gone = int(keys(first)[1].rpartition("/")[2])
    others = [f"{first.gallery_id}/{n}" for n in first.person_ids if n != gone][:2]
    group = GroupDecision.make(
        gallery_id=first.gallery_id, decided_at=WHEN, person_keys=[*others, keys(first)[1]]
    )
    decide(tmp_path / "out", different(first.gallery_id, keys(first)), group)
    renumbered(tracks, lambda number: number, left_out={gone})
    second = replay()
    assert any("1 of 2 decisions" in notice for notice in second.notices)
    [carried] = read_decisions(tmp_path / "out" / "decisions.jsonl")
    assert carried.person_keys == others
    [lost] = read_decisions(tmp_path / "out" / "decisions_not_carried_over.jsonl")
    assert lost.verdict == "different"


def test_an_id_that_means_somebody_else_now_inherits_nothing(replay, tracks, tmp_path) -> None:
    """Two people swap their ids: the decision goes with the person."""
    first = replay()
    one, other = (int(key.rpartition("/")[2]) for key in keys(first))
    stranger = next(n for n in first.person_ids if n not in (one, other))
    decide(tmp_path / "out", different(first.gallery_id, keys(first)))
    swapped = {one: stranger, stranger: one}
    renumbered(tracks, lambda number: swapped.get(number, number))
    replay()
    [carried] = read_decisions(tmp_path / "out" / "decisions.jsonl")
    ids = {int(key.rpartition("/")[2]) for key in carried.person_keys}
    assert ids == {stranger, other}


def test_decisions_that_change_wait_for_an_open_review(replay, tracks, tmp_path) -> None:
    """A review that is open has the old ones: the replay says so, and changes nothing."""
    first = replay()
    path = tmp_path / "out" / "decisions.jsonl"
    decide(tmp_path / "out", different(first.gallery_id, keys(first)))
    renumbered(tracks, lambda number: 7 - number)
    before = (path.read_bytes(), read_folder(tmp_path / "out").persons)
    with path.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(UsageError, match="a review is open"):
            replay()
    assert (path.read_bytes(), read_folder(tmp_path / "out").persons) == before


def test_a_file_of_decisions_that_is_not_there_is_one_line(sample, tmp_path) -> None:
    """Before any work."""
    done = run_streamproc(
        "replay", sample / "sample.mp4", "--out", tmp_path / "o", "--decisions", tmp_path / "no"
    )
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert not (tmp_path / "o").exists()


def test_frames_and_boxes_say_who_is_who(replay, tracks, tmp_path) -> None:
    """Somebody who walks elsewhere in the same frames is not the person of the decision."""
    first = replay()
    decide(tmp_path / "out", different(first.gallery_id, keys(first)))
    moved = [
        Track(
            track.person_id,
            track.frame_indices,
            (track.boxes_xyxy % 100 + np.float32([0, 0, 100, 100])).astype(np.float32),
            track.confidences,
        )
        for track in read_tracks(tracks).tracks
    ]
    save_tracks(tracks, moved)
    second = replay()
    assert any("1 of 1 decisions" in notice for notice in second.notices)
    assert read_decisions(tmp_path / "out" / "decisions.jsonl") == []


def test_decisions_on_another_gallery_are_kept_and_said(replay, tmp_path) -> None:
    """Another video, or gallery, into the same folder: its decisions file is not emptied."""
    first = replay()
    decision = different(first.gallery_id, keys(first))
    decide(tmp_path / "out", decision)
    second = replay(gallery="hall")
    assert any("1 of 1 decisions are on other galleries" in note for note in second.notices)
    assert len(second.candidates) == 1
    assert read_decisions(tmp_path / "out" / "decisions_not_carried_over.jsonl") == [decision]


def test_each_file_of_decisions_goes_with_the_tracks_that_it_was_made_on(
    replay, tracks, tmp_path
) -> None:
    """The folder's own and a named one's, of other tracks: the same key is two people."""
    first = replay()
    decide(tmp_path / "out", different(first.gallery_id, keys(first)))
    original = tracks.read_bytes()
    one, other = (int(key.rpartition("/")[2]) for key in keys(first))
    stranger = next(n for n in first.person_ids if n not in (one, other))
    swapped = {one: stranger, stranger: one}
    renumbered(tracks, lambda number: swapped.get(number, number))
    second = replay(out=tmp_path / "other")
    named = PairDecision.make(
        gallery_id=first.gallery_id, decided_at=WHEN, person_keys=keys(second), verdict="unsure"
    )
    decide(tmp_path / "other", named)
    tracks.write_bytes(original)
    replay(decisions=tmp_path / "other" / "decisions.jsonl")
    own, carried = read_decisions(tmp_path / "out" / "decisions.jsonl")
    assert set(own.person_keys) == set(carried.person_keys) == set(keys(first))


def test_what_was_decided_while_the_replay_ran_is_not_lost(replay, tmp_path, monkeypatch) -> None:
    """A review that was opened and closed meanwhile: its decisions count."""
    first = replay()
    group = GroupDecision.make(
        gallery_id=first.gallery_id, decided_at=WHEN, person_keys=list(keys(first))
    )
    decide(tmp_path / "out", group)
    note_problems = Replay._note_problems

    def decided_meanwhile(self):
        decide(tmp_path / "out", group, different(first.gallery_id, keys(first)))
        note_problems(self)

    monkeypatch.setattr(Replay, "_note_problems", decided_meanwhile)
    replay()
    assert len(read_decisions(tmp_path / "out" / "decisions.jsonl")) == 2


def test_decisions_of_a_gallerys_single_video_follow_its_tracks(tmp_path, sample, tracks) -> None:
    """Its folder keeps a file of its own: after other tracks its keys are the new ones too."""
    videos = [shutil.copy(sample / "sample.mp4", tmp_path / f"{name}.mp4") for name in "ab"]

    def run():
        return streamproc.replay(
            videos,
            persons=[tracks, sample / "sample.persons.npz"],
            gallery="hall",
            out=tmp_path / "hall",
            animate=False,
        )

    run()
    first = str(read_folder(tmp_path / "hall").videos[0]["video_id"])
    decide(tmp_path / "hall" / first, different("hall", [f"{first}/1", f"{first}/6"]))
    renumbered(tracks, lambda number: 10 + number)
    run()
    for folder in (tmp_path / "hall", tmp_path / "hall" / first):
        [decision] = read_decisions(folder / "decisions.jsonl")
        assert set(decision.person_keys) == {f"{first}/11", f"{first}/16"}
