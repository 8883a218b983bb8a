"""Whether a file is shorter than its own container says.

FFmpeg reads a truncated file without an error.

Reads only the outermost boxes (ISO/IEC 14496-12), the EBML segment (RFC 8794, RFC 9559) or the RIFF
header.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from pathlib import Path

_FIRST_BOXES = (b"ftyp", b"moov", b"mdat", b"free", b"wide", b"skip")
_MAX_BOXES = 10_000
_BOX_HEADER_OCTETS = 8  # size and name

_RIFF_HEADER_OCTETS = 8  # name and size of what follows

_EBML_MAGIC = b"\x1a\x45\xdf\xa3"
_SEGMENT_ID = b"\x18\x53\x80\x67"
_MAX_EBML_SIZE_OCTETS = 8


def is_truncated(path: Path) -> bool:
    """True where the file ends before its container does; false where that cannot be told."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(4096)
        if head[4:8] in _FIRST_BOXES:
            return _read_boxes(file, size)[0] > size
        if head.startswith(_EBML_MAGIC):
            return _segment_end(head) > size
        if head.startswith(b"RIFF") and len(head) >= _RIFF_HEADER_OCTETS:
            return int.from_bytes(head[4:8], "little") + _RIFF_HEADER_OCTETS > size
    return False


def lacks_moov(path: Path) -> bool:
    """True for an mp4 or mov without the box that says where its frames are.

    A recording that was cut off has none.
    """
    with path.open("rb") as file:
        if file.read(8)[4:8] not in _FIRST_BOXES:
            return False
        return b"moov" not in _read_boxes(file, path.stat().st_size)[1]


def _read_boxes(file: BinaryIO, size: int) -> tuple[int, set[bytes]]:
    """Where the last outermost box should end, and the names of all of them."""
    position = 0
    names: set[bytes] = set()
    for _ in range(_MAX_BOXES):
        file.seek(position)
        header = file.read(2 * _BOX_HEADER_OCTETS)
        if position >= size or len(header) < _BOX_HEADER_OCTETS:
            break
        length = int.from_bytes(header[:4], "big")
        if length == 1:  # the real size follows the name
            length = int.from_bytes(header[8:16], "big")
        if length < _BOX_HEADER_OCTETS:  # 0: up to the end of the file; others are damaged
            break
        names.add(header[4:8])
        position += length
    return position, names


def _segment_end(head: bytes) -> int:
    """Where the EBML segment should end; 0 where that is not known."""
    at = head.find(_SEGMENT_ID)
    if at < 0 or at + 12 > len(head):
        return 0
    at += len(_SEGMENT_ID)
    octets = 9 - head[at].bit_length()  # the leading zeros of the first octet tell how many
    if octets > _MAX_EBML_SIZE_OCTETS:
        return 0
    all_ones = (1 << 7 * octets) - 1
    value = int.from_bytes(head[at : at + octets], "big") & all_ones
    if value == all_ones:  # unknown, as in live recordings
        return 0
    return at + octets + value
