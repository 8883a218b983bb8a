"""Files below the media root: read where they lie, and never anything outside it.

Whoever may write below the media root while a video is processed could replace a file by a link
after it was checked. If that matters, let only those write there whom you trust.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO
from urllib.parse import quote, unquote_to_bytes

from streamproc.errors import MachineError, UsageError
from streamproc.shown import shown
from streamproc.storage.allowed import (
    Expected,
    MediaStoppedError,
    RefusedError,
    scheme_of,
)
from streamproc.tracks import find_track_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

_MAX_PATH_CHARS = 4096
_CHUNK_BYTES = 4 * 1024 * 1024
_INCOMING = "incoming"
_BACKSLASH = "{}: a name with a backslash is refused by the services; rename it"
# If reading a path fails with one of these, the event is at fault. Anything else that a file system
# reports is a fault of the machine.
_INPUT_FAULTS = (
    errno.ENOENT,
    errno.ENOTDIR,
    errno.EACCES,
    errno.EPERM,
    errno.ELOOP,
    errno.ENAMETOOLONG,
)


class LocalFiles:
    """Files named by URIs with no scheme or with `file:`, and the way back from a path to a URI.

    Made by `MediaAccess`; safe to use from several threads at once. For the errors of `open` and
    `find_tracks` see `schemes.Files`.
    """

    def __init__(self, media_root: Path) -> None:
        self._media_root = media_root.expanduser().absolute()

    @contextmanager
    def open(self, uri: str, expected: Expected, stop: Callable[[], bool]) -> Iterator[Path]:
        """Give the path of the file, links resolved, once it is checked."""
        path = self._resolve(self._path_of(uri), uri)
        _check_file(path, uri, expected, stop)
        yield path

    def find_tracks(self, uri: str, stop: Callable[[], bool]) -> str | None:
        """Return the URI of the track file beside a video, or None."""
        del stop  # looking for four names takes no time
        path = self._path_of(uri)
        # The video itself may be a link. Its tracks lie beside the link, not beside its target.
        video = self._resolve(path.parent, uri) / path.name
        with _file_faults(uri):
            found = find_track_file(video)
        return None if found is None else _quoted(found.relative_to(self._root()))

    def relative_uri(self, path: Path) -> str:
        """Return the URI by which events name a file; raises UsageError outside the media root."""
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

        The place is made of the content's hash and the file's name, so the same file always goes to
        the same place, and another one never does. A file that is already below the media root
        stays where it is. Raises UsageError if the file cannot be read, MachineError if the copy
        cannot be written.
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
                _refuse_link(incoming)
                sha256 = _copy(source, temporary)
            target = incoming / sha256[:16] / path.name
            target.parent.mkdir(exist_ok=True)
            _refuse_link(target.parent)
            temporary.replace(target)
        except OSError as error:
            raise MachineError(
                f"{incoming}: {path} cannot be copied there ({error.strerror or error}); "
                "make room or check permissions"
            ) from error
        finally:
            temporary.unlink(missing_ok=True)
        return self.relative_uri(target)

    def _root(self) -> Path:
        # Resolved at each call: the media root may be a link that is moved to another folder.
        return Path(os.path.realpath(self._media_root))

    def _path_of(self, uri: str) -> Path:
        """Read the path in a URI, relative to the media root unless absolute.

        Links are not followed yet, so the path may lead anywhere: `_resolve` comes next.
        """
        name = shown(uri)
        text = uri
        if scheme_of(uri) == "file":
            text = _path_part(uri[len("file:") :], name)
        elif text.startswith("//"):
            raise RefusedError(f"{name}: names another machine; expected a path below media_root")
        if "?" in text or "#" in text:
            raise RefusedError(
                f"{name}: expected a path below media_root; write '?' as %3F and '#' as %23"
            )
        try:
            path = os.fsdecode(unquote_to_bytes(text))
        except UnicodeEncodeError as error:
            raise RefusedError(
                f"{name}: is no valid text; expected a path below media_root"
            ) from error
        if "\0" in path or "\\" in path or not path or len(path) > _MAX_PATH_CHARS:
            raise RefusedError(
                f"{name}: expected a path below media_root, with '/' between its parts"
            )
        return self._root() / path

    def _resolve(self, path: Path, uri: str) -> Path:
        """Follow all links; raises RefusedError if that leaves the media root."""
        resolved = Path(os.path.realpath(path))
        if not resolved.is_relative_to(self._root()):
            raise RefusedError(
                f"{shown(uri)}: leads out of media_root; move the file there, or set media_root"
            )
        return resolved


def _path_part(text: str, name: str) -> str:
    """Return the path of a `file:` URI without its scheme; raises RefusedError for another host."""
    if not text.startswith("//"):
        return text
    host, slash, path = text[2:].partition("/")
    if host.lower() not in ("", "localhost"):
        raise RefusedError(
            f"{name}: names a file of another machine; expected a path below media_root"
        )
    return slash + path


@contextmanager
def _file_faults(uri: str) -> Iterator[None]:
    """Turn an error of the file system into RefusedError or MachineError."""
    try:
        yield
    except FileNotFoundError as error:
        raise RefusedError(
            f"{shown(uri)}: no such file below media_root; check the path, or copy the file there"
        ) from error
    except OSError as error:
        if error.errno in _INPUT_FAULTS:
            raise RefusedError(
                f"{shown(uri)}: cannot be read ({error.strerror}); "
                "check the path and its permissions"
            ) from error
        raise MachineError(
            f"{shown(uri)}: cannot be read ({error.strerror or error}); check the disk"
        ) from error


def _check_file(path: Path, uri: str, expected: Expected, stop: Callable[[], bool]) -> None:
    """Refuse what is no plain file or not the expected one.

    A pipe or a device is never opened, as that could block.
    """
    name = shown(uri)
    with _file_faults(uri):
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            raise RefusedError(
                f"{name}: is not a plain file (a directory or a device); name a file"
            )
        expected.check_size(name, status.st_size)
        with path.open("rb") as file:  # even if nothing is hashed: it must be readable
            if expected.sha256 is None:
                return
            digest = hashlib.sha256()
            while chunk := file.read(_CHUNK_BYTES):
                if stop():
                    raise MediaStoppedError
                digest.update(chunk)
    expected.check_sha256(name, digest.hexdigest())


def _refuse_link(folder: Path) -> None:
    """Raise OSError for a link in the place of a folder: others may have put it there."""
    if folder.is_symlink():
        raise OSError(errno.ELOOP, f"{folder.name} is a link: remove it")


def _copy(source: BinaryIO, target: Path) -> str:
    """Copy to a new file and return the sha256; the file is on the disk when this returns."""
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
