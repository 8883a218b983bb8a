"""Which files go when people are forgotten: those that there are, and those of runs under way."""

from __future__ import annotations

import time
from collections import OrderedDict
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from streamproc.events import Forgotten

_MAX_RUNS = 1000
_FRESH_SECONDS = 60.0


class RecentRuns:
    """The runs that this process has ended, with when they were submitted, in milliseconds.

    One that ended before its service came to an event looked for no mark of it.
    """

    def __init__(self) -> None:
        self._runs: OrderedDict[tuple[str, str], int] = OrderedDict()

    def add(self, video_id: str, run_id: str, submitted_at_ms: int) -> None:
        """Remember a run; call it before it looks who was forgotten."""
        self._runs[video_id, run_id] = submitted_at_ms
        self._runs.move_to_end((video_id, run_id))
        while len(self._runs) > _MAX_RUNS:
            self._runs.popitem(last=False)

    def of(self, video_id: str) -> Iterator[tuple[str, int]]:
        """Yield the runs of a video, and when each was submitted."""
        for (video, run_id), submitted_at_ms in list(self._runs.items()):
            if video == video_id:
                yield run_id, submitted_at_ms


def persons_by_video(event: Forgotten) -> dict[str, set[int] | None]:
    """Return who is forgotten, by video: the numbers of some, or None for all of it."""
    found: dict[str, set[int] | None] = {}
    for key in event.person_keys:
        video_id, _, number = key.rpartition("/")
        own = found.setdefault(video_id, set())
        assert own is not None
        own.add(int(number))
    return found | dict.fromkeys(event.video_ids)


def written_until(at_ms: int) -> float:
    """Return until when files were written, in seconds, that an event of this time means.

    A video that was announced again since has files of its own by then. But where the event has
    just come, what a run has written in the meantime goes as well.
    """
    now_seconds = time.time()
    at_seconds = at_ms / 1000
    return now_seconds if now_seconds - at_seconds < _FRESH_SECONDS else at_seconds
