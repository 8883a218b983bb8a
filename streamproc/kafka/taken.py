"""What `long_jobs` has taken of the partitions and not done, and what is committed of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import orjson

if TYPE_CHECKING:
    import asyncio

    from streamproc.kafka.records import Record


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a record will never be done: a `code` for programs, a `text` for people."""

    code: str
    text: str


@dataclass(slots=True, eq=False)
class Job:
    """One record in work."""

    record: Record
    suspect: bool
    """A process died while it ran, so now it runs alone."""
    refusal: Refusal | None = None
    """Set once it is known that the record will never be done."""
    is_junk: bool = False
    """It was refused at first sight: it takes no room, and waits for no other."""
    is_ending: bool = False
    """It has had its turn, or is refused: worth to be waited for when the service stops."""
    is_waiting: bool = False
    """It waits for another attempt."""
    task: asyncio.Task[None] | None = None

    @property
    def is_active(self) -> bool:
        """Whether it runs now."""
        return self.task is not None and not self.is_waiting


@dataclass(slots=True, eq=False)
class Taken:
    """What has been taken of one partition, and how often each offset that is not done started."""

    next_offset: int | None
    starts: dict[int, int]
    jobs: dict[int, Job] = field(default_factory=dict)
    """By offset, in order: taken and not done."""
    committed: tuple[int, str] | None = None
    """The offset and metadata of the last commit."""

    def low_water(self) -> int | None:
        """Return the offset before which all is done, None if nothing is known."""
        return next(iter(self.jobs), self.next_offset)

    def metadata(self, *, without_running: bool) -> str:
        """Return, as JSON, how often each offset started without coming to an end.

        A job that waits for another attempt cannot kill the process, so it has not started.
        """
        counts = {}
        for offset, starts in sorted(self.starts.items()):
            job = self.jobs.get(offset)
            is_running = job is not None and job.task is not None
            is_waiting = job is not None and job.is_waiting
            count = starts - 1 if is_waiting or (is_running and without_running) else starts
            if count:
                counts[str(offset)] = count
        return orjson.dumps({"starts": counts}).decode() if counts else ""


def starts_of(metadata: str | None) -> dict[int, int]:
    """Read the metadata of a commit; that of another program gives no counts."""
    try:
        counts = orjson.loads(metadata or "{}")["starts"]
        return {int(offset): int(starts) for offset, starts in counts.items()}
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}
