"""The embed stage: crops of full buckets in batches, across persons and videos."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from itertools import islice
from typing import TYPE_CHECKING, Self
from weakref import WeakKeyDictionary

import numpy as np

from streamproc.channel import Channel

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from types import TracebackType

    from streamproc.reid import Embedder
    from streamproc.types import Bucket, Crop, Float32Array

log = logging.getLogger(__name__)


BUCKETS_IN_FLIGHT = 32
BUCKETS_A_BATCH = 4  # with 8 crops each: 32 crops, where the network is at its best
CROPS_AHEAD_A_BATCH = 2  # a full bucket that comes meanwhile waits for those that it needs
CROPS_AHEAD_WAITING = 32  # more come with the next frames


class EmbedStage:
    """Embeds the chosen crops of full buckets in batches across persons and videos.

    A batch begins as soon as the network is free: those that come meanwhile share the next. Nobody
    waits for others. Use as an async context manager; any number of videos submit. A fault of the
    network reaches whoever submitted.

    It also takes crops that a bucket will probably choose, and embeds them while it has nothing
    else to do. A vector is kept as long as its crop lives, and is not computed again.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._channel: Channel[tuple[Bucket, asyncio.Future[Float32Array], float]] = Channel(
            BUCKETS_IN_FLIGHT
        )
        self._loop_task: asyncio.Task[None] | None = None
        self._busy = False
        self._likely: list[Crop] = []
        self._ahead_task: asyncio.Task[None] | None = None
        self._begun_ahead: list[Crop] = []
        self._vectors: WeakKeyDictionary[Crop, Float32Array] = WeakKeyDictionary()
        self.seconds: Counter[str] = Counter()
        """`embed`: busy, the batches ahead as well;

        `wait`: what buckets waited for their batch, together.
        """
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
            self._likely = list(
                islice((crop for crop in likely if crop not in self._vectors), CROPS_AHEAD_WAITING)
            )
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
            # Nobody waits for these crops, so nobody is told but the log; if it lasts, their
            # bucket's batch raises it.
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

    async def _embed_batch(
        self, batch: list[tuple[Bucket, asyncio.Future[Float32Array], float]]
    ) -> None:
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

        The rest does not wait for a batch ahead that runs; only then that is waited for, where
        chosen crops are in it.
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
