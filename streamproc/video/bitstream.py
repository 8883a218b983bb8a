"""What a packet's first bytes say of its picture: is it a clean start, do others need it, is it shown at all.

Containers are not believed about key frames: some flag all packets, some the start of a gradual
refresh. Read are only the headers before the picture's data: NAL unit and slice headers (H.264
7.3.1 and 7.3.3, H.265 7.3.1.2), picture and VOP headers (MPEG-2 6.2.3, MPEG-4 part 2 6.2.5), and
the first octets of VP8 (RFC 6386 9.1), VP9 and MS-MPEG4 frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

START = 0x40
"""An intra picture, from which decoding can begin (if the container flags it as well)."""
NEEDLESS = 0x80
"""No picture of the same or a lower temporal layer needs this one."""
UNUSUAL = 0x20
"""The packet does not hold exactly one shown picture: only decoding can tell what comes out."""
LAYER = 0x07
"""The bits of the temporal layer."""

_HEAD_OCTETS = 4096
_I_SLICES = (2, 4, 7, 9)

# Codecs whose packets hold one picture each and whose start pictures are clean, as far as
# `look_for` does not object. Anything else is decoded from its beginning. fmt: off
TRUSTED_CODECS = frozenset(
    (
        "h264",
        "hevc",
        "vp8",
        "vp9",
        "av1",
        "mpeg4",
        "mpeg1video",
        "mpeg2video",
        "msmpeg4v2",
        "msmpeg4v3",
        "wmv1",
        "wmv2",
        "mjpeg",
        "ffv1",
        "huffyuv",
        "utvideo",
        "prores",
        "dnxhd",
        "rawvideo",
        "png",
    )
)
# fmt: on


def look_for(codec: str, extradata: bytes) -> Callable[[memoryview], int] | None:
    """The function that judges a packet of this codec by the bits above.

    None if its key flags can be believed.
    """
    if codec == "h264":
        is_avcc = len(extradata) > 4 and extradata[0] == 1  # noqa: PLR2004 - the record's fifth octet has the size
        return _H264((extradata[4] & 3) + 1 if is_avcc else 0).look
    if codec == "hevc":
        is_hvcc = len(extradata) > 22 and extradata[:3] not in (b"\0\0\0", b"\0\0\1")  # noqa: PLR2004 - as above
        return _Hevc((extradata[21] & 3) + 1 if is_hvcc else 0).look
    return {
        "mpeg4": _look_mpeg4,
        "mpeg1video": _look_mpeg12,
        "mpeg2video": _look_mpeg12,
        "vp8": _look_vp8,
        "vp9": _look_vp9,
        "msmpeg4v2": _look_msmpeg4,
        "msmpeg4v3": _look_msmpeg4,
        "wmv1": _look_msmpeg4,
        "wmv2": _look_wmv2,
    }.get(codec)


_H264_IDR = 5


@dataclass(frozen=True, slots=True)
class _H264:
    length_octets: int
    """Of the size before each NAL unit; 0 for Annex B, with start codes."""

    def look(self, packet: memoryview) -> int:
        has_parameters = False
        for at in _nal_starts(packet, self.length_octets):
            kind = packet[at] & 0x1F
            has_parameters |= kind in (7, 8, 13, 15)
            if kind in (1, 2, 5):
                slice_type = _h264_slice_type(bytes(packet[at + 1 : at + 17]))
                is_start = kind == _H264_IDR or slice_type in _I_SLICES
                # Later pictures may use parameters that came with this one.
                is_needless = packet[at] & 0x60 == 0 and not has_parameters
                return START * is_start | NEEDLESS * is_needless
        return UNUSUAL


@dataclass(frozen=True, slots=True)
class _Hevc:
    length_octets: int

    def look(self, packet: memoryview) -> int:
        has_parameters = False
        for at in _nal_starts(packet, self.length_octets):
            kind = packet[at] >> 1 & 0x3F
            has_parameters |= kind in (32, 33, 34)
            if kind < 32 and at + 1 < len(packet):  # noqa: PLR2004 - the types of slices
                layer = (packet[at + 1] & 7) - 1
                is_needless = kind < 16 and kind % 2 == 0 and not has_parameters  # noqa: PLR2004 - TRAIL_N to RSV_VCL_N14
                return max(layer, 0) | START * (16 <= kind <= 23) | NEEDLESS * is_needless  # noqa: PLR2004 - IRAP
        return UNUSUAL


def _nal_starts(packet: memoryview, length_octets: int) -> Iterator[int]:
    if length_octets:
        at, size = 0, len(packet)
        while at + length_octets < size:
            length = int.from_bytes(packet[at : at + length_octets], "big")
            yield at + length_octets
            at += length_octets + length
        return
    head = bytes(packet[:_HEAD_OCTETS])
    at = head.find(b"\0\0\1")
    while 0 <= at < len(head) - 4:
        yield at + 3
        at = head.find(b"\0\0\1", at + 3)


def _h264_slice_type(header: bytes) -> int:
    """The second Exp-Golomb number of a slice header, after first_mb_in_slice."""
    payload = header.replace(b"\0\0\3", b"\0\0")
    left, number = len(payload) * 8, -1  # bits not read yet
    bits = int.from_bytes(payload, "big")
    for _ in range(2):
        zeros = left - bits.bit_length()
        left -= 2 * zeros + 1
        if left < 0:
            return -1
        number = (bits >> left) - 1
        bits &= (1 << left) - 1
    return number


def _look_mpeg4(packet: memoryview) -> int:
    data = bytes(packet)
    at = data.find(b"\0\0\1\xb6")
    if not 0 <= at < len(data) - 4 or data.find(b"\0\0\1\xb6", at + 4) >= 0:
        return UNUSUAL  # two pictures in one packet: "packed B-frames"
    kind = data[at + 4] >> 6
    return START * (kind == 0) | NEEDLESS * (kind == 2)  # noqa: PLR2004 - I and B


def _look_mpeg12(packet: memoryview) -> int:
    head = bytes(packet[:_HEAD_OCTETS])
    at = head.find(b"\0\0\1\0")
    if not 0 <= at < len(head) - 5:
        return UNUSUAL
    kind = head[at + 5] >> 3 & 7
    return START * (kind == 1) | NEEDLESS * (kind == 3)  # noqa: PLR2004 - I and B


def _look_vp8(packet: memoryview) -> int:
    return START * (packet[0] & 1 == 0) | UNUSUAL * (packet[0] & 0x10 == 0)


def _look_vp9(packet: memoryview) -> int:
    first = packet[0]
    bit = 2 if first & 0x30 == 0x30 else 3  # noqa: PLR2004 - profile 3 has a reserved bit before show_existing_frame
    shows_existing, is_inter, is_shown = (
        first >> bit & 1,
        first >> (bit - 1) & 1,
        first >> (bit - 2) & 1,
    )
    is_superframe = packet[-1] & 0xE0 == 0xC0  # noqa: PLR2004 - hidden pictures together with the shown one
    is_start = not shows_existing and not is_inter
    return START * is_start | UNUSUAL * (not (shows_existing or is_shown or is_superframe))


def _look_msmpeg4(packet: memoryview) -> int:
    return START * (packet[0] >> 6 == 0)


def _look_wmv2(packet: memoryview) -> int:
    return START * (packet[0] >> 7 == 0)
