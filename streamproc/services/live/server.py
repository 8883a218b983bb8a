"""The live page's HTTP server: pages, pictures, decisions, and word of every change.

Who asks must name an address that is this server's, come from no other origin, and know the token
where there is one: given once as `/?token=…`, it is kept in a cookie that no script can read. Or a
proxy that is trusted says who asks.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import html
import logging
import time
from string import Template
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlsplit

from aiohttp import web

from streamproc.decisions import UndoDecision
from streamproc.errors import EventError, MachineError
from streamproc.gallery.reviewed import keys_named
from streamproc.offline.page import asset_files, galleries_template, live_data, live_html
from streamproc.services.hosts import is_own_host
from streamproc.services.review_http import (
    HEADERS,
    HEARTBEAT_SECONDS,
    MAX_BODY_BYTES,
    MAX_LISTENERS,
    DecisionClock,
    answered,
    audit_answer,
    event_stream,
    fault,
    json_answer,
    said_by_page,
)

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from aiohttp.typedefs import Handler

    from streamproc.decisions import AnyDecision
    from streamproc.offline.page import LiveReport
    from streamproc.services.live.gallery import LiveGallery
    from streamproc.services.live.proxy import ProxyUsers

log = logging.getLogger(__name__)

COOKIE = "streamproc-review"
_COOKIE_SECONDS = 30 * 24 * 3600
_NAMELESS = "expected a name from a proxy: see review.user_header"
_UNKNOWN = "expected the token of review.token, once, as /?token=…"
_MAX_NAME = 256
_LEAST_SECONDS_BETWEEN = 0.2
"""A page is told of changes so seldom at most: it asks for all of them then."""
_WRONG_TOKEN_SECONDS = 1.0
_DECISIONS_A_SECOND = 20.0
_DECISIONS_AT_ONCE = 100
_PLACE = "Decisions go to the stream at once, and other pages show them."
_MEDIA_TYPES = {".js": "text/javascript", ".css": "text/css"}


class PageSource(Protocol):
    """What the server asks of the service."""

    async def gallery(self, gallery_id: str) -> LiveGallery:
        """A gallery as it is now; raises MachineError."""

    async def galleries(self) -> Sequence[dict[str, Any]]:
        """All galleries; raises MachineError."""

    def report(self, gallery: LiveGallery) -> LiveReport:
        """What is shown of a gallery."""

    async def decide(self, decision: AnyDecision) -> None:
        """Send a decision; raises MachineError."""

    async def picture(self, name: str) -> bytes | None:
        """A person's animation by the last part of its address; raises MachineError."""


class PageServer:
    """The routes of the page. Made by the service; used by one event loop.

    `token` is what a browser must know, None where nothing is asked; `users` are those whom a proxy
    names, who need no token. `allowed_hosts` are names by which the server may be asked beyond
    those that nobody else can have.
    """

    def __init__(
        self,
        source: PageSource,
        *,
        token: str | None,
        users: ProxyUsers | None = None,
        allowed_hosts: Sequence[str] = (),
    ) -> None:
        self._source = source
        self._users = users
        self._cookie = None if token is None else _cookie_of(token)
        self._allowed_hosts = {name.lower() for name in allowed_hosts}
        self._assets: dict[str, Path] = {
            name.removeprefix("assets/"): path for name, path in asset_files()
        }
        self._clocks: dict[str, DecisionClock] = {}
        self._budget = _DECISIONS_AT_ONCE * 1.0
        self._budget_at = time.monotonic()
        self.listeners = 0
        self.stopping = asyncio.Event()

    def app(self) -> web.Application:
        """Return the application to serve."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/", self._page),
                web.get("/assets/{name}", self._asset),
                web.get("/pictures/{name}", self._picture),
                web.get("/api/gallery", self._data),
                web.get("/api/decisions", self._decisions),
                web.post("/api/decisions", self._decide),
                web.get("/api/changes", self._changes),
                web.get("/api/audit", self._audit),
                web.get("/api/audit.svg", self._audit),
            ]
        )
        return app

    # Who may ask.

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        async def checked(request: web.Request) -> web.StreamResponse:
            early = await self._check(request)
            return await handler(request) if early is None else early

        return await answered(request, checked)

    async def _check(self, request: web.Request) -> web.StreamResponse | None:
        """Return what is answered in place of what was asked, None for who may ask."""
        origin = request.headers.get("Origin")
        host = request.headers.get("Host", "")
        is_ours = origin is None or urlsplit(origin).netloc == host
        if not is_own_host(host, self._allowed_hosts) or not is_ours:
            return fault(403, "this page is served under its own address alone")
        if self._user_of(request) is not None:
            return None
        if self._cookie is None:
            return None if self._users is None else fault(401, _NAMELESS)
        given = request.query.get("token")
        if request.path == "/" and given is not None:
            return await self._let_in(request, given)
        known = request.cookies.get(COOKIE, "")
        if not hmac.compare_digest(known.encode(), self._cookie.encode()):
            return fault(401, _UNKNOWN)
        return None

    def _user_of(self, request: web.Request) -> str | None:
        """Return whom a proxy names, None for nobody; raises HTTPForbidden."""
        return None if self._users is None else self._users.user_of(request)

    async def _let_in(self, request: web.Request, token: str) -> web.StreamResponse:
        """Give a browser the cookie, and take the token out of its address."""
        assert self._cookie is not None
        if not hmac.compare_digest(_cookie_of(token).encode(), self._cookie.encode()):
            await asyncio.sleep(_WRONG_TOKEN_SECONDS)
            return fault(401, _UNKNOWN)
        gallery = request.query.get("gallery")
        place = "/" if gallery is None else f"/?gallery={quote(gallery, safe='')}"
        # Not a redirect: after a link from another site the browser would leave the cookie out.
        text = f'<!doctype html><meta http-equiv="refresh" content="0;url={html.escape(place)}">'
        response = web.Response(text=text, content_type="text/html", headers=HEADERS)
        forwarded = request.headers.get("X-Forwarded-Proto", request.scheme)
        response.set_cookie(
            COOKIE,
            self._cookie,
            max_age=_COOKIE_SECONDS,
            httponly=True,
            samesite="Strict",
            secure=forwarded == "https",
        )
        return response

    # What is shown.

    async def _page(self, request: web.Request) -> web.StreamResponse:
        if "gallery" not in request.query:
            return await self._list()
        try:
            gallery = await self._gallery(request)
        except MachineError as error:
            return _later(str(error))
        body = await asyncio.to_thread(live_html, self._source.report(gallery))
        return web.Response(body=body, content_type="text/html", charset="utf-8")

    async def _list(self) -> web.Response:
        """Return the list of galleries, which asks for itself again."""
        try:
            galleries = await self._source.galleries()
        except MachineError as error:
            return _later(str(error))
        rows = [
            f'<li><a href="/?gallery={quote(one["gallery_id"], safe="")}">'
            f"{html.escape(one['gallery_id'])}</a>"
            f"<span>{one['persons']:,} persons of {one['videos']:,} videos, "
            f"{one.get('decisions', 0):,} decisions</span></li>"
            for one in galleries
        ]
        return _list_page("".join(rows) or "<li>No gallery so far: announce a video.</li>")

    async def _asset(self, request: web.Request) -> web.StreamResponse:
        path = self._assets.get(request.match_info["name"])
        if path is None:
            raise web.HTTPNotFound
        media_type = _MEDIA_TYPES[path.suffix]
        headers = {"Content-Type": f"{media_type}; charset=utf-8", "Cache-Control": "no-cache"}
        return web.FileResponse(path, headers=headers)

    async def _picture(self, request: web.Request) -> web.StreamResponse:
        try:
            content = await self._source.picture(request.match_info["name"])
        except MachineError as error:
            log.warning("a picture cannot be read: %s", error)
            content = None
        if content is None:
            raise web.HTTPNotFound
        headers = {"Cache-Control": "private, max-age=3600"}
        return web.Response(body=content, content_type="image/webp", headers=headers)

    async def _data(self, request: web.Request) -> web.StreamResponse:
        try:
            gallery = await self._gallery(request)
        except MachineError as error:
            return fault(503, str(error))
        known = request.query.get("matrix", "")
        version = int(known) if known.isascii() and known.isdigit() else None
        report = self._source.report(gallery)
        body = await asyncio.to_thread(live_data, report, known_matrix=version)
        response = web.Response(body=body, content_type="application/json")
        response.enable_compression()
        return response

    async def _decisions(self, request: web.Request) -> web.StreamResponse:
        try:
            gallery = await self._gallery(request)
        except MachineError as error:
            return fault(503, str(error))
        decisions = [
            one.model_dump(mode="json", exclude_none=True) for one in gallery.decisions.values()
        ]
        user = self._user_of(request)
        place = _PLACE if user is None else f"{_PLACE} They carry your name: {user}."
        said = {"gallery_id": gallery.gallery_id, "decisions": decisions, "place": place}
        return json_answer(said)

    async def _audit(self, request: web.Request) -> web.StreamResponse:
        try:
            gallery = await self._gallery(request)
        except MachineError as error:
            return fault(503, str(error))
        return await audit_answer(
            request, list(gallery.decisions.values()), gallery.probabilities()
        )

    async def _gallery(self, request: web.Request) -> LiveGallery:
        name = request.query.get("gallery", "")
        if not 0 < len(name) <= _MAX_NAME or not name.isprintable():
            raise web.HTTPBadRequest(reason="expected ?gallery=NAME")
        return await self._source.gallery(name)

    # What is decided.

    async def _decide(self, request: web.Request) -> web.StreamResponse:
        if request.content_type != "application/json":
            return fault(415, "expected application/json")
        if not self._has_budget():
            return fault(429, f"more than {_DECISIONS_A_SECOND:.0f} decisions a second")
        body = await request.read()
        try:
            gallery = await self._gallery(request)
            decision = self._checked(gallery, body, self._user_of(request))
            await self._source.decide(decision)
        except EventError as error:
            return fault(400, str(error))
        except MachineError as error:
            return fault(503, str(error))
        return json_answer(decision.model_dump(mode="json", exclude_none=True), status=201)

    def _has_budget(self) -> bool:
        now = time.monotonic()
        gained = (now - self._budget_at) * _DECISIONS_A_SECOND
        self._budget = min(_DECISIONS_AT_ONCE, self._budget + gained)
        self._budget_at = now
        if self._budget < 1:
            return False
        self._budget -= 1
        return True

    def _checked(self, gallery: LiveGallery, body: bytes, user: str | None) -> AnyDecision:
        """Parse what a page sends; raises EventError."""
        clock = DecisionClock()
        for known in gallery.decisions.values():
            clock.know(known)
        try:
            decision = said_by_page(body, gallery.gallery_id, clock.next_time(), user)
        except ValueError as error:
            raise EventError(str(error)) from error
        if decision.decision_id in gallery.decisions:
            raise EventError(f"decision_id: {decision.decision_id} was used before")
        if isinstance(decision, UndoDecision) and decision.undoes not in gallery.decisions:
            raise EventError(f"undoes: expected a decision of this gallery, got {decision.undoes}")
        for key in keys_named(decision):
            if not gallery.has_person(key):
                raise EventError(f"{key}: expected a person of this gallery")
        return decision

    # What changes.

    async def _changes(self, request: web.Request) -> web.StreamResponse:
        """Say how many decisions there are and which version the gallery has, at each change."""
        if self.listeners >= MAX_LISTENERS:
            return fault(503, f"{MAX_LISTENERS} pages are open: close some")
        try:
            gallery = await self._gallery(request)
        except MachineError as error:
            return fault(503, str(error))
        response = event_stream()
        await response.prepare(request)
        self.listeners += 1
        gallery.listeners += 1
        try:
            await self._tell(response, gallery)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self.listeners -= 1
            gallery.listeners -= 1
        return response

    async def _tell(self, response: web.StreamResponse, gallery: LiveGallery) -> None:
        said = -1
        while not self.stopping.is_set():
            version = gallery.version
            if version == said:
                text = ": still here\n\n"
            else:
                count = len(gallery.decisions)
                text = f"data: {count}\n\nevent: gallery\ndata: {version}\n\n"
            await response.write(text.encode())
            said = version
            await asyncio.sleep(_LEAST_SECONDS_BETWEEN)
            async with gallery.changed:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(
                        gallery.changed.wait_for(lambda: gallery.version != said),  # noqa: B023
                        HEARTBEAT_SECONDS,
                    )


def _cookie_of(token: str) -> str:
    """Return what stands for a token in a cookie: who reads it does not know the token."""
    return hashlib.sha256(f"streamproc review {token}".encode()).hexdigest()


def _later(text: str) -> web.Response:
    """Return a page that asks again by itself."""
    return _list_page(f"<li>{html.escape(text)}</li>", status=503)


def _list_page(items: str, status: int = 200) -> web.Response:
    text = Template(galleries_template()).substitute(items=items)
    return web.Response(text=text, status=status, content_type="text/html", charset="utf-8")
