"""The review page of one folder of a replay: the page, its decisions, and who else is looking.

Served to this machine alone. The decisions are the lines of decisions.jsonl in the folder; nothing
else is kept.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import threading
from typing import TYPE_CHECKING

from aiohttp import web

from streamproc.decisions import (
    ApartDecision,
    GroupDecision,
    PairDecision,
    SelectedDecision,
    UndoDecision,
    VerifiedDecision,
)
from streamproc.errors import EventError, MachineError, UsageError
from streamproc.offline.page import PAGE_NAME
from streamproc.offline.replay_folder import (
    MAX_DECISIONS_BYTES,
    read_decisions,
    read_folder,
    whole_length,
)
from streamproc.services.review_http import (
    CLOSE_SECONDS,
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
    from collections.abc import AsyncIterator
    from pathlib import Path

    from aiohttp.typedefs import Handler

    from streamproc.decisions import AnyDecision

HOST = "127.0.0.1"
DEFAULT_PORT = 8080
_MAX_DECISIONS = 100_000
_SERVED = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".webp": "image/webp",
}
_VIEWER = "webp_viewer"


class DecisionFile:
    """decisions.jsonl of a folder, open for one writer at a time.

    Raises UsageError where another process has it open, InputError where it holds what is no
    decision, MachineError where it cannot be written to.
    """

    def __init__(self, path: Path, gallery_id: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        # Not through a link: the folder may come from somebody else.
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_NONBLOCK
        try:
            self._descriptor = os.open(path, flags, 0o600)
        except OSError as error:
            reason = "it is a link" if error.errno == errno.ELOOP else error.strerror
            raise MachineError(f"{path}: cannot be opened: {reason}") from error
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            found = read_decisions(path)
            self._end_last_line()
        except BaseException as error:
            os.close(self._descriptor)
            if isinstance(error, BlockingIOError):
                raise UsageError(f"{path}: another review is open: use its page") from error
            if isinstance(error, OSError):
                raise MachineError(f"{path}: cannot be written: {error.strerror}") from error
            raise
        self._ids = {decision.decision_id for decision in found}
        self.decisions = [one for one in found if one.gallery_id == gallery_id]

    def append(self, decision: AnyDecision) -> None:
        """Write a decision to the disk.

        Raises EventError where its id is not new, MachineError where it cannot be kept; then
        nothing is written. One thread at a time writes: another's line must not be cut off here.
        """
        with self._lock:
            if decision.decision_id in self._ids:
                raise EventError(f"decision_id: {decision.decision_id} was used before")
            size = os.fstat(self._descriptor).st_size
            try:
                self._check_is_there()
                self._write(decision.to_json() + b"\n")
            except OSError as error:
                with contextlib.suppress(OSError):
                    os.ftruncate(self._descriptor, size)
                raise MachineError(
                    f"{self.path}: the decision was not kept: {error.strerror}"
                ) from error
            self._ids.add(decision.decision_id)
            self.decisions.append(decision)

    def close(self) -> None:
        """Let another process write."""
        os.close(self._descriptor)

    def _write(self, data: bytes) -> None:
        if os.fstat(self._descriptor).st_size + len(data) > MAX_DECISIONS_BYTES:
            raise OSError(errno.EFBIG, "the file is full")  # more could not be read again
        try:
            while data:
                data = data[os.write(self._descriptor, data) :]
            os.fsync(self._descriptor)
        except OSError as error:
            reason = f"{error.strerror}: make room, and decide again"
            raise OSError(error.errno, reason) from error

    def _check_is_there(self) -> None:
        """Raise OSError where the path is another file by now, or none."""
        own = os.fstat(self._descriptor)
        with contextlib.suppress(OSError):
            found = self.path.lstat()
            if (found.st_dev, found.st_ino) == (own.st_dev, own.st_ino):
                return
        raise OSError(
            errno.ENOENT, "the folder was removed or written anew: call `streamproc review` again"
        )

    def _end_last_line(self) -> None:
        """End a last line that is a decision, remove one that was cut off."""
        data = self.path.read_bytes()
        whole = whole_length(data)
        if whole < len(data):
            os.ftruncate(self._descriptor, whole)
        elif not data.endswith(b"\n") and data:
            self._write(b"\n")


class ReviewServer:
    """Serves one folder at `http://127.0.0.1:PORT` until it is closed.

    Raises UsageError where the folder is none of a replay or another review is open, InputError
    where its decisions cannot be read.
    """

    def __init__(self, folder: Path, port: int = DEFAULT_PORT) -> None:
        self._root = folder.resolve()
        self._port = port
        replayed = read_folder(folder)
        self._gallery_id = replayed.gallery_id
        self._video_ids = {str(video["video_id"]) for video in replayed.videos}
        self._probabilities = replayed.probabilities()
        self._file = DecisionFile(replayed.decisions_path, self._gallery_id)
        self._clock = DecisionClock()
        for decision in self._decisions:
            self._clock.know(decision)
        self._changed = asyncio.Condition()
        self._listeners = 0

    @contextlib.asynccontextmanager
    async def serve(self) -> AsyncIterator[str]:
        """Listen while the body runs, and give it the page's address. Raises MachineError."""
        app = web.Application(middlewares=[self._guard], client_max_size=MAX_BODY_BYTES)
        app.add_routes(
            [
                web.get("/", self._first_page),
                web.get("/api/decisions", self._list),
                web.post("/api/decisions", self._decide),
                web.get("/api/changes", self._follow),
                web.get("/api/audit", self._audit),
                web.get("/api/audit.svg", self._audit),
                web.get("/{path:.+}", self._static),
            ]
        )
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=CLOSE_SECONDS)
        await runner.setup()
        try:
            await web.TCPSite(runner, HOST, self._port).start()
            self._port = runner.addresses[0][1]
            yield f"http://{HOST}:{self._port}/"
        except OSError as error:
            raise MachineError(
                f"{HOST}:{self._port}: cannot listen there ({error.strerror}): name another --port"
            ) from error
        finally:
            await runner.cleanup()
            self._file.close()

    @web.middleware
    async def _guard(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Answer only what this machine's browser asks this page's address.

        A page of another site can send requests here, under another origin, or under a name that
        its own DNS points here.
        """
        origin = request.headers.get("Origin")
        if request.host not in self._names() or origin not in (None, f"http://{request.host}"):
            return fault(403, "this page is served under its own address alone")
        return await answered(request, handler)

    def _names(self) -> tuple[str, ...]:
        return (f"{HOST}:{self._port}", f"localhost:{self._port}")

    async def _first_page(self, _: web.Request) -> web.StreamResponse:
        raise web.HTTPFound(f"/{_VIEWER}/{PAGE_NAME}")

    async def _static(self, request: web.Request) -> web.StreamResponse:
        """Serve a file of a viewer's folder, and nothing else."""
        parts = request.match_info["path"].split("/")
        is_viewers = _VIEWER in (parts[0], *parts[1:2]) and len(parts) > 1
        stem, dot, ending = parts[-1].rpartition(".")
        media_type = _SERVED.get(dot + ending) if stem else None
        if not is_viewers or media_type is None or "\0" in parts[-1] or ".." in parts:
            raise web.HTTPNotFound
        path = await asyncio.to_thread(self._file_at, parts)
        if path is None:
            raise web.HTTPNotFound
        return web.FileResponse(path, headers={"Content-Type": f"{media_type}; charset=utf-8"})

    def _file_at(self, parts: list[str]) -> Path | None:
        try:
            path = self._root.joinpath(*parts).resolve()
            return path if path.is_relative_to(self._root) and path.is_file() else None
        except (OSError, ValueError):  # a name that no file can have
            return None

    async def _list(self, _: web.Request) -> web.Response:
        return self._state()

    def _state(self) -> web.Response:
        decisions = [one.model_dump(mode="json", exclude_none=True) for one in self._decisions]
        place = "Decisions are written to decisions.jsonl in the folder of this replay."
        return json_answer({"gallery_id": self._gallery_id, "decisions": decisions, "place": place})

    async def _audit(self, request: web.Request) -> web.Response:
        return await audit_answer(request, list(self._decisions), self._probabilities)

    @property
    def _decisions(self) -> list[AnyDecision]:
        return self._file.decisions

    async def _decide(self, request: web.Request) -> web.Response:
        if request.content_type != "application/json":
            return fault(415, "expected application/json")
        if len(self._decisions) >= _MAX_DECISIONS:
            return fault(429, f"{self._file.path}: it holds {_MAX_DECISIONS} decisions: no more")
        try:
            decision = self._checked(await request.read())
            await asyncio.to_thread(self._file.append, decision)
        except EventError as error:
            return fault(400, str(error))
        except MachineError as error:
            return fault(507, str(error))
        async with self._changed:
            self._changed.notify_all()
        return json_answer(decision.model_dump(mode="json", exclude_none=True), status=201)

    def _checked(self, body: bytes) -> AnyDecision:
        """Parse what a page sends; raises EventError."""
        decision = said_by_page(body, self._gallery_id, self._next_time())
        if isinstance(decision, UndoDecision) and decision.undoes not in {
            known.decision_id for known in self._decisions
        }:
            raise EventError(f"undoes: expected a decision of this gallery, got {decision.undoes}")
        for key in _keys(decision):
            video_id, _, person_id = key.rpartition("/")
            if video_id not in self._video_ids or not person_id:
                raise EventError(f"{key}: expected a person of this gallery")
        return decision

    def _next_time(self) -> str:
        try:
            return self._clock.next_time()
        except ValueError as error:
            raise EventError(
                f"{self._file.path}: it holds a decision of the year 9999: nothing can come after"
            ) from error

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        """Say how many decisions there are, now and at each change (server-sent events)."""
        if self._listeners >= MAX_LISTENERS:
            return fault(503, f"{MAX_LISTENERS} pages are open: close some")
        response = event_stream()
        await response.prepare(request)
        self._listeners += 1
        said = -1
        try:
            while True:
                count = len(self._decisions)
                text = f"data: {count}\n\n" if count != said else ": still here\n\n"
                await response.write(text.encode())
                said = count
                async with self._changed:
                    await self._change_from(count)
        except (ConnectionError, asyncio.CancelledError):
            return response
        finally:
            self._listeners -= 1

    async def _change_from(self, count: int) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(
                self._changed.wait_for(lambda: len(self._decisions) != count), HEARTBEAT_SECONDS
            )


def _keys(decision: AnyDecision) -> list[str]:
    if isinstance(decision, ApartDecision):
        return [*decision.person_keys, *decision.other_keys]
    if isinstance(decision, PairDecision | GroupDecision | VerifiedDecision | SelectedDecision):
        return [*decision.person_keys]
    return []
