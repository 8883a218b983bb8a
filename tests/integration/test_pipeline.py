"""The wiring of the stages.

What leaves when, what waits for whom, and what a fault in one does to the others.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
from concurrent.futures import Future
from dataclasses import replace

import numpy as np
import pytest

from streamproc.crops import CropOptions, cut_frames, plan_crops
from streamproc.errors import MachineError, VideoError
from streamproc.events import PersonEmbedding, TrackSuspect, VideoClosed
from streamproc.gallery import has_veto, load_curves
from streamproc.networks.manifest import package_file
from streamproc.pipeline.job import Stop, VideoJob
from streamproc.pipeline.pipeline import Pipeline
from streamproc.pipeline.resources import VideoStats
from streamproc.pipeline.run import FRAMES_A_BATCH, FRAMES_A_LATE_BATCH, LATE_FRAMES
from streamproc.reid import Embedder, find_weights
from streamproc.tracks import TracksFound, TracksFromFile, load_tracks
from streamproc.types import FrameBoxes, Track, TrackSet
from streamproc.video import Limits, open_video

PERSONS = {1, 2, 3, 4, 5, 6}  # in the sample


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    """An Embedder of the package's own weights."""
    return Embedder(find_weights(None, cache_folder=tmp_path_factory.mktemp("cache")))


def known_tracks(sample) -> TracksFromFile:
    """The sample's tracks, which are known before decoding."""
    return TracksFromFile(lambda: load_tracks(sample / "sample.persons.npz"))


def job(sample, video_id="v", tracks=None, **options) -> VideoJob:
    """A job on the sample."""
    return VideoJob(
        path=sample / "sample.mp4",
        video_id=video_id,
        gallery_id="g",
        tracks=tracks or known_tracks(sample),
        submitted_at="2026-11-24T12:00:00Z",
        options=CropOptions(**options),
        similarity_threshold=0.7,
    )


def pipeline(
    embedder, publish, *, write_animation=None, memory=64 * 2**20, embed_ahead=False, **more
) -> Pipeline:
    """A pipeline of this embedder."""
    return Pipeline(
        load_network=lambda: embedder,
        publish=publish,
        write_animation=write_animation,
        crop_memory_bytes=memory,
        limits=Limits(),
        embed_ahead=embed_ahead,
        **more,
    )


class Published:
    """Collects events."""

    def __init__(self):
        self.events = []

    async def __call__(self, event):
        self.events.append(event)

    def vectors(self):
        return {
            e.person_id: e.vector.numpy() for e in self.events if isinstance(e, PersonEmbedding)
        }


async def process(embedder, a_job, **more):
    """Process one job; return the events, the statistics and the summary."""
    stats = VideoStats()
    published = Published()
    async with pipeline(embedder, published, **more) as running:
        summary = await running.process(a_job, stats, Stop())
    return published, stats, summary


@pytest.fixture
def gate(monkeypatch):
    """Frames after those of the batch with frame 62 are cut only once this is set.

    So what must happen before can be waited for.
    """
    opened = threading.Event()
    last_of_batch = 62 + FRAMES_A_BATCH

    def cut_when_open(frames, cuts, store):
        assert frames[0].frame_index <= last_of_batch or opened.wait(60), "nothing came before"
        return cut_frames(frames, cuts, store)

    monkeypatch.setattr("streamproc.pipeline.run.cut_frames", cut_when_open)
    return opened


async def test_a_person_is_published_at_their_last_planned_frame_while_the_video_goes_on(
    embedder, sample, gate
) -> None:
    """Person 1 leaves at frame 62; were they published at the end, the gate would never open."""
    stats = VideoStats()
    events = []

    async def publish(event):
        events.append(event)
        gate.set()

    async with pipeline(embedder, publish) as running:
        summary = await running.process(job(sample), stats, Stop())
    assert events[0].person_id == 1
    assert isinstance(events[-1], VideoClosed)
    assert events[-1].person_ids == [1, 2, 3, 4, 5, 6]
    assert (summary.outcome, stats.persons_embedded, stats.crops_embedded) == ("done", 6, 48)


async def test_the_same_job_gives_the_same_events(embedder, sample) -> None:
    """Two runs of a job have the same event ids; another option makes another run."""
    first, _, _ = await process(embedder, job(sample))
    second, _, _ = await process(embedder, job(sample))
    ids = {event.event_id for event in first.events}
    assert len(ids) == 7
    assert {event.event_id for event in second.events} == ids
    other, _, _ = await process(embedder, job(sample, crops_per_person=20))
    assert other.events[0].run_id != first.events[0].run_id


async def test_a_person_carries_where_they_were(embedder, sample) -> None:
    """The trajectory has the track's own boxes, its ends among them, and the picture's size."""
    published, _, _ = await process(embedder, job(sample))
    tracks = {track.person_id: track for track in load_tracks(sample / "sample.persons.npz").tracks}
    for event in published.events[:-1]:
        track = tracks[event.person_id]
        kept = np.isin(track.frame_indices, event.trajectory.frame_indices)
        assert track.frame_indices[kept].tolist() == event.trajectory.frame_indices
        np.testing.assert_array_equal(event.trajectory.numpy(), track.boxes_xyxy[kept])
        assert event.trajectory.frame_indices[0] == event.first_frame_index
        assert event.trajectory.frame_indices[-1] == event.last_frame_index
        video = event.trajectory
        assert (video.width_px, video.height_px) == (640, 360)
        assert video.frames_per_second == 25


async def test_a_tiny_memory_budget_changes_no_vector(embedder, sample) -> None:
    """Crops beyond the budget go through the temporary file, and come back as they were."""
    roomy, _, _ = await process(embedder, job(sample))
    tight, _, _ = await process(embedder, job(sample), memory=1)
    assert tight.vectors().keys() == roomy.vectors().keys() == PERSONS
    for person, vector in roomy.vectors().items():
        np.testing.assert_array_equal(tight.vectors()[person], vector)


async def test_embedding_ahead_changes_nothing_but_when(embedder, sample) -> None:
    """With crops embedded ahead events and vectors are those of the plain way."""
    plain, plain_stats, _ = await process(embedder, job(sample))
    ahead = None
    stats = VideoStats()
    published = Published()
    async with pipeline(embedder, published, embed_ahead=True) as running:
        await running.ready()
        await running.process(job(sample), stats, Stop())
        gc.collect()
        assert len(running.embed._vectors) == 0, (
            "the video's crops are gone, and with them their vectors"
        )
        ahead = running.embed.crops_ahead_used
    assert ahead > 0
    assert stats.crops_embedded == plain_stats.crops_embedded == 48
    assert [e.event_id for e in published.events] == [e.event_id for e in plain.events]
    assert plain.vectors().keys() == PERSONS
    for one, other in zip(plain.events[:-1], published.events[:-1], strict=True):
        assert (one.person_id, one.crops, one.crop_count) == (
            other.person_id,
            other.crops,
            other.crop_count,
        )
        np.testing.assert_allclose(other.vector.numpy(), one.vector.numpy(), atol=1e-6)


@pytest.mark.parametrize("embed_ahead", [True, False])
async def test_frames_come_few_at_a_time_where_a_bucket_is_nearly_full_and_is_embedded_ahead(
    embedder, sample, monkeypatch, embed_ahead
) -> None:
    """Near a full bucket few frames are cut at once, so that few crops are left to embed."""
    batches = []

    def note(frames, cuts, store):
        batches.append([frame.frame_index for frame in frames])
        return cut_frames(frames, cuts, store)

    monkeypatch.setattr("streamproc.pipeline.run.cut_frames", note)
    await process(embedder, job(sample), embed_ahead=embed_ahead)
    tracks = load_tracks(sample / "sample.persons.npz").tracks
    with open_video(sample / "sample.mp4") as video:
        size = {"width": video.width, "height": video.height}
        plan = plan_crops(tracks, video.frame_table, options=CropOptions(), **size)
    assert [frame for batch in batches for frame in batch] == plan.frame_indices.tolist()
    assert max(map(len, batches)) == FRAMES_A_BATCH
    nearly_full = set()
    for last in plan.last_frame.values():
        until_full = plan.frame_indices[plan.frame_indices <= last]
        nearly_full |= set(until_full[-LATE_FRAMES:].tolist())
    assert nearly_full < set(plan.frame_indices.tolist())
    if embed_ahead:
        late = [batch for batch in batches if nearly_full & set(batch)]
        assert all(len(batch) <= FRAMES_A_LATE_BATCH for batch in late)
    else:
        assert {len(batch) for batch in batches[:-1]} == {FRAMES_A_BATCH}


async def test_nothing_is_embedded_ahead_while_videos_share_the_network(embedder, sample) -> None:
    """With two videos in work no crop is embedded before a bucket is full."""
    published = Published()
    async with pipeline(embedder, published, embed_ahead=True) as running:
        await running.ready()
        jobs = (
            running.process(job(sample, video_id), VideoStats(), Stop())
            for video_id in ("v1", "v2")
        )
        together = asyncio.gather(*jobs)
        while not (published.events or together.done()):
            assert running.embed.crops_ahead == 0
            await asyncio.sleep(0)
        await together
        assert published.events


async def test_videos_at_the_same_time_share_batches_and_do_not_mix(embedder, sample) -> None:
    """Two videos at once have each the vectors that one has alone."""
    alone, _, _ = await process(embedder, job(sample))
    stats = [VideoStats(), VideoStats()]
    events = []

    async def publish(event):
        events.append(event)

    async with pipeline(embedder, publish) as running:
        await asyncio.gather(
            *(running.process(job(sample, f"v{i}"), stats[i], Stop()) for i in range(2))
        )
    for i in range(2):
        own = {
            e.person_id: e.vector.numpy()
            for e in events
            if e.video_id == f"v{i}" and isinstance(e, PersonEmbedding)
        }
        assert own.keys() == alone.vectors().keys() == PERSONS
        for person, vector in own.items():
            np.testing.assert_allclose(vector, alone.vectors()[person], atol=1e-5)


async def test_animations_that_hang_hold_up_no_embedding(embedder, sample) -> None:
    """All persons are published while no animation can be written."""
    gate = threading.Event()
    stats = VideoStats()
    published = Published()
    async with pipeline(
        embedder, published, write_animation=lambda *_: gate.wait(60) or None
    ) as running:
        await running.process(job(sample), stats, Stop())
        assert len(published.events) == 7
        assert stats.animations_done == 0
        gate.set()
    assert stats.animations_done == 6


async def test_animations_that_fail_are_named_each_and_stop_nothing(embedder, sample) -> None:
    """Each animation that fails is listed with its person, and the others are made."""

    def fail(_video_id, bucket):
        if bucket.person_id % 2:
            raise OSError(28, "No space left on device")

    stats = VideoStats()
    published = Published()
    async with pipeline(embedder, published, write_animation=fail) as running:
        await running.process(job(sample), stats, Stop())
    assert len(published.vectors()) == 6
    assert {person for _, person in running.animate.errors} == {1, 3, 5}
    assert stats.animations_done == 3


async def test_decoding_begins_while_the_network_still_loads(embedder, sample, monkeypatch) -> None:
    """Frames are cut before the network is there."""
    cut = threading.Event()

    def tell(frames, cuts, store):
        cut.set()
        return cut_frames(frames, cuts, store)

    def load():
        assert cut.wait(60), "nothing was decoded before the network was there"
        return embedder

    monkeypatch.setattr("streamproc.pipeline.run.cut_frames", tell)
    published, stats = Published(), VideoStats()
    running = Pipeline(
        load_network=load,
        publish=published,
        write_animation=None,
        crop_memory_bytes=2**26,
        limits=Limits(),
    )
    async with running:
        summary = await running.process(job(sample), stats, Stop())
    assert {event.run_id for event in published.events} == {summary.run_id}
    assert len(published.vectors()) == 6


async def test_without_a_network_animations_come_and_the_video_closes_with_nobody(sample) -> None:
    """Without a network every person has an animation and no vector."""
    drawn = []
    stats = VideoStats()
    published = Published()
    async with pipeline(
        None, published, write_animation=lambda _, bucket: drawn.append(bucket.person_id)
    ) as running:
        await running.process(job(sample), stats, Stop())
    assert sorted(drawn) == [1, 2, 3, 4, 5, 6]
    assert [e.person_ids for e in published.events] == [[]]


class BrokenNetwork:
    """Fails as a network does whose memory ran out."""

    name, weights_sha256, dim = "broken", "c" * 64, 512

    def submit(self, _make_pixels, **_):
        failed = Future()
        failed.set_exception(MachineError("the network broken failed on a batch"))
        return failed


async def test_a_fault_of_the_machine_ends_the_video_with_its_own_error(sample) -> None:
    """What the network raises is what `process` raises."""
    with pytest.raises(MachineError, match="failed on a batch"):
        await process(BrokenNetwork(), job(sample))


async def test_a_publisher_that_fails_ends_the_video_and_leaves_no_task(embedder, sample) -> None:
    """What the publisher raises is what `process` raises, and nothing runs on."""

    async def publish(_event):
        raise MachineError("the broker is away")

    before = asyncio.all_tasks()
    with pytest.raises(MachineError, match="the broker is away"):
        async with pipeline(embedder, publish) as running:
            await running.process(job(sample), VideoStats(), Stop())
    assert asyncio.all_tasks() == before


async def test_stopping_finishes_what_is_begun(embedder, sample, gate) -> None:
    """After a stop the persons in work are published and the closing says `cancelled`."""
    stop, stats = Stop(), VideoStats()
    events = []

    async def publish(event):
        events.append(event)
        stop.set()
        gate.set()

    async with pipeline(embedder, publish) as running:
        summary = await running.process(job(sample), stats, stop)
    assert summary.outcome == "cancelled"
    assert stats.frames_done < stats.frames_planned
    assert isinstance(events[-1], VideoClosed)
    assert events[-1].outcome == "cancelled"
    people = {e.person_id for e in events if isinstance(e, PersonEmbedding)}
    assert people == set(events[-1].person_ids)
    assert len(people) + len(summary.skipped) == 6


async def test_a_network_that_cannot_be_loaded_ends_the_video_with_its_own_error(sample) -> None:
    """What loading raises is what `process` raises."""

    def load():
        raise MachineError("no memory for the network")

    running = Pipeline(
        load_network=load,
        publish=Published(),
        write_animation=None,
        crop_memory_bytes=2**20,
        limits=Limits(),
    )
    with pytest.raises(MachineError, match="no memory for the network"):
        async with running:
            await running.process(job(sample), VideoStats(), Stop())


class HandedOut:
    """A tracker that hands out the boxes of a track file, frame by frame.

    It says that a track has ended `lag` frames after its last box.
    """

    def __init__(self, tracks, lag=0) -> None:
        self._lag = lag
        self._rows = {}
        self._last = {}
        for track in tracks:
            self._last[track.person_id] = int(track.frame_indices[-1])
            columns = (track.frame_indices.tolist(), track.boxes_xyxy, track.confidences)
            for frame, box, confidence in zip(*columns, strict=True):
                self._rows.setdefault(frame, []).append((track.person_id, box, confidence))
        self.frames = []

    def update(self, frames):
        return [self._boxes(frame.frame_index) for frame in frames]

    def _boxes(self, frame_index) -> FrameBoxes:
        self.frames.append(frame_index)
        rows = self._rows.get(frame_index, [])
        return FrameBoxes(
            frame_index,
            np.array([person for person, _, _ in rows], np.int64),
            np.array([box for _, box, _ in rows], np.float32).reshape(-1, 4),
            np.array([confidence for _, _, confidence in rows], np.float32),
            tuple(person for person, last in self._last.items() if last + self._lag == frame_index),
        )


async def found(embedder, sample, tracks=None, **options):
    """Process the sample clip with tracks that are found while it is decoded."""
    trackers = []

    def open_tracker(facts):
        assert (facts.width, facts.height, facts.frame_count) == (640, 360, 150)
        assert facts.frames_per_second == pytest.approx(25)
        given = load_tracks(sample / "sample.persons.npz").tracks if tracks is None else tracks
        trackers.append(HandedOut(given))
        return trackers[-1]

    source = TracksFound(open_tracker, identity="handed out")
    published, stats, summary = await process(embedder, job(sample, tracks=source, **options))
    assert trackers[0].frames == list(range(150)), "each frame is looked at once, in order"
    return published, stats, summary


async def test_tracks_that_are_found_while_decoding_give_the_same_persons(embedder, sample) -> None:
    """Boxes handed out frame by frame give the persons, times and vetoes of boxes known before."""
    known, _, planned = await process(embedder, job(sample))
    grown, stats, summary = await found(embedder, sample)
    assert summary.run_id != planned.run_id
    assert stats.persons_embedded == stats.persons_total == 6
    assert summary.tracks == planned.tracks
    before = {event.person_id: event for event in known.events[:-1]}
    for event in grown.events[:-1]:
        expected = before[event.person_id]
        assert event.seen_with == expected.seen_with
        assert event.trajectory == expected.trajectory
        assert event.frames_tracked == expected.frames_tracked
        assert event.first_seen_seconds == expected.first_seen_seconds
        assert event.last_seen_seconds == expected.last_seen_seconds
        assert event.vector.numpy() @ expected.vector.numpy() > 0.98
        assert len(event.crops) == 8
    closed = grown.events[-1]
    assert (closed.outcome, closed.person_ids) == ("done", [1, 2, 3, 4, 5, 6])


async def test_a_found_track_is_published_when_it_ends_while_the_video_goes_on(
    embedder, sample, gate
) -> None:
    """Person 1 leaves at frame 62; were they published at the end, the gate would never open."""
    tracks = load_tracks(sample / "sample.persons.npz").tracks
    source = TracksFound(lambda _: HandedOut(tracks), identity="handed out")
    events = []

    async def publish(event):
        events.append(event)
        gate.set()

    async with pipeline(embedder, publish) as running:
        await running.process(job(sample, tracks=source), VideoStats(), Stop())
    assert events[0].person_id == 1
    assert isinstance(events[-1], VideoClosed)


async def test_of_found_tracks_only_those_asked_for_are_published(embedder, sample) -> None:
    """`top_persons` counts boxes at the video's end, `min_track_frames` at a track's."""
    published, _, summary = await found(embedder, sample, top_persons=2, min_track_frames=70)
    most = sorted(summary.tracks, key=lambda person: -summary.tracks[person].box_count)
    assert published.events[-1].person_ids == sorted(most)
    assert len(most) == 2
    reasons = {skip.person_id: skip.reason for skip in summary.skipped}
    assert reasons.keys() | set(most) == {1, 2, 3, 4, 5, 6}
    assert any("not among the 2 persons" in reason for reason in reasons.values())
    assert any("fewer than the 70 asked for" in reason for reason in reasons.values())


async def test_a_video_in_which_nobody_is_found_closes_with_nobody(embedder, sample) -> None:
    """No box in any frame is a result, not a fault."""
    published, _, summary = await found(embedder, sample, tracks=())
    assert [event.person_ids for event in published.events] == [[]]
    assert summary.outcome == "done"


async def test_a_video_that_is_given_up_ends_the_reading_of_its_tracks(embedder, sample) -> None:
    """Reading begins before the video is open; cancelling while it lasts closes it."""
    begun = threading.Event()
    reading = threading.Event()
    closed = threading.Event()

    def load():
        reading.set()
        assert closed.wait(60), "nobody gave the reading up"
        raise MachineError("given up")

    source = TracksFromFile(load, begun.set, closed.set)
    async with pipeline(embedder, Published()) as running:
        task = asyncio.create_task(
            running.process(job(sample, tracks=source), VideoStats(), Stop())
        )
        assert await asyncio.to_thread(reading.wait, 60)
        assert begun.is_set()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert closed.is_set()


async def test_a_video_does_not_wait_for_the_hashing_of_another(embedder, sample, tmp_path) -> None:
    """The sample is done while a file of a GiB, begun before it, is still hashed."""
    large = tmp_path / "large.mp4"
    with large.open("wb") as file:
        file.truncate(2**30)
    (tmp_path / "large.persons.npz").write_bytes((sample / "sample.persons.npz").read_bytes())
    ended = []
    async with pipeline(embedder, Published()) as running:
        await running.ready()

        async def run(name, a_job):
            with contextlib.suppress(VideoError):
                await running.process(a_job, VideoStats(), Stop())
            ended.append(name)

        other = replace(job(sample, video_id="large"), path=large)
        await asyncio.gather(run("large", other), run("sample", job(sample)))
    assert ended == ["sample", "large"]


# Tracks that hold two people.


def joined(sample, person_id, *stretches) -> Track:
    """One track made of stretches of others, each a person of the sample and its frames."""
    own = {track.person_id: track for track in load_tracks(sample / "sample.persons.npz").tracks}
    pieces = []
    for person, first, last in stretches:
        frames = own[person].frame_indices
        pieces.append((own[person], (frames >= first) & (frames <= last)))
    return Track(
        person_id,
        np.concatenate([track.frame_indices[rows] for track, rows in pieces]),
        np.concatenate([track.boxes_xyxy[rows] for track, rows in pieces]),
        np.concatenate([track.confidences[rows] for track, rows in pieces]),
    )


def quick_to_suspect(weights_sha256):
    """The package's judge of tracks, that finds two people in more of them."""
    judge = load_curves(package_file("calibration.json"))[weights_sha256].track_judge
    return replace(judge, model=replace(judge.model, intercept=-3.0))


def of_kind(published, kind):
    """The published events of a kind."""
    return [event for event in published.events if isinstance(event, kind)]


async def test_a_track_that_goes_over_to_somebody_else_is_published_in_two_parts(
    embedder, sample
) -> None:
    """It is announced with the frame, then each part comes with its own frames, crops, vetoes."""
    others = [t for t in load_tracks(sample / "sample.persons.npz").tracks if t.person_id in {1, 6}]
    tracks = TrackSet((*others, joined(sample, 7, (3, 0, 73), (5, 74, 149))))
    source = TracksFromFile(lambda: tracks)
    published, stats, summary = await process(
        embedder, job(sample, tracks=source), load_judge=quick_to_suspect
    )
    [suspect] = of_kind(published, TrackSuspect)
    assert (suspect.person_key, suspect.frame_index) == ("v/7", 74)
    first, second = (e for e in of_kind(published, PersonEmbedding) if e.person_id == 7)
    assert published.events.index(suspect) < published.events.index(first)
    assert [part.person_key for part in suspect.parts] == ["v/7#1", "v/7#2"]
    for event, part, frames, apart in (
        (first, 1, (0, 73), ["v/1", "v/7#2"]),
        (second, 2, (74, 149), ["v/6", "v/7#1"]),
    ):
        assert (event.person_key, event.part) == (f"v/7#{part}", part)
        assert (event.first_frame_index, event.last_frame_index) == frames
        assert (event.trajectory.frame_indices[0], event.trajectory.frame_indices[-1]) == frames
        assert event.seen_with_keys == apart
        assert len(event.crops) == 8
        assert all(frames[0] <= crop.frame_index <= frames[1] for crop in event.crops)
    closed = of_kind(published, VideoClosed)[0]
    assert (closed.person_ids, closed.person_keys) == ([1, 6], ["v/1", "v/6", "v/7#1", "v/7#2"])
    assert list(summary.parts) == [7]
    assert (stats.persons_embedded, stats.tracks_split) == (3, 1)


async def test_the_parts_of_two_tracks_know_each_other(embedder, sample) -> None:
    """Parts that were seen in the same frames have a veto, others have none."""
    tracks = TrackSet(
        (
            joined(sample, 7, (3, 0, 73), (5, 74, 149)),
            joined(sample, 8, (2, 5, 73), (6, 92, 149)),
        )
    )
    source = TracksFromFile(lambda: tracks)
    published, _, _ = await process(
        embedder, job(sample, tracks=source), load_judge=quick_to_suspect
    )
    parts = {event.person_key: event for event in of_kind(published, PersonEmbedding)}
    assert set(parts) == {"v/7#1", "v/7#2", "v/8#1", "v/8#2"}
    assert has_veto(parts["v/7#1"], parts["v/8#1"])
    assert has_veto(parts["v/7#2"], parts["v/8#2"])
    assert not has_veto(parts["v/7#1"], parts["v/8#2"])
    assert not has_veto(parts["v/7#2"], parts["v/8#1"])


async def test_tracks_of_one_person_stay_whole_and_so_do_all_where_it_is_switched_off(
    embedder, sample
) -> None:
    """The sample's own tracks hold one person each, as the package's judge says."""
    curves = load_curves(package_file("calibration.json"))
    published, _, summary = await process(
        embedder, job(sample), load_judge=lambda sha256: curves[sha256].track_judge
    )
    assert len(published.events) == 7
    assert (summary.parts, published.events[-1].person_keys) == ({}, None)
    source = TracksFromFile(lambda: TrackSet((joined(sample, 7, (3, 0, 73), (5, 74, 149)),)))
    published, _, _ = await process(
        embedder, job(sample, tracks=source, split_tracks=False), load_judge=quick_to_suspect
    )
    assert [event.person_key for event in of_kind(published, PersonEmbedding)] == ["v/7"]


@pytest.mark.parametrize("ends", ["with boxes", "without"])
async def test_a_found_track_is_taken_apart_when_it_has_ended(embedder, sample, ends) -> None:
    """Until then it is one person, in revisions; whether its last revision was said or not."""
    # Of the second, nothing is said at the end, as it was lost and said for a second before.
    stretches = {"with boxes": ((3, 0, 73), (5, 74, 120)), "without": ((3, 44, 73), (5, 74, 103))}
    track = joined(sample, 7, *stretches[ends])
    lag = 0 if ends == "with boxes" else 30
    source = TracksFound(lambda _: HandedOut([track], lag), identity="handed out")
    published, _, _ = await process(
        embedder, job(sample, tracks=source), load_judge=quick_to_suspect, revises=True
    )
    persons = of_kind(published, PersonEmbedding)
    assert [event.person_key for event in persons] == ["v/7", "v/7#1", "v/7#2"]
    assert (persons[0].revision, persons[0].final) == (1, False)
    [suspect] = of_kind(published, TrackSuspect)
    assert suspect.frame_index == 74
    closed = published.events[-1]
    assert (closed.person_ids, closed.person_keys) == ([], ["v/7#1", "v/7#2"])
    assert closed.revisions is None
