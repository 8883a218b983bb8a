"""A video as frames with an index: opened once, then read wherever frames are wanted."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np

from streamproc.errors import VideoError
from streamproc.video.pixels import Converter, Frame
from streamproc.video.probe import Survey, survey
from streamproc.video.reader import Counts, PacketReader
from streamproc.video.source import Limits, Source, check_file

if TYPE_CHECKING:
    from collections.abc import Generator, Iterator
    from pathlib import Path

    from av.video.frame import VideoFrame

    from streamproc.types import FrameTable, Int64Array
    from streamproc.video.index import Timeline

_SEEK_GAP_BYTES = 4 * 2**20
# Decoders put pictures out in the order of their time; only broken files do not, and theirs may
# wait this long.
_MAX_HELD = 8


def open_video(path: Path, *, limits: Limits | None = None, decode_threads: int = 0) -> Video:
    """Open a local video file and learn its frames, without decoding it where its packets tell them.

    `limits` defaults to `Limits()`; `decode_threads` 0 is FFmpeg's choice. No other file or address
    is ever opened, whatever the file says.

    Raises:
        VideoError: The file is missing, empty, no video, cut off before its index, or over a limit.
    """
    source = Source(path, limits or Limits())
    check_file(path, source.limits)
    return Video(source, survey(source, decode_threads), decode_threads)


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    """Packets `start`..`end` that are fed in one go, and the frames (ascending) that are wanted of them."""

    start: int
    end: int
    wanted: list[int]


def _plan_runs(timeline: Timeline, wanted: Int64Array) -> list[_Run]:
    """The fewest packets that give these frames: a frame joins the run before if its key frame lies in it."""
    runs: list[_Run] = []
    for frame, start, end in zip(
        wanted.tolist(),
        timeline.starts[wanted].tolist(),
        timeline.ordinals[wanted].tolist(),
        strict=True,
    ):
        if runs and start <= runs[-1].end:
            last = runs[-1]
            runs[-1] = _Run(last.start, max(last.end, end), last.wanted)
            last.wanted.append(frame)
        else:
            runs.append(_Run(start, end, [frame]))
    return runs


class Video:
    """One video file. Made by `open_video`; close it, or use it in a `with`.

    `width` and `height` are upright. `missing_frames` and `missing_seconds` are what a cut-off file
    promised and does not hold. After `frames`, `undecodable` lists wanted frames that could not be
    had: damaged, or of another size than the first picture, to which boxes refer. Threads:
    `get_ready` and `frames` run in one thread, conversion of its frames in one thread (the same or
    another), `close` when both have ended.
    """

    def __init__(self, source: Source, known: Survey, decode_threads: int) -> None:
        self.path = source.path
        self.codec_name = known.codec_name
        self.pixel_format = known.pixel_format
        self.width, self.height = known.orientation.upright_size(*known.stored_size)
        self.frame_count = len(known.timeline.pts)
        self.frame_table: FrameTable = known.timeline.table(known.seconds_per_tick)
        self.missing_frames = known.missing_frames
        self.missing_seconds = known.missing_seconds
        self.undecodable: list[int] = []
        self.fell_back = False
        self.seek_gap_bytes = _SEEK_GAP_BYTES
        self._source = source
        self._known = known
        self._decode_threads = decode_threads
        self._counts = Counts()
        self._converter = Converter(known.orientation)
        self._readers: dict[int, PacketReader] = {}

    def __repr__(self) -> str:
        return f"Video({self.path.name}, {self.codec_name} {self.width}x{self.height}, {self.frame_count} frames)"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def get_ready(self) -> None:
        """Open the file for `frames`, which does it otherwise; what is wrong with it is for `frames` to say."""
        with suppress(VideoError):
            self._reader(self._decode_threads)

    def close(self) -> None:
        """Let go of the file; frames already given stay usable."""
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
        """How often the file was read on from elsewhere."""
        return self._counts.seeks

    def frames(self, wanted: Int64Array) -> Iterator[Frame]:
        """The frames at `wanted` (ascending, unique frame indices), each as soon as it is decoded.

        A frame that cannot be decoded is left out and noted in `undecodable`.

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
        self.undecodable, self.fell_back = [], False
        try:
            yield from self._selected(wanted) if self.frame_table.exact else self._counted(wanted)
        finally:
            self.close()

    def _reader(self, decode_threads: int) -> PacketReader:
        if decode_threads not in self._readers:
            self._readers[decode_threads] = PacketReader(
                self._source,
                self._known.index,
                self._counts,
                seek_gap_bytes=self.seek_gap_bytes,
                decode_threads=decode_threads,
            )
        return self._readers[decode_threads]

    def _counted(self, wanted: Int64Array) -> Iterator[Frame]:
        """Frames by their place in the output, where time stamps cannot name them."""
        reader = self._reader(self._decode_threads)
        reader.go_to(0)
        waiting = deque(wanted.tolist())
        for frame_index, picture in enumerate(reader.decode_through(len(self._known.index) - 1)):
            if frame_index != waiting[0]:
                continue
            waiting.popleft()
            yield from self._given(frame_index, picture)
            if not waiting:
                return
        self.undecodable += waiting

    def _selected(self, wanted: Int64Array) -> Iterator[Frame]:
        timeline = self._known.timeline
        may_skip = np.zeros(len(self._known.index), np.uint8)
        may_skip[timeline.ordinals[timeline.disposable]] = 1
        may_skip[timeline.ordinals[wanted]] = 0
        skip = may_skip.tobytes()
        runs, threads = deque(_plan_runs(timeline, wanted)), self._decode_threads
        knows_damage = False
        while runs:
            run = runs.popleft()
            lost = yield from self._attempt(
                run.start, run.end, run.wanted, threads=threads, skip=skip, may_lose=False
            )
            if lost:
                # One thread, as several lose what else is under way when one meets damage.
                self.fell_back, start = True, self._start_before(run.start)
                lost = yield from self._attempt(
                    start, run.end, lost, threads=1, may_lose=knows_damage
                )
            if lost and not knows_damage:
                # Once is enough to tell damage from key frames that are no clean starts.
                knows_damage, first_lost = True, lost[0]
                lost = yield from self._attempt(0, run.end, lost, threads=threads, may_lose=True)
                if first_lost not in lost and runs:
                    rest = [frame for later in runs for frame in later.wanted]
                    runs = deque([_Run(0, max(later.end for later in runs), rest)])
            self.undecodable += lost
        self.undecodable.sort()

    def _start_before(self, start: int) -> int:
        starts = self._known.timeline.starts
        at = int(np.searchsorted(starts, start))
        return int(starts[at - 1]) if at else 0

    def _attempt(
        self,
        start: int,
        end: int,
        wanted: list[int],
        *,
        threads: int,
        skip: bytes = b"",
        may_lose: bool,
    ) -> Generator[Frame, None, list[int]]:
        """Decode packets `start`..`end` and give the wanted frames in order; returns those that are not given.

        Where it may lose none it stops at the first that does not come, so that another attempt can
        keep the order.
        """
        reader = self._reader(threads)
        reader.go_to(start)
        waiting = deque(wanted)
        held: dict[int, VideoFrame] = {}
        lost: list[int] = []
        pictures = reader.decode_through(end, skip)
        is_open = True
        while waiting and (is_open or held):
            for passed in [frame_index for frame_index in held if frame_index < waiting[0]]:
                del held[passed]
            if waiting[0] in held:
                frame_index = waiting.popleft()
                yield from self._given(frame_index, held.pop(frame_index))
            elif is_open and len(held) <= _MAX_HELD:
                is_open = self._hold(next(pictures, None), waiting, held)
            elif may_lose:
                lost.append(waiting.popleft())
            else:
                break
        return [*lost, *waiting]

    def _hold(
        self, picture: VideoFrame | None, waiting: deque[int], held: dict[int, VideoFrame]
    ) -> bool:
        if picture is None:
            return False
        pts = self._known.timeline.pts
        if picture.pts is None or picture.pts < pts[waiting[0]]:
            return True  # most pictures are only there to decode others
        at = int(np.searchsorted(pts, picture.pts))
        if at < len(pts) and pts[at] == picture.pts and at <= waiting[-1]:
            held[at] = picture
        return True

    def _given(self, frame_index: int, picture: VideoFrame) -> Iterator[Frame]:
        if (picture.width, picture.height) == self._known.stored_size:
            seconds = float(self.frame_table.pts_seconds[frame_index])
            yield Frame(frame_index, seconds, picture, self._converter)
        else:
            self.undecodable.append(frame_index)
