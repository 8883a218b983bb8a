"""Whether a file is shorter than its own structure says.

FFmpeg reads a cut-off file without a word.

Looks only at the outermost boxes (ISO/IEC 14496-12), the EBML segment (RFC 8794, RFC 9559) or the
RIFF header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

_MAX_BOXES = 10_000
_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT_ID = b"\x18\x53\x80\x67"
_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")


def is_cut_off(path: Path) -> bool:
    """True where the file ends before its own structure does; false where it cannot be told."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[4:8] in _FIRST_BOXES:
            return _boxes(file, size)[0] > size
        if head.startswith(_EBML_MAGIC):
            return _segment_end(head) > size
        if head.startswith(b"RIFF") and len(head) >= 8:  # noqa: PLR2004
            return int.from_bytes(head[4:8], "little") + 8 > size
    return False


def lacks_moov(path: Path) -> bool:
    """True for an mp4 or mov without the box that says where its frames are (a recording that was cut off)."""
    with path.open("rb") as file:
        if file.read(8)[4:8] not in _FIRST_BOXES:
            return False
        return b"moov" not in _boxes(file, path.stat().st_size)[1]


def _boxes(file: BinaryIO, size: int) -> tuple[int, set[bytes]]:
    """Where the last outermost box should end, and the names of all of them."""
    position, names = 0, set[bytes]()
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(16)
        if position >= size or len(header) < 8:  # noqa: PLR2004
            break
        length, name = int.from_bytes(header[:4], "big"), header[4:8]
        if length == 1:
            length = int.from_bytes(header[8:16], "big")
        if length < 8:  # noqa: PLR2004 - 0 means "to the end of the file"; others are broken
            break
        names.add(name)
        position += length
    return position, names


def _segment_end(head: bytes) -> int:
    at = head.find(_SEGMENT_ID)
    if at < 0 or at + 12 > len(head):
        return 0
    first = head[at + 4]
    octets = 9 - first.bit_length()
    if not 1 <= octets <= 8:  # noqa: PLR2004
        return 0
    value = int.from_bytes(head[at + 4 : at + 4 + octets], "big") & ((1 << 7 * octets) - 1)
    unknown = value == (1 << 7 * octets) - 1  # as live recordings have it
    return 0 if unknown else at + 4 + octets + value
