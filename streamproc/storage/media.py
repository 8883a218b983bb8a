"""How the URIs of events become local files, safely; what is refused is refused in one line.

    no scheme, file:     a file under the media root, links resolved; it is read where it lies
    http:, https:        from allowed hosts, into a temporary file; a redirect's target is checked before it is followed
    s3:                  from allowed buckets, into a temporary file; needs the extra `s3`

Whoever may write below the media root while a video is processed could still exchange a file for a
link after it was checked: let those who announce videos write there only if you trust them.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
import tempfile
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, BinaryIO, Literal
from urllib.parse import quote, unquote, unquote_to_bytes

from streamproc.errors import InputError, MachineError, TracksError, UsageError, VideoError
from streamproc.storage.allowed import Allowed, Expected, Refused, scheme_of, shown
from streamproc.storage.remote import MediaStopped, RemoteFiles
from streamproc.tracks import find_track_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from streamproc.settings import Settings

__all__ = ["MediaAccess", "MediaStopped"]

_ERRORS: dict[str, type[InputError]] = {"video": VideoError, "tracks": TracksError}
_REMOTE = ("http", "https", "s3")
_MAX_PATH_CHARS = 4096
_CHUNK_BYTES = 4 * 1024 * 1024
_INCOMING = "incoming"
_BACKSLASH = "{}: a name with a backslash is refused by the services; rename it"
# The names that `find_track_file` looks for, for servers that cannot be listed; a test holds the
# two together.
_TRACK_NAMES = (
    "{stem}.persons.npz",
    "{stem}.canonical_persons.npz",
    "{stem}.mot.txt",
    "canonical_persons.npz",
)
# What these say of a path is the event's fault; anything else that a file system reports is the
# machine's.
_INPUT_FAULTS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


class MediaAccess:
    """Turns the URIs of events into local files and back.

    Made by the worker, the animator and `submit`.

    Holds no open files or connections, and is safe to use from several threads at once; it must not
    be called in a thread that runs an event loop. See `Allowed` for the two lists and `RemoteFiles`
    for the numbers. Copies lie in `temporary_folder` (None: the system's), each in a folder
    `streamproc-media-*`; a killed process leaves it there.

    Raises UsageError for an entry of a list that means nothing, or a list of buckets without s3fs.
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
        temporary_folder: Path | None = None,
    ) -> None:
        self._media_root = media_root.expanduser().absolute()
        self._max_file_bytes = max_file_bytes
        self._temporary_folder = temporary_folder
        self._remote = RemoteFiles(
            Allowed(hosts=allowed_hosts, buckets=allowed_buckets),
            s3_endpoint_url=s3_endpoint_url,
            attempts=attempts,
            backoff_seconds=backoff_seconds,
            timeout_seconds=timeout_seconds,
        )

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
        """Give a local path of the file, checked against `sha256` and `size_bytes`; a copy is removed on leaving.

        The path ends like the URI (.mp4, .npz, .txt), because readers look at that. Blocks until
        the file is there.

        Raises:
            VideoError, TracksError: By `kind`; refused, not there, too big, or not the file that was announced.
            MachineError: The server, the network or the disk failed; the same may work later.
            MediaStopped: `stop` became true; it is asked some times a second.
        """
        expected = Expected(sha256, size_bytes, self._max_file_bytes)
        if _is_remote(uri):
            with self._temporary(uri) as path:
                with _told_as(kind):
                    self._remote.fetch(uri, path, expected, stop)
                yield path
        else:
            with _told_as(kind):
                path = self._resolve(self._local_path(uri), uri)
                _check_file(path, uri, expected, stop)
            yield path

    def find_tracks(
        self, video_uri: str, *, stop: Callable[[], bool] = lambda: False
    ) -> str | None:
        """The URI of the track file that lies beside a video, or None: see the README for the names looked for.

        A query goes along, as the key to a whole folder may be in it. Raises VideoError where the
        URI is refused, MachineError and MediaStopped as `open` does.
        """
        with _told_as("video"):
            if _is_remote(video_uri):
                return self._find_remote_tracks(video_uri, stop)
            path = self._local_path(video_uri)
            # The video itself may be a link: "beside" is where that link lies.
            video = self._resolve(path.parent, video_uri) / path.name
            with _file_faults(video_uri):
                found = find_track_file(video)
            return None if found is None else _quoted(found.relative_to(self._root()))

    def relative_uri(self, path: Path) -> str:
        """The URI by which events name a file under the media root; raises UsageError for one outside."""
        root = self._root()
        resolved = Path(os.path.realpath(path))
        if resolved == root or not resolved.is_relative_to(root):
            raise UsageError(
                f"{path}: expected a file below media_root ({root}), where the services find it; "
                "move it there, set media_root, or let --copy do it"
            )
        if "\\" in str(resolved):
            raise UsageError(_BACKSLASH.format(path))
        return _quoted(resolved.relative_to(root))

    def copy_into(self, path: Path) -> str:
        """Copy a file into the media root, whole or not at all, and return its URI.

        The place comes from content and name: the same file goes to the same place, another one
        never does. A file that is there already stays where it is. Raises UsageError for what
        cannot be read, MachineError for what cannot be written.
        """
        root = self._root()
        if Path(os.path.realpath(path)).is_relative_to(root):
            return self.relative_uri(path)
        if "\\" in path.name:
            raise UsageError(_BACKSLASH.format(path))
        incoming = root / _INCOMING
        temporary = incoming / f".{os.urandom(8).hex()}.part"
        try:
            source = path.open("rb")
        except (OSError, ValueError) as error:
            raise UsageError(
                f"{path}: cannot be read ({error}); check the path and its permissions"
            ) from error
        try:
            with source:
                incoming.mkdir(parents=True, exist_ok=True)
                sha256 = _copy(source, temporary)
            target = incoming / sha256[:16] / path.name
            target.parent.mkdir(exist_ok=True)
            temporary.replace(target)
        except OSError as error:
            raise MachineError(
                f"{incoming}: {path} cannot be copied there ({error.strerror or error}); make room or check permissions"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return self.relative_uri(target)

    def _root(self) -> Path:
        return Path(os.path.realpath(self._media_root))  # each time: it may be a link that moves on

    def _local_path(self, uri: str) -> Path:
        """The path that a URI spells, below the media root unless absolute; what it leads to is not looked at."""
        name, scheme, text = shown(uri), scheme_of(uri), uri
        if scheme == "file":
            text = uri[len("file:") :]
            if text.startswith("//"):
                host, slash, rest = text[2:].partition("/")
                if host.lower() not in ("", "localhost"):
                    raise Refused(
                        f"{name}: names a file of another machine; expected a path below media_root"
                    )
                text = slash + rest
        elif scheme:
            raise Refused(
                f"{name}: expected no scheme, file, http, https or s3, got {scheme!r}; in a path write ':' as %3A"
            )
        elif text.startswith("//"):
            raise Refused(f"{name}: names another machine; expected a path below media_root")
        if "?" in text or "#" in text:
            raise Refused(
                f"{name}: expected a path below media_root; write '?' as %3F and '#' as %23"
            )
        try:
            path = os.fsdecode(unquote_to_bytes(text))
        except UnicodeEncodeError as error:
            raise Refused(f"{name}: is no valid text; expected a path below media_root") from error
        if "\0" in path or "\\" in path or not path or len(path) > _MAX_PATH_CHARS:
            raise Refused(f"{name}: expected a path below media_root, with '/' between its parts")
        return self._root() / path

    def _resolve(self, path: Path, uri: str) -> Path:
        """The path with all links followed; refused where that leaves the media root."""
        resolved = Path(os.path.realpath(path))
        if not resolved.is_relative_to(self._root()):
            raise Refused(
                f"{shown(uri)}: leads out of media_root; move the file there, or set media_root"
            )
        return resolved

    @contextmanager
    def _temporary(self, uri: str) -> Iterator[Path]:
        """A path in a new folder, which is removed with all that is in it."""
        try:
            folder = tempfile.TemporaryDirectory(
                prefix="streamproc-media-", dir=self._temporary_folder, ignore_cleanup_errors=True
            )
        except OSError as error:
            raise MachineError(
                f"no temporary folder can be made ({error.strerror or error}); make room or name another TMPDIR"
            ) from error
        with folder as name:
            yield Path(name) / _file_name(uri)

    def _find_remote_tracks(self, video_uri: str, stop: Callable[[], bool]) -> str | None:
        # '#' and '?' are part of a key in S3; in http the one is not sent, and the other may carry
        # a signature.
        base, query = video_uri, ""
        if scheme_of(video_uri) != "s3":
            base, mark, query = video_uri.partition("#")[0].partition("?")
            query = mark + query
        folder, _, name = base.rpartition("/")
        stem = PurePosixPath(name).stem
        candidates = (f"{folder}/{pattern.format(stem=stem)}{query}" for pattern in _TRACK_NAMES)
        return next((uri for uri in candidates if self._remote.exists(uri, stop)), None)


def _is_remote(uri: str) -> bool:
    return scheme_of(uri) in _REMOTE


@contextmanager
def _told_as(kind: str) -> Iterator[None]:
    """Turn Refused into the error of what was asked for."""
    try:
        yield
    except Refused as error:
        raise _ERRORS[kind](str(error)) from error


@contextmanager
def _file_faults(uri: str) -> Iterator[None]:
    """Turn what the file system reports into the event's fault or the machine's."""
    try:
        yield
    except FileNotFoundError as error:
        raise Refused(
            f"{shown(uri)}: no such file below media_root; check the path, or copy the file there"
        ) from error
    except OSError as error:
        if error.errno in _INPUT_FAULTS:
            raise Refused(
                f"{shown(uri)}: cannot be read ({error.strerror}); check the path and its permissions"
            ) from error
        raise MachineError(
            f"{shown(uri)}: cannot be read ({error.strerror or error}); check the disk"
        ) from error


def _check_file(path: Path, uri: str, expected: Expected, stop: Callable[[], bool]) -> None:
    """Refuse what is no plain file or not the expected one.

    A pipe or device is not opened: that could block.
    """
    with _file_faults(uri):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise Refused(
                f"{shown(uri)}: is not a plain file (a directory or a device); name a file"
            )
        expected.check_size(shown(uri), status.st_size)
        with path.open("rb") as file:
            if expected.sha256 is None:
                return
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                if stop():
                    raise MediaStopped
                digest.update(chunk)
    expected.check_sha256(shown(uri), digest.hexdigest())


def _copy(source: BinaryIO, target: Path) -> str:
    """Copy to a new file, on the disk when this returns, and give the sha256 of what was copied."""
    digest = hashlib.sha256()
    with target.open("xb") as file:
        while chunk := source.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _quoted(relative: Path) -> str:
    return quote(os.fsencode(relative))


def _file_name(uri: str) -> str:
    """A harmless name that ends like the URI's; error texts of the readers show it."""
    path = uri if scheme_of(uri) == "s3" else unquote(uri.partition("#")[0].partition("?")[0])
    return re.sub(r"[^A-Za-z0-9._-]", "_", path.rpartition("/")[2])[-80:].lstrip(".") or "file"


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
    )
