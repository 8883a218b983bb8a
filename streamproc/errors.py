"""The tree of errors; each text says what was expected, what came, and what to do.

    StreamprocError            anything that streamproc raises on purpose
    ├── InputError             the user's input cannot be used (exit code 1); retrying cannot help
    │   ├── VideoError         a video that is missing, refused, broken, empty, or over a limit
    │   ├── TracksError        a track file that cannot be read, or does not fit its video
    │   ├── WeightsError       weights that are missing, altered, or of another architecture
    │   └── EventError         an event that breaks the schema, or that its gallery refuses
    ├── UsageError             settings or flags that make no sense (exit code 2)
    └── MachineError           disk, memory or another service failed (exit code 1); retrying may help

Only `cli` turns them into exit codes.
"""

from __future__ import annotations


class StreamprocError(Exception):
    """Base of all errors that streamproc raises on purpose."""


class InputError(StreamprocError):
    """The user's input cannot be used; doing the same again gives the same."""


class VideoError(InputError):
    """A video is missing, refused, broken, empty, or over a limit."""


class TracksError(InputError):
    """A track file cannot be read, or does not fit its video."""


class WeightsError(InputError):
    """Weights are missing, altered, or of another architecture."""


class EventError(InputError):
    """An event breaks its schema, or its gallery refuses it."""


class UsageError(StreamprocError):
    """Settings or flags that make no sense."""


class MachineError(StreamprocError):
    """The machine failed (disk full, memory, a service away): the same may work later."""
