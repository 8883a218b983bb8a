"""READ FIRST: the stages of one video and how they are wired; replay and the stream both run this.

    decode ──frames──▶ crop ──crops──▶ bucket ──full buckets──┬──▶ embed ──▶ publish (one event a person, then closed)
    (thread)  bounded  (thread)        a person               └──▶ animate (side path: may be slow or fail)

Which frames are decoded is planned from the tracks first, so a bucket is complete at its last
planned frame: the person is embedded and published then, while the video goes on. Stages are plain
synchronous classes and functions; only this file is asynchronous. Decoding, cropping and the
network have one long-lived thread each; the event loop never blocks. In the stream the network,
while idle, embeds crops of nearly full buckets ahead; the full bucket alone decides. Back-pressure
goes upstream only through bounded channels. Memory does not grow with the video's length: large
crops are shrunk at once, and all of them share one byte budget (`PixelStore`).
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import islice
from typing import TYPE_CHECKING, Literal, Self, TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from streamproc.channel import Channel
from streamproc.crops import Buckets, PixelStore, Plan, cut_frames, plan_crops
from streamproc.errors import InputError, StreamprocError
from streamproc.events import ModelInfo, PersonEmbedding, VideoClosed
from streamproc.files import sha256_of
from streamproc.pipeline.animate import AnimateStage, RunIds, WriteAnimation
from streamproc.pipeline.embed import EmbedStage
from streamproc.pipeline.job import VideoJob, closed_event, person_event
from streamproc.pipeline.resources import Threads, VideoStats, call
from streamproc.tracks import fit_to_video
from streamproc.types import Skipped
from streamproc.video import Frame, Limits, Video, open_video

if TYPE_CHECKING:
    from collections import Counter
    from collections.abc import Awaitable, Callable
    from types import TracebackType

    import numpy.typing as npt

    from streamproc.pipeline.job import Outcome
    from streamproc.reid import Embedder
    from streamproc.types import Bucket, Crop, Float32Array, Int64Array, TrackSet

T = TypeVar("T")

FRAMES_A_CALL = (
    16  # handing work to a thread costs 80 µs and stirs the caches; with 8 replay took 5 % longer
)
FRAMES_A_CALL_LAST = 2  # where crops are embedded ahead, and
FRAMES_LAST = 16  # a bucket is full in as many frames: the fewer of its crops come at once, the fewer are left then
FRAMES_AHEAD = 64  # how many planned frames before a bucket is full its crops are embedded, where the network is idle
BYTES_A_CALL = 13 * 2**20  # four frames of 1080p: three such lots are in memory at once
MANY_BOXES = (
    50_000  # planning fewer leaves some 2 MiB to return, which takes longer than planning saves
)
SWITCH_SECONDS = (
    0.0005  # what a thread waits for the GIL before it asks: Python's 5 ms leave cores idle
)


class Stop(asyncio.Event):
    """Set, it ends videos early: what is complete or begun is finished, the outcome is `outcome`."""

    outcome: Literal["cancelled", "failed"] = "cancelled"


@dataclass(frozen=True, slots=True, eq=False)
class VideoSummary:
    """What became of one video."""

    run_id: str
    outcome: Outcome
    plan: Plan
    skipped: tuple[Skipped, ...]
    frame_count: int
    pts_seconds: npt.NDArray[np.float64]
    missing_frames: int
    undecodable_frames: int
    problems: Counter[str]
    hints: tuple[str, ...]
    description: dict[str, object]


class Pipeline:
    """What all videos of a process share: threads, network, animations, and the crops' memory.

    Use as an async context manager. `load_network` runs in a thread beside the first video's
    opening and planning; where it returns None no person is published. `publish` gets each event as
    soon as it is complete, never two at a time for one video. `weights_sha256` names the weights
    where another process embeds, so that runs have equal ids. `embed_ahead`: the network, while
    idle, embeds what nearly full buckets will probably choose. Their persons are published sooner
    and no vector changes, but some crops are embedded in vain: so only while one video runs alone.
    """

    def __init__(
        self,
        *,
        load_network: Callable[[], Embedder | None],
        publish: Callable[[PersonEmbedding | VideoClosed], Awaitable[None]],
        write_animation: WriteAnimation | None,
        crop_memory_bytes: int,
        limits: Limits,
        decode_threads: int = 0,
        weights_sha256: str = "",
        embed_ahead: bool = False,
    ) -> None:
        self._stack = AsyncExitStack()
        self.threads = Threads()
        self.embed: EmbedStage | None = None
        self._load_network = load_network
        self._network: asyncio.Task[None] | None = None
        self.animate = (
            None if write_animation is None else AnimateStage(write_animation, self.threads)
        )
        self.publish = publish
        self.store = PixelStore(crop_memory_bytes)
        self._limits = limits
        self._decode_threads = decode_threads
        self._weights_sha256 = weights_sha256
        self._embed_ahead = embed_ahead
        self._running = 0

    async def __aenter__(self) -> Self:
        self._stack.enter_context(self.threads)
        # The cores have work of their own; BLAS's threads would spin, waiting for each other
        # (measured: up to 0.4 s).
        self._stack.enter_context(_threadpools().limit(limits=1, user_api="blas"))
        self._stack.callback(sys.setswitchinterval, sys.getswitchinterval())
        sys.setswitchinterval(SWITCH_SECONDS)
        self._network = asyncio.create_task(self._start_network(), name="load network")
        return self

    async def _start_network(self) -> None:
        embedder = await asyncio.to_thread(self._load_network)
        if embedder is not None:
            self._weights_sha256 = embedder.weights_sha256
            self.embed = await self._stack.enter_async_context(EmbedStage(embedder))

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        assert self._network is not None
        await asyncio.gather(
            self._network, return_exceptions=True
        )  # whoever needed it has had its fault
        if self.animate is not None:
            await (self.animate.finish() if kind is None else self.animate.abandon())
        await self._stack.__aexit__(kind, e, t)

    @property
    def embeds_ahead(self) -> bool:
        """Whether crops are embedded ahead now."""
        return self._embed_ahead and self._running == 1

    async def ready(self) -> None:
        """Wait until the network is loaded; raises what `load_network` raised."""
        assert self._network is not None
        await asyncio.shield(self._network)

    async def process(self, job: VideoJob, stats: VideoStats, stop: Stop) -> VideoSummary:
        """Take one video through all stages.

        Raises VideoError or TracksError for bad input (after a `video-closed` with the outcome
        `failed`, if persons may have been published), MachineError for a fault of the machine.
        """
        self._running += 1
        try:
            return await self._process(job, stats, stop)
        finally:
            self._running -= 1

    async def _process(self, job: VideoJob, stats: VideoStats, stop: Stop) -> VideoSummary:
        video_sha256 = asyncio.ensure_future(
            call(self.threads.crop, stats.seconds, "hash", lambda: sha256_of(job.path))
        )
        try:
            video = await call(
                self.threads.decode,
                stats.seconds,
                "index",
                lambda: open_video(
                    job.path, limits=self._limits, decode_threads=self._decode_threads
                ),
            )
        except BaseException:
            await asyncio.gather(video_sha256, return_exceptions=True)
            raise
        self.threads.decode.submit(video.get_ready)  # while the crops are planned
        try:
            return await self._process_open(job, video, await video_sha256, stats, stop)
        finally:
            await asyncio.shield(
                asyncio.get_running_loop().run_in_executor(self.threads.decode, video.close)
            )

    async def _process_open(
        self, job: VideoJob, video: Video, video_sha256: str, stats: VideoStats, stop: Stop
    ) -> VideoSummary:
        def prepare() -> tuple[TrackSet, Plan, int]:
            tracks = fit_to_video(
                job.load_tracks(),
                frame_count=video.frame_count,
                width=video.width,
                height=video.height,
            )
            plan = plan_crops(
                tracks.tracks,
                video.frame_table,
                width=video.width,
                height=video.height,
                options=job.options,
            )
            return replace(tracks, tracks=()), plan, sum(map(len, tracks.tracks))

        tracks, plan, box_count = await call(self.threads.crop, stats.seconds, "plan", prepare)
        if box_count >= MANY_BOXES:
            _return_freed_memory()
        stats.frames_planned, stats.persons_total = len(plan.frame_indices), len(plan.tracks)
        run = _Run(
            self,
            job,
            video,
            plan,
            stats,
            stop,
            lambda: job.run_id(video_sha256, tracks.sha256, self._weights_sha256),
        )
        try:
            await run.stages()
        except InputError:
            await run.identify()
            await run.publish(run.closed("failed"))
            raise
        cut_short = stop.is_set() and stats.frames_done < stats.frames_planned
        outcome: Outcome = stop.outcome if cut_short else "done"
        await run.publish(run.closed(outcome))
        return VideoSummary(
            run_id=run.run_id,
            outcome=outcome,
            plan=plan,
            skipped=run.all_skipped(),
            frame_count=video.frame_count,
            pts_seconds=video.frame_table.pts_seconds,
            missing_frames=video.missing_frames,
            undecodable_frames=len(video.undecodable),
            problems=tracks.problems,
            hints=tracks.hints,
            description=_described(video, video_sha256),
        )


class _Run:
    """One video on its way through the stages.

    Its first frames are decoded while the network still loads: only then its id is known, which
    names the weights.
    """

    def __init__(
        self,
        pipeline: Pipeline,
        job: VideoJob,
        video: Video,
        plan: Plan,
        stats: VideoStats,
        stop: Stop,
        make_run_id: Callable[[], str],
    ) -> None:
        self._pipeline, self._job, self._video, self._plan = pipeline, job, video, plan
        self._stats, self._stop, self._make_run_id = stats, stop, make_run_id
        self.run_id = ""
        self._publishing = asyncio.Lock()
        self._published: list[int] = []
        self.skipped: list[Skipped] = []

    async def identify(self) -> None:
        """Wait for the network, then know the run's id; raises what loading it raised."""
        if not self.run_id:
            await self._pipeline.ready()
            self.run_id = self._make_run_id()

    async def stages(self) -> None:
        frames: Channel[list[Frame]] = Channel(1)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._decode(frames), name="decode")
                group.create_task(self._crop(frames, group), name="crop")
        except BaseExceptionGroup as group_error:
            raise _first_cause(group_error) from group_error

    async def _decode(self, frames: Channel[list[Frame]]) -> None:
        source = self._video.frames(self._plan.frame_indices)
        frame_bytes = self._video.width * self._video.height * 3 // 2
        most = max(1, min(FRAMES_A_CALL, BYTES_A_CALL // frame_bytes))
        full_after, done = self._plan.full_after(), 0
        while not self._stop.is_set():
            count = min(most, self._frames_wanted(full_after, done))
            lot: list[Frame] = await self._in_thread("decode", partial(list, islice(source, count)))
            await frames.put(lot)
            if len(lot) < count:
                break
            done = int(np.searchsorted(self._plan.frame_indices, lot[-1].frame_index, side="right"))
        await frames.close()

    def _frames_wanted(self, full_after: Int64Array, done: int) -> int:
        """How many frames to decode at once; where crops are embedded ahead, few of a bucket's last ones."""
        if not self._pipeline.embeds_ahead:
            return FRAMES_A_CALL
        to_come = full_after[full_after > done] - done
        return (
            max(FRAMES_A_CALL_LAST, int(to_come[0]) - FRAMES_LAST)
            if to_come.size
            else FRAMES_A_CALL
        )

    async def _crop(self, frames: Channel[list[Frame]], group: asyncio.TaskGroup) -> None:
        buckets = Buckets(self._plan, crops_embedded=self._job.options.crops_embedded)
        async for (lot,) in frames.batches(1, 0):
            cut = await self._in_thread("crop", partial(self._cut, lot))
            for frame, crops in zip(lot, cut, strict=True):
                self._stats.frames_done += 1
                self._stats.crops_cut += len(crops)
                for bucket in buckets.add(frame.frame_index, crops):
                    await self._hand_on(bucket, group)
            if self._pipeline.embeds_ahead and self._pipeline.embed is not None:
                self._pipeline.embed.offer(buckets.likely(FRAMES_AHEAD))
            del lot, cut
        await self.identify()
        for bucket in buckets.finish():
            await self._hand_on(bucket, group)

    def _cut(self, frames: list[Frame]) -> list[list[Crop]]:
        return cut_frames(frames, self._plan.cuts, self._pipeline.store)

    async def _in_thread(self, stage: str, work: Callable[[], T]) -> T:
        return await call(getattr(self._pipeline.threads, stage), self._stats.seconds, stage, work)

    async def _hand_on(self, bucket: Bucket, group: asyncio.TaskGroup) -> None:
        """Give a full bucket to the network and to the side consumer."""
        await self.identify()
        if not bucket.crops:
            reason = (
                "given up before its first crop"
                if self._stop.is_set()
                else "none of its frames could be decoded"
            )
            self.skipped.append(Skipped(bucket.person_id, reason))
            return
        if self._pipeline.animate is not None:
            ids = RunIds(self._job.gallery_id, self._job.video_id, self.run_id)
            self._pipeline.animate.offer(ids, bucket, self._stats)
        if self._pipeline.embed is not None:
            vectors = await self._pipeline.embed.submit(bucket)
            group.create_task(self._announce(bucket, vectors))

    async def _announce(self, bucket: Bucket, vectors: asyncio.Future[Float32Array]) -> None:
        embedder = self._pipeline.embed.embedder  # type: ignore[union-attr] # there are vectors, so there is a network
        own = await vectors
        model = ModelInfo(name=embedder.name, weights_sha256=embedder.weights_sha256)
        await self.publish(
            person_event(self._job, self.run_id, self._video, self._plan, bucket, own, model)
        )
        self._published.append(bucket.person_id)
        self._stats.persons_embedded += 1
        self._stats.crops_embedded += len(bucket.embedded)

    async def publish(self, event: PersonEmbedding | VideoClosed) -> None:
        async with self._publishing:
            await self._pipeline.publish(event)

    def all_skipped(self) -> tuple[Skipped, ...]:
        return tuple(sorted([*self._plan.skipped, *self.skipped], key=lambda s: s.person_id))

    def closed(self, outcome: Outcome) -> VideoClosed:
        return closed_event(
            self._job, self.run_id, self._video, outcome, self._published, self.all_skipped()
        )


@cache
def _threadpools() -> ThreadpoolController:
    """The process's BLAS, which numpy has loaded; looking for it again takes 10 ms where torch is loaded too."""
    return ThreadpoolController()


def _return_freed_memory() -> None:
    """Planning a long video takes and frees tens of MiB in pieces, which glibc would keep for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _described(video: Video, video_sha256: str) -> dict[str, object]:
    return {
        "sha256": video_sha256,
        "codec": video.codec_name,
        "width_px": video.width,
        "height_px": video.height,
        "frame_count": video.frame_count,
        "missing_frames": video.missing_frames,
        "frames_decoded": video.frames_decoded,
        "packets_sent": video.packets_sent,
        "seeks": video.seeks,
        "decoded_from_start": video.fell_back,
    }


def _first_cause(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """One video has one fate: the first fault is what its owner hears of, an error of ours before others."""
    ours, others = group.split(StreamprocError)
    cause: BaseException = ours or others or group
    while isinstance(cause, BaseExceptionGroup):
        cause = cause.exceptions[0]
    return cause
