"""Packet headers: what they say of a picture is what the decoder says."""

from __future__ import annotations

import av
import clips
import pytest

from streamproc.video.bitstream import DISPOSABLE, LAYER, START, UNUSUAL, packet_inspector

INTRA = 1
NAMES = [
    "h264",
    "h264_pyramid",
    "h264_open_gop",
    "hevc",
    "hevc_open_gop",
    "hevc_ts",
    "h264_ts",
    "mpeg4_b",
]
MORE_NAMES = [
    "mpeg2",
    "mpeg1",
    "vp8_alt_ref",
    "vp9",
    "vp9_alt_ref",
    "msmpeg4v2",
    "msmpeg4v3",
    "wmv1",
    "wmv2",
    "mpeg4_avi_b",
]


@pytest.mark.parametrize("name", NAMES + MORE_NAMES)
def test_starts_are_intra_pictures(name, tmp_path):
    """Every start is decoded as an intra picture, and none that can be skipped is one."""
    with av.open(str(clips.make(name, tmp_path))) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_type = "NONE"
        context.thread_count = 1
        inspect = packet_inspector(context.codec.canonical_name, context.extradata or b"")
        flags = {}
        kinds = {}
        for packet in container.demux(stream):
            if packet.size:
                flags[packet.pts] = inspect(memoryview(packet))
            kinds |= {picture.pts: picture.pict_type for picture in packet.decode()}
    starts = [pts for pts, bits in flags.items() if bits & START]
    assert len(starts) >= 4
    has_types = "vp" not in name  # these decoders say "P" of all but key frames
    for pts, bits in flags.items():
        if has_types and bits & START:
            assert kinds[pts] == INTRA
        if bits & DISPOSABLE:
            assert kinds[pts] != INTRA
    assert not any(bits & UNUSUAL for pts, bits in flags.items() if pts in kinds)


H264 = packet_inspector("h264", b"")
HEVC = packet_inspector("hevc", b"")


@pytest.mark.parametrize(
    ("inspect", "packet", "expected"),
    [
        (H264, b"\0\0\1\x65\x88\x84", START),
        (H264, b"\0\0\1\x61\x88\x84", START),  # an I slice that is no IDR, as recovery points are
        (H264, b"\0\0\1\x41\x9a\x84", 0),
        (H264, b"\0\0\1\x01\x9e\x84", DISPOSABLE),
        # a picture that comes with a parameter set: it cannot be skipped
        (H264, b"\0\0\1\x68\xee\x84\0\0\1\x01\x9e\x84", 0),
        (H264, b"\0\0\1\x09\x10\0\0\1\x06\x05", UNUSUAL),
        (H264, b"", UNUSUAL),
        (HEVC, b"\0\0\1\x26\x01\xaf", START),  # IDR_W_RADL
        (HEVC, b"\0\0\1\x2a\x01\xaf", START),  # CRA
        (HEVC, b"\0\0\1\x02\x01\xd0", 0),  # TRAIL_R
        (HEVC, b"\0\0\1\x00\x01\xd0", DISPOSABLE),  # TRAIL_N
        (HEVC, b"\0\0\1\x00\x03\xd0", DISPOSABLE | 2),  # the same in the third layer
        (HEVC, b"\0\0\1\x46\x01\x50", UNUSUAL),
        # packed B-frames
        (packet_inspector("mpeg4", b""), b"\0\0\1\xb6\x10\0\0\0\1\xb6\x90", UNUSUAL),
        (packet_inspector("mpeg4", b""), b"\0\0\1\xb6\x90", DISPOSABLE),
        (packet_inspector("mpeg4", b""), b"\x7f", UNUSUAL),
        (packet_inspector("mpeg2video", b""), b"\0\0\1\0\0\x18\0", DISPOSABLE),
        (packet_inspector("mpeg2video", b""), b"\0\0\1", UNUSUAL),
        (packet_inspector("vp8", b""), b"\x10", START),
        # an alt-ref picture in a packet of its own
        (packet_inspector("vp8", b""), b"\x01", UNUSUAL),
        (packet_inspector("vp9", b""), b"\x82\x49", START),
        (packet_inspector("vp9", b""), b"\x84\x00", UNUSUAL),
        (packet_inspector("vp9", b""), b"\x88\x00", 0),
    ],
)
def test_headers(inspect, packet, expected):
    """Each header gives the flags that its codec's specification says."""
    assert inspect(memoryview(packet)) == expected


def test_layers_fit_their_bits():
    """The bits of the layer overlap no other flag."""
    assert LAYER & (START | DISPOSABLE | UNUSUAL) == 0


def test_size_prefixes_are_read_as_the_record_says():
    """Sizes of two octets, as the avcC record says, are read."""
    inspect = packet_inspector("h264", b"\x01\x64\x00\x0a\xfd")
    assert inspect(memoryview(b"\0\2\x09\x10\0\3\x01\x9e\x84")) == DISPOSABLE


def test_a_codec_without_an_inspector_is_not_inspected():
    """A codec whose packets are not inspected has no inspector."""
    assert packet_inspector("ffv1", b"") is None
