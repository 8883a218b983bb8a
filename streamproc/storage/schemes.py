"""The schemes that the URIs of events may have, and what reads their files.

To add a scheme, add an entry to `SCHEMES`. If fsspec has a client for it, the entry makes
`RemoteFiles` with a `RemoteScheme` of the new scheme; see `http` and `s3`. What may be read is
decided in `allowed`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from streamproc.storage.http import HttpScheme
from streamproc.storage.local import LocalFiles
from streamproc.storage.remote import Pace, RemoteFiles
from streamproc.storage.s3 import S3Scheme

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from contextlib import AbstractContextManager
    from pathlib import Path

    from streamproc.storage.allowed import Allowed, Expected
    from streamproc.storage.remote import RemoteScheme


class Files(Protocol):
    """The files of one scheme. Made by `MediaAccess`; safe to use from several threads at once.

    Both methods raise RefusedError if asking again would give the same, MachineError if the server,
    the network or the disk failed, and MediaStoppedError soon after `stop` became true.
    """

    def open(
        self, uri: str, expected: Expected, stop: Callable[[], bool]
    ) -> AbstractContextManager[Path]:
        """Check that the URI is allowed and the file is the expected one, and give a local path.

        Blocks until the file is there. The path ends like the URI.
        """

    def find_tracks(self, uri: str, stop: Callable[[], bool]) -> str | None:
        """Return the URI of the track file that lies beside a video, or None."""


@dataclass(frozen=True, slots=True)
class MediaOptions:
    """What an entry of `SCHEMES` may use; see `MediaAccess`."""

    media_root: Path
    allowed: Allowed
    s3_endpoint_url: str | None
    attempts: int
    backoff_seconds: float
    timeout_seconds: float
    min_bytes_per_second: float
    temporary_folder: Path | None


def _local(options: MediaOptions) -> Files:
    return LocalFiles(options.media_root)


def _http(options: MediaOptions) -> Files:
    scheme = HttpScheme(options.allowed, timeout_seconds=options.timeout_seconds)
    return _remote(scheme, options)


def _s3(options: MediaOptions) -> Files:
    scheme = S3Scheme(
        options.allowed,
        endpoint_url=options.s3_endpoint_url,
        timeout_seconds=options.timeout_seconds,
    )
    return _remote(scheme, options)


def _remote(scheme: RemoteScheme, options: MediaOptions) -> Files:
    return RemoteFiles(
        scheme,
        attempts=options.attempts,
        backoff_seconds=options.backoff_seconds,
        temporary_folder=options.temporary_folder,
        pace=Pace(options.timeout_seconds, options.min_bytes_per_second),
    )


SCHEMES: Mapping[str, Callable[[MediaOptions], Files]] = {
    "": _local,
    "file": _local,
    "http": _http,
    "https": _http,
    "s3": _s3,
}
"""By scheme in lower case, "" for a URI without one."""
