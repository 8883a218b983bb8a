"""A video as frames with an index: opened once, then read wherever frames are wanted."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

import numpy as np
from av.video.reformatter import Interpolation, VideoReformatter

from streamproc.errors import VideoError
from streamproc.video.damage import Damage, known_after
from streamproc.video.index import NO_TIME
from streamproc.video.pixels import KNOWN_MATRICES, UNSPECIFIED_MATRIX, Converter, Frame
from streamproc.video.probe import Probe, probe
from streamproc.video.reader import Counts, PacketReader
from streamproc.video.source import Limits, Source, check_file

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable, Iterator
    from pathlib import Path

    from av.video.frame import VideoFrame

    from streamproc.types import FrameTable, Int64Array
    from streamproc.video.index import Timeline

_SEEK_GAP_BYTES = 4 * 2**20
# Decoders put pictures out in the order of their time. In damaged files they may not: then so many
# pictures are kept that came too early. Pictures also wait for those that they are made of.
_MAX_EARLY_PICTURES = 16


def open_video(path: Path, *, limits: Limits | None = None, decode_threads: int = 0) -> Video:
    """Open a local video file and find its frames, without decoding it if its packets tell them.

    `limits` defaults to `Limits()`. With `decode_threads` 0 FFmpeg chooses how many. No other file
    or address is ever opened, whatever the file says.

    Raises:
        VideoError: The file is missing, empty, no video, cut off before its index, or over a limit.
    """
    source = Source(path, limits or Limits())
    check_file(path, source.limits)
    return Video(source, probe(source, decode_threads), decode_threads)


@dataclass(frozen=True, slots=True, eq=False)
class PacketSpan:
    """Packets `start` to `end` that are decoded in one go, and the frames wanted from them.

    The frames are in ascending order.
    """

    start: int
    end: int
    wanted: list[int]


@dataclass(slots=True, eq=False)
class _Pass:
    """Where decoding one span stands.

    `waiting` are wanted frames that have not been given, `early` pictures that wait until those
    before them, and those that they are made of, have come.
    """

    waiting: deque[int]
    damage: Damage
    early: dict[int, VideoFrame] = field(default_factory=dict)
    newest_pts: int = NO_TIME
    is_open: bool = True

    @property
    def has_room(self) -> bool:
        """Whether another picture may be taken."""
        return self.is_open and len(self.early) <= _MAX_EARLY_PICTURES

    def drop_passed(self) -> None:
        """Let go of pictures whose frames are not waited for any more."""
        for passed in [frame_index for frame_index in self.early if frame_index < self.waiting[0]]:
            del self.early[passed]


def _plan_spans(timeline: Timeline, wanted: Int64Array) -> list[PacketSpan]:
    """The fewest packets that give these frames.

    A frame joins the span before it if its key frame lies in that span.
    """
    starts = timeline.starts[wanted].tolist()
    ends = timeline.ordinals[wanted].tolist()
    spans: list[PacketSpan] = []
    for frame, start, end in zip(wanted.tolist(), starts, ends, strict=True):
        if spans and start <= spans[-1].end:
            last = spans[-1]
            last.wanted.append(frame)
            spans[-1] = PacketSpan(last.start, max(last.end, end), last.wanted)
        else:
            spans.append(PacketSpan(start, end, [frame]))
    return spans


def _join_from_beginning(spans: Iterable[PacketSpan]) -> PacketSpan:
    """One span that begins with the file and gives all frames of these."""
    end = 0
    wanted: list[int] = []
    for span in spans:
        end = max(end, span.end)
        wanted += span.wanted
    return PacketSpan(0, end, wanted)


class Video:
    """One video file. Made by `open_video`; close it, or use it in a `with`.

    `width` and `height` are upright. `missing_frames` and `missing_seconds` are what a truncated
    file's header declares and the file does not hold. After `frames`, `undecodable` lists wanted
    frames that could not be decoded, are damaged, or may be made of damaged ones; `scaled_frames`
    counts those of another size than the first, to which boxes refer, and which they were scaled
    to (bicubic, as OpenCV does, with which trackers read); `unknown_matrix` is a colour matrix
    (ISO/IEC 23091-2) that cannot be converted from, None if there was none: the default was taken
    instead. `fell_back` tells whether planned packets did not give all their frames, and more were
    decoded. Threads: `get_ready` and `frames` run in one thread, conversion of its frames in
    one thread (the same or another), `close` when both have ended.
    """

    def __init__(self, source: Source, probed: Probe, decode_threads: int) -> None:
        self.path = source.path
        self.codec_name = probed.codec_name
        self.pixel_format = probed.pixel_format
        self.width, self.height = probed.orientation.upright_size(*probed.stored_size)
        self.frame_count = len(probed.timeline.pts)
        self.frame_table: FrameTable = probed.timeline.table(probed.seconds_per_tick)
        self.missing_frames = probed.missing_frames
        self.missing_seconds = probed.missing_seconds
        self.undecodable: list[int] = []
        self.scaled_frames = 0
        self.unknown_matrix: int | None = None
        self.fell_back = False
        self.seek_gap_bytes = _SEEK_GAP_BYTES
        self._source = source
        self._probed = probed
        self._decode_threads = decode_threads
        self._counts = Counts()
        self._converter = Converter(probed.orientation)
        self._scaler = VideoReformatter()
        self._readers: dict[int, PacketReader] = {}  # by number of threads
        self._known_after_pts = probed.timeline.pts

    def __repr__(self) -> str:
        return (
            f"Video({self.path.name}, {self.codec_name} {self.width}x{self.height}, "
            f"{self.frame_count} frames)"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_ready(self) -> None:
        """Open the file for `frames`, which otherwise does so itself.

        Raises nothing: `frames` raises what is wrong with the file.
        """
        with suppress(VideoError):
            self._reader(self._decode_threads)

    def close(self) -> None:
        """Close the file; frames already given stay usable."""
        while self._readers:
            self._readers.popitem()[1].close()

    @property
    def packets_sent(self) -> int:
        """How many packets the decoder was fed."""
        return self._counts.packets_sent

    @property
    def frames_decoded(self) -> int:
        """How many pictures the decoder put out."""
        return self._counts.frames_decoded

    @property
    def seeks(self) -> int:
        """How often reading went on at another place of the file."""
        return self._counts.seeks

    def frames(self, wanted: Int64Array) -> Iterator[Frame]:
        """The frames at `wanted` (ascending, unique frame indices), each as soon as it is decoded.

        A frame that cannot be decoded is left out and listed in `undecodable`.

        Raises:
            ValueError: `wanted` is not ascending and unique, or not within the video.
            VideoError: The file changed since it was opened.
        """
        wanted = np.asarray(wanted, np.int64)
        if len(wanted) and (
            (np.diff(wanted) <= 0).any() or wanted[0] < 0 or wanted[-1] >= self.frame_count
        ):
            raise ValueError(
                f"wanted frames must ascend, be unique, and lie in 0..{self.frame_count - 1}"
            )
        return self._read(wanted)

    def _read(self, wanted: Int64Array) -> Iterator[Frame]:
        if not len(wanted):
            return
        self.undecodable = []
        self.scaled_frames = 0
        self.fell_back = False
        try:
            if self.frame_table.exact:
                yield from self._read_by_time(wanted)
            else:
                yield from self._read_by_count(wanted)
        finally:
            self.close()

    def _reader(self, decode_threads: int) -> PacketReader:
        if decode_threads not in self._readers:
            self._readers[decode_threads] = PacketReader(
                self._source,
                self._probed.index,
                self._counts,
                seek_gap_bytes=self.seek_gap_bytes,
                decode_threads=decode_threads,
            )
        return self._readers[decode_threads]

    def _read_by_count(self, wanted: Int64Array) -> Iterator[Frame]:
        """Frames by their place in the output, where time stamps cannot identify them."""
        reader = self._reader(self._decode_threads)
        reader.go_to(0)
        waiting = deque(wanted.tolist())
        last = len(self._probed.index) - 1
        failures = 0
        is_spoiled = False
        for frame_index, picture in enumerate(reader.decode_through(last)):
            # Which pictures are made of a damaged one is not known: all up to the next key frame.
            if picture.is_corrupt or (frame_index and len(reader.failed) > failures):
                is_spoiled = True
            elif picture.key_frame:
                is_spoiled = False
            failures = len(reader.failed)
            if frame_index != waiting[0]:
                continue
            waiting.popleft()
            if is_spoiled:
                self.undecodable.append(frame_index)
            else:
                yield self._frame(frame_index, picture)
            if not waiting:
                return
        self.undecodable += waiting

    def _read_by_time(self, wanted: Int64Array) -> Iterator[Frame]:
        """Frames by their time stamps: seeks to where they are, and skips what they do not need."""
        latest = known_after(self._probed.timeline)
        self._known_after_pts = self._probed.timeline.pts[latest]
        skip = self._packets_to_skip(wanted)
        threads = self._decode_threads
        spans = deque(_plan_spans(self._probed.timeline, wanted))
        knows_damage = False
        while spans:
            span = spans.popleft()
            lost = yield from self._decode_span(span, threads, skip=skip, may_lose=False)
            if lost:
                # One thread, as several lose what else they decode when one meets damage.
                self.fell_back = True
                longer = PacketSpan(self._start_before(span.start), span.end, lost)
                lost = yield from self._decode_span(longer, 1, may_lose=knows_damage)
            if lost and not knows_damage:
                # Doing this once is enough to tell damage from key frames that are no clean starts.
                knows_damage = True
                first_lost = lost[0]
                whole = PacketSpan(0, span.end, lost)
                lost = yield from self._decode_span(whole, 1, may_lose=True)
                if first_lost not in lost and spans:
                    spans = deque([_join_from_beginning(spans)])
            self.undecodable += lost
        self.undecodable.sort()

    def _packets_to_skip(self, wanted: Int64Array) -> bytes:
        """A byte a packet: 1 where no other picture needs it and it is not wanted itself."""
        timeline = self._probed.timeline
        may_skip = np.zeros(len(self._probed.index), np.uint8)
        may_skip[timeline.ordinals[timeline.disposable]] = 1
        may_skip[timeline.ordinals[wanted]] = 0
        return may_skip.tobytes()

    def _start_before(self, start: int) -> int:
        """The packet from which the group of pictures before this one is decoded."""
        starts = self._probed.timeline.starts
        at = int(np.searchsorted(starts, start))
        return int(starts[at - 1]) if at else 0

    def _decode_span(
        self, span: PacketSpan, threads: int, *, skip: bytes = b"", may_lose: bool
    ) -> Generator[Frame, None, list[int]]:
        """Decode a span and yield its wanted frames in order; return those that do not come.

        Frames that are damaged, or made of damaged ones, count as if they did not come. Unless
        `may_lose`, it stops at the first that does not come, so that another try can keep the
        order. It also stops where a packet fails in one of several threads, since it cannot be told
        which packet that was.
        """
        reader = self._reader(threads)
        reader.go_to(span.start)
        pictures = reader.decode_through(span.end, skip)
        state = _Pass(deque(span.wanted), Damage(self._probed.timeline))
        lost: list[int] = []
        while state.waiting and (state.is_open or state.early):
            state.drop_passed()
            frame_index = state.waiting[0]
            if state.has_room and not self._is_known(state):
                picture = next(pictures, None)
                if reader.failed and threads != 1:
                    break
                self._take(picture, reader.failed, state)
            elif frame_index in state.early and not state.damage.spoils(frame_index):
                state.waiting.popleft()
                yield self._frame(frame_index, state.early.pop(frame_index))
            elif may_lose:
                if frame_index not in state.early:
                    state.damage.add_frame(frame_index)
                lost.append(state.waiting.popleft())
            else:
                break
        return [*lost, *state.waiting]

    def _is_known(self, state: _Pass) -> bool:
        """Whether the next wanted frame is there, and whether it is damaged is known."""
        frame_index = state.waiting[0]
        is_there = frame_index in state.early
        return is_there and state.newest_pts >= self._known_after_pts[frame_index]

    def _take(self, picture: VideoFrame | None, failed: list[int], state: _Pass) -> None:
        """Take the decoder's next picture, None at the end, and the packets that failed.

        A picture is kept if its frame may be one that is waited for. Most pictures are decoded only
        because others need them.
        """
        while failed:
            state.damage.add_packet(failed.pop())
        if picture is None:
            state.is_open = False
            return
        if picture.pts is None:
            return
        state.newest_pts = max(state.newest_pts, picture.pts)
        pts = self._probed.timeline.pts
        if picture.pts < pts[state.waiting[0]] and not picture.is_corrupt:
            return
        at = int(np.searchsorted(pts, picture.pts))
        if at == len(pts) or pts[at] != picture.pts:
            return
        if picture.is_corrupt:
            state.damage.add_frame(at)
        elif state.waiting[0] <= at <= state.waiting[-1]:
            state.early[at] = picture

    def _frame(self, frame_index: int, picture: VideoFrame) -> Frame:
        """The frame, of the size and with a colour matrix that can be used."""
        if picture.colorspace not in KNOWN_MATRICES:
            self.unknown_matrix = int(picture.colorspace)
            picture.colorspace = UNSPECIFIED_MATRIX
        width, height = self._probed.stored_size
        if (picture.width, picture.height) != (width, height):
            self.scaled_frames += 1
            picture = self._scaler.reformat(
                picture, width, height, "rgb24", interpolation=Interpolation.BICUBIC, threads=1
            )
        seconds = float(self.frame_table.pts_seconds[frame_index])
        return Frame(frame_index, seconds, picture, self._converter)
