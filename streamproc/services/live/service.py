"""`streamproc review` without a folder: the live page as a service.

Its state is what the matchers answer when a page opens a gallery, and what the topics say from then
on. A process that starts anew has lost nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
import time
from collections import OrderedDict, deque
from functools import partial
from typing import TYPE_CHECKING, Any

from aiohttp import web
from prometheus_client import Counter, Gauge

from streamproc.decisions import Decision
from streamproc.errors import EventError, MachineError, UsageError
from streamproc.events import (
    AnimationReady,
    DuplicateCandidate,
    DuplicateGroup,
    Forgotten,
    VideoProgress,
    VideoReady,
)
from streamproc.gallery import Named
from streamproc.ids import hash_of, track_key_of
from streamproc.kafka.connection import retry_until_stopped
from streamproc.kafka.follow import follow
from streamproc.kafka.forgotten import forgotten_in
from streamproc.kafka.publisher import Publisher
from streamproc.kafka.topics import ensure_topics
from streamproc.services.live.gallery import LiveGallery
from streamproc.services.live.matchers import Matchers
from streamproc.services.live.proxy import ProxyUsers
from streamproc.services.live.server import PageServer
from streamproc.services.matcher.inbox import decision_of
from streamproc.services.review_http import CLOSE_SECONDS
from streamproc.services.service import Service
from streamproc.storage.animations import AnimationStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from streamproc.decisions import AnyDecision
    from streamproc.kafka.records import Record
    from streamproc.offline.page import LiveReport
    from streamproc.settings import ReviewSettings, Settings

log = logging.getLogger(__name__)

_SERVICE = "review"
_LEAST_TOKEN = 16
_MAX_GALLERIES = 64
_MAX_PERSONS = 500_000
_MAX_VIDEOS = 100_000
_MAX_RECENT = 5_000
_RECENT_SECONDS = 60.0
_LOOKS = 20
_LOOK_SECONDS = 0.25


async def run_review(settings: Settings) -> None:
    """Run until a signal comes; raises UsageError where the page would be open to everybody."""
    token = _token_of(settings.review)
    users = _users_of(settings.review)
    service = Service(_SERVICE, settings)
    await service.run(_LiveReview(service, token, users).run)


def _users_of(options: ReviewSettings) -> ProxyUsers | None:
    """Return who is named by a proxy, None where nobody is. Raises UsageError."""
    if options.user_header is None:
        if options.trusted_proxies:
            raise UsageError("review.trusted_proxies: set review.user_header, which they give")
        return None
    return ProxyUsers(options.user_header, options.trusted_proxies)


def _token_of(options: ReviewSettings) -> str | None:
    """Return the token that browsers must know, None for none. Raises UsageError."""
    token = None if options.token is None else options.token.get_secret_value()
    if token is not None and len(token) < _LEAST_TOKEN:
        raise UsageError(
            f"review.token: expected {_LEAST_TOKEN} characters or more, got {len(token)}"
        )
    is_open = token is None and options.user_header is None
    if is_open and options.require_token and not _is_loopback(options.host):
        raise UsageError(
            f"review.host: {options.host} can be reached from other machines: set review.token or "
            "review.user_header, or "
            "review.require_token to false where something else keeps others away"
        )
    return token


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class _LiveReview:
    """The work of the service, and what its page server asks."""

    def __init__(self, service: Service, token: str | None, users: ProxyUsers | None) -> None:
        settings = service.settings
        self._service = service
        self._settings = settings
        self._publisher = Publisher(settings, _SERVICE)
        self._matchers = Matchers(settings.review.matcher_url)
        self._store = AnimationStore(
            settings.animator.output_uri or str(settings.media_root / "animations"),
            media_root=settings.media_root,
            s3_endpoint_url=settings.remote.s3_endpoint_url,
        )
        self._galleries: OrderedDict[str, LiveGallery] = OrderedDict()
        self._opening: dict[str, asyncio.Task[LiveGallery]] = {}
        self._renewing: dict[str, asyncio.Task[None]] = {}
        # What came of late of galleries that nobody looks at: the matcher publishes first and
        # writes then, so its answer may be older than the event.
        self._recent: deque[tuple[float, str, Record]] = deque(maxlen=_MAX_RECENT)
        self._pictures: OrderedDict[str, tuple[str, str | None]] = OrderedDict()
        self._uris: dict[str, str] = {}
        self._names: OrderedDict[str, str] = OrderedDict()
        self._server = PageServer(
            self, token=token, users=users, allowed_hosts=settings.service.allowed_hosts
        )
        registry = service.registry
        pages = Gauge("streamproc_review_pages", "Open pages", registry=registry)
        pages.set_function(lambda: self._server.listeners)
        known = Gauge("streamproc_review_galleries", "Galleries in memory", registry=registry)
        known.set_function(lambda: len(self._galleries))
        self._decided = Counter(
            "streamproc_review_decisions", "Decisions made on the page", registry=registry
        )

    async def run(self) -> None:
        """Serve until the service is stopped. Raises what failed."""
        stop, ready = self._service.stop, self._service.ready
        await retry_until_stopped(stop, "topics", partial(ensure_topics, self._settings), ready)
        async with contextlib.AsyncExitStack() as stack:
            connect = partial(stack.enter_async_context, self._publisher)
            await retry_until_stopped(stop, "Kafka", connect, ready)
            if stop.is_set():
                return
            await stack.enter_async_context(self._matchers)
            await stack.enter_async_context(self._serving())
            following = asyncio.create_task(retry_until_stopped(stop, "Kafka", self._follow, ready))
            stopping = asyncio.create_task(stop.wait())
            try:
                await asyncio.wait({following, stopping}, return_when=asyncio.FIRST_COMPLETED)
                if following.done():
                    following.result()
            finally:
                tasks = [following, stopping, *self._opening.values(), *self._renewing.values()]
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)

    @contextlib.asynccontextmanager
    async def _serving(self) -> AsyncIterator[None]:
        options = self._settings.review
        runner = web.AppRunner(self._server.app(), access_log=None, shutdown_timeout=CLOSE_SECONDS)
        await runner.setup()
        try:
            try:
                await web.TCPSite(runner, options.host, options.port).start()
            except OSError as error:
                raise MachineError(
                    f"{options.host}:{options.port}: cannot listen there ({error.strerror}); "
                    "set review.port (0: any)"
                ) from error
            port = runner.addresses[0][1]
            log.info("review: the page at http://%s:%d/", options.host, port)
            yield
        finally:
            self._server.stopping.set()
            for gallery in self._galleries.values():
                await gallery.announce()
            await runner.cleanup()

    # What the topics say.

    async def _follow(self) -> None:
        take = {
            VideoReady.topic: self._take_video,
            AnimationReady.topic: self._take_animation,
            VideoProgress.topic: self._take_progress,
            DuplicateCandidate.topic: self._take_of_gallery,
            DuplicateGroup.topic: self._take_of_gallery,
            Decision.topic: self._take_of_gallery,
            Forgotten.topic: self._take_forgotten,
        }
        # What came while nobody followed is only with the matchers.
        for gallery_id in self._galleries:
            self._renew(gallery_id)
        await follow(
            self._settings,
            _SERVICE,
            {topic: partial(_if_good, one) for topic, one in take.items()},
            from_beginning=frozenset({VideoReady.topic, AnimationReady.topic}),
            caught_up=self._service.ready.set,
        )

    def _take_video(self, record: Record) -> None:
        event = VideoReady.from_json(record.value or b"")
        name = event.video_uri.partition("?")[0].rstrip("/").rpartition("/")[2]
        self._names.pop(event.video_id, None)
        self._names[event.video_id] = name or event.video_id
        while len(self._names) > _MAX_VIDEOS:
            self._names.popitem(last=False)

    def _take_animation(self, record: Record) -> None:
        event = AnimationReady.from_json(record.value or b"")
        if event.uri is None:
            return
        place = f"{event.gallery_id}\n{event.person_key}"
        self._drop_pictures(self._pictures.pop(place, ()))
        strip = None if event.crops is None else self._named(event, event.crops.uri)
        self._pictures[place] = (self._named(event, event.uri), strip)
        while len(self._pictures) > _MAX_PERSONS:
            self._drop_pictures(self._pictures.popitem(last=False)[1])
        gallery = self._galleries.get(event.gallery_id)
        if gallery is not None:
            gallery.version += 1
            self._tell(gallery)

    def _named(self, event: AnimationReady, uri: str) -> str:
        """Return the name by which a page asks for a picture."""
        name = f"{hash_of(event.gallery_id, event.person_key, uri)}.webp"
        self._uris[name] = uri
        return name

    def _drop_pictures(self, names: Iterable[str | None]) -> None:
        for name in names:
            self._uris.pop(name or "", None)

    def _take_progress(self, record: Record) -> None:
        event = VideoProgress.from_json(record.value or b"")
        is_matchers = event.state in ("done", "failed", "cancelled") and event.run_id is not None
        if is_matchers and event.gallery_id in self._galleries:
            self._renew(event.gallery_id, event.video_id, event.run_id)

    def _take_forgotten(self, record: Record) -> None:
        event = forgotten_in(record.value)
        if event is None:
            return  # a person, or a closing: the matchers say what follows
        named = Named.by(event)
        prefix = f"{event.gallery_id}\n"
        for place in [place for place in self._pictures if place.startswith(prefix)]:
            if named.has(place.removeprefix(prefix)):
                self._drop_pictures(self._pictures.pop(place))
        self._recent.append((time.monotonic(), event.gallery_id, record))
        gallery = self._galleries.get(event.gallery_id)
        if gallery is not None:
            gallery.forget(event)
            self._tell(gallery)

    def _take_of_gallery(self, record: Record) -> None:
        gallery_id = (record.key or b"").decode(errors="replace")
        if record.topic.endswith(Decision.topic):  # anybody writes it, under any key
            gallery_id = decision_of(record, self._settings).gallery_id
        self._recent.append((time.monotonic(), gallery_id, record))
        gallery = self._galleries.get(gallery_id)
        if gallery is not None:
            self._apply(gallery, record)
            self._tell(gallery)

    def _apply(self, gallery: LiveGallery, record: Record) -> None:
        topic = record.topic.removeprefix(self._settings.kafka.topic_prefix)
        if topic == Forgotten.topic:
            event = forgotten_in(record.value)
            if event is not None:
                gallery.forget(event)
        elif topic == Decision.topic:
            gallery.take_decision(decision_of(record, self._settings))
        elif topic == DuplicateGroup.topic:
            gallery.take_group(DuplicateGroup.from_json(record.value or b""))
        else:
            gallery.take_candidate(DuplicateCandidate.from_json(record.value or b""))

    def _tell(self, gallery: LiveGallery) -> None:
        task = asyncio.ensure_future(gallery.announce())
        task.add_done_callback(lambda done: done.cancelled() or done.exception())

    # What the matchers say.

    async def gallery(self, gallery_id: str) -> LiveGallery:
        """Return a gallery as it is now, asking the matchers once."""
        known = self._galleries.get(gallery_id)
        if known is not None:
            self._galleries.move_to_end(gallery_id)
            return known
        if gallery_id not in self._opening:
            task = asyncio.create_task(self._open(gallery_id))
            self._opening[gallery_id] = task
            task.add_done_callback(lambda _: self._opening.pop(gallery_id, None))
        return await asyncio.shield(self._opening[gallery_id])

    async def _open(self, gallery_id: str) -> LiveGallery:
        begun = time.monotonic()
        gallery = LiveGallery(gallery_id, await self._matchers.snapshot(gallery_id))
        self._catch_up(gallery, begun)
        self._galleries[gallery_id] = gallery
        for name in [name for name, one in self._galleries.items() if not one.listeners]:
            if len(self._galleries) <= _MAX_GALLERIES or name == gallery_id:
                break
            del self._galleries[name]
        return gallery

    def _catch_up(self, gallery: LiveGallery, begun: float) -> None:
        """Take once more what may have come after the matcher made its answer."""
        for at, gallery_id, record in self._recent:
            if gallery_id == gallery.gallery_id and at >= begun - _RECENT_SECONDS:
                with contextlib.suppress(EventError):
                    self._apply(gallery, record)

    def _renew(self, gallery_id: str, video_id: str = "", run_id: str | None = None) -> None:
        """Ask the matchers anew in the background: a video is closed, persons are complete."""
        before = self._renewing.get(gallery_id)
        task = asyncio.create_task(self._renewed(gallery_id, video_id, run_id, before))
        self._renewing[gallery_id] = task

        def done(ended: asyncio.Task[None]) -> None:
            if self._renewing.get(gallery_id) is ended:
                del self._renewing[gallery_id]

        task.add_done_callback(done)

    async def _renewed(
        self,
        gallery_id: str,
        video_id: str,
        run_id: str | None,
        before: asyncio.Task[None] | None,
    ) -> None:
        if before is not None:
            await asyncio.gather(before, return_exceptions=True)
        for _ in range(_LOOKS):  # the matcher says `done` first and writes then
            begun = time.monotonic()
            try:
                snapshot = await self._matchers.snapshot(gallery_id)
            except MachineError as error:
                log.warning("gallery %s: not asked for anew: %s", gallery_id, error)
            else:
                if not video_id or snapshot.has_closed(video_id, run_id):
                    gallery = self._galleries.get(gallery_id)
                    if gallery is not None:
                        gallery.replace(snapshot)
                        self._catch_up(gallery, begun + _RECENT_SECONDS)
                        await gallery.announce()
                    return
            await asyncio.sleep(_LOOK_SECONDS)

    async def galleries(self) -> Sequence[dict[str, Any]]:
        """Return all galleries."""
        return await self._matchers.galleries()

    # What the page asks.

    def report(self, gallery: LiveGallery) -> LiveReport:
        """Return what is shown of a gallery."""
        prefix = f"{gallery.gallery_id}\n"
        pictures = {
            key: self._pictures[prefix + key]
            for key in map(track_key_of, gallery.person_keys)
            if prefix + key in self._pictures
        }
        threshold = self._settings.clustering.similarity_threshold
        return gallery.report(self._names, pictures, threshold)

    async def decide(self, decision: AnyDecision) -> None:
        """Send a decision to the matchers, and show it."""
        await self._publisher.publish(decision)
        self._decided.inc()
        gallery = self._galleries.get(decision.gallery_id)
        if gallery is not None and gallery.take_decision(decision):
            await gallery.announce()

    async def picture(self, name: str) -> bytes | None:
        """Return an animation that was announced."""
        uri = self._uris.get(name)
        return None if uri is None else await asyncio.to_thread(self._store.read, uri)


def _if_good(take: Any, record: Record) -> None:
    """Take a record, unless it is none of its topic's: then it is of no concern here."""
    with contextlib.suppress(EventError):
        take(record)
