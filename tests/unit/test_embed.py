"""Crops embedded before their bucket is complete: what the network sees, and what a fault does."""

from __future__ import annotations

import asyncio
import gc
import weakref
from concurrent.futures import Future

import numpy as np
import pytest

from streamproc.errors import MachineError
from streamproc.pipeline.embed import CROPS_AHEAD_A_BATCH, EmbedStage
from streamproc.types import Bucket, Crop


class Network:
    """Gives each crop a vector of its own number; answers once `go` is called, or at once."""

    name = "counting"
    weights_sha256 = "c" * 64
    dim = 2

    def __init__(self, *, at_once=True):
        self.at_once = at_once
        self.fault = None
        self.batches = []
        self.background = []
        self.answers = []
        """Weak references to the vectors of each batch."""
        self.open = []
        """The future and the vectors of each batch that has no answer yet, the oldest first."""

    def submit(self, make_pixels, *, background=False):
        """Note the crops and answer with their numbers, at once or when `go` is called."""
        pixels = make_pixels()
        vectors = np.array([[crop[0, 0, 0], 1] for crop in pixels], np.float32)
        future = Future()
        self.background.append(background)
        self.batches.append([int(crop[0, 0, 0]) for crop in pixels])
        self.answers.append(weakref.ref(vectors))
        self.open.append((future, vectors))
        if self.at_once:
            self.go()
        return future

    def go(self, batches=None):
        """Answer all that was asked, or the oldest batches."""
        for _ in range(len(self.open) if batches is None else batches):
            future, vectors = self.open.pop(0)
            if self.fault is None:
                future.set_result(vectors)
            else:
                future.set_exception(self.fault)


def crops_of(*numbers):
    """Crops of person 1 whose pixels are their own number."""
    return [
        Crop(1, number, number, 0.0, (0, 0, 1, 1), 0.5, 0.4, np.full((1, 1, 3), number, np.uint8))
        for number in numbers
    ]


def full(crops, *embedded):
    """A complete bucket of these crops, of which those at `embedded` are chosen."""
    return Bucket(1, tuple(crops), embedded)


async def let_tasks_run():
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_was_embedded_ahead_is_not_embedded_again_and_the_vectors_are_in_order() -> None:
    """A bucket takes vectors made ahead, embeds only the rest, and has them all in order."""
    network = Network()
    crops = crops_of(*range(6))
    async with EmbedStage(network) as stage:
        stage.offer(crops[:3])
        await let_tasks_run()
        stage.offer(crops[:4])
        await let_tasks_run()
        assert network.batches == [[0, 1], [2], [3]]
        vectors = await (await stage.submit(full(crops, 5, 1, 4, 3)))
    assert network.batches == [[0, 1], [2], [3], [5, 4]]
    assert network.background == [True, True, True, False]
    assert vectors[:, 0].tolist() == [5, 1, 4, 3]
    assert (stage.crops_ahead, stage.crops_ahead_used) == (4, 2)
    assert (stage.batches, stage.buckets, stage.crops) == (1, 1, 4)


async def test_a_bucket_that_has_all_its_vectors_needs_no_network() -> None:
    """A bucket whose vectors all were made ahead asks the network for nothing."""
    network = Network()
    crops = crops_of(0, 1)
    async with EmbedStage(network) as stage:
        stage.offer(crops)
        await let_tasks_run()
        network.at_once = False
        vectors = await asyncio.wait_for(await stage.submit(full(crops, 1, 0)), 5)
    assert vectors[:, 0].tolist() == [1, 0]
    assert network.batches == [[0, 1]]


async def test_crops_offered_while_a_bucket_waits_are_never_embedded() -> None:
    """Crops that are offered while a bucket waits for its batch are not embedded, then or later."""
    network = Network(at_once=False)
    async with EmbedStage(network) as stage:
        vectors = await stage.submit(full(crops_of(0), 0))
        stage.offer(crops_of(1))
        await let_tasks_run()
        network.at_once = True
        network.go()
        await vectors
        await let_tasks_run()
    assert network.batches == [[0]]


async def test_crops_offered_while_a_buckets_batch_runs_are_embedded_after_it() -> None:
    """Crops that are offered while a bucket's batch runs are embedded once, after that batch."""
    network = Network(at_once=False)
    others = crops_of(2, 3)
    async with EmbedStage(network) as stage:
        vectors = await stage.submit(full(crops_of(0), 0))
        await let_tasks_run()
        stage.offer(others)
        await let_tasks_run()
        assert network.batches == [[0]]
        network.at_once = True
        network.go()
        await vectors
        await let_tasks_run()
    assert network.batches == [[0], [2, 3]]


async def test_a_full_bucket_waits_for_the_batch_ahead_only_where_its_crops_are_in_it() -> None:
    """A bucket whose crops are not in the batch ahead does not wait for it, and it goes on."""
    network = Network(at_once=False)
    own = crops_of(0, 1, 2)
    other = crops_of(20, 21)
    async with EmbedStage(network) as stage:
        stage.offer(other)
        await let_tasks_run()
        vectors = await stage.submit(full(own, 1, 0))
        await let_tasks_run()
        assert network.batches == [[20, 21], [1, 0]], "both at once"
        network.open.reverse()
        network.go(1)
        assert (await asyncio.wait_for(vectors, 5))[:, 0].tolist() == [1, 0]
        assert stage.crops_ahead == 0
        network.go()
        await let_tasks_run()
        assert stage.crops_ahead == 2


async def test_a_full_bucket_takes_crops_under_way_and_its_others_are_not_embedded_ahead() -> None:
    """A complete bucket takes the crops under way, and its other crops are not made ahead."""
    network = Network(at_once=False)
    own = crops_of(*range(10))
    others = crops_of(20, 21)
    async with EmbedStage(network) as stage:
        stage.offer(own[:8] + others)
        await let_tasks_run()
        vectors = await stage.submit(full(own, 0, 9))
        await let_tasks_run()
        assert network.batches == [list(range(CROPS_AHEAD_A_BATCH)), [9]]
        network.at_once = True
        network.go()
        assert (await vectors)[:, 0].tolist() == [0, 9]
        await let_tasks_run()
        assert network.batches[2:] == [[20, 21]]
    assert (stage.crops_ahead, stage.crops_ahead_used) == (4, 1)


async def test_where_the_batch_ahead_fails_the_bucket_embeds_its_crops_itself() -> None:
    """Where the batch ahead fails, the bucket embeds those crops itself."""
    network = Network(at_once=False)
    crops = crops_of(0, 1, 2)
    async with EmbedStage(network) as stage:
        stage.offer(crops[:2])
        await let_tasks_run()
        vectors = await stage.submit(full(crops, 1, 2))
        await let_tasks_run()
        network.fault = MachineError("the network failed on a batch")
        network.go(1)
        network.fault = None
        network.at_once = True
        network.go()
        assert (await asyncio.wait_for(vectors, 5))[:, 0].tolist() == [1, 2]
    assert network.batches == [[0, 1], [2], [1]]
    assert stage.crops_ahead_used == 0


async def test_a_later_offer_replaces_what_has_not_begun() -> None:
    """A later offer replaces the crops that have not begun."""
    network = Network(at_once=False)
    crops = crops_of(*range(20))
    async with EmbedStage(network) as stage:
        stage.offer(crops[:10])
        await let_tasks_run()
        stage.offer([crops[1], crops[15]])
        network.at_once = True
        network.go()
        await let_tasks_run()
    assert network.batches == [list(range(CROPS_AHEAD_A_BATCH)), [15]]


async def test_a_fault_ahead_is_raised_by_the_buckets_own_batch() -> None:
    """A fault ahead stays silent and is not retried; the bucket's own batch raises it."""
    network = Network()
    crops = crops_of(0, 1)
    network.fault = MachineError("the network failed on a batch")
    async with EmbedStage(network) as stage:
        stage.offer(crops)
        await let_tasks_run()
        assert network.batches == [[0, 1]], "it is not tried again"
        with pytest.raises(MachineError, match="failed on a batch"):
            await (await stage.submit(full(crops, 0)))
        network.fault = None
        stage.offer(crops)
        await let_tasks_run()
        assert (await (await stage.submit(full(crops, 0))))[:, 0].tolist() == [0]
    assert network.batches == [[0, 1], [0], [0, 1]]
    assert (stage.crops_ahead, stage.crops_ahead_used) == (2, 1)


async def test_vectors_go_with_their_crops() -> None:
    """Once nobody refers to a video's crops, their vectors are freed."""
    network = Network()
    crops = crops_of(*range(9))
    async with EmbedStage(network) as stage:
        stage.offer(crops)
        await let_tasks_run()
        await (await stage.submit(full(crops, 0, 1)))
        kept = [weakref.ref(crop) for crop in crops]
        assert stage.crops_ahead == 9
        assert all(vectors() is not None for vectors in network.answers)
        del crops
        gc.collect()
        assert all(crop() is None for crop in kept)
        assert all(vectors() is None for vectors in network.answers)


async def test_leaving_with_an_error_ends_what_runs_ahead() -> None:
    """Leaving the stage with an error ends all its tasks."""
    network = Network(at_once=False)
    before = asyncio.all_tasks()

    async def fail():
        async with EmbedStage(network) as stage:
            stage.offer(crops_of(*range(9)))
            await let_tasks_run()
            raise MachineError("the broker is away")

    with pytest.raises(MachineError):
        await fail()
    assert network.batches == [list(range(CROPS_AHEAD_A_BATCH))]
    assert asyncio.all_tasks() == before
