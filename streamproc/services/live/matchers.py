"""What the live page asks the matchers. Any of them leads to the one that has a gallery."""

from __future__ import annotations

import asyncio
import io
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Self

import aiohttp
import numpy as np
import orjson
from yarl import URL

from streamproc.decisions import parse_decision
from streamproc.errors import EventError, MachineError
from streamproc.offline.page import MAX_HEATMAP_PERSONS
from streamproc.services.live.gallery import Snapshot

if TYPE_CHECKING:
    from streamproc.types import Float32Array

_NPY = "application/x-npy"
_SECONDS = 60.0
_MAX_MATCHERS = 64
_FEWEST_TO_COMPARE = 2
_MAX_CANDIDATES = 2000
"""Twice what a page shows."""


class Matchers:
    """Asks over HTTP; use as an async context manager. All methods raise MachineError."""

    def __init__(self, url: str) -> None:
        self._url = URL(url)
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(total=_SECONDS)
        self._session = aiohttp.ClientSession(timeout=timeout)
        return self

    async def __aexit__(self, *_: object) -> None:
        if self._session is not None:
            await self._session.close()

    async def galleries(self) -> list[dict[str, Any]]:
        """Return all galleries, of all matchers, by their names."""
        asked: set[URL] = set()
        waiting = [self._url]
        found: dict[str, dict[str, Any]] = {}
        while waiting and len(asked) < _MAX_MATCHERS:
            url = waiting.pop()
            if url in asked:
                continue
            asked.add(url)
            try:
                answer = await self._get(url / "galleries")
            except MachineError:
                if url == self._url:
                    raise
                continue  # another one that has just gone; its galleries move
            found |= {one["gallery_id"]: one for one in answer["galleries"]}
            waiting += [URL(other) for other in answer.get("others", ())]
        return [found[name] for name in sorted(found)]

    async def snapshot(self, gallery_id: str) -> Snapshot:
        """Return a gallery as it is now, an empty one where nobody was seen in it yet."""
        names = ("candidates", "groups", "decisions", "persons")
        answers = await asyncio.gather(*(self._list(gallery_id, name) for name in names))
        if any(answer is None for answer in answers):
            return Snapshot()
        candidates, groups, decisions, persons = (answer or {} for answer in answers)
        similarity = None
        keys = tuple(one["person_key"] for one in persons["persons"])
        if _FEWEST_TO_COMPARE <= persons["count"] <= MAX_HEATMAP_PERSONS:
            similarity = await self._similarity(gallery_id)
        if similarity is not None and similarity.shape != (len(keys), len(keys)):
            similarity = None  # somebody came in between: the next look has all
        try:
            decided = tuple(parse_decision(orjson.dumps(one)) for one in decisions["decisions"])
        except EventError as error:
            raise MachineError(f"{self._url}: the matcher said what is no decision") from error
        return Snapshot(
            candidates=tuple(candidates["candidates"]),
            candidate_count=candidates["count"],
            groups=tuple(groups["groups"]),
            decisions=decided,
            persons=tuple(persons["persons"]),
            videos=tuple(persons["videos"]),
            model=persons["model"],
            keys=keys,
            similarity=similarity,
        )

    def _of(self, gallery_id: str, name: str) -> URL:
        return self._url / "galleries" / gallery_id / name

    async def _list(self, gallery_id: str, name: str) -> dict[str, Any] | None:
        is_candidates = name == "candidates"
        query = {"decided": "yes", "limit": str(_MAX_CANDIDATES)} if is_candidates else {}
        url = self._of(gallery_id, name).with_query(query)
        answer: dict[str, Any] | None = await self._get(url, may_be_missing=True)
        return answer

    async def _similarity(self, gallery_id: str) -> Float32Array | None:
        """Return the matrix in the order of the sorted keys; numbers that are not there are 0."""
        status, body = await self._ask(self._of(gallery_id, "similarity"), _NPY)
        if status == HTTPStatus.NOT_FOUND:
            return None
        matrix: Float32Array = np.load(io.BytesIO(body), allow_pickle=False)
        return np.asarray(np.nan_to_num(matrix), np.float32)

    async def _get(self, url: URL, *, may_be_missing: bool = False) -> Any:
        status, body = await self._ask(url, "application/json")
        if status == HTTPStatus.NOT_FOUND and may_be_missing:
            return None
        return orjson.loads(body)

    async def _ask(self, url: URL, accept: str) -> tuple[int, bytes]:
        assert self._session is not None
        try:
            async with self._session.get(url, headers={"Accept": accept}) as answer:
                body = await answer.read()
                if answer.status not in (HTTPStatus.OK, HTTPStatus.NOT_FOUND):
                    text = body[:200].decode(errors="replace")
                    raise MachineError(f"the matcher answered {answer.status}: {text}")
                return answer.status, body
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise MachineError(
                f"{url.origin()}: expected a matcher there ({type(error).__name__}); see "
                "review.matcher_url"
            ) from error
