"""How the URIs of events become local files, safely; what is refused is refused in one line.

    no scheme, file:     a file below the media root, links resolved; it is read where it lies
    http:, https:        from allowed hosts into a temporary file, redirects checked hop by hop
    s3:                  from allowed buckets into a temporary file; needs the extra `s3`

What reads the files of a scheme is registered in `schemes`; what is allowed is said in `allowed`.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Literal

from streamproc.errors import InputError, TracksError, VideoError
from streamproc.shown import shown
from streamproc.storage.allowed import (
    Allowed,
    Expected,
    MediaStoppedError,
    RefusedError,
    scheme_of,
)
from streamproc.storage.local import LocalFiles
from streamproc.storage.schemes import SCHEMES, MediaOptions

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from pathlib import Path

    from streamproc.settings import Settings
    from streamproc.storage.schemes import Files

__all__ = ["MediaAccess", "MediaStoppedError", "media_access"]

_ERRORS: dict[str, type[InputError]] = {"video": VideoError, "tracks": TracksError}


class MediaAccess:
    """Turns the URIs of events into local files and back.

    Made by the worker, the animator and `submit`.

    Holds no open files or connections, and is safe to use from several threads at once. It must not
    be called in a thread that runs an event loop. See `Allowed` for the two lists, `RemoteFiles`
    for attempts and temporary files. `timeout_seconds` bounds the connecting and each read.

    Raises UsageError for an invalid entry of a list, for a list of buckets without s3fs, and for an
    endpoint that is no address.
    """

    def __init__(
        self,
        *,
        media_root: Path,
        max_file_bytes: int,
        allowed_hosts: Sequence[str] = (),
        allowed_buckets: Sequence[str] = (),
        s3_endpoint_url: str | None = None,
        attempts: int = 4,
        backoff_seconds: float = 1.0,
        timeout_seconds: float = 60.0,
        min_bytes_per_second: float = 10_000.0,
        temporary_folder: Path | None = None,
    ) -> None:
        options = MediaOptions(
            media_root=media_root,
            allowed=Allowed(hosts=allowed_hosts, buckets=allowed_buckets),
            s3_endpoint_url=s3_endpoint_url,
            attempts=attempts,
            backoff_seconds=backoff_seconds,
            timeout_seconds=timeout_seconds,
            min_bytes_per_second=min_bytes_per_second,
            temporary_folder=temporary_folder,
        )
        self._media_root = media_root
        self._max_file_bytes = max_file_bytes
        self._local = LocalFiles(media_root)
        self._by_scheme = {scheme: make(options) for scheme, make in SCHEMES.items()}

    def __repr__(self) -> str:
        return f"MediaAccess({str(self._media_root)!r})"

    @contextmanager
    def open(
        self,
        uri: str,
        *,
        kind: Literal["video", "tracks"],
        stop: Callable[[], bool],
        sha256: str | None = None,
        size_bytes: int | None = None,
    ) -> Iterator[Path]:
        """Give a local path of the file, checked against `sha256` and `size_bytes`.

        The path ends like the URI (.mp4, .npz, .txt), because readers look at that. A copy is
        removed on leaving. Blocks until the file is there.

        Raises:
            VideoError, TracksError: By `kind`; refused, absent, too big, or not the announced file.
            MachineError: The server, the network or the disk failed; the same may work later.
            MediaStoppedError: `stop` became true; it is asked some times a second.
        """
        expected = Expected(sha256, size_bytes, self._max_file_bytes)
        with ExitStack() as stack:
            with _raising(_ERRORS[kind]):
                path = stack.enter_context(self._files_of(uri).open(uri, expected, stop))
            yield path

    def find_tracks(
        self, video_uri: str, *, stop: Callable[[], bool] = lambda: False
    ) -> str | None:
        """Return the URI of the track file that lies beside a video, or None.

        For the names see `TRACK_FILE_PATTERNS`. Raises VideoError if the URI is refused,
        MachineError and MediaStoppedError as `open` does.
        """
        with _raising(VideoError):
            return self._files_of(video_uri).find_tracks(video_uri, stop)

    def relative_uri(self, path: Path) -> str:
        """Return the URI by which events name a file; raises UsageError outside the media root."""
        return self._local.relative_uri(path)

    def copy_into(self, path: Path) -> str:
        """Copy a file into the media root and return its URI; see `LocalFiles.copy_into`."""
        return self._local.copy_into(path)

    def _files_of(self, uri: str) -> Files:
        scheme = scheme_of(uri)
        if scheme not in SCHEMES:
            *others, last = filter(None, SCHEMES)
            raise RefusedError(
                f"{shown(uri)}: expected no scheme, {', '.join(others)} or {last}, "
                f"got {scheme!r}; in a path write ':' as %3A"
            )
        return self._by_scheme[scheme]


@contextmanager
def _raising(error_type: type[InputError]) -> Iterator[None]:
    """Turn RefusedError into the error of what was asked for."""
    try:
        yield
    except RefusedError as error:
        raise error_type(str(error)) from error


def media_access(settings: Settings) -> MediaAccess:
    """What the settings allow URIs to reach."""
    remote = settings.remote
    return MediaAccess(
        media_root=settings.media_root,
        allowed_hosts=remote.allowed_hosts,
        allowed_buckets=remote.allowed_buckets,
        s3_endpoint_url=remote.s3_endpoint_url,
        max_file_bytes=settings.limits.max_file_bytes,
        attempts=remote.attempts,
        timeout_seconds=remote.timeout_seconds,
        min_bytes_per_second=remote.min_bytes_per_second,
    )
