"""One demux pass: what the file holds, packet by packet, and how each frame can be reached."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import av
import numpy as np

from streamproc.types import FrameTable
from streamproc.video.bitstream import (
    DISPOSABLE,
    LAYER,
    START,
    TRUSTED_CODECS,
    UNUSUAL,
    packet_inspector,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.stream import VideoStream

    from streamproc.types import BoolArray, Int64Array

NO_TIME = -(2**63)
_KEY = 1
_DISCARD = 2
# A leading picture belongs to the group of pictures just before. A file where the search goes on
# for longer was made to waste time.
_MAX_KEYS_BACK = 16
_FIRST_INTERLACED_FIELD_ORDER = 2  # AVFieldOrder: 0 unknown, 1 progressive


@dataclass(slots=True, eq=False)
class PacketIndex:
    """The video packets in file order, 30 bytes each.

    Made by `read_index`, used to plan, to seek and to check. Times are in ticks of the stream,
    `NO_TIME` where there is none; a `position` in the file is -1 where it is not known.
    """

    pts: array[int] = field(default_factory=lambda: array("q"))
    dts: array[int] = field(default_factory=lambda: array("q"))
    position: array[int] = field(default_factory=lambda: array("q"))
    size: array[int] = field(default_factory=lambda: array("i"))
    container_flags: bytearray = field(default_factory=bytearray)
    """The container's flags; a key frame's only where the packet itself is a clean start too."""
    packet_flags: bytearray = field(default_factory=bytearray)
    """What `packet_inspector` found in each packet."""
    last_duration: int = 0

    def __len__(self) -> int:
        return len(self.pts)

    def __repr__(self) -> str:
        return f"PacketIndex({len(self)} packets)"

    def append(self, packet: Packet[VideoStream], packet_flags: int) -> None:
        """Add the next packet of the file."""
        self.pts.append(NO_TIME if packet.pts is None else packet.pts)
        self.dts.append(NO_TIME if packet.dts is None else packet.dts)
        self.position.append(-1 if packet.pos is None else packet.pos)
        self.size.append(packet.size)
        is_start = packet.is_keyframe and packet_flags & START
        self.container_flags.append(_KEY * bool(is_start) | _DISCARD * packet.is_discard)
        self.packet_flags.append(packet_flags)
        self.last_duration = packet.duration or self.last_duration

    def matches(self, ordinal: int, packet: Packet[VideoStream]) -> bool:
        """Whether this is packet `ordinal`.

        A seek may end anywhere, so each packet after one is checked.
        """
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
        matching = [ordinal for ordinal in ordinals.tolist() if self.matches(ordinal, packet)]
        return matching[0] if len(matching) == 1 else None

    def bytes_between(self, first: int, last: int) -> int:
        """How much of the file lies between two packets."""
        start = self.position[first]
        end = self.position[last]
        if 0 <= start < end:
            return end - start
        return sum(self.size[first:last])


def read_index(
    container: InputContainer,
    stream: VideoStream,
    on_packet: Callable[[Packet[VideoStream], int], None],
) -> PacketIndex:
    """Read every video packet of the file.

    `on_packet` gets each packet and how many there are so far.
    """
    index = PacketIndex()
    context = stream.codec_context
    inspect = packet_inspector(context.codec.canonical_name, context.extradata or b"")
    try:
        for packet in container.demux(stream):
            if packet.size:
                index.append(packet, inspect(memoryview(packet)) if inspect else START)
                on_packet(packet, len(index))
    except av.FFmpegError:
        pass  # damaged or cut off here: what came before is used, as the ffmpeg program does
    return index


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """The frames by `frame_index`.

    `pts` (n,) in ticks; `ordinals` (n,) of their packets; `starts` (n,), the ordinals of the
    packets from which each is decoded; `disposable` (n,) and `exact` as in `FrameTable`.
    """

    pts: Int64Array
    ordinals: Int64Array
    starts: Int64Array
    disposable: BoolArray
    exact: bool

    def table(self, tick_seconds: float) -> FrameTable:
        """The same in the form that crops are planned with."""
        return FrameTable(
            pts_seconds=self.pts.astype(np.float64) * tick_seconds,
            start_order=self.starts,
            decode_order=self.ordinals,
            disposable=self.disposable,
            exact=self.exact,
        )

    def from_first_packet(self) -> Timeline:
        """The same where every packet from the first on is needed to decode a frame."""
        return Timeline(
            self.pts,
            self.ordinals,
            starts=np.zeros_like(self.starts),
            disposable=np.zeros_like(self.disposable),
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
    codec = stream.codec_context
    container_flags = np.frombuffer(index.container_flags, np.uint8)
    packet_flags = np.frombuffer(index.packet_flags, np.uint8)
    is_shown = container_flags & _DISCARD == 0
    pts = np.frombuffer(index.pts, np.int64)[is_shown]
    return bool(
        codec.codec.canonical_name not in TRUSTED_CODECS
        or codec.field_order >= _FIRST_INTERLACED_FIELD_ORDER
        or not container_flags[0] & _KEY
        or (packet_flags & UNUSUAL).any()
        or (pts == NO_TIME).any()
        or len(np.unique(pts)) < len(pts)
        # Pictures are reordered, but the times say that they are not.
        or (codec.has_b_frames and (np.diff(pts) > 0).all())
    )


def timeline_from_packets(
    index: PacketIndex, codec: str, output_pts: Int64Array | None = None
) -> Timeline | None:
    """Order the frames by pts; None if the time stamps do not allow that.

    `output_pts` are the times of what a decoder put out, where that had to be tried. Without it
    each packet that no edit list discards is a frame.
    """
    pts = np.frombuffer(index.pts, np.int64)
    container_flags = np.frombuffer(index.container_flags, np.uint8)
    shown = np.flatnonzero(container_flags & _DISCARD == 0)
    ordinals = shown[np.argsort(pts[shown], kind="stable")]
    if output_pts is not None:
        if (np.diff(output_pts) <= 0).any():
            return None
        ordinals = ordinals[np.isin(pts[ordinals], output_pts)]
        if len(ordinals) != len(output_pts):
            return None
    times = pts[ordinals]
    starts = _start_packets(pts, np.flatnonzero(container_flags & _KEY), ordinals)
    is_trusted = codec in TRUSTED_CODECS and bool(len(times)) and times[0] != NO_TIME
    if (
        not is_trusted
        or (np.diff(times) <= 0).any()
        or (np.diff(starts) < 0).any()
        or (starts < 0).any()
    ):
        return None
    return Timeline(times, ordinals, starts, _disposable(index)[ordinals], exact=True)


def timeline_of_outputs(output_pts: Int64Array) -> Timeline:
    """Frames in output order, for a file whose time stamps cannot be trusted."""
    count = len(output_pts)
    return Timeline(
        output_pts,
        ordinals=np.arange(count, dtype=np.int64),
        starts=np.zeros(count, np.int64),
        disposable=np.zeros(count, bool),
        exact=False,
    )


def _start_packets(pts: Int64Array, keys: Int64Array, ordinals: Int64Array) -> Int64Array:
    """For each frame the last key frame that is neither later in the file nor later in time.

    -1 where there is none.
    """
    if not len(keys):
        return np.full(len(ordinals), -1, np.int64)
    at = np.searchsorted(keys, ordinals, side="right") - 1
    starts = np.where(at >= 0, keys[np.maximum(at, 0)], -1)
    # Leading pictures of an open GOP come before their key frame in time: they belong to the GOP
    # before.
    leading = (at >= 0) & (pts[np.maximum(starts, 0)] > pts[ordinals])
    for frame in np.flatnonzero(leading):
        before = keys[max(0, int(at[frame]) - _MAX_KEYS_BACK) : int(at[frame])]
        not_later = before[pts[before] <= pts[ordinals[frame]]]
        starts[frame] = not_later[-1] if len(not_later) else -1
    return starts.astype(np.int64)


def _disposable(index: PacketIndex) -> BoolArray:
    """For each packet (n,): no other picture needs it.

    It is of the highest temporal layer, and marked there as disposable.
    """
    packet_flags = np.frombuffer(index.packet_flags, np.uint8)
    layers = packet_flags & LAYER
    is_highest = layers == layers.max(initial=0)
    disposable: BoolArray = (packet_flags & DISPOSABLE != 0) & is_highest
    return disposable
