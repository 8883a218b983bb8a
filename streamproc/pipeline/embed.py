"""The embed stage: runs the network on the crops of full buckets, in batches across videos."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from dataclasses import dataclass
from itertools import chain, islice
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
BUCKETS_A_BATCH = 4
"""With 8 crops each these are 32 crops, a number at which the network is at its fastest."""
CROPS_AHEAD_A_BATCH = 2
"""Few, because a full bucket that comes meanwhile waits if it chose one of them."""
CROPS_AHEAD_WAITING = 32
"""At most; more come with the next frames."""


@dataclass(frozen=True, slots=True, eq=False)
class _Submitted:
    """A bucket that waits for its vectors; `since` is when it was submitted."""

    bucket: Bucket
    vectors: asyncio.Future[Float32Array]
    since: float


class EmbedStage:
    """Embeds the chosen crops of full buckets in batches across persons and videos.

    A batch begins as soon as the network is free. Buckets that come meanwhile share the next one;
    no bucket waits for others to fill a batch. Use as an async context manager; any number of
    videos submit. A fault of the network is raised to whoever submitted.

    The stage also takes crops that a bucket will probably choose, and embeds them ahead, while it
    has nothing else to do. A vector is kept as long as its crop lives, and is not computed again.
    """

    def __init__(self, embedder: Embedder) -> None:
        self.embedder = embedder
        self._channel: Channel[_Submitted] = Channel(BUCKETS_IN_FLIGHT)
        self._loop_task: asyncio.Task[None] | None = None
        self._busy = False
        self._likely: list[Crop] = []
        self._ahead_task: asyncio.Task[None] | None = None
        self._begun_ahead: list[Crop] = []
        self._vectors: WeakKeyDictionary[Crop, Float32Array] = WeakKeyDictionary()
        self.seconds: Counter[str] = Counter()
        """`embed`: how long the network was busy, with batches ahead as well.

        `wait`: how long buckets waited for their batch, added up.
        """
        self.batches = 0
        """Batches so far, with those whose crops had all been embedded ahead."""
        self.buckets = 0
        """Buckets in these batches: buckets / batches / BUCKETS_A_BATCH is how full they are."""
        self.crops = 0
        """Crops of these buckets, whether embedded ahead or not."""
        self.crops_ahead = 0
        """Crops embedded ahead."""
        self.crops_ahead_used = 0
        """Crops embedded ahead that a full bucket then chose."""

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
        """Wait for room, and return a future of the unit vectors of the crops that it chose.

        The future gives (n, dim), a row for each of `bucket.embedded`, in order.
        """
        future: asyncio.Future[Float32Array] = asyncio.get_running_loop().create_future()
        await self._channel.put(_Submitted(bucket, future, time.perf_counter()))
        return future

    def offer(self, likely: Iterable[Crop]) -> None:
        """Take crops to embed ahead, most urgent first, in place of those offered before.

        Takes none while buckets wait.
        """
        if not self.waiting:
            missing = (crop for crop in likely if crop not in self._vectors)
            self._likely = list(islice(missing, CROPS_AHEAD_WAITING))
            self._start_ahead()

    def _start_ahead(self) -> None:
        if self._likely and self._ahead_task is None and not self._busy:
            self._ahead_task = asyncio.create_task(self._embed_ahead(), name="embed ahead")

    async def _embed_ahead(self) -> None:
        """Embed what was offered, in small batches, until a bucket is full."""
        try:
            while self._likely and not (self._busy or self.waiting):
                crops = self._likely[:CROPS_AHEAD_A_BATCH]
                self._begun_ahead = crops
                vectors = await self._embed(crops, background=True)
                self._vectors.update(zip(crops, vectors, strict=True))
                self.crops_ahead += len(crops)
                self._likely = [crop for crop in self._likely if crop not in self._vectors]
        except Exception:
            # Nobody waits for these crops, so only the log says it. If the fault lasts, the batch
            # of their bucket raises it.
            log.warning("crops could not be embedded ahead of their bucket", exc_info=True)
            self._likely = []
        finally:
            self._ahead_task = None
            self._begun_ahead = []

    async def _embed(self, crops: Sequence[Crop], *, background: bool = False) -> Float32Array:
        start = time.perf_counter()
        pixels = [crop.pixels for crop in crops]
        future = self.embedder.submit(lambda: pixels, background=background)
        vectors = await asyncio.wrap_future(future)
        # A Counter adds floats as well.
        self.seconds["embed"] += time.perf_counter() - start  # type: ignore[assignment]
        return vectors

    async def _run(self) -> None:
        async for batch in self._channel.batches(BUCKETS_A_BATCH, 0):
            self._busy = True
            try:
                await self._embed_batch(batch)
            except Exception as error:  # noqa: BLE001 - raised to those who wait
                _fail(batch, error)
            batch.clear()  # otherwise its crops would stay in memory until the next batch
            self._busy = False
            self._start_ahead()

    async def _embed_batch(self, batch: list[_Submitted]) -> None:
        start = time.perf_counter()
        waited = sum(start - one.since for one in batch)
        self.seconds["wait"] += waited  # type: ignore[assignment] # as in _embed
        chosen = [_chosen(one.bucket) for one in batch]
        closed = set(chain.from_iterable(one.bucket.crops for one in batch))
        self._likely = [crop for crop in self._likely if crop not in closed]
        vectors = await self._vectors_of(list(chain.from_iterable(chosen)))
        self.batches += 1
        self.buckets += len(batch)
        self.crops += len(vectors)
        bounds = np.cumsum([len(crops) for crops in chosen])[:-1]
        for one, own in zip(batch, np.split(vectors, bounds), strict=True):
            if not one.vectors.done():
                one.vectors.set_result(own)

    async def _vectors_of(self, crops: Sequence[Crop]) -> Float32Array:
        """Return the vectors (n, dim) of chosen crops, some of which may be embedded ahead.

        The others do not wait for a batch ahead that runs. It is waited for after them, and only if
        chosen crops are in it.
        """
        found: dict[Crop, Float32Array] = {}
        ahead_task = self._ahead_task
        begun = [crop for crop in crops if crop in self._begun_ahead]
        await self._add_missing(found, [crop for crop in crops if crop not in begun])
        if begun and ahead_task is not None:
            await asyncio.wait([ahead_task])
        await self._add_missing(found, begun)  # none, unless the batch ahead failed
        self.crops_ahead_used += len(crops) - len(found)
        return np.stack([found[crop] if crop in found else self._vectors[crop] for crop in crops])

    async def _add_missing(self, found: dict[Crop, Float32Array], crops: Sequence[Crop]) -> None:
        """Embed those of the crops that were not embedded ahead, into `found`."""
        missing = [crop for crop in crops if crop not in self._vectors]
        if missing:
            found.update(zip(missing, await self._embed(missing), strict=True))


def _chosen(bucket: Bucket) -> list[Crop]:
    return [bucket.crops[i] for i in bucket.embedded]


def _fail(batch: Iterable[_Submitted], error: Exception) -> None:
    for one in batch:
        if not one.vectors.done():
            one.vectors.set_exception(error)
