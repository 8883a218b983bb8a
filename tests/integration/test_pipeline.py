"""The wiring of the stages: what leaves when, what waits for whom, and what a fault in one does to the others."""

from __future__ import annotations

import asyncio
import gc
import threading
from concurrent.futures import Future

import numpy as np
import pytest

from streamproc.crops import CropOptions, cut_frames
from streamproc.errors import MachineError
from streamproc.events import PersonEmbedding, VideoClosed
from streamproc.pipeline.job import VideoJob
from streamproc.pipeline.pipeline import (
    FRAMES_A_CALL,
    FRAMES_A_CALL_LAST,
    FRAMES_LAST,
    Pipeline,
    Stop,
    _Run,
)
from streamproc.pipeline.resources import VideoStats
from streamproc.reid import Embedder, find_weights
from streamproc.tracks import load_tracks
from streamproc.video import Limits


@pytest.fixture(scope="module")
def embedder(tmp_path_factory):
    return Embedder(find_weights(None, cache_folder=tmp_path_factory.mktemp("cache")))


def job(sample, video_id="v", **options) -> VideoJob:
    return VideoJob(
        path=sample / "sample.mp4",
        video_id=video_id,
        gallery_id="g",
        load_tracks=lambda: load_tracks(sample / "sample.persons.npz"),
        submitted_at="2026-11-24T12:00:00Z",
        options=CropOptions(**options),
        similarity_threshold=0.7,
    )


def pipeline(
    embedder, publish, *, write_animation=None, memory=64 * 2**20, embed_ahead=False
) -> Pipeline:
    return Pipeline(
        load_network=lambda: embedder,
        publish=publish,
        write_animation=write_animation,
        crop_memory_bytes=memory,
        limits=Limits(),
        embed_ahead=embed_ahead,
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
    stats = VideoStats()
    published = Published()
    async with pipeline(embedder, published, **more) as running:
        summary = await running.process(a_job, stats, Stop())
    return published, stats, summary


@pytest.fixture
def gate(monkeypatch):
    """Lots that begin after frame 62 are cut only once this is set: what must happen before can be waited for."""
    opened = threading.Event()

    def cut_when_open(frames, cuts, store):
        assert frames[0].frame_index <= 62 or opened.wait(60), (
            "what should have come before has not"
        )
        return cut_frames(frames, cuts, store)

    monkeypatch.setattr("streamproc.pipeline.pipeline.cut_frames", cut_when_open)
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
    first, second = [(await process(embedder, job(sample)))[0] for _ in range(2)]
    assert {e.event_id for e in first.events} == {e.event_id for e in second.events}
    other, _, _ = await process(embedder, job(sample, crops_per_person=20))
    assert other.events[0].run_id != first.events[0].run_id


async def test_a_tiny_memory_budget_changes_no_vector(embedder, sample) -> None:
    """Crops beyond the budget go through the temporary file."""
    roomy, _, _ = await process(embedder, job(sample))
    tight, _, _ = await process(embedder, job(sample), memory=1)
    for person, vector in roomy.vectors().items():
        np.testing.assert_array_equal(tight.vectors()[person], vector)


async def test_embedding_ahead_changes_nothing_but_when(embedder, sample) -> None:
    plain, plain_stats, _ = await process(embedder, job(sample))
    ahead, stats, published = None, VideoStats(), Published()
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
    lots = []
    cut = _Run._cut

    def noted(run, frames):
        lots.append([frame.frame_index for frame in frames])
        return cut(run, frames)

    monkeypatch.setattr(_Run, "_cut", noted)
    _, _, summary = await process(embedder, job(sample), embed_ahead=embed_ahead)
    plan = summary.plan
    assert [frame for lot in lots for frame in lot] == plan.frame_indices.tolist()
    assert max(map(len, lots)) == FRAMES_A_CALL
    nearly_full = {
        frame
        for last in plan.last_frame.values()
        for frame in plan.frame_indices[plan.frame_indices <= last][-FRAMES_LAST:].tolist()
    }
    assert nearly_full < set(plan.frame_indices.tolist())
    if embed_ahead:
        assert all(len(lot) <= FRAMES_A_CALL_LAST for lot in lots if nearly_full & set(lot))
    else:
        assert {len(lot) for lot in lots[:-1]} == {FRAMES_A_CALL}


async def test_nothing_is_embedded_ahead_while_videos_share_the_network(embedder, sample) -> None:
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
        assert own.keys() == alone.vectors().keys()
        for person, vector in own.items():
            np.testing.assert_allclose(vector, alone.vectors()[person], atol=1e-5)


async def test_animations_that_hang_hold_up_no_embedding(embedder, sample) -> None:
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
    cut = threading.Event()

    def tell(frames, cuts, store):
        cut.set()
        return cut_frames(frames, cuts, store)

    def load():
        assert cut.wait(60), "nothing was decoded before the network was there"
        return embedder

    monkeypatch.setattr("streamproc.pipeline.pipeline.cut_frames", tell)
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
    with pytest.raises(MachineError, match="failed on a batch"):
        await process(BrokenNetwork(), job(sample))


async def test_a_publisher_that_fails_ends_the_video_and_leaves_no_task(embedder, sample) -> None:
    async def publish(_event):
        raise MachineError("the broker is away")

    before = asyncio.all_tasks()
    with pytest.raises(MachineError, match="the broker is away"):
        async with pipeline(embedder, publish) as running:
            await running.process(job(sample), VideoStats(), Stop())
    assert asyncio.all_tasks() == before


async def test_stopping_finishes_what_is_begun(embedder, sample, gate) -> None:
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
