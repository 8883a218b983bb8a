"""Reads packets in file order, checks which packet each is, and feeds them to the decoder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import av

from streamproc.errors import VideoError
from streamproc.video.index import NO_TIME
from streamproc.video.source import open_stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from av.container import InputContainer
    from av.packet import Packet
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

    from streamproc.video.index import PacketIndex
    from streamproc.video.source import Source

_PACKETS_TO_IDENTIFY = 64


@dataclass(slots=True)
class Counts:
    """What reading has cost so far."""

    packets_sent: int = 0
    frames_decoded: int = 0
    seeks: int = 0


class PacketReader:
    """One open container and decoder over one file. Used in one thread; `close` it.

    Raises:
        VideoError: The file is no longer what was indexed.
    """

    def __init__(
        self,
        source: Source,
        index: PacketIndex,
        counts: Counts,
        *,
        seek_gap_bytes: int,
        decode_threads: int,
    ) -> None:
        self._source = source
        self._index = index
        self._counts = counts
        self._seek_gap_bytes = seek_gap_bytes
        self._decode_threads = decode_threads
        self._may_seek = True
        self.failed: list[int] = []
        """The packets at which decoding failed since `go_to`; the caller may take them out.

        With several threads the packet that failed may be one that was fed before.
        """
        self._open()

    def _open(self) -> None:
        self._container: InputContainer
        self._stream: VideoStream
        self._container, self._stream = open_stream(self._source, self._decode_threads)
        self._packets: Iterator[Packet[VideoStream]] = self._container.demux(self._stream)
        self._next_ordinal = 0
        self._next_packet: Packet[VideoStream] | None = None  # where a seek has read it already
        self._is_fed = False
        self._has_sought = False

    def close(self) -> None:
        """Close the file."""
        self._container.close()

    def go_to(self, ordinal: int) -> None:
        """Empty the decoder, and go to where packet `ordinal` is read next.

        Raises:
            VideoError: The packet is not there any more.
        """
        if self._is_fed:
            self._stream.codec_context.flush_buffers()
            self._is_fed = False
        self.failed.clear()
        if self._may_seek and self._is_worth_a_seek(ordinal):
            self._seek(ordinal)
        if not self._read_up_to(ordinal):
            self.close()
            self._open()
            if not self._read_up_to(ordinal):
                raise self._file_changed()

    def _is_worth_a_seek(self, ordinal: int) -> bool:
        if ordinal > self._next_ordinal:
            gap = self._index.bytes_between(self._next_ordinal, ordinal)
            return gap > self._seek_gap_bytes
        return 0 < ordinal < self._next_ordinal

    def _read_up_to(self, ordinal: int) -> bool:
        while self._next_ordinal < ordinal and self._read() is not None:
            pass
        return self._next_ordinal == ordinal

    def _seek(self, ordinal: int) -> None:
        """Go to the packet or to one before it.

        Where no seek gets there, go to the end, and never seek again.
        """
        self._counts.seeks += 1
        self._has_sought = True
        times = (self._index.pts[ordinal], self._index.dts[ordinal])
        try:
            earliest = min(time for time in times if time != NO_TIME)
            self._container.seek(earliest, stream=self._stream)
            self._packets = self._container.demux(self._stream)
            for packet, _ in zip(self._packets, range(_PACKETS_TO_IDENTIFY), strict=False):
                landed = self._index.locate(packet) if packet.size else None
                if landed is not None and landed <= ordinal:
                    self._next_ordinal = landed
                    self._next_packet = packet
                    return
        except av.FFmpegError:
            pass  # some formats cannot seek: reading on from the start always can
        self._lose_position()

    def _lose_position(self) -> None:
        self._may_seek = False
        self._next_ordinal = len(self._index)
        self._next_packet = None

    def _read(self) -> Packet[VideoStream] | None:
        packet = self._next_packet
        self._next_packet = None
        try:
            while packet is None or not packet.size:  # the last are empty, to flush the decoder
                packet = next(self._packets)
        except StopIteration:
            packet = None
        except av.FFmpegError:
            packet = None  # the same damage that ended the index
        if packet is None or self._next_ordinal >= len(self._index):
            return None
        if not self._index.matches(self._next_ordinal, packet):
            if not self._has_sought:
                raise self._file_changed()
            self._lose_position()
            return None
        self._next_ordinal += 1
        return packet

    def _file_changed(self) -> VideoError:
        return VideoError(
            f"{self._source.path.name}: changed while it was read; leave it alone and try again"
        )

    def decode_through(self, last: int, skip: bytes = b"") -> Iterator[VideoFrame]:
        """Decode from the next packet to packet `last`, and yield every picture that comes out.

        Packets whose byte in `skip` is set are not fed to the decoder.
        """
        while self._next_ordinal <= last:
            ordinal = self._next_ordinal
            packet = self._read()
            if packet is None:
                break
            if not (skip and skip[ordinal]):
                self._counts.packets_sent += 1
                yield from self._decode(packet)
        yield from self._decode(None)

    def _decode(self, packet: Packet[VideoStream] | None) -> list[VideoFrame]:
        self._is_fed = True
        try:
            pictures = self._stream.codec_context.decode(packet)
        except av.FFmpegError:
            self.failed.append(self._next_ordinal - 1)
            return []  # a damaged packet; the decoder goes on with the next
        self._counts.frames_decoded += len(pictures)
        return pictures
