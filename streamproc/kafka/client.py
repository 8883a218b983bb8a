"""What the command line does with the stream: submit, cancel, watch, and handle dead letters."""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import orjson
from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaConnectionError, KafkaError
from pydantic import BaseModel, ValidationError

from streamproc.decisions import Decision, parse_decision
from streamproc.errors import EventError, MachineError, UsageError, VideoError
from streamproc.events import (
    AskedDetector,
    AskedTracker,
    DuplicateCandidate,
    PersonEmbedding,
    PersonIdentity,
    TracksReady,
    TracksRef,
    VideoCancel,
    VideoOptions,
    VideoProgress,
    VideoReady,
    describe,
    now,
)
from streamproc.gallery.identities import pair_of, statements_of
from streamproc.ids import person_key_of
from streamproc.kafka.connection import COMMITTED_ONLY, client_options, reached, unreachable
from streamproc.kafka.publisher import Publisher
from streamproc.storage.media import media_access
from streamproc.tracks import ReadOptions, find_track_file, read_tracks, save_tracks

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    from aiohttp import ClientResponse
    from yarl import URL

    from streamproc.gallery.identities import Pair
    from streamproc.kafka.records import Headers, Record
    from streamproc.settings import Settings
    from streamproc.storage.media import MediaAccess

_POLL_MS = 200
_SHOWN_BYTES = 200
_DEAD_LETTERS = "dead-letters"
_TAKEN_TOPICS = (
    VideoReady.topic,
    TracksReady.topic,
    VideoCancel.topic,
    PersonEmbedding.topic,
    Decision.topic,
)
"""The topics whose records services take, and so may have put aside."""
_CHUNK_BYTES = 1024 * 1024
_NESTED_OPTIONS: dict[str, type[BaseModel]] = {"detector": AskedDetector, "tracker": AskedTracker}


def video_ready(
    settings: Settings,
    video: str,
    *,
    persons: str | None,
    copy: bool,
    options: VideoOptions,
    read_as: ReadOptions | None = None,
    **fields: str | None,
) -> VideoReady:
    """Return the event that announces a video and its tracks, each a URI or a local path.

    A path below the media root becomes a relative URI. If `persons` is None, tracks are looked for
    beside a local video, unless people are to be found in its frames all the same. A folder of
    tracks is read here and becomes one npz in the media root; `read_as` says how tracks are read.
    Raises UsageError for a path outside the media root, unless `copy` is true, and VideoError for a
    file that does not exist.
    """
    media = media_access(settings)
    detect = options.detector is not None and options.detector.enabled
    if detect and persons is not None:
        raise UsageError("expected --detect or --persons, got both")
    if persons is None and not detect and not _is_uri(video):
        found = find_track_file(Path(video))
        persons = None if found is None else str(found)
    video_uri = _uri_of(media, video, copy=copy)
    tracks = None
    if persons is not None:
        tracks = _tracks_ref(media, persons, read_as or ReadOptions(), copy=copy)
    given = {name: value for name, value in fields.items() if value is not None}
    try:
        return VideoReady.make(
            video_uri=video_uri, tracks=tracks, options=options, submitted_at=now(), **given
        )
    except ValidationError as error:
        raise UsageError(f"{video}: {describe(error)}") from error


def video_options(given: Iterable[str], **asked: object) -> VideoOptions:
    """Return an event's options from texts such as `detector.input_size=640`, and from `asked`.

    Keys of `asked` have two underscores for a dot, and None for what is left open. Raises
    UsageError.
    """
    known = [
        *(name for name in VideoOptions.model_fields if name not in _NESTED_OPTIONS),
        *(f"{name}.{key}" for name, kind in _NESTED_OPTIONS.items() for key in kind.model_fields),
    ]
    values: dict[str, object] = {
        key.replace("__", "."): value for key, value in asked.items() if value is not None
    }
    for text in given:
        key, equals, said = text.partition("=")
        if not equals or key not in known:
            raise UsageError(
                f"--option {text}: expected NAME=VALUE with a name among {', '.join(known)}"
            )
        values[key] = said
    tree: dict[str, Any] = {}
    for key, value in values.items():
        *sections, leaf = key.split(".")
        for section in sections:
            tree.setdefault(section, {})[leaf] = value
        if not sections:
            tree[leaf] = value
    try:
        return VideoOptions.model_validate(tree)
    except ValidationError as error:
        raise UsageError(f"--option {describe(error)}") from error


def _is_uri(text: str) -> bool:
    return "://" in text


def _tracks_ref(media: MediaAccess, persons: str, read_as: ReadOptions, *, copy: bool) -> TracksRef:
    """Name a track file; a folder, which no URI can name, is read and written as one npz."""
    folder = Path(persons)
    if _is_uri(persons) or not folder.is_dir():
        return TracksRef.model_validate(
            {
                "uri": _uri_of(media, persons, copy=copy),
                "format": read_as.format_name,
                "boxes": read_as.boxes,
                "normalised": read_as.is_normalised,
                "class": read_as.object_class,
            }
        )
    tracks = read_tracks(folder, read_as)
    with tempfile.TemporaryDirectory(prefix="streamproc-") as temporary:
        path = Path(temporary) / f"{folder.resolve().name}.persons.npz"
        save_tracks(path, tracks.tracks, is_normalised=tracks.is_normalised)
        return TracksRef(uri=media.copy_into(path))


def _uri_of(media: MediaAccess, file: str, *, copy: bool) -> str:
    if _is_uri(file):
        return file
    path = Path(file)
    if not path.is_file():
        found = "a directory" if path.is_dir() else "nothing"
        raise VideoError(f"{path}: expected a file, found {found} there")
    return media.copy_into(path) if copy else media.relative_uri(path)


async def submit(settings: Settings, event: VideoReady) -> None:
    """Announce a video; raises MachineError if Kafka is away."""
    async with Publisher(settings, "client") as publisher:
        await publisher.publish(event)


async def decide(settings: Settings, decisions: Iterable[Decision]) -> None:
    """Send what reviewers decided to the matchers; raises MachineError if Kafka is away."""
    async with Publisher(settings, "client") as publisher:
        await publisher.publish_all(decisions)


async def cancel(settings: Settings, video_id: str, reason: str | None) -> None:
    """Cancel a video, begun or not; raises MachineError if Kafka is away."""
    async with Publisher(settings, "client") as publisher:
        await publisher.publish(VideoCancel.make(video_id=video_id, reason=reason))


async def watch(
    settings: Settings,
    *,
    gallery_id: str | None,
    since_seconds: float | None,
    until_done: str | None,
) -> AsyncIterator[DuplicateCandidate | VideoProgress]:
    """Yield candidates as they come, for ever, from `since_seconds` ago on (None: all there are).

    With `until_done`, a `video_id`, also yield its progress, and end once it is done, failed or
    cancelled. Candidates published before that come first.
    """
    topics: list[type[DuplicateCandidate | VideoProgress]] = [DuplicateCandidate]
    if until_done is not None:
        topics.append(VideoProgress)
    prefix = settings.kafka.topic_prefix
    event_types = {prefix + event_type.topic: event_type for event_type in topics}
    async with _reader(settings, list(event_types), since_seconds) as (consumer, _):
        final: VideoProgress | None = None
        # Where the candidates ended when `final` was read.
        ends: dict[TopicPartition, int] = {}
        while final is None or not await reached(consumer, ends):
            for partition, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    event = _parsed(event_types[partition.topic], record)
                    if isinstance(event, DuplicateCandidate):
                        if gallery_id in {None, event.gallery_id}:
                            yield event
                    elif event is not None and event.video_id == until_done:
                        final = _final_progress(final, event)
                        if final is None:
                            yield event
            if final is not None and not ends:
                candidates = prefix + DuplicateCandidate.topic
                own = [place for place in consumer.assignment() if place.topic == candidates]
                ends = await consumer.end_offsets(own)
        yield final


def _final_progress(before: VideoProgress | None, event: VideoProgress) -> VideoProgress | None:
    """Return the event that ends a video, None while it is being processed.

    `before` is the last result. The matcher's `done` may come before the worker's last events, so
    only `accepted`, when the video is submitted again, makes it None again.
    """
    if event.state in {"done", "failed", "cancelled"}:
        return event
    return None if event.state == "accepted" else before


def _parsed(
    event_type: type[DuplicateCandidate | VideoProgress], record: Record
) -> DuplicateCandidate | VideoProgress | None:
    try:
        return event_type.from_json(record.value or b"")
    except EventError:
        return None  # a record of another producer, of no concern here


@dataclass(frozen=True, slots=True, eq=False)
class DeadLetter:
    """A record that could not be processed.

    `where` is its own place in the topic `dead-letters`, as `partition@offset`.
    """

    where: str
    key: bytes | None
    value: bytes | None
    headers: Headers

    def reason(self, name: str) -> str:
        """Return the header `dlq_<name>`, "" if it is missing."""
        for header, value in self.headers:
            if header == f"dlq_{name}":
                return value.decode(errors="replace")
        return ""


async def dead_letters(settings: Settings) -> AsyncIterator[DeadLetter]:
    """Yield all dead letters that the topic holds, of each partition the oldest first."""
    topic = settings.kafka.topic_prefix + _DEAD_LETTERS
    async with _reader(settings, [topic], None) as (consumer, ends):
        while not await reached(consumer, ends):
            for partition, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    where = f"{partition.partition}@{record.offset}"
                    yield DeadLetter(where, record.key, record.value, tuple(record.headers))


async def replay_dead_letters(
    settings: Settings, places: frozenset[str], code: str | None
) -> tuple[int, list[tuple[str, str]]]:
    """Send records back to the topics that they came from: all, or those that are asked for.

    Returns how many were sent, and where those are that cannot be sent, with the reason. A video
    counts as submitted when it is replayed, unless its event says otherwise. Raises UsageError,
    before any is sent, if there is no dead letter at one of `places`.
    """
    if places:
        missing = set(places)
        async for letter in dead_letters(settings):
            missing.discard(letter.where)
        if missing:
            raise UsageError(f"no dead letter at {', '.join(sorted(missing))}")
    sent = 0
    not_sent = []
    async with Publisher(settings, "client") as publisher:
        async for letter in dead_letters(settings):
            if places and letter.where not in places:
                continue
            if code not in {None, letter.reason("error_code")}:
                continue
            reason = await _send_back(settings, publisher, letter)
            if reason is None:
                sent += 1
            else:
                not_sent.append((letter.where, reason))
    return sent, not_sent


async def _send_back(settings: Settings, publisher: Publisher, letter: DeadLetter) -> str | None:
    """Send one record back; returns why that cannot be, None if it was sent."""
    if letter.reason("value_truncated") != "false":
        return "its value was cut off"
    topic = letter.reason("topic")
    prefix = settings.kafka.topic_prefix
    # Anybody who may write a dead letter would otherwise write to any topic through this command.
    if topic not in {prefix + name for name in _TAKEN_TOPICS}:
        return f"no service of streamproc takes records of the topic {topic!r}"
    headers = tuple((name, value) for name, value in letter.headers if not name.startswith("dlq_"))
    await publisher.send(topic.removeprefix(prefix), letter.key, letter.value, headers)
    return None


@asynccontextmanager
async def _reader(
    settings: Settings, topics: list[str], since_seconds: float | None
) -> AsyncIterator[tuple[AIOKafkaConsumer, dict[TopicPartition, int]]]:
    """A consumer of all partitions outside any group, and the offsets at which they end now."""
    consumer = AIOKafkaConsumer(
        **client_options(settings, "client"),
        group_id=None,
        isolation_level=COMMITTED_ONLY,
        auto_offset_reset="earliest",
    )
    try:
        await consumer.start()
        partitions = []
        # The public call knows only topics that are subscribed to.
        cluster = await consumer._client.fetch_all_metadata()  # noqa: SLF001 - see above
        for topic in topics:
            numbers = cluster.partitions_for_topic(topic)
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
                start = starts.get(partition)  # None: no record is so new
                consumer.seek(partition, ends[partition] if start is None else start.offset)
        yield consumer, ends
    except KafkaConnectionError as error:
        raise unreachable(settings, error) from error
    except KafkaError as error:
        raise MachineError(f"Kafka at {','.join(settings.bootstrap)}: {error!r}") from error
    finally:
        await consumer.stop()


async def fetch_matrix(gallery_id: str, url: str, path: Path) -> None:
    """Write a gallery's similarity matrix as `.npy`; any matcher redirects to the gallery's owner.

    The file gets its name when all of it is there. Raises UsageError for an unknown gallery and a
    file that cannot be written, MachineError if no matcher gives the matrix.
    """
    import aiohttp
    from yarl import URL

    address = URL(url) / "galleries" / gallery_id / "similarity"
    try:
        async with (
            aiohttp.ClientSession(headers={"Accept": "application/x-npy"}) as session,
            session.get(address) as response,
        ):
            if response.status == HTTPStatus.NOT_FOUND:
                raise UsageError(
                    f"no gallery {gallery_id!r}: `{url}/galleries` lists those of this matcher"
                )
            if response.status != HTTPStatus.OK:
                answer = (await response.content.read(_SHOWN_BYTES)).decode(errors="replace")
                raise MachineError(f"{address}: the matcher answered {response.status}: {answer}")
            await _write(response, path)
    except (aiohttp.ClientError, OSError) as error:
        raise MachineError(
            f"{address}: expected a matcher there ({error}); name one with --url"
        ) from error


async def gallery_videos(
    settings: Settings, gallery_id: str
) -> list[tuple[VideoReady, TracksReady | None]]:
    """Return the last announcement of each video of a gallery that the topic still holds.

    With it, the last one of tracks that a worker found in the video.
    """
    prefix = settings.kafka.topic_prefix
    types: dict[str, type[VideoReady]] = {
        prefix + VideoReady.topic: VideoReady,
        prefix + TracksReady.topic: TracksReady,
    }
    last: dict[tuple[type[VideoReady], str], VideoReady] = {}
    async with _reader(settings, list(types), None) as (consumer, ends):
        while not await reached(consumer, ends):
            for place, records in (await consumer.getmany(timeout_ms=_POLL_MS)).items():
                for record in records:
                    with suppress(EventError):
                        event = types[place.topic].from_json(record.value or b"")
                        last[types[place.topic], event.video_id] = event
    found = []
    for (kind, video_id), event in sorted(last.items(), key=lambda one: one[0][1]):
        if kind is VideoReady and event.gallery_id == gallery_id:
            tracks = last.get((TracksReady, video_id))
            found.append((event, tracks if isinstance(tracks, TracksReady) else None))
    return found


async def found_tracks_of(settings: Settings, video_id: str) -> list[TracksReady]:
    """Return the last announcement of each file of tracks that a worker found in a video."""
    topic = settings.kafka.topic_prefix + TracksReady.topic
    last: dict[str, TracksReady] = {}
    async with _reader(settings, [topic], None) as (consumer, ends):
        while not await reached(consumer, ends):
            for records in (await consumer.getmany(timeout_ms=_POLL_MS)).values():
                for record in records:
                    with suppress(EventError):
                        event = TracksReady.from_json(record.value or b"")
                        if event.video_id == video_id:
                            last.pop(event.tracks.uri, None)
                            last[event.tracks.uri] = event
    return list(last.values())


@dataclass(frozen=True, slots=True, eq=False)
class GalleryIdentities:
    """What a matcher says of a gallery: who was decided about, by how much, in which videos.

    `candidates` are those that nobody called different, `apart` the pairs that were called
    different or have a veto: both empty unless they were asked for.
    """

    identities: tuple[PersonIdentity, ...]
    decision_count: int
    video_ids: tuple[str, ...]
    cuts: dict[str, dict[int, int]]
    candidates: tuple[DuplicateCandidate, ...] = ()
    apart: frozenset[Pair] = frozenset()


async def fetch_identities(
    gallery_id: str, url: str, *, with_candidates: bool = False
) -> GalleryIdentities:
    """Ask any matcher for the identities of a gallery.

    Raises UsageError for an unknown gallery, or one whose candidates it cannot list whole,
    MachineError if no matcher answers.
    """
    identities = await _fetched(gallery_id, url, "identities")
    decisions = await _fetched(gallery_id, url, "decisions")
    persons = await _fetched(gallery_id, url, "persons")
    candidates: tuple[DuplicateCandidate, ...] = ()
    apart: frozenset[Pair] = frozenset()
    if with_candidates:
        if persons["count"] > len(persons["persons"]):
            raise UsageError(
                f"gallery {gallery_id!r}: expected at most {len(persons['persons']):,} persons "
                f"with --likely, found {persons['count']:,}: who has a veto is not known of all"
            )
        listed = await _fetched(gallery_id, url, "candidates")
        candidates = tuple(
            DuplicateCandidate.from_json(orjson.dumps(one)) for one in listed["candidates"]
        )
        apart = frozenset(_pairs_apart(decisions["decisions"], persons["persons"]))
    return GalleryIdentities(
        tuple(PersonIdentity.from_json(orjson.dumps(one)) for one in identities["identities"]),
        len(decisions["decisions"]),
        tuple(video["video_id"] for video in persons["videos"]),
        _cuts_of(persons["persons"]),
        candidates,
        apart,
    )


def _cuts_of(persons: Iterable[dict[str, Any]]) -> dict[str, dict[int, int]]:
    """Return the first frames of second parts by video and track, of persons as a matcher says."""
    cuts: dict[str, dict[int, int]] = {}
    for one in persons:
        if one.get("part") == 2:  # noqa: PLR2004 - where the first part ends
            cuts.setdefault(one["video_id"], {})[one["person_id"]] = one["first_frame_index"]
    return cuts


def _pairs_apart(
    decisions: Iterable[dict[str, Any]], persons: Iterable[dict[str, Any]]
) -> Iterator[Pair]:
    """Yield the pairs that a matcher says were called different, or were seen apart."""
    said = statements_of(parse_decision(orjson.dumps(one)) for one in decisions)
    yield from (pair for pair, verdict in said.of_pair.items() if verdict == "different")
    for person in persons:
        by_id = (person_key_of(person["video_id"], other) for other in person["seen_with"])
        for other in person.get("seen_with_keys", by_id):
            yield pair_of(person["person_key"], other)


@dataclass(frozen=True, slots=True)
class Held:
    """What a matcher holds of somebody: their keys and videos, and of the rest how many."""

    person_keys: tuple[str, ...] = ()
    video_ids: tuple[str, ...] = ()
    candidate_count: int = 0
    group_count: int = 0
    decision_count: int = 0
    identity_count: int = 0

    @property
    def is_nothing(self) -> bool:
        """Whether nothing is held."""
        return self == Held()


async def fetch_held(
    gallery_id: str, url: str, *, person_keys: Iterable[str] = (), video_ids: Iterable[str] = ()
) -> Held:
    """Ask any matcher what it holds of tracks and videos, of a whole gallery without any.

    Raises UsageError for an unknown gallery, MachineError if no matcher answers.
    """
    query = [("person", key) for key in person_keys] + [("video", name) for name in video_ids]
    found = await _fetched(gallery_id, url, "held", query)
    return Held(
        tuple(found["person_keys"]),
        tuple(found["video_ids"]),
        found["candidates"],
        found["groups"],
        found["decisions"],
        found["identities"],
    )


async def list_galleries(url: str) -> list[str]:
    """Return the galleries of all matchers, sorted; raises MachineError if `url` is none."""
    from yarl import URL

    asked: set[str] = set()
    waiting = [url]
    found: set[str] = set()
    while waiting:
        one = waiting.pop()
        if one in asked:
            continue
        asked.add(one)
        answer = await _json_of(URL(one) / "galleries")
        found |= {str(gallery["gallery_id"]) for gallery in answer["galleries"]}
        waiting += map(str, answer.get("others", ()))
    return sorted(found)


async def _fetched(
    gallery_id: str, url: str, name: str, query: Sequence[tuple[str, str]] = ()
) -> dict[str, Any]:
    from yarl import URL

    address = (URL(url) / "galleries" / gallery_id / name).with_query(query)
    answer = await _json_of(address, may_be_missing=True)
    if answer is None:
        raise UsageError(
            f"no gallery {gallery_id!r}: `{url}/galleries` lists those of this matcher"
        )
    return answer


@overload
async def _json_of(address: URL) -> dict[str, Any]: ...


@overload
async def _json_of(address: URL, *, may_be_missing: bool) -> dict[str, Any] | None: ...


async def _json_of(address: URL, *, may_be_missing: bool = False) -> dict[str, Any] | None:
    """Return what a matcher answers. Raises MachineError if none does."""
    import aiohttp

    try:
        async with aiohttp.ClientSession() as session, session.get(address) as response:
            body = await response.read()
    except (aiohttp.ClientError, OSError) as error:
        raise MachineError(
            f"{address}: expected a matcher there ({error}); name one with --url"
        ) from error
    if may_be_missing and response.status == HTTPStatus.NOT_FOUND:
        return None
    if response.status != HTTPStatus.OK:
        text = body[:_SHOWN_BYTES].decode(errors="replace")
        raise MachineError(f"{address}: the matcher answered {response.status}: {text}")
    found: dict[str, Any] = orjson.loads(body)
    return found


def _is_device(path: Path) -> bool:
    """Whether what is there must be written to, and must not be replaced."""
    return path.exists() and not path.is_file()


async def _write(response: ClientResponse, path: Path) -> None:
    """Write an answer's body to a file as it comes."""
    from aiohttp import ClientError

    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    is_device = _is_device(path)
    try:
        with (path if is_device else temporary).open("wb") as file:
            async for chunk in response.content.iter_chunked(_CHUNK_BYTES):
                file.write(chunk)
        if not is_device:
            temporary.replace(path)
    except ClientError:
        raise
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
