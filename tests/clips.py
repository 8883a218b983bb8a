"""Small clips of every kind that decoding must get right, made with PyAV.

Each shows texture that moves, and most have several key frames. `CLIPS` names them;
`make(name, folder)` writes one and returns its path. The same name always gives the same pictures.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING

import av
import numpy as np

if TYPE_CHECKING:
    from pathlib import Path

RATE = 25


@dataclass(frozen=True)
class Clip:
    """How one clip is encoded; `suffix` picks the container."""

    encoder: str
    suffix: str = "mp4"
    options: dict[str, str] = field(default_factory=dict)
    width: int = 96
    height: int = 72
    frames: int = 60
    pixel_format: str = "yuv420p"
    variable_rate: bool = False
    rotation: int = 0
    hflip: bool = False
    first_pts: int = 0
    """How many frames late the first frame is; negative: an edit list hides what is before 0."""
    color_range: int | None = None
    colorspace: int | None = None
    container_options: dict[str, str] = field(default_factory=dict)
    format: str | None = None


def picture(number: int, width: int, height: int) -> np.ndarray:
    """The RGB picture (height, width, 3) `number`; its texture moves, so no two are alike."""
    rng = np.random.default_rng(7)
    texture = rng.integers(0, 256, (height // 4 + 64, width // 4 + 64, 3), dtype=np.uint8)
    blocks = texture.repeat(4, axis=0).repeat(4, axis=1)
    moved = np.roll(blocks, (2 * number, 3 * number), (0, 1))[:height, :width].astype(np.int16)
    y, x = np.mgrid[:height, :width]
    wave = 40 * np.sin((x + 5 * number) / 9.0) + 30 * np.cos((y - 3 * number) / 7.0)
    return np.clip(moved // 2 + 64 + wave[..., None], 0, 255).astype(np.uint8)


def write(path: Path, clip: Clip) -> Path:
    """Encode `clip` into `path`."""
    options = {"threads": "1", **clip.options}
    with av.open(str(path), "w", format=clip.format, options=clip.container_options) as container:
        stream = container.add_stream(clip.encoder, rate=RATE, options=options)
        stream.width = clip.width
        stream.height = clip.height
        stream.pix_fmt = clip.pixel_format
        stream.codec_context.time_base = Fraction(1, RATE)
        if clip.color_range is not None:
            stream.codec_context.color_range = clip.color_range
        if clip.colorspace is not None:
            stream.codec_context.colorspace = clip.colorspace
        if clip.rotation or clip.hflip:
            stream.set_display_rotation(clip.rotation, hflip=clip.hflip)
        for number in range(clip.frames):
            frame = av.VideoFrame.from_ndarray(
                picture(number, clip.width, clip.height), format="rgb24"
            )
            frame = frame.reformat(
                format=clip.pixel_format,
                dst_colorspace=clip.colorspace,
                dst_color_range=clip.color_range,
            )
            frame.pts = number + clip.first_pts + (number // 5 * 3 if clip.variable_rate else 0)
            frame.time_base = Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


_X264 = {"preset": "veryfast", "g": "12", "keyint_min": "12", "sc_threshold": "0"}
_H264 = Clip("libx264", options=_X264 | {"bf": "2"})
_X265 = "log-level=none:pools=none:frame-threads=1:scenecut=0:"
_HEVC = Clip(
    "libx265",
    options={"preset": "ultrafast", "x265-params": f"{_X265}keyint=12:min-keyint=12:bframes=3"},
)
_VP9 = Clip(
    "libvpx-vp9", "webm", {"g": "15", "deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0"}
)


def _x265(clip: Clip, more: str) -> Clip:
    return replace(
        clip, options=clip.options | {"x265-params": clip.options["x265-params"] + ":" + more}
    )


CLIPS: dict[str, Clip] = {
    "h264": _H264,
    "h264_no_b": replace(_H264, options=_X264 | {"bf": "0"}),
    "h264_pyramid": replace(
        _H264, options=_X264 | {"bf": "5", "b-pyramid": "normal", "b_strategy": "0", "refs": "4"}
    ),
    "h264_open_gop": replace(
        _H264, options=_X264 | {"bf": "3", "b_strategy": "0", "x264-params": "open-gop=1"}
    ),
    "h264_intra_refresh": replace(_H264, options=_X264 | {"bf": "0", "intra-refresh": "1"}),
    "h264_one_gop": replace(_H264, options=_X264 | {"g": "250", "bf": "3"}),
    "h264_slices": replace(_H264, options=_X264 | {"bf": "2", "slices": "4"}),
    "h264_interlaced": replace(
        _H264, options=_X264 | {"bf": "2", "x264-params": "interlaced=1"}, height=96
    ),
    "h264_10bit": replace(_H264, pixel_format="yuv420p10le"),
    "h264_422": replace(_H264, pixel_format="yuv422p"),
    "h264_444_odd": replace(_H264, pixel_format="yuv444p", width=97, height=75),
    "h264_full_range_709": replace(_H264, color_range=2, colorspace=1),
    "h264_limited_601": replace(_H264, color_range=1, colorspace=5),
    "h264_variable_rate": replace(_H264, variable_rate=True),
    "h264_mkv": replace(_H264, suffix="mkv"),
    "h264_ts": replace(_H264, suffix="ts"),
    "h264_flv": replace(_H264, suffix="flv"),
    "h264_raw": replace(_H264, suffix="h264"),
    "h264_avi": replace(_H264, suffix="avi"),
    "h264_fragmented": replace(_H264, container_options={"movflags": "frag_keyframe+empty_moov"}),
    "h264_rotated_90": replace(_H264, rotation=90),
    "h264_rotated_180": replace(_H264, rotation=180),
    "h264_rotated_270": replace(_H264, rotation=270),
    "h264_mirrored": replace(_H264, hflip=True),
    "h264_rotated_mirrored": replace(_H264, rotation=90, hflip=True),
    "h264_starts_late": replace(_H264, first_pts=100),
    "hevc": _x265(_HEVC, "open-gop=0"),
    "hevc_open_gop": _x265(_HEVC, "open-gop=1"),
    "hevc_radl": _x265(_HEVC, "open-gop=0:radl=2"),
    "hevc_temporal_layers": _x265(_HEVC, "open-gop=0:temporal-layers=1:b-adapt=0:b-pyramid=1"),
    "hevc_mkv": replace(_x265(_HEVC, "open-gop=1"), suffix="mkv"),
    "hevc_ts": replace(_x265(_HEVC, "open-gop=1"), suffix="ts"),
    "hevc_10bit": replace(_x265(_HEVC, "open-gop=0"), pixel_format="yuv420p10le"),
    "vp9": _VP9,
    "vp9_alt_ref": replace(
        _VP9,
        options=_VP9.options | {"auto-alt-ref": "1", "lag-in-frames": "12", "deadline": "good"},
    ),
    "vp9_odd": replace(_VP9, width=97, height=75),
    "vp9_odd_width": replace(_VP9, width=99, height=74),
    "vp8_alt_ref": Clip(
        "libvpx",
        "webm",
        {
            "g": "15",
            "auto-alt-ref": "1",
            "lag-in-frames": "12",
            "cpu-used": "4",
            "deadline": "good",
        },
    ),
    "av1": Clip(
        "libsvtav1", "mp4", {"preset": "12", "g": "15", "svtav1-params": "lp=1"}, frames=40
    ),
    "av1_webm": Clip(
        "libsvtav1", "webm", {"preset": "12", "g": "15", "svtav1-params": "lp=1"}, frames=40
    ),
    "mpeg4_b": Clip("mpeg4", "mp4", {"g": "12", "bf": "2"}),
    "mpeg4_avi_b": Clip("mpeg4", "avi", {"g": "12", "bf": "2"}),
    "mpeg4_odd": Clip("mpeg4", "mp4", {"g": "12"}, width=97, height=75),
    "mpeg2": Clip("mpeg2video", "mpg", {"g": "12", "bf": "2"}),
    "mpeg2_ts": Clip("mpeg2video", "ts", {"g": "12", "bf": "2"}),
    "mpeg2_mp4_closed": Clip(
        "mpeg2video", "mp4", {"g": "12", "bf": "2", "flags": "+cgop", "sc_threshold": "1000000000"}
    ),
    "mpeg2_interlaced": Clip(
        "mpeg2video", "mp4", {"g": "12", "bf": "2", "flags": "+ilme+ildct"}, height=96
    ),
    "mpeg1": Clip("mpeg1video", "mpg", {"g": "12", "bf": "2"}),
    "mjpeg_avi": Clip("mjpeg", "avi", pixel_format="yuvj420p"),
    "mjpeg_422_odd": Clip("mjpeg", "mkv", pixel_format="yuvj422p", width=97, height=75),
    "mjpeg_444": Clip("mjpeg", "mov", pixel_format="yuvj444p"),
    "msmpeg4v2": Clip("msmpeg4v2", "avi", {"g": "12"}),
    "msmpeg4v3": Clip("msmpeg4", "avi", {"g": "12"}),
    "wmv1": Clip("wmv1", "asf", {"g": "12"}),
    "wmv2": Clip("wmv2", "asf", {"g": "12"}),
    "flv1": Clip("flv", "flv", {"g": "12"}),
    "h263": Clip("h263", "avi", {"g": "12"}, width=176, height=144, frames=30),
    "ffv1": Clip("ffv1", "mkv", {"g": "12", "level": "3"}),
    "huffyuv": Clip("huffyuv", "avi", pixel_format="yuv422p", frames=30),
    "utvideo": Clip("utvideo", "avi", pixel_format="yuv420p", frames=30),
    "prores": Clip("prores_ks", "mov", pixel_format="yuv422p10le", frames=30),
    "png": Clip("png", "mov", pixel_format="rgb24", frames=30),
    "raw_nv12": Clip("rawvideo", "mkv", pixel_format="nv12", frames=30),
    "gray": Clip("ffv1", "mkv", {"g": "12"}, pixel_format="gray", frames=30),
}


def make(name: str, folder: Path) -> Path:
    """Write the clip called `name` into `folder`."""
    clip = CLIPS[name]
    return write(folder / f"{name}.{clip.suffix}", clip)


def remux(
    source: Path, target: Path, *, shift: int = 0, options: dict[str, str] | None = None
) -> Path:
    """Copy the video packets.

    `shift` is added to all time stamps, in frames (negative: an edit list hides some).
    """
    with (
        av.open(str(source)) as reading,
        av.open(str(target), "w", options=options or {}) as writing,
    ):
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        ticks = round(shift / RATE / stream.time_base)
        for packet in reading.demux(stream):
            if packet.dts is None:
                continue
            packet.pts = packet.pts + ticks
            packet.dts = packet.dts + ticks
            packet.stream = copy
            writing.mux(packet)
    return target


def cut(source: Path, target: Path, *, keep_from: float = 0.0, keep_to: float = 1.0) -> Path:
    """A part of the file's bytes, as a broken copy leaves it."""
    data = source.read_bytes()
    target.write_bytes(data[int(len(data) * keep_from) : int(len(data) * keep_to)])
    return target


def damage(source: Path, target: Path, *, at: float = 0.6, octets: int = 40) -> Path:
    """The file with some bytes in its middle overwritten by noise, three times."""
    data = bytearray(source.read_bytes())
    rng = np.random.default_rng(3)
    for step in range(3):
        start = int(len(data) * at) + 700 * step
        data[start : start + octets] = rng.integers(0, 256, octets, dtype=np.uint8).tobytes()
    target.write_bytes(data)
    return target


def write_with_two_sizes(path: Path, larger: tuple[int, int] = (128, 96)) -> Path:
    """An mjpeg avi whose frames 10..19 are larger than the stream says."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mjpeg", rate=RATE)
        stream.width = 96
        stream.height = 72
        stream.pix_fmt = "yuvj420p"
        for number in range(20):
            if number % 10 == 0:
                encoder = av.CodecContext.create("mjpeg", "w")
                encoder.width, encoder.height = (96, 72) if number < 10 else larger
                encoder.pix_fmt = "yuvj420p"
                encoder.time_base = Fraction(1, RATE)
                encoder.framerate = RATE
            frame = av.VideoFrame.from_ndarray(
                picture(number, encoder.width, encoder.height), format="rgb24"
            )
            frame = frame.reformat(format="yuvj420p")
            frame.pts = number
            frame.time_base = Fraction(1, RATE)
            for packet in encoder.encode(frame):
                packet.stream = stream
                packet.time_base = Fraction(1, RATE)
                container.mux(packet)
    return path


def write_audio(path: Path) -> Path:
    """A file that holds sound only."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        frame = av.AudioFrame.from_ndarray(
            np.zeros((2, 4096), np.float32), format="fltp", layout="stereo"
        )
        frame.sample_rate = 44100
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def with_sound(source: Path, target: Path, seconds: float) -> Path:
    """The video packets of `source` beside silence of this length."""
    with av.open(str(source)) as reading, av.open(str(target), "w") as writing:
        stream = reading.streams.video[0]
        copy = writing.add_stream_from_template(stream)
        sound = writing.add_stream("aac", rate=44100)
        for start in range(0, int(seconds * 44100), 1024):
            frame = av.AudioFrame.from_ndarray(
                np.zeros((2, 1024), np.float32), format="fltp", layout="stereo"
            )
            frame.sample_rate = 44100
            frame.pts = start
            writing.mux(sound.encode(frame))
        writing.mux(sound.encode(None))
        for packet in reading.demux(stream):
            if packet.dts is not None:
                packet.stream = copy
                writing.mux(packet)
    return target
