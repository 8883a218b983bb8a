"""The bounded channel between stages: room, closing, batches, cancellation."""

from __future__ import annotations

import asyncio

import pytest

from streamproc.channel import Channel, ChannelClosed


async def drained(channel):
    """All items that are left in a closed channel."""
    items = []
    async for batch in channel.batches(1, 0):
        items += batch
    return items


async def let_tasks_run():
    """Let every task run until it waits."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_put_waits_for_room() -> None:
    """A put into a full channel waits until an item is taken."""
    channel: Channel[int] = Channel(2)
    putting = asyncio.create_task(put_all(channel, range(3)))
    await let_tasks_run()
    assert len(channel) == 2
    assert not putting.done()
    assert await anext(channel.batches(1, 0)) == [0]
    await let_tasks_run()
    assert putting.done()


async def put_all(channel, items):
    """Put each item in turn."""
    for item in items:
        await channel.put(item)


async def test_what_was_put_before_closing_is_delivered_in_order() -> None:
    """Items put before a close come in order, and a put after it raises ChannelClosed."""
    channel: Channel[int] = Channel(5)
    await put_all(channel, range(3))
    await channel.close()
    await channel.close()
    assert await drained(channel) == [0, 1, 2]
    with pytest.raises(ChannelClosed):
        await channel.put(1)


async def test_a_producer_that_waits_for_room_learns_that_the_reader_has_gone() -> None:
    """Closing wakes a put that waits for room with ChannelClosed."""
    channel: Channel[int] = Channel(1)
    await channel.put(1)
    waiting = asyncio.create_task(channel.put(2))
    await let_tasks_run()
    await channel.close()
    with pytest.raises(ChannelClosed):
        await waiting


async def test_a_full_batch_leaves_at_once_and_a_partial_one_at_the_end() -> None:
    """Full batches come at once, and a part of one when the channel is closed."""
    channel: Channel[int] = Channel(10)
    await put_all(channel, range(7))
    batches = channel.batches(3, 3600)
    assert await anext(batches) == [0, 1, 2]
    assert await anext(batches) == [3, 4, 5]
    last = asyncio.create_task(anext(batches))
    await let_tasks_run()
    assert not last.done(), "it waits for more to come"
    await channel.close()
    assert await last == [6]
    with pytest.raises(StopAsyncIteration):
        await anext(batches)


async def test_a_batch_that_is_not_full_leaves_when_its_wait_is_over() -> None:
    """With a wait of 0 a batch comes with the one item that there is."""
    channel: Channel[int] = Channel(10)
    await channel.put(1)
    assert await anext(channel.batches(3, 0)) == [1]


async def test_a_batch_larger_than_the_channel_does_not_wait_for_what_cannot_come() -> None:
    """A batch is full with as many items as the channel has room for."""
    channel: Channel[int] = Channel(2)
    await put_all(channel, range(2))
    assert await anext(channel.batches(100, 3600)) == [0, 1]


async def test_a_cancelled_put_has_not_put() -> None:
    """An item whose put was cancelled is never delivered."""
    channel: Channel[int] = Channel(1)
    await channel.put(1)
    waiting = asyncio.create_task(channel.put(2))
    await let_tasks_run()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    await channel.close()
    assert await drained(channel) == [1]


async def test_a_cancelled_read_has_taken_nothing() -> None:
    """After a cancelled read the item is still there."""
    channel: Channel[int] = Channel(5)
    await channel.put(1)
    reading = asyncio.create_task(anext(channel.batches(3, 3600)))
    await let_tasks_run()
    reading.cancel()
    await asyncio.gather(reading, return_exceptions=True)
    await channel.close()
    assert await drained(channel) == [1]


async def test_many_producers_and_one_reader_lose_nothing() -> None:
    """500 items of five producers reach one reader, each once."""
    channel: Channel[int] = Channel(3)
    producers = [
        asyncio.create_task(put_all(channel, range(i * 100, i * 100 + 100))) for i in range(5)
    ]
    got: list[int] = []

    async def read():
        async for batch in channel.batches(4, 0):
            got.extend(batch)

    reader = asyncio.create_task(read())
    await asyncio.gather(*producers)
    await channel.close()
    await reader
    assert sorted(got) == list(range(500))


def test_a_channel_without_room_is_refused() -> None:
    """A capacity of 0 raises a ValueError."""
    with pytest.raises(ValueError, match="room for one item or more"):
        Channel(0)


async def test_what_waited_while_the_reader_was_busy_leaves_at_once(monkeypatch) -> None:
    """Items that waited longer than the linger time come without another wait."""
    channel: Channel[int] = Channel(5)
    await channel.put(1)
    loop = asyncio.get_running_loop()
    now = loop.time
    monkeypatch.setattr(loop, "time", lambda: now() + 3600)
    assert await anext(channel.batches(3, 3600)) == [1]
