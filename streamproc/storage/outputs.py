"""Where services put the files that they make: a folder, or an object store through fsspec."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from streamproc.errors import MachineError, UsageError
from streamproc.files import replace_file, sha256_of, written_whole
from streamproc.shown import shown, without_password
from streamproc.storage.s3 import s3_options

if TYPE_CHECKING:
    from collections.abc import Callable

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://")
_S3_ATTEMPTS = 3
_MAX_NAME_CHARS = 120
_CHECK_NAME = ".streamproc-write-check"


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file that was written, as the event that announces it says."""

    uri: str
    sha256: str
    size_bytes: int


class OutputStore:
    """The files below one place, which `setting` names in errors.

    Made by `AnimationStore` and `TrackStore`; safe in several threads.

    `uri` is a folder (a path or file://) or any URI that fsspec knows, such as s3://bucket/prefix.
    In a folder a file appears whole or not at all, and object stores promise the same. Writing the
    same file again changes nothing. The URI of a file below `media_root` is relative to it, so that
    host, containers and cluster can all read it; that of another file begins with file://. S3
    credentials come from where boto looks for them.

    Raises UsageError if `uri` is invalid or needs a package that is not installed.
    """

    def __init__(
        self,
        uri: str,
        *,
        setting: str,
        media_root: Path | None = None,
        s3_endpoint_url: str | None = None,
    ) -> None:
        self._setting = setting
        self._uri = without_password(uri).rstrip("/")
        self._folder = _local_folder(uri, setting)
        self._media_root = None if media_root is None else media_root.expanduser().absolute()
        self._fs: Any = None
        self._prefix = ""
        if self._folder is None:
            self._fs, self._prefix = _remote(uri, setting, s3_endpoint_url)

    def __repr__(self) -> str:
        return f"OutputStore({self._uri!r})"

    @property
    def uri(self) -> str:
        """The place, without a password."""
        return self._uri

    def check(self) -> None:
        """Write and remove a small file, once at the start; raises UsageError if that fails."""
        try:
            self.put(_CHECK_NAME, b"")
        except MachineError as error:
            raise UsageError(f"{self._setting}: {error}") from error
        self._remove(_CHECK_NAME)

    def put(self, relative: str, content: bytes) -> StoredFile:
        """Write a file of these bytes; raises MachineError if the disk or the store fails."""
        self._write(
            relative,
            to_folder=lambda path: replace_file(path, content),
            to_store=lambda name: self._fs.pipe_file(name, content),
        )
        return StoredFile(self.uri_of(relative), hashlib.sha256(content).hexdigest(), len(content))

    def put_copy(self, relative: str, source: Path) -> StoredFile:
        """Write a copy of a file, however large; raises MachineError as `put` does."""

        def copy(path: Path) -> None:
            with written_whole(path) as target, source.open("rb") as content:
                shutil.copyfileobj(content, target)

        self._write(
            relative,
            to_folder=copy,
            to_store=lambda name: self._fs.put_file(str(source), name),
        )
        return StoredFile(self.uri_of(relative), sha256_of(source), source.stat().st_size)

    def _write(
        self,
        relative: str,
        *,
        to_folder: Callable[[Path], None],
        to_store: Callable[[str], None],
    ) -> None:
        try:
            if self._folder is None:
                to_store(f"{self._prefix}/{relative}")
            else:
                _refuse_links(self._folder, self._folder / relative)
                to_folder(self._folder / relative)
        except Exception as error:  # each fsspec backend has errors of its own
            raise MachineError(
                f"{self._uri}/{relative}: cannot be written ({_reason(error)}); "
                "check room, permissions and the store"
            ) from error

    def read(self, relative: str) -> bytes | None:
        """Return a file's bytes, None where it is not there; links are not followed.

        Raises MachineError if the disk or the store fails.
        """
        try:
            if self._folder is None:
                content: bytes = self._fs.cat_file(f"{self._prefix}/{relative}")
                return content
            path = self._folder / relative
            _refuse_links(self._folder, path)
            if path.is_symlink() or not path.is_file():
                return None
            return path.read_bytes()
        except FileNotFoundError:
            return None
        except Exception as error:
            raise MachineError(
                f"{self._uri}/{relative}: cannot be read ({_reason(error)})"
            ) from error

    def find(self, pattern: str, *, written_until: float) -> list[str]:
        """Return the files of a pattern that were written until then, in seconds since 1970.

        They are paths below the place. Links are not followed. Of a store that does not say when a
        file was written all count. Raises MachineError if the disk or the store fails.
        """
        try:
            if self._folder is not None:
                return [
                    path.relative_to(self._folder).as_posix()
                    for path in sorted(self._folder.glob(pattern))
                    if not path.is_symlink() and path.stat().st_mtime <= written_until
                ]
            skipped = len(self._prefix) + 1
            names = [str(name)[skipped:] for name in self._fs.glob(f"{self._prefix}/{pattern}")]
            return [name for name in sorted(names) if self._written(name) <= written_until]
        except Exception as error:
            raise MachineError(
                f"{self._uri}/{pattern}: cannot be listed ({_reason(error)})"
            ) from error

    def _written(self, relative: str) -> float:
        try:
            seconds: float = self._fs.modified(f"{self._prefix}/{relative}").timestamp()
        except NotImplementedError:
            return 0.0
        return seconds

    def remove(self, relative: str) -> None:
        """Remove a file, and the folders that are empty then; one that is gone is no fault.

        Raises MachineError if the disk or the store fails.
        """
        try:
            if self._folder is None:
                self._fs.rm_file(f"{self._prefix}/{relative}")
                return
            path = self._folder / relative
            _refuse_links(self._folder, path)
            path.unlink(missing_ok=True)
            with contextlib.suppress(OSError):
                for emptied in path.parents[: relative.count("/")]:
                    emptied.rmdir()  # raises while anything is in it
        except FileNotFoundError:
            return
        except Exception as error:
            raise MachineError(
                f"{self._uri}/{relative}: cannot be removed ({_reason(error)})"
            ) from error

    def relative_of(self, uri: str) -> str | None:
        """Return the path of a file below the place by its URI, None for a URI of another place."""
        if self._folder is None:
            is_own = uri.startswith(f"{self._uri}/")
            return uri.removeprefix(f"{self._uri}/") if is_own else None
        if uri.startswith("file:"):
            prefix = f"{self._folder.as_uri()}/"
        elif self._media_root is not None:
            prefix = self.uri_of("")
            prefix = f"{prefix}/" if prefix not in ("", ".") else ""
            if prefix.startswith("file:"):
                return None
        else:
            return None
        return unquote(uri[len(prefix) :]) if uri.startswith(prefix) else None

    def remove_older_than(self, pattern: str, seconds: float, now_seconds: float) -> int:
        """Remove the files in a folder of this pattern that were written before; returns how many.

        An object store has rules of its own for that. Links are not followed. Folders of the
        pattern that become empty go as well.
        """
        removed = 0
        if self._folder is None:
            return removed
        for path in self._folder.glob(pattern):
            with contextlib.suppress(OSError):
                _refuse_links(self._folder, path)
                if path.lstat().st_mtime + seconds < now_seconds:
                    path.unlink()
                    removed += 1
                    for emptied in path.parents[: pattern.count("/")]:
                        emptied.rmdir()  # raises while anything is in it
        return removed

    def uri_of(self, relative: str) -> str:
        """Return the URI by which events name a file."""
        if self._folder is None:
            return f"{self._uri}/{relative}"
        path = self._folder / relative
        if self._media_root is not None:
            resolved = Path(os.path.realpath(path))
            root = Path(os.path.realpath(self._media_root))
            if resolved.is_relative_to(root):
                return quote(os.fsencode(resolved.relative_to(root)))
        return path.as_uri()

    def _remove(self, relative: str) -> None:
        # Credentials that may write but not remove are good practice, so a failure is no error.
        with contextlib.suppress(Exception):
            if self._folder is None:
                self._fs.rm_file(f"{self._prefix}/{relative}")
            else:
                (self._folder / relative).unlink(missing_ok=True)


def _refuse_links(folder: Path, path: Path) -> None:
    """Raise OSError if a link, which others may have put there, leads a file out of its folder."""
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(folder)):
        raise OSError(errno.ELOOP, "a link leads out of the folder: remove it")


def _reason(error: Exception) -> str:
    """Return the fault on one short line."""
    strerror: str | None = getattr(error, "strerror", None)
    return strerror or " ".join(str(error).split())[:160] or type(error).__name__


def _local_folder(uri: str, setting: str) -> Path | None:
    match = _SCHEME.match(uri)
    if match is None:
        if not uri or uri.lower().startswith("file:"):
            raise UsageError(
                f"{setting}: expected a folder or a URI such as s3://bucket/prefix, "
                f"got {shown(uri)!r}"
            )
        return Path(uri).expanduser().absolute()
    if match[1].lower() not in ("file", "local"):
        return None
    path = unquote(uri[match.end() :])
    if not path.startswith("/"):
        raise UsageError(f"{setting}: expected file:///absolute/folder, got {shown(uri)!r}")
    return Path(path)


def _remote(uri: str, setting: str, s3_endpoint_url: str | None) -> tuple[Any, str]:
    """Return the fsspec file system and the path in it."""
    import fsspec

    is_s3 = uri.startswith(("s3://", "s3a://"))
    options = s3_options(s3_endpoint_url, attempts=_S3_ATTEMPTS) if is_s3 else {}
    try:
        fs, prefix = fsspec.core.url_to_fs(
            uri, use_listings_cache=False, skip_instance_cache=True, **options
        )
    except ImportError as error:
        extra = "streamproc[s3]" if is_s3 else str(error)
        raise UsageError(
            f"{setting}: {shown(uri)} needs an extra package: pip install '{extra}'"
        ) from error
    except ValueError as error:
        raise UsageError(
            f"{setting}: expected a folder or a URI that fsspec knows, got {shown(uri)!r}"
        ) from error
    fs.retries = 1  # else s3fs would repeat all of boto's attempts five times
    return fs, prefix.rstrip("/")


def safe_name(text: str) -> str:
    """Return a file name that no other text gets: unsafe bytes as ~XX, long names with a hash.

    No character of it needs an escape in a URI, so it is the same in a path, a key and a URI.
    """
    encoded = text.encode("utf-8", "surrogatepass")
    plain = re.sub(rb"[^A-Za-z0-9_.-]", _escaped, encoded).decode()
    if plain.startswith("."):
        plain = f"~2E{plain[1:]}"  # neither '..' nor hidden
    if len(plain) > _MAX_NAME_CHARS:
        digest = hashlib.sha256(encoded).hexdigest()
        return f"{plain[: _MAX_NAME_CHARS - 66]}~~{digest}"  # '~~' is in no other name
    return plain or "~"


def _escaped(byte: re.Match[bytes]) -> bytes:
    return b"~%02X" % ord(byte[0])
