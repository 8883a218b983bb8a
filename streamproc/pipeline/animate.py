"""The animate stage: the side consumer, which the main path neither waits for nor fails with."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from streamproc.pipeline.resources import ANIMATION_THREADS, Threads, VideoStats, call

if TYPE_CHECKING:
    from streamproc.types import Bucket

log = logging.getLogger(__name__)


ANIMATIONS_WAITING = 4096  # waiting crops lie in the PixelStore, so this bounds a count, not memory


@dataclass(frozen=True, slots=True)
class RunIds:
    """Which run of which video something belongs to."""

    gallery_id: str
    video_id: str
    run_id: str


class WriteAnimation(Protocol):
    """Writes one person's animation, in an animation thread; whatever it raises is reported and stops nothing else."""

    def __call__(self, run: RunIds, bucket: Bucket, /) -> None:
        """Encode and write."""
        ...


class AnimateStage:
    """The side consumer: writes animations beside the main path, which neither waits for it nor fails with it."""

    def __init__(self, write: WriteAnimation, threads: Threads) -> None:
        self._write = write
        self._threads = threads
        self._tasks: dict[asyncio.Task[None], RunIds] = {}
        self._room = asyncio.Semaphore(
            2 * ANIMATION_THREADS
        )  # no thread waits for a busy event loop
        self.errors: dict[tuple[str, int], str] = {}
        """Why there is no animation, by (video_id, person_id)."""

    @property
    def waiting(self) -> int:
        """How many animations are taken and not written."""
        return len(self._tasks)

    def offer(self, run: RunIds, bucket: Bucket, stats: VideoStats) -> None:
        """Take a bucket, or drop and count it where too many wait."""
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
                await call(
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

    async def finish(self, video_id: str | None = None) -> None:
        """Wait until all animations that were taken (of one video) are written or have failed."""
        while tasks := [
            task for task, run in self._tasks.items() if video_id in {None, run.video_id}
        ]:
            await asyncio.wait(tasks)

    async def abandon(self) -> None:
        """Drop what has not begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
