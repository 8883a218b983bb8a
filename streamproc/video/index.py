"""One demux pass: what the file holds, packet by packet, and how each frame can be reached."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import av
import numpy as np

from streamproc.types import FrameTable
from streamproc.video.bitstream import LAYER, NEEDLESS, START, TRUSTED_CODECS, UNUSUAL, look_for

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from streamproc.types import BoolArray, Int64Array

NO_TIME = -(2**63)
_KEY, _DISCARD = 1, 2
_MAX_KEYS_BACK = (
    16  # a leading picture belongs to the group just before; more is a file made to waste time
)
_FIRST_INTERLACED_FIELD_ORDER = 2  # AVFieldOrder: 0 unknown, 1 progressive


@dataclass(slots=True, eq=False)
class PacketIndex:
    """The video packets in file order, 30 bytes each.

    Made by `read_index`, used to plan, to seek and to check.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    position: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("i"))
    flags: bytearray = field(default_factory=bytearray)
    looks: bytearray = field(default_factory=bytearray)
    last_duration: int = 0

    def __len__(self) -> int:
        return len(self.pts)

    def __repr__(self) -> str:
        return f"PacketIndex({len(self)} packets)"

    def append(self, packet: Packet[VideoStream], look: int) -> None:
        """Take the next packet of the file."""
        self.pts.append(NO_TIME if packet.pts is None else packet.pts)
        self.dts.append(NO_TIME if packet.dts is None else packet.dts)
        self.position.append(-1 if packet.pos is None else packet.pos)
        self.size.append(packet.size)
        is_start = packet.is_keyframe and look & START
        self.flags.append(_KEY * bool(is_start) | _DISCARD * packet.is_discard)
        self.looks.append(look)
        self.last_duration = packet.duration or self.last_duration

    def matches(self, ordinal: int, packet: Packet[VideoStream]) -> bool:
        """Whether this is that packet: what a seek lands on must be proved, not believed."""
        pts = NO_TIME if packet.pts is None else packet.pts
        position = -1 if packet.pos is None else packet.pos
        return (
            ordinal < len(self)
            and self.pts[ordinal] == pts
            and self.size[ordinal] == packet.size
            and self.position[ordinal] == position
        )

    def locate(self, packet: Packet[VideoStream]) -> int | None:
        """The ordinal of this packet, or None if it is not exactly one of the index."""
        pts = NO_TIME if packet.pts is None else packet.pts
        ordinals = np.flatnonzero(np.frombuffer(self.pts, np.int64) == pts)
        fitting = [ordinal for ordinal in ordinals.tolist() if self.matches(ordinal, packet)]
        return fitting[0] if len(fitting) == 1 else None

    def bytes_between(self, first: int, last: int) -> int:
        """How much of the file lies between two packets."""
        gap = self.position[last] - self.position[first]
        return (
            gap
            if min(self.position[first], self.position[last]) >= 0 and gap > 0
            else sum(self.size[first:last])
        )


def read_index(
    container: InputContainer,
    stream: VideoStream,
    on_packet: Callable[[Packet[VideoStream], int], None],
) -> PacketIndex:
    """Read every video packet of the file.

    `on_packet` gets each one and how many there are so far.
    """
    index = PacketIndex()
    context = stream.codec_context
    look = look_for(context.codec.canonical_name, context.extradata or b"")
    try:
        for packet in container.demux(stream):
            if packet.size:
                index.append(packet, look(memoryview(packet)) if look else START)
                on_packet(packet, len(index))
    except av.FFmpegError:
        pass  # damaged or cut off here: what came before stands, as with the ffmpeg program
    return index


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The frames by `frame_index`: pts (n,) in ticks, ordinals (n,) of their packets, starts (n,) likewise."""

    pts: Int64Array
    ordinals: Int64Array
    starts: Int64Array
    disposable: BoolArray
    exact: bool

    def table(self, tick_seconds: float) -> FrameTable:
        """The same as the planner sees it."""
        return FrameTable(
            pts_seconds=self.pts.astype(np.float64) * tick_seconds,
            start_order=self.starts,
            decode_order=self.ordinals,
            disposable=self.disposable,
            exact=self.exact,
        )

    def without(self, frames: Sequence[int]) -> Timeline:
        """The same without these frames."""
        keep = np.ones(len(self.pts), bool)
        keep[list(frames)] = False
        return Timeline(
            self.pts[keep],
            self.ordinals[keep],
            self.starts[keep],
            self.disposable[keep],
            exact=self.exact,
        )


def must_decode_to_count(index: PacketIndex, stream: VideoStream) -> bool:
    """Whether the packets alone cannot tell which frames the decoder will put out."""
    flags, looks = np.frombuffer(index.flags, np.uint8), np.frombuffer(index.looks, np.uint8)
    shown = flags & _DISCARD == 0
    pts = np.frombuffer(index.pts, np.int64)[shown]
    return bool(
        stream.codec_context.codec.canonical_name not in TRUSTED_CODECS
        or stream.codec_context.field_order >= _FIRST_INTERLACED_FIELD_ORDER
        or not flags[0] & _KEY
        or (looks & UNUSUAL).any()
        or (pts == NO_TIME).any()
        or len(np.unique(pts)) < len(pts)
        or (
            stream.codec_context.has_b_frames and (np.diff(pts) > 0).all()
        )  # reordered, and the times do not say so
    )


def timeline_from_packets(
    index: PacketIndex, codec: str, output_pts: Int64Array | None = None
) -> Timeline | None:
    """Frames as ranks of pts, or None if the time stamps cannot carry that.

    `output_pts` is what a decoder put out, where it had to be asked; without it each packet that is
    not discarded by an edit list is a frame.
    """
    pts, flags = np.frombuffer(index.pts, np.int64), np.frombuffer(index.flags, np.uint8)
    shown = np.flatnonzero(flags & _DISCARD == 0)
    ordinals = shown[np.argsort(pts[shown], kind="stable")]
    if output_pts is not None:
        if (np.diff(output_pts) <= 0).any():
            return None
        ordinals = ordinals[np.isin(pts[ordinals], output_pts)]
        if len(ordinals) != len(output_pts):
            return None
    times = pts[ordinals]
    starts = _starts(pts, np.flatnonzero(flags & _KEY), ordinals)
    trusted = codec in TRUSTED_CODECS and bool(len(times)) and times[0] != NO_TIME
    if (
        not trusted
        or (np.diff(times) <= 0).any()
        or (np.diff(starts) < 0).any()
        or (starts < 0).any()
    ):
        return None
    return Timeline(times, ordinals, starts, _disposable(index)[ordinals], exact=True)


def timeline_of_outputs(output_pts: Int64Array) -> Timeline:
    """Frames in output order, for a file whose time stamps cannot be trusted."""
    count = len(output_pts)
    zeros = np.zeros(count, np.int64)
    return Timeline(
        output_pts, np.arange(count, dtype=np.int64), zeros, np.zeros(count, bool), exact=False
    )


def _starts(pts: Int64Array, keys: Int64Array, ordinals: Int64Array) -> Int64Array:
    """For each frame the last key frame that is neither later in the file nor later in time; -1 where there is none."""
    at = np.searchsorted(keys, ordinals, side="right") - 1
    starts = (
        np.where(at >= 0, keys[np.maximum(at, 0)], -1) if len(keys) else np.full(len(ordinals), -1)
    )
    # Leading pictures of an open GOP come before their key frame in time: they belong to the GOP
    # before.
    leading = (at >= 0) & (pts[np.maximum(starts, 0)] > pts[ordinals])
    for frame in np.flatnonzero(leading):
        before = keys[max(0, int(at[frame]) - _MAX_KEYS_BACK) : int(at[frame])]
        fitting = before[pts[before] <= pts[ordinals[frame]]]
        starts[frame] = fitting[-1] if len(fitting) else -1
    return starts.astype(np.int64)


def _disposable(index: PacketIndex) -> BoolArray:
    """Per packet: no other picture needs it, as it is of the highest temporal layer and marked as needless there."""
    looks = np.frombuffer(index.looks, np.uint8)
    layers = looks & LAYER
    needless: BoolArray = (looks & NEEDLESS != 0) & (layers == layers.max(initial=0))
    return needless
