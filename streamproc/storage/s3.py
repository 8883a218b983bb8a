"""S3: objects of allowed buckets, and the options that every S3 client here takes."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from streamproc.errors import UsageError

if TYPE_CHECKING:
    from streamproc.storage.allowed import Allowed

_ENDPOINT = re.compile(r"https?://[^/?#@\s]+/?")


def s3_options(
    endpoint_url: str | None, *, attempts: int, timeout_seconds: float | None = None
) -> dict[str, Any]:
    """Return s3fs's options. Credentials come from where boto looks for them.

    `attempts` counts the first one; `timeout_seconds` of None leaves boto's own.
    """
    config: dict[str, Any] = {"retries": {"total_max_attempts": attempts, "mode": "standard"}}
    if timeout_seconds is not None:
        config["connect_timeout"] = timeout_seconds
        config["read_timeout"] = timeout_seconds
    return {"endpoint_url": endpoint_url, "config_kwargs": config}


class S3Scheme:
    """The scheme `s3:`; see `RemoteScheme`. Needs the extra `s3`.

    The endpoint is the operator's, so it is trusted, and so is every address that it redirects to.
    Raises UsageError for an endpoint that is no address.
    """

    protocol = "s3"
    # The answer to these is a 4xx, but the service's own credentials, clock or region are wrong.
    # No video is at fault.
    operator_codes = frozenset(
        {
            "AuthorizationHeaderMalformed",
            "ExpiredToken",
            "InvalidAccessKeyId",
            "InvalidToken",
            "PermanentRedirect",
            "RequestTimeTooSkewed",
            "SignatureDoesNotMatch",
            "TokenRefreshRequired",
        }
    )
    temporary_codes = frozenset({"RequestTimeout"})  # answered with a 400

    def __init__(
        self, allowed: Allowed, *, endpoint_url: str | None, timeout_seconds: float
    ) -> None:
        if endpoint_url is not None and not _ENDPOINT.fullmatch(endpoint_url):
            raise UsageError(
                f"remote.s3_endpoint_url: expected http(s)://host:port, got {endpoint_url!r}"
            )
        self._allowed = allowed
        self._endpoint_url = endpoint_url
        self._timeout_seconds = timeout_seconds

    def check(self, uri: str) -> str:
        """Return the URI as s3fs takes it; raises RefusedError for one that is not allowed."""
        return self._allowed.object(uri)

    def split(self, uri: str) -> tuple[str, str]:
        """Return the whole URI and no query: '#' and '?' are part of a key."""
        return uri, ""

    def file_name(self, uri: str) -> str:
        """Return the last part of the key."""
        return uri.rpartition("/")[2]

    def options(self) -> dict[str, Any]:
        """One attempt each: `RemoteFiles` makes its own, which hear `stop`."""
        return s3_options(self._endpoint_url, attempts=1, timeout_seconds=self._timeout_seconds)

    def faults(self) -> tuple[type[Exception], ...]:
        """What the client raises if the server or the network fails."""
        import aiohttp
        from botocore.exceptions import BotoCoreError  # type: ignore[import-untyped]

        return OSError, aiohttp.ClientError, BotoCoreError

    def answer_of(self, error: Exception) -> tuple[int, str]:
        """Return the HTTP status and S3's own code; (0, "") if no answer came."""
        # s3fs raises an OSError from botocore's ClientError.
        response = getattr(error.__cause__, "response", None)
        if isinstance(response, dict):
            status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            return int(status), str(response.get("Error", {}).get("Code", ""))
        status = getattr(error, "status", 0)
        return (status, "") if isinstance(status, int) else (0, "")

    async def open(self, fs: Any, uri: str) -> Any:
        """Open the object as a stream."""
        return await fs.open_async(uri)

    def size_bytes(self, uri: str, file: Any) -> int | None:
        """Return the object's size."""
        del uri
        return int(file.size)

    def response(self, file: Any) -> Any:
        """Return aiohttp's response, which botocore wraps."""
        return getattr(file.r, "_raw_stream", file.r)
