"""Fetching one remote file into a temporary local one, by any client that fsspec has.

This holds what all remote schemes have in common: limits, checksum, retries, and an end when asked.
What differs between them is a `RemoteScheme`.

A fetch has an event loop of its own in the caller's worker thread. So its writes to the disk delay
nobody else, and it hears `stop` while a server is silent.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
import socket
import tempfile
import time
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from streamproc.errors import MachineError
from streamproc.shown import shown
from streamproc.storage.allowed import (
    Expected,
    MediaStoppedError,
    RefusedError,
)
from streamproc.storage.room import ROOM
from streamproc.tracks import TRACK_FILE_PATTERNS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator

    from aiohttp import ClientResponse

    from streamproc.storage.room import Claim

T = TypeVar("T")
log = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024
_POLL_SECONDS = 0.1
_ROOM_SECONDS = 1.0
"""How often a file that waits for room on the disk looks for it."""
_MAX_PAUSE_SECONDS = 60.0
_MAX_NAME_CHARS = 80
_TEMPORARY_STATUSES = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)


class AbsentError(RefusedError):
    """The server says that it has no such file for us."""


class RemoteScheme(Protocol):
    """What one scheme adds to `RemoteFiles`. Immutable, so safe in any thread.

    A `file` is what `open` returned: a stream of fsspec whose `r` is the response, or None before
    the first read.
    """

    protocol: str
    """fsspec's name of the client."""
    operator_codes: frozenset[str]
    """Error codes that blame this service's credentials, clock or region, not the file."""
    temporary_codes: frozenset[str]
    """Error codes after which another attempt may work, whatever the status."""

    def check(self, uri: str) -> str:
        """Return the address to request; raises RefusedError for one that is not allowed."""

    def split(self, uri: str) -> tuple[str, str]:
        """Return the path with all before it, and what must be appended to other paths too."""

    def file_name(self, uri: str) -> str:
        """Return the last part of the path, decoded."""

    def options(self) -> dict[str, Any]:
        """Return the options of fsspec's client."""

    def faults(self) -> tuple[type[Exception], ...]:
        """Return the exceptions of the client that stand for a fault of server or network."""

    def answer_of(self, error: Exception) -> tuple[int, str]:
        """Return the HTTP status and the error code of the answer; (0, "") if none came."""

    async def open(self, fs: Any, uri: str) -> Any:
        """Open a file as a stream."""

    def size_bytes(self, uri: str, file: Any) -> int | None:
        """Return the size that the server gives, after the first read; None if it gives none."""

    def response(self, file: Any) -> ClientResponse:
        """Return the response under the stream."""


@dataclass(frozen=True, slots=True)
class Pace:
    """How fast a server must send: in each so many seconds, so many bytes for each of them."""

    seconds: float
    min_bytes_per_second: float


@dataclass(frozen=True, slots=True)
class _Body:
    """An opened remote file.

    `file.read(n)` gives 1 to n bytes, none at the end; the size is what the server says.
    """

    file: Any
    size_bytes: int | None


class RemoteFiles:
    """The files of one remote scheme, each fetched into a temporary file.

    Made by `MediaAccess`; its methods run in worker threads, several at once. For their errors see
    `schemes.Files`.

    `attempts` counts the first one. Between two attempts is a pause of `backoff_seconds`, doubled
    each time, less up to a half by chance. The files lie in `temporary_folder` (None: the
    system's), each in a folder `streamproc-media-*`; a process that is killed leaves it there.
    """

    def __init__(
        self,
        scheme: RemoteScheme,
        *,
        attempts: int,
        backoff_seconds: float,
        temporary_folder: Path | None,
        pace: Pace,
    ) -> None:
        self._scheme = scheme
        self._pace = pace
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._temporary_folder = temporary_folder

    @contextmanager
    def open(self, uri: str, expected: Expected, stop: Callable[[], bool]) -> Iterator[Path]:
        """Fetch the file, and give the path of the copy, which is removed on leaving."""
        file_name = _safe_name(self._scheme.file_name(uri))
        with ExitStack() as stack:
            claim = ROOM.claim()
            stack.callback(claim.release)  # once the copy is removed
            path = stack.enter_context(temporary_path(file_name, self._temporary_folder))

            async def save(body: _Body) -> None:
                await _save(shown(uri), body, path, expected, stop, self._pace, claim)

            self._run(uri, save, stop)
            yield path

    def find_tracks(self, uri: str, stop: Callable[[], bool]) -> str | None:
        """Return the URI of the track file beside a video, or None.

        A query is kept, as it may hold the key to the whole folder.
        """
        path, query = self._scheme.split(uri)
        folder, _, name = path.rpartition("/")
        stem = PurePosixPath(name).stem
        for pattern in TRACK_FILE_PATTERNS:
            candidate = f"{folder}/{pattern.format(stem=stem)}{query}"
            if self._exists(candidate, stop):
                return candidate
        return None

    def _exists(self, uri: str, stop: Callable[[], bool]) -> bool:
        """Whether the server would hand the file out.

        This sends a GET and reads nothing of the answer: an address that is signed for GET refuses
        a HEAD.
        """

        async def found(_: _Body) -> bool:
            return True

        try:
            return self._run(uri, found, stop)
        except AbsentError:
            return False

    def _run(self, uri: str, use: Callable[[_Body], Awaitable[T]], stop: Callable[[], bool]) -> T:
        return asyncio.run(self._with_attempts(self._scheme.check(uri), use, stop))

    async def _with_attempts(
        self, uri: str, use: Callable[[_Body], Awaitable[T]], stop: Callable[[], bool]
    ) -> T:
        """Open the file and pass it to `use`; do both again after a temporary fault."""
        reason = ""
        faults = self._scheme.faults()
        async with self._client() as fs:
            for attempt in range(self._attempts):
                if attempt:
                    log.warning(
                        "%s: attempt %d of %d failed: %s",
                        shown(uri),
                        attempt,
                        self._attempts,
                        reason,
                    )
                    await _unless(stop, asyncio.sleep(self._pause_seconds(attempt)))
                try:
                    async with self._opened(fs, uri, stop) as body:
                        return await use(body)
                except faults as error:
                    self._raise_if_final(uri, error)
                    reason = self._reason(error)
        raise MachineError(
            f"{shown(uri)}: could not be fetched in {self._attempts} attempts ({reason}); "
            "check the server and the network, then try again"
        )

    def _pause_seconds(self, attempt: int) -> float:
        doubled = min(self._backoff_seconds * 2.0 ** (attempt - 1), _MAX_PAUSE_SECONDS)
        # By chance, so that workers do not all come back at once; not for cryptography.
        return doubled * random.uniform(0.5, 1.0)  # noqa: S311 - see above

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        """A client of the running loop. Those that fsspec caches belong to a loop of its own."""
        import fsspec

        scheme = self._scheme
        fs = fsspec.filesystem(
            scheme.protocol, asynchronous=True, skip_instance_cache=True, **scheme.options()
        )
        fs.retries = 1  # s3fs's own attempts; those here hear `stop`
        try:
            session = await fs.set_session()
        except scheme.faults() as error:
            raise MachineError(
                f"no {scheme.protocol} client can be made: {self._reason(error)}; check remote.*"
            ) from error
        try:
            yield fs
        finally:
            await session.close()

    @asynccontextmanager
    async def _opened(self, fs: Any, uri: str, stop: Callable[[], bool]) -> AsyncIterator[_Body]:
        file = await self._scheme.open(fs, uri)
        try:
            await _unless(stop, file.read(0))  # fsspec sends the request at the first read
            yield _Body(file, self._scheme.size_bytes(uri, file))
        finally:
            if file.r is not None:
                _hang_up(self._scheme.response(file))
                file.r.close()
            await file.close()

    def _raise_if_final(self, uri: str, error: Exception) -> None:
        """Raise if another attempt cannot help; return if it might."""
        import aiohttp

        if isinstance(error, aiohttp.TooManyRedirects):
            raise RefusedError(
                f"{shown(uri)}: is redirected too many times; give the final address"
            ) from error
        fault = getattr(error, "os_error", None)
        if isinstance(fault, socket.gaierror) and fault.errno == socket.EAI_NONAME:
            raise RefusedError(
                f"{shown(uri)}: there is no host of this name; check the address"
            ) from error
        status, code = self._scheme.answer_of(error)
        if code in self._scheme.operator_codes:
            raise MachineError(
                f"{shown(uri)}: the store refuses this service ({code}); "
                "check its credentials, region and clock"
            ) from error
        if isinstance(error, FileNotFoundError) or status == HTTPStatus.GONE:
            raise AbsentError(
                f"{shown(uri)}: the server has no such file; check the address"
            ) from error
        if status in _TEMPORARY_STATUSES or code in self._scheme.temporary_codes:
            return
        if HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR:
            raise AbsentError(
                f"{shown(uri)}: the server refuses to hand it out ({self._reason(error)}); "
                "check the address and who may read it"
            ) from error

    def _reason(self, error: Exception) -> str:
        """Return the fault on one line, without the query of a signed address."""
        status, code = self._scheme.answer_of(error)
        if status:
            return f"status {status}, {code}" if code else f"status {status}"
        text = " ".join(re.sub(r"\?\S*", "?…", str(error)).split())[:160]
        return text or type(error).__name__


@contextmanager
def temporary_path(name: str, folder: Path | None) -> Iterator[Path]:
    """Give a path in a new folder, which is removed with all that is in it.

    Raises MachineError if no folder can be made.
    """
    try:
        made = tempfile.TemporaryDirectory(
            prefix="streamproc-media-", dir=folder, ignore_cleanup_errors=True
        )
    except OSError as error:
        raise MachineError(
            f"no temporary folder can be made ({error.strerror or error}); "
            "make room or name another TMPDIR"
        ) from error
    with made as path:
        yield Path(path) / name


def _safe_name(name: str) -> str:
    """A harmless name that ends like the file's, as readers look at that and errors show it."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", name)[-_MAX_NAME_CHARS:].lstrip(".") or "file"


def _hang_up(response: ClientResponse) -> None:
    """Cut the connection instead of closing it.

    The rest of the body may be endless, and a TLS connection to a silent server would outlive the
    loop half closed.
    """
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


async def _save(
    name: str,
    body: _Body,
    target: Path,
    expected: Expected,
    stop: Callable[[], bool],
    pace: Pace,
    claim: Claim,
) -> None:
    if body.size_bytes is not None:
        expected.check_size(name, body.size_bytes)
        with _disk_faults(target):
            while not claim.take(name, target.parent, body.size_bytes):
                await _unless(stop, asyncio.sleep(_ROOM_SECONDS))
    digest = hashlib.sha256()
    size_bytes = 0
    since_seconds, since_bytes = time.monotonic(), 0
    with _create(target) as write:
        while chunk := await _unless(stop, body.file.read(_CHUNK_BYTES)):
            size_bytes += len(chunk)
            claim.written_bytes = size_bytes
            expected.check_limit(name, size_bytes)
            write(chunk)
            digest.update(chunk)
            if time.monotonic() - since_seconds > pace.seconds:
                if size_bytes - since_bytes < pace.seconds * pace.min_bytes_per_second:
                    raise MachineError(
                        f"{name}: the server sent {size_bytes - since_bytes:,} bytes in "
                        f"{pace.seconds:g} s; see remote.min_bytes_per_second"
                    )
                since_seconds, since_bytes = time.monotonic(), size_bytes
    expected.check_size(name, size_bytes)
    expected.check_sha256(name, digest.hexdigest())


@contextmanager
def _create(target: Path) -> Iterator[Callable[[bytes], None]]:
    """Open `target` anew and give a function that writes to it.

    A fault of the disk becomes a MachineError; other errors inside pass unchanged.
    """
    with _disk_faults(target):
        # Unbuffered: a full disk then fails `write`, not the closing of the file.
        file = target.open("wb", buffering=0)

    def write(data: bytes) -> None:
        view = memoryview(data)
        with _disk_faults(target):
            while view:
                view = view[file.write(view) :]

    with file:
        yield write


@contextmanager
def _disk_faults(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise MachineError(
            f"{target.parent}: cannot be written ({error.strerror or error}); "
            "make room there or name another TMPDIR"
        ) from error


async def _unless(stop: Callable[[], bool], work: Coroutine[Any, Any, T]) -> T:
    """Await `work`; cancel it and raise MediaStoppedError when `stop` becomes true."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if stop():
                raise MediaStoppedError
            await asyncio.wait({task}, timeout=_POLL_SECONDS)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
