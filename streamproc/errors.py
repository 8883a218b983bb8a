"""The tree of errors. Each text says what was expected, what was found, and what to do.

    StreamprocError            anything that streamproc raises on purpose
    ├── InputError             the user's input cannot be used (exit code 1); retrying cannot help
    │   ├── VideoError         a video that is missing, refused, broken, empty, or over a limit
    │   │   └── TimeLimitError a video that took longer than it may
    │   ├── TracksError        a track file that cannot be read, or does not fit its video
    │   ├── WeightsError       weights that are missing, altered, or of another architecture
    │   └── EventError         an event that breaks the schema, or that its gallery refuses
    ├── UsageError             settings or flags that make no sense (exit code 2)
    └── MachineError           disk, memory or another service failed (exit code 1); may work later
        └── BrokerError        Kafka itself is away, so nothing at all can be taken or said

Only `cli` turns them into exit codes. Dead letters and progress events carry the `code` of an
InputError.
"""

from __future__ import annotations

from typing import ClassVar


class StreamprocError(Exception):
    """Base of all errors that streamproc raises on purpose."""


class InputError(StreamprocError):
    """The user's input cannot be used; doing the same again gives the same."""

    code: ClassVar[str] = "bad-input"


class VideoError(InputError):
    """A video is missing, refused, broken, empty, or over a limit."""

    code: ClassVar[str] = "bad-video"


class TimeLimitError(VideoError):
    """A video took longer than its time limit."""

    code: ClassVar[str] = "time-limit"


class TracksError(InputError):
    """A track file cannot be read, or does not fit its video."""

    code: ClassVar[str] = "bad-tracks"


class WeightsError(InputError):
    """Weights are missing, altered, or of another architecture."""


class EventError(InputError):
    """An event breaks its schema, or its gallery refuses it."""

    code: ClassVar[str] = "bad-event"


class UsageError(StreamprocError):
    """Settings or flags that make no sense."""


class MachineError(StreamprocError):
    """The machine failed (disk full, memory, a service away): the same may work later."""


class BrokerError(MachineError):
    """Kafka itself is away or takes nothing: whatever is in work is not at fault."""
