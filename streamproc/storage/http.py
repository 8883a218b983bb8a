"""http and https: files of allowed hosts, on each hop of a redirect."""

from __future__ import annotations

from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from streamproc.shown import shown
from streamproc.storage.allowed import RefusedError
from streamproc.storage.remote import AbsentError

if TYPE_CHECKING:
    from aiohttp import ClientHandlerType, ClientRequest, ClientResponse

    from streamproc.storage.allowed import Allowed

_READ_BUFFER_BYTES = 1024 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)


class HttpScheme:
    """The schemes `http:` and `https:`; see `RemoteScheme`."""

    protocol = "http"
    operator_codes: frozenset[str] = frozenset()
    temporary_codes: frozenset[str] = frozenset()

    def __init__(self, allowed: Allowed, *, timeout_seconds: float) -> None:
        self._allowed = allowed
        self._timeout_seconds = timeout_seconds

    def check(self, uri: str) -> str:
        """Return the encoded address to request; raises RefusedError if it is not allowed."""
        return str(self._allowed.url(uri))

    def split(self, uri: str) -> tuple[str, str]:
        """Return what comes before the query, and the query with its '?'. A fragment is dropped."""
        path, mark, query = uri.partition("#")[0].partition("?")
        return path, mark + query

    def file_name(self, uri: str) -> str:
        """Return the last part of the decoded path."""
        return unquote(self.split(uri)[0]).rpartition("/")[2]

    def options(self) -> dict[str, Any]:
        """Return the options of fsspec and, in `client_kwargs`, of aiohttp's session."""
        import aiohttp

        seconds = self._timeout_seconds
        client = {
            "timeout": aiohttp.ClientTimeout(total=None, sock_connect=seconds, sock_read=seconds),
            "cookie_jar": aiohttp.DummyCookieJar(),
            # The size and the checksum are of the file itself, not of a compressed body.
            "headers": {"Accept-Encoding": "identity", "User-Agent": "streamproc"},
            "read_bufsize": _READ_BUFFER_BYTES,
            "middlewares": (self._check_hop,),
        }
        return {"client_kwargs": client, "encoded": True}  # `check` has encoded the address

    async def _check_hop(self, request: ClientRequest, send: ClientHandlerType) -> ClientResponse:
        """Check the address of each single request, and of the one that it redirects to.

        fsspec offers no way to handle redirects here: aiohttp follows them. But aiohttp calls this
        for each hop, so no address is requested that is not allowed.
        """
        self._allowed.url(str(request.url))
        response = await send(request)
        # aiohttp looks in these two headers.
        target = response.headers.get("Location") or response.headers.get("URI")
        if response.status in _REDIRECTS and target:
            try:
                self._allowed.url(target, redirected_from=request.url)
            except RefusedError:
                response.close()
                raise
        return response

    def faults(self) -> tuple[type[Exception], ...]:
        """What the client raises if the server or the network fails."""
        import aiohttp

        return OSError, aiohttp.ClientError

    def answer_of(self, error: Exception) -> tuple[int, str]:
        """Return the status, 0 if no answer came; HTTP has no other code."""
        status = getattr(error, "status", 0)
        return (status, "") if isinstance(status, int) else (0, "")

    async def open(self, fs: Any, uri: str) -> Any:
        """Open the file as a stream."""
        # With size 0 fsspec does not ask for the size first, by a HEAD that servers may refuse.
        return await fs.open_async(uri, size=0)

    def size_bytes(self, uri: str, file: Any) -> int | None:
        """Return the length that the server gives, None if it gives none of the file itself."""
        response = file.r
        if response.status != HTTPStatus.OK:
            raise AbsentError(
                f"{shown(uri)}: expected the file, "
                f"the server answered with status {response.status}"
            )
        if "Content-Encoding" in response.headers:  # then the length is of the compressed body
            return None
        length: int | None = response.content_length
        return length

    def response(self, file: Any) -> Any:
        """Return aiohttp's response."""
        return file.r
