"""Files: the hash of one, and writing one that is never seen half written."""

from __future__ import annotations

import hashlib
import os
from contextlib import contextmanager
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def sha256_of(path: Path) -> str:
    """Hex sha256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def on_one_line(text: str) -> str:
    """A text for a terminal: one line, and nothing in it that a terminal would obey."""
    words = " ".join(text.split())
    return "".join(char if char.isprintable() else _escaped(char) for char in words)


def _escaped(char: str) -> str:
    if "\udc80" <= char <= "\udcff":  # a byte of a file's name that is no UTF-8 (PEP 383)
        return f"\\x{ord(char) - 0xDC00:02x}"
    return char.encode("unicode_escape").decode("ascii")


def readable(name: str | os.PathLike[str]) -> str:
    """A file's name as text that can be encoded: bytes that are no UTF-8 are escaped."""
    return os.fspath(name).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def replace_file(path: Path, content: bytes) -> None:
    """Write a file that is never seen half written; its folder is made."""
    with written_whole(path) as file:
        file.write(content)


@contextmanager
def written_whole(path: Path) -> Iterator[BinaryIO]:
    """Give a file to write; it gets its name at the end, whole. Its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.urandom(6).hex()}.part")
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(
                file.fileno()
            )  # its event goes out at once: it must not outlive the file when the power fails
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
