"""The animate stage: writes animations beside the main path.

The main path neither waits for it nor fails with it.
"""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from streamproc.pipeline.resources import ANIMATION_THREADS, Threads, VideoStats, run_timed

if TYPE_CHECKING:
    from streamproc.types import Bucket

log = logging.getLogger(__name__)

ANIMATIONS_WAITING = 4096
"""Limits a number, not memory: the crops of waiting animations are in the PixelStore."""


@dataclass(frozen=True, slots=True)
class RunIds:
    """Which run of which video something belongs to."""

    gallery_id: str
    video_id: str
    run_id: str


class WriteAnimation(Protocol):
    """Writes one person's animation, in an animation thread.

    Whatever it raises is reported, and stops nothing else.
    """

    def __call__(self, run: RunIds, bucket: Bucket, /) -> None:
        """Encode and write."""
        ...


class AnimateStage:
    """Writes the animations of all videos of a process, a few at a time.

    Used by the pipeline in the event loop. Any number of videos share it.
    """

    def __init__(self, write: WriteAnimation, threads: Threads) -> None:
        self._write = write
        self._threads = threads
        self._tasks: dict[asyncio.Task[None], RunIds] = {}
        # Twice as many as threads, so that no thread waits for a busy event loop.
        self._room = asyncio.Semaphore(2 * ANIMATION_THREADS)
        self.errors: dict[tuple[str, int], str] = {}
        """Why there is no animation, by (video_id, person_id)."""

    @property
    def waiting(self) -> int:
        """How many animations are taken and not yet written."""
        return len(self._tasks)

    def offer(self, run: RunIds, bucket: Bucket, stats: VideoStats) -> None:
        """Take a bucket; if too many wait, drop it and note that as an error. Never waits."""
        if len(self._tasks) >= ANIMATIONS_WAITING:
            self.errors[run.video_id, bucket.person_id] = (
                f"dropped: {ANIMATIONS_WAITING} animations were waiting already"
            )
            return
        task = asyncio.create_task(self._animate(run, bucket, stats))
        self._tasks[task] = run
        task.add_done_callback(self._tasks.pop)

    async def _animate(self, run: RunIds, bucket: Bucket, stats: VideoStats) -> None:
        async with self._room:
            try:
                await run_timed(
                    self._threads.animation,
                    stats.seconds,
                    "animate",
                    lambda: self._write(run, bucket),
                )
                stats.animations_done += 1
            except Exception as error:
                self.errors[run.video_id, bucket.person_id] = f"{type(error).__name__}: {error}"
                log.debug(
                    "animation of %s/%s failed", run.video_id, bucket.person_id, exc_info=True
                )

    async def join(self, video_id: str | None = None) -> None:
        """Wait until all animations taken, or those of one video, are written or have failed."""
        while tasks := self._tasks_of(video_id):
            await asyncio.wait(tasks)

    def _tasks_of(self, video_id: str | None) -> list[asyncio.Task[None]]:
        return [task for task, run in self._tasks.items() if video_id in {None, run.video_id}]

    async def terminate(self) -> None:
        """Drop the animations that have not begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
