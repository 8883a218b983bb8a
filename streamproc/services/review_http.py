"""What the two servers of the review page have in common: answers, their headers, decisions."""

from __future__ import annotations

import asyncio
import math
import time
from typing import TYPE_CHECKING, Any

import orjson
from aiohttp import web

from streamproc.decisions import parse_decision
from streamproc.errors import EventError
from streamproc.events import timestamp_of
from streamproc.gallery.audit import audit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from aiohttp.typedefs import Handler

    from streamproc.decisions import AnyDecision
    from streamproc.gallery.identities import Pair

MAX_BODY_BYTES = 128 * 1024
MAX_LISTENERS = 64
HEARTBEAT_SECONDS = 15.0
CLOSE_SECONDS = 1.0
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self' 'unsafe-inline'; "
        "img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


def json_answer(value: object, status: int = 200) -> web.Response:
    """Return an answer of JSON."""
    return web.Response(body=orjson.dumps(value), status=status, content_type="application/json")


def fault(status: int, text: str) -> web.Response:
    """Return an answer that says what is wrong."""
    error: dict[str, Any] = {"error": text}
    return json_answer(error, status)


async def answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Return a handler's answer with the headers of the page; faults become JSON."""
    try:
        response = await handler(request)
    except web.HTTPException as error:
        response = fault(error.status, error.reason)
        if error.status in range(300, 400):
            response.headers["Location"] = error.headers["Location"]
    if not response.prepared:
        for name, value in HEADERS.items():
            response.headers.setdefault(name, value)
    return response


def event_stream() -> web.StreamResponse:
    """Return an answer of server-sent events, not yet begun."""
    return web.StreamResponse(headers={"Content-Type": "text/event-stream", **HEADERS})


async def audit_answer(
    request: web.Request, decisions: list[AnyDecision], probability_of: Mapping[Pair, float]
) -> web.Response:
    """Return how right the probabilities were: JSON, or the picture where the path says so."""
    found = await asyncio.to_thread(audit, decisions, probability_of)
    if request.path.endswith(".svg"):
        return web.Response(text=found.diagram(), content_type="image/svg+xml")
    return json_answer(found.as_json())


def said_by_page(
    body: bytes, gallery_id: str, decided_at: str, decided_by: str | None = None
) -> AnyDecision:
    """Parse what a page sends: a decision as on the wire, whose gallery and time are ours.

    So is who decided, where that is known. Raises EventError.
    """
    try:
        said = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise EventError(f"expected JSON ({error})") from error
    if not isinstance(said, dict):
        raise EventError("expected a JSON object")
    ours = {"gallery_id": gallery_id, "decided_at": decided_at}
    if decided_by is not None:
        ours["decided_by"] = decided_by
    parsed = parse_decision(orjson.dumps(said | ours))
    return type(parsed).make(**parsed.model_dump(exclude={"event_id"}))


class DecisionClock:
    """Gives decisions their times: now, or a millisecond after the latest one.

    Of what is said of a pair the latest holds: where a clock was wrong, or two come within a
    millisecond, it has to be the one that came last.
    """

    def __init__(self) -> None:
        self._latest_ms = 0.0

    def know(self, decision: AnyDecision) -> None:
        """Let later times be after this one's."""
        self._latest_ms = max(self._latest_ms, decision.order[0] * 1000)

    def next_time(self) -> str:
        """Return the time for the next decision; raises ValueError after the year 9999."""
        later_ms = max(time.time() * 1000, math.floor(self._latest_ms) + 1)
        try:
            when = timestamp_of(later_ms)
        except OverflowError as error:
            raise ValueError("nothing can come after the year 9999") from error
        self._latest_ms = later_ms
        return when
