"""What `streamproc forget` does with the stream: find who is named, say so, and wait."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from pydantic import ValidationError

from streamproc.errors import UsageError
from streamproc.events import MAX_FORGOTTEN, Forgotten, describe
from streamproc.ids import track_key_of
from streamproc.kafka.client import (
    fetch_held,
    fetch_identities,
    gallery_videos,
    list_galleries,
)
from streamproc.kafka.publisher import Publisher
from streamproc.kafka.topics import changelog_of
from streamproc.shown import shown

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from streamproc.kafka.client import Held
    from streamproc.settings import Settings

_WAIT_SECONDS = 60.0
_LOOK_SECONDS = 0.2
_SENT_AS_IT_IS = "--force sends it all the same, for what may be left in files"


@dataclass(frozen=True, slots=True)
class Asked:
    """Whom to forget: tracks by `VIDEO/NUMBER`, identities, videos; none of them: a gallery.

    Without a `gallery` they are looked for in all.
    """

    gallery: str | None = None
    person_keys: tuple[str, ...] = ()
    identity_ids: tuple[str, ...] = ()
    video_ids: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """All names that must be known somewhere."""
        return (*self.person_keys, *self.identity_ids, *self.video_ids)


@dataclass(frozen=True, slots=True)
class Found:
    """Whom to forget in one gallery, all of it without tracks and videos, and what is held."""

    gallery_id: str
    person_keys: tuple[str, ...] = ()
    video_ids: tuple[str, ...] = ()
    held: Held | None = None

    def events(self) -> Iterator[Forgotten]:
        """Yield what says so, each naming not too many. Raises UsageError for a bad name.

        The part of a track stands for its track.
        """
        tracks = tuple(dict.fromkeys(map(track_key_of, self.person_keys)))
        everything = not self.person_keys and not self.video_ids
        videos = self.held.video_ids if everything and self.held is not None else self.video_ids
        count = max(len(tracks), len(videos), 1)
        for start in range(0, count, MAX_FORGOTTEN):
            part = slice(start, start + MAX_FORGOTTEN)
            try:
                yield Forgotten.make(
                    gallery_id=self.gallery_id,
                    person_keys=tracks[part],
                    video_ids=videos[part],
                    everything=everything,
                )
            except ValidationError as error:
                raise UsageError(describe(error)) from error


@dataclass(slots=True)
class _Looking:
    """What is known of one gallery while names are looked up."""

    person_keys: list[str] = field(default_factory=list)
    video_ids: list[str] = field(default_factory=list)


async def find(settings: Settings, asked: Asked, url: str) -> list[Found]:
    """Ask the matchers who is named, in which galleries, and what they hold.

    Of a whole gallery the announcements of its videos count as well.

    Raises UsageError for a name that nobody knows, MachineError where no matcher answers.
    """
    _check(asked)
    galleries = [asked.gallery] if asked.gallery is not None else await list_galleries(url)
    if not asked.names:
        assert asked.gallery is not None
        held = await fetch_held(asked.gallery, url)
        announced = await gallery_videos(settings, asked.gallery)
        videos = {event.video_id for event, _ in announced}.union(held.video_ids)
        return [Found(asked.gallery, held=replace(held, video_ids=tuple(sorted(videos))))]
    known: set[str] = set()
    found = []
    for gallery_id in galleries:
        looking = await _look(asked, gallery_id, url, known)
        if looking.person_keys or looking.video_ids:
            keys, of_videos = tuple(looking.person_keys), tuple(looking.video_ids)
            held = await fetch_held(gallery_id, url, person_keys=keys, video_ids=of_videos)
            found.append(Found(gallery_id, keys, of_videos, held))
    for name in asked.names:
        if name not in known:
            where = "any gallery" if asked.gallery is None else f"the gallery {asked.gallery!r}"
            raise UsageError(
                f"{shown(name)}: expected somebody whom the matchers know, found nothing of that "
                f"name in {where}; {_SENT_AS_IT_IS}"
            )
    return found


def _check(asked: Asked) -> None:
    if not asked.names and asked.gallery is None:
        raise UsageError("expected --person, --identity, --video or --gallery")
    for key in asked.person_keys:
        if "/" not in key:
            raise UsageError(f"--person {shown(key)}: expected a track, as VIDEO_ID/NUMBER")


async def _look(asked: Asked, gallery_id: str, url: str, known: set[str]) -> _Looking:
    """Look for all names in one gallery, and add those that are there to `known`."""
    looking = _Looking()
    for key in asked.person_keys:
        if not (await fetch_held(gallery_id, url, person_keys=[key])).is_nothing:
            looking.person_keys.append(key)
            known.add(key)
    for video_id in asked.video_ids:
        if not (await fetch_held(gallery_id, url, video_ids=[video_id])).is_nothing:
            looking.video_ids.append(video_id)
            known.add(video_id)
    if asked.identity_ids:
        for one in (await fetch_identities(gallery_id, url)).identities:
            if one.identity_id in asked.identity_ids:
                looking.person_keys += one.person_keys
                known.add(one.identity_id)
    return looking


def unchecked(asked: Asked) -> list[Found]:
    """Return whom to forget without asking anybody: a video's own gallery is named by it.

    Raises UsageError for an identity: only a matcher knows whose it is.
    """
    _check(asked)
    if asked.identity_ids:
        raise UsageError("--identity: only matchers know it; name its tracks with --person")
    if asked.gallery is not None:
        return [Found(asked.gallery, asked.person_keys, asked.video_ids)]
    own = [Found(key.rpartition("/")[0], person_keys=(key,)) for key in asked.person_keys]
    return own + [Found(video_id, video_ids=(video_id,)) for video_id in asked.video_ids]


async def send(settings: Settings, found: Sequence[Found]) -> None:
    """Say who is to be forgotten; raises MachineError if Kafka is away."""
    events = [event for one in found for event in one.events()]
    async with Publisher(settings, "client") as publisher:
        await publisher.publish_all(events)


async def wait_until_gone(found: Sequence[Found], url: str) -> list[str]:
    """Wait until the matchers hold nothing more of them, for a minute at most.

    Returns the galleries that still hold something then. Raises MachineError where no matcher
    answers.
    """
    left = list(found)
    end = time.monotonic() + _WAIT_SECONDS
    while left and time.monotonic() < end:
        left = [one for one in left if not await _is_gone(one, url)]
        if left:
            await asyncio.sleep(_LOOK_SECONDS)
    return [one.gallery_id for one in left]


async def _is_gone(one: Found, url: str) -> bool:
    try:
        held = await fetch_held(
            one.gallery_id, url, person_keys=one.person_keys, video_ids=one.video_ids
        )
    except UsageError:  # nothing is left of the gallery
        return True
    return held.is_nothing


_HOLDING = (
    "person_embeddings",
    "animation_ready",
    "tracks_ready",
    "duplicate_candidates",
    "duplicate_groups",
    "review_decisions",
    "dead_letters",
)
"""The topics, as settings name them, in which somebody may be, besides those that are compacted."""


def kept_until(settings: Settings) -> list[tuple[datetime, list[str]]]:
    """Return until when topics keep what was said before, by the settings, the soonest first.

    `identities` is not among them: Kafka says nothing of when it compacts a topic.
    """
    now = datetime.now(UTC)
    prefix = settings.kafka.topic_prefix
    by_hours: dict[float, list[str]] = {}
    for name in _HOLDING:
        hours: float = getattr(settings.topics, name).retention_hours
        by_hours.setdefault(hours, []).append(prefix + name.replace("_", "-"))
    changelog = changelog_of(settings)  # what was removed is compacted away in the same time
    by_hours[settings.topics.person_embeddings.retention_hours].append(changelog)
    return [(now + timedelta(hours=hours), names) for hours, names in sorted(by_hours.items())]
