"""Headers: what they say of a picture is what the decoder says."""

from __future__ import annotations

import av
import clips
import pytest

from streamproc.video.bitstream import LAYER, NEEDLESS, START, UNUSUAL, look_for

INTRA, BIDIRECTIONAL = 1, 3
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
    """Every start is decoded as an intra picture, and every needless one as none (B or P)."""
    with av.open(str(clips.make(name, tmp_path))) as container:
        stream = container.streams.video[0]
        context = stream.codec_context
        context.thread_type, context.thread_count = "NONE", 1
        look = look_for(context.codec.canonical_name, context.extradata or b"")
        looks, kinds = {}, {}
        for packet in container.demux(stream):
            if packet.size:
                looks[packet.pts] = look(memoryview(packet))
            kinds |= {picture.pts: picture.pict_type for picture in packet.decode()}
    starts = [pts for pts, bits in looks.items() if bits & START]
    assert len(starts) >= 4
    has_types = "vp" not in name  # these decoders say "P" of all but key frames
    for pts, bits in looks.items():
        if has_types and bits & START:
            assert kinds[pts] == INTRA
        if bits & NEEDLESS:
            assert kinds[pts] != INTRA
    assert not any(bits & UNUSUAL for pts, bits in looks.items() if pts in kinds)


H264 = look_for("h264", b"")
HEVC = look_for("hevc", b"")


@pytest.mark.parametrize(
    ("look", "packet", "expected"),
    [
        (H264, b"\0\0\1\x65\x88\x84", START),
        (H264, b"\0\0\1\x61\x88\x84", START),  # an I slice that is no IDR, as recovery points are
        (H264, b"\0\0\1\x41\x9a\x84", 0),
        (H264, b"\0\0\1\x01\x9e\x84", NEEDLESS),
        (
            H264,
            b"\0\0\1\x68\xee\x84\0\0\1\x01\x9e\x84",
            0,
        ),  # brings a parameter set: cannot be skipped
        (H264, b"\0\0\1\x09\x10\0\0\1\x06\x05", UNUSUAL),
        (H264, b"", UNUSUAL),
        (HEVC, b"\0\0\1\x26\x01\xaf", START),  # IDR_W_RADL
        (HEVC, b"\0\0\1\x2a\x01\xaf", START),  # CRA
        (HEVC, b"\0\0\1\x02\x01\xd0", 0),  # TRAIL_R
        (HEVC, b"\0\0\1\x00\x01\xd0", NEEDLESS),  # TRAIL_N
        (HEVC, b"\0\0\1\x00\x03\xd0", NEEDLESS | 2),  # the same in the third layer
        (HEVC, b"\0\0\1\x46\x01\x50", UNUSUAL),
        (look_for("mpeg4", b""), b"\0\0\1\xb6\x10\0\0\0\1\xb6\x90", UNUSUAL),  # packed B-frames
        (look_for("mpeg4", b""), b"\0\0\1\xb6\x90", NEEDLESS),
        (look_for("mpeg4", b""), b"\x7f", UNUSUAL),
        (look_for("mpeg2video", b""), b"\0\0\1\0\0\x18\0", NEEDLESS),
        (look_for("mpeg2video", b""), b"\0\0\1", UNUSUAL),
        (look_for("vp8", b""), b"\x10", START),
        (look_for("vp8", b""), b"\x01", UNUSUAL),  # an alt-ref picture in a packet of its own
        (look_for("vp9", b""), b"\x82\x49", START),
        (look_for("vp9", b""), b"\x84\x00", UNUSUAL),
        (look_for("vp9", b""), b"\x88\x00", 0),
    ],
)
def test_headers(look, packet, expected):
    assert look(memoryview(packet)) == expected


def test_layers_fit_their_bits():
    assert LAYER & (START | NEEDLESS | UNUSUAL) == 0


def test_size_prefixes_are_read_as_the_record_says():
    """avcC with two-octet sizes."""
    look = look_for("h264", b"\x01\x64\x00\x0a\xfd")
    assert look(memoryview(b"\0\2\x09\x10\0\3\x01\x9e\x84")) == NEEDLESS


def test_codecs_without_a_look_are_believed():
    assert look_for("ffv1", b"") is None
