"""One video on its way through the stages: its tracks are known, or found while decoding."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np

from streamproc.channel import Channel
from streamproc.crops import Buckets, cut_frames
from streamproc.crops.growing import GrowingBuckets
from streamproc.errors import StreamprocError
from streamproc.events import ModelInfo
from streamproc.ids import person_key_of
from streamproc.pipeline.animate import RunIds
from streamproc.pipeline.job import TrackedPerson, closed_event, person_event, suspect_event
from streamproc.pipeline.parts import TrackPart, TrackSplitter
from streamproc.pipeline.resources import run_timed
from streamproc.types import Skipped

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from streamproc.crops import Plan
    from streamproc.crops.box_archive import BoxArchive
    from streamproc.crops.growing import GrownTrack
    from streamproc.pipeline.job import Published, RunOutcome, Stop, VideoJob
    from streamproc.pipeline.parts import Split
    from streamproc.pipeline.pipeline import Pipeline
    from streamproc.pipeline.resources import VideoStats
    from streamproc.tracks import FrameTracker
    from streamproc.types import Bucket, Crop, Float32Array, Int64Array, TrackSpan
    from streamproc.video import Frame, Video

T = TypeVar("T")

FRAMES_A_BATCH = 16
"""Handing work to a thread costs 80 µs and cold caches; with 8 frames replay took 5 % longer."""
BYTES_A_BATCH = 13 * 2**20
"""Four frames of 1080p: three such batches are in memory at once."""
FRAMES_A_LATE_BATCH = 2
"""Where crops are embedded ahead, the last frames before a bucket is full come in small batches:
the fewer crops come at once, the fewer are left to embed then."""
LATE_FRAMES = 16
"""How many frames before a bucket is full count as its last."""
FRAMES_AHEAD = 64
"""So many planned frames before a bucket is full its crops are embedded, if the network is idle."""


@dataclass(frozen=True, slots=True, eq=False)
class RunContext:
    """What a run works on and with; `make_run_id` is called once the network is loaded.

    `boxes` are all of the video, where tracks that hold two people are looked for.
    """

    pipeline: Pipeline
    job: VideoJob
    video: Video
    stats: VideoStats
    stop: Stop
    make_run_id: Callable[[], str]
    boxes: BoxArchive | None = None


class Run(ABC):
    """What both kinds of run share: identity, publishing, and where full buckets go.

    The first frames are decoded while the network still loads; only then the run's id is known,
    which names the weights. `tracks` and `crop_counts` are by person id, of those with crops;
    `parts` of those that hold two people.
    """

    def __init__(self, context: RunContext) -> None:
        self._pipeline = context.pipeline
        self._job = context.job
        self._video = context.video
        self._stats = context.stats
        self._stop = context.stop
        self._make_run_id = context.make_run_id
        self.run_id = ""
        self.tracks: dict[int, TrackSpan] = {}
        self.crop_counts: dict[int, int] = {}
        self.parts: dict[int, tuple[TrackPart, ...]] = {}
        self.skipped: list[Skipped] = []
        self._boxes = context.boxes
        self._splitter: TrackSplitter | None = None
        self._splitting = asyncio.Lock()
        self._publishing = asyncio.Lock()
        self._published: dict[int, int | None] = {}  # by person id, the last revision

    async def identify(self) -> None:
        """Wait for the network, then know the run's id; raises what loading it raised."""
        if not self.run_id:
            await self._pipeline.ready()
            self.run_id = self._make_run_id()
            self._splitter = self._make_splitter()

    def _make_splitter(self) -> TrackSplitter | None:
        judge = self._pipeline.track_judge
        if judge is None or self._boxes is None:
            return None
        return TrackSplitter(
            judge,
            self._boxes,
            video_id=self._job.video_id,
            crops_embedded=self._job.options.crops_embedded,
        )

    async def stages(self) -> None:
        """Take the video through all stages; raises the first fault."""
        frames: Channel[list[Frame]] = Channel(1)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._decode(frames), name="decode")
                group.create_task(self._crop(frames, group), name="crop")
        except BaseExceptionGroup as group_error:
            raise _first_cause(group_error) from group_error

    async def close(self, outcome: RunOutcome) -> None:
        """Publish that the video has ended, with the persons that were published."""
        await self.identify()
        event = closed_event(
            self._job,
            self.run_id,
            self._video,
            outcome,
            self._published,
            self.all_skipped(),
            [
                person_key_of(self._job.video_id, person_id, one.part)
                for person_id, parts in self.parts.items()
                for one in parts
            ],
        )
        await self._publish(event)

    def all_skipped(self) -> tuple[Skipped, ...]:
        """Return who was left out, and why, by rising id."""
        return tuple(sorted(self.skipped, key=lambda skip: skip.person_id))

    @abstractmethod
    def _wanted(self) -> Int64Array:
        """Return the indices of the frames to decode, ascending."""

    @abstractmethod
    async def _crop(self, frames: Channel[list[Frame]], group: asyncio.TaskGroup) -> None:
        """Make buckets of the frames as they come, and submit those that are complete."""

    def _frames_at_once(self, frames_done: int) -> int:
        """Return how many frames to decode next; `frames_done` of the wanted ones are out."""
        del frames_done
        return FRAMES_A_BATCH

    async def _decode(self, frames: Channel[list[Frame]]) -> None:
        wanted = self._wanted()
        source = self._video.frames(wanted)
        frame_bytes = self._video.width * self._video.height * 3 // 2
        most = max(1, min(FRAMES_A_BATCH, BYTES_A_BATCH // frame_bytes))
        frames_done = 0
        while not self._stop.is_set():
            count = min(most, self._frames_at_once(frames_done))
            batch = await self._in_thread("decode", partial(_take, source, count))
            await frames.put(batch)
            if len(batch) < count:
                break
            frames_done = int(np.searchsorted(wanted, batch[-1].frame_index, side="right"))
        await frames.close()

    async def _in_thread(self, stage: str, work: Callable[[], T]) -> T:
        pool = getattr(self._pipeline.threads, stage)
        return await run_timed(pool, self._stats.seconds, stage, work)

    async def _submit(self, person: TrackedPerson, group: asyncio.TaskGroup) -> None:
        """Give a full bucket to the network and to the side consumer."""
        await self.identify()
        bucket = person.bucket
        if not bucket.crops:
            self.skipped.append(Skipped(bucket.person_id, self._why_empty()))
            return
        if self._pipeline.animate is not None and person.is_final is not False:
            ids = RunIds(self._job.gallery_id, self._job.video_id, self.run_id)
            self._pipeline.animate.offer(ids, bucket, self._stats)
        if self._pipeline.embed is not None:
            vectors = await self._pipeline.embed.submit(bucket)
            group.create_task(self._announce(person, vectors))

    def _why_empty(self) -> str:
        if self._stop.is_set():
            return "given up before its first crop"
        return "none of its frames could be decoded"

    async def _announce(self, person: TrackedPerson, coming: asyncio.Future[Float32Array]) -> None:
        """Publish a person as soon as the vectors of its crops are there."""
        vectors = await coming
        self._stats.crops_embedded += len(person.bucket.embedded)
        if person.is_final is not False:
            split = await self._split_of(person, vectors)
            if split is not None:
                await self._announce_parts(split)
                return
        await self._publish_person(person, vectors)
        self._stats.persons_embedded += person.person_id not in self._published
        self._published[person.person_id] = person.revision

    def _may_hold_two(self, person: TrackedPerson, vectors: Float32Array) -> bool:
        return self._splitter is not None and self._splitter.may_hold_two(person, vectors)

    async def _split_of(self, person: TrackedPerson, vectors: Float32Array) -> Split | None:
        """Return the parts of a track that has ended and seems to hold two people."""
        if not self._may_hold_two(person, vectors):
            return None
        assert self._splitter is not None
        async with self._splitting:  # the parts of two tracks must know each other
            split = partial(self._splitter.split, person, vectors)
            return await run_timed(
                self._pipeline.threads.prepare, self._stats.seconds, "split", split
            )

    async def _announce_parts(self, split: Split) -> None:
        """Publish that a track seems to hold two people, then both as persons of their own."""
        assert self._pipeline.embed is not None
        coming = [await self._pipeline.embed.submit(part.bucket) for part in split.parts]
        vectors = [await one for one in coming]
        if self._pipeline.show_parts is not None:
            show = partial(self._pipeline.show_parts, self._job.video_id, split)
            threads = self._pipeline.threads
            await run_timed(threads.animation, self._stats.seconds, "animate", show)
        suspect = suspect_event(self._job, self.run_id, self._video, split, self._model())
        await self._publish(suspect)
        person_id = suspect.person_id
        for part, own in zip(split.parts, vectors, strict=True):
            await self._publish_person(part, own)
            self._stats.crops_embedded += len(part.bucket.embedded)
        self._stats.persons_embedded += person_id not in self._published
        self._stats.tracks_split += 1
        self._published.pop(person_id, None)
        self.parts[person_id] = tuple(
            TrackPart(number, part.span, len(part.bucket.crops))
            for number, part in enumerate(split.parts, 1)
        )

    async def _publish_person(self, person: TrackedPerson, vectors: Float32Array) -> None:
        event = person_event(self._job, self.run_id, self._video, person, vectors, self._model())
        await self._publish(event)

    def _model(self) -> ModelInfo:
        assert self._pipeline.embed is not None
        embedder = self._pipeline.embed.embedder
        return ModelInfo(name=embedder.name, weights_sha256=embedder.weights_sha256)

    async def _publish(self, event: Published) -> None:
        async with self._publishing:
            await self._pipeline.publish(event)


class PlannedRun(Run):
    """A run whose tracks are known: only planned frames are decoded.

    A person is published at its last planned frame, while the video goes on. Where crops are
    embedded ahead, the network, while idle, takes those of nearly full buckets.
    """

    def __init__(self, context: RunContext, plan: Plan) -> None:
        super().__init__(context)
        self._plan = plan
        self._full_after = plan.full_after()
        self.tracks = dict(plan.tracks)
        self.crop_counts = dict(plan.crop_count)
        self.skipped = list(plan.skipped)

    def _wanted(self) -> Int64Array:
        return self._plan.frame_indices

    def _frames_at_once(self, frames_done: int) -> int:
        if not self._pipeline.embeds_ahead:
            return FRAMES_A_BATCH
        frames_left = self._full_after[self._full_after > frames_done] - frames_done
        if not frames_left.size:
            return FRAMES_A_BATCH
        return max(FRAMES_A_LATE_BATCH, int(frames_left[0]) - LATE_FRAMES)

    async def _crop(self, frames: Channel[list[Frame]], group: asyncio.TaskGroup) -> None:
        buckets = Buckets(self._plan, crops_embedded=self._job.options.crops_embedded)
        async for (batch,) in frames.batches(1, 0):
            crops_of = await self._in_thread("crop", partial(self._cut, batch))
            for frame, crops in zip(batch, crops_of, strict=True):
                self._stats.frames_done += 1
                self._stats.crops_cut += len(crops)
                for bucket in buckets.add(frame.frame_index, crops):
                    await self._submit(self._person(bucket), group)
            if self._pipeline.embeds_ahead and self._pipeline.embed is not None:
                self._pipeline.embed.offer(buckets.likely(FRAMES_AHEAD))
            del batch, crops_of  # else their pixels would stay until the next batch
        await self.identify()
        for bucket in buckets.finish():
            await self._submit(self._person(bucket), group)

    def _cut(self, frames: list[Frame]) -> list[list[Crop]]:
        return cut_frames(frames, self._plan.cuts, self._pipeline.store)

    def _person(self, bucket: Bucket) -> TrackedPerson:
        person_id = bucket.person_id
        seen_with = self._plan.seen_with.get(person_id, ())
        return TrackedPerson(bucket, self._plan.tracks[person_id], seen_with)


class GrowingRun(Run):
    """A run whose tracks are found while decoding: every frame is decoded and looked at once.

    A person is published when its track has ended, and while it grows as well where the pipeline
    revises (see `crops.growing`). Where only the `top_persons` are wanted, nobody can be named
    before the video's end, so all wait until then.
    """

    def __init__(self, context: RunContext, tracker: FrameTracker) -> None:
        super().__init__(context)
        self._tracker = tracker
        self._buckets = GrowingBuckets(
            width=self._video.width,
            height=self._video.height,
            options=self._job.options,
            boxes=context.boxes,
        )
        self._revises = self._pipeline.revises and not self._job.options.top_persons
        self._lost_frames = max(1, round(frames_per_second_of(self._video)))  # a second
        # By person id: the last revision, where it may hold two people; of those whose tracks have
        # ended without another one, its number and who was seen apart from them.
        self._perhaps_two: dict[int, tuple[TrackedPerson, Float32Array]] = {}
        self._ended: dict[int, tuple[int, tuple[int, ...]]] = {}

    def _wanted(self) -> Int64Array:
        return np.arange(self._video.frame_count)

    async def _crop(self, frames: Channel[list[Frame]], group: asyncio.TaskGroup) -> None:
        waiting: list[GrownTrack] = []
        async for (batch,) in frames.batches(1, 0):
            taken = await self._in_thread("crop", partial(self._find_and_cut, batch))
            self._stats.frames_done += len(batch)
            del batch  # else its pixels would stay until the next batch
            waiting += taken
            if not self._job.options.top_persons:
                await self._submit_grown(waiting, group)
                waiting = []
        await self.identify()
        waiting += self._buckets.close_all()
        await self._submit_grown(self._top_of(waiting), group)

    def _find_and_cut(self, frames: list[Frame]) -> list[GrownTrack]:
        """Track and cut some frames in the crop thread, to which their pixels belong.

        Returns the tracks that have ended, and those of which a revision is due.
        """
        taken = []
        for frame, boxes in zip(frames, self._tracker.update(frames), strict=True):
            cuts = self._buckets.cuts(boxes)
            self._stats.tracks_found = self._buckets.track_count
            (crops,) = cut_frames([frame], {frame.frame_index: cuts}, self._pipeline.store)
            self._buckets.add(crops)
            self._stats.crops_cut += len(crops)
            taken += [self._buckets.close(person_id) for person_id in boxes.ended]
            if self._revises:
                due = self._buckets.due(frame.frame_index, lost_frames=self._lost_frames)
                taken += [self._buckets.revise(person_id) for person_id in due]
        return taken

    async def _submit_grown(self, tracks: list[GrownTrack], group: asyncio.TaskGroup) -> None:
        for track in tracks:
            if track.skipped is not None:
                self.skipped.append(track.skipped)
                continue
            person_id = track.bucket.person_id
            self.tracks[person_id] = track.span
            self.crop_counts[person_id] = len(track.bucket.crops)
            self._stats.persons_total += track.revision == 1 and track.is_news
            person = TrackedPerson(track.bucket, track.span, track.seen_with)
            if self._revises:
                person = replace(person, revision=track.revision, is_final=track.is_final)
            if track.is_news:
                await self._submit(person, group)
            elif self._revises:
                self._end(track, group)

    async def _announce(self, person: TrackedPerson, coming: asyncio.Future[Float32Array]) -> None:
        """Publish a person; who may be two people is looked at again when the track has ended."""
        await super()._announce(person, coming)
        vectors = coming.result()
        person_id = person.person_id
        self._perhaps_two.pop(person_id, None)
        if person.is_final is not False or not self._may_hold_two(person, vectors):
            return
        revision, seen_with = self._ended.get(person_id, (None, ()))
        if revision == person.revision:
            await self._announce_if_two(replace(person, seen_with=seen_with), vectors)
        else:
            self._perhaps_two[person_id] = person, vectors

    def _end(self, track: GrownTrack, group: asyncio.TaskGroup) -> None:
        """Take the end of a track whose last revision has all of it, published or on its way."""
        person_id = track.bucket.person_id
        self._ended[person_id] = track.revision, track.seen_with
        last = self._perhaps_two.pop(person_id, None)
        if last is not None and last[0].revision == track.revision:
            person = replace(last[0], seen_with=track.seen_with)
            group.create_task(self._announce_if_two(person, last[1]))

    async def _announce_if_two(self, person: TrackedPerson, vectors: Float32Array) -> None:
        split = await self._split_of(person, vectors)
        if split is not None:
            await self._announce_parts(split)

    def _top_of(self, closed: list[GrownTrack]) -> list[GrownTrack]:
        """Return the tracks with the most boxes, as many as are wanted; the others are skipped."""
        wanted = self._job.options.top_persons
        if not wanted:
            return closed
        most_first = sorted(
            closed, key=lambda track: (-track.span.box_count, track.bucket.person_id)
        )
        for track in most_first[wanted:]:
            reason = f"not among the {wanted} persons with the most frames"
            self.skipped.append(track.skipped or Skipped(track.bucket.person_id, reason))
        return most_first[:wanted]


def frames_per_second_of(video: Video) -> float:
    """Return the mean over the whole video, 0 where its times are not known."""
    pts_seconds = video.frame_table.pts_seconds
    span = float(pts_seconds[-1] - pts_seconds[0]) if len(pts_seconds) else 0.0
    return (len(pts_seconds) - 1) / span if span > 0 else 0.0


def _take(source: Iterator[Frame], count: int) -> list[Frame]:
    return list(islice(source, count))


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Return what a video's owner hears of: the first fault, an error of ours before others."""
    ours, others = group.split(StreamprocError)
    cause: BaseException = ours or others or group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
