"""READ FIRST: the stages of one video and how they are wired; replay and the stream both run this.

    decode ──frames──▶ crop ──crops──▶ bucket ──full buckets──┬──▶ embed ──▶ publish
    (thread)  bounded  (thread)        one a person           └──▶ animate (side path)

One event a person is published (of a track that seems to hold two people, one a part), then
`video-closed`. The side path may be slow or fail.

Where tracks come from decides when a bucket is full (`run.py`). Tracks of a file are known, so the
frames to decode are planned, and a bucket is complete at its last planned frame: the person is
embedded and published then, while the video goes on. Tracks that are found while decoding are
complete when they end.

Stages are plain synchronous classes and functions; this file, `run.py`, `embed.py` and `animate.py`
wire them and are asynchronous. Decoding, cropping and the network have one long-lived thread each;
the event loop never blocks. In the stream the network, while idle, embeds crops of nearly full
buckets ahead; the full bucket alone decides which count. Back-pressure goes upstream only through
bounded channels. Memory does not grow with the video's length: large crops are shrunk at once, and
all of them share one byte budget (`PixelStore`).
"""

from __future__ import annotations

import asyncio
import ctypes
import sys
import threading
from collections import Counter
from contextlib import AsyncExitStack, ExitStack
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import TYPE_CHECKING, Self

from threadpoolctl import ThreadpoolController  # type: ignore[import-untyped]

from streamproc.crops import PixelStore, plan_crops
from streamproc.crops.box_archive import BoxArchive
from streamproc.errors import InputError
from streamproc.files import sha256_of
from streamproc.ids import hash_of
from streamproc.pipeline.animate import AnimateStage, WriteAnimation
from streamproc.pipeline.embed import EmbedStage
from streamproc.pipeline.resources import Threads, VideoStats, run_timed
from streamproc.pipeline.run import (
    GrowingRun,
    PlannedRun,
    Run,
    RunContext,
    frames_per_second_of,
)
from streamproc.tracks import TracksFound, TracksFromFile, VideoFacts, fit_to_video
from streamproc.video import Limits, Video, open_video

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping
    from types import TracebackType

    import numpy as np
    import numpy.typing as npt

    from streamproc.crops import CropOptions, Plan
    from streamproc.gallery.linking.purity import TrackJudge
    from streamproc.pipeline.job import Published, RunOutcome, Stop, VideoJob
    from streamproc.pipeline.parts import Split, TrackPart
    from streamproc.reid import Embedder
    from streamproc.types import Skipped, TrackSet, TrackSpan

MANY_BOXES = 50_000
"""Planning fewer leaves some 2 MiB to return, which takes longer than planning saves."""
SWITCH_SECONDS = 0.0005
"""What a thread waits for the GIL before it asks: Python's 5 ms leave cores idle."""


@dataclass(frozen=True, slots=True, eq=False)
class VideoSummary:
    """What became of one video; `tracks` and `crop_counts` by person id, of those with crops.

    `parts` are those of tracks that hold two people, which are in `tracks` as a whole. `problems`
    and `hints` are of its tracks, `video_hints` of its pictures.
    """

    run_id: str
    outcome: RunOutcome
    tracks: Mapping[int, TrackSpan]
    crop_counts: Mapping[int, int]
    parts: Mapping[int, tuple[TrackPart, ...]]
    skipped: tuple[Skipped, ...]
    frame_count: int
    pts_seconds: npt.NDArray[np.float64]
    missing_frames: int
    undecodable_frames: int
    problems: Counter[str]
    hints: tuple[str, ...]
    video_hints: tuple[str, ...]
    description: dict[str, object]


class Pipeline:
    """What all videos of a process share: threads, network, animations, and the crops' memory.

    Use as an async context manager. `load_network` runs in a thread beside the first video's
    opening and planning; where it returns None no person is published. `publish` gets each event as
    soon as it is complete, never two at a time for one video. `weights_sha256` names the weights
    where another process embeds, so that runs have equal ids. `embed_ahead`: the network, while
    idle, embeds what nearly full buckets will probably choose. Their persons are published sooner
    and no vector changes, but some of these crops are never used: only while one video runs alone.
    `load_judge` gives by the sha256 of the weights what tells tracks that hold two people, None
    where nothing does; it runs after `load_network`. `show_parts` takes the parts of each such
    track, with their pixels, in a thread for animations, before they are published (first the
    `video_id`). `revises`: persons whose tracks are found are published while their tracks grow,
    several times.
    """

    def __init__(
        self,
        *,
        load_network: Callable[[], Embedder | None],
        publish: Callable[[Published], Awaitable[None]],
        write_animation: WriteAnimation | None,
        crop_memory_bytes: int,
        limits: Limits,
        decode_threads: int = 0,
        weights_sha256: str = "",
        embed_ahead: bool = False,
        revises: bool = False,
        load_judge: Callable[[str], TrackJudge | None] | None = None,
        show_parts: Callable[[str, Split], None] | None = None,
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
        self.revises = revises
        self._load_judge = load_judge
        self.show_parts = show_parts
        self.track_judge: TrackJudge | None = None
        self._running = 0

    async def __aenter__(self) -> Self:
        await self._stack.enter_async_context(self.threads)
        self._stack.enter_context(_PROCESS)
        self._network = asyncio.create_task(self._start_network(), name="load network")
        return self

    async def _start_network(self) -> None:
        embedder = await asyncio.to_thread(self._load_network)
        if embedder is not None:
            if self._load_judge is not None:
                self.track_judge = await asyncio.to_thread(
                    self._load_judge, embedder.weights_sha256
                )
            self._weights_sha256 = embedder.weights_sha256
            self.embed = await self._stack.enter_async_context(EmbedStage(embedder))

    async def __aexit__(
        self, kind: type[BaseException] | None, e: BaseException | None, t: TracebackType | None
    ) -> None:
        assert self._network is not None
        try:
            # Whoever needed the network has had its fault.
            await asyncio.gather(self._network, return_exceptions=True)
            if self.animate is not None:
                await (self.animate.join() if kind is None else self.animate.terminate())
        finally:  # a cancellation may come while this waits
            await self._stack.__aexit__(kind, e, t)

    @property
    def splits_tracks(self) -> bool:
        """Whether tracks that hold two people are looked for, if the weights can tell."""
        return self._load_judge is not None

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
        hashing = asyncio.create_task(self._sha256_of(job, stats))
        try:
            video = await run_timed(
                self.threads.prepare, stats.seconds, "index", lambda: self._open(job)
            )
        except BaseException:
            _give_up_reading(job)
            await asyncio.gather(hashing, return_exceptions=True)
            raise
        self.threads.decode.submit(video.get_ready)  # while the crops are planned
        loop = asyncio.get_running_loop()
        try:
            return await self._process_open(job, video, await hashing, stats, stop)
        finally:
            _give_up_reading(job)
            await asyncio.shield(loop.run_in_executor(self.threads.decode, video.close))

    async def _sha256_of(self, job: VideoJob, stats: VideoStats) -> str:
        if job.sha256 is not None:
            return job.sha256
        return await run_timed(
            self.threads.prepare, stats.seconds, "hash", lambda: sha256_of(job.path)
        )

    def _open(self, job: VideoJob) -> Video:
        if isinstance(job.tracks, TracksFromFile):
            job.tracks.begin()  # another process reads them while the video is opened
        return open_video(job.path, limits=self._limits, decode_threads=self._decode_threads)

    async def _process_open(
        self, job: VideoJob, video: Video, video_sha256: str, stats: VideoStats, stop: Stop
    ) -> VideoSummary:
        problems: Counter[str] = Counter()
        hints: tuple[str, ...] = ()
        identity = {}

        def make_run_id() -> str:
            return job.run_id(video_sha256, tracks_identity, self._weights_sha256)

        splits = self.splits_tracks and job.options.split_tracks
        boxes = BoxArchive() if splits else None
        context = RunContext(self, job, video, stats, stop, make_run_id, boxes)
        run: Run
        if isinstance(job.tracks, TracksFound):
            tracks_identity = job.tracks.identity
            identity = {"tracks_identity": hash_of(tracks_identity)}
            tracker = await asyncio.to_thread(job.tracks.open, _facts_of(video))
            stats.frames_planned = video.frame_count
            run = GrowingRun(context, tracker)
        else:
            planned = partial(_load_and_plan, job.tracks, job.options, video, boxes)
            tracks, plan = await run_timed(self.threads.prepare, stats.seconds, "plan", planned)
            problems, hints, tracks_identity = tracks.problems, tracks.hints, tracks.identity
            identity = {"tracks_sha256": tracks.sha256}
            tracks_identity = tracks_identity or tracks.sha256
            stats.frames_planned = len(plan.frame_indices)
            stats.persons_total = len(plan.tracks)
            run = PlannedRun(context, plan)
        outcome = await self._carry_out(run, job, stats, stop)
        summary = VideoSummary(
            run_id=run.run_id,
            outcome=outcome,
            tracks=run.tracks,
            crop_counts=run.crop_counts,
            parts=run.parts,
            skipped=run.all_skipped(),
            frame_count=video.frame_count,
            pts_seconds=video.frame_table.pts_seconds,
            missing_frames=video.missing_frames,
            undecodable_frames=len(video.undecodable),
            problems=problems,
            hints=hints,
            video_hints=_hints_of(video),
            description=_described(video, video_sha256) | identity,
        )
        if job.before_closing is not None:
            await job.before_closing(summary)
        await run.close(outcome)
        return summary

    async def _carry_out(
        self, run: Run, job: VideoJob, stats: VideoStats, stop: Stop
    ) -> RunOutcome:
        try:
            await run.stages()
        except InputError:
            await run.close("failed")
            raise
        await run.identify()
        cut_short = stop.is_set() and stats.frames_done < stats.frames_planned
        outcome: RunOutcome = stop.outcome if cut_short else "done"
        if outcome == "done" and job.keep_tracks is not None and isinstance(run, GrowingRun):
            await job.keep_tracks(run.run_id)
        return outcome


def _give_up_reading(job: VideoJob) -> None:
    if isinstance(job.tracks, TracksFromFile):
        job.tracks.close()


def _load_and_plan(
    source: TracksFromFile, options: CropOptions, video: Video, boxes: BoxArchive | None
) -> tuple[TrackSet, Plan]:
    """Read the tracks and plan their crops; the boxes themselves are kept in `boxes` alone."""
    width, height = video.width, video.height
    tracks = fit_to_video(source.load(), frame_count=video.frame_count, width=width, height=height)
    plan = plan_crops(tracks.tracks, video.frame_table, width=width, height=height, options=options)
    if boxes is not None:
        boxes.add(track for track in tracks.tracks if track.person_id in plan.tracks)
    box_count = sum(map(len, tracks.tracks))
    tracks = replace(tracks, tracks=())
    if box_count >= MANY_BOXES:
        _return_freed_memory()
    return tracks, plan


def _facts_of(video: Video) -> VideoFacts:
    frames_per_second = frames_per_second_of(video)
    return VideoFacts(video.width, video.height, video.frame_count, frames_per_second)


@cache
def _threadpools() -> ThreadpoolController:
    """The process's BLAS, which numpy has loaded.

    Kept, as looking for it again takes 10 ms where torch is loaded too.
    """
    return ThreadpoolController()


class _ProcessSettings:
    """What is changed in the whole process while pipelines run, and put back after the last one."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._users = 0
        self._stack = ExitStack()

    def __enter__(self) -> None:
        with self._lock:
            self._users += 1
            if self._users == 1:
                # The cores have work of their own; BLAS's threads would spin, waiting for each
                # other (measured: up to 0.4 s).
                self._stack.enter_context(_threadpools().limit(limits=1, user_api="blas"))
                self._stack.callback(sys.setswitchinterval, sys.getswitchinterval())
                sys.setswitchinterval(SWITCH_SECONDS)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._stack.close()


_PROCESS = _ProcessSettings()


def _return_freed_memory() -> None:
    """Planning a long video frees tens of MiB in pieces, which glibc would keep for later."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc's alone
    if trim is not None:
        trim(0)


def _hints_of(video: Video) -> tuple[str, ...]:
    """What was done so that frames could be used, in the words shown to a user."""
    hints = []
    if video.unknown_matrix is not None:
        hints.append(
            f"its colour matrix ({video.unknown_matrix}) cannot be converted from: BT.601, the "
            "default, was taken, so colours may be wrong"
        )
    if video.scaled_frames:
        hints.append(
            f"{video.scaled_frames} of its frames have another size than the first, and were "
            f"scaled to {video.width}x{video.height}"
        )
    return tuple(hints)


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
