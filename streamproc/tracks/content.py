"""What lies at a path: its bytes, members or files, read once and within limits.

Text may be UTF-8 or UTF-16, with a byte order mark or without, and gzipped.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import zipfile
import zlib
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from streamproc.errors import TracksError
from streamproc.files import sha256_of

if TYPE_CHECKING:
    from pathlib import Path

MAX_TEXT_BYTES = 512 * 1024 * 1024
"""Text after unpacking: 10 million lines of MOT text take 450 MB."""
MAX_JSON_BYTES = 128 * 1024 * 1024
"""JSON takes up to ten times its size in memory."""
MAX_LINE_BYTES = 64 * 1024
MAX_FILES = 1_000_000

_HEAD_BYTES = 4096
_ZIP_SIGNATURE = b"PK\x03\x04"
_GZIP_SIGNATURE = b"\x1f\x8b"
_SCAN_BYTES = 16 * 1024 * 1024
_NEWLINE = ord("\n")


class Content:
    """A track file or folder. Made for one reading, used in one thread."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.name
        self.is_folder = path.is_dir()

    @cached_property
    def is_zip(self) -> bool:
        """Whether it is a zip, as npz files are."""
        return self._raw_head.startswith(_ZIP_SIGNATURE)

    @cached_property
    def _raw_head(self) -> bytes:
        if self.is_folder:
            return b""
        with self.path.open("rb") as file:
            return file.read(_HEAD_BYTES)

    @cached_property
    def head(self) -> str:
        """The first characters of a text, or of what a gzip holds; "" for a folder or a zip."""
        if self.is_folder or self.is_zip:
            return ""
        head = self._raw_head
        if head.startswith(_GZIP_SIGNATURE):
            try:
                with gzip.open(self.path) as file:
                    head = file.read(_HEAD_BYTES)
            except (OSError, EOFError, zlib.error):
                return ""  # reading all of it says what is wrong
        return _as_utf8(head[: len(head) // 2 * 2]).decode("utf-8", "replace")

    @cached_property
    def members(self) -> tuple[str, ...]:
        """The names in a zip."""
        if not self.is_zip:
            return ()
        try:
            with zipfile.ZipFile(self.path) as archive:
                return tuple(archive.namelist())
        except (zipfile.BadZipFile, NotImplementedError):
            return ()  # the reader of npz files says what is wrong with it

    @cached_property
    def files(self) -> tuple[Path, ...]:
        """The text files of a folder by name, or of the folder `labels` in it."""
        if not self.is_folder:
            return ()
        labels = self.path / "labels"
        folder = labels if labels.is_dir() else self.path
        names: list[str] = []
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(".txt") and entry.is_file():
                    names.append(entry.name)
                if len(names) > MAX_FILES:
                    raise TracksError(f"{folder}: expected at most {MAX_FILES:,} files")
        return tuple(folder / name for name in sorted(names))

    @cached_property
    def text(self) -> bytes:
        """The whole text as UTF-8. Raises TracksError for one that is too large or is no text."""
        data = self._unpacked(MAX_TEXT_BYTES)
        try:
            data = _as_utf8(data)
        except UnicodeDecodeError as error:
            raise TracksError(f"{self.path}: cannot be read as UTF-16 ({error.reason})") from error
        self._check_lines(data)
        return data

    @cached_property
    def document(self) -> Any:
        """The JSON in it. Raises TracksError."""
        data = _as_utf8(self._unpacked(MAX_JSON_BYTES))
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            reason = str(error).split("\n", 1)[0] or type(error).__name__
            raise TracksError(f"{self.path}: cannot be read as JSON ({reason:.200})") from error

    def sha256(self) -> str:
        """Hex sha256 of the file's bytes, or of the names and bytes of a folder's files."""
        if not self.is_folder:
            return sha256_of(self.path)
        digest = hashlib.sha256()
        for file in self.files:
            digest.update(os.fsencode(file.name) + b"\0")
            digest.update(file.read_bytes())
        return digest.hexdigest()

    def _unpacked(self, limit: int) -> bytes:
        too_large = TracksError(
            f"{self.path}: larger than the {limit:,} bytes that such a track file may have"
        )
        if self.path.stat().st_size > limit:
            raise too_large
        if not self._raw_head.startswith(_GZIP_SIGNATURE):
            return self.path.read_bytes()
        try:
            with gzip.open(self.path) as file:
                data = file.read(limit + 1)
        except (OSError, EOFError, zlib.error) as error:
            raise TracksError(f"{self.path}: cannot be unpacked as gzip ({error})") from error
        if len(data) > limit:
            raise too_large
        return data

    def _check_lines(self, data: bytes) -> None:
        """Refuse a line that is longer than any of a track file, before it is split."""
        begin = 0
        for start in range(0, len(data), _SCAN_BYTES):
            part = np.frombuffer(data, np.uint8, min(_SCAN_BYTES, len(data) - start), start)
            ends = np.flatnonzero(part == _NEWLINE) + start
            longest = int(np.diff(np.r_[begin, ends, start + len(part)]).max())
            if longest > MAX_LINE_BYTES:
                raise TracksError(
                    f"{self.path}: a line has more than {MAX_LINE_BYTES:,} bytes: "
                    "is it a track file?"
                )
            begin = int(ends[-1]) if len(ends) else begin


def _as_utf8(data: bytes) -> bytes:
    if data.startswith(b"\xef\xbb\xbf"):
        return data[3:]
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16").encode()
    if data[1:2] == b"\0" and data[:1] != b"\0":
        return data.decode("utf-16-le").encode()
    if data[:1] == b"\0" and data[1:2] not in {b"", b"\0"}:
        return data.decode("utf-16-be").encode()
    return data
