"""Crops embedded before their bucket is full: what the network sees, what is kept, and what a fault does."""

from __future__ import annotations

import asyncio
import gc
from concurrent.futures import Future

import numpy as np
import pytest

from streamproc.errors import MachineError
from streamproc.pipeline.embed import CROPS_AHEAD_A_BATCH, EmbedStage
from streamproc.types import Bucket, Crop


class Network:
    """Gives each crop a vector of its own number; answers once `go` is called, or at once."""

    name, weights_sha256, dim = "counting", "c" * 64, 2

    def __init__(self, *, at_once=True):
        self.batches, self.at_once, self._open, self.fault = [], at_once, [], None
        self.aside = []

    def submit(self, make_pixels, *, aside=False):
        pixels, future = make_pixels(), Future()
        self.aside.append(aside)
        self.batches.append([int(crop[0, 0, 0]) for crop in pixels])
        self._open.append((future, np.array([[crop[0, 0, 0], 1] for crop in pixels], np.float32)))
        if self.at_once:
            self.go()
        return future

    def go(self, batches=None):
        """Answer all that was asked, or the oldest batches."""
        for _ in range(len(self._open) if batches is None else batches):
            future, vectors = self._open.pop(0)
            if self.fault is None:
                future.set_result(vectors)
            else:
                future.set_exception(self.fault)


def crops_of(*numbers):
    return [
        Crop(1, number, number, 0.0, (0, 0, 1, 1), 0.5, 0.4, np.full((1, 1, 3), number, np.uint8))
        for number in numbers
    ]


def full(crops, *embedded):
    return Bucket(1, tuple(crops), embedded)


async def settle():
    """Let every task run until it waits."""
    for _ in range(20):
        await asyncio.sleep(0)


async def test_what_was_embedded_ahead_is_not_embedded_again_and_the_vectors_are_in_order() -> None:
    network, crops = Network(), crops_of(*range(6))
    async with EmbedStage(network) as stage:
        stage.offer(crops[:3])
        await settle()
        stage.offer(crops[:4])
        await settle()
        assert network.batches == [[0, 1], [2], [3]]
        vectors = await (await stage.submit(full(crops, 5, 1, 4, 3)))
    assert network.batches == [[0, 1], [2], [3], [5, 4]]
    assert network.aside == [True, True, True, False]
    assert vectors[:, 0].tolist() == [5, 1, 4, 3]
    assert (stage.crops_ahead, stage.crops_ahead_used) == (4, 2)
    assert (stage.batches, stage.buckets, stage.crops) == (1, 1, 4)


async def test_a_bucket_that_has_all_its_vectors_needs_no_network() -> None:
    network, crops = Network(), crops_of(0, 1)
    async with EmbedStage(network) as stage:
        stage.offer(crops)
        await settle()
        network.at_once = False
        vectors = await asyncio.wait_for(await stage.submit(full(crops, 1, 0)), 5)
    assert vectors[:, 0].tolist() == [1, 0]
    assert network.batches == [[0, 1]]


async def test_nothing_runs_ahead_before_a_full_bucket_has_its_vectors() -> None:
    network, crops, others = Network(at_once=False), crops_of(0), crops_of(*range(1, 4))
    async with EmbedStage(network) as stage:
        vectors = await stage.submit(full(crops, 0))
        stage.offer(others[:1])
        assert stage._likely == [], "a bucket waits: nothing is taken"
        await settle()
        stage.offer(others[1:])
        await settle()
        assert network.batches == [[0]]
        network.at_once = True
        network.go()
        await vectors
        await settle()
        assert network.batches == [[0], [2, 3]], "the network is idle again"
        assert stage._likely == []


async def test_a_full_bucket_waits_for_the_batch_ahead_only_where_its_crops_are_in_it() -> None:
    network, own, other = Network(at_once=False), crops_of(0, 1, 2), crops_of(20, 21)
    async with EmbedStage(network) as stage:
        stage.offer(other)
        await settle()
        vectors = await stage.submit(full(own, 1, 0))
        await settle()
        assert network.batches == [[20, 21], [1, 0]], "both at once"
        network._open.reverse()
        network.go(1)
        assert (await asyncio.wait_for(vectors, 5))[:, 0].tolist() == [1, 0], (
            "and the batch ahead goes on"
        )
        assert stage._ahead_task is not None


async def test_crops_that_run_ahead_are_not_embedded_twice_and_the_others_are_not_wanted_any_more() -> (
    None
):
    network, own, others = Network(at_once=False), crops_of(*range(10)), crops_of(20, 21)
    async with EmbedStage(network) as stage:
        stage.offer(own[:8] + others)
        await settle()
        vectors = await stage.submit(full(own, 0, 9))
        await settle()
        assert network.batches == [list(range(CROPS_AHEAD_A_BATCH)), [9]]
        network.at_once = True
        network.go()
        assert (await vectors)[:, 0].tolist() == [0, 9]
        await settle()
        assert network.batches[2:] == [[20, 21]]
        assert stage._likely == []
    assert (stage.crops_ahead, stage.crops_ahead_used) == (4, 1)


async def test_where_the_batch_ahead_fails_the_bucket_embeds_its_crops_itself() -> None:
    network, crops = Network(at_once=False), crops_of(0, 1, 2)
    async with EmbedStage(network) as stage:
        stage.offer(crops[:2])
        await settle()
        vectors = await stage.submit(full(crops, 1, 2))
        await settle()
        network.fault = MachineError("the network failed on a batch")
        network.go(1)
        network.fault, network.at_once = None, True
        network.go()
        assert (await asyncio.wait_for(vectors, 5))[:, 0].tolist() == [1, 2]
    assert network.batches == [[0, 1], [2], [1]]
    assert stage.crops_ahead_used == 0


async def test_a_later_offer_replaces_what_has_not_begun() -> None:
    network, crops = Network(at_once=False), crops_of(*range(20))
    async with EmbedStage(network) as stage:
        stage.offer(crops[:10])
        await settle()
        stage.offer([crops[1], crops[15]])
        network.at_once = True
        network.go()
        await settle()
    assert network.batches == [list(range(CROPS_AHEAD_A_BATCH)), [15]]


async def test_a_fault_ahead_is_raised_by_the_buckets_own_batch() -> None:
    network, crops = Network(), crops_of(0, 1)
    network.fault = MachineError("the network failed on a batch")
    async with EmbedStage(network) as stage:
        stage.offer(crops)
        await settle()
        assert stage._likely == []
        with pytest.raises(MachineError, match="failed on a batch"):
            await (await stage.submit(full(crops, 0)))
        network.fault = None
        stage.offer(crops)
        await settle()
        assert (await (await stage.submit(full(crops, 0))))[:, 0].tolist() == [0]
    assert network.batches == [[0, 1], [0], [0, 1]]
    assert (stage.crops_ahead, stage.crops_ahead_used) == (2, 1)


async def test_vectors_go_with_their_crops() -> None:
    """A video that is given up leaves nothing behind."""
    network, crops = Network(), crops_of(*range(9))
    async with EmbedStage(network) as stage:
        stage.offer(crops)
        await settle()
        await (await stage.submit(full(crops, 0, 1)))
        assert len(stage._vectors) == 9
        del crops
        gc.collect()
        assert (len(stage._vectors), stage._likely) == (0, [])


async def test_leaving_with_an_error_ends_what_runs_ahead() -> None:
    network, before, stage = Network(at_once=False), asyncio.all_tasks(), None

    async def fail():
        nonlocal stage
        async with EmbedStage(network) as stage:
            stage.offer(crops_of(*range(9)))
            await settle()
            raise MachineError("the broker is away")

    with pytest.raises(MachineError):
        await fail()
    assert asyncio.all_tasks() == before
    assert stage._ahead_task is None
