"""Which frames must not be used, because a picture that they are made of is damaged.

A decoder marks the picture in which it met damage, and hides the damage as well as it can. The
pictures that are made of that one carry the damage on without a mark, up to the next clean start.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from streamproc.types import Int64Array
    from streamproc.video.index import Timeline


def known_after(timeline: Timeline) -> Int64Array:
    """For each frame (n,) the last frame, in presentation order, that it may be made of, or itself.

    Only when that one has come out of the decoder is it known whether the frame is damaged.
    """
    frames = np.argsort(timeline.ordinals, kind="stable")  # in decode order
    references = np.where(timeline.disposable[frames], -1, frames)
    latest = np.empty_like(frames)
    latest[frames] = np.maximum(frames, np.maximum.accumulate(references))
    return latest


class Damage:
    """The damage met while one span is decoded. Frames are asked for in ascending order."""

    def __init__(self, timeline: Timeline) -> None:
        self._timeline = timeline
        self._alone: set[int] = set()
        self._first_bad: dict[int, int] = {}  # packet where it begins, by the start it ends before

    def add_frame(self, frame_index: int) -> None:
        """Note that a picture came out marked as damaged."""
        if self._timeline.disposable[frame_index]:
            self._alone.add(frame_index)
        else:
            start = int(self._timeline.starts[frame_index])
            self._add(start, int(self._timeline.ordinals[frame_index]))

    def add_packet(self, ordinal: int) -> None:
        """Note that a packet could not be decoded."""
        (frames,) = np.nonzero(self._timeline.ordinals == ordinal)
        if len(frames):
            self.add_frame(int(frames[0]))
            return
        starts = self._timeline.starts
        self._add(int(starts[starts <= ordinal].max(initial=0)), ordinal)

    def _add(self, start: int, ordinal: int) -> None:
        self._first_bad[start] = min(ordinal, self._first_bad.get(start, ordinal))

    def spoils(self, frame_index: int) -> bool:
        """Whether a frame is damaged, or may be made of one that is."""
        if not self._first_bad:
            return frame_index in self._alone
        start = int(self._timeline.starts[frame_index])
        ordinal = int(self._timeline.ordinals[frame_index])
        # Pictures from a later start are clean. Those from an earlier start that come later in the
        # file lead the damaged start, and are made of it too.
        self._first_bad = {at: bad for at, bad in self._first_bad.items() if at >= start}
        is_spoiled = any(ordinal >= bad for bad in self._first_bad.values())
        return is_spoiled or frame_index in self._alone
