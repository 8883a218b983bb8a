"""Which run of a video holds: what makes its id, and which of two runs is the newer one."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import small_detectors
from persons import closed, person, unit_vector

from streamproc.crops import CropOptions
from streamproc.events import VideoProgress
from streamproc.gallery import Gallery, VideoRecord, apply
from streamproc.pipeline.job import VideoJob
from streamproc.tracks.detection import detector as detector_module
from streamproc.tracks.detection import found as found_module
from streamproc.tracks.detection.detector import Detector, find_weights
from streamproc.tracks.detection.found import FindingOptions, tracks_found
from streamproc.tracks.detection.tracker import TrackerOptions

EARLY, LATE = "2026-11-24T09:10:00.000Z", "2026-11-24T09:20:00.000Z"


def detector(folder, offset_px=0.0, **settings):
    """A small detector with these settings."""
    path = small_detectors.yolox(folder / "small.onnx", offset_px=offset_px)
    weights = find_weights(str(path), cache_folder=folder)
    return Detector(weights, **{"threads": 1, "min_confidence": 0.3, **settings})


def run_id_of(finder, finding, *, job=None, sha256="a" * 64, weights="b" * 64):
    """The id of the run that finds people so."""
    tracks = tracks_found(finder, finding)
    job = job or VideoJob(Path("v.mp4"), "v", "g", tracks, EARLY, CropOptions(), 0.7)
    return job.run_id(sha256, tracks.identity, weights)


def test_each_part_of_a_detected_run_changes_its_id(tmp_path, monkeypatch) -> None:
    """The video, the detector, the tracker, their versions and settings, crops and OSNet weights.

    When it was begun does not.
    """
    usual = detector(tmp_path)
    finding = FindingOptions()
    job = VideoJob(Path("v.mp4"), "v", "g", tracks_found(usual, finding), EARLY, CropOptions(), 0.7)
    ids = [
        run_id_of(usual, finding),
        run_id_of(usual, finding, sha256="c" * 64),
        run_id_of(usual, finding, weights="c" * 64),
        run_id_of(detector(tmp_path, offset_px=1 / 3), finding),
        run_id_of(usual.adjusted(min_confidence=0.4, longest_px=0), finding),
        run_id_of(usual.adjusted(min_confidence=0.3, longest_px=320), finding),
        run_id_of(detector(tmp_path, suppression_iou=0.5), finding),
        run_id_of(usual, FindingOptions(every_frames=3)),
        run_id_of(usual, FindingOptions(TrackerOptions(high_confidence=0.5))),
        run_id_of(usual, FindingOptions(TrackerOptions(new_confidence=0.5))),
        run_id_of(usual, FindingOptions(TrackerOptions(lost_seconds=2.0))),
        *(
            run_id_of(usual, finding, job=replace(job, options=replace(CropOptions(), **change)))
            for change in (
                {"crops_per_person": 49},
                {"crops_embedded": 7},
                {"min_track_frames": 6},
                {"top_persons": 9},
            )
        ),
        run_id_of(usual, finding, job=replace(job, video_id="w")),
    ]
    for module in (detector_module, found_module):
        monkeypatch.setattr(module, "VERSION", 1000)
        ids.append(run_id_of(usual, finding))
    assert len(set(ids)) == len(ids)
    monkeypatch.undo()
    assert run_id_of(usual, finding, job=replace(job, started_at=LATE)) == ids[0]
    assert run_id_of(detector(tmp_path), finding) == ids[0]


def outcome_of(events):
    """The gallery after these events."""
    gallery = Gallery("g")
    for event in events:
        result = apply(gallery, event, similarity_threshold=0.7, occurred_at=LATE)
        gallery.write(result.writes)
    return gallery


def run(name, vector, *, started_at=None, minute=0):
    """The events of a run that finds one person."""
    fields = {"run": name, "started_at": started_at, "minute": minute}
    return [person(1, vector, **fields), closed([1], **fields)]


def held(gallery):
    """Which run the one person is of."""
    return gallery.rows["v/1"].tracklet.run_id


@pytest.mark.parametrize("names", ["ab", "ba"])
def test_of_two_runs_of_one_submission_the_one_begun_later_holds(names) -> None:
    """Whatever their ids say, and whatever comes when."""
    first = run(names[0], [1, 0], started_at=EARLY)
    second = run(names[1], [0, 1], started_at=LATE)
    mixed = (
        [*first, *second],
        [*second, *first],
        [first[0], *second, first[1]],
        [first[0], second[0], first[1], second[1]],
    )
    for events in mixed:
        gallery = outcome_of(events)
        assert held(gallery) == names[1]
        assert gallery.videos["v"].closed


def test_a_run_that_does_not_say_when_it_was_begun_gives_way() -> None:
    """Workers before said nothing of it; among themselves the greater id holds, as before."""
    old = run("b", [1, 0])
    new = run("a", [0, 1], started_at=EARLY)
    for events in itertools.permutations([*old, *new]):
        if events.index(old[0]) < events.index(old[1]) and events.index(new[0]) < events.index(
            new[1]
        ):
            assert held(outcome_of(events)) == "a"
    assert held(outcome_of([*old, *run("a", [0, 1])])) == "b"
    assert held(outcome_of([*run("a", [0, 1]), *old])) == "b"


def test_what_was_submitted_later_holds_whenever_it_was_begun() -> None:
    """The time of submission goes first."""
    later = run("a", [0, 1], started_at=EARLY, minute=5)
    assert held(outcome_of([*later, *run("b", [1, 0], started_at=LATE)])) == "a"


def test_the_same_run_begun_again_is_a_repeat() -> None:
    """A closed video stays closed, and later events of another earlier run change nothing."""
    gallery = outcome_of(
        [*run("b", [1, 0], started_at=EARLY), run("b", [1, 0], started_at=LATE)[0]]
    )
    (record,) = gallery.videos.values()
    assert record == VideoRecord(record.order, closed=True, started_seconds=record.started_seconds)
    between = run("z", [0, 1], started_at="2026-11-24T09:15:00.000Z")
    for event in between:
        result = apply(gallery, event, similarity_threshold=0.7, occurred_at=LATE)
        assert {type(one) for one in result.events} <= {VideoProgress}  # that it is done
        gallery.write(result.writes)
    assert held(gallery) == "b"


def take(gallery, event, calibration=None):
    """Apply an event, and return what was said of pairs: state and similarity."""
    options = {} if calibration is None else {"calibration": calibration}
    result = apply(gallery, event, similarity_threshold=0.7, occurred_at=LATE, **options)
    gallery.write(result.writes)
    return [(one.state, round(one.similarity, 2)) for one in result.events]


def test_a_higher_revision_replaces_and_an_equal_or_lower_one_changes_nothing() -> None:
    """Pairs are those of the last revision; those that stand are not said again."""
    gallery = Gallery("g")
    take(gallery, person(1, [1, 0, 0], revision=1))
    assert take(gallery, person(2, [1, 0.1, 0], revision=1)) == [("proposed", 1.0)]
    assert take(gallery, person(3, [0, 0, 1], revision=1)) == []
    # Still similar: nothing new is said, though the pair was kept in the other's row.
    second = person(1, [1, 0.3, 0], revision=2)
    assert take(gallery, second) == []
    assert gallery.rows["v/1"].tracklet == second
    (pair,) = gallery.candidates()
    assert pair[:2] == ("v/1", "v/2")
    assert round(pair[2].similarity, 2) == 0.98
    before = dict(gallery.rows)
    for earlier in (person(1, [0, 1, 0], revision=1), person(1, [0, 1, 0], revision=2)):
        take(gallery, earlier)
        assert gallery.rows == before
    # No longer similar to the one, but to the other.
    third = person(1, [0, 0.1, 1], revision=5)
    assert sorted(take(gallery, third)) == [("proposed", 1.0), ("withdrawn", 0.01)]
    (pair,) = gallery.candidates()
    assert pair[:2] == ("v/1", "v/3")


def test_revisions_give_the_gallery_that_the_last_ones_give_alone() -> None:
    """Whatever was published in between and whatever came when, once the video is closed."""
    rng = np.random.default_rng(3)
    for _ in range(20):
        last = {i: unit_vector([*rng.normal(size=3), 1]) for i in range(6)}
        events = []
        for i, vector in last.items():
            for revision in range(1, 4):
                seen = vector if revision == 3 else unit_vector([*rng.normal(size=3), 1])
                events.append(person(i, seen, revision=revision))
        rng.shuffle(events)
        gallery = outcome_of([*events, closed(range(6))])
        alone = outcome_of(
            [*(person(i, vector, revision=3) for i, vector in last.items()), closed(range(6))]
        )
        pairs, expected = (
            {pair[:2]: pair[2].similarity for pair in one.candidates()} for one in (gallery, alone)
        )
        assert pairs == expected
        assert {key: row.tracklet.event_id for key, row in gallery.rows.items()} == {
            key: row.tracklet.event_id for key, row in alone.rows.items()
        }


def test_an_event_without_a_revision_has_the_id_that_it_had() -> None:
    """Two revisions that say the same otherwise are two events."""
    ids = {person(1, [1, 0], revision=revision).event_id for revision in (None, 1, 2)}
    assert len(ids) == 3
