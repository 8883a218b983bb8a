"""Reads once, when a video is opened, all that must be known of it.

Its first picture, its packets, its frames, and what is missing from its end.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import av
import numpy as np

from streamproc.errors import VideoError
from streamproc.video.index import (
    NO_TIME,
    PacketIndex,
    Timeline,
    must_decode_to_count,
    read_index,
    timeline_from_packets,
    timeline_of_outputs,
)
from streamproc.video.pixels import Orientation
from streamproc.video.reader import Counts, PacketReader
from streamproc.video.source import Source, declared_seconds, open_stream, seconds_per_tick
from streamproc.video.truncation import is_truncated

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from streamproc.types import Int64Array

_PACKETS_FOR_FIRST_PICTURE = 500
_NEVER_SEEK = 2**62
# A palette comes with the packet where it changes, and holds for those after it.
_PALETTE_FORMAT = "pal8"


@dataclass(frozen=True, slots=True, eq=False)
class Probe:
    """All that is known of a video before its frames are read.

    Made by `probe`, used by `Video`. `stored_size` is (width, height) before `orientation` is
    applied.
    """

    index: PacketIndex
    timeline: Timeline
    seconds_per_tick: float
    codec_name: str
    pixel_format: str
    stored_size: tuple[int, int]
    orientation: Orientation
    missing_frames: int
    missing_seconds: float


class _FirstPicture:
    """Decodes packets until the first picture comes out.

    Only a picture tells size, pixel format and display matrix.
    """

    def __init__(self, stream: VideoStream) -> None:
        self._context = stream.codec_context
        self._has_begun = False
        self.picture: av.VideoFrame | None = None

    def feed(self, packet: Packet[VideoStream] | None) -> None:
        self._decode(packet)
        if self.picture is None and not self._has_begun and packet is not None:
            # Most decoders have the picture now, and keep it back until they know that none comes
            # before it. Flushing them here saves a third of the time that opening a large video
            # takes.
            self._decode(None)
            self._context.flush_buffers()
            if self.picture is None:
                self._decode(packet)
        self._has_begun = True

    def _decode(self, packet: Packet[VideoStream] | None) -> None:
        try:
            pictures = self._context.decode(packet)
        except av.FFmpegError:
            return
        if pictures and self.picture is None:
            self.picture = pictures[0]


def probe(source: Source, decode_threads: int) -> Probe:
    """Read the whole file once, without decoding it unless its packets cannot tell its frames.

    Raises:
        VideoError: It holds no frames, none can be decoded, or it is over a limit.
    """
    container, stream = open_stream(source, threads=1)
    with container:
        tick_seconds = float(seconds_per_tick(stream))
        declared = declared_seconds(container, stream)
        _check_length(source, declared)
        source.limits.check(source.path.name, "max_frames", stream.frames, "number of frames")
        index, picture = _read_packets(source, container, stream)
        timeline = _find_timeline(source, index, stream, decode_threads)
        if picture.format.name == _PALETTE_FORMAT:
            timeline = timeline.from_first_packet()
        _check_length(source, np.ptp(timeline.pts) * tick_seconds)
        missing_frames = 0
        missing_seconds = 0.0
        if is_truncated(source.path):
            timeline, lost = _without_lost_tail(source, index, timeline)
            present = len(index) - lost
            missing_frames, missing_seconds = _missing(
                stream.frames, declared, present, timeline, tick_seconds
            )
        return Probe(
            index=index,
            timeline=timeline,
            seconds_per_tick=tick_seconds,
            codec_name=stream.codec_context.codec.canonical_name,
            pixel_format=picture.format.name,
            stored_size=(picture.width, picture.height),
            orientation=Orientation.of(picture),
            missing_frames=missing_frames,
            missing_seconds=missing_seconds,
        )


def _check_length(source: Source, seconds: float) -> None:
    source.limits.check(source.path.name, "max_duration_seconds", seconds, "length in seconds")


def _read_packets(
    source: Source, container: InputContainer, stream: VideoStream
) -> tuple[PacketIndex, av.VideoFrame]:
    """Index all packets, and decode the first picture on the way."""
    first = _FirstPicture(stream)
    name = source.path.name
    limits = source.limits

    def on_packet(packet: Packet[VideoStream], count: int) -> None:
        if count > limits.max_frames:
            limits.check(name, "max_frames", count, "number of frames")
        if first.picture is None and count <= _PACKETS_FOR_FIRST_PICTURE:
            first.feed(packet)

    index = read_index(container, stream, on_packet)
    if not len(index):
        raise VideoError(f"{name}: its video track holds no frames; record or convert it again")
    if first.picture is None:
        first.feed(None)
    if first.picture is None:
        raise VideoError(
            f"{name}: no picture can be decoded from its {len(index)} packets; "
            "it is damaged or no video"
        )
    size = first.picture.width * first.picture.height
    limits.check(name, "max_pixels_per_frame", size, "frame size in pixels")
    return index, first.picture


def _find_timeline(
    source: Source, index: PacketIndex, stream: VideoStream, decode_threads: int
) -> Timeline:
    codec = stream.codec_context.codec.canonical_name
    timeline = None
    if not must_decode_to_count(index, stream):
        timeline = timeline_from_packets(index, codec)
    if timeline is None:
        output_pts = _decoded_pts(source, index, 0, decode_threads)
        timeline = timeline_from_packets(index, codec, output_pts)
        if timeline is None:
            timeline = timeline_of_outputs(_fill_in_times(output_pts, index, stream))
    if not len(timeline.pts):
        raise VideoError(
            f"{source.path.name}: the decoder puts out no frames; record or convert it again"
        )
    return timeline


def _decoded_pts(source: Source, index: PacketIndex, first: int, decode_threads: int) -> Int64Array:
    """The times, in ticks, of the pictures that come out from packet `first` on."""
    reader = PacketReader(
        source, index, Counts(), seek_gap_bytes=_NEVER_SEEK, decode_threads=decode_threads
    )
    try:
        reader.go_to(first)
        times = [
            NO_TIME if picture.pts is None else picture.pts
            for picture in reader.decode_through(len(index) - 1)
        ]
    finally:
        reader.close()
    return np.array(times, np.int64)


def _fill_in_times(pts: Int64Array, index: PacketIndex, stream: VideoStream) -> Int64Array:
    """Give frames without a time one: as many ticks apart as the packets or the rate say."""
    rate = stream.average_rate or stream.guessed_rate
    step = index.last_duration
    if not step:
        step = round(1 / (rate * seconds_per_tick(stream))) if rate else 1
    return np.where(pts == NO_TIME, np.arange(len(pts)) * step, pts).astype(np.int64)


def _without_lost_tail(
    source: Source, index: PacketIndex, timeline: Timeline
) -> tuple[Timeline, int]:
    """Leave out frames of the last group of pictures that do not come out; return how many.

    A truncated file's last packets may be incomplete.
    """
    if not timeline.exact:
        return timeline, 0
    start = int(timeline.starts[-1])
    given = _decoded_pts(source, index, start, decode_threads=1)
    is_lost = (timeline.ordinals >= start) & ~np.isin(timeline.pts, given)
    is_leading = timeline.pts < index.pts[start]  # these cannot be decoded from here
    lost = np.flatnonzero(is_lost & ~is_leading)
    kept = timeline.without(lost.tolist())
    return (kept, len(lost)) if len(kept.pts) else (timeline, 0)


def _missing(
    declared_frames: int, declared: float, present: int, timeline: Timeline, tick_seconds: float
) -> tuple[int, float]:
    """The frames and seconds that a truncated file's header declares and that it does not hold.

    `declared` is in seconds; each of the two is 0 where the header does not declare it.
    """
    span = float(np.ptp(timeline.pts)) * tick_seconds
    frame_seconds = span / (len(timeline.pts) - 1) if span else 0.0
    seconds = max(0.0, declared - span - frame_seconds)
    if declared_frames:
        frames = max(0, declared_frames - present)
        return frames, max(seconds, frames * frame_seconds)
    return (round(seconds / frame_seconds) if frame_seconds else 0), seconds
