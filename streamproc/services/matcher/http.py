"""The matcher's HTTP routes: what a gallery is now, at any time, from any matcher.

The growing matrix, and in the form of the events what was said last: candidates, groups,
identities; and the decisions.
"""

from __future__ import annotations

import asyncio
import hashlib
import io
import logging
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import orjson
from aiohttp import web

from streamproc.events import now, timestamp_of
from streamproc.gallery import Named, candidate_id_of, holdings
from streamproc.gallery.announcements import Announcer, candidate_person
from streamproc.gallery.pairs import pair_key

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping

    from streamproc.events import Event
    from streamproc.gallery import Candidate, Gallery, Row, Snapshot
    from streamproc.services.matcher.table import Galleries, OwnedGallery

log = logging.getLogger(__name__)

MAX_JSON_PERSONS = 2000
MAX_LISTED = 10_000
"""The most candidates, groups or persons in one answer."""
NPY = "application/x-npy"
_BLOCK_NUMBERS = 1 << 20  # 4 MiB of the matrix are computed and sent at a time
_BUILDS_AT_ONCE = 2
_WAITING_AT_ONCE = 16
"""More requests than these are told to come again."""
_CLIENT_SECONDS = 30.0
_LEAST_BYTES_A_SECOND = 1 << 20
"""A client may take so long for an answer, and a second more for each of so many bytes."""


class GallerySource(Protocol):
    """What the routes ask the matcher."""

    galleries: Galleries
    """Those of `loaded` only."""

    @property
    def loaded(self) -> Collection[int]:
        """The partitions that this process owns and has read; none while it recovers."""

    def partition_of(self, gallery_id: str) -> int:
        """Where a gallery lives."""

    def owner_of(self, partition: int) -> str | None:
        """The URL of another matcher that owns a partition, None where that is not known."""

    def others(self) -> list[str]:
        """The URLs of the other matchers, as far as they are known."""

    @property
    def similarity_threshold(self) -> float:
        """That of persons whose event names none."""


class GalleryApi:
    """`GET /galleries`, and what is below each of them; see `routes`."""

    def __init__(self, source: GallerySource) -> None:
        self._source = source
        self._building = asyncio.Semaphore(_BUILDS_AT_ONCE)
        self._waiting = 0

    def routes(self) -> list[web.RouteDef]:
        """What to add to the service's HTTP server."""
        return [
            web.get("/galleries", self._list),
            web.get("/galleries/{gallery_id}/similarity", self._similarity),
            web.get("/galleries/{gallery_id}/candidates", self._lister(self._candidates)),
            web.get("/galleries/{gallery_id}/groups", self._lister(self._groups)),
            web.get("/galleries/{gallery_id}/identities", self._lister(self._identities)),
            web.get("/galleries/{gallery_id}/decisions", self._lister(self._decisions)),
            web.get("/galleries/{gallery_id}/persons", self._lister(self._persons)),
            web.get("/galleries/{gallery_id}/held", self._lister(self._held)),
        ]

    async def _list(self, _: web.Request) -> web.Response:
        known = [owned for owned in self._source.galleries if owned.is_known]
        galleries = sorted(known, key=lambda owned: owned.gallery.gallery_id)
        return _json(
            {
                "partitions": sorted(self._source.loaded),
                "others": self._source.others(),
                "galleries": [_summary(owned) for owned in galleries],
            }
        )

    async def _similarity(self, request: web.Request) -> web.StreamResponse:
        """The matrix as `Accept` wants it.

        `.npy`, float32 in the order of the sorted person keys, or else JSON.

        With `?matrix=no` JSON leaves the numbers out: the keys and candidates that go with an
        `.npy`. Both carry the sha256 of the keys (joined by newlines), which tells whether they
        speak of the same persons.
        """
        gallery_id = request.match_info["gallery_id"]
        partition = self._source.partition_of(gallery_id)
        if partition not in self._source.loaded:
            return self._elsewhere(request, partition)
        owned = self._source.galleries.get(gallery_id)
        if owned is None or owned.is_empty:
            return _unknown(gallery_id)
        return await self._in_turn(lambda: self._answer(request, owned))

    async def _in_turn(
        self, answer: Callable[[], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Give an answer once it is its turn; whoever waits holds no copy of anything."""
        if self._waiting >= _WAITING_AT_ONCE:
            return _try_again("too many ask at the same time: try again")
        self._waiting += 1
        try:
            async with self._building:
                return await answer()
        finally:
            self._waiting -= 1

    def _lister(
        self, content: Callable[[web.Request, Gallery], Callable[[], dict[str, Any]]]
    ) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
        """Return a handler that answers with what `content` says of a gallery.

        `content` copies what it needs, and returns what makes the answer of it in a thread.
        """

        async def handle(request: web.Request) -> web.StreamResponse:
            gallery_id = request.match_info["gallery_id"]
            partition = self._source.partition_of(gallery_id)
            if partition not in self._source.loaded:
                return self._elsewhere(request, partition)
            owned = self._source.galleries.get(gallery_id)
            if owned is None or not owned.is_known:
                return _unknown(gallery_id)

            async def answer() -> web.StreamResponse:
                make = content(request, owned.gallery)
                listed = await asyncio.to_thread(make)
                body = await asyncio.to_thread(orjson.dumps, {"gallery_id": gallery_id, **listed})
                response = web.Response(body=body, content_type="application/json")
                async with _deadline(request, len(body)):
                    await response.prepare(request)
                    await response.write_eof()
                return response

            return await self._in_turn(answer)

        return handle

    def _announcer(self, gallery: Gallery) -> Announcer:
        return Announcer(gallery, self._source.similarity_threshold, now(), dict(gallery.group_ids))

    def _candidates(self, request: web.Request, gallery: Gallery) -> Callable[[], dict[str, Any]]:
        """Candidates as `duplicate-candidates` says them, the likeliest first.

        With `?decided=yes` also those that were withdrawn because they were called different, with
        `?limit=N` so many at most.
        """
        with_decided = request.query.get("decided") == "yes"
        asked = request.query.get("limit", "")
        limit = min(MAX_LISTED, int(asked)) if asked.isdecimal() else MAX_LISTED
        reviewed = gallery.reviewed
        rows = dict(gallery.rows)  # rows themselves never change
        announcer = self._announcer(gallery)

        def make() -> dict[str, Any]:
            found = [
                (a, b, candidate, reviewed.rules_out(a, b))
                for (a, b), candidate in _standing(rows).items()
            ]
            listed = [one for one in found if with_decided or not one[3]]
            listed.sort(key=_likeliest_first)
            events = []
            for a, b, candidate, is_out in listed[:limit]:
                pair = (rows[a].tracklet, rows[b].tracklet)
                say = announcer.ruled_out if is_out else announcer.candidate
                events.append(_wire(say(*pair, candidate)))
            return {"count": len(listed), "candidates": events}

        return make

    def _groups(self, _: web.Request, gallery: Gallery) -> Callable[[], dict[str, Any]]:
        """Groups as `duplicate-groups` says them."""
        groups = [
            (group_id, group)
            for group_id, group in sorted(gallery.groups.items())
            if not gallery.reviewed.are_apart(group.person_keys)
        ]
        announcer = self._announcer(gallery)

        def make() -> dict[str, Any]:
            events = [
                _wire(announcer.group(group_id, group, "updated"))
                for group_id, group in groups[:MAX_LISTED]
            ]
            return {"count": len(groups), "groups": events}

        return make

    def _identities(self, _: web.Request, gallery: Gallery) -> Callable[[], dict[str, Any]]:
        """Identities as `identities` says them: those of which something is decided."""
        found = [one for _, one in sorted(gallery.reviewed.notable.items())]
        announcer = self._announcer(gallery)
        return lambda: {
            "count": len(found),
            "identities": [_wire(announcer.identity(one)) for one in found],
        }

    def _decisions(self, _: web.Request, gallery: Gallery) -> Callable[[], dict[str, Any]]:
        """Decisions as `review-decisions` says them, in their order.

        Those on people whom a later run of their video does not have are `not_carried_over`.
        """
        kept = list(gallery.decisions.values())

        def make() -> dict[str, Any]:
            kept.sort(key=lambda one: one.decision.order)
            standing = [_wire(one.decision) for one in kept if not one.is_lost]
            lost = [_wire(one.decision) for one in kept if one.is_lost]
            return {"count": len(kept), "decisions": standing, "not_carried_over": lost}

        return make

    def _persons(self, _: web.Request, gallery: Gallery) -> Callable[[], dict[str, Any]]:
        """Persons as candidates describe them, with who was seen beside whom, and the videos."""
        rows = [row.tracklet for _, row in sorted(gallery.rows.items())]
        videos = sorted(gallery.videos.items())

        def make() -> dict[str, Any]:
            persons = [
                {
                    **candidate_person(one).model_dump(mode="json", exclude_none=True),
                    "frames_tracked": one.frames_tracked,
                    "seen_with": one.seen_with,
                    **({} if one.part is None else {"seen_with_keys": one.keys_seen_apart}),
                }
                for one in rows[:MAX_LISTED]
            ]
            known = [
                {"video_id": video_id, "run_id": record.order[1], "closed": record.closed}
                for video_id, record in videos
            ]
            model = rows[0].model.model_dump(mode="json") if rows else None
            return {"count": len(rows), "persons": persons, "videos": known, "model": model}

        return make

    def _held(self, request: web.Request, gallery: Gallery) -> Callable[[], dict[str, Any]]:
        """What is held of those whom `?person=KEY` and `?video=ID` name, of all without them."""
        asked = request.query
        persons, videos = asked.getall("person", []), asked.getall("video", [])
        named = Named(frozenset(persons), frozenset(videos), everything=not persons and not videos)
        held = holdings(gallery, named)
        return lambda: {
            "person_keys": held.person_keys,
            "video_ids": held.video_ids,
            "candidates": held.candidate_count,
            "groups": held.group_count,
            "decisions": held.decision_count,
            "identities": held.identity_count,
        }

    async def _answer(self, request: web.Request, owned: OwnedGallery) -> web.StreamResponse:
        """Copy what is asked for, and send it; a client that does not read is left."""
        gallery_id = owned.gallery.gallery_id
        keys = sorted(owned.gallery.rows)
        if NPY in request.headers.get("Accept", ""):
            return await _send_npy(request, keys, owned.gallery.snapshot(keys))
        with_matrix = request.query.get("matrix") != "no"
        if with_matrix and len(keys) > MAX_JSON_PERSONS:
            return _fault(
                413,
                f"gallery {gallery_id!r} has {len(keys)} persons, JSON is given for at most "
                f"{MAX_JSON_PERSONS}: ask with `Accept: {NPY}`, and with `?matrix=no` for persons "
                "and candidates",
            )
        answer = _described(owned.gallery, keys)
        if with_matrix:
            answer["similarity"] = await asyncio.to_thread(owned.gallery.snapshot(keys).matrix)
        response = _json(answer)
        async with _deadline(request, response.content_length or 0):
            await response.prepare(request)
            await response.write_eof()
        return response

    def _elsewhere(self, request: web.Request, partition: int) -> web.Response:
        owner = self._source.owner_of(partition)
        if owner is None:
            return _try_again("the galleries are being read, or move to another matcher: try again")
        return web.Response(status=307, headers={"Location": owner.rstrip("/") + request.raw_path})


async def _send_npy(
    request: web.Request, keys: list[str], snapshot: Snapshot
) -> web.StreamResponse:
    head = io.BytesIO()
    shape = (snapshot.count, snapshot.count)
    np.lib.format.write_array_header_1_0(
        head, {"descr": "<f4", "fortran_order": False, "shape": shape}
    )
    response = web.StreamResponse(
        headers={"Content-Type": NPY, "X-Person-Keys-Sha256": _keys_sha256(keys)}
    )
    size_bytes = head.tell() + 4 * snapshot.count**2
    response.content_length = size_bytes
    async with _deadline(request, size_bytes):
        await response.prepare(request)
        await response.write(head.getvalue())
        step = max(1, _BLOCK_NUMBERS // max(1, snapshot.count))
        for start in range(0, snapshot.count, step):
            stop = min(start + step, snapshot.count)
            rows = await asyncio.to_thread(snapshot.matrix_rows, start, stop)
            await response.write(rows.astype("<f4", copy=False).tobytes())
        await response.write_eof()
    return response


@asynccontextmanager
async def _deadline(request: web.Request, size_bytes: int) -> AsyncIterator[None]:
    """Cut the connection of a client that does not take its answer in time."""
    try:
        async with asyncio.timeout(_CLIENT_SECONDS + size_bytes / _LEAST_BYTES_A_SECOND):
            yield
    except TimeoutError:
        log.warning("%s: the client took its answer too slowly", request.path)
        if request.transport is not None:
            request.transport.abort()


def _standing(rows: Mapping[str, Row]) -> dict[tuple[str, str], Candidate]:
    """Return the pairs that count and are not suppressed, by their keys: as `Gallery.candidates`.

    A pair that two rows keep is as the row of the smaller key has it.
    """
    found: dict[tuple[str, str], Candidate] = {}
    for key in sorted(rows, reverse=True):
        for other, candidate in rows[key].candidates.items():
            row = rows.get(other)
            if row is not None and row.tracklet.run_id == candidate.run_id:
                found[pair_key(key, other)] = candidate
    return {pair: candidate for pair, candidate in found.items() if not candidate.is_suppressed}


def _likeliest_first(
    found: tuple[str, str, Candidate, bool],
) -> tuple[float, float, str, str]:
    a, b, candidate, _ = found
    chance = 0.0 if candidate.judgement is None else candidate.judgement.probability
    return (-chance, -candidate.similarity, a, b)


def _wire(event: Event) -> dict[str, Any]:
    return event.model_dump(mode="json", exclude_none=True)


def _unknown(gallery_id: str) -> web.Response:
    return _fault(404, f"gallery {gallery_id!r}: nobody was seen in it yet, or it has expired")


def _summary(owned: OwnedGallery) -> dict[str, Any]:
    return {
        "gallery_id": owned.gallery.gallery_id,
        "partition": owned.partition,
        "persons": len(owned.gallery.rows),
        "videos": len(owned.gallery.videos),
        "decisions": len(owned.gallery.decisions),
        "last_event_at": timestamp_of(owned.last_event_ms),
    }


def _described(gallery: Gallery, keys: list[str]) -> dict[str, Any]:
    return {
        "gallery_id": gallery.gallery_id,
        "person_keys": keys,
        "person_keys_sha256": _keys_sha256(keys),
        "weights_sha256": [gallery.rows[key].tracklet.model.weights_sha256 for key in keys],
        "candidates": [
            _candidate(gallery.gallery_id, key, other, candidate)
            for key, other, candidate in gallery.candidates()
            if not gallery.reviewed.rules_out(key, other)
        ],
    }


def _candidate(gallery_id: str, key: str, other: str, candidate: Candidate) -> dict[str, Any]:
    """Return a pair as `DuplicateCandidate` names its fields, with the keys of its persons."""
    return {
        "candidate_id": candidate_id_of(gallery_id, key, other),
        "person_keys": [key, other],
        "state": candidate.state,
        **candidate.wire_fields(),
    }


def _keys_sha256(keys: list[str]) -> str:
    return hashlib.sha256("\n".join(keys).encode()).hexdigest()


def _json(content: Any, status: int = 200) -> web.Response:
    body = orjson.dumps(
        content, option=orjson.OPT_SERIALIZE_NUMPY
    )  # numbers that are not there (NaN) become null
    return web.Response(body=body, status=status, content_type="application/json")


def _try_again(text: str) -> web.Response:
    response = _fault(503, text)
    response.headers["Retry-After"] = "2"
    return response


def _fault(status: int, text: str) -> web.Response:
    return _json({"error": text}, status)
