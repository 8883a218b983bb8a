"""What a packet's first bytes say about its picture.

Whether decoding can start with it, whether other pictures need it, and whether it is shown at all.

A container's key frame flags are not trusted: some files flag all packets, some flag the start of a
gradual refresh. Only the headers before the picture's data are read: NAL unit and slice headers
(H.264 7.3.1 and 7.3.3, H.265 7.3.1.2), picture and VOP headers (MPEG-2 6.2.3, MPEG-4 part 2 6.2.5),
and the first octets of VP8 (RFC 6386 9.1), VP9 and MS-MPEG4 frames.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import TypeAlias

    PacketInspector: TypeAlias = Callable[[memoryview], int]

START = 0x40
"""An intra picture from which decoding can start, if the container flags it as well."""
DISPOSABLE = 0x80
"""No picture of the same or a lower temporal layer needs this one."""
UNUSUAL = 0x20
"""The packet does not hold exactly one shown picture: only decoding tells what comes out."""
LAYER = 0x07
"""The mask of the temporal layer."""

_HEAD_OCTETS = 4096  # start codes are searched for in so many of a packet

# Codecs whose packets hold one picture each and whose key frames are clean starts, unless
# `packet_inspector` says otherwise. Any other codec is decoded from the beginning of the file.
TRUSTED_CODECS = frozenset(
    {
        "av1",
        "dnxhd",
        "ffv1",
        "h264",
        "hevc",
        "huffyuv",
        "mjpeg",
        "mpeg1video",
        "mpeg2video",
        "mpeg4",
        "msmpeg4v2",
        "msmpeg4v3",
        "png",
        "prores",
        "rawvideo",
        "utvideo",
        "vp8",
        "vp9",
        "wmv1",
        "wmv2",
    }
)

# The configuration records of mp4 and mkv (ISO/IEC 14496-15), which say how long the size before
# each NAL unit is.
_AVCC_MIN_OCTETS = 5
_HVCC_MIN_OCTETS = 23
_START_CODES = (b"\0\0\0", b"\0\0\1")

# NAL unit types (H.264 table 7-1) and slice types (table 7-6: I and SI, twice).
_H264_IDR = 5
_H264_SLICES = (1, 2, _H264_IDR)
_H264_PARAMETER_SETS = (7, 8, 13, 15)
_H264_INTRA_SLICES = (2, 4, 7, 9)

# NAL unit types (H.265 table 7-1).
_HEVC_SLICES = range(32)
_HEVC_SUB_LAYER_NON_REFERENCE = range(0, 16, 2)  # TRAIL_N to RSV_VCL_N14
_HEVC_IRAP = range(16, 24)
_HEVC_PARAMETER_SETS = (32, 33, 34)

# Coding types of pictures (MPEG-4 part 2 table 6-20, MPEG-2 table 6-12).
_MPEG4_I = 0
_MPEG4_B = 2
_MPEG12_I = 1
_MPEG12_B = 3

_VP9_PROFILE_3 = 0x30  # both of the profile's bits
_VP9_SUPERFRAME_MASK = 0xE0
_VP9_SUPERFRAME_MARKER = 0xC0


def packet_inspector(codec: str, extradata: bytes) -> PacketInspector | None:
    """Return a function that gives a packet of this codec its flags, the bits above.

    It takes the packet's octets, at least one. None if the codec's key frame flags can be trusted.
    """
    if codec == "h264":
        is_avcc = len(extradata) >= _AVCC_MIN_OCTETS and extradata[0] == 1
        return _H264((extradata[4] & 3) + 1 if is_avcc else 0).inspect
    if codec == "hevc":
        is_hvcc = len(extradata) >= _HVCC_MIN_OCTETS and extradata[:3] not in _START_CODES
        return _Hevc((extradata[21] & 3) + 1 if is_hvcc else 0).inspect
    return {
        "mpeg4": _inspect_mpeg4,
        "mpeg1video": _inspect_mpeg12,
        "mpeg2video": _inspect_mpeg12,
        "vp8": _inspect_vp8,
        "vp9": _inspect_vp9,
        "msmpeg4v2": _inspect_msmpeg4,
        "msmpeg4v3": _inspect_msmpeg4,
        "wmv1": _inspect_msmpeg4,
        "wmv2": _inspect_wmv2,
    }.get(codec)


@dataclass(frozen=True, slots=True)
class _H264:
    length_octets: int
    """How long the size before each NAL unit is; 0 for Annex B, which has start codes."""

    def inspect(self, packet: memoryview) -> int:
        has_parameters = False
        for at in _nal_starts(packet, self.length_octets):
            kind = packet[at] & 0x1F
            has_parameters |= kind in _H264_PARAMETER_SETS
            if kind in _H264_SLICES:
                slice_type = _h264_slice_type(bytes(packet[at + 1 : at + 17]))
                is_start = kind == _H264_IDR or slice_type in _H264_INTRA_SLICES
                is_reference = packet[at] & 0x60 != 0  # nal_ref_idc
                # Later pictures may use parameters that came with this one.
                is_disposable = not is_reference and not has_parameters
                return START * is_start | DISPOSABLE * is_disposable
        return UNUSUAL


@dataclass(frozen=True, slots=True)
class _Hevc:
    length_octets: int
    """As `_H264.length_octets`."""

    def inspect(self, packet: memoryview) -> int:
        has_parameters = False
        for at in _nal_starts(packet, self.length_octets):
            kind = packet[at] >> 1 & 0x3F
            has_parameters |= kind in _HEVC_PARAMETER_SETS
            if kind in _HEVC_SLICES and at + 1 < len(packet):
                layer = max((packet[at + 1] & 7) - 1, 0)
                is_start = kind in _HEVC_IRAP
                is_disposable = kind in _HEVC_SUB_LAYER_NON_REFERENCE and not has_parameters
                return layer | START * is_start | DISPOSABLE * is_disposable
        return UNUSUAL


def _nal_starts(packet: memoryview, length_octets: int) -> Iterator[int]:
    """The positions of the NAL units' headers."""
    if length_octets:
        at = 0
        while at + length_octets < len(packet):
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
    """The second Exp-Golomb number of a slice header, after first_mb_in_slice; -1 if cut off."""
    payload = header.replace(b"\0\0\3", b"\0\0")  # without emulation prevention
    bits = int.from_bytes(payload, "big")
    bits_left = len(payload) * 8
    number = -1
    for _ in range(2):
        zeros = bits_left - bits.bit_length()
        bits_left -= 2 * zeros + 1
        if bits_left < 0:
            return -1
        number = (bits >> bits_left) - 1
        bits &= (1 << bits_left) - 1
    return number


def _inspect_mpeg4(packet: memoryview) -> int:
    data = bytes(packet)
    at = data.find(b"\0\0\1\xb6")
    if not 0 <= at < len(data) - 4 or data.find(b"\0\0\1\xb6", at + 4) >= 0:
        return UNUSUAL  # two pictures in one packet: "packed B-frames"
    kind = data[at + 4] >> 6
    return START * (kind == _MPEG4_I) | DISPOSABLE * (kind == _MPEG4_B)


def _inspect_mpeg12(packet: memoryview) -> int:
    head = bytes(packet[:_HEAD_OCTETS])
    at = head.find(b"\0\0\1\0")
    if not 0 <= at < len(head) - 5:
        return UNUSUAL
    kind = head[at + 5] >> 3 & 7
    return START * (kind == _MPEG12_I) | DISPOSABLE * (kind == _MPEG12_B)


def _inspect_vp8(packet: memoryview) -> int:
    is_start = packet[0] & 1 == 0
    is_shown = packet[0] & 0x10 != 0
    return START * is_start | UNUSUAL * (not is_shown)


def _inspect_vp9(packet: memoryview) -> int:
    first = packet[0]
    # Profile 3 has a reserved bit before show_existing_frame.
    bit = 2 if first & _VP9_PROFILE_3 == _VP9_PROFILE_3 else 3
    shows_existing = first >> bit & 1
    is_inter = first >> (bit - 1) & 1
    is_shown = first >> (bit - 2) & 1
    # A superframe holds hidden pictures together with the shown one.
    is_superframe = packet[-1] & _VP9_SUPERFRAME_MASK == _VP9_SUPERFRAME_MARKER
    is_start = not shows_existing and not is_inter
    return START * is_start | UNUSUAL * (not (shows_existing or is_shown or is_superframe))


def _inspect_msmpeg4(packet: memoryview) -> int:
    return START * (packet[0] >> 6 == 0)


def _inspect_wmv2(packet: memoryview) -> int:
    return START * (packet[0] >> 7 == 0)
