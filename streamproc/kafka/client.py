"""What people and programs at a terminal do with the stream: submit, cancel, watch, and look at dead letters."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from pydantic import ValidationError

from streamproc.errors import EventError, MachineError, UsageError, VideoError
from streamproc.events import (
    DuplicateCandidate,
    TracksRef,
    VideoCancel,
    VideoOptions,
    VideoProgress,
    VideoReady,
    describe,
    now,
)
from streamproc.kafka.connection import client_options, unreachable
from streamproc.kafka.publisher import Publisher
from streamproc.storage.media import media_access
from streamproc.tracks import find_track_file

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from streamproc.kafka.records import Headers, Record
    from streamproc.settings import Settings
    from streamproc.storage.media import MediaAccess

_POLL_MS = 200


def video_ready(
    settings: Settings,
    video: str,
    *,
    persons: str | None,
    copy: bool,
    options: VideoOptions,
    **fields: str | None,
) -> VideoReady:
    """Make the event that announces a video: a URI as it is, a local path under the media root as a relative URI.

    Raises UsageError for a path outside the media root (unless `copy`), VideoError for one that is
    not there.
    """
    media = media_access(settings)
    uri = video if "://" in video else _uri_of(media, Path(video), copy=copy)
    if persons is None and "://" not in video:
        beside = find_track_file(Path(video))
        persons = None if beside is None else str(beside)
    tracks = None
    if persons is not None:
        tracks = TracksRef(
            uri=persons if "://" in persons else _uri_of(media, Path(persons), copy=copy)
        )
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return VideoReady.make(
            video_uri=uri, tracks=tracks, options=options, submitted_at=now(), **given
        )
    except ValidationError as error:
        raise UsageError(f"{video}: {describe(error)}") from error


def _uri_of(media: MediaAccess, path: Path, *, copy: bool) -> str:
    if not path.is_file():
        raise VideoError(
            f"{path}: expected a file, found {'a directory' if path.is_dir() else 'nothing'} there"
        )
    if not copy:
        return media.relative_uri(path)
    try:
        return media.relative_uri(path)  # one that lies there already needs no copy
    except UsageError:
        return media.copy_into(path)


async def submit(settings: Settings, event: VideoReady) -> None:
    """Announce a video. Raises MachineError where Kafka is away."""
    async with Publisher(settings, "client") as publisher:
        await publisher.publish(event)


async def cancel(settings: Settings, video_id: str, reason: str | None) -> None:
    """Say that nobody wants a video any more, begun or not."""
    async with Publisher(settings, "client") as publisher:
        await publisher.publish(VideoCancel.make(video_id=video_id, reason=reason))


async def watch(
    settings: Settings,
    *,
    gallery_id: str | None,
    since_seconds: float | None,
    until_done: str | None,
) -> AsyncIterator[DuplicateCandidate | VideoProgress]:
    """Yield candidates as they come, from `since_seconds` ago on (None: all there are), for ever.

    With `until_done`, a `video_id`: its progress as well, until it is done, failed or cancelled;
    candidates that were published before that all come first.
    """
    topics: list[type[DuplicateCandidate | VideoProgress]] = [DuplicateCandidate]
    if until_done is not None:
        topics.append(VideoProgress)
    prefix = settings.kafka.topic_prefix
    kinds = {prefix + kind.topic: kind for kind in topics}
    async with _reader(settings, list(kinds), since_seconds) as (consumer, _):
        last_word: VideoProgress | None = None
        before_it: dict[
            TopicPartition, int
        ] = {}  # where the candidates ended when the last word came
        while last_word is None or not await _reached(consumer, before_it):
            for partition, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    event = _parsed(kinds[partition.topic], record)
                    if isinstance(event, DuplicateCandidate) and gallery_id in {
                        None,
                        event.gallery_id,
                    }:
                        yield event
                    elif isinstance(event, VideoProgress) and event.video_id == until_done:
                        last_word = _last_word(last_word, event)
                        if last_word is None:
                            yield event
            if last_word is not None and not before_it:
                mine = [p for p in consumer.assignment() if kinds[p.topic] is DuplicateCandidate]
                before_it = await consumer.end_offsets(mine)
        yield last_word


def _last_word(before: VideoProgress | None, event: VideoProgress) -> VideoProgress | None:
    """The word that ends a video, or None while it is in work; the matcher's `done` may overtake the worker's words."""
    if event.state in {"done", "failed", "cancelled"}:
        return event
    return None if event.state == "accepted" else before  # submitted again


def _parsed(
    kind: type[DuplicateCandidate | VideoProgress], record: Record
) -> DuplicateCandidate | VideoProgress | None:
    try:
        return kind.from_json(record.value or b"")
    except EventError:
        return None  # somebody else's; not ours to judge


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A record that was given up.

    `where` is its place in the topic `dead-letters`: `partition@offset`.
    """

    where: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    def reason(self, name: str) -> str:
        """One of the `dlq_…` headers, "" where it is missing."""
        return next(
            (
                value.decode(errors="replace")
                for header, value in self.headers
                if header == f"dlq_{name}"
            ),
            "",
        )


async def dead_letters(settings: Settings) -> list[DeadLetter]:
    """All dead letters that the topic holds, oldest first."""
    topic = settings.kafka.topic_prefix + "dead-letters"
    found = []
    async with _reader(settings, [topic], None) as (consumer, ends):
        while not await _reached(consumer, ends):
            for partition, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    where = f"{partition.partition}@{record.offset}"
                    letter = DeadLetter(where, record.key, record.value, tuple(record.headers))
                    found.append((record.timestamp, letter))
    return [letter for _, letter in sorted(found, key=lambda entry: entry[0])]


async def replay_dead_letters(
    settings: Settings, letters: Sequence[DeadLetter]
) -> list[DeadLetter]:
    """Send records back to where they came from; returns those that cannot be, since their value was cut.

    A replayed video counts as submitted when it is replayed, unless its event says otherwise.
    """
    left = []
    async with Publisher(settings, "client") as publisher:
        for letter in letters:
            topic = letter.reason("topic").removeprefix(settings.kafka.topic_prefix)
            if letter.reason("value_truncated") != "false" or not topic:
                left.append(letter)
                continue
            headers = tuple(
                (name, value) for name, value in letter.headers if not name.startswith("dlq_")
            )
            await publisher.send(topic, letter.key, letter.value, headers)
    return left


@asynccontextmanager
async def _reader(
    settings: Settings, topics: list[str], since_seconds: float | None
) -> AsyncIterator[tuple[AIOKafkaConsumer, dict[TopicPartition, int]]]:
    """A consumer of all partitions, outside any group, and where they ended when it began."""
    consumer = AIOKafkaConsumer(
        **client_options(settings, "client"), group_id=None, auto_offset_reset="earliest"
    )
    try:
        await consumer.start()
        partitions = []
        for topic in topics:
            numbers = (await consumer._client.fetch_all_metadata()).partitions_for_topic(topic)  # noqa: SLF001 - the public call knows only subscribed topics
            if not numbers:
                raise UsageError(f"topic {topic}: missing; `streamproc topics create` makes it")
            partitions += [TopicPartition(topic, number) for number in sorted(numbers)]
        consumer.assign(partitions)
        ends = await consumer.end_offsets(partitions)
        if since_seconds is None:
            await consumer.seek_to_beginning(*partitions)
        else:
            since_ms = int((time.time() - since_seconds) * 1000)
            starts = await consumer.offsets_for_times(dict.fromkeys(partitions, since_ms))
            for partition in partitions:
                start = starts.get(partition)
                consumer.seek(partition, ends[partition] if start is None else start.offset)
        yield consumer, ends
    except KafkaConnectionError as error:
        raise unreachable(settings, error) from error
    except KafkaError as error:
        raise MachineError(f"Kafka at {','.join(settings.bootstrap)}: {error!r}") from error
    finally:
        await consumer.stop()


async def _reached(consumer: AIOKafkaConsumer, ends: dict[TopicPartition, int]) -> bool:
    positions = await asyncio.gather(*(consumer.position(partition) for partition in ends))
    return all(position >= end for position, end in zip(positions, ends.values(), strict=True))


async def fetch_matrix(gallery_id: str, url: str) -> bytes:
    """A gallery's similarity matrix as `.npy`, from any matcher, which redirects to the gallery's owner."""
    import aiohttp
    from yarl import URL

    address = URL(url) / "galleries" / gallery_id / "similarity"
    try:
        async with (
            aiohttp.ClientSession(headers={"Accept": "application/x-npy"}) as session,
            session.get(address) as response,
        ):
            body = await response.read()
            if response.status == 404:  # noqa: PLR2004 - HTTP's own
                raise UsageError(
                    f"no gallery {gallery_id!r}: `{url}/galleries` lists those of this matcher"
                )
            if response.status != 200:  # noqa: PLR2004 - HTTP's own
                raise MachineError(
                    f"{address}: the matcher answered {response.status}: {body[:200].decode(errors='replace')}"
                )
            return body
    except (aiohttp.ClientError, OSError) as error:
        raise MachineError(
            f"{address}: expected a matcher there ({error}); name one with --url"
        ) from error
