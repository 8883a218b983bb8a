"""Fetching one file over http(s) or from S3 into a local one: limits, checksum, retries, and an end when asked.

Both go through fsspec. A fetch has an event loop of its own in the caller's worker thread, so that
its writes to the disk hold up nobody else, and `stop` is heard while a server says nothing.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
import re
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, TypeVar

from streamproc.errors import MachineError, UsageError
from streamproc.storage.allowed import Allowed, Expected, Refused, scheme_of, shown

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
    from pathlib import Path

    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

T = TypeVar("T")
log = logging.getLogger(__name__)

_CHUNK_BYTES = 1024 * 1024
_POLL_SECONDS = 0.1
_MAX_PAUSE_SECONDS = 60.0
_REDIRECTS = (301, 302, 303, 307, 308)
_ENDPOINT = re.compile(r"https?://[^/?#@\s]+/?")
_PASSING = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_MANY_REQUESTS)
# S3 answers 4xx to these, but the service's own credentials, clock or region are wrong: no video
# may pay for that.
_OPERATORS_FAULTS = {
    "AuthorizationHeaderMalformed",
    "ExpiredToken",
    "InvalidAccessKeyId",
    "InvalidToken",
    "PermanentRedirect",
    "RequestTimeTooSkewed",
    "SignatureDoesNotMatch",
    "TokenRefreshRequired",
}


class MediaStopped(Exception):  # noqa: N818 - it is no error: the caller asked for it
    """`stop` became true while a file was fetched or hashed."""


class Absent(Refused):
    """The server says that it has no such file for us."""


@dataclass(frozen=True, slots=True)
class _Body:
    """An opened remote file.

    `file.read(n)` gives 1 to n bytes, none at the end; the size is the server's word.
    """

    file: Any
    size_bytes: int | None


class RemoteFiles:
    """Fetches what `allowed` allows.

    Made by `MediaAccess`; its methods run in worker threads, several at once.

    `attempts` counts the first; between two of them lie `backoff_seconds`, doubled each time, less
    up to a half by chance. `timeout_seconds` bounds the connecting and each read. The endpoint is
    the operator's, so it is trusted, and so is what it redirects to; S3 credentials come from where
    boto finds them.

    Raises UsageError for an endpoint that is no address. Both methods raise Refused where asking
    again gives the same, MachineError where the server, the network or the disk failed, and
    MediaStopped soon after `stop` became true.
    """

    def __init__(
        self,
        allowed: Allowed,
        *,
        s3_endpoint_url: str | None,
        attempts: int,
        backoff_seconds: float,
        timeout_seconds: float,
    ) -> None:
        if s3_endpoint_url is not None and not _ENDPOINT.fullmatch(s3_endpoint_url):
            raise UsageError(
                f"remote.s3_endpoint_url: expected http(s)://host:port, got {s3_endpoint_url!r}"
            )
        self._allowed = allowed
        self._s3_endpoint_url = s3_endpoint_url
        self._attempts = attempts
        self._backoff_seconds = backoff_seconds
        self._timeout_seconds = timeout_seconds

    def fetch(self, uri: str, target: Path, expected: Expected, stop: Callable[[], bool]) -> None:
        """Write the file to `target`; what a fault leaves there is the caller's to remove."""
        self._run(uri, lambda body: _save(shown(uri), body, target, expected, stop), stop)

    def exists(self, uri: str, stop: Callable[[], bool]) -> bool:
        """Whether the server would hand the file out.

        Asked with GET, of which nothing is read: an address that is signed for GET refuses HEAD.
        """

        async def found(_: _Body) -> bool:
            return True

        try:
            return self._run(uri, found, stop)
        except Absent:
            return False

    def _run(self, uri: str, use: Callable[[_Body], Awaitable[T]], stop: Callable[[], bool]) -> T:
        if scheme_of(uri) == "s3":
            return asyncio.run(self._with_attempts(self._allowed.object(uri), use, stop))
        return asyncio.run(self._with_attempts(str(self._allowed.url(uri)), use, stop))

    async def _with_attempts(
        self, uri: str, use: Callable[[_Body], Awaitable[T]], stop: Callable[[], bool]
    ) -> T:
        """Open the file and hand it to `use`; both again after a fault that may pass."""
        last = ""
        faults = _faults(uri)
        async with self._file_system(uri) as fs:
            for attempt in range(self._attempts):
                if attempt:
                    log.warning(
                        "%s: attempt %d of %d failed: %s", shown(uri), attempt, self._attempts, last
                    )
                    await _unless(stop, asyncio.sleep(self._pause_seconds(attempt)))
                try:
                    async with self._opened(fs, uri, stop) as body:
                        return await use(body)
                except faults as error:
                    _raise_if_final(uri, error)
                    last = _reason(error)
        raise MachineError(
            f"{shown(uri)}: could not be fetched in {self._attempts} attempts ({last}); "
            "check the server and the network, then try again"
        )

    def _pause_seconds(self, attempt: int) -> float:
        doubled = min(self._backoff_seconds * 2.0 ** (attempt - 1), _MAX_PAUSE_SECONDS)
        return doubled * random.uniform(0.5, 1.0)  # noqa: S311 - jitter: workers must not come back all at once

    @asynccontextmanager
    async def _file_system(self, uri: str) -> AsyncIterator[Any]:
        """An fsspec file system of the running loop; those that fsspec caches belong to its own."""
        import fsspec

        protocol, options = (
            ("s3", self._s3_options()) if scheme_of(uri) == "s3" else ("http", self._http_options())
        )
        fs = fsspec.filesystem(protocol, asynchronous=True, skip_instance_cache=True, **options)
        fs.retries = 1  # s3fs's own attempts: ours count, and hear `stop`
        try:
            session = await fs.set_session()
        except _faults(uri) as error:
            raise MachineError(
                f"no {protocol} client can be made: {_reason(error)}; check remote.*"
            ) from error
        try:
            yield fs
        finally:
            await session.close()

    def _http_options(self) -> dict[str, Any]:
        import aiohttp

        seconds = self._timeout_seconds
        client = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds),
            "cookie_jar": aiohttp.DummyCookieJar(),
            "headers": {"Accept-Encoding": "identity", "User-Agent": "streamproc"},
            "read_bufsize": _CHUNK_BYTES,
            "middlewares": (self._check_hop,),
        }
        return {"client_kwargs": client, "encoded": True}  # encoded: `_run` did it

    def _s3_options(self) -> dict[str, Any]:
        config = {
            "connect_timeout": self._timeout_seconds,
            "read_timeout": self._timeout_seconds,
            "retries": {"total_max_attempts": 1, "mode": "standard"},
        }
        return {"endpoint_url": self._s3_endpoint_url, "config_kwargs": config}

    async def _check_hop(self, request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
        """All requests of a client go through this, one by one, so that nothing is asked that is not allowed.

        fsspec drops the option to leave redirects to us, so aiohttp follows them; between two of
        them it comes here.
        """
        self._allowed.url(str(request.url))
        response = await send(request)
        target = response.headers.get("Location") or response.headers.get(
            "URI"
        )  # where aiohttp looks
        if response.status in _REDIRECTS and target:
            try:
                self._allowed.url(target, said_by=request.url)
            except Refused:
                response.close()
                raise
        return response

    @asynccontextmanager
    async def _opened(self, fs: Any, uri: str, stop: Callable[[], bool]) -> AsyncIterator[_Body]:
        is_s3 = scheme_of(uri) == "s3"
        file = await (
            fs.open_async(uri) if is_s3 else fs.open_async(uri, size=0)
        )  # size: else it asks HEAD first
        try:
            await _unless(stop, file.read(0))  # fsspec asks the server at the first read
            yield _Body(file, int(file.size) if is_s3 else _http_bytes(uri, file.r))
        finally:
            if file.r is not None:
                _hang_up(
                    getattr(file.r, "_raw_stream", file.r)
                )  # botocore wraps aiohttp's response
                file.r.close()
            await file.close()


def _hang_up(response: ClientResponse) -> None:
    """Cut the connection: the rest may be endless, and TLS with a silent server would outlive the loop half closed."""
    connection = response.connection
    if connection is not None and connection.transport is not None:
        connection.transport.abort()


def _http_bytes(uri: str, response: ClientResponse) -> int | None:
    """How long the server says that the body is."""
    if response.status != HTTPStatus.OK:
        raise Absent(
            f"{shown(uri)}: expected the file, the server answered with status {response.status}"
        )
    is_encoded = (
        "Content-Encoding" in response.headers
    )  # against our wish: then it counts other bytes
    return None if is_encoded else response.content_length


async def _save(
    name: str, body: _Body, target: Path, expected: Expected, stop: Callable[[], bool]
) -> None:
    if body.size_bytes is not None:
        expected.check_size(name, body.size_bytes)
    digest = hashlib.sha256()
    size_bytes = 0
    with _create(target) as write:
        while chunk := await _unless(stop, body.file.read(_CHUNK_BYTES)):
            size_bytes += len(chunk)
            expected.check_limit(name, size_bytes)
            write(chunk)
            digest.update(chunk)
    expected.check_size(name, size_bytes)
    expected.check_sha256(name, digest.hexdigest())


@contextmanager
def _create(target: Path) -> Iterator[Callable[[bytes], None]]:
    """Open `target` anew and give what writes to it.

    A fault of the disk is a MachineError, and nothing else is.
    """
    with _disk_faults(target):
        file = target.open(
            "wb", buffering=0
        )  # unbuffered: so that a full disk shows in `write`, not in closing

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
            f"{target.parent}: cannot be written ({error.strerror or error}); make room there or name another TMPDIR"
        ) from error


async def _unless(stop: Callable[[], bool], work: Coroutine[Any, Any, T]) -> T:
    """Await `work`, giving it up when `stop` becomes true."""
    task = asyncio.ensure_future(work)
    try:
        while not task.done():
            if stop():
                raise MediaStopped
            await asyncio.wait({task}, timeout=_POLL_SECONDS)
        return task.result()
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _faults(uri: str) -> tuple[type[Exception], ...]:
    """What the client libraries raise where the server or the network is at fault."""
    import aiohttp

    if scheme_of(uri) != "s3":
        return OSError, aiohttp.ClientError
    from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

    return OSError, aiohttp.ClientError, BotoCoreError


def _raise_if_final(uri: str, error: Exception) -> None:
    """Raise where another attempt cannot mend it; return where it might."""
    import aiohttp

    status, code = _answer(error)
    if isinstance(error, aiohttp.TooManyRedirects):
        raise Refused(
            f"{shown(uri)}: is redirected too many times; give the final address"
        ) from error
    if code in _OPERATORS_FAULTS:
        raise MachineError(
            f"{shown(uri)}: S3 refuses this service ({code}); check its credentials, region and clock"
        ) from error
    if isinstance(error, FileNotFoundError) or status == HTTPStatus.GONE:
        raise Absent(f"{shown(uri)}: the server has no such file; check the address") from error
    is_4xx = HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR
    if (
        is_4xx and status not in _PASSING and code != "RequestTimeout"
    ):  # S3 says 400 to its own time limit
        raise Absent(
            f"{shown(uri)}: the server refuses to hand it out ({_reason(error)}); check the address and who may read it"
        ) from error


def _answer(error: Exception) -> tuple[int, str]:
    """The HTTP status and S3's own code; (0, "") where no answer came."""
    response = getattr(
        error.__cause__, "response", None
    )  # s3fs raises an OSError from botocore's ClientError
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        return int(status), str(response.get("Error", {}).get("Code", ""))
    status = getattr(error, "status", 0)
    return (status, "") if isinstance(status, int) else (0, "")


def _reason(error: Exception) -> str:
    """The fault on one line, with no signed address in it."""
    status, code = _answer(error)
    if status:
        return f"status {status}{code and f', {code}'}"
    text = " ".join(re.sub(r"\?\S*", "?…", str(error)).split())[:160]
    return text or type(error).__name__
