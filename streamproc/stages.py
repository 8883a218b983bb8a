"""What the videos of a process share: threads, network and limits, the batches, and the animations beside them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Protocol, Self, TypeVar
from weakref import WeakKeyDictionary

import numpy as np

from streamproc.channel import Channel
from streamproc.errors import UsageError, WeightsError
from streamproc.gallery import Calibration, load_curves
from streamproc.reid.manifest import package_file
from streamproc.video import Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence
    from types import TracebackType

    from streamproc.reid import Embedder
    from streamproc.reid.device import Device
    from streamproc.settings import Clustering, Settings
    from streamproc.types import Bucket, Crop, Float32Array

T = TypeVar("T")
log = logging.getLogger(__name__)

BUCKETS_IN_FLIGHT = 32
BUCKETS_A_BATCH = 4  # with 8 crops each: 32 crops, where the network is at its best
CROPS_AHEAD_A_BATCH = 2  # a full bucket that comes meanwhile waits for those that it needs
CROPS_AHEAD_WAITING = 32  # more come with the next frames
ANIMATIONS_WAITING = 4096  # waiting crops lie in the PixelStore, so this bounds a count, not memory
ANIMATION_THREADS = 2


def load_network(settings: Settings, device: Device | None = None) -> Embedder:
    """Load the weights of the settings, onto their device or another; raises WeightsError or UsageError."""
    from streamproc.reid import Embedder, find_weights

    clustering = settings.clustering
    weights = find_weights(
        clustering.osnet_model, cache_folder=settings.expanded_cache_folder(), models_folder=settings.models
    )
    return Embedder(weights, threads=settings.threads, device=device or clustering.device)


def video_limits(settings: Settings) -> Limits:
    """What a video may ask of this machine."""
    limits = settings.limits
    return Limits(
        max_pixels_per_frame=limits.max_pixels_per_frame,
        max_frames=limits.max_frames,
        max_duration_seconds=limits.max_duration_seconds,
        max_file_bytes=limits.max_file_bytes,
    )


def calibration_of(clustering: Clustering) -> Calibration:
    """The package's curves and the user's before them, and what is asked of a probability.

    Raises WeightsError for the package's, UsageError for a file of the user's that holds none.
    """
    curves = load_curves(package_file("calibration.json"))
    if clustering.calibration is not None:
        try:
            curves |= load_curves(clustering.calibration.expanduser())
        except WeightsError as error:
            raise UsageError(f"clustering.calibration: {error}") from error
    return Calibration(curves, clustering.min_probability, clustering.likely_probability)


@dataclass(slots=True)
class VideoStats:
    """Where one video stands; written by the pipeline, read by whoever shows progress."""

    frames_planned: int = 0
    frames_done: int = 0
    persons_total: int = 0
    persons_embedded: int = 0
    crops_cut: int = 0
    crops_embedded: int = 0
    animations_done: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    """Busy seconds of each stage; stages run side by side, so they add up to more than the wall clock."""


class Threads:
    """The long-lived threads of one process, beside the network's own: decode, crop, and two for animations."""

    def __init__(self) -> None:
        self.decode = ThreadPoolExecutor(1, "decode")
        self.crop = ThreadPoolExecutor(1, "crop")
        self.animation = ThreadPoolExecutor(ANIMATION_THREADS, "animate")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for pool in (self.decode, self.crop, self.animation):
            pool.shutdown(wait=True, cancel_futures=True)


async def call(pool: ThreadPoolExecutor, seconds: Counter[str], stage: str, work: Callable[[], T]) -> T:
    """Run `work` in a stage's thread and add its time to the stage's busy seconds."""

    def timed() -> tuple[T, float]:
        start = time.perf_counter()
        result = work()
        return result, time.perf_counter() - start

    result, spent = await asyncio.get_running_loop().run_in_executor(pool, timed)
    seconds[stage] += spent  # type: ignore[assignment] # a Counter adds floats as well
    return result


class EmbedStage:
    """Embeds the chosen crops of full buckets in batches across persons and videos.

    A batch begins as soon as the network is free: those that come meanwhile share the next. Nobody waits for others.
    Use as an async context manager; any number of videos submit. A fault of the network reaches whoever submitted.

    It also takes crops that a bucket will probably choose, and embeds them while it has nothing else to do. A vector is
    kept as long as its crop lives, and is not computed again.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._channel: Channel[tuple[Bucket, asyncio.Future[Float32Array], float]] = Channel(BUCKETS_IN_FLIGHT)
        self._loop_task: asyncio.Task[None] | None = None
        self._busy = False
        self._likely: list[Crop] = []
        self._ahead_task: asyncio.Task[None] | None = None
        self._begun_ahead: list[Crop] = []
        self._vectors: WeakKeyDictionary[Crop, Float32Array] = WeakKeyDictionary()
        self.seconds: Counter[str] = Counter()
        """`embed`: busy, the batches ahead as well; `wait`: what buckets waited for their batch, together."""
        self.batches = self.buckets = self.crops = 0
        """What was embedded so far: buckets / batches / BUCKETS_A_BATCH is how full the batches are. `crops` are those
        of the buckets, wherever they were embedded; a batch whose crops all were embedded ahead counts as well."""
        self.crops_ahead = self.crops_ahead_used = 0
        """Crops embedded ahead, and those of them that a full bucket then chose."""

    @property
    def waiting(self) -> int:
        """How many buckets wait for their batch."""
        return len(self._channel)

    async def __aenter__(self) -> Self:
        self._loop_task = asyncio.create_task(self._run(), name="embed")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, _e: BaseException | None, _t: TracebackType | None
    ) -> None:
        await self._channel.close()
        if self._loop_task is not None:
            if kind is not None:
                self._loop_task.cancel()
            await asyncio.gather(self._loop_task, return_exceptions=True)
        if self._ahead_task is not None:
            self._ahead_task.cancel()
            await asyncio.gather(self._ahead_task, return_exceptions=True)

    async def submit(self, bucket: Bucket) -> asyncio.Future[Float32Array]:
        """Wait for room; the future gives one unit vector (n, dim) for each of the bucket's crops to embed."""
        future: asyncio.Future[Float32Array] = asyncio.get_running_loop().create_future()
        await self._channel.put((bucket, future, time.perf_counter()))
        return future

    def offer(self, likely: Iterable[Crop]) -> None:
        """Take crops to embed ahead, most urgent first, in place of those offered before; none where buckets wait."""
        if not self.waiting:
            self._likely = list(islice((crop for crop in likely if crop not in self._vectors), CROPS_AHEAD_WAITING))
            self._go_ahead()

    def _go_ahead(self) -> None:
        if self._likely and self._ahead_task is None and not self._busy:
            self._ahead_task = asyncio.create_task(self._embed_ahead(), name="embed ahead")

    async def _embed_ahead(self) -> None:
        """Embed what was offered, in small batches, until a bucket is full."""
        try:
            while self._likely and not (self._busy or self.waiting):
                crops = self._likely[:CROPS_AHEAD_A_BATCH]
                self._begun_ahead = crops
                vectors = await self._embed(crops, aside=True)
                self._vectors.update(zip(crops, vectors, strict=True))
                self.crops_ahead += len(crops)
                self._likely = [crop for crop in self._likely if crop not in self._vectors]
        except Exception:
            # Nobody waits for these crops, so nobody is told but the log; if it lasts, their bucket's batch raises it.
            log.warning("crops could not be embedded ahead of their bucket", exc_info=True)
            self._likely = []
        finally:
            self._ahead_task, self._begun_ahead = None, []

    async def _embed(self, crops: Sequence[Crop], *, aside: bool = False) -> Float32Array:
        start, pixels = time.perf_counter(), [crop.pixels for crop in crops]
        vectors = await asyncio.wrap_future(self.embedder.submit(lambda: pixels, aside=aside))
        self.seconds["embed"] += time.perf_counter() - start  # type: ignore[assignment] # a Counter adds floats as well
        return vectors

    async def _run(self) -> None:
        async for batch in self._channel.batches(BUCKETS_A_BATCH, 0):
            self._busy = True
            try:
                await self._embed_batch(batch)
            except Exception as error:  # noqa: BLE001 - whatever it was, those who wait must hear of it
                for _, future, _ in batch:
                    if not future.done():
                        future.set_exception(error)
            batch.clear()  # else its crops would stay until the next
            self._busy = False
            self._go_ahead()

    async def _embed_batch(self, batch: list[tuple[Bucket, asyncio.Future[Float32Array], float]]) -> None:
        start = time.perf_counter()
        self.seconds["wait"] += sum(start - came for _, _, came in batch)  # type: ignore[assignment] # as in _embed
        chosen = [[bucket.crops[i] for i in bucket.embedded] for bucket, _, _ in batch]
        closed = {crop for bucket, _, _ in batch for crop in bucket.crops}
        self._likely = [crop for crop in self._likely if crop not in closed]
        vectors = await self._vectors_of([crop for crops in chosen for crop in crops])
        self.batches, self.buckets, self.crops = (
            self.batches + 1,
            self.buckets + len(batch),
            self.crops + len(vectors),
        )
        bounds = np.cumsum([len(crops) for crops in chosen])[:-1]
        for (_, future, _), own in zip(batch, np.split(vectors, bounds), strict=True):
            if not future.done():
                future.set_result(own)

    async def _vectors_of(self, crops: Sequence[Crop]) -> Float32Array:
        """The vectors (n, dim) of chosen crops: those embedded ahead, the rest from the network.

        The rest does not wait for a batch ahead that runs; only then that is waited for, where chosen crops are in it.
        """
        found: dict[Crop, Float32Array] = {}
        begun, ahead = [crop for crop in crops if crop in self._begun_ahead], self._ahead_task
        await self._add_missing(found, [crop for crop in crops if crop not in begun])
        if begun and ahead is not None:
            await asyncio.wait([ahead])
        await self._add_missing(found, begun)  # where it failed
        self.crops_ahead_used += len(crops) - len(found)
        return np.stack([found[crop] if crop in found else self._vectors[crop] for crop in crops])

    async def _add_missing(self, found: dict[Crop, Float32Array], crops: Sequence[Crop]) -> None:
        rest = [crop for crop in crops if crop not in self._vectors]
        if rest:
            found.update(zip(rest, await self._embed(rest), strict=True))


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
        self._room = asyncio.Semaphore(2 * ANIMATION_THREADS)  # no thread waits for a busy event loop
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
                await call(self._threads.animation, stats.seconds, "animate", lambda: self._write(run, bucket))
                stats.animations_done += 1
            except Exception as error:
                self.errors[run.video_id, bucket.person_id] = f"{type(error).__name__}: {error}"
                log.debug("animation of %s/%s failed", run.video_id, bucket.person_id, exc_info=True)

    async def finish(self, video_id: str | None = None) -> None:
        """Wait until all animations that were taken (of one video) are written or have failed."""
        while tasks := [task for task, run in self._tasks.items() if video_id in {None, run.video_id}]:
            await asyncio.wait(tasks)

    async def abandon(self) -> None:
        """Drop what has not begun."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
